package diaspora

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Logger sends events to the cluster. Open one with [OpenLogger], share it, and
// close it at the end. Its methods may be called concurrently.
//
// Every event is written to all in-sync replicas, and written once even if a
// request has to be repeated. Events of one topic with the same key are stored in
// the order in which Log or Send accepted them.
type Logger struct {
	fabric *fabric
	client *kgo.Client
	conns  *connections
	room   room
	ids    *ids
	times  timeFormat
	pool   sync.Pool // of *pending

	// mu is held to read while an event is handed over, and to write to close.
	// pending counts the events that were handed over and not yet called back;
	// it is only added to under mu.
	mu      sync.RWMutex
	closed  bool
	pending sync.WaitGroup

	closing  chan struct{} // closed when Close begins
	closer   sync.Once
	closeErr error

	acknowledged atomic.Int64
	failed       atomic.Int64
}

// maxPendingBytes bounds the events that wait for their acknowledgement.
// pendingOverhead is what an event costs besides its own bytes.
const (
	maxPendingBytes = 96 << 20
	pendingOverhead = 512
)

// OpenLogger returns a Logger that is connected and signed in; see [Dial] for its
// errors. ctx bounds the opening only. The caller closes the Logger.
func OpenLogger(ctx context.Context, cfg Config) (*Logger, error) {
	f, err := cfg.resolve(ctx)
	if err != nil {
		return nil, fmt.Errorf("open logger: %w", err)
	}
	conns := newConnections()
	client, err := f.dial(ctx,
		kgo.WithHooks(conns),
		// The Logger bounds its events itself, where ctx can end the waiting
		// without failing the events of others.
		kgo.MaxBufferedRecords(math.MaxInt32),
	)
	if err != nil {
		return nil, fmt.Errorf("open logger: %w", err)
	}
	l := &Logger{
		fabric:  f,
		client:  client,
		conns:   conns,
		room:    room{max: maxPendingBytes},
		ids:     newIDs(),
		closing: make(chan struct{}),
	}
	l.pool.New = func() any {
		p := &pending{logger: l}
		p.promise = p.finish
		return p
	}
	return l, nil
}

// Log returns once the events are safe: acknowledged by the cluster. After a nil
// error they are not lost. Log does not keep the events' slices.
//
// ctx bounds the wait, and nothing else does: while the cluster is away Log waits
// for it. When ctx ends, events that are on their way are not called back; they
// may or may not arrive. If the token is refused meanwhile, Log returns at once.
//
// If an event cannot be logged as it is (see [Event]; too large; wrong header),
// none of the call's events is sent. Errors are an [*EventError] that says which
// events are not known to be acknowledged, around [ErrInvalid], [ErrPermission],
// [ErrNotFound], [ErrUnauthenticated], [ErrUnavailable], [ErrClosed] or ctx's error.
func (l *Logger) Log(ctx context.Context, events ...Event) error {
	if len(events) == 0 {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return allFailed(events, 0, &TopicError{"log", events[0].Topic, err})
	}
	for i := range events {
		if err := checkEvent(&events[i], l.fabric.maxEventBytes); err != nil {
			return allFailed(events, i, &TopicError{"log", events[i].Topic, err})
		}
	}
	b := newBatch(len(events), l.conns.nextRefusal())
	for i := range events {
		if err := l.send(ctx, &events[i], pendingCall{batch: b, index: i}); err != nil {
			l.failed.Add(1)
			b.finish(i, l.explain(events[i].Topic, err))
		}
	}
	return b.wait(ctx, l, events)
}

// allFailed reports that nothing of a call was sent, because of its event i.
func allFailed(events []Event, i int, err error) error {
	failed := []int{i}
	for j := range events {
		if j != i {
			failed = append(failed, j)
		}
	}
	if len(events) > 1 {
		err = fmt.Errorf("event %d: %w", i, err)
	}
	slices.Sort(failed)
	return &EventError{Failed: failed, Total: len(events), Err: err}
}

// Send hands one event over and returns; done is called once when it is
// acknowledged (err is nil: the event is safe) or has failed for good. Send does
// not keep the event's slices but to give them back to done in the [Record]. A
// nil done leaves failures to [Logger.Stats].
//
// Send waits only while too many events are unacknowledged, and no longer than
// until Close. Calls of done come one after another, from a goroutine of the
// Logger or from Send itself; done must be quick, and must not call Log, Flush or
// Close, nor Send without a goroutine. Errors are as those of [Logger.Log], as a
// [*TopicError]. While the cluster is away events wait without limit.
func (l *Logger) Send(event Event, done func(Record, error)) {
	err := checkEvent(&event, l.fabric.maxEventBytes)
	if err == nil {
		err = l.send(context.Background(), &event, pendingCall{done: done})
	}
	if err == nil {
		return
	}
	l.failed.Add(1)
	if done != nil {
		done(Record{Event: event, Partition: -1, Offset: -1}, l.explain(event.Topic, err))
	}
}

// Flush returns once every event that was handed over before is acknowledged or
// has failed, and its callback has returned. ctx bounds the wait.
func (l *Logger) Flush(ctx context.Context) error {
	if err := l.client.Flush(ctx); err != nil {
		return fmt.Errorf("flush: %d events are not acknowledged: %w", l.client.BufferedProduceRecords(), l.conns.because(err))
	}
	return nil
}

// Close flushes and disconnects. Calls of Log and Send from then on fail with
// [ErrClosed]. When ctx ends, the events that are still not acknowledged fail:
// their callbacks are told so, and so is the caller of Close. All callbacks have
// returned when Close does. Calling Close again does nothing and returns the same.
func (l *Logger) Close(ctx context.Context) error {
	l.closer.Do(func() {
		close(l.closing)
		l.mu.Lock() // no call is handing over an event any more, and none will
		l.closed = true
		l.mu.Unlock()
		if err := l.client.Flush(ctx); err != nil {
			l.closeErr = fmt.Errorf("close logger: %d events were not acknowledged: %w", l.client.BufferedProduceRecords(), l.conns.because(err))
		}
		l.client.Close()
		l.pending.Wait()
	})
	return l.closeErr
}

// LoggerStats is what a Logger has done so far.
type LoggerStats struct {
	Acknowledged int64 // events that the cluster has
	Failed       int64 // events that were refused or failed for good
	Pending      int64 // events that wait for their acknowledgement
	PendingBytes int64 // about how much memory they take

	// Err is why the last attempt to connect failed; nil if it succeeded.
	Err error
}

// Stats returns a snapshot.
func (l *Logger) Stats() LoggerStats {
	return LoggerStats{
		Acknowledged: l.acknowledged.Load(),
		Failed:       l.failed.Load(),
		Pending:      l.client.BufferedProduceRecords(),
		PendingBytes: l.room.used.Load(),
		Err:          explain(l.conns.Err()),
	}
}

// send hands a checked event to the Kafka client. After an error there is no callback.
func (l *Logger) send(ctx context.Context, ev *Event, call pendingCall) error {
	size := int64(min(eventBytes(ev)+pendingOverhead, maxPendingBytes/4))
	if err := l.room.enter(ctx, l.closing, size); err != nil {
		return err
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.closed {
		l.room.leave(size)
		return ErrClosed
	}
	l.pending.Add(1)
	p := l.pool.Get().(*pending)
	p.fill(ev, call, size)
	// No context: the client would fail all events of a partition with the
	// first one whose context ends.
	l.client.Produce(context.Background(), &p.record, p.promise)
	return nil
}

// explain says in words why an event of the topic was not logged.
func (l *Logger) explain(topic string, err error) error {
	if errors.Is(err, kgo.ErrClientClosed) {
		err = &fault{condition: ErrClosed, reason: "the logger was closed before the event was acknowledged", cause: err}
	}
	return l.fabric.topicError("log", "write to", topic, err)
}

// topicError says in words why something about a topic failed.
func (f *fabric) topicError(op, verb, topic string, err error) error {
	err = explain(err)
	claim := fmt.Sprintf("claim it with \"diaspora topic claim %s\"", clip(topic))
	if denied, ok := err.(*fault); ok && denied.condition == ErrPermission {
		err = &fault{
			condition: ErrPermission,
			reason:    fmt.Sprintf("%s may not %s it", f.who(), verb),
			hint:      claim + ", or ask its owner to share it",
			cause:     denied.cause,
		}
	}
	err = advise(err, ErrNotFound, claim)
	err = advise(err, ErrUnauthenticated, f.login)
	return &TopicError{op, clip(topic), err}
}

// pending is an event on its way. It is reused: the record, its headers, their
// bytes and the callback are one piece of memory, so that logging an event
// allocates nothing in the long run.
type pending struct {
	logger  *Logger
	record  kgo.Record
	headers []kgo.RecordHeader
	bytes   []byte // key, value, ID and time
	size    int64  // what it takes of the room
	at      time.Time
	event   Event // as the caller gave it, for the callback
	call    pendingCall
	promise func(*kgo.Record, error) // p.finish, made once
}

// pendingCall says whom to tell: a callback, or a place in a batch.
type pendingCall struct {
	done  func(Record, error)
	batch *batch
	index int
}

// maxPooledBytes keeps a few large events from growing the whole pool.
const maxPooledBytes = 16 << 10

// fill copies the event, so that its slices are the caller's again.
func (p *pending) fill(ev *Event, call pendingCall, size int64) {
	now := time.Now()
	at := ev.Time
	if at.IsZero() {
		at = now.Truncate(time.Microsecond)
	}
	b := append(p.bytes[:0], ev.Key...)
	b = append(b, ev.Value...)
	valueEnd := len(b)
	if ev.ID != "" {
		b = append(b, ev.ID...)
	} else {
		b = p.logger.ids.append(b)
	}
	idEnd := len(b)
	b = p.logger.times.append(b, at)
	timeEnd := len(b)
	for i := range ev.Headers {
		b = append(b, ev.Headers[i].Value...)
	}

	h := append(p.headers[:0],
		kgo.RecordHeader{Key: HeaderID, Value: b[valueEnd:idEnd:idEnd]},
		kgo.RecordHeader{Key: HeaderTime, Value: b[idEnd:timeEnd:timeEnd]})
	at0 := timeEnd
	for i := range ev.Headers {
		end := at0 + len(ev.Headers[i].Value)
		h = append(h, kgo.RecordHeader{Key: ev.Headers[i].Key, Value: b[at0:end:end]})
		at0 = end
	}
	p.bytes, p.headers, p.size, p.at, p.call = b, h, size, at, call
	p.record = kgo.Record{Topic: ev.Topic, Timestamp: now, Headers: h}
	if ev.Key != nil {
		p.record.Key = b[:len(ev.Key):len(ev.Key)]
	}
	if ev.Value != nil {
		p.record.Value = b[len(ev.Key):valueEnd:valueEnd]
	}
	if call.done != nil {
		p.event = *ev
	}
}

// finish is the Kafka client's callback. The client is done with the record.
func (p *pending) finish(r *kgo.Record, err error) {
	l := p.logger
	if err == nil {
		l.acknowledged.Add(1)
	} else {
		l.failed.Add(1)
		err = l.explain(r.Topic, err)
	}
	switch call := p.call; {
	case call.batch != nil:
		call.batch.finish(call.index, err)
	case call.done != nil:
		event := p.event
		event.ID, event.Time = string(p.headers[0].Value), p.at
		call.done(Record{Event: event, Partition: r.Partition, Offset: r.Offset}, err)
	}
	l.room.leave(p.size)
	p.event, p.call = Event{}, pendingCall{}
	if cap(p.bytes) <= maxPooledBytes {
		l.pool.Put(p)
	}
	l.pending.Done()
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
func (b *batch) wait(ctx context.Context, l *Logger, events []Event) error {
	var gaveUp error
	select {
	case <-b.done:
	case <-ctx.Done():
		gaveUp = l.conns.because(ctx.Err())
	case <-b.refused:
		select {
		case <-b.done:
		case <-ctx.Done():
			gaveUp = l.conns.because(ctx.Err())
		case <-time.After(refusalGrace):
			gaveUp = explain(l.conns.lastRefusal())
		}
	}
	return b.result(l, events, gaveUp)
}

func (b *batch) result(l *Logger, events []Event, gaveUp error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var e *EventError
	for i, err := range b.errs {
		if err == nil {
			continue
		}
		if err == errPending {
			err = l.fabric.topicError("log", "write to", events[i].Topic, gaveUp)
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
