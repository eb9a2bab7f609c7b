package main

import (
	"bufio"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"
)

// outflow writes a stream of lines: in large pieces while they come fast, and at
// once when they do not, so that a reader in a pipe sees each within a moment.
type outflow struct {
	mu    sync.Mutex // guards the fields below
	buf   *bufio.Writer
	timer *time.Timer // flushes; runs if something waits
	armed bool
	err   error

	broken chan struct{} // closed when nothing can be written any more
}

const flushAfter = 10 * time.Millisecond

func newOutflow(w io.Writer) *outflow {
	return &outflow{buf: bufio.NewWriterSize(w, 64<<10), broken: make(chan struct{})}
}

// write takes a line. The error may be that of an earlier one.
func (o *outflow) write(line []byte) error {
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

// flush writes what waits, and returns the first error of all writing.
func (o *outflow) flush() error { return o.flushed(func() error { return nil }) }

// flushed flushes and then calls do while nothing further can be written.
func (o *outflow) flushed(do func() error) error {
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

// leave takes note that nobody reads any more.
func (o *outflow) leave() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.fail(syscall.EPIPE)
}

// fail remembers the first error. The caller holds mu.
func (o *outflow) fail(err error) error {
	if o.err == nil {
		o.err = fmt.Errorf("write output: %w", err)
		close(o.broken)
	}
	return o.err
}
