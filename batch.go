package diaspora

import (
	"context"
	"errors"
	"sync"
	"time"
)

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
