package kafka

import (
	"context"
	"log/slog"

	"github.com/twmb/franz-go/pkg/kgo"
)

// clientLog passes the Kafka client's own messages on as diagnostics, each one level lower: most of
// its warnings are about problems that callers report as errors anyway.
type clientLog struct{ to *slog.Logger }

func (l clientLog) Level() kgo.LogLevel {
	switch ctx := context.Background(); {
	case l.to.Enabled(ctx, slog.LevelDebug):
		return kgo.LogLevelInfo
	case l.to.Enabled(ctx, slog.LevelInfo):
		return kgo.LogLevelWarn
	}
	return kgo.LogLevelError
}

// flushing is the Kafka client's message at each flush. It is dropped because, if a Logger is
// configured with a Linger, each call of its Log method flushes, and the message would fill the
// diagnostics.
const flushing = "flushing"

func (l clientLog) Log(level kgo.LogLevel, msg string, keyvals ...any) {
	if msg == flushing {
		return
	}
	to := slog.LevelDebug
	switch level {
	case kgo.LogLevelError:
		to = slog.LevelWarn
	case kgo.LogLevelWarn:
		to = slog.LevelInfo
	}
	l.to.Log(context.Background(), to, msg, keyvals...)
}
