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
	dead bool       // deleted; not in the Coordinator any more

	// One of them is set. A group without members of which only offsets are
	// known is a classic one.
	classic  *classicGroup
	consumer *consumerGroup

	written bool                   // the journal has the classic group
	parts   map[string]int         // the parts of the consumer group that the journal has, and their sizes
	offsets map[string][]committed // by topic, in the order of the partitions

	timer *time.Timer
	fires time.Time // when the timer fires; zero: never
}

// wakeBy makes sure that the timer fires at that time, or before.
func (g *group) wakeBy(at time.Time) {
	if at.IsZero() || (!g.fires.IsZero() && !at.Before(g.fires)) {
		return
	}
	g.fires = at
	if g.timer == nil {
		g.timer = time.AfterFunc(time.Until(at), g.tick)
	} else {
		g.timer.Reset(time.Until(at))
	}
}

// tick handles the deadlines that have passed. It runs when the timer fires,
// which may be too early: heartbeats move deadlines and leave the timer alone.
func (g *group) tick() {
	if !g.c.enter() {
		return
	}
	defer g.c.life.RUnlock()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dead {
		return
	}
	g.fires = time.Time{}
	if g.consumer != nil {
		g.tickConsumer(time.Now())
	} else {
		g.tickClassic(time.Now())
	}
}

// stop ends the timer and answers the requests that wait.
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

// drop takes the group out of the Coordinator. Its entries are gone from the
// journal, or were never there.
func (g *group) drop() {
	g.dead = true
	g.stop()
	g.release()
	for topic := range g.offsets {
		g.forgetAll(topic, func(*committed) bool { return true })
	}
	g.c.mu.Lock()
	delete(g.c.groups, g.id)
	g.c.mu.Unlock()
}

// release lets go of the members' state, before the group gets another one or
// is dropped.
func (g *group) release() {
	if g.classic != nil {
		for _, m := range g.classic.members {
			g.c.reserve(-m.held)
		}
	}
	for _, size := range g.parts {
		g.c.reserve(-int64(size))
	}
	g.classic, g.consumer, g.written, g.parts = nil, nil, false, nil
}

// writeClassic writes the last generation to the journal, and what else is
// given. assignments replaces the members' assignments, unless it is nil.
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

// gone returns the entries that delete the group from the journal, without its offsets.
func (g *group) gone() []entry {
	var entries []entry
	if g.written {
		entries = append(entries, entry{Key: classicKey(g.id)})
	}
	for part := range g.parts {
		entries = append(entries, entry{Key: partKey(g.id, part)})
	}
	return entries
}

// findPartition returns the index of the partition's offset, or where it would be.
func findPartition(offsets []committed, partition int32) (int, bool) {
	return slices.BinarySearchFunc(offsets, partition, func(o committed, p int32) int { return cmp.Compare(o.partition, p) })
}

// offset returns a committed offset, or nil.
func (g *group) offset(topic string, partition int32) *committed {
	offsets := g.offsets[topic]
	if i, ok := findPartition(offsets, partition); ok {
		return &offsets[i]
	}
	return nil
}

func (o *committed) bytes() int64 { return offsetBytes + int64(len(o.metadata)) }

// remember sets a committed offset. The caller has reserved its bytes. If it is
// the topic's first, room is made for as many.
func (g *group) remember(topic string, o committed, room int) {
	if g.offsets == nil {
		g.offsets = map[string][]committed{}
	}
	offsets := g.offsets[topic]
	if offsets == nil {
		offsets = make([]committed, 0, min(room, 16))
	}
	i, ok := findPartition(offsets, o.partition)
	if ok {
		g.c.reserve(-offsets[i].bytes())
		offsets[i] = o
		return
	}
	g.offsets[topic] = slices.Insert(offsets, i, o)
}

// forget removes a committed offset, if there is one.
func (g *group) forget(topic string, partition int32) {
	offsets := g.offsets[topic]
	if i, ok := findPartition(offsets, partition); ok {
		g.c.reserve(-offsets[i].bytes())
		g.keep(topic, slices.Delete(offsets, i, i+1))
	}
}

// forgetAll removes the topic's offsets that are chosen.
func (g *group) forgetAll(topic string, chosen func(*committed) bool) {
	g.keep(topic, slices.DeleteFunc(g.offsets[topic], func(o committed) bool {
		gone := chosen(&o)
		if gone {
			g.c.reserve(-o.bytes())
		}
		return gone
	}))
}

func (g *group) keep(topic string, offsets []committed) {
	if g.offsets[topic] = offsets; len(offsets) == 0 {
		delete(g.offsets, topic)
	}
}

// loader puts the groups together from the journal's entries, of which the last
// one with a key counts.
type loader struct {
	c       *Coordinator
	classic map[string][]byte
	parts   map[string]map[string][]byte // of consumer groups
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
			g.forget(k.topic, k.partition)
			return nil
		}
		o, err := parseOffset(k.partition, e.Value)
		if err != nil {
			return fmt.Errorf("group %q: offset of %s/%d: %w", k.group, k.topic, k.partition, err)
		}
		l.c.held.Add(o.bytes())
		g.remember(k.topic, o, 1)
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

// finish makes groups of what was loaded and starts their timers.
func (l *loader) finish(now time.Time) error {
	for id, g := range l.c.groups {
		for topic, offsets := range g.offsets {
			g.offsets[topic] = slices.Clone(offsets) // without room that is not used
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
		m.held = m.bytes()
		g.c.held.Add(m.held)
		g.extend(m, now.Add(m.sessionTimeout))
	}
	g.classic.subscribe()
	return nil
}
