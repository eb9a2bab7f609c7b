package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/consume"
	"github.com/diaspora-streams/diaspora/internal/kafka"
)

var groupResetHelp = help{
	use:   "reset GROUP --topic TOPIC",
	short: "move a consumer group to another position in a topic",
	examples: `
# read everything again
diaspora group reset analysis --topic weather --to start

# skip everything that the group has not read
diaspora group reset analysis --topic weather --to end

# show what would change, without changing it
diaspora group reset analysis --topic weather --to yesterday --dry-run

# read the last hundred records of one partition again
diaspora group reset analysis --topic weather --partition 2 --by -100

# step over the record at offset 4711 of partition 0, at which a program fails
diaspora group reset analysis --topic weather --partition 0 --past 4711

# in a script, without confirmation
diaspora group reset analysis --topic weather --to start --yes`,
	long: `
The command prints the position in each partition before and after the change. To confirm, you are
asked to type the name of the group. --yes skips this question, and --dry-run changes nothing.

--to moves to a POSITION, see below. --by moves by a number of records, forward or, if it is
negative, back. --past moves to the record after this OFFSET. A group that has already read past it
is not moved. The records before that offset that the group has not read are skipped as well. If the
position is before the oldest record or after the newest one, the nearest one is used.

The group must have no members, because as long as it has members, only they can change its
position. Stop the programs that read in the group first. With --force, the command removes the
members. Programs that still run then notice that they are no longer members, and join
again. Most of them continue at the new position, including "diaspora consume", but a program can
also keep its own position and commit that. So stop the programs if you can, and look at the result
with "diaspora group show".

` + positionHelp,
	args: arguments{min: 1, max: 1, missing: "the group is missing"},

	exclusive: []string{"to by", "to past", "by past"},
}

type groupResetOptions struct {
	topics     []string
	partitions []int32

	to   string
	by   int64
	past int64

	force, yes, dryRun bool

	kind string           // to, by or past
	at   consume.Position // for --to
}

func (e *env) groupResetCommand() *cobra.Command {
	var o groupResetOptions
	var cmd *cobra.Command
	cmd = e.command(groupResetHelp, func(ctx context.Context, args []string) error {
		for _, kind := range []string{"to", "by", "past"} {
			if cmd.Flags().Changed(kind) {
				o.kind = kind
			}
		}
		if err := o.check(e.now()); err != nil { // wrong input is an error even if nobody is logged in
			return err
		}
		return e.withGroups(ctx, "group reset", func(ctx context.Context, g *groupClient) error {
			r := groupReset{groupClient: g, groupResetOptions: o, group: args[0]}
			return r.run(ctx)
		})
	})
	flags := cmd.Flags()
	flags.StringArrayVar(&o.topics, "topic", nil, "move the group in `TOPIC`; may be repeated")
	flags.Int32SliceVarP(&o.partitions, "partition", "p", nil, "move it only in partition `N` of each topic; may be repeated (default: all)")
	flags.Lookup("partition").DefValue = "" // otherwise the help adds "(default [])"
	flags.StringVar(&o.to, "to", "", "move to `POSITION`; see above")
	flags.Int64Var(&o.by, "by", 0, "move by `N` records, back if N is negative")
	flags.Int64Var(&o.past, "past", 0, "continue after the record at `OFFSET`")
	flags.BoolVar(&o.dryRun, "dry-run", false, "only print what would change")
	flags.BoolVar(&o.force, "force", false, "remove the members from the group first")
	flags.BoolVar(&o.yes, "yes", false, "do not ask for confirmation")
	cmd.RegisterFlagCompletionFunc("topic", completion(anyArgument, e.topicNames))
	cmd.RegisterFlagCompletionFunc("to", fixed("start", "end", "today", "yesterday", "1h", "-10"))
	return cmd
}

const seeResetHelp = `see "diaspora group reset --help"`

// check returns what is wrong with the flags, and parses the position.
func (o *groupResetOptions) check(now time.Time) (err error) {
	for _, topic := range o.topics {
		if topic == "" || len(topic) > 249 || plainName(topic, "._-", -1) != topic { // Kafka's rule
			return misuse("", "group reset: %q is not a valid topic name", topic)
		}
	}
	for _, p := range o.partitions {
		if p < 0 {
			return misuse("", "group reset: partition %d is negative", p)
		}
	}
	switch {
	case len(o.topics) == 0:
		return misuse(seeResetHelp, "group reset: say in which topic with --topic")
	case o.kind == "":
		return misuse(seeResetHelp, "group reset: say where to with --to, --by or --past")
	case o.kind == "by" && o.by == 0:
		return misuse("", "group reset: --by 0 moves nothing")
	case o.kind == "past" && o.past < 0:
		return misuse("", "group reset: --past %d is negative", o.past)
	case o.kind == "past" && (len(o.topics) != 1 || len(o.partitions) != 1):
		return misuse("", "group reset: an offset belongs to one partition; name it with one --topic and one --partition")
	case o.kind == "to":
		if o.at, err = readPosition(o.to, now); err == nil {
			err = o.at.Validate()
		}
		if err != nil {
			return misuse(seeResetHelp+" for all ways to name a position", "group reset: --to %q: %v", o.to, err)
		}
	}
	return nil
}

// groupReset is one run of group reset.
type groupReset struct {
	*groupClient
	groupResetOptions
	group string

	places map[kafka.Partition]kafka.Place // those to reset
}

// groupMove is what happens in one partition.
type groupMove struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Before    *int64 `json:"before"` // null if the group has committed no offset
	After     *int64 `json:"after"`
	Skipped   int64  `json:"skipped"`  // unread records that the group will not read
	Repeated  int64  `json:"repeated"` // read records that it will read again

	note string // why the position is not the one that the user asked for
}

func (m *groupMove) id() kafka.Partition {
	return kafka.Partition{Topic: m.Topic, Partition: m.Partition}
}

// changes reports whether an offset has to be committed.
func (m *groupMove) changes() bool {
	return m.After != nil && (m.Before == nil || *m.Before != *m.After)
}

func (r *groupReset) run(ctx context.Context) error {
	e := r.env
	group, err := r.find(ctx, r.group)
	if err != nil {
		return err
	}
	busy := len(group.Members) > 0 || group.Hidden && group.State != "Empty"
	switch {
	case !group.Reads():
		return r.notReader(group)
	case group.Hidden && r.force:
		return fail(diaspora.ErrPermission, "stop the programs that read in this group", "%s: %s reads a topic that you may not read, so its members are not known and cannot be removed", r.op, r.group)
	case busy && !r.force && !r.dryRun:
		return r.hasMembers(group, ", or use --force, which removes the members from the group")
	}
	if err := r.choose(ctx); err != nil {
		return err
	}
	moves, err := r.plan(ctx)
	if err != nil {
		return err
	}
	if !e.json() {
		if err := e.printMoves(moves); err != nil {
			return err
		}
	}
	for _, m := range moves {
		if m.note != "" {
			e.warn("%s, partition %d: %s", m.Topic, m.Partition, m.note)
		}
	}
	changes := slices.ContainsFunc(moves, func(m groupMove) bool { return m.changes() })
	switch {
	case r.dryRun && busy:
		e.warn("%s has %s; to reset the group, stop the programs that read in it, or use --force", r.group, count(len(group.Members), "member"))
		fallthrough
	case r.dryRun:
		e.say("nothing has changed, because of --dry-run")
		return r.answer(moves, 0)
	case !changes:
		e.say("nothing has changed: the group is at this position")
		return r.answer(moves, 0)
	}
	if !r.yes {
		e.warn("%s", r.summary(moves, len(group.Members)))
		if err := e.confirmName(ctx, "group", "reset it", r.group, r.op); err != nil {
			return err
		}
	}
	var removed int
	if busy {
		moves, removed, err = r.forced(ctx, group, moves)
	} else {
		err = r.commit(ctx, moves)
	}
	switch {
	case err != nil && kafka.NeedsRejoin(err):
		if now, err := r.find(ctx, r.group); err == nil {
			group = now
		}
		return r.hasMembers(group, "")
	case err != nil:
		return err
	}
	e.say("%s is reset in %s", r.group, count(len(slices.DeleteFunc(slices.Clone(moves), func(m groupMove) bool { return !m.changes() })), "partition"))
	return r.answer(moves, removed)
}

// choose finds the partitions to reset.
func (r *groupReset) choose(ctx context.Context) error {
	slices.Sort(r.topics)
	r.topics = slices.Compact(r.topics)
	var err error
	if r.places, err = kafka.Places(ctx, r.Client, r.topics); err != nil {
		return err
	}
	if len(r.partitions) == 0 {
		return nil
	}
	has := map[string]int32{}
	for id := range r.places {
		has[id.Topic]++
	}
	for _, topic := range r.topics {
		for _, p := range r.partitions {
			if p >= has[topic] {
				missing := consume.NoPartitionError{Topic: topic, Partition: p, Has: has[topic]}
				return fail(diaspora.ErrNotFound, "", "%s: topic %q: not found: %v", r.op, topic, &missing)
			}
		}
	}
	maps.DeleteFunc(r.places, func(id kafka.Partition, _ kafka.Place) bool { return !slices.Contains(r.partitions, id.Partition) })
	return nil
}

// plan returns what has to happen in each partition.
func (r *groupReset) plan(ctx context.Context) ([]groupMove, error) {
	all, err := kafka.Committed(ctx, r.Client, r.group)
	if err != nil {
		return nil, err
	}
	ids := slices.SortedFunc(maps.Keys(r.places), comparePartitions)
	spans, err := kafka.Spans(ctx, r.Client, ids)
	if err != nil {
		return nil, err
	}
	var targets map[kafka.Partition]int64
	if r.kind == "to" {
		if targets, err = r.at.Resolve(ctx, r.Client, spans); err != nil {
			return nil, err
		}
	}
	var moves []groupMove
	movable := false
	for _, id := range ids {
		m := groupMove{Topic: id.Topic, Partition: id.Partition}
		if offset, ok := all[r.group][id]; ok {
			m.Before = &offset
		}
		if err := r.aim(&m, spans[id], targets[id]); err != nil {
			return nil, err
		}
		movable = movable || m.After != nil
		moves = append(moves, m)
	}
	if !movable {
		return nil, misuse("use --to instead", "%s: %s has committed no offset in %s from which it could be moved", r.op, r.group, strings.Join(r.topics, ", "))
	}
	return moves, nil
}

// aim sets where a partition is moved. target is the offset of the position of --to.
func (r *groupReset) aim(m *groupMove, span kafka.Span, target int64) error {
	next := nextOf(m.Before, span)
	wanted := target
	switch {
	case r.kind == "by" && m.Before == nil:
		m.note = "the group has committed no offset there, so it is left alone"
		return nil
	case r.kind == "by":
		wanted = next + min(max(r.by, -1<<62), 1<<62-next)
	case r.kind == "past" && r.past >= span.End:
		return fail(diaspora.ErrNotFound, "", "%s: not found: partition %d of %s has no record %d; it has offsets from %d up to, but not including, %d",
			r.op, m.Partition, m.Topic, r.past, span.Start, span.End)
	case r.kind == "past":
		wanted = max(next, r.past+1)
	case r.at.Kind == consume.Offset:
		wanted = r.at.Offset
	}
	after := min(max(wanted, span.Start), span.End)
	if after != wanted && (r.kind == "by" || r.at.Kind == consume.Offset) {
		m.note = fmt.Sprintf("there is no offset %d, so the nearest one is used; the records are from %d up to, but not including, %d", wanted, span.Start, span.End)
	}
	m.After = &after
	m.Skipped, m.Repeated = max(after-next, 0), max(next-after, 0)
	return nil
}

func (e *env) printMoves(moves []groupMove) error {
	rows := [][]string{{"TOPIC", "PARTITION", "BEFORE", "AFTER", "CHANGE"}}
	for _, m := range moves {
		change := "-"
		switch {
		case m.Skipped > 0:
			change = "skips " + count(m.Skipped, "record")
		case m.Repeated > 0:
			change = "repeats " + count(m.Repeated, "record")
		}
		after := m.After
		if after == nil {
			after = m.Before
		}
		rows = append(rows, []string{m.Topic, fmt.Sprint(m.Partition), numberText(m.Before), numberText(after), change})
	}
	return e.printTable(rows)
}

// summary says what the user is asked to confirm.
func (r *groupReset) summary(moves []groupMove, members int) string {
	var skipped, repeated int64
	for _, m := range moves {
		skipped += m.Skipped
		repeated += m.Repeated
	}
	text := fmt.Sprintf("resetting %s skips %s that it has not read, and repeats %s", r.group, count(skipped, "record"), count(repeated, "record"))
	if members > 0 {
		text += fmt.Sprintf("; it removes %s from the group", count(members, "member"))
	}
	return text
}

// answer prints the result as JSON. As text, it is printed before the user is asked.
func (r *groupReset) answer(moves []groupMove, removed int) error {
	if !r.env.json() {
		return nil
	}
	return r.env.printJSON(struct {
		Group          string      `json:"group"`
		DryRun         bool        `json:"dry_run"`
		RemovedMembers int         `json:"removed_members"`
		Partitions     []groupMove `json:"partitions"`
	}{r.group, r.dryRun, removed, moves})
}

func (r *groupReset) commit(ctx context.Context, moves []groupMove) error {
	offsets := map[kafka.Partition]int64{}
	for _, m := range moves {
		if m.changes() {
			offsets[m.id()] = *m.After
		}
	}
	if len(offsets) == 0 {
		return nil
	}
	return kafka.SetOffsets(ctx, r.Client, r.group, r.places, offsets)
}

// forceAttempts is how often members are removed that join again before the offsets are committed.
const forceAttempts = 5

// forced removes the members, and commits before they join again. The members may have committed until they
// were removed, so it plans the moves again: otherwise --by and --past could move the group to another record
// than the user means. It returns the moves that were made.
func (r *groupReset) forced(ctx context.Context, group kafka.Group, planned []groupMove) (moves []groupMove, removed int, err error) {
	for range forceAttempts {
		if len(group.Members) > 0 {
			if err := kafka.RemoveMembers(ctx, r.Client, r.group, group.Members); err != nil {
				return nil, removed, err
			}
			removed = max(removed, len(group.Members))
		}
		if moves, err = r.plan(ctx); err != nil {
			return nil, removed, err
		}
		if err = r.commit(ctx, moves); err == nil || !kafka.NeedsRejoin(err) {
			break
		}
		again, findErr := r.find(ctx, r.group)
		if findErr != nil {
			return nil, removed, findErr
		}
		group = again
	}
	if err != nil {
		if kafka.NeedsRejoin(err) {
			return nil, removed, fail(diaspora.ErrConflict, "stop the programs that read in this group, and repeat the command",
				"%s: conflict: %s still has members: they join again at once, or the cluster does not remove them for others; no offset has changed", r.op, r.group)
		}
		return nil, removed, err
	}
	moved := slices.ContainsFunc(moves, func(m groupMove) bool {
		i := slices.IndexFunc(planned, func(p groupMove) bool { return p.id() == m.id() })
		return numberText(planned[i].Before) != numberText(m.Before) || numberText(planned[i].After) != numberText(m.After)
	})
	if moved && !r.env.json() {
		r.env.say("the group has read on in the meantime; the change was")
		err = r.env.printMoves(moves)
	}
	return moves, removed, err
}
