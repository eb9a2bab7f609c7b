package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/claims"
)

var topicShareHelp = help{
	use:   "share TOPIC",
	short: "give a person, a Globus group or everybody rights on a topic",
	examples: `
# a colleague may read it; for 90 days, or until a day
diaspora topic share weather --with grace@example.org --read
diaspora topic share weather --with grace@example.org --read --until 90d
diaspora topic share weather --with grace@example.org --read --until 2030-12-31

# several at once
diaspora topic share weather --with grace@example.org --with mel@example.org --read

# a person whose subject you know, as "diaspora whoami --subject" prints it
diaspora topic share weather --with 1168fe43-ef48-54e0-8aeb-e0dc24146888 --read --write

# the members of a Globus group
diaspora topic share weather --with group:6f2c0a52-1d3b-4c57-9c0e-3a4b5c6d7e8f --read

# everybody who can sign in to this fabric may read it
diaspora topic share weather --public`,
	long: `
The rights are in force when the command returns. They replace all rights that this person or group
(or everybody, with --public) had on the topic through a share: to give a reader the right to write
as well, name both flags. The command says which rights it takes away.

WHO is a username, a subject (the UUID of an identity at Globus), or "group:UUID" with the UUID of a
Globus group. For a username, the command asks Globus who that is, shows the answer, and asks you to
confirm it. In a script, --yes confirms it. On a terminal, it also asks about a subject. It looks up
all people before it shares the topic with the first one.

Whoever has --manage can read and write, share the topic with others, end shares, and change the
topic's settings. Only the owner can release the topic or hand it over.

In --until, a day such as 2030-12-31 means its beginning in your time zone. ` + durationHelp + `

"diaspora topic show TOPIC" shows with whom a topic is shared, and "diaspora topic unshare" takes the
rights away.`,
	args:      arguments{min: 1, max: 1, missing: "the topic is missing"},
	exclusive: []string{"with public"},
}

// shareOptions are the flags of the commands that share a topic and end a share.
type shareOptions struct {
	with   []string
	public bool
	read   bool
	write  bool
	manage bool
	until  string
	yes    bool
}

func (e *env) topicShareCommand() *cobra.Command {
	var o shareOptions
	cmd := e.command(topicShareHelp, func(ctx context.Context, args []string) error {
		req, err := o.request(e.now())
		if err != nil {
			return err
		}
		cfg, client, err := e.client()
		if err != nil {
			return err
		}
		return e.aboutOwnTopic(ctx, cfg, "share", args[0], e.topicShare(ctx, cfg, client, args[0], o, req))
	})
	flags := cmd.Flags()
	flags.StringArrayVar(&o.with, "with", nil, "share it with `WHO`: a username, a subject, or group:UUID; may be repeated")
	flags.BoolVar(&o.public, "public", false, "let everybody who signs in read the topic")
	flags.BoolVar(&o.read, "read", false, "allow to read")
	flags.BoolVar(&o.write, "write", false, "allow to write")
	flags.BoolVar(&o.manage, "manage", false, "allow to read, to write, to share the topic and to change its settings")
	flags.StringVar(&o.until, "until", "", "end the share after a `TIME` such as 12h, 90d or 1y, or on a date such as 2030-12-31 (default: when you end it)")
	flags.BoolVar(&o.yes, "yes", false, "do not ask whether this is the right person")
	return cmd
}

// request returns what the flags ask for. A username or a subject is still to be added.
func (o shareOptions) request(now time.Time) (req diaspora.GrantRequest, err error) {
	switch {
	case len(o.with) == 0 && !o.public:
		return req, misuse("", "topic share: say with whom: --with WHO, or --public for everybody")
	case o.public && (o.write || o.manage):
		return req, misuse("", "topic share: a topic can be public to read only")
	case !o.public && !o.read && !o.write && !o.manage:
		return req, misuse("", "topic share: say what they may do: --read, --write, --manage")
	}
	req = diaspora.GrantRequest{Public: o.public, Read: o.read || o.public, Write: o.write, Manage: o.manage}
	if o.until != "" {
		if req.Expires, err = parseExpiry(o.until, now); err != nil {
			return req, misuse("", "topic share: --until %q: %v", o.until, err)
		}
	}
	return req, nil
}

func (e *env) topicShare(ctx context.Context, cfg diaspora.Config, client *diaspora.Client, name string, o shareOptions, req diaspora.GrantRequest) error {
	reqs, err := e.shareRequests(ctx, client, name, o, req)
	if err != nil {
		return err
	}
	earlier, err := client.Grants(ctx, name)
	if err != nil {
		earlier = nil // the first share says why
	}
	var grants []diaspora.Grant
	for _, req := range reqs {
		g, err := client.Share(ctx, name, req)
		if err != nil {
			if len(reqs) > 1 {
				e.warn("%s is not shared with %s, nor with those after it", name, granteeText(diaspora.Grant{Subject: req.Subject, Username: req.Username, Group: req.Group}))
			}
			return err
		}
		grants = append(grants, g)
		if !e.json() {
			until := "until you end it"
			if !g.Expires.IsZero() {
				until = "until " + e.clock(g.Expires)
			}
			if err := e.printf("%s may %s %s, since %s, %s\n", granteeText(g), mayWords(g.Read, g.Write, g.Manage), name, e.clock(g.Since), until); err != nil {
				return err
			}
		}
		for _, before := range earlier {
			if granteeID(before) == granteeID(g) {
				e.sayLost(before, g)
			}
		}
	}
	switch g := grants[0]; {
	case e.json() && len(o.with) > 1:
		return e.printJSON(diaspora.GrantList{Grants: grants})
	case e.json():
		return e.printJSON(g)
	default:
		var ways []string
		if g.Read || g.Manage {
			ways = append(ways, fmt.Sprintf(`read it with "diaspora consume %s --from start"`, name))
		}
		if g.Write || g.Manage {
			ways = append(ways, fmt.Sprintf(`log events with "diaspora produce %s"`, name))
		}
		e.say(`they %s, after "diaspora login %s"`, strings.Join(ways, " and "), cfg.URL)
	}
	return nil
}

// shareRequests returns a request for each grantee that a command line names, once all that can be checked is. Groups
// come first, because only the request itself tells whether a topic can be shared with one.
func (e *env) shareRequests(ctx context.Context, client *diaspora.Client, name string, o shareOptions, req diaspora.GrantRequest) (reqs []diaspora.GrantRequest, err error) {
	if o.public {
		return []diaspora.GrantRequest{req}, nil
	}
	var named, groups []grantee
	for _, who := range o.with {
		to, err := parseGrantee("topic share", who)
		switch {
		case err != nil:
			return nil, err
		case to.group != "":
			groups = append(groups, to)
		default:
			named = append(named, to)
		}
	}
	checked := false
	for _, to := range append(groups, named...) {
		asks := to.Username != "" || len(o.with) > 1 || e.terminal(e.stdin)
		if to.group == "" && asks {
			if !checked { // before anybody is looked up
				if _, err = managed(ctx, client, name); err != nil {
					return nil, err
				}
				checked = true
			}
			yes := o.yes || to.Username == "" && !e.terminal(e.stdin)
			to.Identity, err = e.person(ctx, client, to.Identity, "topic share", fmt.Sprintf("Let this person %s %s?", mayWords(req.Read, req.Write, req.Manage), name), yes)
			if err != nil {
				return nil, err
			}
		}
		req.Subject, req.Username, req.Group = to.Subject, to.Username, to.group
		reqs = append(reqs, req)
	}
	return reqs, nil
}

// sayLost says which rights a share has taken away that an earlier one gave to the same grantee.
func (e *env) sayLost(before, now diaspora.Grant) {
	var lost, flags []string
	for _, right := range []struct {
		name    string
		had, is bool
	}{
		{"read", before.Read || before.Manage, now.Read || now.Manage},
		{"write", before.Write || before.Manage, now.Write || now.Manage},
		{"manage", before.Manage, now.Manage},
	} {
		if right.had && !right.is {
			lost, flags = append(lost, right.name), append(flags, "--"+right.name)
		}
	}
	if len(lost) > 0 {
		e.warn("until now, %s could also %s; that is taken away, unless you share it again with %s as well", granteeText(now), strings.Join(lost, " and "), strings.Join(flags, " "))
	}
}

// managed returns a topic. It fails if the caller may not share it, before anything is asked.
func managed(ctx context.Context, client *diaspora.Client, name string) (diaspora.Topic, error) {
	t, err := client.Topic(ctx, name)
	if err == nil && !t.Manage && t.Released.IsZero() {
		err = notManaged("share", name)
	}
	return t, err
}

func notManaged(op, name string) error {
	return topicFailure(diaspora.ErrPermission, op, name, "only its owner, and those whom the owner lets manage it, may do this", "")
}

// topicFailure is the error of an operation on a topic that the command does not even try.
func topicFailure(condition error, op, name, reason, hint string) error {
	return &diaspora.TopicError{Op: op, Topic: name, Err: &diaspora.Error{Condition: condition, Reason: reason, Hint: hint}}
}

// grantee is what a user has typed to name a person or a Globus group.
type grantee struct {
	globus.Identity // a subject or a username
	group           string
	public          bool
}

// parseGrantee parses a username, a subject, or group: and the ID of a Globus group.
func parseGrantee(command, who string) (g grantee, err error) {
	id, isGroup := strings.CutPrefix(who, "group:")
	lower := strings.ToLower(id)
	isID := claims.CheckPerson(lower) == nil
	switch {
	case isGroup && isID:
		g.group = lower
	case isGroup:
		return g, misuse("the page of the group at https://app.globus.org/groups shows its UUID", "%s: %q: name the Globus group by its UUID: group:UUID", command, who)
	case isID:
		g.Subject = lower
	case strings.EqualFold(who, "public"):
		return g, misuse("", "%s: for everybody, use --public", command)
	case strings.Contains(who, "@"):
		g.Username = who
	default:
		return g, misuse("", "%s: %q is not a username such as grace@example.org, a subject (a UUID), or group: and a UUID", command, who)
	}
	return g, nil
}

// person returns the person whom the user has named. It asks Globus who that is, and the user, with this question,
// whether that is the right person.
func (e *env) person(ctx context.Context, client *diaspora.Client, named globus.Identity, command, question string, yes bool) (globus.Identity, error) {
	who, err := client.LookUp(ctx, cmp.Or(named.Username, named.Subject))
	var text string
	switch answered := (*diaspora.ProblemError)(nil); {
	case err == nil && named.Subject != "":
		text = describePerson(who)
	case err == nil:
		text = fmt.Sprintf("%s is %s", named.Username, describePerson(who))
	case named.Subject != "" && errors.As(err, &answered) && slices.Contains([]int{http.StatusBadRequest, http.StatusNotImplemented, http.StatusTooManyRequests}, answered.Status):
		who, text = named, named.Subject+" cannot be looked up now" // a subject can be used without that
	default:
		return who, err
	}
	switch {
	case !yes:
		e.warn("%s", text) // with --quiet, too: the question is about it
	case named.Username != "":
		e.say("%s", text)
	}
	if who.Status == "unused" {
		e.warn("nobody has signed in at Globus as %s yet; this takes effect as soon as somebody does", oneLine(who.Username))
	}
	return who, e.confirmYes(ctx, question, command, "it is not confirmed that this is the right person", yes)
}

// confirmYes has the user confirm something, unless yes is set. Without a terminal it fails.
func (e *env) confirmYes(ctx context.Context, question, command, denied string, yes bool) error {
	if yes {
		return nil
	}
	const hint = "use --yes to skip this question"
	if !e.terminal(e.stdin) {
		return misuse(hint, "%s: %s, and there is no terminal to ask; nothing has changed", command, denied)
	}
	answer, err := e.ask(ctx, e.stdin, question+" Type yes: ")
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil && (strings.EqualFold(answer, "yes") || strings.EqualFold(answer, "y")):
		return nil
	}
	return fail(nil, "", "%s: %s; nothing has changed", command, denied)
}

// describePerson returns who somebody is: name, organization, username and subject.
func describePerson(who globus.Identity) string {
	text := ""
	for _, known := range []string{who.Name, who.Organization} {
		if known != "" {
			text += oneLine(known) + ", "
		}
	}
	return fmt.Sprintf("%s%s (%s)", text, oneLine(who.Username), who.Subject)
}

// personText names a person, by the username if it is known. That of a service account has the subject in it.
func personText(username, subject string) string {
	if username == "" || strings.HasPrefix(username, subject) {
		return subject
	}
	return fmt.Sprintf("%s (%s)", oneLine(username), subject)
}

// usernames asks Globus for the usernames of subjects. It returns those that it learns in a few seconds: a list with
// subjects alone is better than no list.
func usernames(ctx context.Context, client *diaspora.Client, subjects ...string) map[string]string {
	ctx, cancel := context.WithTimeout(ctx, completionTimeout)
	defer cancel()
	names := map[string]string{}
	for _, subject := range subjects {
		if _, asked := names[subject]; asked {
			continue
		}
		who, err := client.LookUp(ctx, subject)
		if err != nil && !errors.Is(err, diaspora.ErrNotFound) {
			break // the next question would fail, too
		}
		names[subject] = oneLine(who.Username)
	}
	return names
}

// granteeText names the grantee of a share.
func granteeText(g diaspora.Grant) string {
	switch {
	case g.Public:
		return "everybody"
	case g.Group != "":
		return "group:" + g.Group
	}
	return cmp.Or(oneLine(g.Username), g.Subject)
}

// granteeID names the grantee of a share as the ACL endpoint does.
func granteeID(g diaspora.Grant) string {
	switch {
	case g.Public:
		return "public"
	case g.Group != "":
		return "group:" + g.Group
	}
	return g.Subject
}

// mayWords returns rights in words.
func mayWords(read, write, manage bool) string {
	switch {
	case manage:
		return "read, write and manage"
	case read && write:
		return "read and write"
	case write:
		return "write"
	case read:
		return "read"
	}
	return "nothing"
}

var topicUnshareHelp = help{
	use:   "unshare TOPIC",
	short: "take away the rights that a share gives",
	examples: `
diaspora topic unshare weather --with grace@example.org
diaspora topic unshare weather --with group:6f2c0a52-1d3b-4c57-9c0e-3a4b5c6d7e8f
diaspora topic unshare weather --public

# of several at once
diaspora topic unshare weather --with grace@example.org --with mel@example.org

# give up a share that somebody else has given to you
diaspora topic unshare weather --with me`,
	long: `
When the command returns, every broker refuses the next request that is made with these rights. Keys
that the person has created for the topic lose them, too. Events that were read before are not
recalled.

A person can have rights on a topic in several ways: by a share, through a Globus group, or because
the topic is public. Each is taken away on its own, and the command says what is left.`,
	args:      arguments{min: 1, max: 1, missing: "the topic is missing"},
	exclusive: []string{"with public"},
}

func (e *env) topicUnshareCommand() *cobra.Command {
	var o shareOptions
	cmd := e.command(topicUnshareHelp, func(ctx context.Context, args []string) error {
		if len(o.with) == 0 && !o.public {
			return misuse("", "topic unshare: say whose rights to take away: --with WHO, or --public for those of everybody")
		}
		cfg, client, err := e.client()
		if err != nil {
			return err
		}
		return e.aboutOwnTopic(ctx, cfg, "unshare", args[0], e.topicUnshare(ctx, cfg, client, args[0], o))
	})
	flags := cmd.Flags()
	flags.StringArrayVar(&o.with, "with", nil, "take the rights away from `WHO`: a username, a subject, group:UUID, or me; may be repeated")
	flags.BoolVar(&o.public, "public", false, "take the right to read away from everybody")
	cmd.RegisterFlagCompletionFunc("with", e.completeGrantees)
	return cmd
}

func (e *env) topicUnshare(ctx context.Context, cfg diaspora.Config, client *diaspora.Client, name string, o shareOptions) error {
	var named []grantee
	for _, with := range o.with {
		who := grantee{Identity: globus.Identity{Username: "me"}}
		if !strings.EqualFold(with, "me") {
			var err error
			if who, err = parseGrantee("topic unshare", with); err != nil {
				return err
			}
		}
		named = append(named, who)
	}
	if o.public {
		named = append(named, grantee{public: true})
	}
	grants, err := client.Grants(ctx, name)
	if err != nil {
		return err
	}
	var ended []diaspora.Grant
	isEnded := func(g diaspora.Grant) bool {
		return slices.ContainsFunc(ended, func(other diaspora.Grant) bool { return granteeID(other) == granteeID(g) })
	}
	for i, who := range named {
		typed := "everybody"
		if !who.public {
			typed = o.with[i]
		}
		found, err := e.sharesToEnd(ctx, cfg, client, name, who, typed, grants)
		if err != nil {
			return err
		}
		for _, g := range found {
			if !isEnded(g) {
				ended = append(ended, g)
			}
		}
	}
	for _, g := range ended {
		if err := client.Unshare(ctx, name, granteeID(g)); err != nil {
			return err
		}
		if !e.json() {
			if err := e.printf("%s is not shared with %s any more\n", name, granteeText(g)); err != nil {
				return err
			}
		}
	}
	if e.json() {
		return e.printJSON(map[string]any{"topic": name, "ended": ended})
	}
	for _, left := range grants {
		switch {
		case isEnded(left):
		case left.Public:
			e.say("%s is still public: everybody who signs in may read it", name)
		default:
			for _, g := range ended {
				if g.Subject != "" && isMember(left, g.Subject) {
					they := "they"
					if len(ended) > 1 {
						they = granteeText(g)
					}
					e.say("%s may still %s it, as a member of group:%s", they, mayWords(left.Read, left.Write, left.Manage), left.Group)
				}
			}
		}
	}
	return nil
}

// isMember reports whether a share is with a Globus group that has this member.
func isMember(g diaspora.Grant, subject string) bool {
	return slices.ContainsFunc(g.Members, func(m diaspora.GroupMember) bool { return m.Subject == subject })
}

// sharesToEnd returns those of the shares that a grantee on a command line means, at least one. A username is looked
// for among the shares, and only then at Globus.
func (e *env) sharesToEnd(ctx context.Context, cfg diaspora.Config, client *diaspora.Client, name string, who grantee, typed string, grants []diaspora.Grant) (ended []diaspora.Grant, err error) {
	self := who.Username == "me"
	me := cfg.Identity
	if me.Subject == "" || self {
		if me, err = client.Identity(ctx); err != nil {
			return nil, err
		}
	}
	self = self || who.Subject != "" && who.Subject == me.Subject || who.Username != "" && strings.EqualFold(who.Username, me.Username)
	split := func(named func(g diaspora.Grant) bool) {
		ended = nil
		for _, g := range grants {
			if named(g) {
				ended = append(ended, g)
			}
		}
	}
	split(func(g diaspora.Grant) bool {
		switch {
		case who.public:
			return g.Public
		case who.group != "":
			return g.Group == who.group
		case g.Subject == "":
			return false
		case self: // by any of the linked identities
			return g.Subject == me.Subject || slices.Contains(me.IdentitySet, g.Subject)
		case who.Subject != "":
			return g.Subject == who.Subject
		}
		return strings.EqualFold(g.Username, who.Username)
	})
	if len(ended) == 0 && who.Username != "" && !self { // it may be shared with the person's subject
		found, lookErr := client.LookUp(ctx, who.Username)
		if lookErr != nil && !errors.Is(lookErr, diaspora.ErrNotFound) {
			e.say("%v", lookErr)
		}
		split(func(g diaspora.Grant) bool { return lookErr == nil && g.Subject == found.Subject })
	}
	switch {
	case len(ended) > 1 && !self:
		var subjects []string
		for _, g := range ended {
			subjects = append(subjects, g.Subject)
		}
		return nil, topicFailure(diaspora.ErrConflict, "unshare", name, "it is shared with several identities that had this username: "+strings.Join(subjects, ", "), "name the person by the subject")
	case len(ended) > 0:
		return ended, nil
	}
	text := "it is not shared with " + typed
	hint := fmt.Sprintf(`"diaspora topic show %s" shows with whom it is shared`, name)
	switch {
	case who.public:
		text = "it is not public"
	case self:
		text = "nobody has shared it with you by name"
		t, err := client.Topic(ctx, name)
		if err != nil {
			return nil, err
		}
		for _, g := range grants { // a caller who does not manage the topic is shown only what concerns the caller
			if g.Group != "" && (!t.Manage || isMember(g, me.Subject)) {
				hint = fmt.Sprintf("you have rights as a member of group:%s; leave the group to give them up", g.Group)
			}
		}
		if t.Owner == me.Subject {
			text, hint = "it is yours", fmt.Sprintf(`"diaspora topic transfer %s --to WHO" hands it over`, name)
		}
	}
	return nil, topicFailure(diaspora.ErrNotFound, "unshare", name, text, hint)
}
