package groups

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"
)

// A consumer group is stored in parts, so that a change of one member does not rewrite all of a
// large group. The part "" is the group itself. A part with this prefix is a member; the member's
// ID follows.
const consumerMemberPart = "m"

// maxConsumerEpoch is the largest epoch that is accepted when a part is read,
// so that damaged parts cannot make an epoch overflow.
const maxConsumerEpoch = 1 << 30

// changes calls emit for each part that has changed since the last call of saved. A nil value means
// that the part must be deleted.
func (g *consumerGroup) changes(emit func(part string, value []byte)) {
	if g.changed {
		emit("", g.encode())
	}
	for _, id := range slices.Sorted(maps.Keys(g.changedParts)) {
		if m := g.members[id]; m != nil {
			emit(consumerMemberPart+id, m.encode())
		} else {
			emit(consumerMemberPart+id, nil)
		}
	}
}

// saved must be called when everything that changes has emitted is durable.
func (g *consumerGroup) saved() {
	g.changed = false
	clear(g.changedParts)
}

// load restores one part. Parts may be loaded in any order. The caller must call restored
// afterwards.
func (g *consumerGroup) load(part string, value []byte) error {
	d := &decoder{b: value}
	if part == "" {
		g.decode(d)
	} else if id := part[len(consumerMemberPart):]; part[:len(consumerMemberPart)] != consumerMemberPart || id == "" {
		return fmt.Errorf("consumer group %q, part %q: %w", g.id, part, errDamaged)
	} else {
		g.members[id] = decodeConsumerMember(id, d)
	}
	if err := d.end(); err != nil {
		return fmt.Errorf("consumer group %q, part %q: %w", g.id, part, err)
	}
	return nil
}

// restored completes a group after its parts have been loaded. Session timers start again, because
// no member could send heartbeats.
//
// Parts can only contradict each other if they are damaged. They must not violate the guarantees of
// the group. If two members have the same partition or instance ID, the second one is removed and
// has to join again. Epochs continue after the highest one of any member.
func (g *consumerGroup) restored(now time.Time) {
	for _, m := range g.sorted() {
		if m.epoch > g.assignmentEpoch || m.previousEpoch > g.assignmentEpoch {
			g.assignmentEpoch = max(m.epoch, m.previousEpoch)
			g.changed = true
		}
		m.sessionEnds = now.Add(consumerSession)
		if m.state == consumerUnrevoked {
			m.revokeBy = now.Add(time.Duration(m.rebalanceMillis) * time.Millisecond)
		}
		if g.conflicts(m) {
			delete(g.members, m.id)
			g.changedParts[m.id] = true
			g.raiseEpoch()
			continue
		}
		if m.instance != "" {
			g.static[m.instance] = m
		}
		g.hold(m)
	}
	if g.epoch < g.assignmentEpoch {
		g.epoch = g.assignmentEpoch
		g.raiseEpoch()
	}
}

func (g *consumerGroup) conflicts(m *consumerMember) bool {
	for _, partitions := range []map[partitionID]int32{m.assigned, m.revoking} {
		for p := range partitions {
			if g.holders[p] != nil {
				return true
			}
		}
	}
	return g.static[m.instance] != nil
}

func (g *consumerGroup) encode() []byte {
	b := []byte{codecVersion}
	b = binary.AppendUvarint(b, uint64(g.epoch))
	b = binary.AppendUvarint(b, uint64(g.assignmentEpoch))
	return binary.LittleEndian.AppendUint64(b, g.metadata)
}

func (g *consumerGroup) decode(d *decoder) {
	d.version()
	g.epoch = decodeEpoch(d)
	g.assignmentEpoch = decodeEpoch(d)
	if b := d.take(8); b != nil {
		g.metadata = binary.LittleEndian.Uint64(b)
	}
	if g.epoch < g.assignmentEpoch {
		d.fail()
	}
}

func decodeEpoch(d *decoder) int32 {
	epoch := d.uvarint()
	if epoch > maxConsumerEpoch {
		d.fail()
		return 0
	}
	return int32(epoch)
}

func (m *consumerMember) encode() []byte {
	b := []byte{codecVersion}
	for _, s := range []string{m.instance, m.rack, m.assignor, m.principal, m.clientID, m.host, m.regex} {
		b = appendString(b, s)
	}
	b = binary.AppendVarint(b, int64(m.rebalanceMillis))
	b = binary.AppendUvarint(b, uint64(len(m.names)))
	for _, name := range m.names {
		b = appendString(b, name)
	}
	b = binary.AppendUvarint(b, uint64(len(m.topics)))
	for _, id := range m.topics {
		b = append(b, id[:]...)
	}
	b = binary.AppendVarint(b, int64(m.epoch))
	b = binary.AppendVarint(b, int64(m.previousEpoch))
	b = append(b, byte(m.state))
	b = appendEpochs(b, m.assigned)
	b = appendEpochs(b, m.revoking)
	return appendPartitions(b, m.target, nil)
}

// appendEpochs encodes partitions and the epochs at which they were assigned.
func appendEpochs(b []byte, partitions map[partitionID]int32) []byte {
	return appendPartitions(b, slices.SortedFunc(maps.Keys(partitions), comparePartitions), partitions)
}

// appendPartitions encodes sorted partitions: their number, then for each a
// byte that is 1 if its topic follows and 0 if it has the topic of the one
// before; the topic; the partition; and its epoch, unless epochs is nil.
func appendPartitions(b []byte, partitions []partitionID, epochs map[partitionID]int32) []byte {
	b = binary.AppendUvarint(b, uint64(len(partitions)))
	for i, p := range partitions {
		if i == 0 || partitions[i-1].topic != p.topic {
			b = append(append(b, 1), p.topic[:]...)
		} else {
			b = append(b, 0)
		}
		b = binary.AppendUvarint(b, uint64(p.partition))
		if epochs != nil {
			b = binary.AppendUvarint(b, uint64(epochs[p]))
		}
	}
	return b
}

func decodeConsumerMember(id string, d *decoder) *consumerMember {
	d.version()
	m := &consumerMember{id: id}
	for _, s := range []*string{&m.instance, &m.rack, &m.assignor, &m.principal, &m.clientID, &m.host, &m.regex} {
		*s = d.string()
	}
	if consumerAssignors[m.assignor] == nil {
		m.assignor = "" // written by a version with more assignors
	}
	m.rebalanceMillis = decodeInt32(d)
	for n := d.uvarint(); n > 0 && d.err == nil; n-- {
		m.names = append(m.names, d.string())
	}
	for n := d.uvarint(); n > 0 && d.err == nil; n-- {
		m.topics = append(m.topics, decodeTopic(d))
	}
	m.epoch, m.previousEpoch = decodeInt32(d), decodeInt32(d)
	m.state = consumerState(d.byte())
	if m.epoch > maxConsumerEpoch || m.previousEpoch > maxConsumerEpoch || m.state >= consumerStates {
		d.fail()
	}
	m.assigned = make(map[partitionID]int32)
	decodePartitions(d, func(p partitionID) { m.assigned[p] = decodeEpoch(d) })
	decodePartitions(d, func(p partitionID) {
		if m.revoking == nil {
			m.revoking = make(map[partitionID]int32)
		}
		m.revoking[p] = decodeEpoch(d)
		if _, twice := m.assigned[p]; twice {
			d.fail()
		}
	})
	decodePartitions(d, func(p partitionID) { m.target = append(m.target, p) })
	if !slices.IsSorted(m.names) || !slices.IsSortedFunc(m.topics, compareTopics) || !slices.IsSortedFunc(m.target, comparePartitions) {
		d.fail()
	}
	return m
}

func decodeInt32(d *decoder) int32 {
	v := d.varint()
	if v < math.MinInt32 || v > math.MaxInt32 {
		d.fail()
	}
	return int32(v)
}

func decodeTopic(d *decoder) (id [16]byte) {
	copy(id[:], d.take(len(id)))
	return id
}

// decodePartitions calls next for each partition. If the partitions have epochs, next must decode
// them.
func decodePartitions(d *decoder, next func(partitionID)) {
	var p partitionID
	for n := d.uvarint(); n > 0 && d.err == nil; n-- {
		if d.byte() != 0 {
			p.topic = decodeTopic(d)
		}
		p.partition = d.partition()
		next(p)
	}
}
