package commitlog

import (
	"fmt"
	"math"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/diaspora-streams/diaspora/internal/batch"
)

// Producer is an idempotent producer that has written to the partition.
type Producer struct {
	ID            int64
	Epoch         int16
	LastSequence  int32
	LastTimestamp int64 // when its last batch arrived, in milliseconds
}

// producers remember, of each idempotent producer, the last batches it has appended. So a batch that is
// sent a second time is recognized, and so is a gap (KIP-98).
//
// They are in a list in the order of their last append, since the one that has been idle for the longest is
// forgotten first: when a day has passed, or when there are too many. What a
// forgotten producer sends is accepted with any sequence number, as by Apache Kafka.
type producers struct {
	byID           map[int64]*producer
	oldest, newest *producer
}

const (
	maxProducers = 16_384
	maxSent      = 5 // Kafka's clients have at most five requests in flight
	noEpoch      = -1
)

type producer struct {
	id           int64
	epoch        int16
	count        int8 // how many of sent and earlier are known
	sent         sent
	earlier      *[maxSent - 1]sent // before sent, latest first; nil until the second batch, since most producers never send it
	older, newer *producer
}

// sent is a batch that a producer has appended.
type sent struct {
	base     int64 // offset of the first record
	time     int64 // of arrival, in milliseconds
	sequence int32 // of the last record
	delta    int32 // offset of the last record less base
}

// check decides about a batch: a duplicate of one of the last ones is returned; nil means that it may
// be appended. It follows Apache Kafka's ProducerAppendInfo.
func (ps *producers) check(h batch.Header) (*sent, error) {
	p := ps.byID[h.ProducerID]
	if p == nil && h.ProducerEpoch < noEpoch { // noEpoch is what Apache Kafka assumes of an unknown producer
		return nil, fmt.Errorf("producer %d: epoch %d: %w", h.ProducerID, h.ProducerEpoch, kerr.InvalidProducerEpoch)
	}
	if p == nil {
		return nil, nil
	}
	switch {
	case h.ProducerEpoch < p.epoch:
		return nil, fmt.Errorf("producer %d: epoch %d after %d: %w", h.ProducerID, h.ProducerEpoch, p.epoch, kerr.InvalidProducerEpoch)
	case h.ProducerEpoch > p.epoch:
		if h.BaseSequence != 0 && p.epoch != noEpoch {
			return nil, fmt.Errorf("producer %d: new epoch %d begins with sequence %d: %w",
				h.ProducerID, h.ProducerEpoch, h.BaseSequence, kerr.OutOfOrderSequenceNumber)
		}
		return nil, nil
	}
	for i := range int(p.count) {
		if s := p.at(i); s.sequence == h.LastSequence() && s.delta == h.LastOffsetDelta {
			return s, nil
		}
	}
	if p.epoch == noEpoch {
		return nil, nil // as if the producer were unknown
	}
	if last := p.sent.sequence; h.BaseSequence != last+1 && !(last == math.MaxInt32 && h.BaseSequence == 0) {
		return nil, fmt.Errorf("producer %d: sequence %d after %d: %w", h.ProducerID, h.BaseSequence, last, kerr.OutOfOrderSequenceNumber)
	}
	return nil, nil
}

// at returns one of the batches, the latest first.
func (p *producer) at(i int) *sent {
	if i == 0 {
		return &p.sent
	}
	return &p.earlier[i-1]
}

// add notes a batch that was appended.
func (ps *producers) add(id int64, epoch int16, s sent) {
	p := ps.byID[id]
	if p == nil {
		if len(ps.byID) >= maxProducers {
			ps.remove(ps.oldest)
		}
		if ps.byID == nil {
			ps.byID = map[int64]*producer{}
		}
		p = &producer{id: id}
		ps.byID[id] = p
	} else {
		ps.unlink(p)
	}
	if p.epoch != epoch {
		p.epoch, p.count = epoch, 0 // the batches of another epoch do not count
	}
	if p.count > 0 {
		if p.earlier == nil {
			p.earlier = new([maxSent - 1]sent)
		}
		copy(p.earlier[1:], p.earlier[:])
		p.earlier[0] = p.sent
	}
	p.sent = s
	p.count = min(p.count+1, maxSent)
	ps.link(p)
}

// link puts a producer at the end of the list.
func (ps *producers) link(p *producer) {
	p.older, p.newer = ps.newest, nil
	if ps.newest == nil {
		ps.oldest = p
	} else {
		ps.newest.newer = p
	}
	ps.newest = p
}

func (ps *producers) unlink(p *producer) {
	if p.older == nil {
		ps.oldest = p.newer
	} else {
		p.older.newer = p.newer
	}
	if p.newer == nil {
		ps.newest = p.older
	} else {
		p.newer.older = p.older
	}
}

func (ps *producers) remove(p *producer) {
	ps.unlink(p)
	delete(ps.byID, p.id)
}

// forget removes the producers that have not appended since a time.
func (ps *producers) forget(before int64) {
	for ps.oldest != nil && ps.oldest.sent.time < before {
		ps.remove(ps.oldest)
	}
}

// Producers returns the idempotent producers of the last day, the one that was idle for the longest first.
func (l *Log) Producers() []Producer {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]Producer, 0, len(l.producers.byID))
	for p := l.producers.oldest; p != nil; p = p.newer {
		all = append(all, Producer{p.id, p.epoch, p.sent.sequence, p.sent.time})
	}
	return all
}

// encode appends each producer's ID, epoch, number of batches, and batches with the latest last.
func (ps *producers) encode(b []byte) []byte {
	b = appendInts(b, int64(len(ps.byID)))
	for p := ps.oldest; p != nil; p = p.newer {
		b = appendInts(b, p.id, int64(p.epoch), int64(p.count))
		for i := int(p.count) - 1; i >= 0; i-- {
			s := p.at(i)
			b = appendInts(b, s.base, s.time, int64(s.sequence), int64(s.delta))
		}
	}
	return b
}

func (d *decoder) producers() (ps producers) {
	for range d.count(3 * 8) {
		id, epoch, count := d.int64(), d.int64(), d.int64()
		if count < 1 || count > maxSent || epoch != int64(int16(epoch)) || ps.byID[id] != nil || len(ps.byID) == maxProducers {
			d.fail()
		}
		for range count {
			s := sent{base: d.int64(), time: d.int64()}
			sequence, delta := d.int64(), d.int64()
			s.sequence, s.delta = int32(sequence), int32(delta)
			if int64(s.sequence) != sequence || int64(s.delta) != delta {
				d.fail()
			}
			if d.bad {
				return producers{}
			}
			ps.add(id, int16(epoch), s)
		}
	}
	return ps
}
