package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/diaspora-streams/diaspora"
)

var topicTransferHelp = help{
	use:   "transfer TOPIC",
	short: "offer a topic to another person, who becomes its owner by accepting it",
	examples: `
diaspora topic transfer weather --to grace@example.org

# withdraw the offer
diaspora topic transfer weather --cancel`,
	long: `
WHO is a username, or a subject: the UUID that "diaspora whoami --subject" prints. Until that person
runs "diaspora topic accept", you are the owner, and you can withdraw the offer. Another offer
replaces it.

The new owner gets the topic with its events, its settings and its shares. You have no rights on it
any more, and neither have your keys, unless the new owner shares the topic with you.`,
	args:      arguments{min: 1, max: 1, missing: "the topic is missing"},
	exclusive: []string{"to cancel"},
}

func (e *env) topicTransferCommand() *cobra.Command {
	var to string
	var cancel, yes bool
	cmd := e.command(topicTransferHelp, func(ctx context.Context, args []string) error {
		if to == "" && !cancel {
			return misuse("", "topic transfer: say to whom with --to WHO, or withdraw an offer with --cancel")
		}
		cfg, client, err := e.client()
		if err != nil {
			return err
		}
		if cancel {
			err = e.topicTransferCancel(ctx, client, args[0])
		} else {
			err = e.topicTransfer(ctx, client, args[0], to, yes)
		}
		return e.aboutOwnTopic(ctx, cfg, "transfer", args[0], err)
	})
	flags := cmd.Flags()
	flags.StringVar(&to, "to", "", "offer it to `WHO`: a username or a subject")
	flags.BoolVar(&cancel, "cancel", false, "withdraw the offer")
	flags.BoolVar(&yes, "yes", false, "do not ask for confirmation")
	return cmd
}

func (e *env) topicTransfer(ctx context.Context, client *diaspora.Client, name, to string, yes bool) error {
	named, err := parseGrantee("topic transfer", to)
	if strings.HasPrefix(to, "group:") {
		err = misuse("", "topic transfer: a topic has one owner, so it cannot go to a group")
	}
	if err != nil {
		return err
	}
	t, me, err := ownTopic(ctx, client, "transfer", name)
	if err != nil {
		return err
	}
	if named.Subject == me {
		return misuse("--cancel withdraws an offer", "topic transfer: %s is yours already", name)
	}
	question := fmt.Sprintf("Offer %s to this person, who then owns it?", t.Name)
	who, err := e.person(ctx, client, named.Identity, "topic transfer", question, yes)
	if err != nil {
		return err
	}
	t, err = client.Transfer(ctx, name, diaspora.Transfer{Subject: who.Subject, Username: who.Username})
	if err != nil {
		return err
	}
	if !e.json() {
		e.say(`it stays yours until they run "diaspora topic accept %s"; "diaspora topic transfer %[1]s --cancel" withdraws the offer`, name)
	}
	text := who.Subject
	if who.Username != "" {
		text = oneLine(who.Username)
	}
	return e.answer(t, "%s is offered to %s\n", name, text)
}

func (e *env) topicTransferCancel(ctx context.Context, client *diaspora.Client, name string) error {
	t, me, err := ownTopic(ctx, client, "transfer", name)
	if err != nil {
		return err
	}
	if t.OfferedTo == "" {
		return e.answer(t, "%s is not offered to anybody\n", name)
	}
	if t, err = client.Transfer(ctx, name, diaspora.Transfer{Subject: me}); err != nil {
		return err
	}
	return e.answer(t, "the offer of %s is withdrawn\n", name)
}

// ownTopic returns a topic of the caller, and the caller's subject. It fails if somebody else owns the topic, before
// anything is asked.
func ownTopic(ctx context.Context, client *diaspora.Client, op, name string) (t diaspora.Topic, me string, err error) {
	if t, err = client.Topic(ctx, name); err != nil {
		return t, "", err
	}
	who, err := client.Identity(ctx)
	if err == nil && who.Subject != t.Owner {
		err = topicFailure(diaspora.ErrPermission, op, name, "only its owner may do this", "")
	}
	return t, who.Subject, err
}

var topicAcceptHelp = help{
	use:   "accept TOPIC",
	short: "become the owner of a topic that its owner has offered to you",
	examples: `
diaspora topic accept weather`,
	long: `
The topic keeps its events, its settings and its shares. It counts towards your limits. "diaspora
topic list" shows the topics that are offered to you, and "diaspora topic show" one of them.`,
	args: arguments{min: 1, max: 1, missing: "the topic is missing"},
}

func (e *env) topicAccept(ctx context.Context, args []string) error {
	cfg, client, err := e.client()
	if err != nil {
		return err
	}
	t, err := client.Accept(ctx, args[0])
	if errors.Is(err, diaspora.ErrPermission) && diaspora.Hint(err) == "" {
		if mine, me, ownErr := ownTopic(ctx, client, "accept", args[0]); ownErr == nil && mine.Owner == me {
			return e.answer(mine, "%s is yours already\n", mine.Name)
		}
	}
	if errors.Is(err, diaspora.ErrPermission) && diaspora.Hint(err) == "" || errors.Is(err, diaspora.ErrNotFound) {
		return hinted(err, `"diaspora topic list" shows the topics that are offered to you`)
	}
	if err != nil {
		return e.aboutOwnTopic(ctx, cfg, "accept", args[0], err)
	}
	if !e.json() {
		e.say(`"diaspora topic show %s" shows with whom it is shared`, t.Name)
	}
	if me := cfg.Identity.Subject; me != "" && me != t.Owner { // an operator has accepted for somebody else
		return e.answer(t, "%s belongs to %s now\n", t.Name, t.Owner)
	}
	return e.answer(t, "%s is yours now\n", t.Name)
}

var topicReleaseHelp = help{
	use:   "release TOPIC",
	short: "give up a topic; its events are deleted after a day",
	examples: `
diaspora topic release weather

# delete the events at once; in a script, without confirmation
diaspora topic release weather --now
diaspora topic release weather --now --yes`,
	long: `
Nobody can use the topic any more. For 24 hours, its events and its name are kept, and "diaspora topic
restore" brings it back. Then the events are deleted, and the name is free for others to claim.

With --now, the events are deleted at once and cannot be restored. To confirm, you are asked to type
the name. Whoever claims the name later cannot read the deleted events.`,
	args: arguments{min: 1, max: 1, missing: "the topic is missing"},
}

func (e *env) topicReleaseCommand() *cobra.Command {
	var now, yes bool
	cmd := e.command(topicReleaseHelp, func(ctx context.Context, args []string) error {
		cfg, client, err := e.client()
		if err != nil {
			return err
		}
		if now {
			err = e.topicReleaseNow(ctx, cfg, client, args[0], yes)
		} else {
			err = e.topicRelease(ctx, client, args[0])
		}
		return e.aboutOwnTopic(ctx, cfg, "release", args[0], err)
	})
	cmd.Flags().BoolVar(&now, "now", false, "delete the events at once, so that the topic cannot be restored")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask for confirmation")
	return cmd
}

func (e *env) topicRelease(ctx context.Context, client *diaspora.Client, name string) error {
	t, err := client.Retire(ctx, name)
	if err != nil {
		return err
	}
	if !e.json() {
		e.say(`until then, "diaspora topic restore %s" brings it back`, name)
	}
	return e.answer(released{name, true, t.Released}, "%s is released; its events are kept until %s\n", name, e.clock(t.Released))
}

// released is the result of a release as JSON.
type released struct {
	Name            string    `json:"name"`
	Released        bool      `json:"released"`
	RestorableUntil time.Time `json:"restorable_until,omitzero"`
}

func (e *env) topicReleaseNow(ctx context.Context, cfg diaspora.Config, client *diaspora.Client, name string, yes bool) error {
	if !yes {
		topic, _, err := ownTopic(ctx, client, "release", name)
		if err != nil {
			return err
		}
		lost := "all its events"
		if n, err := countRecords(ctx, cfg, name); err == nil {
			lost = count(n, "event")
		}
		e.warn("releasing %s permanently deletes %s; the topic was claimed on %s", name, lost, e.day(topic.Claimed))
		if err := e.confirm(ctx, "release it", name, fmt.Sprintf("release topic %q", name)); err != nil {
			return err
		}
	}
	if err := client.Release(ctx, name); err != nil {
		return err
	}
	return e.answer(released{Name: name, Released: true}, "%s is released\n", name)
}

var topicRestoreHelp = help{
	use:   "restore TOPIC",
	short: "take back the release of a topic, within 24 hours",
	examples: `
diaspora topic restore weather`,
	long: `
The topic has its events, its settings and its shares again. "diaspora topic list" shows which topics
can be restored, and until when.`,
	args: arguments{min: 1, max: 1, missing: "the topic is missing"},
}

func (e *env) topicRestore(ctx context.Context, args []string) error {
	cfg, client, err := e.client()
	if err != nil {
		return err
	}
	t, err := client.Restore(ctx, args[0])
	if err != nil {
		return e.aboutOwnTopic(ctx, cfg, "restore", args[0], err)
	}
	return e.answer(t, "%s is yours again, with its events and its shares\n", t.Name)
}
