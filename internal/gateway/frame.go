package gateway

import (
	"encoding/binary"
	"errors"
	"io"
	"math"
	"sync"

	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	readerBytes = 4 << 10  // kept by each direction of each connection
	chunkBytes  = 64 << 10 // borrowed while a long frame passes through
)

var chunks = sync.Pool{New: func() any { return new([chunkBytes]byte) }}

// frameReader reads frames from one direction of a connection: four bytes of
// size, then as many bytes.
type frameReader struct {
	r          io.Reader
	buf        [readerBytes]byte
	start, end int // buf[start:end] is read and not yet used
}

// peek returns the next n bytes without using them up; n is at most readerBytes.
// The error is io.EOF only if there is not a single byte.
func (f *frameReader) peek(n int) ([]byte, error) {
	for f.end-f.start < n {
		if f.start > 0 {
			f.end = copy(f.buf[:], f.buf[f.start:f.end])
			f.start = 0
		}
		m, err := f.r.Read(f.buf[f.end:])
		f.end += m
		if err != nil && f.end < n {
			if f.end > 0 && errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	return f.buf[f.start : f.start+n], nil
}

// size returns the size of the next frame, which begins at the next byte.
func (f *frameReader) size() (int, error) {
	b, err := f.peek(4)
	if err != nil {
		return 0, err
	}
	return int(int32(binary.BigEndian.Uint32(b))), nil
}

// take returns the next n bytes in a buffer of their own. It trusts n no
// further than the bytes have come.
func (f *frameReader) take(n int) ([]byte, error) {
	b := make([]byte, 0, min(n, readerBytes))
	for len(b) < n {
		if f.start == f.end {
			f.start = 0
			m, err := f.r.Read(f.buf[:])
			f.end = m
			if err != nil && m == 0 {
				return nil, unexpected(err)
			}
		}
		m := min(n-len(b), f.end-f.start)
		b = append(b, f.buf[f.start:f.start+m]...)
		f.start += m
	}
	return b, nil
}

// relay copies the next n bytes to w.
func (f *frameReader) relay(w io.Writer, n int) error {
	if m := min(n, f.end-f.start); m > 0 {
		if _, err := w.Write(f.buf[f.start : f.start+m]); err != nil {
			return err
		}
		f.start += m
		n -= m
	}
	if n == 0 {
		return nil
	}
	chunk := chunks.Get().(*[chunkBytes]byte)
	defer chunks.Put(chunk)
	for n > 0 {
		m, err := f.r.Read(chunk[:min(n, chunkBytes)])
		if m > 0 {
			if _, err := w.Write(chunk[:m]); err != nil {
				return err
			}
			n -= m
		}
		if err != nil && n > 0 {
			return unexpected(err)
		}
	}
	return nil
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// requestHeader is what every request begins with.
type requestHeader struct {
	key, version int16
	correlation  int32
}

const requestHeaderBytes = 8

func parseRequestHeader(b []byte) requestHeader {
	return requestHeader{
		key:         int16(binary.BigEndian.Uint16(b)),
		version:     int16(binary.BigEndian.Uint16(b[2:])),
		correlation: int32(binary.BigEndian.Uint32(b[4:])),
	}
}

var errFrame = errors.New("malformed frame")

// parseRequest splits a request into its header and its body, which the caller
// has to read with the same wire.
func parseRequest(frame []byte, flexible func(version int16) bool) (requestHeader, *wire) {
	h := parseRequestHeader(frame)
	w := &wire{b: frame[requestHeaderBytes:]}
	w.nullableString() // the client ID
	if flexible(h.version) {
		w.tags()
	}
	return h, w
}

// wire reads Kafka's primitive types. After the first that is not there, or
// not whole, bad is true and all others are zero. (kmsg's reader is not for
// strangers: a count of four billion tags keeps it busy for a minute.)
type wire struct {
	b   []byte
	bad bool
}

// done reports whether all was well and nothing is left.
func (w *wire) done() bool { return !w.bad && len(w.b) == 0 }

func (w *wire) bytes(n int) []byte {
	if w.bad || n < 0 || n > len(w.b) {
		w.bad = true
		return nil
	}
	b := w.b[:n:n]
	w.b = w.b[n:]
	return b
}

func (w *wire) uvarint() int {
	v, n := binary.Uvarint(w.b)
	if w.bad || n <= 0 || v > math.MaxInt32 {
		w.bad = true
		return 0
	}
	w.b = w.b[n:]
	return int(v)
}

func (w *wire) int16() int {
	b := w.bytes(2)
	if w.bad {
		return 0
	}
	return int(int16(binary.BigEndian.Uint16(b)))
}

func (w *wire) int32() int {
	b := w.bytes(4)
	if w.bad {
		return 0
	}
	return int(int32(binary.BigEndian.Uint32(b)))
}

func (w *wire) string() string { return string(w.bytes(w.int16())) }

func (w *wire) nullableString() {
	if n := w.int16(); n != -1 {
		w.bytes(n)
	}
}

func (w *wire) longBytes() []byte { return w.bytes(w.int32()) }

// compactBytes reads a compact string or compact bytes. Null reads as empty.
func (w *wire) compactBytes() []byte {
	n := w.uvarint()
	if n == 0 {
		return nil
	}
	return w.bytes(n - 1)
}

func (w *wire) compactNullableString() *string {
	n := w.uvarint()
	if n == 0 {
		return nil
	}
	s := string(w.bytes(n - 1))
	return &s
}

func (w *wire) tags() {
	for count := w.uvarint(); count > 0 && !w.bad; count-- {
		w.uvarint()
		w.bytes(w.uvarint())
	}
}

// appendResponse appends a response with its frame.
func appendResponse(dst []byte, correlation int32, response kmsg.Response) []byte {
	at := len(dst)
	dst = append(dst, 0, 0, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, uint32(correlation))
	if response.IsFlexible() && response.Key() != keyApiVersions {
		dst = append(dst, 0) // no tags
	}
	dst = response.AppendTo(dst)
	binary.BigEndian.PutUint32(dst[at:], uint32(len(dst)-at-4))
	return dst
}
