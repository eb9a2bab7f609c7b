package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/claims"
	"github.com/diaspora-streams/diaspora/internal/outcome"
	"github.com/diaspora-streams/diaspora/internal/trust"
)

var adminBlockHelp = help{
	use:   "block WHO --why TEXT",
	short: "block a person or a service account",
	examples: `
diaspora admin block grace@example.org --why "the key is on a public web page"
diaspora admin block 1168fe43-ef48-54e0-8aeb-e0dc24146888 --why "sends garbage"`,
	long: `
WHO is a username or a subject, the UUID of an identity. For a username, the command asks Globus who
that is, shows the answer, and asks you to confirm it. In a script, --yes confirms it.

The fabric refuses the person's tokens and access keys, and closes their open connections within a
minute (within ten seconds with "diaspora up"). The person can still sign in at Globus, but cannot
use the login. Topics and keys are kept, and work again after "diaspora admin unblock". Events that
the person logs in the meantime stay in the person's spool, and arrive after the unblock. If
somebody else has given an access key to the person, that key works until its owner revokes it. The
ledger records who blocked whom, when and why. The person is not told why.

You must be an operator of the fabric. The setting "operators" of "diaspora serve" lists the
operators. Operators cannot be blocked.

With "diaspora up", the person who started it is the operator. A person who has the secret of the
stand-in for Globus cannot be kept out in this way: with the secret, everybody can log in as
anybody, also as the operator, and unblock. Do not give the secret to people whom you may have to
block, but access keys, which you can revoke.`,
	args: arguments{min: 1, max: 1, missing: "the person is missing: a username or a subject, the UUID which \"diaspora whoami --subject\" prints for the person, and \"diaspora topic show NAME\" for you, if a topic is theirs"},
}

func (e *env) adminCommands() []*cobra.Command {
	var why string
	var yes bool
	block := e.command(adminBlockHelp, func(ctx context.Context, args []string) error {
		who := namedPerson(args[0])
		if err := claims.CheckPerson(who.Subject); err != nil && who.Username == "" {
			return misuse("", "admin block: %s", err)
		}
		if strings.TrimSpace(why) == "" {
			return misuse("", "admin block: say why with --why TEXT; other operators will read it")
		}
		return e.adminBlock(ctx, who, why, yes)
	})
	block.Flags().StringVar(&why, "why", "", "reason, as one line of `TEXT` for other operators")
	block.Flags().BoolVar(&yes, "yes", false, "do not ask whether the username is that of the right person")
	return []*cobra.Command{block, e.operatorCommand(adminUnblockHelp, e.adminUnblock), e.operatorCommand(adminBlockedHelp, e.adminBlocked)}
}

// namedPerson returns the username or the subject that a user has typed.
func namedPerson(who string) globus.Identity {
	if strings.Contains(who, "@") {
		return globus.Identity{Username: who}
	}
	return globus.Identity{Subject: who}
}

// operatorCommand is as [env.clientCommand], for a command that only operators may use.
func (e *env) operatorCommand(h help, do func(ctx context.Context, client *diaspora.Client, args []string) error) *cobra.Command {
	return e.command(h, func(ctx context.Context, args []string) error {
		cfg, client, err := e.client()
		if err != nil {
			return err
		}
		return e.notOperator(cfg, do(ctx, client, args))
	})
}

// notOperator adds to an error that denies a permission which login was used, and which other logins to this fabric
// there are. Somebody who tries several accounts often forgets which one is current.
func (e *env) notOperator(cfg diaspora.Config, err error) error {
	if !errors.Is(err, diaspora.ErrPermission) {
		return err
	}
	if _, hint := outcome.Split(err); hint != "" {
		return err // the person is blocked or not admitted, and the hint says what to do
	}
	if variable := e.credential(); variable != "" {
		return hinted(err, "you are signed in with "+variable+"; use the login of an operator")
	}
	profiles, current, other := e.profiles()
	if other != nil {
		return err
	}
	you := fmt.Sprintf("you are %s (profile %s)", cmp.Or(cfg.Identity.Username, cfg.Identity.Subject, "somebody unknown"), current)
	var others []string
	for _, p := range storedProfiles(profiles) {
		if p.Name == current || p.URL != cfg.URL {
			continue
		}
		if store, err := profiles.Store(p.Name); err == nil {
			if login, err := store.Load(); err == nil && login.Identity.Subject != cfg.Identity.Subject {
				others = append(others, fmt.Sprintf("--profile %s for %s", p.Name, cmp.Or(login.Identity.Username, login.Identity.Subject)))
			}
		}
	}
	if len(others) == 0 && hasStandIn(cfg) {
		return hinted(err, you+`; with "diaspora up", the only operator is the person who started it: ask that person`)
	}
	if len(others) == 0 {
		return hinted(err, you+"; ask those who run this fabric to add your subject "+cfg.Identity.Subject+" to the setting \"operators\"")
	}
	return hinted(err, you+"; to use another of your logins to this fabric: "+strings.Join(others, ", "))
}

func (e *env) adminBlock(ctx context.Context, named globus.Identity, why string, yes bool) error {
	cfg, client, err := e.client()
	if err != nil {
		return err
	}
	who, found, err := e.whoToBlock(ctx, cfg, client, named, yes)
	if err != nil {
		return err
	}
	blocked, err := client.Block(ctx, diaspora.BlockRequest{Subject: who.Subject, Why: why})
	if errors.Is(err, diaspora.ErrConflict) {
		return hinted(err, `with "diaspora up", the person who started it is the operator; "diaspora whoami --subject" prints your own subject`)
	}
	if err != nil {
		return e.notOperator(cfg, err)
	}
	if e.json() {
		return e.printJSON(blocked)
	}
	if blocked.Why != why {
		e.say("this subject was already blocked, for another reason; nothing has changed")
	}
	check, undo := "", cmp.Or(who.Username, who.Subject)
	if personText(who.Username, who.Subject) == who.Subject {
		undo = who.Subject
	}
	if !found {
		check = `the fabric cannot check that the subject exists; compare it with what the person's "diaspora whoami --subject" prints. `
	}
	e.say("%s\"diaspora admin unblock %s\" takes this back", check, shellWord(oneLine(undo)))
	if hasStandIn(cfg) {
		e.warn("this fabric has a stand-in for Globus Auth: a person who has its secret can still log in as somebody else, also as you")
	}
	return e.printf("%s has been blocked since %s: %s\n", personText(who.Username, blocked.Subject), blocked.Since.Local().Format(time.DateTime), oneLine(blocked.Why))
}

// whoToBlock returns the person whom an operator has named. found is false if nobody could be asked whether there is a
// person with that subject. Only the stand-in for Globus Auth can be asked by the user who runs it.
func (e *env) whoToBlock(ctx context.Context, cfg diaspora.Config, client *diaspora.Client, named globus.Identity, yes bool) (who globus.Identity, found bool, err error) {
	if named.Username != "" {
		if err := mustBeOperator(ctx, client, "block"); err != nil {
			return who, false, e.notOperator(cfg, err)
		}
		who, err = e.person(ctx, client, named, "admin block", "Block this person?", yes)
		return who, err == nil, err
	}
	if !hasStandIn(cfg) {
		return named, false, nil
	}
	people, err := e.standInPeople(ctx, cfg.Discovery.Globus.Issuer, named.Subject)
	if err != nil || people == nil {
		return named, false, nil
	}
	who, found = people[named.Subject]
	if !found {
		return who, false, fail(diaspora.ErrNotFound, `"diaspora admin block USERNAME" looks the person up by username`,
			"admin block: the stand-in for Globus Auth knows nobody with the subject %s; nothing has changed", named.Subject)
	}
	e.say("%s is %s", named.Subject, describePerson(who))
	return who, true, nil
}

// mustBeOperator fails if the user is not an operator, for whom nobody is looked up.
func mustBeOperator(ctx context.Context, client *diaspora.Client, op string) error {
	_, err := client.Blocked(ctx)
	if !errors.Is(err, diaspora.ErrPermission) {
		return err
	}
	if text, hint := outcome.Split(err); hint == "" {
		reason := strings.TrimPrefix(text, "list blocked subjects: ") // which the user has not asked for
		return fail(diaspora.ErrPermission, "", "admin %s: %s", op, reason)
	}
	return err
}

// hasStandIn reports whether people log in at the stand-in for Globus Auth, and not at Globus.
func hasStandIn(cfg diaspora.Config) bool {
	return cfg.Discovery != nil && isStandIn(cfg.Discovery.Globus.Issuer)
}

// isStandIn reports whether an issuer is on this machine, and so not Globus.
func isStandIn(issuer string) bool {
	u, err := url.Parse(issuer)
	return err == nil && trust.IsLoopback(u.Hostname())
}

var adminUnblockHelp = help{
	use:   "unblock WHO",
	short: "unblock a person or a service account",
	examples: `
diaspora admin unblock grace@example.org`,
	long: `
WHO is a username or a subject, the UUID of an identity.

The person's logins and access keys work again within ten seconds, except for keys that were revoked
or have expired in the meantime.`,
	args: arguments{min: 1, max: 1, missing: `the person is missing: a username, or a subject; "diaspora admin blocked" lists the subjects`},
}

func (e *env) adminUnblock(ctx context.Context, client *diaspora.Client, args []string) error {
	who := namedPerson(args[0])
	if who.Username != "" {
		err := mustBeOperator(ctx, client, "unblock")
		if err != nil {
			return err
		}
		if who, err = client.LookUp(ctx, who.Username); err != nil {
			return err
		}
	}
	if err := client.Unblock(ctx, who.Subject); err != nil {
		return err
	}
	return e.answer(map[string]any{"subject": who.Subject, "blocked": false}, "%s is not blocked any more\n", personText(who.Username, who.Subject))
}

var adminBlockedHelp = help{
	use:   "blocked",
	short: "list blocked people and service accounts, with the time and the reason",
	examples: `
diaspora admin blocked`,
}

func (e *env) adminBlocked(ctx context.Context, client *diaspora.Client, _ []string) error {
	blocked, err := client.Blocked(ctx)
	if err != nil {
		return err
	}
	names := map[string]string{}
	if !e.json() {
		var subjects []string
		for _, b := range blocked {
			subjects = append(subjects, b.Subject, b.By)
		}
		names = usernames(ctx, client, subjects...)
	}
	return printList(e, "blocked", blocked, "nobody is blocked", []string{"WHO", "SUBJECT", "SINCE", "BY", "WHY"}, func(b diaspora.Blocked) []string {
		return []string{cmp.Or(names[b.Subject], "-"), b.Subject, b.Since.Local().Format(time.DateTime), cmp.Or(names[b.By], b.By), b.Why}
	})
}
