// Package history judges, in tests, what happened to events: whether all that were
// acknowledged are there, in order, and were handed to those who read them.
package history

import (
	"errors"
	"fmt"
)

// Event is an event as it was logged or read: the N-th of its key, and its ID.
type Event struct {
	Key string
	N   int
	ID  string
}

// Value is what an event's value says. See [Parse].
func (e Event) Value() []byte { return fmt.Appendf(nil, "%s %d", e.Key, e.N) }

// Parse returns the event of a record.
func Parse(key, value []byte, id string) (Event, error) {
	e := Event{Key: string(key), ID: id}
	var k string
	if _, err := fmt.Sscanf(string(value), "%s %d", &k, &e.N); err != nil || k != e.Key {
		return e, errors.Join(fmt.Errorf("event %q of key %q is not ours", value, key), err)
	}
	return e, nil
}

// History is what happened to events: what was acknowledged, what is in the topic (each
// partition in its order), and what one consumer group was handed.
type History struct {
	Acknowledged []Event
	Stored       [][]Event // by partition
	Consumed     []Event
}

// Verdict is what became of the events.
type Verdict struct {
	Lost     int // acknowledged, and not in the topic
	Skipped  int // acknowledged, and never handed to the group
	Disorder int // behind a later one of its key, repeats left out
	Strange  int // in the topic with the ID of another event
	Repeated int // in the topic more than once; allowed
	Again    int // handed to the group more than once; allowed

	Late string // the last one that is out of order, in words
}

// Err returns what is against the promises, or nil.
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

// Check judges a history by what is promised: every acknowledged event is there, in order
// per key, and comes to the group at least once; repeats have the same ID.
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

// Lose removes an event, if there are any, and its repeats: to see that Check notices.
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

// Commits are the offsets that consumer groups have committed, as an onlooker saw them.
type Commits map[CommitKey]int64

// CommitKey names a partition of a topic that a group reads.
type CommitKey struct {
	Group, Topic string
	Partition    int32
}

// Note remembers what is committed now. It fails if that is less than was seen before.
func (c Commits) Note(key CommitKey, offset int64) error {
	before := c[key]
	c[key] = offset
	if offset < before {
		return fmt.Errorf("group %s, partition %d of %s: committed offset went back from %d to %d", key.Group, key.Partition, key.Topic, before, offset)
	}
	return nil
}

// Early returns why a reader that ended by itself ended too early, or nil. ends are the
// ends of the partitions before it began, next is the offset behind the last one that it
// has read.
func Early(ends, next map[int32]int64) error {
	for partition, end := range ends {
		if next[partition] < end {
			return fmt.Errorf("reading ended by itself at offset %d of partition %d, whose end was at %d", next[partition], partition, end)
		}
	}
	return nil
}
