package gateway

import (
	"encoding/binary"
	"io"
	"math"
	"sync"
)

const (
	// chunkBytes is the size of the buffer through which an answer is copied.
	chunkBytes = 64 << 10

	// maxElements limits the elements of all arrays of one request together. An element can take as
	// few as two bytes in the request, but a hundred or more in the broker's memory.
	maxElements = 100_000

	// maxTrailingBytes is how many bytes may follow the last field of a request. librdkafka sends
	// three, and brokers ignore them.
	maxTrailingBytes = 64
)

// fetchLimit is how much a client may ask for in one Fetch. The gateway lowers larger values to it.
type fetchLimit struct {
	bytes      int32
	waitMillis int32 // how long the broker may wait for records
}

// fetchWaitMillis limits how long a Fetch may wait at the broker. Brokers check ACLs when a request
// arrives, so a waiting Fetch can return records after the client has lost the right to read them.
const fetchWaitMillis = 5000

var chunks = sync.Pool{New: func() any { return new([chunkBytes]byte) }}

// relay copies a frame of n bytes without looking at them.
func relay(to io.Writer, from *frameReader, n int) error {
	buf := chunks.Get().(*[chunkBytes]byte)
	defer chunks.Put(buf)
	for n > 0 {
		m, err := from.Read(buf[:min(n, chunkBytes)])
		if err != nil && m == 0 {
			return unexpected(err)
		}
		if _, err := to.Write(buf[:m]); err != nil {
			return err
		}
		n -= m
	}
	return nil
}

// checker checks that a request matches its shape. After the first error it does nothing more; err
// holds that error.
type checker struct {
	left     []byte // the rest of the request
	version  int16
	flexible bool
	elements int // of all arrays so far
	limit    fetchLimit
	err      error

	unanswered bool // the client wants no answer (acks=0)
}

// checkRequest returns an error if request is malformed. request does not include its length
// prefix. It lowers what a Fetch asks for to limit, in place. It reports whether the broker will
// not answer the request.
func checkRequest(request []byte, h header, limit fetchLimit) (unanswered bool, err error) {
	s := shapes()[h.key]
	r := checker{left: request, version: h.version, limit: limit}
	r.flexible = s.flexible >= 0 && h.version >= s.flexible
	r.skip(headerBytes)
	r.request(h.key, s.fields)
	if r.err == nil && len(r.left) > maxTrailingBytes {
		r.fail(frameError("%d bytes too many", len(r.left)))
	}
	return r.unanswered, r.err
}

func (r *checker) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

// take returns the next n bytes, at most 16. The caller may change them in place.
func (r *checker) take(n int) []byte {
	b := r.left
	if r.skip(n); r.err != nil {
		return make([]byte, n)
	}
	return b[:n]
}

// skip skips n bytes.
func (r *checker) skip(n int) {
	if n < 0 || n > len(r.left) {
		r.fail(frameError("a length of %d with %d bytes left", n, len(r.left)))
		return
	}
	r.left = r.left[n:]
}

func (r *checker) int16() int { return int(int16(binary.BigEndian.Uint16(r.take(2)))) }
func (r *checker) int32() int { return int(int32(binary.BigEndian.Uint32(r.take(4)))) }

func (r *checker) uvarint() int {
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

// tags skips tagged fields and calls see with the key of each.
func (r *checker) tags(see func(key int)) {
	for count := r.uvarint(); count > 0 && r.err == nil; count-- {
		see(r.uvarint())
		r.skip(r.uvarint())
	}
}

// request checks a request from the client ID on.
func (r *checker) request(key int16, fields []field) {
	r.nullable(r.int16()) // the client ID
	if r.flexible {
		r.tags(func(int) {})
	}
	r.fields(fields)
	if r.flexible {
		r.tags(func(tag int) {
			// This is ReplicaState, which only brokers send. The checker does not know its
			// structure.
			if key == keyFetch && tag == 1 {
				r.fail(frameError("a fetch that only brokers make"))
			}
		})
	}
}

func (r *checker) fields(fields []field) {
	for i := range fields {
		if f := &fields[i]; r.err == nil && f.min <= r.version && r.version <= f.max {
			r.field(f)
		}
	}
}

func (r *checker) field(f *field) {
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

func (r *checker) structure(fields []field) {
	r.fields(fields)
	if r.flexible {
		r.tags(func(int) {})
	}
}

// nullable skips n bytes. A length of -1 means null and has no bytes.
func (r *checker) nullable(n int) {
	if n != -1 {
		r.skip(n)
	}
}

// length reads the length of a byte string or an array. -1 means null.
func (r *checker) length() int {
	if r.flexible {
		return r.uvarint() - 1
	}
	return r.int32()
}

// count reads the length of an array and checks it against the limits.
func (r *checker) count() int {
	n := r.length()
	r.elements += max(n, 0)
	if n < -1 || n > len(r.left) || r.elements > maxElements {
		r.fail(frameError("an array of %d elements", n))
	}
	return n
}
