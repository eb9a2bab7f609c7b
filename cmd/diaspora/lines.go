package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

// lineReader hands out a stream line by line: every byte between two line feeds,
// whatever it is, and what follows the last one. It holds at most one line of at
// most max bytes in memory.
type lineReader struct {
	in     *bufio.Reader
	max    int
	number int    // of the line handed out last, counted from 1
	long   []byte // a line that does not fit in's buffer
}

func newLineReader(in io.Reader, max int) *lineReader {
	return &lineReader{in: bufio.NewReaderSize(in, 64<<10), max: max}
}

// lineError says what is wrong with one line. Reading can go on after it.
type lineError struct {
	line int
	err  error
}

func (e *lineError) Error() string { return fmt.Sprintf("line %d: %v", e.line, e.err) }
func (e *lineError) Unwrap() error { return e.err }

// next returns the next line without its line feed. It is valid until the call
// after. At the end the error is io.EOF; a line that is too long is skipped and
// is a [*lineError].
func (l *lineReader) next() ([]byte, error) {
	line, err := l.in.ReadSlice('\n')
	if err == nil || err == io.EOF {
		return l.hand(line, err)
	}
	l.long = l.long[:0]
	size := 0
	for {
		size += len(line)
		if size <= l.max+1 { // the line feed included
			l.long = append(l.long, line...)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			break
		}
		line, err = l.in.ReadSlice('\n')
	}
	if size > len(l.long) { // some of it was dropped
		if err == nil {
			size--
		}
		return l.tooLong(size, err)
	}
	return l.hand(l.long, err)
}

// hand returns a line with its end cut off, or the end of the stream.
func (l *lineReader) hand(line []byte, err error) ([]byte, error) {
	switch {
	case err == nil:
		line = line[:len(line)-1]
	case err != io.EOF:
		return nil, err // the line is not whole
	case len(line) == 0:
		return nil, io.EOF
	}
	if len(line) > l.max {
		return l.tooLong(len(line), nil)
	}
	l.number++
	return line, nil
}

func (l *lineReader) tooLong(size int, err error) ([]byte, error) {
	if err != nil && err != io.EOF {
		return nil, err
	}
	l.number++
	return nil, &lineError{l.number, fmt.Errorf("it has %d bytes; a line may have at most %d", size, l.max)}
}
