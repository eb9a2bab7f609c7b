package gateway

import (
	"encoding/binary"
	"io"
	"math"
	"sync"
)

const (
	// chunkBytes is borrowed while a frame passes through.
	chunkBytes = 64 << 10

	// maxElements bounds the elements of all arrays of one request. Each costs
	// the broker a hundred bytes or more, and the client as few as two.
	maxElements = 100_000
)

// fetchLimit is what a client may ask for in one Fetch. Larger wishes are cut to it.
type fetchLimit struct {
	bytes      int32
	waitMillis int32 // for records to come
}

// fetchWaitMillis bounds how long a Fetch may wait: brokers check rights when a request
// arrives, so a waiting one outlives a right that is taken away.
const fetchWaitMillis = 5000

var chunks = sync.Pool{New: func() any { return new([chunkBytes]byte) }}

// relayer passes one frame on, in chunks, and looks at it meanwhile. After the
// first error it does nothing more; err says what it was.
type relayer struct {
	from  *frameReader
	to    io.Writer
	left  int    // how much of the frame is still to be read
	chunk []byte // read and not yet written
	err   error

	// Of requests only:
	version  int16
	flexible bool
	elements int // of all arrays so far
	limit    fetchLimit

	unanswered bool // the client wants no answer
}

// relay passes on a frame of n bytes, whatever they are.
func relay(to io.Writer, from *frameReader, n int) error {
	buf := chunks.Get().(*[chunkBytes]byte)
	defer chunks.Put(buf)
	r := relayer{from: from, to: to, left: n, chunk: buf[:0]}
	r.skip(n)
	r.flush()
	return r.err
}

// maxBehind is how many bytes behind the last field of a request pass.
const maxBehind = 64

// relayRequest passes on a request, its size included, whose frame is n bytes
// long. If it is not laid out as it should be, the broker gets less than the
// whole of it, and the connection is of no more use. It reports whether the broker
// will not answer the request.
func relayRequest(to io.Writer, from *frameReader, n int, h header, limit fetchLimit) (unanswered bool, err error) {
	buf := chunks.Get().(*[chunkBytes]byte)
	defer chunks.Put(buf)
	s := shapes()[h.key]
	r := relayer{from: from, to: to, left: n, chunk: buf[:0], version: h.version, limit: limit}
	r.flexible = s.flexible >= 0 && h.version >= s.flexible
	r.skip(4 + headerBytes)
	r.request(h.key, s.fields)
	switch {
	case r.left > maxBehind:
		r.fail(frameError("%d bytes too many", r.left))
	case r.err == nil:
		r.skip(r.left) // librdkafka sends three; brokers take no notice
	}
	r.flush()
	return r.unanswered, r.err
}

func (r *relayer) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

func (r *relayer) flush() {
	if r.err == nil && len(r.chunk) > 0 {
		_, r.err = r.to.Write(r.chunk)
	}
	r.chunk = r.chunk[:0]
}

// take passes on n bytes, at most 16, and returns them; until the next call
// they may be changed.
func (r *relayer) take(n int) []byte {
	if len(r.chunk)+n > chunkBytes {
		r.flush()
	}
	at := len(r.chunk)
	r.skip(n)
	if r.err != nil {
		return make([]byte, n)
	}
	return r.chunk[at : at+n]
}

// skip passes on n bytes.
func (r *relayer) skip(n int) {
	if n < 0 || n > r.left {
		r.fail(frameError("a length of %d with %d bytes left", n, r.left))
	}
	for n > 0 && r.err == nil {
		if len(r.chunk) == chunkBytes {
			r.flush()
			continue
		}
		at := len(r.chunk)
		m, err := r.from.Read(r.chunk[at:min(chunkBytes, at+n)])
		r.chunk = r.chunk[:at+m]
		r.left -= m
		n -= m
		if err != nil && n > 0 {
			r.fail(unexpected(err))
		}
	}
}

func (r *relayer) int16() int { return int(int16(binary.BigEndian.Uint16(r.take(2)))) }
func (r *relayer) int32() int { return int(int32(binary.BigEndian.Uint32(r.take(4)))) }

func (r *relayer) uvarint() int {
	v := 0
	for shift := 0; shift < 35; shift += 7 {
		b := r.take(1)[0]
		v |= int(b&0x7f) << shift
		if b < 0x80 {
			break
		}
		if shift == 28 {
			r.fail(frameError("a number that does not end"))
		}
	}
	if v > math.MaxInt32 {
		r.fail(frameError("a number too large"))
		return 0
	}
	return v
}

// tags passes on tagged fields and hands each key to see.
func (r *relayer) tags(see func(key int)) {
	for count := r.uvarint(); count > 0 && r.err == nil; count-- {
		see(r.uvarint())
		r.skip(r.uvarint())
	}
}

// request passes on a request from the client ID on.
func (r *relayer) request(key int16, fields []field) {
	r.nullable(r.int16()) // the client ID
	if r.flexible {
		r.tags(func(int) {})
	}
	r.fields(fields)
	if r.flexible {
		r.tags(func(tag int) {
			// The replica state has an inside that is not looked at here.
			if key == keyFetch && tag == 1 {
				r.fail(frameError("a fetch that only brokers make"))
			}
		})
	}
}

func (r *relayer) fields(fields []field) {
	for i := range fields {
		if f := &fields[i]; r.err == nil && f.min <= r.version && r.version <= f.max {
			r.field(f)
		}
	}
}

func (r *relayer) field(f *field) {
	switch f.kind {
	case 'b':
		r.skip(1)
	case 'h':
		r.skip(2)
	case 'w':
		r.skip(4)
	case 'l':
		r.skip(8)
	case 'u':
		r.skip(16)
	case 'a':
		r.unanswered = r.int16() == 0
	case 't':
		if b := r.take(4); int32(binary.BigEndian.Uint32(b)) > r.limit.waitMillis {
			binary.BigEndian.PutUint32(b, uint32(r.limit.waitMillis))
		}
	case 'm':
		if b := r.take(4); int32(binary.BigEndian.Uint32(b)) > r.limit.bytes {
			binary.BigEndian.PutUint32(b, uint32(r.limit.bytes))
		}
	case 's':
		if r.flexible {
			r.nullable(r.uvarint() - 1)
		} else {
			r.nullable(r.int16())
		}
	case 'y':
		r.nullable(r.length())
	case '*':
		for n := r.count(); n > 0 && r.err == nil; n-- {
			r.field(&f.of[0])
		}
	case '[':
		for n := r.count(); n > 0 && r.err == nil; n-- {
			r.structure(f.of)
		}
	case '?':
		if int8(r.take(1)[0]) != -1 {
			r.structure(f.of)
		}
	}
}

func (r *relayer) structure(fields []field) {
	r.fields(fields)
	if r.flexible {
		r.tags(func(int) {})
	}
}

// nullable passes on n bytes, or none if n is -1, which means null.
func (r *relayer) nullable(n int) {
	if n != -1 {
		r.skip(n)
	}
}

// length reads the length of bytes or of an array.
func (r *relayer) length() int {
	if r.flexible {
		return r.uvarint() - 1
	}
	return r.int32()
}

// count reads the length of an array.
func (r *relayer) count() int {
	n := r.length()
	r.elements += max(n, 0)
	if n < -1 || n > r.left || r.elements > maxElements {
		r.fail(frameError("an array of %d elements", n))
	}
	return n
}
