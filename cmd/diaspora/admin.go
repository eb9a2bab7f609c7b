package main

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/claims"
)

var adminBlockHelp = help{
	use:   "block SUBJECT --why TEXT",
	short: "block a person or a service account",
	examples: `
diaspora admin block 1168fe43-ef48-54e0-8aeb-e0dc24146888 --why "the key is on a public web page"`,
	long: `
The fabric stops accepting the person's tokens and access keys, and closes their open connections
within a minute (within ten seconds with "diaspora up"). The person can still sign in, because
Globus decides that, but cannot use the login. Topics and keys are kept, and work again after
"diaspora admin unblock". An access key that somebody else gave to the person belongs to that owner,
and works until the owner revokes it. The ledger records who blocked whom, when and why. The person
is not told why.

You must be an operator of the fabric: the setting "operators" of "diaspora serve" lists them. With
"diaspora up" you are one. Operators cannot be blocked.`,
	formats: answerFormats,
	args:    arguments{min: 1, max: 1, missing: "the subject is missing: the person's UUID, which \"diaspora whoami --subject\" prints for the person, and \"diaspora topic show NAME\" for you, if a topic is theirs"},
}

func (e *env) adminBlockCommand() *cobra.Command {
	var why string
	cmd := e.command(adminBlockHelp, func(ctx context.Context, args []string) error {
		if fault := claims.PersonFault(args[0]); fault != "" {
			return misuse("", "admin block: %s", fault)
		}
		if strings.TrimSpace(why) == "" {
			return misuse("", "admin block: say why with --why TEXT; other operators will read it")
		}
		return e.adminBlock(ctx, diaspora.BlockRequest{Subject: args[0], Why: why})
	})
	cmd.Flags().StringVar(&why, "why", "", "reason, as one line of `TEXT` for other operators")
	return cmd
}

func (e *env) adminBlock(ctx context.Context, req diaspora.BlockRequest) error {
	client, err := e.client()
	if err != nil {
		return err
	}
	blocked, err := client.Block(ctx, req)
	if err != nil {
		return err
	}
	if e.json() {
		return e.printJSON(blocked)
	}
	if blocked.Why != req.Why {
		e.say("this subject was already blocked, for another reason; nothing has changed")
	}
	e.say("the fabric cannot check that the subject exists; compare it with what the person's \"diaspora whoami --subject\" prints")
	return e.printf("%s has been blocked since %s: %s\n", blocked.Subject, blocked.Since.Local().Format(time.DateTime), oneLine(blocked.Why))
}

var adminUnblockHelp = help{
	use:   "unblock SUBJECT",
	short: "unblock a person or a service account",
	examples: `
diaspora admin unblock 1168fe43-ef48-54e0-8aeb-e0dc24146888`,
	long: `
The person's logins work again within ten seconds. So do access keys that were not revoked and have
not expired in the meantime.`,
	formats: answerFormats,
	args:    arguments{min: 1, max: 1, missing: `the subject is missing; "diaspora admin blocked" lists them`},
}

func (e *env) adminUnblockCommand() *cobra.Command {
	return e.command(adminUnblockHelp, func(ctx context.Context, args []string) error { return e.adminUnblock(ctx, args[0]) })
}

func (e *env) adminUnblock(ctx context.Context, subject string) error {
	client, err := e.client()
	if err != nil {
		return err
	}
	if err := client.Unblock(ctx, subject); err != nil {
		return err
	}
	if e.json() {
		return e.printJSON(map[string]any{"subject": subject, "blocked": false})
	}
	return e.printf("%s is not blocked any more\n", subject)
}

var adminBlockedHelp = help{
	use:   "blocked",
	short: "list blocked people and service accounts, with the time and the reason",
	examples: `
diaspora admin blocked`,
	formats: answerFormats,
}

func (e *env) adminBlockedCommand() *cobra.Command {
	return e.command(adminBlockedHelp, func(ctx context.Context, _ []string) error { return e.adminBlocked(ctx) })
}

func (e *env) adminBlocked(ctx context.Context) error {
	client, err := e.client()
	if err != nil {
		return err
	}
	blocked, err := client.Blocked(ctx)
	if err != nil {
		return err
	}
	if e.json() {
		if blocked == nil {
			blocked = []diaspora.Blocked{}
		}
		return e.printJSON(diaspora.BlockedList{Blocked: blocked})
	}
	if len(blocked) == 0 {
		e.say("nobody is blocked")
		return nil
	}
	rows := [][]string{{"SUBJECT", "SINCE", "BY", "WHY"}}
	for _, b := range blocked {
		rows = append(rows, []string{b.Subject, b.Since.Local().Format(time.DateTime), b.By, b.Why})
	}
	return e.printTable(rows)
}
