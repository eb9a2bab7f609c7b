package diagnostics

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// held is a handler that hangs until it is released.
type held struct {
	slog.Handler
	released chan struct{}
}

func (h held) WithAttrs(attrs []slog.Attr) slog.Handler {
	return held{h.Handler.WithAttrs(attrs), h.released}
}

func (h held) Handle(ctx context.Context, r slog.Record) error {
	<-h.released
	return h.Handler.Handle(ctx, r)
}

// TestDroppedMessagesAreCounted fills the queue of a handler that hangs.
func TestDroppedMessagesAreCounted(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	to := held{slog.NewTextHandler(&out, nil), make(chan struct{})}
	logger := New(slog.New(to))
	for range MaxQueued + 11 { // one more than fits, because one is being delivered
		logger.Warn("m")
	}
	close(to.released)
	queue := logger.Handler().(*handler).queue
	testkit.Eventually(t, "the messages to be delivered", func() bool {
		queue.mu.Lock()
		defer queue.mu.Unlock()
		return !queue.running
	})
	if lines := strings.Count(out.String(), "\n"); lines != MaxQueued+1 || !strings.Contains(out.String(), "lost=10\n") {
		t.Errorf("%d messages came, want %d and one that says lost=10:\n%s", lines, MaxQueued+1, out.String())
	}
}

// TestNewIsIdempotent wraps a logger twice, and none.
func TestNewIsIdempotent(t *testing.T) {
	t.Parallel()
	logger := New(slog.New(slog.DiscardHandler))
	if New(logger) != logger || New(nil) != nil {
		t.Error("New wrapped a logger of its own, or nil")
	}
}
