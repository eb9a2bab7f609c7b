package groups

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"
)

// Kinds of journal entries. The kind is the first byte of the key. The rest of the key is
//
//	classic:  the group
//	offset:   the group, the topic and the partition
//	consumer: the group and a part of it (see consumerGroup.changes)
//
// A group or topic that is followed by something else is preceded by its length.
const (
	kindClassic  = 'g'
	kindOffset   = 'o'
	kindConsumer = 'c'
)

// codecVersion is the first byte of every value.
const codecVersion = 1

var errDamaged = errors.New("damaged")

func classicKey(group string) []byte { return append([]byte{kindClassic}, group...) }

func partKey(group, part string) []byte {
	return append(appendString([]byte{kindConsumer}, group), part...)
}

func appendOffsetKey(b []byte, group, topic string, partition int32) []byte {
	b = append(b, kindOffset)
	b = appendString(b, group)
	b = appendString(b, topic)
	return binary.AppendUvarint(b, uint64(uint32(partition)))
}

// key is a decoded journal key.
type key struct {
	kind      byte
	group     string
	topic     string // of an offset
	partition int32
	part      string // of a consumer group
}

func parseKey(b []byte) (key, error) {
	if len(b) == 0 {
		return key{}, fmt.Errorf("journal key: %w: empty", errDamaged)
	}
	k, d := key{kind: b[0]}, decoder{b: b[1:]}
	switch k.kind {
	case kindClassic:
		k.group, d.b = string(d.b), nil
	case kindConsumer:
		k.group = d.string()
		k.part, d.b = string(d.b), nil
	case kindOffset:
		k.group, k.topic, k.partition = d.string(), d.string(), d.partition()
	default:
		return key{}, fmt.Errorf("journal key: %w: kind %q", errDamaged, k.kind)
	}
	if err := d.end(); err != nil {
		return key{}, fmt.Errorf("journal key of kind %q: %w", k.kind, err)
	}
	return k, nil
}

// storedOffset is a committed offset of one partition.
type storedOffset struct {
	partition int32
	epoch     int32 // leader epoch of the record before the offset; -1 if unknown
	offset    int64
	at        int64    // when it was committed, in ms
	expires   int64    // when it expires, in ms, as requested by OffsetCommit v2 to v4; -1: according to the retention
	topicID   [16]byte // ID of the topic at the time of the commit; zero if unknown
	metadata  string
}

func appendOffset(b []byte, o *storedOffset) []byte {
	b = append(b, codecVersion)
	b = binary.AppendVarint(b, o.offset)
	b = binary.AppendVarint(b, int64(o.epoch))
	b = binary.AppendVarint(b, o.at)
	b = binary.AppendVarint(b, o.expires)
	b = append(b, o.topicID[:]...)
	return append(b, o.metadata...)
}

func parseOffset(partition int32, b []byte) (storedOffset, error) {
	d := decoder{b: b}
	d.version()
	o := storedOffset{partition: partition, offset: d.varint(), epoch: int32(d.varint()), at: d.varint(), expires: d.varint()}
	copy(o.topicID[:], d.take(len(o.topicID)))
	o.metadata, d.b = string(d.b), nil
	return o, d.end()
}

// appendClassic encodes the part of a classic group that survives a restart: its last generation.
// As in Kafka, only the chosen protocol of each member is stored. If assignments is not nil, it
// replaces the members' assignments.
func appendClassic(b []byte, g *classicGroup, assignments map[string][]byte) []byte {
	b = append(b, codecVersion)
	b = binary.AppendVarint(b, int64(g.generation))
	b = binary.AppendVarint(b, g.since.UnixMilli())
	b = appendString(b, g.protocolType)
	b = appendString(b, g.protocol)
	b = appendString(b, g.leader)
	b = binary.AppendUvarint(b, uint64(len(g.members)))
	for _, m := range g.ordered() {
		b = appendString(b, m.id)
		if m.instance == nil {
			b = append(b, 0)
		} else {
			b = appendString(append(b, 1), *m.instance)
		}
		b = appendString(b, m.clientID)
		b = appendString(b, m.host)
		b = binary.AppendVarint(b, m.rebalanceTimeout.Milliseconds())
		b = binary.AppendVarint(b, m.sessionTimeout.Milliseconds())
		b = appendString(b, m.metadata(g.protocol))
		assignment := m.assignment
		if assignments != nil {
			assignment = assignments[m.id]
		}
		b = appendString(b, assignment)
	}
	return b
}

// parseClassic decodes a classic group in the state that it has after a start: stable, or empty.
func parseClassic(b []byte) (*classicGroup, error) {
	d := decoder{b: b}
	d.version()
	g := newClassicGroup(time.Time{})
	g.generation = int32(d.varint())
	g.since = time.UnixMilli(d.varint())
	g.protocolType = d.string()
	g.protocol = d.string()
	leader := d.string()
	for n := d.uvarint(); n > 0 && d.err == nil; n-- {
		m := &member{id: d.string()}
		switch d.byte() {
		case 0:
		case 1:
			instance := d.string()
			m.instance = &instance
		default:
			d.fail()
		}
		m.clientID, m.host = d.string(), d.string()
		m.rebalanceTimeout = time.Duration(int32(d.varint())) * time.Millisecond
		m.sessionTimeout = time.Duration(int32(d.varint())) * time.Millisecond
		m.protocols = []protocol{{g.protocol, []byte(d.string())}}
		m.assignment = []byte(d.string())
		if d.err != nil {
			break
		}
		if _, twice := g.members[m.id]; twice || (m.instance != nil && g.static[*m.instance] != "") {
			d.fail()
			break
		}
		g.add(m)
		g.state = stable
	}
	if _, ok := g.members[leader]; ok {
		g.leader = leader
	}
	return g, d.end()
}

func appendString[T string | []byte](b []byte, s T) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// decoder decodes what the append functions encode. After the first error it returns zero values.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail() {
	d.b = nil
	if d.err == nil {
		d.err = errDamaged
	}
}

func (d *decoder) end() error {
	if d.err == nil && len(d.b) > 0 {
		d.fail()
	}
	return d.err
}

func (d *decoder) version() {
	if v := d.byte(); d.err == nil && v != codecVersion {
		d.fail()
		d.err = fmt.Errorf("%w: version %d", errDamaged, v)
	}
}

func (d *decoder) take(n int) []byte {
	if len(d.b) < n {
		d.fail()
		return nil
	}
	b := d.b[:n]
	d.b = d.b[n:]
	return b
}

func (d *decoder) byte() byte {
	if b := d.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (d *decoder) uvarint() uint64 { return decodeVarint(d, binary.Uvarint) }
func (d *decoder) varint() int64   { return decodeVarint(d, binary.Varint) }

func decodeVarint[T int64 | uint64](d *decoder, decode func([]byte) (T, int)) T {
	v, n := decode(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) partition() int32 {
	p := d.uvarint()
	if p > math.MaxInt32 {
		d.fail()
	}
	return int32(p)
}

func (d *decoder) string() string {
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		d.fail()
		return ""
	}
	return string(d.take(int(n)))
}
