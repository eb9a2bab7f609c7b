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

// direct is the [sink] of a Logger without a spool. It passes events to the Kafka client, which
// batches, sends and retries them.
type direct struct {
	fabric *fabric
	client *kgo.Client
	conns  *kafka.Connections
	counts *counts
	budget budget
	ids    *ids
	times  timeFormat

	slab    atomic.Pointer[slab] // where the next event is stored
	slabs   sync.Pool
	promise func(*kgo.Record, error) // the method finished, bound once to save an allocation per event

	closing chan struct{} // closed when close begins

	forgetting sync.Map       // topics that forget is purging
	wg         sync.WaitGroup // for the goroutines of forget
}

const (
	// maxPendingBytes limits the memory of events that are not acknowledged.
	maxPendingBytes = 64 << 20
	// pendingOverhead is how many bytes an event takes in memory, in addition to its own.
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
	d.client, err = f.dial(ctx, kafka.Ping,
		kgo.WithHooks(d.conns),
		// The budget limits what is pending. If the client's own limit were reached, Produce would
		// block, and could be unblocked only by failing the events of other calls.
		kgo.MaxBufferedRecords(math.MaxInt32),
	)
	if err != nil {
		return nil, err
	}
	d.budget.max = maxPendingBytes
	d.budget.hurry = d.holdFlush
	d.promise = d.finished
	d.slabs.New = func() any { return newSlab(d.ids.prefix) }
	return d, nil
}

func (d *direct) log(ctx context.Context, events []Event) error {
	b := newBatch(len(events), d.conns.NextRefusal())
	for i := range events {
		// Copy the event: after ctx ends, Log returns, but the Kafka client may still read it.
		event := clone(&events[i])
		if err := d.produce(ctx, &event, nil, b, i); err != nil {
			d.counts.failed.Add(1)
			b.finish(i, d.fabric.logError(events[i].Topic, err))
		}
	}
	defer d.holdFlush()()
	return b.wait(ctx, d, events)
}

func (d *direct) send(ctx context.Context, ev Event, done func(Record, error)) error {
	return d.produce(ctx, &ev, done, nil, 0)
}

// produce passes an event to the Kafka client, with either a callback or an index in a batch. If it
// returns an error, there is no callback.
func (d *direct) produce(ctx context.Context, ev *Event, done func(Record, error), b *batch, index int) error {
	size := min(eventBytes(ev)+pendingOverhead, int(d.budget.max/4))
	if err := d.budget.take(ctx, d.closing, int64(size)); err != nil {
		return err
	}
	select {
	case <-d.closing: // checked after take: either close waits for this event's bytes, or we see that it has begun
		d.budget.release(int64(size))
		return ErrClosed
	default:
	}
	p := d.newPending()
	p.done, p.batch, p.index, p.size = done, b, int32(index), int32(size)
	p.fill(d, ev, time.Now())
	// Do not pass the caller's context: when one record's context ends, the client fails all
	// buffered events of its partition.
	d.client.Produce(context.Background(), &p.record, d.promise)
	return nil
}

// sendAll passes events to the Kafka client with one look at the clock and at the budget for many of them.
func (d *direct) sendAll(ctx context.Context, events []Event, r results) (int, error) {
	size, n := int64(0), 0
	for ; n < len(events) && (n == 0 || size < d.budget.max/16); n++ {
		size += int64(eventBytes(&events[n]) + pendingOverhead)
	}
	size = min(size, d.budget.max/4)
	if err := d.budget.take(ctx, d.closing, size); err != nil {
		return 0, err
	}
	select {
	case <-d.closing: // as in produce
		d.budget.release(size)
		return 0, ErrClosed
	default:
	}
	g := &group{results: r, left: n, size: size}
	now := time.Now()
	for i := range events[:n] {
		p := d.newPending()
		p.group, p.index = g, int32(i)
		p.fill(d, &events[i], now)
		d.client.Produce(context.Background(), &p.record, d.promise)
	}
	return n, nil
}

// holdFlush makes the Kafka client send at once what it has buffered, and what it gets until stop is
// called, instead of lingering. For that it keeps a Flush open, during which the client does not
// linger. A single short Flush would not be enough: events of a topic that the client does not know
// yet are put into batches only later, and would then linger.
func (d *direct) holdFlush() (stop func()) {
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
			err = d.budget.wait(ctx, nil, 0) // for calls that passed the check of closing just before close
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
	d.budget.wait(context.Background(), nil, 0) // until all callbacks have returned
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
func (d *direct) because(err error) error { return withConnError(err, d.conns) }

// forget makes the Kafka client look up a topic again. If a topic is deleted and created again
// under the same name, the client fails all events for it, since they could be meant for the old
// topic. Callers of this package name a topic by its name only, so events for the new one are fine.
func (d *direct) forget(topic string) {
	if _, busy := d.forgetting.LoadOrStore(topic, true); busy {
		return
	}
	d.wg.Go(func() { // in a goroutine: purging waits for the callback that called us
		defer d.forgetting.Delete(topic)
		d.client.PurgeTopicsFromProducing(topic)
	})
}

// clone returns a deep copy of the event.
func clone(ev *Event) Event {
	c := *ev
	c.Key, c.Value = bytes.Clone(ev.Key), bytes.Clone(ev.Value)
	c.Headers = slices.Clone(ev.Headers)
	for i := range c.Headers {
		c.Headers[i].Value = bytes.Clone(c.Headers[i].Value)
	}
	return c
}

// pending is an event in flight: its Kafka record and who gets the result, in one allocation. It is
// also the context of its record, so that the client's callback can find it. As a context it never
// ends.
//
// A pending is reused for one event after another. The parts that most events share stay in place.
type pending struct {
	record  kgo.Record
	headers [2]kgo.RecordHeader
	text    [len(timeLayout) + idPrefixBytes + maxCounterBytes]byte // the time, then the ID
	done    func(Record, error)
	batch   *batch // of log, or nil
	group   *group // of sendAll, or nil
	index   int32  // the event's index in batch or group
	size    int32  // bytes taken from the budget
	slab    *slab  // the slab that it is part of
	special bool   // has an ID, time or headers of its own
}

func (*pending) Deadline() (time.Time, bool) { return time.Time{}, false }
func (*pending) Done() <-chan struct{}       { return nil }
func (*pending) Err() error                  { return nil }
func (*pending) Value(any) any               { return nil }

// slab holds events that were logged one after another. It is reused when all of them are finished,
// so that logging an event allocates nothing.
//
// With a sync.Pool of single events, Send takes 11 % more CPU time for an event of 100 bytes. With a
// new value for each event it takes 17 % more if one goroutine sends, and 13 % more if eight do
// (median of 21 rounds on two cores).
type slab struct {
	next     atomic.Int32 // index of the next event to hand out
	finished int32        // events that are finished; needs no lock, because the client runs one callback at a time
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

// reset clears the event, and restores the headers if the event had its own. The time, which many
// events share, comes right before the ID, which differs only at its end. Compression thus finds
// most of both as one repetition.
func (p *pending) reset() {
	p.record.Key, p.record.Value = nil, nil
	p.done, p.batch, p.group = nil, nil, nil
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

// recycle returns p to its slab. It must not be used afterwards.
func (d *direct) recycle(p *pending) {
	p.reset()
	s := p.slab
	if s.finished++; int(s.finished) == len(s.events) {
		s.finished = 0
		s.next.Store(0)
		d.slabs.Put(s)
	}
}

// fill sets the record of p to the event, which is logged now.
func (p *pending) fill(d *direct, ev *Event, now time.Time) {
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

// logged returns the record for the callback, whether the event was acknowledged or failed.
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

// finished is the Kafka client's callback for a record that is acknowledged or has failed.
func (d *direct) finished(r *kgo.Record, err error) {
	p := r.Context.(*pending)
	if p.group != nil {
		d.finishedInGroup(p, err)
		return
	}
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
	d.budget.release(size)
}

// group counts the results of the events of one call of sendAll. It needs no lock, because the client
// runs one callback at a time.
type group struct {
	results
	left   int // events without a result
	stored int
	size   int64 // bytes taken from the budget
}

// finishedInGroup reports the events that are acknowledged together, and those that have failed one by one.
func (d *direct) finishedInGroup(p *pending, err error) {
	g, index := p.group, int(p.index)
	d.recycle(p)
	if err == nil {
		g.stored++
	} else {
		if errors.Is(err, kerr.UnknownTopicID) {
			d.forget(g.topic)
		}
		g.results.failed(index, err)
	}
	if g.left--; g.left > 0 {
		return
	}
	d.counts.acknowledged.Add(int64(g.stored))
	g.results.logged(g.stored)
	d.budget.release(g.size)
}

// batch collects the results of the events of one call of Log.
type batch struct {
	done    chan struct{}   // closed when all events have a result
	refused <-chan struct{} // closed when a login is rejected after the call began

	mu   sync.Mutex // guards the fields below
	left int
	errs []error // by event: errPending, nil if acknowledged, or why it failed
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

// refusalGrace is how long Log waits for results after a login is rejected. During this time the
// client tries once more, and fails the events that it can.
const refusalGrace = 300 * time.Millisecond

// wait returns the result of the call. Events without a result when ctx ends, or when a login is
// rejected, count as failed for that reason.
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

// budget limits the memory of events that are not acknowledged, in bytes. Every event takes from it
// and gives back. To avoid contention, takers and givers write to different cache lines, and takers
// read the givers' line only when the budget seems to be used up.
//
// With a semaphore.Weighted of golang.org/x/sync, Send takes 6 % more CPU time for an event of 100
// bytes if one goroutine sends, and 10 % more if eight do (median of 21 rounds on two cores).
type budget struct {
	max   int64
	hurry func() (stop func()) // called when a caller begins to wait; may be nil

	_     [64]byte
	taken atomic.Int64 // total bytes ever taken
	seen  atomic.Int64 // the value of given that a taker read last
	_     [64]byte
	given atomic.Int64 // total bytes ever given back
	_     [64]byte

	waiting atomic.Int32
	mu      sync.Mutex    // guards freed
	freed   chan struct{} // closed, and set to nil, when part of the budget is free again
}

// used returns how many bytes are in use.
func (b *budget) used() int64 {
	given := b.given.Load() // load given first, so that the difference is never negative
	return b.taken.Load() - given
}

// low is the level of use at which waiters are woken. Waking them whenever one event gives back its
// bytes would make the client send batches of one event.
func (b *budget) low() int64 { return b.max - b.max/4 }

// take takes n bytes, at most a quarter of the budget. If they are not available, it waits until
// they are, ctx ends, or closing is closed.
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

// release returns n bytes, and wakes waiters once use has dropped to [budget.low].
func (b *budget) release(n int64) {
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

// wait returns when at most level bytes are in use; level is at most [budget.low].
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
		if b.used() <= level { // after announcing the wait, so that no release is missed
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
