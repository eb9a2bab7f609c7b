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

// producers holds the last batches of each idempotent producer, to detect duplicates and gaps
// (KIP-98).
//
// The producers form a list in the order of their last append. The producer that has been idle
// longest is forgotten first, after a day or when there are too many. A batch from a forgotten
// producer is accepted with any sequence number, as in Apache Kafka.
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
	count        int8 // number of valid entries in sent and earlier
	sent         producedBatch
	earlier      *[maxSent - 1]producedBatch // batches before sent, latest first; nil until the second batch, because most producers never send one
	older, newer *producer
}

// producedBatch is a batch that a producer has appended.
type producedBatch struct {
	base     int64 // offset of the first record
	time     int64 // time of arrival, in milliseconds
	sequence int32 // of the last record
	delta    int32 // offset of the last record minus base
}

// check checks a batch. If it is a duplicate of one of the producer's last batches, check returns
// that one. If it returns nil and no error, the batch may be appended. The rules are those of
// Apache Kafka's ProducerAppendInfo.
func (ps *producers) check(h batch.Header) (*producedBatch, error) {
	p := ps.byID[h.ProducerID]
	if p == nil && h.ProducerEpoch < noEpoch { // Apache Kafka assumes noEpoch for an unknown producer
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

// at returns the i-th of the last batches; 0 is the latest.
func (p *producer) at(i int) *producedBatch {
	if i == 0 {
		return &p.sent
	}
	return &p.earlier[i-1]
}

// add records a batch that was appended.
func (ps *producers) add(id int64, epoch int16, s producedBatch) {
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
		p.epoch, p.count = epoch, 0 // batches of another epoch do not count
	}
	if p.count > 0 {
		if p.earlier == nil {
			p.earlier = new([maxSent - 1]producedBatch)
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

// expire removes the producers whose last append was before the given time.
func (ps *producers) expire(before int64) {
	for ps.oldest != nil && ps.oldest.sent.time < before {
		ps.remove(ps.oldest)
	}
}

// Producers returns the idempotent producers of the last day, the one that has been idle longest
// first.
func (l *Log) Producers() []Producer {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]Producer, 0, len(l.producers.byID))
	for p := l.producers.oldest; p != nil; p = p.newer {
		all = append(all, Producer{p.id, p.epoch, p.sent.sequence, p.sent.time})
	}
	return all
}

// encode appends each producer's ID, epoch, number of batches, and batches, the latest last.
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
			s := producedBatch{base: d.int64(), time: d.int64()}
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
