// Package diagnostics passes the library's own messages to the program's logger, so that they can
// neither loop nor block.
//
// A program may use a diaspora.Handler as its default logger, and that default logger as
// Config.Diagnostics. The Logger's own messages would then become events of the Logger, and logging
// those could cause more messages, without end. Two measures prevent that:
//
//   - The library's messages carry a mark, by which a Handler recognizes and drops them. The mark
//     is lost when a message is converted to text, as by package log. So the documentation of
//     Config.Diagnostics tells users not to send messages back that way.
//   - The Logger's goroutines wait at most patience until a message is handled. Package log holds a
//     lock while it writes. Without this limit, there could be a deadlock: a program waits for
//     memory in the Logger while it holds that lock, and the Logger waits for the lock to log a
//     message.
//
// Start reading at [New].
package diagnostics

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// MaxQueued is how many messages may wait for the program's handler. Further ones are dropped, and the
// next one that is delivered has the attribute `lost` with their number.
const MaxQueued = 256

const patience = 100 * time.Millisecond

// mark is an attribute of all messages of the library. It is an empty group, because handlers omit
// those.
const mark = "diaspora.diagnostics"

// New returns a logger for the library's own messages, which go to to. It returns nil if to is nil,
// and to itself if to is such a logger.
func New(to *slog.Logger) *slog.Logger {
	if to == nil {
		return nil
	}
	if _, done := to.Handler().(*handler); done {
		return to
	}
	marked := to.Handler().WithAttrs([]slog.Attr{{Key: mark, Value: slog.GroupValue()}})
	return slog.New(&handler{to: marked, queue: new(queue)})
}

// Marked reports whether attrs contain the mark of the library's own messages.
func Marked(attrs []slog.Attr) bool {
	for i := range attrs {
		if attrs[i].Key == mark {
			return true
		}
	}
	return false
}

// handler passes the library's own messages on through a queue.
type handler struct {
	to    slog.Handler
	queue *queue
}

func (h *handler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.to.Enabled(ctx, level)
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &handler{h.to.WithAttrs(attrs), h.queue}
}

func (h *handler) WithGroup(name string) slog.Handler {
	return &handler{h.to.WithGroup(name), h.queue}
}

// Handle returns when the message has been handled, or after patience.
func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	m := &message{to: h.to, ctx: context.WithoutCancel(ctx), record: r.Clone(), taken: make(chan struct{})}
	if !h.queue.put(m) {
		return nil
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-m.taken:
	case <-timer.C:
		h.queue.stuck.Store(true)
	}
	return nil
}

type message struct {
	to     slog.Handler
	ctx    context.Context
	record slog.Record
	taken  chan struct{}
}

// queue delivers messages in order. Its goroutine runs only while there are messages.
type queue struct {
	stuck atomic.Bool // the handler did not finish in time; put does not wait until it has handled a message

	mu      sync.Mutex // guards the fields below
	waiting []*message
	lost    int64 // messages dropped because the queue was full
	running bool
}

// put queues m, or drops it if the queue is full. It reports whether the caller should wait for m.
func (q *queue) put(m *message) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) >= MaxQueued {
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

func (q *queue) next() *message {
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

func (q *queue) deliver() {
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
