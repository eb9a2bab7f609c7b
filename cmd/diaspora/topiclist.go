package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/terminal"
)

var topicListHelp = help{
	use:   "list",
	short: "list your topics, those that others share with you, and public ones",
	examples: `
diaspora topic list

# only the names of your own, for a script
diaspora topic list -o json | jq -r '.topics[].name'`,
	long: `
First come topics that their owners want to hand over to you, then yours, those that you have
released and can still restore, those that others share with you, and those that everybody may read.`,
}

func (e *env) topicList(ctx context.Context, client *diaspora.Client, _ []string) error {
	list, err := client.Topics(ctx)
	if err != nil {
		return err
	}
	if e.json() {
		list.Topics = append([]diaspora.Topic{}, list.Topics...)
		return e.printJSON(list)
	}
	var yours []diaspora.Topic
	for _, t := range list.Topics {
		if t.Released.IsZero() {
			yours = append(yours, t)
		}
	}
	type part struct {
		title  string
		topics []diaspora.Topic
		header []string
		row    func(t diaspora.Topic) []string
	}
	var parts []part
	for _, p := range []part{
		{`Offered to you; "diaspora topic accept NAME" accepts one`, list.Offered, []string{"NAME", "OWNER", "PARTITIONS", "DESCRIPTION"}, func(t diaspora.Topic) []string {
			return []string{t.Name, ownerText(t), fmt.Sprint(t.Partitions), t.Description}
		}},
		{"Yours", yours, []string{"NAME", "PARTS", "EVENTS", "SIZE", "LAST EVENT", "KEPT", "DESCRIPTION"}, func(t diaspora.Topic) []string {
			records, size, last := e.usageText(t, e.day)
			return []string{t.Name, fmt.Sprint(t.Partitions), records, size, last, retentionText(t.RetentionMS), t.Description}
		}},
		{`Released; "diaspora topic restore NAME" brings one back`, releasedTopics(list.Topics), []string{"NAME", "UNTIL", "DESCRIPTION"}, func(t diaspora.Topic) []string {
			return []string{t.Name, e.clock(t.Released), t.Description}
		}},
		{"Shared with you", list.Shared, []string{"NAME", "MAY", "OWNER", "KEPT", "DESCRIPTION"}, func(t diaspora.Topic) []string {
			may := mayWords(t.Read, t.Write, t.Manage)
			if t.Manage {
				may = "manage" // which includes the others; the table is wide enough already
			}
			return []string{t.Name, may, ownerText(t), retentionText(t.RetentionMS), t.Description}
		}},
		{"Public, to read", list.Public, []string{"NAME", "OWNER", "KEPT", "DESCRIPTION"}, func(t diaspora.Topic) []string {
			return []string{t.Name, ownerText(t), retentionText(t.RetentionMS), t.Description}
		}},
	} {
		if len(p.topics) > 0 {
			parts = append(parts, p)
		}
	}
	if len(parts) == 0 {
		with := ""
		if _, name, err := e.profiles(); err == nil && name != "" && e.credential() == "" {
			with = " with the profile " + name
		}
		e.say(`you have no topics%s; claim one with "diaspora topic claim NAME"`, with)
	}
	for i, p := range parts {
		space := ""
		if i > 0 {
			space = "\n"
		}
		if len(parts) > 1 || len(yours) == 0 {
			if err := e.printf("%s%s:\n", space, p.title); err != nil {
				return err
			}
		}
		rows := [][]string{p.header}
		for _, t := range p.topics {
			rows = append(rows, p.row(t))
		}
		if err := e.printTable(rows); err != nil {
			return err
		}
	}
	return nil
}

// ownerText names the owner of a topic.
func ownerText(t diaspora.Topic) string { return cmp.Or(oneLine(t.OwnerUsername), t.Owner) }

// usageText describes how much is in a topic: how many events, how many bytes, and when the last event
// was logged.
func (e *env) usageText(t diaspora.Topic, at func(time.Time) string) (records, size, last string) {
	if t.Usage == nil {
		return "?", "?", "?"
	}
	if last = "-"; !t.Usage.LastEvent.IsZero() {
		last = at(t.Usage.LastEvent)
	}
	return fmt.Sprint(t.Usage.Records), terminal.Size(t.Usage.Bytes), last
}

// releasedTopics returns those topics that were released and can still be restored.
func releasedTopics(topics []diaspora.Topic) (released []diaspora.Topic) {
	for _, t := range topics {
		if !t.Released.IsZero() {
			released = append(released, t)
		}
	}
	return released
}

var topicShowHelp = help{
	use:   "show TOPIC",
	short: "show a topic's settings, what you may do with it, and with whom it is shared",
	examples: `
diaspora topic show weather

# with the members of Globus groups
diaspora topic show weather --members

# the subjects of the people with whom it is shared to write
diaspora topic show weather -o json | jq -r '.grants[] | select(.write or .manage) | .subject // empty'`,
	long: `
The owner of a topic, and those who may manage it, see everybody with whom it is shared. Others see
only the shares that give them their own rights. Operators of the fabric see every topic.

The service of the fabric is a member of most Globus groups, because it reads their members. It is
not counted among them.`,
	args: arguments{min: 1, max: 1, missing: "the topic is missing"},
}

func (e *env) topicShowCommand() *cobra.Command {
	var members bool
	cmd := e.command(topicShowHelp, func(ctx context.Context, args []string) error {
		cfg, client, err := e.client()
		if err != nil {
			return err
		}
		return e.aboutOwnTopic(ctx, cfg, "show", args[0], e.topicShow(ctx, cfg, client, args[0], members))
	})
	cmd.Flags().BoolVar(&members, "members", false, "list the members of Globus groups")
	return cmd
}

func (e *env) topicShow(ctx context.Context, cfg diaspora.Config, client *diaspora.Client, name string, members bool) error {
	t, err := client.Topic(ctx, name)
	if err != nil {
		return err
	}
	grants, err := client.Grants(ctx, name)
	if err != nil {
		return err
	}
	if e.json() {
		return e.printJSON(struct {
			diaspora.Topic
			Grants []diaspora.Grant `json:"grants"`
		}{t, append([]diaspora.Grant{}, grants...)})
	}
	names := map[string]string{} // usernames by subject
	for _, g := range grants {
		for _, m := range g.Members {
			names[m.Subject] = oneLine(m.Username)
		}
	}
	for _, g := range grants {
		names[g.Subject] = cmp.Or(oneLine(g.Username), names[g.Subject])
	}
	names[t.Owner] = cmp.Or(oneLine(t.OwnerUsername), names[t.Owner])
	me := cfg.Identity
	if me.Subject == "" || me.Username == "" {
		me, _ = client.Identity(ctx)
	}
	names[me.Subject] = cmp.Or(oneLine(me.Username), names[me.Subject])
	if t.OfferedTo != "" && names[t.OfferedTo] == "" {
		names[t.OfferedTo] = usernames(ctx, client, t.OfferedTo)[t.OfferedTo]
	}
	person := func(subject string) string { return personText(names[subject], subject) }
	var text strings.Builder
	line := func(name, value string) { fmt.Fprintf(&text, "%-13s%s\n", name+":", value) }
	line("Name", t.Name)
	line("Owner", person(t.Owner))
	if t.Owner != me.Subject {
		line("You may", mayWords(t.Read, t.Write, t.Manage))
		if t.Read {
			line("Owner sees", "which of your consumer groups read it, and how far behind they are")
		}
	}
	line("Partitions", fmt.Sprint(t.Partitions))
	records, size, last := e.usageText(t, e.clock)
	line("Events", records)
	line("Size", size)
	line("Last event", last)
	line("Retention", retentionText(t.RetentionMS))
	line("Size limit", maxBytesText(t.MaxBytes))
	line("Compaction", compactText(t.Compact))
	line("Claimed", e.clock(t.Claimed))
	if t.Description != "" {
		line("Description", oneLine(t.Description))
	}
	if !t.Released.IsZero() {
		line("Released", fmt.Sprintf(`deleted on %s; until then "diaspora topic restore %s" brings it back`, e.clock(t.Released), t.Name))
	}
	switch t.OfferedTo {
	case "":
	case me.Subject:
		line("Offered to", fmt.Sprintf(`you; "diaspora topic accept %s" makes it yours`, t.Name))
	default:
		line("Offered to", person(t.OfferedTo))
	}
	if err := e.printf("%s", text.String()); err != nil || len(grants) == 0 {
		return err
	}
	rows := [][]string{{"SHARED WITH", "MAY", "SINCE", "UNTIL", "BY"}}
	for _, g := range grants {
		who, until := granteeText(g), "-"
		if g.Group != "" && t.Manage {
			who += " (" + membersText(g.Members) + ")"
		}
		if !g.Expires.IsZero() {
			until = e.expiryText(g.Expires)
		}
		rows = append(rows, []string{who, mayWords(g.Read, g.Write, g.Manage), e.day(g.Since), until, cmp.Or(names[g.By], g.By)})
		if members {
			for _, member := range g.Members {
				name := cmp.Or(names[member.Subject], member.Subject)
				if member.Service {
					name = "the service of the fabric (" + member.Subject + ")"
				}
				rows = append(rows, []string{"- " + name, "", "", "", ""})
			}
		}
	}
	if err := e.printf("\n"); err != nil {
		return err
	}
	return e.printTable(rows)
}

// membersText says how many members a Globus group has. The service of the fabric is one of most groups, so that it can
// read the members, and would be taken for a person that nobody knows.
func membersText(members []diaspora.GroupMember) string {
	people := slices.DeleteFunc(slices.Clone(members), func(m diaspora.GroupMember) bool { return m.Service })
	text := count(len(people), "member")
	if len(people) < len(members) {
		text += " and the service"
	}
	return text
}

// maxBytesText is the size of a partition above which its oldest events are deleted.
func maxBytesText(bytes int64) string {
	if bytes <= 0 {
		return "none"
	}
	return strings.Replace(terminal.Size(bytes), ".0 ", " ", 1) + " in each partition"
}

func compactText(compact bool) string {
	if compact {
		return "only the last event of each key is kept"
	}
	return "off"
}
