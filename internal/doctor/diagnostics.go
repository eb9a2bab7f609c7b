package doctor

import (
	"bytes"
	"log/slog"
	"sync"
)

// maxDiagnostics bounds the size of the library's log messages that are kept.
const maxDiagnostics = 256 << 10

// diagnostics keeps the most recent log messages of the library.
type diagnostics struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (d *diagnostics) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(d, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// Write appends a line. If there is not enough space, it drops the oldest lines.
func (d *diagnostics) Write(line []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for d.buf.Len() > 0 && d.buf.Len()+len(line) > maxDiagnostics {
		if _, err := d.buf.ReadBytes('\n'); err != nil {
			break
		}
	}
	return d.buf.Write(line)
}

func (d *diagnostics) text() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return bytes.Clone(d.buf.Bytes())
}
