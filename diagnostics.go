package diaspora

import (
	"context"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A program that makes a [Handler] its default logger, and the default logger its
// [Config.Diagnostics], has closed a circle: what the Logger says about itself
// becomes events of the Logger. Three things keep that from going round, and from
// standing still:
//
//   - The library's messages bear a mark, by which a Handler knows them.
//   - The mark is lost where a message becomes text, on its way through package
//     log. There the call stack tells, see [speaking]. (Who makes text of it and
//     logs that in another goroutine defeats both.)
//   - The Logger's goroutines do not wait for whoever takes the messages for
//     longer than diagnosticsPatience. Package log holds a lock while it writes:
//     a program that waits in there for room in the Logger would otherwise stop
//     the Logger at its next message, for ever.

// diagnosticsMark is on all that the library says about itself. Every handler
// leaves an empty group out, so that only a [Handler] sees it.
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

// deliveries counts the goroutines that are delivering, of all Loggers.
var deliveries atomic.Int32

// deliver is known to [speaking] by its name.
func (q *diagnosticsQueue) deliver() {
	deliveries.Add(1)
	defer deliveries.Add(-1)
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

// speaking reports whether the caller was called to deliver a message of the
// library's own.
func speaking() bool {
	return deliveries.Load() > 0 && calledBy("github.com/diaspora-streams/diaspora.(*diagnosticsQueue).deliver")
}

// calledBy reports whether a function whose name begins with one of the prefixes is
// on the call stack.
func calledBy(prefixes ...string) bool {
	const most = 4096 // frames
	var pcs [64]uintptr
	for skip := 2; skip < most; skip += len(pcs) {
		n := runtime.Callers(skip, pcs[:])
		frames := runtime.CallersFrames(pcs[:n])
		for more := n > 0; more; {
			var f runtime.Frame
			f, more = frames.Next()
			for _, p := range prefixes {
				if strings.HasPrefix(f.Function, p) {
					return true
				}
			}
		}
		if n < len(pcs) {
			return false
		}
	}
	return false
}
