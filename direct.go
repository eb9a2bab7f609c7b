package diaspora

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora/internal/kafka"
)

// direct is the [sink] of a Logger without a spool. It hands events to the Kafka client,
// which batches, sends and retries them.
type direct struct {
	fabric *fabric
	client *kgo.Client
	conns  *kafka.Connections
	counts *counts
	budget budget
	ids    *ids
	times  timeFormat

	slab    atomic.Pointer[slab] // where the next event goes
	slabs   sync.Pool
	promise func(*kgo.Record, error) // finished

	closing chan struct{} // closed when close begins

	forgetting sync.Map       // topics that forget is at work on
	wg         sync.WaitGroup // of forget
}

const (
	// maxPendingBytes limits the memory of the events that are not acknowledged.
	maxPendingBytes = 64 << 20
	// pendingOverhead is what an event takes besides its own bytes.
	pendingOverhead = 512
)

func openDirect(ctx context.Context, cfg Config, counts *counts) (*direct, error) {
	f, err := cfg.resolve(ctx)
	if err != nil {
		return nil, err
	}
	d := &direct{
		fabric:  f,
		conns:   new(kafka.Connections),
		counts:  counts,
		ids:     newIDs(),
		closing: make(chan struct{}),
	}
	d.client, err = f.dial(ctx,
		kgo.WithHooks(d.conns),
		// The budget limits what is pending. The client's own limit would make a call wait
		// that cannot be ended without failing the events of other calls.
		kgo.MaxBufferedRecords(math.MaxInt32),
	)
	if err != nil {
		return nil, err
	}
	d.budget.max = maxPendingBytes
	d.budget.hurry = d.hurry
	d.promise = d.finished
	d.slabs.New = func() any { return newSlab(d.ids.prefix) }
	return d, nil
}

func (d *direct) log(ctx context.Context, events []Event) error {
	b := newBatch(len(events), d.conns.NextRefusal())
	for i := range events {
		// The Kafka client may still read the event when ctx has ended.
		event := clone(&events[i])
		if err := d.produce(ctx, &event, nil, b, i); err != nil {
			d.counts.failed.Add(1)
			b.finish(i, d.fabric.logError(events[i].Topic, err))
		}
	}
	defer d.hurry()()
	return b.wait(ctx, d, events)
}

func (d *direct) send(ctx context.Context, ev *Event, done func(Record, error)) error {
	return d.produce(ctx, ev, done, nil, 0)
}

// produce hands an event to the Kafka client, with either a callback or a place in a batch.
// After an error there is no callback.
func (d *direct) produce(ctx context.Context, ev *Event, done func(Record, error), b *batch, index int) error {
	size := min(eventBytes(ev)+pendingOverhead, int(d.budget.max/4))
	if err := d.budget.take(ctx, d.closing, int64(size)); err != nil {
		return err
	}
	select {
	case <-d.closing: // looked at after take, so that close waits for this event or we see it
		d.budget.giveBack(int64(size))
		return ErrClosed
	default:
	}
	p := d.newPending()
	p.done, p.batch, p.index, p.size = done, b, int32(index), int32(size)
	p.fill(d, ev)
	// Not the caller's context: the client would fail all events of a partition
	// with the first one whose context ends.
	d.client.Produce(context.Background(), &p.record, d.promise)
	return nil
}

// hurry makes the Kafka client send what it has, and what it is given until stop is
// called, without waiting for more. The client does that while a flush is going on.
func (d *direct) hurry() (stop func()) {
	if d.fabric.Linger == 0 {
		return func() {}
	}
	ctx, stop := context.WithCancel(context.Background())
	go func() { _ = d.client.Flush(ctx) }() // ends with ctx
	return stop
}

func (d *direct) flush(ctx context.Context) error {
	err := d.client.Flush(ctx)
	select {
	case <-d.closing:
		if err == nil {
			err = d.budget.wait(ctx, nil, 0) // for calls that were just handing an event over
		}
	default:
	}
	if err != nil {
		return fmt.Errorf("%d events are not acknowledged: %w", d.client.BufferedProduceRecords(), d.because(err))
	}
	return nil
}

func (d *direct) close(ctx context.Context) error {
	close(d.closing)
	err := d.flush(ctx)
	d.client.Close()
	d.budget.wait(context.Background(), nil, 0) // for the callbacks
	d.wg.Wait()
	return err
}

func (d *direct) stats() LoggerStats {
	return LoggerStats{
		Pending:      d.client.BufferedProduceRecords(),
		PendingBytes: d.budget.used(),
		Err:          explain(d.conns.Err()),
	}
}

// because adds to the error of a context why the client could not connect.
func (d *direct) because(err error) error { return because(err, d.conns) }

// forget makes the Kafka client look a topic up again. If a topic is deleted and another
// one of the same name is made, the client fails all events for it, because they could be
// meant for the other topic. Here, the name is what is meant.
func (d *direct) forget(topic string) {
	if _, busy := d.forgetting.LoadOrStore(topic, true); busy {
		return
	}
	d.wg.Go(func() { // the client waits for the callback that called us
		defer d.forgetting.Delete(topic)
		d.client.PurgeTopicsFromProducing(topic)
	})
}

// clone returns a copy of the event that shares no memory with it.
func clone(ev *Event) Event {
	c := *ev
	c.Key, c.Value = bytes.Clone(ev.Key), bytes.Clone(ev.Value)
	c.Headers = slices.Clone(ev.Headers)
	for i := range c.Headers {
		c.Headers[i].Value = bytes.Clone(c.Headers[i].Value)
	}
	return c
}

// pending is an event in flight: what the Kafka client needs of it, and whom to
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
	size    int32 // of it in the budget
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

func (d *direct) newPending() *pending {
	for {
		s := d.slab.Load()
		if s != nil {
			if i := s.next.Add(1) - 1; int(i) < len(s.events) {
				return &s.events[i]
			}
		}
		fresh := d.slabs.Get().(*slab)
		if !d.slab.CompareAndSwap(s, fresh) {
			d.slabs.Put(fresh)
		}
	}
}

// recycle gives p back. Nobody may look at it afterwards.
func (d *direct) recycle(p *pending) {
	p.reset()
	s := p.slab
	if s.finished++; int(s.finished) == len(s.events) {
		s.finished = 0
		s.next.Store(0)
		d.slabs.Put(s)
	}
}

// fill makes the record of an event.
func (p *pending) fill(d *direct, ev *Event) {
	now := time.Now()
	r := &p.record
	r.Topic = ev.Topic
	r.Key = ev.Key
	r.Value = ev.Value
	r.Timestamp = now
	d.times.putNow(p.text[:len(timeLayout)], now)
	n := d.ids.put(p.text[len(timeLayout)+idPrefixBytes:])
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
func (d *direct) finished(r *kgo.Record, err error) {
	p := r.Context.(*pending)
	if err == nil {
		d.counts.acknowledged.Add(1)
	} else {
		d.counts.failed.Add(1)
		if errors.Is(err, kerr.UnknownTopicID) {
			d.forget(r.Topic)
		}
		err = d.fabric.logError(r.Topic, err)
	}
	switch {
	case p.batch != nil:
		p.batch.finish(int(p.index), err)
	case p.done != nil:
		d.counts.call(p.done, p.logged(), err)
	}
	size := int64(p.size)
	d.recycle(p)
	d.budget.giveBack(size)
}

// batch gathers what becomes of the events of one Log.
type batch struct {
	done    chan struct{}   // closed when all are answered
	refused <-chan struct{} // closed when a login is refused after the call began

	mu   sync.Mutex // guards the fields below
	left int
	errs []error // errPending, nil once acknowledged, or why it failed
	one  [1]error
}

var errPending = errors.New("not acknowledged yet")

func newBatch(n int, refused <-chan struct{}) *batch {
	b := &batch{done: make(chan struct{}), refused: refused, left: n}
	b.errs = b.one[:]
	if n > 1 {
		b.errs = make([]error, n)
	}
	for i := range b.errs {
		b.errs[i] = errPending
	}
	return b
}

func (b *batch) finish(i int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.errs[i] = err
	if b.left--; b.left == 0 {
		close(b.done)
	}
}

// refusalGrace is how long Log waits for an answer after a login was refused:
// the client tries once more, and fails what it can by itself.
const refusalGrace = 300 * time.Millisecond

// wait returns what became of the events. What is unanswered when ctx ends, or
// when nobody is signed in any more, has failed with that.
func (b *batch) wait(ctx context.Context, d *direct, events []Event) error {
	var gaveUp error
	select {
	case <-b.done:
	case <-ctx.Done():
		gaveUp = d.because(ctx.Err())
	case <-b.refused:
		select {
		case <-b.done:
		case <-ctx.Done():
			gaveUp = d.because(ctx.Err())
		case <-time.After(refusalGrace):
			gaveUp = explain(d.conns.LastRefusal())
		}
	}
	return b.result(d, events, gaveUp)
}

func (b *batch) result(d *direct, events []Event, gaveUp error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var e *EventError
	for i, err := range b.errs {
		if err == nil {
			continue
		}
		if err == errPending {
			err = d.fabric.topicError("log", "write to", events[i].Topic, gaveUp)
		}
		if e == nil {
			e = &EventError{Total: len(events), Err: err}
		}
		e.Failed = append(e.Failed, i)
	}
	if e == nil {
		return nil
	}
	return e
}

// budget limits the memory of the events that are not acknowledged yet, in bytes. Every
// event takes from it and gives back, so those that take and those that give back write to
// different cache lines, and the former read the latter's only when the budget seems to be
// used up.
type budget struct {
	max   int64
	hurry func() (stop func()) // called when somebody begins to wait; may be nil

	_     [64]byte
	taken atomic.Int64 // bytes ever taken
	seen  atomic.Int64 // given, when somebody who takes last read it
	_     [64]byte
	given atomic.Int64 // bytes ever given back
	_     [64]byte

	waiting atomic.Int32
	mu      sync.Mutex    // guards freed
	freed   chan struct{} // closed, and set to nil, when some of the budget is free again
}

// used returns how many bytes are taken.
func (b *budget) used() int64 {
	given := b.given.Load() // first, so that the difference is never negative
	return b.taken.Load() - given
}

// low is the use below which those that wait are woken. They are not woken at each event
// that gives back its bytes: they would send batches of one event.
func (b *budget) low() int64 { return b.max - b.max/4 }

// take takes n bytes, at most a quarter of the budget. If they are not free, it waits until
// ctx ends or closing is closed.
func (b *budget) take(ctx context.Context, closing <-chan struct{}, n int64) error {
	if b.tryTake(n) {
		return nil
	}
	if b.hurry != nil {
		defer b.hurry()()
	}
	for !b.tryTake(n) {
		if err := b.wait(ctx, closing, b.low()); err != nil {
			return err
		}
	}
	return nil
}

func (b *budget) tryTake(n int64) bool {
	taken := b.taken.Add(n)
	if taken-b.seen.Load() <= b.max {
		return true
	}
	given := b.given.Load()
	b.seen.Store(given)
	if taken-given <= b.max {
		return true
	}
	b.taken.Add(-n)
	return false
}

// giveBack gives n bytes back.
func (b *budget) giveBack(n int64) {
	b.given.Add(n)
	if b.waiting.Load() == 0 || b.used() > b.low() {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.freed != nil {
		close(b.freed)
		b.freed = nil
	}
}

// wait returns when at most level bytes are taken; level is at most [budget.low].
func (b *budget) wait(ctx context.Context, closing <-chan struct{}, level int64) error {
	b.waiting.Add(1)
	defer b.waiting.Add(-1)
	for {
		b.mu.Lock()
		if b.freed == nil {
			b.freed = make(chan struct{})
		}
		freed := b.freed
		b.mu.Unlock()
		if b.used() <= level { // after announcing the wait, so that no giveBack is missed
			return nil
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return ctx.Err()
		case <-closing:
			return ErrClosed
		}
	}
}
