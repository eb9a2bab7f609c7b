package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/doctor"
	"github.com/diaspora-streams/diaspora/internal/kafka"
)

func (e *env) groupCommands() []*cobra.Command {
	list := e.command(groupListHelp, func(ctx context.Context, _ []string) error {
		return e.withGroups(ctx, "group list", e.groupList)
	})
	show := e.command(groupShowHelp, func(ctx context.Context, args []string) error {
		return e.withGroups(ctx, "group show", func(ctx context.Context, g *groupClient) error { return e.groupShow(ctx, g, args[0]) })
	})
	var yes bool
	remove := e.command(groupDeleteHelp, func(ctx context.Context, args []string) error {
		return e.withGroups(ctx, "group delete", func(ctx context.Context, g *groupClient) error { return e.groupDelete(ctx, g, args[0], yes) })
	})
	remove.Flags().BoolVar(&yes, "yes", false, "do not ask for confirmation")
	reset := e.groupResetCommand()
	for _, cmd := range []*cobra.Command{show, reset, remove} {
		cmd.ValidArgsFunction = completion(1, e.groupNames)
	}
	return []*cobra.Command{list, show, reset, remove}
}

// groupClient asks the cluster about the caller's consumer groups.
type groupClient struct {
	*kgo.Client
	env *env
	cfg diaspora.Config
	op  string // the command, for errors
}

// withGroups signs in to the cluster and calls do, whose errors may be those of Kafka.
func (e *env) withGroups(ctx context.Context, op string, do func(context.Context, *groupClient) error) error {
	cfg, err := e.config()
	if err != nil {
		return err
	}
	g := &groupClient{env: e, cfg: cfg, op: op}
	err = e.withNotice(func() (err error) {
		g.Client, err = diaspora.Dial(ctx, cfg)
		return err
	})
	if err != nil {
		return err
	}
	defer g.Close()
	return g.explain(ctx, do(ctx, g))
}

// conditions maps what an error of Kafka means to the conditions of package diaspora.
var conditions = map[kafka.Condition]error{
	kafka.Invalid:         diaspora.ErrInvalid,
	kafka.Unauthenticated: diaspora.ErrUnauthenticated,
	kafka.Permission:      diaspora.ErrPermission,
	kafka.NotFound:        diaspora.ErrNotFound,
	kafka.Conflict:        diaspora.ErrConflict,
	kafka.Unavailable:     diaspora.ErrUnavailable,
}

// explain puts an error of Kafka into words. It returns the errors of the command itself unchanged.
func (g *groupClient) explain(ctx context.Context, err error) error {
	if own := (*failure)(nil); err == nil || errors.As(err, &own) || kafka.ContextEnded(err) {
		return err
	}
	condition, reason := kafka.Explain(err)
	sentinel, ok := conditions[condition]
	if t := (*kafka.TopicError)(nil); ok && errors.As(err, &t) {
		_, reason = kafka.Explain(t.Err)
		return g.env.aboutTopic(ctx, g.cfg, &diaspora.TopicError{Op: "consume", Topic: t.Topic, Err: &diaspora.Error{Condition: sentinel, Reason: reason}})
	}
	if !ok {
		return fmt.Errorf("%s: %w", g.op, err)
	}
	return fmt.Errorf("%s: %w", g.op, &diaspora.Error{Condition: sentinel, Reason: reason})
}

// list returns the caller's groups without their members.
func (g *groupClient) list(ctx context.Context) (groups []kafka.Group, err error) {
	err = g.env.withNotice(func() (err error) {
		groups, err = kafka.Groups(ctx, g.Client)
		return err
	})
	if err != nil || len(groups) > 0 || g.cfg.Key == (diaspora.Key{}) {
		return groups, err
	}
	// The cluster shows no groups to a key that may not read. It is not an error for the cluster, but the
	// user would think that the owner of the key has no groups.
	client, err := diaspora.NewClient(g.cfg)
	if err != nil {
		return nil, err
	}
	asking, cancel := context.WithTimeout(ctx, completionTimeout)
	defer cancel()
	if key, err := client.Key(asking, g.cfg.Key.ID); err == nil && !key.Read {
		return nil, fail(diaspora.ErrPermission, "use an access key that may read"+g.env.orOwnLogin(g.cfg, "read"),
			"%s: the access key %s may not use consumer groups, because it may write only", g.op, key.ID)
	}
	return nil, nil
}

// find returns one of the caller's groups, with its members.
func (g *groupClient) find(ctx context.Context, id string) (kafka.Group, error) {
	groups, err := g.list(ctx)
	if err != nil {
		return kafka.Group{}, err
	}
	groups, names := slices.Clone(groups), []string(nil)
	for _, other := range groups {
		names = append(names, other.ID)
	}
	groups = slices.DeleteFunc(groups, func(other kafka.Group) bool { return other.ID != id })
	if groups, err = kafka.DescribeGroups(ctx, g.Client, groups); err != nil {
		return kafka.Group{}, err
	}
	if len(groups) == 0 {
		return kafka.Group{}, g.notFound(id, names)
	}
	return groups[0], nil
}

// notFound is the error for a group that does not exist. names are the caller's groups.
func (g *groupClient) notFound(id string, names []string) error {
	hint := `"diaspora group list" shows your groups; the cluster forgets a group that nobody has used for days`
	if near := doctor.Near(id, names); near != "" && near != id {
		hint = fmt.Sprintf("did you mean %s?", near)
	}
	return fail(diaspora.ErrNotFound, hint, "%s: not found: you have no consumer group %q", g.op, id)
}

// groupDocument describes a group, as JSON.
type groupDocument struct {
	Group      string                   `json:"group"`
	Type       string                   `json:"type"`
	State      string                   `json:"state"`
	Assignor   string                   `json:"assignor,omitempty"`
	Members    []groupMemberDocument    `json:"members"` // null if they are not known
	Topics     []string                 `json:"topics"`
	Lag        *int64                   `json:"lag"` // null if that of a partition is not known
	Partitions []groupPartitionDocument `json:"partitions"`
}

// groupMemberDocument leaves out the member's host: the cluster sees only the address of the gateway.
type groupMemberDocument struct {
	Member   string  `json:"member"`
	Instance *string `json:"instance,omitempty"` // of a static member
	ClientID string  `json:"client_id"`

	assigned int // number of partitions
}

// groupPartitionDocument says how far a group has read one partition.
type groupPartitionDocument struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Committed *int64 `json:"committed"` // null if nothing was committed
	End       *int64 `json:"end"`       // null if the topic is gone or the caller may not read it
	Lag       *int64 `json:"lag"`
	Member    string `json:"member,omitempty"`
	ClientID  string `json:"client_id,omitempty"`
}

// documents describes groups that list has returned.
func (g *groupClient) documents(ctx context.Context, groups []kafka.Group) ([]groupDocument, error) {
	groups, err := kafka.DescribeGroups(ctx, g.Client, groups)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, group := range groups {
		if group.Reads() {
			ids = append(ids, group.ID)
		}
	}
	committed, err := kafka.Committed(ctx, g.Client, ids...)
	if err != nil {
		return nil, err
	}
	topics := map[string]bool{}
	for _, group := range groups {
		maps.Copy(topics, topicsOf(group, committed[group.ID]))
	}
	spans, err := kafka.VisibleSpans(ctx, g.Client, slices.Sorted(maps.Keys(topics)))
	if err != nil {
		return nil, err
	}
	var docs []groupDocument
	for _, group := range groups {
		docs = append(docs, describeGroup(group, committed[group.ID], spans))
	}
	return docs, nil
}

// topicsOf returns the topics that a group reads or has read.
func topicsOf(group kafka.Group, committed map[kafka.Partition]int64) map[string]bool {
	topics := map[string]bool{}
	for _, m := range group.Members {
		for _, topic := range m.Topics {
			topics[topic] = true
		}
		for _, id := range m.Assigned {
			topics[id.Topic] = true
		}
	}
	for id := range committed {
		topics[id.Topic] = true
	}
	return topics
}

// describeGroup lists all partitions of the group's topics, and not only those with a committed offset: a
// partition that was empty when the group read the topic may have got records since.
func describeGroup(group kafka.Group, committed map[kafka.Partition]int64, spans map[kafka.Partition]kafka.Span) groupDocument {
	doc := groupDocument{Group: group.ID, Type: group.Type, State: group.State, Assignor: group.Assignor}
	members := map[kafka.Partition]kafka.GroupMember{}
	if !group.Hidden && group.Reads() {
		doc.Members = []groupMemberDocument{}
	}
	for _, m := range group.Members {
		doc.Members = append(doc.Members, groupMemberDocument{m.ID, m.Instance, m.ClientID, len(m.Assigned)})
		for _, id := range m.Assigned {
			members[id] = m
		}
	}
	topics := topicsOf(group, committed)
	doc.Topics = append([]string{}, slices.Sorted(maps.Keys(topics))...)
	ids := map[kafka.Partition]bool{}
	for id := range committed {
		ids[id] = true
	}
	for id := range members {
		ids[id] = true
	}
	for id := range spans {
		if topics[id.Topic] {
			ids[id] = true
		}
	}
	doc.Partitions = []groupPartitionDocument{}
	total, known := int64(0), group.Reads()
	for _, id := range slices.SortedFunc(maps.Keys(ids), comparePartitions) {
		p := groupPartitionDocument{Topic: id.Topic, Partition: id.Partition}
		if offset, ok := committed[id]; ok {
			p.Committed = &offset
		}
		if span, ok := spans[id]; ok {
			lag := span.End - nextOf(p.Committed, span)
			p.End, p.Lag = &span.End, &lag
			total += lag
		} else {
			known = false
		}
		if m, ok := members[id]; ok {
			p.Member, p.ClientID = m.ID, m.ClientID
		}
		doc.Partitions = append(doc.Partitions, p)
	}
	if known {
		doc.Lag = &total
	}
	return doc
}

func comparePartitions(a, b kafka.Partition) int {
	if c := strings.Compare(a.Topic, b.Topic); c != 0 {
		return c
	}
	return int(a.Partition) - int(b.Partition)
}

// nextOf returns the first existing record that a group has not read. If nothing was committed, the group
// counts as having read nothing.
func nextOf(committed *int64, span kafka.Span) int64 {
	if committed == nil {
		return span.Start
	}
	return min(max(*committed, span.Start), span.End)
}

// numberText formats a number, or "-" for one that is not known.
func numberText(n *int64) string {
	if n == nil {
		return "-"
	}
	return fmt.Sprint(*n)
}

var groupListHelp = help{
	use:   "list",
	short: "list your consumer groups, with the number of records that each has not read",
	examples: `
diaspora group list

# the groups that are more than a thousand records behind
diaspora group list -o json | jq -r '.groups[] | select(.lag > 1000) | .group'`,
	long: `
LAG is the number of records that the group has not read yet, in all partitions of its topics. It is
"-" if it is not known, for instance because a topic was released.

Only your own groups are listed. Other people may have groups of the same names.`,
}

func (e *env) groupList(ctx context.Context, g *groupClient) error {
	groups, err := g.list(ctx)
	if err != nil {
		return err
	}
	docs, err := g.documents(ctx, groups)
	if err != nil {
		return err
	}
	return printList(e, "groups", docs, `you have no consumer groups; "diaspora consume TOPIC --group NAME" makes one`,
		[]string{"GROUP", "STATE", "MEMBERS", "LAG", "TOPICS"}, func(d groupDocument) []string {
			members := fmt.Sprint(len(d.Members))
			if d.Members == nil {
				members = "-"
			}
			return []string{d.Group, d.State, members, numberText(d.Lag), strings.Join(d.Topics, ", ")}
		})
}

var groupShowHelp = help{
	use:   "show GROUP",
	short: "show how far a consumer group has read, and its members",
	examples: `
diaspora group show analysis

# the lag of each partition
diaspora group show analysis -o json | jq -c '.partitions[] | [.topic, .partition, .lag]'`,
	long: `
For each partition of the group's topics, the command prints

  COMMITTED   the offset at which the group continues after a restart; "-" if it has committed none
  END         the offset of the next record that is logged
  LAG         how many records the group has not read yet; if it has committed no offset, all of them
  CLIENT      the name that the member that reads the partition gives itself (client.id)
  MEMBER      the ID that the cluster has given to that member

A group without members is Empty. A program that was killed remains a member for up to 45 seconds.`,
	args: arguments{min: 1, max: 1, missing: "the group is missing"},
}

func (e *env) groupShow(ctx context.Context, g *groupClient, id string) error {
	group, err := g.find(ctx, id)
	if err != nil {
		return err
	}
	if !group.Reads() {
		return g.notReader(group)
	}
	docs, err := g.documents(ctx, []kafka.Group{group})
	if err != nil {
		return err
	}
	if len(docs) == 0 {
		return g.notFound(id, nil)
	}
	doc := docs[0]
	if e.json() {
		return e.printJSON(doc)
	}
	members := fmt.Sprint(len(doc.Members))
	if group.Hidden {
		members = "not shown, because the group reads a topic that you may not read"
	}
	kind := map[string]string{kafka.ClassicGroup: "classic", kafka.ConsumerGroup: "consumer (KIP-848)"}[doc.Type]
	if doc.Assignor != "" {
		kind += ", assignor " + doc.Assignor
	}
	if err := e.printf("Group:       %s\nState:       %s\nProtocol:    %s\nMembers:     %s\nLag:         %s\n\n",
		oneLine(doc.Group), doc.State, oneLine(kind), members, numberText(doc.Lag)); err != nil {
		return err
	}
	rows := [][]string{{"TOPIC", "PARTITION", "COMMITTED", "END", "LAG", "CLIENT", "MEMBER"}}
	for _, p := range doc.Partitions {
		row := []string{p.Topic, fmt.Sprint(p.Partition), numberText(p.Committed), numberText(p.End), numberText(p.Lag), "-", "-"}
		if p.Member != "" {
			row[5], row[6] = p.ClientID, p.Member
		}
		rows = append(rows, row)
	}
	for _, m := range doc.Members {
		if m.assigned == 0 {
			rows = append(rows, []string{"-", "-", "-", "-", "-", m.ClientID, m.Member})
		}
	}
	if len(doc.Topics) == 0 { // the cluster leaves out topics that the caller may not read
		e.say("the group has committed no offset, or only in topics that you may not read now")
	}
	return e.printTable(rows)
}

// notReader is the error for a group that does not read with committed offsets.
func (g *groupClient) notReader(group kafka.Group) error {
	return misuse("use Kafka's own tools, such as kafka-share-groups", "%s: %q is a %s group, and only consumer groups are supported", g.op, group.ID, group.Type)
}

var groupDeleteHelp = help{
	use:   "delete GROUP",
	short: "delete a consumer group and its position",
	examples: `
diaspora group delete analysis

# in a script, without confirmation
diaspora group delete analysis --yes`,
	long: `
The cluster forgets how far the group has read. No records are deleted. The next program that uses
the group starts as with a new group: "diaspora consume" at the start of the topic, and other
clients where their settings say (auto.offset.reset). To confirm, you are asked to type the name.

The group must have no members. Stop its programs first.`,
	args: arguments{min: 1, max: 1, missing: "the group is missing"},
}

func (e *env) groupDelete(ctx context.Context, g *groupClient, id string, yes bool) error {
	group, err := g.find(ctx, id)
	if err != nil {
		return err
	}
	if len(group.Members) > 0 {
		return g.hasMembers(group, "")
	}
	if !yes {
		e.warn("deleting %s makes the cluster forget how far the group has read", id)
		if err := e.confirmName(ctx, "group", "delete it", id, g.op); err != nil {
			return err
		}
	}
	switch err := kafka.DeleteGroup(ctx, g.Client, id); {
	case errors.Is(err, kerr.NonEmptyGroup):
		if now, err := g.find(ctx, id); err == nil {
			group = now
		}
		return g.hasMembers(group, "")
	case errors.Is(err, kerr.GroupIDNotFound):
		return g.notFound(id, nil)
	case err != nil:
		return err
	}
	return e.answer(map[string]any{"group": id, "deleted": true}, "%s is deleted\n", id)
}

// hasMembers is the error for an operation that needs a group without members.
func (g *groupClient) hasMembers(group kafka.Group, more string) error {
	text := "members"
	if n := len(group.Members); n > 0 {
		var clients []string
		for _, m := range group.Members {
			if !slices.Contains(clients, m.ClientID) {
				clients = append(clients, m.ClientID)
			}
		}
		text = count(n, "member") + " (" + strings.Join(clients, ", ") + ")"
	}
	return fail(diaspora.ErrConflict,
		"stop the programs that read in this group; one that was killed remains a member for up to 45 s"+more,
		"%s: conflict: %s has %s; nothing has changed", g.op, group.ID, text)
}
