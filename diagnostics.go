package diaspora

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// A program may make a [Handler] its default logger, and the default logger its
// [Config.Diagnostics]. Then what the Logger says about itself would become events of the
// Logger, and those could cause more of it. Two things prevent that:
//
//   - The library's messages have a mark, by which a Handler recognises and drops them. The
//     mark is lost where a message becomes text, as in package log, so [Config.Diagnostics]
//     tells users not to lead them back that way.
//   - The Logger's goroutines wait at most diagnosticsPatience for a message to be taken.
//     Package log holds a lock while it writes. A program that waits for memory in the Logger
//     while it holds that lock would otherwise block the Logger at its next message for good.

// diagnosticsMark is on all messages of the library. It is an empty group, which all
// handlers leave out.
const diagnosticsMark = "diaspora.diagnostics"

const (
	diagnosticsPatience = 100 * time.Millisecond
	maxDiagnostics      = 256 // messages that wait for whoever takes them
)

// own returns a logger for what the library says about itself, or nil for nil.
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

// marked reports whether the attributes are those of the library's own messages.
func marked(attrs []slog.Attr) bool {
	for i := range attrs {
		if attrs[i].Key == diagnosticsMark {
			return true
		}
	}
	return false
}

// ownHandler hands the library's own messages on.
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

// Handle returns when the message was taken, or when that takes too long.
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

// diagnosticsQueue delivers messages in order, in a goroutine that lives while
// there are any.
type diagnosticsQueue struct {
	stuck atomic.Bool // whoever takes the messages takes his time

	mu      sync.Mutex // guards the fields below
	waiting []*diagnostic
	lost    int64 // messages for which there was no place
	running bool
}

// put queues m, and reports whether to wait for it.
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
