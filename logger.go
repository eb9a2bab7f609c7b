package diaspora

import (
	"context"
	"errors"
	"fmt"
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
	fabric *fabric
	sink   sink
	counts *counts

	closer   sync.Once
	closeErr error
}

// sink is where the events of a Logger go: to the cluster ([direct]), or to a spool on disk
// first ([spooled]). The events that it gets have been checked. Once close has been called,
// log and send fail with ErrClosed, also those calls that wait.
type sink interface {
	// log returns when the events are safe. Its error is an [*EventError].
	log(ctx context.Context, events []Event) error
	// send returns when the event has been handed over. It waits only for memory; ctx bounds
	// that. After an error, done is not called.
	send(ctx context.Context, ev *Event, done func(Record, error)) error
	flush(ctx context.Context) error
	// close flushes for as long as that makes sense, and returns when no callback is due.
	close(ctx context.Context) error
	// stats returns everything but the counts.
	stats() LoggerStats
}

// counts are the counts of a Logger, and its callbacks, of which one runs at a time.
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

// OpenLogger returns a Logger that is connected and signed in; see [Dial] for its
// errors. ctx bounds the opening only. The caller closes the Logger.
//
// With [Config.SpoolDir] it needs no cluster: what is in the spool, and what is logged,
// is sent as soon as the cluster can be reached. If a Key, or a login from the environment, has been
// revoked, the events wait, and [Logger.Stats] says why. It fails if the spool cannot be
// opened: another Logger has it (ErrConflict), events of another identity wait in it
// (ErrConflict), others may read it (ErrInvalid), or the disk fails ([ErrSpoolFailed]).
func OpenLogger(ctx context.Context, cfg Config) (*Logger, error) {
	l := &Logger{counts: new(counts)}
	if cfg.SpoolDir != "" {
		s, err := openSpooled(ctx, cfg, l.counts)
		if err != nil {
			return nil, fmt.Errorf("open logger: %w", err)
		}
		l.sink, l.fabric = s, s.fabric
		return l, nil
	}
	d, err := openDirect(ctx, cfg, l.counts)
	if err != nil {
		return nil, fmt.Errorf("open logger: %w", err)
	}
	l.sink, l.fabric = d, d.fabric
	return l, nil
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
		return l.counts.allFailed(events, 0, err)
	}
	for i := range events {
		if err := checkEvent(&events[i], l.fabric.maxEventBytes); err != nil {
			return l.counts.allFailed(events, i, err)
		}
	}
	return l.sink.log(ctx, events)
}

// allFailed reports that nothing of a call was sent, because of its event i, or -1 if
// it is not one event's fault.
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
	err := l.send(context.Background(), &event, done)
	if err == nil {
		return
	}
	l.counts.failed.Add(1)
	if done != nil {
		l.counts.call(done, Record{Event: event, Partition: -1, Offset: -1}, l.fabric.logError(event.Topic, err))
	}
}

// send checks an event and hands it over. After an error, done is not called.
func (l *Logger) send(ctx context.Context, ev *Event, done func(Record, error)) error {
	if err := checkEvent(ev, l.fabric.maxEventBytes); err != nil {
		return err
	}
	return l.sink.send(ctx, ev, done)
}

// Flush returns once every event that was handed over before is acknowledged or
// has failed, and its callback has returned. With a spool it waits for the cluster's
// acknowledgement, too, or until the event was set aside; that the disk has it, a
// callback tells. ctx bounds the wait.
func (l *Logger) Flush(ctx context.Context) error {
	if err := l.sink.flush(ctx); err != nil {
		return fmt.Errorf("flush: %w", err)
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
		if err := l.sink.close(ctx); err != nil {
			l.closeErr = fmt.Errorf("close logger: %w", err)
		}
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
	st := l.sink.stats()
	st.Acknowledged = l.counts.acknowledged.Load()
	st.Failed = l.counts.failed.Load()
	return st
}

// logError says in words why an event for the topic was not logged.
func (f *fabric) logError(topic string, err error) error {
	switch {
	case errors.Is(err, kgo.ErrClientClosed):
		err = &Error{Condition: ErrClosed, Reason: "the logger was closed before the event was acknowledged", cause: err}
	case errors.Is(err, kerr.UnknownTopicID), kafka.Purged(err):
		err = &Error{Condition: ErrNotFound, Reason: "the topic was deleted before the event was acknowledged", cause: err}
	}
	return f.topicError("log", "write to", topic, err)
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
