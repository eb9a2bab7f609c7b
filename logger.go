package diaspora

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora/internal/bulk"
	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/trust"
)

// Logger sends events to the cluster. Open one with [OpenLogger], share it, and close it at the
// end. Its methods may be called concurrently.
//
// Every event is written to all in-sync replicas, and is written only once even if the Kafka client
// has to retry a request. Events with the same topic and key are stored in the order in which Log
// or Send accepted them.
type Logger struct {
	fabric *fabric
	sink   sink
	counts *counts

	closer   sync.Once
	closeErr error
}

// sink is where a Logger's events go: directly to the cluster ([direct]), or first to a spool on
// disk ([spooled]). The Logger has already checked the events. After close has been called, log and
// send fail with ErrClosed, including calls that are waiting.
type sink interface {
	// log returns when the events are safe. Its error is an [*EventError].
	log(ctx context.Context, events []Event) error
	// send returns once the event is handed over. It waits only for memory, bounded by ctx. If it
	// returns an error, done is not called. The event is no pointer, because what is passed by
	// pointer to a method of an interface is allocated.
	send(ctx context.Context, ev Event, done func(Record, error)) error
	// sendAll hands over the first n of several events that have one topic, and does not keep the
	// slice. If it returns an error, that is the one of events[n], which gets no other result.
	// Otherwise n is at least 1.
	sendAll(ctx context.Context, events []Event, r results) (n int, err error)
	flush(ctx context.Context) error
	// close flushes for as long as waiting can help, and returns after the last callback.
	close(ctx context.Context) error
	// stats returns everything except the counts.
	stats() LoggerStats
}

// counts holds a Logger's counts, and makes its callbacks run one at a time.
type counts struct {
	acknowledged atomic.Int64
	failed       atomic.Int64
	calling      sync.Mutex // held while a callback of Send runs
}

func (c *counts) call(done func(Record, error), r Record, err error) {
	c.calling.Lock()
	defer c.calling.Unlock()
	done(r, err)
}

// OpenLogger returns a Logger that is connected and signed in; see [Dial] for its errors. ctx
// bounds only the opening. The caller closes the Logger.
//
// With [Config.SpoolDir], the cluster need not be reachable. The Logger sends the events in the
// spool, and new ones, as soon as it is. If a Key, or a login from the environment, has been
// revoked, events stay in the spool and [Logger.Stats] says why. OpenLogger fails if it cannot open
// the spool: another Logger uses it (ErrConflict), it holds pending events of another identity
// (ErrConflict), other users of the machine can read it (ErrInvalid), or the disk fails
// ([ErrSpoolFailed]).
func OpenLogger(ctx context.Context, cfg Config) (*Logger, error) {
	l := &Logger{counts: new(counts)}
	if cfg.SpoolDir != "" {
		s, err := openSpooled(ctx, cfg, l.counts)
		if err != nil {
			return nil, fmt.Errorf("open logger: %w", err)
		}
		l.sink, l.fabric = s, s.fabric.Load()
		return l, nil
	}
	d, err := openDirect(ctx, cfg, l.counts)
	if err != nil {
		return nil, fmt.Errorf("open logger: %w", err)
	}
	l.sink, l.fabric = d, d.fabric
	return l, nil
}

// Log returns once the events are safe: acknowledged by the cluster or, with a spool, durable on
// local disk. If it returns nil, the events are not lost. Log does not keep the events' slices.
//
// Only ctx bounds the wait: while the cluster is unreachable, or the spool is full under
// [SpoolBlock], Log waits. When ctx ends, events in flight are not recalled; they may still reach
// the cluster. Without a spool, Log returns at once if the login is rejected during the wait.
//
// If one event is invalid (see [Event]; or too large, or with a reserved header), none of the
// events is sent. Errors are an [*EventError], which says which events may not be acknowledged. It
// wraps [ErrInvalid], [ErrPermission], [ErrNotFound], [ErrUnauthenticated], [ErrUnavailable],
// [ErrClosed] or ctx's error. With a spool it wraps ErrInvalid, [ErrSpoolFull], [ErrSpoolFailed],
// ErrClosed or ctx's error.
func (l *Logger) Log(ctx context.Context, events ...Event) error {
	if len(events) == 0 {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return l.counts.allFailed(events, 0, err)
	}
	for i := range events {
		if err := checkEvent(&events[i], l.fabric.maxEventBytes); err != nil {
			return l.counts.allFailed(events, i, err)
		}
	}
	return l.sink.log(ctx, events)
}

// allFailed returns the error for a call of which no event was sent. The cause is event i, or no
// single event if i is -1.
func (c *counts) allFailed(events []Event, i int, cause error) error {
	c.failed.Add(int64(len(events)))
	e := &EventError{Total: len(events), Err: &TopicError{"log", clip(events[max(i, 0)].Topic), cause}}
	if len(events) > 1 && i >= 0 {
		e.Err = fmt.Errorf("event %d: %w", i, e.Err)
	}
	for j := range events {
		e.Failed = append(e.Failed, j)
	}
	return e
}

// Send hands over one event and returns. It calls done once: with a nil error when the event is
// acknowledged, and thus safe, or with the error when the event has failed for good. If done is
// nil, failures are only counted in [Logger.Stats].
//
// The Logger owns the event's slices until it calls done, which gets them back in its [Record].
// Until then, they must not be changed. For example, copy the lines that a bufio.Scanner returns,
// because it reuses its buffer.
//
// With a spool, done is called when the event is durable on disk. The Record then holds the event,
// with the ID and time that it will have in the cluster, but its Partition and Offset are -1.
//
// Send waits only while too many events are unacknowledged, and at most until Close. There is no
// limit on how long an accepted event waits while the cluster is unreachable. Errors are those of
// [Logger.Log], as a [*TopicError].
//
// Only one done runs at a time, in a goroutine of the Logger or inside Send itself. It must be
// quick. It must not call Log, Send, Flush or Close, since these can wait for events that are
// finished only after done returns. To log another event, start a goroutine.
func (l *Logger) Send(event Event, done func(Record, error)) {
	err := l.send(context.Background(), &event, done)
	if err == nil {
		return
	}
	l.counts.failed.Add(1)
	if done != nil {
		l.counts.call(done, Record{Event: event, Partition: -1, Offset: -1}, l.fabric.logError(event.Topic, err))
	}
}

// send checks an event and hands it over. If it returns an error, done is not called.
func (l *Logger) send(ctx context.Context, ev *Event, done func(Record, error)) error {
	if err := checkEvent(ev, l.fabric.maxEventBytes); err != nil {
		return err
	}
	return l.sink.send(ctx, *ev, done)
}

// Flush returns once every event that was handed over before the call is acknowledged or has
// failed, and its callback has returned. With a spool, too, it waits until the cluster has
// acknowledged each event, or the event was quarantined; the callbacks only say that events are on
// disk. ctx bounds the wait.
func (l *Logger) Flush(ctx context.Context) error {
	if err := l.sink.flush(ctx); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	return nil
}

// Close flushes and disconnects. Afterwards, Log and Send fail with [ErrClosed]. All callbacks have
// returned when Close returns. Calling Close again does nothing and returns the same error.
//
// Without a spool, events that are unacknowledged when ctx ends fail: their callbacks get an error,
// and Close returns one.
//
// With a spool, events that are unacknowledged when ctx ends stay there for the next Logger, which
// is not an error. Close returns earlier if waiting cannot help: the login is rejected, all pending
// events belong to topics that are held (see [SpoolStats]), or the cluster has acknowledged nothing
// for [Config.ClosePatience]. [Logger.Stats] says what is left.
//
// If the login is being renewed, Close also waits for that, at most 45 s and at most until ctx
// ends.
func (l *Logger) Close(ctx context.Context) error {
	l.closer.Do(func() {
		defer trust.Settle(ctx, l.fabric.TokenSource)
		if err := l.sink.close(ctx); err != nil {
			l.closeErr = fmt.Errorf("close logger: %w", err)
		}
	})
	return l.closeErr
}

// LoggerStats says what a Logger has done so far.
type LoggerStats struct {
	Acknowledged int64 // events that the cluster has acknowledged, including those that an earlier Logger left in the spool
	Failed       int64 // events that were rejected or failed for good
	Pending      int64 // events that are not acknowledged yet; 0 with a spool, which counts them in Spool.Events
	PendingBytes int64 // about how much memory is taken by events that are not acknowledged or, with a spool, not on disk yet

	// Err says why the last attempt to connect failed, or that no attempt has ended yet. It is nil
	// if the last attempt succeeded.
	Err error

	// Spool describes the events on disk. It is zero without [Config.SpoolDir].
	Spool SpoolStats
}

// Stats returns a snapshot.
func (l *Logger) Stats() LoggerStats {
	st := l.sink.stats()
	st.Acknowledged = l.counts.acknowledged.Load()
	st.Failed = l.counts.failed.Load()
	return st
}

// logError explains why an event for the topic was not logged.
func (f *fabric) logError(topic string, err error) error {
	switch {
	case errors.Is(err, kgo.ErrClientClosed):
		err = &Error{Condition: ErrClosed, Reason: "the logger was closed before the event was acknowledged", cause: err}
	case errors.Is(err, kerr.UnknownTopicID), kafka.Purged(err):
		err = &Error{Condition: ErrNotFound, Reason: "the topic was deleted before the event was acknowledged", cause: err}
	}
	return f.topicError("log", "write to", topic, err)
}

// topicError explains why an operation on a topic failed, and adds a hint.
func (f *fabric) topicError(op, verb, topic string, err error) error {
	err = explain(err)
	claim := fmt.Sprintf("claim it with \"diaspora topic claim %s\"", clip(topic))
	// The cluster does not say which of these it is: the topic may also be the caller's own, released or
	// denied by an operator.
	access := fmt.Sprintf(`it may be mistyped, not claimed, or not shared with you: "diaspora doctor --topic %s" says why`, clip(topic))
	switch {
	case ValidTopic(topic) != nil: // it may exist nevertheless, made with Kafka's own tools
		claim = "correct the name, because nobody can claim a topic of this name"
		access = claim
	case f.Key != (Key{}):
		claim += " where you are logged in"
		access = fmt.Sprintf(`use an access key that may; "diaspora doctor --topic %s" says why this one may not`, clip(topic))
	}
	if denied, ok := err.(*Error); ok && denied.Condition == ErrPermission && !kafka.NotAdmitted(err) {
		err = &Error{
			Condition: ErrPermission,
			Reason:    fmt.Sprintf("%s may not %s it", f.identityName(), verb),
			Hint:      access,
			cause:     denied.cause,
		}
	}
	err = withHint(err, ErrNotFound, claim)
	err = withHint(err, ErrUnauthenticated, f.login)
	return &TopicError{op, clip(topic), err}
}

func init() {
	bulk.Send = func(logger, events any, to bulk.Results) {
		logger.(*Logger).sendAll(events.([]Event), to)
	}
}

// sendAll is [bulk.Send].
func (l *Logger) sendAll(events []Event, to bulk.Results) {
	r := results{fabric: l.fabric, counts: l.counts, to: to}
	for len(events) > 0 {
		r.topic = events[0].Topic
		n, err := l.sound(events)
		if n > 0 {
			n, err = l.sink.sendAll(context.Background(), events[:n], r)
		}
		if err != nil {
			r.failed(n, err)
			n++
		}
		events, r.first = events[n:], r.first+n
	}
}

// sound returns how many events can be logged before one that cannot, and why that one cannot.
func (l *Logger) sound(events []Event) (int, error) {
	for i := range events {
		if err := checkEvent(&events[i], l.fabric.maxEventBytes); err != nil {
			return i, err
		}
	}
	return len(events), nil
}

// results says what became of events that were handed over together.
type results struct {
	fabric *fabric
	counts *counts
	to     bulk.Results
	topic  string // of all these events
	first  int    // the index of the first of them in the call of bulk.Send
}

// logged says that n more of the events are logged.
func (r *results) logged(n int) {
	r.counts.calling.Lock()
	defer r.counts.calling.Unlock()
	r.to.Logged(n)
}

// failed counts one of the events as failed, and says why.
func (r *results) failed(index int, err error) {
	r.counts.failed.Add(1)
	err = r.fabric.logError(r.topic, err)
	r.counts.calling.Lock()
	defer r.counts.calling.Unlock()
	r.to.Failed(r.first+index, err)
}
