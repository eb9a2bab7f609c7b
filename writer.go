package diaspora

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
	"time"
)

// WriterOptions says how a [Writer] logs and to which topic.
type WriterOptions struct {
	// Topic is the topic to log to. Required.
	Topic string

	// Key is the key of every event. With a key, the lines keep their order even in a topic with
	// several partitions. Default: none.
	Key []byte

	// MaxLineBytes is the maximum length of a line. A longer line becomes several events, in order.
	// Each of them but the last has the header `continues` = `true`. Default and maximum: what the
	// cluster accepts, less 1 KiB.
	MaxLineBytes int

	// DropAfter allows the Writer to drop lines, as HandlerOptions.DropAfter allows a [Handler] to
	// drop records. Default: never; Write waits for room.
	DropAfter time.Duration
}

// The headers that a [Writer] may add.
const (
	headerContinues = "continues"
	headerLost      = "lost"
)

// Writer is an [io.WriteCloser] that logs each line as an event. It is for programs that use
// package log, or that write text by other means. Make one with [NewWriter].
//
// A line ends with a line feed, which is not part of the event; all other bytes are. An empty line
// is an empty event. An incomplete line is kept until a later Write completes it, or until Close.
//
// If events were lost, because they were dropped or failed for good, the next event has the header
// `lost` with their number.
//
// The Writer passes events to its [Logger] as [Logger.Send] does, and does not wait for the
// network. It may wait for room in the Logger, as a [Handler] does.
type Writer struct {
	out *outbox
	max int

	mu     sync.Mutex // guards the fields below
	line   []byte     // an incomplete line
	closed bool
}

// NewWriter returns a Writer that logs to logger. It panics if the options name no topic.
func NewWriter(logger *Logger, options *WriterOptions) *Writer {
	if logger == nil || options == nil || options.Topic == "" {
		panic("diaspora: NewWriter needs a Logger and a Topic")
	}
	out := newOutbox(logger, options.Topic, slices.Clone(options.Key), options.DropAfter)
	most := out.maxBytes - 1024 // reserved for headers
	if options.MaxLineBytes > 0 {
		most = min(most, options.MaxLineBytes)
	}
	return &Writer{out: out, max: most}
}

// Lost returns how many of the Writer's events were dropped or failed for good.
func (w *Writer) Lost() int64 { return w.out.lost.Load() }

// Write logs the lines that end in p, in order, and keeps an incomplete line. It does not retain p.
// It may be called concurrently; a line that is written in one call is not mixed with others.
//
// If the Logger does not accept a line, Write returns the error for the first such line, as
// [Logger.Log] does. The lines after it are logged nevertheless, so no part of p should be written
// again. After Close, Write returns [ErrClosed].
func (w *Writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return 0, fmt.Errorf("write: %w", &Error{Condition: ErrClosed, Reason: "the writer was closed"})
	}
	var failed error
	for rest := p; len(rest) > 0; {
		part, after, ended := bytes.Cut(rest, []byte{'\n'})
		rest = after
		if err := w.add(part, ended); failed == nil {
			failed = err
		}
	}
	return len(p), failed
}

// add appends part to the current line and logs it if the line has ended, or is too long.
func (w *Writer) add(part []byte, ended bool) error {
	var failed error
	for len(w.line)+len(part) > w.max {
		n := w.max - len(w.line)
		w.line = append(w.line, part[:n]...)
		part = part[n:]
		if err := w.log(w.line, true); failed == nil {
			failed = err
		}
		w.line = w.line[:0]
	}
	if !ended {
		w.line = append(w.line, part...)
		return failed
	}
	if len(w.line) > 0 {
		w.line = append(w.line, part...)
		part = w.line
	}
	if err := w.log(part, false); failed == nil {
		failed = err
	}
	if w.line = w.line[:0]; cap(w.line) > maxKeptBytes {
		w.line = nil
	}
	return failed
}

func (w *Writer) log(line []byte, continues bool) error {
	p := w.out.parcel()
	p.buf = append(p.buf[:0], line...)
	p.event.Value = p.buf
	if p.event.Value == nil {
		p.event.Value = []byte{} // nil would be a tombstone
	}
	if continues {
		p.event.Headers = append(p.event.Headers, Header{headerContinues, []byte("true")})
	}
	if lost := p.tell(); lost > 0 {
		p.event.Headers = append(p.event.Headers, Header{headerLost, fmt.Append(nil, lost)})
	}
	return p.send()
}

// Close logs the incomplete line, if there is one. It does not flush; closing the Logger does.
// Calling Close again does nothing.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil
	}
	w.closed = true
	if len(w.line) == 0 {
		return nil
	}
	return w.log(w.line, false)
}
