package diaspora

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// A program may use a [Handler] as its default logger, and that default logger as
// [Config.Diagnostics]. The Logger's own messages would then become events of the Logger, and
// logging those could cause more messages, without end. Two measures prevent that:
//
//   - The library's messages carry a mark, by which a Handler recognizes and drops them. The mark
//     is lost when a message is converted to text, as by package log. So [Config.Diagnostics] tells
//     users not to send messages back that way.
//   - The Logger's goroutines wait at most diagnosticsPatience until a message is handled. Package
//     log holds a lock while it writes. Without this limit, there could be a deadlock: a program
//     waits for memory in the Logger while it holds that lock, and the Logger waits for the lock to
//     log a message.

// diagnosticsMark is an attribute of all messages of the library. It is an empty group, because
// handlers omit those.
const diagnosticsMark = "diaspora.diagnostics"

const (
	diagnosticsPatience = 100 * time.Millisecond
	maxDiagnostics      = 256 // messages that may wait for the handler
)

// own returns a logger for the library's own messages, or nil if to is nil.
func own(to *slog.Logger) *slog.Logger {
	if to == nil {
		return nil
	}
	if _, done := to.Handler().(*ownHandler); done {
		return to
	}
	marked := to.Handler().WithAttrs([]slog.Attr{{Key: diagnosticsMark, Value: slog.GroupValue()}})
	return slog.New(&ownHandler{to: marked, queue: new(diagnosticsQueue)})
}

// marked reports whether attrs contain the mark of the library's own messages.
func marked(attrs []slog.Attr) bool {
	for i := range attrs {
		if attrs[i].Key == diagnosticsMark {
			return true
		}
	}
	return false
}

// ownHandler passes the library's own messages on through a queue.
type ownHandler struct {
	to    slog.Handler
	queue *diagnosticsQueue
}

func (h *ownHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.to.Enabled(ctx, level)
}

func (h *ownHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &ownHandler{h.to.WithAttrs(attrs), h.queue}
}

func (h *ownHandler) WithGroup(name string) slog.Handler {
	return &ownHandler{h.to.WithGroup(name), h.queue}
}

// Handle returns when the message has been handled, or after diagnosticsPatience.
func (h *ownHandler) Handle(ctx context.Context, r slog.Record) error {
	m := &diagnostic{to: h.to, ctx: context.WithoutCancel(ctx), record: r.Clone(), taken: make(chan struct{})}
	if !h.queue.put(m) {
		return nil
	}
	timer := time.NewTimer(diagnosticsPatience)
	defer timer.Stop()
	select {
	case <-m.taken:
	case <-timer.C:
		h.queue.stuck.Store(true)
	}
	return nil
}

type diagnostic struct {
	to     slog.Handler
	ctx    context.Context
	record slog.Record
	taken  chan struct{}
}

// diagnosticsQueue delivers messages in order. Its goroutine runs only while there are messages.
type diagnosticsQueue struct {
	stuck atomic.Bool // the handler did not finish in time; put does not wait until it has handled a message

	mu      sync.Mutex // guards the fields below
	waiting []*diagnostic
	lost    int64 // messages dropped because the queue was full
	running bool
}

// put queues m, or drops it if the queue is full. It reports whether the caller should wait for m.
func (q *diagnosticsQueue) put(m *diagnostic) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) >= maxDiagnostics {
		q.lost++
		return false
	}
	q.waiting = append(q.waiting, m)
	if !q.running {
		q.running = true
		go q.deliver()
	}
	return !q.stuck.Load()
}

func (q *diagnosticsQueue) next() *diagnostic {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) == 0 {
		q.running = false
		return nil
	}
	m := q.waiting[0]
	q.waiting = q.waiting[1:]
	if q.lost > 0 {
		m.record.AddAttrs(slog.Int64("lost", q.lost))
		q.lost = 0
	}
	return m
}

func (q *diagnosticsQueue) deliver() {
	for {
		m := q.next()
		if m == nil {
			return
		}
		m.to.Handle(m.ctx, m.record)
		q.stuck.Store(false)
		close(m.taken)
	}
}
