package gateway

import (
	"io"
	"net"
	"sync"
)

// wire is the connection below TLS. Package tls reads and writes each record by itself, and a record
// has at most 16 KiB. The wire reads and writes several at a time.
type wire struct {
	net.Conn

	// These are for the goroutine that reads.
	ahead      bool              // read as much as there is
	in         *[chunkBytes]byte // what has been read ahead; nil if there is nothing; from a pool
	start, end int               // in[start:end] has not been used

	mu  sync.Mutex // guards the field below, and is held while writing
	out *[]byte    // records that are not sent yet; nil if they are sent at once
}

// recordsBytes is enough for the records of a chunk. Package tls begins with records of about 1200
// bytes, each of which adds less than 30.
const recordsBytes = chunkBytes + chunkBytes/1200*30 + 1<<10

var records = sync.Pool{New: func() any {
	b := make([]byte, 0, recordsBytes)
	return &b
}}

// writeAtOnce writes p to the TLS connection above, and sends all its records at once.
func (w *wire) writeAtOnce(above io.Writer, p []byte) (int, error) {
	out := records.Get().(*[]byte)
	w.mu.Lock()
	w.out = out
	w.mu.Unlock()
	n, err := above.Write(p)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.out = nil
	if err == nil && len(*out) > 0 {
		_, err = w.Conn.Write(*out)
	}
	*out = (*out)[:0]
	records.Put(out)
	return n, err
}

func (w *wire) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.out != nil {
		*w.out = append(*w.out, p...)
		return len(p), nil
	}
	return w.Conn.Write(p)
}

// interrupt closes the connection if something is being written, because closing TLS would wait up to
// five seconds for that.
func (w *wire) interrupt() {
	if !w.mu.TryLock() {
		w.Conn.Close()
		return
	}
	w.mu.Unlock()
}

// readAhead turns reading ahead on or off.
func (w *wire) readAhead(on bool) {
	w.ahead = on
	w.free()
}

// free releases the buffer if it is not needed.
func (w *wire) free() {
	if w.in != nil && w.start == w.end && !w.ahead {
		chunks.Put(w.in)
		w.in = nil
	}
}

func (w *wire) Read(p []byte) (int, error) {
	if w.start == w.end {
		if !w.ahead {
			return w.Conn.Read(p)
		}
		if w.in == nil {
			w.in = chunks.Get().(*[chunkBytes]byte)
		}
		n, err := w.Conn.Read(w.in[:])
		w.start, w.end = 0, n
		if n == 0 {
			return 0, err
		}
	}
	n := copy(p, w.in[w.start:w.end])
	w.start += n
	w.free()
	return n, nil
}
