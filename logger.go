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

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora/internal/kafka"
)

// Logger sends events to the cluster. Open one with [OpenLogger], share it, and
// close it at the end. Its methods may be called concurrently.
//
// Every event is written to all in-sync replicas, and written once even if a
// request has to be repeated. Events of one topic with the same key are stored in
// the order in which Log or Send accepted them.
type Logger struct {
	fabric  *fabric
	client  *kgo.Client // nil with a spool: the drain has its own
	spooled *spooled    // nil without a spool
	conns   *connections
	room    room
	ids     *ids
	times   timeFormat
	slab    atomic.Pointer[slab] // where the next event goes
	slabs   sync.Pool
	promise func(*kgo.Record, error) // finished
	calling sync.Mutex               // held while a callback of Send runs

	closed  atomic.Bool
	closing chan struct{} // closed when Close begins

	closer   sync.Once
	closeErr error

	forgetting sync.Map       // the topics at hand in forget
	wg         sync.WaitGroup // of forget

	acknowledged atomic.Int64
	failed       atomic.Int64
}

// maxPendingBytes bounds the events that wait for their acknowledgement.
// pendingOverhead is what an event costs besides its own bytes.
const (
	maxPendingBytes = 64 << 20
	pendingOverhead = 512
)

// OpenLogger returns a Logger that is connected and signed in; see [Dial] for its
// errors. ctx bounds the opening only. The caller closes the Logger.
//
// With [Config.SpoolDir] it needs no cluster: what is in the spool, and what is logged,
// is sent as soon as the cluster can be reached. If a Key, or a login from the environment, has been
// revoked, the events wait, and [Logger.Stats] says why. It fails if the spool cannot be
// opened: another Logger has it (ErrConflict), events of another identity wait in it
// (ErrConflict), others may read it (ErrInvalid), or the disk fails ([ErrSpoolFailed]).
func OpenLogger(ctx context.Context, cfg Config) (*Logger, error) {
	if cfg.SpoolDir != "" {
		l, err := openSpooled(ctx, cfg)
		if err != nil {
			return nil, fmt.Errorf("open logger: %w", err)
		}
		return l, nil
	}
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
	l := newLogger(f, conns)
	l.client = client
	l.room.hurry = l.hurry
	l.promise = l.finished
	l.slabs.New = func() any { return newSlab(l.ids.prefix) }
	return l, nil
}

func newLogger(f *fabric, conns *connections) *Logger {
	return &Logger{
		fabric:  f,
		conns:   conns,
		room:    room{max: maxPendingBytes},
		ids:     newIDs(),
		closing: make(chan struct{}),
	}
}

// Log returns once the events are safe: acknowledged by the cluster or, with a
// spool, durable on local disk. After a nil error they are not lost. Log does not
// keep the events' slices.
//
// ctx bounds the wait, and nothing else does: while the cluster is away, or the spool
// is full under [SpoolBlock], Log waits for it. When ctx ends, events that are on their way are not called back; they
// may or may not arrive. If the token is refused meanwhile, Log returns at once.
//
// If an event cannot be logged as it is (see [Event]; too large; wrong header),
// none of the call's events is sent. Errors are an [*EventError] that says which
// events are not known to be acknowledged, around [ErrInvalid], [ErrPermission],
// [ErrNotFound], [ErrUnauthenticated], [ErrUnavailable], [ErrClosed] or ctx's error;
// with a spool around ErrInvalid, [ErrSpoolFull], [ErrSpoolFailed], ErrClosed or ctx's.
func (l *Logger) Log(ctx context.Context, events ...Event) error {
	if len(events) == 0 {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return l.allFailed(events, 0, err)
	}
	for i := range events {
		if err := checkEvent(&events[i], l.fabric.maxEventBytes); err != nil {
			return l.allFailed(events, i, err)
		}
	}
	if l.spooled != nil {
		return l.spool(ctx, events)
	}
	b := newBatch(len(events), l.conns.nextRefusal())
	for i := range events {
		// The Kafka client may still read the event when ctx has ended.
		event := clone(&events[i])
		if err := l.send(ctx, &event, nil, b, i); err != nil {
			l.failed.Add(1)
			b.finish(i, l.explain(events[i].Topic, err))
		}
	}
	defer l.hurry()()
	return b.wait(ctx, l, events)
}

// hurry has the Kafka client send what it has, and what it is given until stop is
// called, without waiting for more: it does that while somebody flushes.
func (l *Logger) hurry() (stop func()) {
	if l.fabric.Linger == 0 {
		return func() {}
	}
	ctx, stop := context.WithCancel(context.Background())
	go func() { _ = l.client.Flush(ctx) }() // it ends with ctx
	return stop
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

// allFailed reports that nothing of a call was sent, because of its event i, or -1 if
// it is not one event's fault.
func (l *Logger) allFailed(events []Event, i int, cause error) error {
	l.failed.Add(int64(len(events)))
	e := &EventError{Total: len(events), Err: &TopicError{"log", clip(events[max(i, 0)].Topic), cause}}
	if len(events) > 1 && i >= 0 {
		e.Err = fmt.Errorf("event %d: %w", i, e.Err)
	}
	for j := range events {
		e.Failed = append(e.Failed, j)
	}
	return e
}

// Send hands one event over and returns; done is called once when it is
// acknowledged (err is nil: the event is safe) or has failed for good. A nil done
// leaves failures to [Logger.Stats].
//
// The event's slices are the Logger's until done is called, which gives them back
// in its [Record]. Until then they must not be changed: who reads lines with a
// bufio.Scanner has to copy them.
//
// With a spool done is called when the event is durable on disk. The Record then has
// the event, with the ID and time that it will have in the cluster, but no place yet:
// Partition and Offset are -1.
//
// Send waits only while too many events are unacknowledged, and no longer than
// until Close. Calls of done come one after another, from a goroutine of the
// Logger or from Send itself; done must be quick, and must not call Log, Flush or
// Close, nor Send without a goroutine. Errors are as those of [Logger.Log], as a
// [*TopicError]. While the cluster is away events wait without limit.
func (l *Logger) Send(event Event, done func(Record, error)) {
	err := checkEvent(&event, l.fabric.maxEventBytes)
	if err == nil {
		err = l.send(context.Background(), &event, done, nil, 0)
	}
	if err == nil {
		return
	}
	l.failed.Add(1)
	if done != nil {
		l.calling.Lock()
		defer l.calling.Unlock()
		done(Record{Event: event, Partition: -1, Offset: -1}, l.explain(event.Topic, err))
	}
}

// Flush returns once every event that was handed over before is acknowledged or
// has failed, and its callback has returned. With a spool it waits for the cluster's
// acknowledgement, too, or until the event was set aside; that the disk has it, a
// callback tells. ctx bounds the wait.
func (l *Logger) Flush(ctx context.Context) error {
	if err := l.flush(ctx); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	return nil
}

func (l *Logger) flush(ctx context.Context) error {
	if l.spooled != nil {
		return l.flushSpool(ctx)
	}
	err := l.client.Flush(ctx)
	if err == nil && l.closed.Load() {
		err = l.room.wait(ctx, nil, 0) // for who was just about to hand an event over
	}
	if err != nil {
		return fmt.Errorf("%d events are not acknowledged: %w", l.client.BufferedProduceRecords(), l.conns.because(err))
	}
	return nil
}

// Close flushes and disconnects. With a spool, what the cluster has not acknowledged when
// ctx ends stays there for the next Logger, which is no error; and Close does not wait
// for what cannot be: it ends when nobody is let in, when all that waits is held, or
// when the cluster has acknowledged nothing for [Config.ClosePatience]. [Logger.Stats] says what is left.
// If the login is being renewed, Close waits for that until ctx ends, 45 s at most.
//
// Calls of Log and Send from then on fail with
// [ErrClosed]. When ctx ends, the events that are still not acknowledged fail:
// their callbacks are told so, and so is the caller of Close. All callbacks have
// returned when Close does. Calling Close again does nothing and returns the same.
func (l *Logger) Close(ctx context.Context) error {
	l.closer.Do(func() {
		defer settle(ctx, l.fabric.TokenSource)
		l.closed.Store(true)
		close(l.closing)
		if l.spooled != nil {
			l.closeErr = l.closeSpool(ctx)
			return
		}
		if err := l.flush(ctx); err != nil {
			l.closeErr = fmt.Errorf("close logger: %w", err)
		}
		l.client.Close()
		l.room.wait(context.Background(), nil, 0) // for the callbacks
		l.wg.Wait()
	})
	return l.closeErr
}

// LoggerStats is what a Logger has done so far.
type LoggerStats struct {
	Acknowledged int64 // events that the cluster has; with a spool, also of those that an earlier Logger left there
	Failed       int64 // events that were refused or failed for good
	Pending      int64 // events that wait for their acknowledgement
	PendingBytes int64 // about how much memory they take

	// Err is why the last attempt to connect failed, or that none has ended yet; nil if it
	// succeeded.
	Err error

	// Spool is what waits on disk. Zero without [Config.SpoolDir].
	Spool SpoolStats
}

// Stats returns a snapshot.
func (l *Logger) Stats() LoggerStats {
	if l.spooled != nil {
		return l.spoolStats()
	}
	return LoggerStats{
		Acknowledged: l.acknowledged.Load(),
		Failed:       l.failed.Load(),
		Pending:      l.client.BufferedProduceRecords(),
		PendingBytes: l.room.used(),
		Err:          explain(l.conns.Err()),
	}
}

// send hands a checked event to the Kafka client. After an error there is no callback.
func (l *Logger) send(ctx context.Context, ev *Event, done func(Record, error), b *batch, index int) error {
	size := min(eventBytes(ev)+pendingOverhead, int(l.room.max/4))
	if err := l.room.enter(ctx, l.closing, int64(size)); err != nil {
		return err
	}
	if l.closed.Load() { // after entering, so that Close waits for us or we see it
		l.room.leave(int64(size))
		return ErrClosed
	}
	if l.spooled != nil {
		l.spoolAsync(ev, done, int64(size))
		return nil
	}
	p := l.newPending()
	p.done, p.batch, p.index, p.size = done, b, int32(index), int32(size)
	p.fill(l, ev)
	// Not the caller's context: the client would fail all events of a partition
	// with the first one whose context ends.
	l.client.Produce(context.Background(), &p.record, l.promise)
	return nil
}

// forget makes the Kafka client look a topic up anew. When a topic was deleted and
// another made of its name, the client for ever fails what is sent there, lest it
// reach another topic than was meant; here the name is what is meant.
func (l *Logger) forget(topic string) {
	if _, busy := l.forgetting.LoadOrStore(topic, true); busy {
		return
	}
	l.wg.Go(func() { // the client waits for the callback, in which we are
		defer l.forgetting.Delete(topic)
		l.client.PurgeTopicsFromProducing(topic)
	})
}

// forgotten is what the Kafka client says of events that it held when it was told
// to forget their topic. It does not export the error.
const forgotten = "topic purged while buffered"

// explain says in words why an event of the topic was not logged.
func (l *Logger) explain(topic string, err error) error {
	switch {
	case errors.Is(err, kgo.ErrClientClosed):
		err = &Error{Condition: ErrClosed, Reason: "the logger was closed before the event was acknowledged", cause: err}
	case errors.Is(err, kerr.UnknownTopicID), err.Error() == forgotten:
		err = &Error{Condition: ErrNotFound, Reason: "the topic was deleted before the event was acknowledged", cause: err}
	}
	return l.fabric.topicError("log", "write to", topic, err)
}

// topicError says in words why something about a topic failed.
func (f *fabric) topicError(op, verb, topic string, err error) error {
	err = explain(err)
	claim := fmt.Sprintf("claim it with \"diaspora topic claim %s\"", clip(topic))
	access := claim + " if nobody has, or ask its owner for an access key"
	if f.Key != (Key{}) {
		claim += " where you are logged in"
		access = "use an access key that may, or " + claim
	}
	if denied, ok := err.(*Error); ok && denied.Condition == ErrPermission && !kafka.NotAdmitted(err) {
		err = &Error{
			Condition: ErrPermission,
			Reason:    fmt.Sprintf("%s may not %s it", f.who(), verb),
			Hint:      access,
			cause:     denied.cause,
		}
	}
	err = advise(err, ErrNotFound, claim)
	err = advise(err, ErrUnauthenticated, f.login)
	return &TopicError{op, clip(topic), err}
}
