package gateway

import (
	"encoding/binary"
	"math"
)

const (
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

// requestReader reads Kafka's types from an untrusted request. After the first error, which err
// holds, all further values are zero. The reader of kmsg is not safe for untrusted input: a count
// of four billion tags keeps it busy for minutes.
type requestReader struct {
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
	r := requestReader{left: request, version: h.version, limit: limit}
	r.flexible = s.isFlexible(h.version)
	r.skip(headerBytes)
	r.request(h.key, s.fields)
	if r.err == nil && len(r.left) > maxTrailingBytes {
		r.fail(frameError("%d bytes after the last field", len(r.left)))
	}
	return r.unanswered, r.err
}

// parseHead reads the header of a whole request and returns a reader of its body.
func parseHead(request []byte) (header, *requestReader) {
	h := parseHeader(request)
	r := &requestReader{left: request[headerBytes:], version: h.version, flexible: shapes()[h.key].isFlexible(h.version)}
	r.nullable(r.int16()) // the client ID
	r.skipTags()
	return h, r
}

// done reports whether there was no error and no bytes are left.
func (r *requestReader) done() bool { return r.err == nil && len(r.left) == 0 }

func (r *requestReader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

// take returns the next n bytes, at most 16. The caller may change them in place.
func (r *requestReader) take(n int) []byte {
	b := r.left
	if r.skip(n); r.err != nil {
		return make([]byte, n)
	}
	return b[:n]
}

// skip skips n bytes.
func (r *requestReader) skip(n int) {
	if n < 0 || n > len(r.left) {
		r.fail(frameError("a field of %d bytes, but %d are left", n, len(r.left)))
		return
	}
	r.left = r.left[n:]
}

// bytes returns the next n bytes, or nil after an error.
func (r *requestReader) bytes(n int) []byte {
	b := r.left
	if r.skip(n); r.err != nil {
		return nil
	}
	return b[:n:n]
}

// compactBytes reads a compact string or compact bytes; ok is false for null.
func (r *requestReader) compactBytes() (b []byte, ok bool) {
	n := r.uvarint()
	if n == 0 {
		return nil, false
	}
	return r.bytes(n - 1), true
}

func (r *requestReader) int16() int { return int(int16(binary.BigEndian.Uint16(r.take(2)))) }
func (r *requestReader) int32() int { return int(int32(binary.BigEndian.Uint32(r.take(4)))) }

func (r *requestReader) uvarint() int {
	v := uint64(0) // an int has 32 bits on some machines
	for shift := 0; shift < 35; shift += 7 {
		b := r.take(1)[0]
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			break
		}
		if shift == 28 {
			r.fail(frameError("a variable-length integer of more than 5 bytes"))
		}
	}
	if v > math.MaxInt32 {
		r.fail(frameError("a variable-length integer over 2³¹-1"))
		return 0
	}
	return int(v)
}

// tags skips tagged fields and calls see with the key of each.
func (r *requestReader) tags(see func(key int)) {
	for count := r.uvarint(); count > 0 && r.err == nil; count-- {
		see(r.uvarint())
		r.skip(r.uvarint())
	}
}

// skipTags skips tagged fields, which only flexible versions have.
func (r *requestReader) skipTags() {
	if r.flexible {
		r.tags(func(int) {})
	}
}

// request checks a request from the client ID on.
func (r *requestReader) request(key int16, fields []field) {
	r.nullable(r.int16()) // the client ID
	r.skipTags()
	r.fields(fields)
	if r.flexible {
		r.tags(func(tag int) {
			// This is ReplicaState, which only brokers send. Its structure is not in the table.
			if key == keyFetch && tag == 1 {
				r.fail(frameError("a fetch of a replica"))
			}
		})
	}
}

func (r *requestReader) fields(fields []field) {
	for i := range fields {
		if f := &fields[i]; r.err == nil && f.min <= r.version && r.version <= f.max {
			r.field(f)
		}
	}
}

func (r *requestReader) field(f *field) {
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

func (r *requestReader) structure(fields []field) {
	r.fields(fields)
	r.skipTags()
}

// nullable skips n bytes. A length of -1 means null and has no bytes.
func (r *requestReader) nullable(n int) {
	if n != -1 {
		r.skip(n)
	}
}

// length reads the length of a byte string or an array. -1 means null.
func (r *requestReader) length() int {
	if r.flexible {
		return r.uvarint() - 1
	}
	return r.int32()
}

// count reads the length of an array and checks it against the limits.
func (r *requestReader) count() int {
	n := r.length()
	r.elements += max(n, 0)
	if n < -1 || n > len(r.left) || r.elements > maxElements {
		r.fail(frameError("an array of %d elements", n))
	}
	return n
}
