package groups

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
)

// group is a group of either protocol and its committed offsets.
type group struct {
	id string
	c  *Coordinator

	mu   sync.Mutex // guards the fields below
	dead bool       // deleted, and no longer in Coordinator.groups

	// Exactly one of them is set. A group that only has committed offsets is a classic one.
	classic  *classicGroup
	consumer *consumerGroup

	written bool                      // the journal contains the classic group
	parts   map[string]int            // the parts of the consumer group in the journal, and their sizes
	offsets map[string][]storedOffset // by topic; sorted by partition

	timer   *time.Timer
	timerAt time.Time // when the timer fires; zero: never
}

// scheduleTick makes the timer fire at the given time or earlier.
func (g *group) scheduleTick(at time.Time) {
	if at.IsZero() || (!g.timerAt.IsZero() && !at.Before(g.timerAt)) {
		return
	}
	g.timerAt = at
	if g.timer == nil {
		g.timer = time.AfterFunc(time.Until(at), g.tick)
	} else {
		g.timer.Reset(time.Until(at))
	}
}

// tick handles the deadlines that have passed. It runs when the timer fires. That may be too early,
// because heartbeats extend deadlines without changing the timer.
func (g *group) tick() {
	if !g.c.enter() {
		return
	}
	defer g.c.closeMu.RUnlock()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dead {
		return
	}
	g.timerAt = time.Time{}
	if g.consumer != nil {
		g.tickConsumer(time.Now())
	} else {
		g.tickClassic(time.Now())
	}
}

// stop stops the timer and answers all waiting requests with COORDINATOR_NOT_AVAILABLE.
func (g *group) stop() {
	if g.timer != nil {
		g.timer.Stop()
	}
	if g.classic != nil {
		for _, m := range g.classic.ordered() {
			g.classic.answerJoin(m, joinError(m.id, kerr.CoordinatorNotAvailable))
			m.answerSync(syncError(kerr.CoordinatorNotAvailable))
		}
	}
}

// drop removes the group from the Coordinator. Its entries must have been deleted from the journal,
// unless they were never written.
func (g *group) drop() {
	g.dead = true
	g.stop()
	g.release()
	for topic := range g.offsets {
		g.removeOffsets(topic, func(*storedOffset) bool { return true })
	}
	g.c.mu.Lock()
	delete(g.c.groups, g.id)
	g.c.mu.Unlock()
}

// release removes the members' state and gives back its memory budget, before the group gets
// another state or is dropped.
func (g *group) release() {
	if g.classic != nil {
		for _, m := range g.classic.members {
			g.c.reserve(-m.reserved)
		}
	}
	for _, size := range g.parts {
		g.c.reserve(-int64(size))
	}
	g.classic, g.consumer, g.written, g.parts = nil, nil, false, nil
}

// writeClassic writes the last generation to the journal, together with the given entries. If
// assignments is not nil, it replaces the members' assignments.
func (g *group) writeClassic(assignments map[string][]byte, more ...entry) error {
	record := appendClassic(nil, g.classic, assignments)
	if len(record) > maxRecord {
		return errTooLarge
	}
	if err := g.c.append(append(more, entry{Key: classicKey(g.id), Value: record})...); err != nil {
		return err
	}
	g.written = true
	return nil
}

// deletionEntries returns the entries that delete the group from the journal, but not its offsets.
func (g *group) deletionEntries() []entry {
	var entries []entry
	if g.written {
		entries = append(entries, entry{Key: classicKey(g.id)})
	}
	for part := range g.parts {
		entries = append(entries, entry{Key: partKey(g.id, part)})
	}
	return entries
}

// findPartition returns the index of the partition's offset, or the index at which to insert it.
func findPartition(offsets []storedOffset, partition int32) (int, bool) {
	return slices.BinarySearchFunc(offsets, partition, func(o storedOffset, p int32) int { return cmp.Compare(o.partition, p) })
}

// offset returns a committed offset, or nil.
func (g *group) offset(topic string, partition int32) *storedOffset {
	offsets := g.offsets[topic]
	if i, ok := findPartition(offsets, partition); ok {
		return &offsets[i]
	}
	return nil
}

func (o *storedOffset) bytes() int64 { return offsetBytes + int64(len(o.metadata)) }

// setOffset stores a committed offset in memory. The caller has reserved its bytes. room is the
// expected number of offsets of the topic; it sets the capacity if this is the first one.
func (g *group) setOffset(topic string, o storedOffset, room int) {
	if g.offsets == nil {
		g.offsets = map[string][]storedOffset{}
	}
	offsets := g.offsets[topic]
	if offsets == nil {
		offsets = make([]storedOffset, 0, min(room, 16))
	}
	i, ok := findPartition(offsets, o.partition)
	if ok {
		g.c.reserve(-offsets[i].bytes())
		offsets[i] = o
		return
	}
	g.offsets[topic] = slices.Insert(offsets, i, o)
}

// removeOffset removes a committed offset, if there is one.
func (g *group) removeOffset(topic string, partition int32) {
	offsets := g.offsets[topic]
	if i, ok := findPartition(offsets, partition); ok {
		g.c.reserve(-offsets[i].bytes())
		g.setOffsets(topic, slices.Delete(offsets, i, i+1))
	}
}

// removeOffsets removes the topic's offsets for which chosen returns true.
func (g *group) removeOffsets(topic string, chosen func(*storedOffset) bool) {
	g.setOffsets(topic, slices.DeleteFunc(g.offsets[topic], func(o storedOffset) bool {
		gone := chosen(&o)
		if gone {
			g.c.reserve(-o.bytes())
		}
		return gone
	}))
}

func (g *group) setOffsets(topic string, offsets []storedOffset) {
	if g.offsets[topic] = offsets; len(offsets) == 0 {
		delete(g.offsets, topic)
	}
}

// loader builds the groups from the journal's entries. Of several entries with the same key, the
// last one applies.
type loader struct {
	c       *Coordinator
	classic map[string][]byte
	parts   map[string]map[string][]byte // parts of consumer groups
}

func (l *loader) load(e entry) error {
	k, err := parseKey(e.Key)
	if err != nil {
		return err
	}
	g := l.c.groups[k.group]
	if g == nil {
		g = &group{id: k.group, c: l.c}
		l.c.groups[k.group] = g
	}
	switch k.kind {
	case kindClassic:
		if l.classic[k.group] = slices.Clone(e.Value); e.Value == nil {
			delete(l.classic, k.group)
		}
	case kindConsumer:
		l.loadPart(k, e.Value)
	case kindOffset:
		if e.Value == nil {
			g.removeOffset(k.topic, k.partition)
			return nil
		}
		o, err := parseOffset(k.partition, e.Value)
		if err != nil {
			return fmt.Errorf("group %q: offset of %s/%d: %w", k.group, k.topic, k.partition, err)
		}
		l.c.reserved.Add(o.bytes())
		g.setOffset(k.topic, o, 1)
	}
	return nil
}

func (l *loader) loadPart(k key, value []byte) {
	switch {
	case value == nil:
		if delete(l.parts[k.group], k.part); len(l.parts[k.group]) == 0 {
			delete(l.parts, k.group)
		}
	case l.parts[k.group] == nil:
		l.parts[k.group] = map[string][]byte{k.part: slices.Clone(value)}
	default:
		l.parts[k.group][k.part] = slices.Clone(value)
	}
}

// finish creates the groups from what was loaded and starts their timers.
func (l *loader) finish(now time.Time) error {
	for id, g := range l.c.groups {
		for topic, offsets := range g.offsets {
			g.offsets[topic] = slices.Clone(offsets) // trim unused capacity
		}
		parts := l.parts[id]
		var err error
		switch {
		case parts != nil:
			err = g.restoreConsumer(parts, now)
		case l.classic[id] != nil:
			err = g.restoreClassic(l.classic[id], now)
		case len(g.offsets) > 0:
			g.classic = newClassicGroup(now)
		default:
			delete(l.c.groups, id)
		}
		if err != nil {
			return fmt.Errorf("group %q: %w", id, err)
		}
	}
	return nil
}

func (g *group) restoreClassic(record []byte, now time.Time) (err error) {
	if g.classic, err = parseClassic(record); err != nil {
		return err
	}
	g.written = true
	for _, m := range g.classic.members {
		m.reserved = m.bytes()
		g.c.reserved.Add(m.reserved)
		g.extendSession(m, now.Add(m.sessionTimeout))
	}
	g.classic.subscribe()
	return nil
}
