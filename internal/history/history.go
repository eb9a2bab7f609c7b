// Package history checks, in tests, what happened to events: whether all acknowledged events are in
// the topic, in order, and were consumed.
//
// Start reading at [History] and [Check].
package history

import (
	"errors"
	"fmt"
)

// Event is an event as it was logged or read: the N-th event of its key, with its ID.
type Event struct {
	Key string
	N   int
	ID  string
}

// Value returns the event's value. See [Parse].
func (e Event) Value() []byte { return fmt.Appendf(nil, "%s %d", e.Key, e.N) }

// Parse returns the event in a record.
func Parse(key, value []byte, id string) (Event, error) {
	e := Event{Key: string(key), ID: id}
	var k string
	if _, err := fmt.Sscanf(string(value), "%s %d", &k, &e.N); err != nil || k != e.Key {
		return e, errors.Join(fmt.Errorf("event %q of key %q is not ours", value, key), err)
	}
	return e, nil
}

// History is what happened to events: which ones were acknowledged, which ones are in the topic
// (each partition in its order), and which ones a consumer group received.
type History struct {
	Acknowledged []Event
	Stored       [][]Event // by partition
	Consumed     []Event
}

// Verdict is the result of a check.
type Verdict struct {
	Lost     int // acknowledged, but not in the topic
	Skipped  int // acknowledged, but never received by the group
	Disorder int // after a later event of the same key, not counting duplicates
	Strange  int // in the topic with the ID of another event
	Repeated int // duplicates in the topic; allowed
	Again    int // received by the group more than once; allowed

	Late string // describes the last event that is out of order
}

// Err returns an error if a guarantee is violated.
func (v Verdict) Err() error {
	if v.Lost+v.Skipped+v.Disorder+v.Strange == 0 {
		return nil
	}
	text := fmt.Sprintf("%d acknowledged events lost, %d never consumed, %d out of order, %d with the ID of another", v.Lost, v.Skipped, v.Disorder, v.Strange)
	if v.Late != "" {
		text += ": " + v.Late
	}
	return errors.New(text)
}

// Check checks a history against the guarantees: every acknowledged event is in the topic, events
// of a key are in order, the group receives each event at least once, and duplicates have the same
// ID.
func Check(h History) (v Verdict) {
	acknowledged := map[Event]string{}
	for _, e := range h.Acknowledged {
		acknowledged[e] = ", which was acknowledged,"
	}
	stored := map[string]Event{}
	for _, partition := range h.Stored {
		last := map[string]int{}
		for _, e := range partition {
			first, repeat := stored[e.ID]
			switch {
			case repeat && first != e:
				v.Strange++
			case repeat:
				v.Repeated++
			default:
				stored[e.ID] = e
				if before, ok := last[e.Key]; ok && e.N <= before {
					v.Disorder++
					v.Late = fmt.Sprintf("event %d of %s%s behind event %d", e.N, e.Key, acknowledged[e], before)
				}
				last[e.Key] = e.N
			}
		}
	}
	consumed := map[string]bool{}
	for _, e := range h.Consumed {
		if consumed[e.ID] {
			v.Again++
		}
		consumed[e.ID] = true
	}
	for _, e := range h.Acknowledged {
		if stored[e.ID] != e {
			v.Lost++
		}
		if !consumed[e.ID] {
			v.Skipped++
		}
	}
	return v
}

// Lose removes an event and its duplicates, if there are any events. Tests use it to verify that
// Check detects the loss.
func Lose(partition []Event) []Event {
	if len(partition) == 0 {
		return nil
	}
	victim := partition[len(partition)/2]
	var rest []Event
	for _, e := range partition {
		if e.ID != victim.ID {
			rest = append(rest, e)
		}
	}
	return rest
}

// Commits are the committed offsets of consumer groups, as observed so far.
type Commits map[CommitKey]int64

// CommitKey identifies a partition that a group reads.
type CommitKey struct {
	Group, Topic string
	Partition    int32
}

// Note records the current committed offset. It returns an error if the offset has decreased.
func (c Commits) Note(key CommitKey, offset int64) error {
	before := c[key]
	c[key] = offset
	if offset < before {
		return fmt.Errorf("group %s, partition %d of %s: committed offset went back from %d to %d", key.Group, key.Partition, key.Topic, before, offset)
	}
	return nil
}

// Early returns an error if a reader that ended by itself ended too early. ends are the ends of the
// partitions before it started, and next the offsets after the last records that it has read.
func Early(ends, next map[int32]int64) error {
	for partition, end := range ends {
		if next[partition] < end {
			return fmt.Errorf("reading ended by itself at offset %d of partition %d, whose end was at %d", next[partition], partition, end)
		}
	}
	return nil
}
