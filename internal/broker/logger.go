package broker

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/twmb/franz-go/pkg/kfake"
)

// kfakeLogger hands kfake's warnings and errors on. Its lower levels tell of
// every request, which is for the developers of kfake.
type kfakeLogger struct{ diagnostics *slog.Logger }

func (l kfakeLogger) Logf(level kfake.LogLevel, format string, args ...any) {
	switch level {
	case kfake.LogLevelError, kfake.LogLevelWarn:
		l.diagnostics.Log(context.Background(), slog.LevelWarn, "embedded broker", "err", fmt.Sprintf(format, args...))
	}
}
