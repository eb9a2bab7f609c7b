package diaspora

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// pending is an event on its way: what the Kafka client needs of it, and whom to
// tell, in one piece of memory. It is its record's context, by which the client's
// callback finds it again; as such it never ends.
//
// It is made once and used for one event after another. What is the same for all
// of them stays in place.
type pending struct {
	record  kgo.Record
	headers [2]kgo.RecordHeader
	text    [len(timeLayout) + idPrefixBytes + maxCounterBytes]byte // the time and the ID
	done    func(Record, error)
	batch   *batch
	index   int32 // in batch
	size    int32 // what it takes of the room
	slab    *slab // of which it is a part
	special bool  // there is more to it than a key and a value
}

func (*pending) Deadline() (time.Time, bool) { return time.Time{}, false }
func (*pending) Done() <-chan struct{}       { return nil }
func (*pending) Err() error                  { return nil }
func (*pending) Value(any) any               { return nil }

// slab holds some events that were logged one after another. It is used again when
// all of them are finished: by that, logging an event allocates nothing.
type slab struct {
	next     atomic.Int32 // events handed out
	finished int32        // events done with; the client calls back one at a time
	events   [32]pending
}

func newSlab(prefix string) *slab {
	s := new(slab)
	for i := range s.events {
		p := &s.events[i]
		copy(p.text[len(timeLayout):], prefix)
		p.record.Context = p
		p.slab = s
		p.reset()
	}
	return s
}

// reset forgets the event, and takes the headers back to where most events have them.
// The time, the same for many events, goes before the ID, which differs at its end:
// so most of both compresses as one repetition.
func (p *pending) reset() {
	p.record.Key, p.record.Value = nil, nil
	p.done, p.batch = nil, nil
	if p.special || p.record.Headers == nil {
		p.special = false
		p.headers[0] = kgo.RecordHeader{Key: HeaderTime, Value: p.text[:len(timeLayout):len(timeLayout)]}
		p.headers[1] = kgo.RecordHeader{Key: HeaderID, Value: p.text[len(timeLayout):]}
		p.record.Headers = p.headers[:]
	}
}

func (l *Logger) newPending() *pending {
	for {
		s := l.slab.Load()
		if s != nil {
			if i := s.next.Add(1) - 1; int(i) < len(s.events) {
				return &s.events[i]
			}
		}
		fresh := l.slabs.Get().(*slab)
		if !l.slab.CompareAndSwap(s, fresh) {
			l.slabs.Put(fresh)
		}
	}
}

// recycle gives p back. Nobody may look at it afterwards.
func (l *Logger) recycle(p *pending) {
	p.reset()
	s := p.slab
	if s.finished++; int(s.finished) == len(s.events) {
		s.finished = 0
		s.next.Store(0)
		l.slabs.Put(s)
	}
}

// fill makes the record of an event.
func (p *pending) fill(l *Logger, ev *Event) {
	now := time.Now()
	r := &p.record
	r.Topic = ev.Topic
	r.Key = ev.Key
	r.Value = ev.Value
	r.Timestamp = now
	l.times.putNow(p.text[:len(timeLayout)], now)
	n := l.ids.put(p.text[len(timeLayout)+idPrefixBytes:])
	p.headers[1].Value = p.text[len(timeLayout) : len(timeLayout)+idPrefixBytes+n]
	if ev.ID == "" && ev.Time.IsZero() && len(ev.Headers) == 0 {
		return
	}
	p.special = true
	if ev.ID != "" {
		p.headers[1].Value = []byte(ev.ID)
	}
	if !ev.Time.IsZero() {
		p.headers[0].Value = []byte(ev.Time.UTC().Format(time.RFC3339Nano))
	}
	for i := range ev.Headers {
		r.Headers = append(r.Headers, kgo.RecordHeader(ev.Headers[i]))
	}
}

// logged is the event as it is now in the cluster, or is not.
func (p *pending) logged() Record {
	r := &p.record
	if p.special {
		out := record(r)
		out.Stored = time.Time{}
		return out
	}
	return Record{
		Event:     Event{Topic: r.Topic, Key: r.Key, Value: r.Value, Time: r.Timestamp, ID: string(p.headers[1].Value)},
		Partition: r.Partition,
		Offset:    r.Offset,
	}
}

// finished is the Kafka client's callback. The client is done with the record.
func (l *Logger) finished(r *kgo.Record, err error) {
	p := r.Context.(*pending)
	if err == nil {
		l.acknowledged.Add(1)
	} else {
		l.failed.Add(1)
		if errors.Is(err, kerr.UnknownTopicID) {
			l.forget(r.Topic)
		}
		err = l.explain(r.Topic, err)
	}
	switch {
	case p.batch != nil:
		p.batch.finish(int(p.index), err)
	case p.done != nil:
		l.calling.Lock()
		p.done(p.logged(), err)
		l.calling.Unlock()
	}
	size := int64(p.size)
	l.recycle(p)
	l.room.leave(size)
}
