package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/claims"
)

var topicLogHelp = help{
	use:   "log TOPIC",
	short: "show who changed a topic, how, and when",
	examples: `
diaspora topic log weather

# who has shared it
diaspora topic log weather -o json | jq -r '.events[] | select(.op == "share") | .username'`,
	long: `
The log begins with the claim. It has shares, changes of settings, transfers, releases, and the
access keys that name the topic. Events that were logged to the topic are not in it; "diaspora
consume" shows those. You must own the topic or be allowed to manage it.`,
	args: arguments{min: 1, max: 1, missing: "the topic is missing"},
}

var topicReadersHelp = help{
	use:   "readers TOPIC",
	short: "show who reads a topic, and how far behind they are",
	examples: `
diaspora topic readers weather`,
	long: `
A reader is a consumer group that has committed an offset in the topic. LAG is the number of events
that it has not read yet. Programs that read without a consumer group leave no trace, so they are
not shown.
"no access now" marks those who may not read the topic any more.
You must own the topic or be allowed to manage it. "diaspora group show" shows your own groups in
detail.`,
	args: arguments{min: 1, max: 1, missing: "the topic is missing"},
}

func (e *env) topicLog(ctx context.Context, client *diaspora.Client, args []string) error {
	events, err := client.Log(ctx, args[0])
	if err != nil {
		return err
	}
	shared := map[string]bool{} // with these grantees, as the list goes on
	return printList(e, "events", events, "nothing is known about this topic", []string{"TIME", "BY", "WHAT"}, func(ev diaspora.TopicEvent) []string {
		what := e.deed(ev)
		switch {
		case ev.Grant != nil:
			shared[granteeID(*ev.Grant)] = ev.Op == "share"
		case ev.Op == "accept" && shared[ev.Subject]:
			what += "; the share with them ended with that"
			shared[ev.Subject] = false
		}
		return []string{e.clock(ev.Time), cmp.Or(ev.Username, ev.By, "the service"), what}
	})
}

// deed describes what was done to a topic.
func (e *env) deed(ev diaspora.TopicEvent) string {
	until := ""
	if !ev.Until.IsZero() {
		until = " until " + e.clock(ev.Until)
	}
	switch ev.Op {
	case "claim":
		return "claimed it" + settingsText(ev.Set)
	case "share":
		text := fmt.Sprintf("shared it with %s: %s", granteeText(*ev.Grant), mayWords(ev.Grant.Read, ev.Grant.Write, ev.Grant.Manage))
		if !ev.Grant.Expires.IsZero() {
			text += " until " + e.clock(ev.Grant.Expires)
		}
		return text
	case "unshare":
		return "ended the share with " + granteeText(*ev.Grant)
	case "share_expired":
		return "the share with " + granteeText(*ev.Grant) + " expired"
	case "set":
		return "changed it" + settingsText(ev.Set)
	case "offer":
		if ev.Subject == ev.By {
			return "withdrew the offer to hand it over"
		}
		return "offered it to " + cmp.Or(ev.SubjectUsername, ev.Subject)
	case "accept":
		return cmp.Or(ev.SubjectUsername, ev.Subject) + " became its owner"
	case "retire":
		return "released it; it can be restored" + until
	case "restore":
		return "restored it"
	case "issue_key":
		return fmt.Sprintf("created the access key %s (%s): %s%s", ev.KeyName, ev.Key, mayWords(ev.Read, ev.Write, false), until)
	case "revoke_key":
		return "revoked the access key " + ev.Key
	case "key_expired":
		return "the access key " + ev.Key + " expired"
	}
	return ev.Op
}

// settingsText describes settings as ": 4 partitions, events kept forever".
func settingsText(set *diaspora.TopicSettings) string {
	if set == nil {
		return ""
	}
	var parts []string
	if set.Partitions != 0 {
		parts = append(parts, count(set.Partitions, "partition"))
	}
	if set.RetentionMS != 0 {
		parts = append(parts, "events kept "+claims.FormatRetention(set.RetentionMS))
	}
	switch {
	case set.MaxBytes > 0:
		parts = append(parts, "at most "+maxBytesText(set.MaxBytes))
	case set.MaxBytes < 0:
		parts = append(parts, "no limit of its size")
	}
	if set.Compact != nil {
		parts = append(parts, map[bool]string{true: "compacted", false: "not compacted"}[*set.Compact])
	}
	if set.Description != nil {
		parts = append(parts, fmt.Sprintf("described as %q", *set.Description))
	}
	if len(parts) == 0 {
		return ""
	}
	return ": " + strings.Join(parts, ", ")
}

func (e *env) topicReaders(ctx context.Context, client *diaspora.Client, args []string) error {
	readers, err := client.Readers(ctx, args[0])
	if err != nil {
		return err
	}
	return printList(e, "readers", readers, "no consumer group has read this topic", []string{"READER", "GROUP", "MEMBERS", "LAG"}, func(r diaspora.Reader) []string {
		who := cmp.Or(r.Username, r.Subject)
		if r.NoAccess {
			who += " (no access now)"
		}
		return []string{who, r.Group, fmt.Sprint(r.Members), fmt.Sprint(r.Lag)}
	})
}
