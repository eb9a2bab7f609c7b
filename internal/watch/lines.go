package watch

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

// MaxLineBytes limits the size of a line, or of a file that is one event, because it is held in memory.
// The event size limit of a cluster is lower; the Logger enforces it.
const MaxLineBytes = 16 << 20

// LineReader reads a stream line by line. Lines are separated by line feeds, may contain any other bytes,
// and need not be text. The last line needs no line feed. A LineReader holds at most one line in memory.
type LineReader struct {
	Line int // number of the line that Next returned last, or skipped with an error; the first is 1

	in   *bufio.Reader
	max  int
	long []byte // holds a line that is longer than the buffer of in
}

// NewLineReader returns a reader of lines of at most max bytes.
func NewLineReader(in io.Reader, max int) *LineReader {
	return &LineReader{in: bufio.NewReaderSize(in, 64<<10), max: max}
}

// LineError reports that one line cannot be used. Reading can continue with the next line.
type LineError struct {
	Line int
	Err  error
}

func (e *LineError) Error() string { return fmt.Sprintf("line %d: %v", e.Line, e.Err) }
func (e *LineError) Unwrap() error { return e.Err }

// Next returns the next line without its line feed. The line is valid until the next call. The error is
// [io.EOF] at the end of the stream, and a [*LineError] for a line that is too long, which is skipped.
// After any other error the stream cannot be read, and an incomplete line before the error is dropped.
func (l *LineReader) Next() ([]byte, error) {
	line, err := l.in.ReadSlice('\n')
	size := len(line)
	if errors.Is(err, bufio.ErrBufferFull) {
		l.long = l.long[:0]
		for size = 0; ; line, err = l.in.ReadSlice('\n') {
			if size += len(line); size <= l.max+1 { // including the line feed
				l.long = append(l.long, line...)
			}
			if !errors.Is(err, bufio.ErrBufferFull) {
				break
			}
		}
		line = l.long
	}
	switch {
	case err == nil: // the line feed is the last byte that was read
		size--
		line = line[:min(size, len(line))]
	case err != io.EOF:
		return nil, err // the line is incomplete
	case size == 0:
		return nil, io.EOF
	}
	l.Line++
	if size > l.max {
		return nil, &LineError{l.Line, fmt.Errorf("it has %d bytes; a line may have at most %d", size, l.max)}
	}
	return line, nil
}
