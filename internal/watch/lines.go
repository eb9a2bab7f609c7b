package watch

import (
	"bytes"
	"fmt"
	"io"
)

// MaxLineBytes limits the size of a line, or of a file that is one event, because it is held in memory.
// The event size limit of a cluster is lower; the Logger enforces it.
const MaxLineBytes = 16 << 20

// LineReader reads a stream line by line. Lines are separated by line feeds, may contain any other bytes,
// and need not be text. The last line needs no line feed. It reads blocks of blockBytes, or one that is as
// large as a line, and uses no block twice, so that lines remain valid.
type LineReader struct {
	Line int // number of the line that Next returned last, or skipped with an error; the first is 1

	in    io.Reader
	max   int
	block []byte // what was read last
	at    int    // where the next line begins in block
	seen  int    // where to look for its line feed
	fresh bool   // no line in block was returned
	err   error  // what ended the stream
}

const (
	blockBytes = 64 << 10
	// A block with less room than this for another read is not used further.
	leastRoom = 8 << 10
	// maxEmptyReads is how many reads in a row may return nothing. Then the stream is broken.
	maxEmptyReads = 100
)

// NewLineReader returns a reader of lines of at most max bytes.
func NewLineReader(in io.Reader, max int) *LineReader {
	return &LineReader{in: in, max: max}
}

// LineError reports that one line cannot be used. Reading can continue with the next line.
type LineError struct {
	Line int
	Err  error
}

func (e *LineError) Error() string { return fmt.Sprintf("line %d: %v", e.Line, e.Err) }
func (e *LineError) Unwrap() error { return e.Err }

// Next returns the next line without its line feed. The caller may keep the line, but not change it. The
// error is [io.EOF] at the end of the stream, and a [*LineError] for a line that is too long, which is
// skipped. After any other error the stream cannot be read, and an incomplete line before the error is
// dropped.
func (l *LineReader) Next() ([]byte, error) {
	skipped := 0 // bytes of a line that is too long
	for {
		rest, next := l.block[l.seen:], 0
		if i := bytes.IndexByte(rest, '\n'); i >= 0 {
			l.seen += i
			next = 1
		} else if l.seen = len(l.block); l.err == nil {
			if l.seen-l.at > l.max {
				skipped += l.seen - l.at
				l.at = l.seen
			}
			l.fill()
			continue
		}
		line := l.block[l.at:l.seen:l.seen]
		l.seen += next
		l.at = l.seen
		size := skipped + len(line)
		if next == 0 && (l.err != io.EOF || size == 0) {
			return nil, l.err // the line is incomplete, or there is none
		}
		l.Line++
		if size > l.max {
			return nil, &LineError{l.Line, fmt.Errorf("it has %d bytes; a line may have at most %d", size, l.max)}
		}
		l.fresh = false
		return line, nil
	}
}

// fill reads more of the stream, and keeps what belongs to the next line.
func (l *LineReader) fill() {
	if begun := l.block[l.at:]; l.fresh && len(begun) == 0 { // in the middle of a line that is too long
		l.block, l.at, l.seen = l.block[:0], 0, 0
	} else if cap(l.block)-len(l.block) < leastRoom {
		l.block = append(make([]byte, 0, max(blockBytes, 2*len(begun))), begun...)
		l.at, l.seen, l.fresh = 0, len(begun), true
	}
	for range maxEmptyReads {
		n, err := l.in.Read(l.block[len(l.block):cap(l.block)])
		l.block, l.err = l.block[:len(l.block)+n], err
		if n > 0 || err != nil {
			return
		}
	}
	l.err = io.ErrNoProgress
}
