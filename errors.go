package diaspora

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/trust"
)

// The conditions that a caller can act on. Every error of this package that has
// one of these causes says so to [errors.Is].
var (
	// ErrInvalid says that the request is wrong and will stay wrong.
	ErrInvalid = errors.New("invalid")
	// ErrUnauthenticated says that nobody is signed in, that the token was refused, or that it
	// was not sent since it does not belong there. Only a person can help.
	ErrUnauthenticated = errors.New("not authenticated")
	// ErrPermission says that who is signed in may not do this.
	ErrPermission = errors.New("permission denied")
	// ErrNotFound says that there is no such topic.
	ErrNotFound = errors.New("not found")
	// ErrConflict says that somebody else has the topic or the group.
	ErrConflict = errors.New("conflict")
	// ErrUnavailable says that the cluster, the ACL endpoint or Globus Auth
	// cannot be reached. The same call may succeed later.
	ErrUnavailable = errors.New("unavailable")
	// ErrClosed says that the Logger or Consumer was closed.
	ErrClosed = errors.New("closed")
	// ErrNoProfile says that nothing tells which fabric to use: no profile is
	// stored and no environment variable names one.
	ErrNoProfile = errors.New("no fabric is configured")
	// ErrSpoolFull says that the spool has no room: it has reached its size, or
	// the disk is full.
	ErrSpoolFull = errors.New("the spool is full")
	// ErrSpoolFailed says that the spool's disk cannot be written or read, or
	// that events in it are damaged.
	ErrSpoolFailed = errors.New("the spool failed")
)

// sentinels are the conditions of the Kafka client's errors.
var sentinels = map[kafka.Condition]error{
	kafka.Invalid:         ErrInvalid,
	kafka.Unauthenticated: ErrUnauthenticated,
	kafka.Permission:      ErrPermission,
	kafka.NotFound:        ErrNotFound,
	kafka.Conflict:        ErrConflict,
	kafka.Unavailable:     ErrUnavailable,
}

// Error is a condition with the reason for it and advice on what to do next. Get at
// it with [errors.As]; test its condition with [errors.Is].
//
// The text of an Error ends with the advice, so that a program that only prints its
// errors shows it as well.
type Error struct {
	Condition error  // one of the conditions above, or nil for an error that has none
	Reason    string // what went wrong
	Hint      string // what to do next, as an imperative, or ""

	cause     error // the error underneath, for errors.Is and errors.As, or nil
	transient bool  // the same HTTP request may succeed in a moment
}

func (e *Error) Error() string {
	text := tidy(e.Reason) // it may quote a server
	if e.Condition != nil {
		text = e.Condition.Error() + ": " + text
	}
	if e.Hint != "" {
		text += "; " + e.Hint
	}
	return text
}

func (e *Error) Unwrap() []error {
	errs := make([]error, 0, 2)
	for _, err := range []error{e.Condition, e.cause} {
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

// Hint returns the advice with which an error's text ends, or "". A program that shows
// the advice apart from the text removes "; " and the hint from the end of the text.
func Hint(err error) string {
	var e *Error
	hint := ""
	if t := (*trust.Error)(nil); errors.As(err, &e) {
		hint = e.Hint
	} else if errors.As(err, &t) {
		hint = t.Hint
	}
	if hint != "" && strings.HasSuffix(err.Error(), "; "+hint) {
		return hint
	}
	return ""
}

func invalid(format string, args ...any) error {
	return &Error{Condition: ErrInvalid, Reason: fmt.Sprintf(format, args...)}
}

// explain puts an error of the Kafka client, of Globus or of a context into the
// words of this package. What already speaks them is returned as it is.
func explain(err error) error {
	if err == nil {
		return nil
	}
	if f := (*Error)(nil); errors.As(err, &f) {
		return err
	}
	var network *net.OpError // it says of its own deadlines that they are a context's
	if !errors.As(err, &network) && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
		return err
	}
	hint := ""
	if t := (*trust.Error)(nil); errors.As(err, &t) {
		hint = t.Hint
	}
	condition, reason := kafka.Explain(err)
	if kafka.NotAdmitted(err) { // the gateway's sentence ends with what to do
		reason, hint, _ = strings.Cut(reason, "; ")
	}
	sentinel, ok := sentinels[condition]
	if !ok {
		return err
	}
	return &Error{Condition: sentinel, Reason: strings.TrimPrefix(reason, sentinel.Error()+": "), Hint: hint, cause: err}
}

// advise gives err, if it is a fault of the condition and has no advice yet, a hint.
func advise(err error, condition error, hint string) error {
	f, ok := err.(*Error)
	if !ok || f.Condition != condition || f.Hint != "" || hint == "" {
		return err
	}
	advised := *f
	advised.Hint = hint
	return &advised
}

// TopicError says which topic an operation failed on. Test its cause with [errors.Is].
type TopicError struct {
	Op    string // what was attempted: "claim", "log", "consume"
	Topic string
	Err   error
}

func (e *TopicError) Error() string { return fmt.Sprintf("%s topic %q: %v", e.Op, e.Topic, e.Err) }
func (e *TopicError) Unwrap() error { return e.Err }

// EventError says which events of a call to [Logger.Log] are not known to be
// acknowledged. All others are.
type EventError struct {
	Failed []int // indexes into the call's events, ascending
	Total  int   // how many events the call had
	Err    error // why the first of them failed
}

func (e *EventError) Error() string {
	if e.Total == 1 || len(e.Failed) == 0 {
		return e.Err.Error()
	}
	return fmt.Sprintf("%d of %d events failed, the first at index %d: %v", len(e.Failed), e.Total, e.Failed[0], e.Err)
}

func (e *EventError) Unwrap() error { return e.Err }

// because adds to err, that of a context, why a client could not connect.
func because(err error, conns *kafka.Connections) error {
	if why := conns.Err(); why != nil {
		return fmt.Errorf("%w (%v)", err, explain(why))
	}
	return err
}
