package watch

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

// MaxLineBytes bounds a line, or a whole file that is one event, in memory. The limit of a cluster is
// less, and the Logger reports it.
const MaxLineBytes = 16 << 20

// LineReader reads a stream line by line: a line is all bytes between two line feeds, whatever
// they are, and what follows the last line feed. It holds at most one line in memory.
type LineReader struct {
	Line int // the number of the line that was returned last, from 1

	in   *bufio.Reader
	max  int
	long []byte // a line that does not fit in's buffer
}

// NewLineReader returns a reader of lines of at most max bytes.
func NewLineReader(in io.Reader, max int) *LineReader {
	return &LineReader{in: bufio.NewReaderSize(in, 64<<10), max: max}
}

// LineError says what is wrong with one line. Reading can go on after it.
type LineError struct {
	Line int
	Err  error
}

func (e *LineError) Error() string { return fmt.Sprintf("line %d: %v", e.Line, e.Err) }
func (e *LineError) Unwrap() error { return e.Err }

// Next returns the next line without its line feed. It is valid until the next call. The error is io.EOF
// at the end, and a [*LineError] for a line that is too long, which is skipped.
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
		return nil, err // the line is not whole
	case size == 0:
		return nil, io.EOF
	}
	l.Line++
	if size > l.max {
		return nil, &LineError{l.Line, fmt.Errorf("it has %d bytes; a line may have at most %d", size, l.max)}
	}
	return line, nil
}
