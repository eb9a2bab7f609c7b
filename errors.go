package diaspora

import (
	"errors"
	"fmt"
	"strings"

	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/terminal"
	"github.com/diaspora-streams/diaspora/internal/trust"
)

// The conditions that a caller can act on. Test for them with [errors.Is].
var (
	// ErrInvalid says that the request is wrong. Repeating it does not help.
	ErrInvalid = errors.New("invalid")
	// ErrUnauthenticated says that no credential is available, that the token was rejected, or that
	// the token was not sent because it does not belong to that host. Retrying does not help: a
	// person has to act, for instance by logging in.
	ErrUnauthenticated = errors.New("not authenticated")
	// ErrPermission says that the signed-in identity may not do this.
	ErrPermission = errors.New("permission denied")
	// ErrNotFound says that the topic, or other object, does not exist.
	ErrNotFound = errors.New("not found")
	// ErrConflict says that the object is in use or belongs to somebody else: a topic, a
	// consumer group, the name of a key or a spool directory, for instance.
	ErrConflict = errors.New("conflict")
	// ErrUnavailable says that the cluster, the ACL endpoint or Globus Auth is unreachable. The
	// same call may succeed later.
	ErrUnavailable = errors.New("unavailable")
	// ErrClosed says that the Logger or Consumer was closed.
	ErrClosed = errors.New("closed")
	// ErrNoProfile says that no fabric is configured: no profile is stored, and no environment
	// variable names one.
	ErrNoProfile = errors.New("no fabric is configured")
	// ErrSpoolFull says that the spool cannot take more events: it has reached its maximum size, or
	// the disk is full.
	ErrSpoolFull = errors.New("the spool is full")
	// ErrSpoolFailed says that the spool's disk cannot be written or read, or that events in it are
	// damaged.
	ErrSpoolFailed = errors.New("the spool failed")
)

// sentinels maps the Kafka client's conditions to this package's.
var sentinels = map[kafka.Condition]error{
	kafka.Invalid:         ErrInvalid,
	kafka.Unauthenticated: ErrUnauthenticated,
	kafka.Permission:      ErrPermission,
	kafka.NotFound:        ErrNotFound,
	kafka.Conflict:        ErrConflict,
	kafka.Unavailable:     ErrUnavailable,
}

// Error is a condition, the reason for it, and advice on what to do next. Use [errors.As] to get
// its fields, and [errors.Is] to test its condition.
//
// The text of an Error ends with the advice, so that programs that only print errors show the
// advice too.
type Error struct {
	Condition error  // one of the conditions above, or nil if none applies
	Reason    string // what went wrong
	Hint      string // what to do next, as an imperative, or ""

	cause error // the underlying error, for errors.Is and errors.As, or nil
}

func (e *Error) Error() string {
	text := terminal.OneLine(e.Reason) // it may quote a server's response
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

// Hint returns the advice at the end of err's text, or "" if there is none. A program that shows
// the advice separately removes "; " and the hint from the end of the text.
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

// explain converts an error of the Kafka client or of Globus into an error of this package. It
// returns all others unchanged: this package's own errors, the error of a context that has ended,
// and errors that have none of the conditions.
func explain(err error) error {
	if err == nil {
		return nil
	}
	if f := (*Error)(nil); errors.As(err, &f) {
		return err
	}
	if kafka.ContextEnded(err) {
		return err
	}
	if reason, hint := trust.ExplainTLS(err); reason != "" {
		return &Error{Condition: ErrInvalid, Reason: reason, Hint: hint, cause: err}
	}
	hint := ""
	if t := (*trust.Error)(nil); errors.As(err, &t) {
		hint = t.Hint
	}
	condition, reason := kafka.Explain(err)
	if kafka.NotAdmitted(err) { // the gateway's message is "reason; hint"
		reason, hint, _ = strings.Cut(reason, "; ")
	}
	sentinel, ok := sentinels[condition]
	if !ok {
		return err
	}
	return &Error{Condition: sentinel, Reason: strings.TrimPrefix(reason, sentinel.Error()+": "), Hint: hint, cause: err}
}

// withHint adds a hint to err if err has the condition and no hint yet.
func withHint(err error, condition error, hint string) error {
	f, ok := err.(*Error)
	if !ok || f.Condition != condition || f.Hint != "" || hint == "" {
		return err
	}
	advised := *f
	advised.Hint = hint
	return &advised
}

// clip shortens text from an untrusted source before it goes into an error.
func clip(s string) string { return terminal.Clip(s, 200) }

// TopicError says which topic an operation failed on. Test its cause with [errors.Is].
type TopicError struct {
	Op    string // what was attempted: "claim", "log", "consume"
	Topic string
	Err   error
}

func (e *TopicError) Error() string { return fmt.Sprintf("%s topic %q: %v", e.Op, e.Topic, e.Err) }
func (e *TopicError) Unwrap() error { return e.Err }

// EventError says which events of a call to [Logger.Log] may not be acknowledged. All others are
// acknowledged.
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

// withConnError adds to err, the error of a context, why the client could not connect.
func withConnError(err error, conns *kafka.Connections) error {
	if why := conns.Err(); why != nil {
		return fmt.Errorf("%w (%v)", err, explain(why))
	}
	return err
}
