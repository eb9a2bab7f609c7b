package main

import (
	"io"
	"sync"
)

// sharedInput is an input with several readers, one after another. A read from a terminal cannot be interrupted, so
// a reader that has ended would still consume the text that the user types for the next one.
type sharedInput struct {
	chunks chan []byte // closed at the end of the input

	mu   sync.Mutex // guards the field below
	rest []byte     // input that a reader has received but not read
}

// newSharedInput starts to read from in. It holds at most one chunk that no reader has taken.
func newSharedInput(in io.Reader) *sharedInput {
	r := &sharedInput{chunks: make(chan []byte)}
	go func() { // ends with the input; a blocked read cannot be stopped
		defer close(r.chunks)
		for {
			buf := make([]byte, 4096)
			n, err := in.Read(buf)
			if n > 0 {
				r.chunks <- buf[:n]
			}
			if err != nil {
				return
			}
		}
	}()
	return r
}

// reader returns a reader that returns io.EOF once done is closed. The next reader gets the input that this one
// has not read.
func (r *sharedInput) reader(done <-chan struct{}) io.Reader { return sharedInputReader{r, done} }

type sharedInputReader struct {
	*sharedInput
	done <-chan struct{}
}

func (r sharedInputReader) Read(p []byte) (int, error) {
	select {
	case <-r.done:
		return 0, io.EOF
	default:
	}
	r.mu.Lock()
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	r.mu.Unlock()
	if n > 0 {
		return n, nil
	}
	select {
	case <-r.done:
		return 0, io.EOF
	case chunk, ok := <-r.chunks:
		if !ok {
			return 0, io.EOF
		}
		n := copy(p, chunk)
		r.mu.Lock()
		r.rest = append(r.rest, chunk[n:]...)
		r.mu.Unlock()
		return n, nil
	}
}
