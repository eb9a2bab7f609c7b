package main

import (
	"bufio"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"
)

// lineWriter writes a stream of lines. It buffers lines, and flushes them flushAfter the first one: many lines are
// written at once, and the reader of a pipe still sees each line without a noticeable delay.
type lineWriter struct {
	mu    sync.Mutex // guards the fields below
	buf   *bufio.Writer
	timer *time.Timer // calls flush
	armed bool        // the timer is running
	err   error

	broken chan struct{} // closed after the first error; later writes fail too
}

const flushAfter = 10 * time.Millisecond

func newLineWriter(w io.Writer) *lineWriter {
	return &lineWriter{buf: bufio.NewWriterSize(w, 64<<10), broken: make(chan struct{})}
}

// write buffers a line. The error may be that of an earlier line.
func (o *lineWriter) write(line []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, err := o.buf.Write(line); err != nil {
		return o.fail(err)
	}
	switch {
	case o.armed:
	case o.timer == nil:
		o.timer = time.AfterFunc(flushAfter, func() { o.flush() })
	default:
		o.timer.Reset(flushAfter)
	}
	o.armed = true
	return nil
}

// flush writes the buffered lines, and returns the first error of any write.
func (o *lineWriter) flush() error { return o.flushed(func() error { return nil }) }

// flushed flushes, and then calls do before any further line is written.
func (o *lineWriter) flushed(do func() error) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.armed = false
	if o.err != nil {
		return o.err
	}
	if err := o.buf.Flush(); err != nil {
		return o.fail(err)
	}
	return do()
}

// leave records that nobody reads the output any more.
func (o *lineWriter) leave() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.fail(syscall.EPIPE)
}

// fail records the first error. The caller holds mu.
func (o *lineWriter) fail(err error) error {
	if o.err == nil {
		o.err = fmt.Errorf("write output: %w", err)
		close(o.broken)
	}
	return o.err
}
