package gateway

import (
	"encoding/binary"
	"math"
)

// wire decodes Kafka's primitive types from a request that the gateway answers itself. After the
// first value that is missing or truncated, bad is set and all further values are zero. kmsg's own
// reader is not safe for untrusted input: a count of four billion tags keeps it busy for minutes.
type wire struct {
	b   []byte
	bad bool
}

// parseRequest splits a whole request into its header and its body.
func parseRequest(frame []byte) (header, *wire) {
	h := parseHeader(frame)
	w := &wire{b: frame[headerBytes:]}
	if n := w.int16(); n != -1 {
		w.bytes(n) // the client ID
	}
	if flexible(h) {
		w.tags()
	}
	return h, w
}

// flexible reports whether a request has compact lengths and tags.
func flexible(h header) bool {
	s := shapes()[h.key]
	return s.flexible >= 0 && h.version >= s.flexible
}

// done reports whether there was no error and no bytes are left.
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

// compactBytes reads a compact string or compact bytes; ok is false for null.
func (w *wire) compactBytes() (b []byte, ok bool) {
	n := w.uvarint()
	if n == 0 {
		return nil, false
	}
	return w.bytes(n - 1), true
}

func (w *wire) tags() {
	for count := w.uvarint(); count > 0 && !w.bad; count-- {
		w.uvarint()
		w.bytes(w.uvarint())
	}
}
