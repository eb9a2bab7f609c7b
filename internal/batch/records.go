package batch

import (
	"errors"
	"io"
	"math"
)

// Record is one record of a batch.
type Record struct {
	OffsetDelta    int32  // offset minus the batch's base offset
	TimestampDelta int64  // the producer's timestamp minus the batch's base timestamp
	Key            []byte // nil: null
	Value          []byte // nil: null
	Headers        []RecordHeader
}

// RecordHeader is one header of a record.
type RecordHeader struct {
	Key   []byte
	Value []byte // nil: null
}

// Records calls f for each record of b, exactly one whole batch, until f returns false. The
// record's slices are valid only until f returns. f must not wait for another call of Records,
// because the number of concurrent decompressions is limited. If a record cannot be read, Records
// fails after it has called f for those before. It checks neither the checksum nor the offset
// deltas.
func Records(b []byte, f func(Record) bool) error {
	h, err := ParseHeader(b)
	if err != nil {
		return err
	}
	if h.Size() != len(b) {
		return errSize
	}
	r := newReader(b, h)
	defer r.close()
	var rec Record
	for range h.Count {
		if _, err := r.record(&rec); err != nil {
			return err
		}
		if !f(rec) {
			return nil
		}
	}
	if err := r.end(); err != nil {
		return err
	}
	return r.defect()
}

// FirstAt returns the offset and timestamp of the first record of b that has an offset of at least
// from and a timestamp of at least t, in milliseconds since 1970. b is exactly one whole batch. ok
// is false if there is no such record.
//
// FirstAt reads the records only if each has its own timestamp. After [Stamp] they do not, and
// FirstAt is cheap.
func FirstAt(b []byte, from, t int64) (offset, timestamp int64, ok bool, err error) {
	h, err := ParseHeader(b)
	if err != nil {
		return 0, 0, false, err
	}
	if h.MaxTimestamp < t || h.LastOffset() < from || h.Count <= 0 {
		return 0, 0, false, nil
	}
	if h.LogAppendTime() {
		return max(h.BaseOffset, from), h.MaxTimestamp, true, nil
	}
	err = Records(b, func(r Record) bool {
		offset, timestamp = h.BaseOffset+int64(r.OffsetDelta), h.BaseTimestamp+r.TimestampDelta
		ok = offset >= from && timestamp >= t
		return !ok
	})
	if err != nil || !ok {
		return 0, 0, false, err
	}
	return offset, timestamp, true, nil
}

var (
	errSize       = errors.New("record batch: its length is not that of the bytes given")
	errEnd        = errors.New("records end early")
	errRest       = errors.New("data behind the last record")
	errTooLarge   = errors.New("too much data after decompression")
	errVarint     = errors.New("number of variable length is too long")
	errLongLength = errors.New("length of a record is too long a number")
	errLength     = errors.New("length of a record does not match its fields")
	errHeaders    = errors.New("invalid number of record headers")
	errHeaderKey  = errors.New("record header without a key")
)

// reader reads the records of one batch.
type reader struct {
	chunk  []byte // decompressed data
	pos    int    // position of the next byte in chunk
	before int64  // total size of earlier chunks

	source  source // provides the next chunk; nil if there is none
	left    int64  // bytes that the source may still yield
	failed  error  // permanent error of the source
	codec   Codec
	lax     bool   // continue if the length of a record does not match its fields
	lied    bool   // there was such a record
	scratch []byte // holds a record that spans several chunks
	headers []RecordHeader
}

func newReader(b []byte, h Header) reader {
	body := b[HeaderBytes:]
	if h.Codec() == None {
		return reader{chunk: body, failed: io.EOF}
	}
	r := reader{codec: h.Codec(), left: maxDecompressed(len(body))}
	r.source, r.failed = openSource(r.codec, body, r.left)
	return r
}

// close returns the decoder to its pool. Afterwards slices of records are invalid.
func (r *reader) close() {
	if r.source != nil {
		closeSource(r.codec, r.source)
		r.source = nil
	}
	r.chunk, r.failed = nil, io.EOF
}

// fill replaces a chunk that has been read completely. At the end of the data it returns io.EOF.
func (r *reader) fill() error {
	for r.failed == nil {
		r.before += int64(len(r.chunk))
		r.pos = 0
		chunk, err := r.source.next()
		if err != nil {
			r.chunk, r.failed = nil, err
			if err != io.EOF {
				r.failed = decompressFault(r.codec, err)
			}
			break
		}
		r.chunk = chunk
		if r.left -= int64(len(r.chunk)); r.left < 0 {
			r.chunk, r.failed = nil, errTooLarge
			break
		}
		if len(r.chunk) > 0 {
			return nil
		}
	}
	return r.failed
}

// need is like fill, but the end of the data is an error.
func (r *reader) need() error {
	err := r.fill()
	if err == io.EOF {
		return errEnd
	}
	return err
}

// end checks that there is no data left.
func (r *reader) end() error {
	if r.pos < len(r.chunk) {
		return errRest
	}
	switch err := r.fill(); err {
	case io.EOF:
		return nil
	case nil:
		return errRest
	default:
		return err
	}
}

// defect must be called after end. It returns an error if the compressed data has a defect that did
// not prevent reading it.
func (r *reader) defect() error {
	if r.source != nil {
		if err := r.source.defect(); err != nil {
			return decompressFault(r.codec, err)
		}
	}
	return nil
}

// record reads the next record and returns its offset delta. It stores the record in rec, unless
// rec is nil.
func (r *reader) record(rec *Record) (int32, error) {
	if rec == nil {
		if n, delta := skip(r.chunk[r.pos:]); n > 0 {
			r.pos += n
			return delta, nil
		}
	}
	length, err := r.varint()
	if err == errVarint {
		return 0, errLongLength
	}
	if err != nil {
		return 0, err
	}
	if rec == nil {
		return r.fields(int64(length), nil)
	}
	if length < 0 {
		return 0, errLength
	}
	// The next chunk overwrites this one, so a record that is returned must be in one piece.
	body, err := r.gather(int(length))
	if err != nil {
		return 0, err
	}
	whole := reader{chunk: body, failed: io.EOF, headers: r.headers[:0]}
	delta, err := whole.fields(int64(len(body)), rec)
	r.headers = whole.headers
	return delta, err
}

// skip returns the size and the offset delta of the record at the beginning of b, without the cost
// of [reader.fields]. It only handles the most common form: no headers, and no number of more than
// two bytes except for the timestamp. If the record has another form, or is incomplete or invalid,
// the size is 0 and the caller must use [reader.fields].
func skip(b []byte) (size int, delta int32) {
	length, i := short(b, 0)
	end := i + int(length)
	if i == 0 || length < 0 || end > len(b) {
		return 0, 0
	}
	b = b[:end]
	i++ // the attributes
	for most := i + 9; i < len(b) && b[i] >= 0x80; i++ {
		if i == most {
			return 0, 0
		}
	}
	i++ // the last byte of the timestamp
	if delta, i = short(b, i); i == 0 {
		return 0, 0
	}
	for range 2 { // key and value
		var n int32
		if n, i = short(b, i); i == 0 {
			return 0, 0
		}
		i += max(0, int(n))
	}
	if i != len(b)-1 || b[i] != 0 {
		return 0, 0
	}
	return end, delta
}

// short reads a number of one or two bytes at b[i:] and returns the index after it. At least one
// more byte must follow in b. The index is 0 if there is no such number.
func short(b []byte, i int) (int32, int) {
	if i+1 >= len(b) {
		return 0, 0
	}
	u := uint32(b[i])
	i++
	if u >= 0x80 {
		if b[i] >= 0x80 {
			return 0, 0
		}
		u = u&0x7f | uint32(b[i])<<7
		i++
	}
	return int32(u>>1) ^ -int32(u&1), i
}

// fields reads the n bytes of a record after its length.
func (r *reader) fields(n int64, rec *Record) (int32, error) {
	end := r.before + int64(r.pos) + n
	if _, err := r.byte(); err != nil { // the attributes, of which none is defined
		return 0, err
	}
	timestamp, err := r.varlong()
	if err != nil {
		return 0, err
	}
	offset, err := r.varint()
	if err != nil {
		return 0, err
	}
	key, err := r.field(end, rec != nil)
	if err != nil {
		return 0, err
	}
	value, err := r.field(end, rec != nil)
	if err != nil {
		return 0, err
	}
	headers, err := r.varint()
	if err != nil {
		return 0, err
	}
	if headers < 0 || int64(headers) > r.rest(end) {
		return 0, errHeaders
	}
	for range headers {
		size, err := r.varint()
		if err != nil {
			return 0, err
		}
		if size < 0 {
			return 0, errHeaderKey
		}
		name, err := r.bytes(size, end, rec != nil)
		if err != nil {
			return 0, err
		}
		value, err := r.field(end, rec != nil)
		if err != nil {
			return 0, err
		}
		if rec != nil {
			r.headers = append(r.headers, RecordHeader{Key: name, Value: value})
		}
	}
	if r.before+int64(r.pos) != end {
		if !r.lax {
			return 0, errLength
		}
		r.lied = true
	}
	if rec != nil {
		*rec = Record{OffsetDelta: offset, TimestampDelta: timestamp, Key: key, Value: value, Headers: r.headers}
	}
	return offset, nil
}

// rest returns the number of bytes that are left of a record that ends at end.
func (r *reader) rest(end int64) int64 {
	if r.lax {
		return math.MaxInt64
	}
	return end - r.before - int64(r.pos)
}

// field reads a length and that many bytes, within a record that ends at end. A negative length
// means null.
func (r *reader) field(end int64, keep bool) ([]byte, error) {
	size, err := r.varint()
	if err != nil || size < 0 {
		return nil, err
	}
	return r.bytes(size, end, keep)
}

// bytes reads size bytes. It returns them only if keep is set; then they must be in the current
// chunk.
func (r *reader) bytes(size int32, end int64, keep bool) ([]byte, error) {
	n := int(size)
	if int64(n) > r.rest(end) {
		return nil, errLength
	}
	if have := len(r.chunk) - r.pos; n <= have {
		b := r.chunk[r.pos : r.pos+n : r.pos+n]
		r.pos += n
		return b, nil
	}
	if keep {
		return nil, errEnd
	}
	for have := len(r.chunk) - r.pos; n > have; have = len(r.chunk) {
		n -= have
		if err := r.need(); err != nil {
			return nil, err
		}
	}
	r.pos = n
	return nil, nil
}

// gather reads n bytes and returns them in one piece. Its buffer grows only as data arrives,
// because n may be a made-up number.
func (r *reader) gather(n int) ([]byte, error) {
	if n <= len(r.chunk)-r.pos {
		b := r.chunk[r.pos : r.pos+n]
		r.pos += n
		return b, nil
	}
	r.scratch = r.scratch[:0]
	for {
		part := min(n-len(r.scratch), len(r.chunk)-r.pos)
		r.scratch = append(r.scratch, r.chunk[r.pos:r.pos+part]...)
		r.pos += part
		if len(r.scratch) == n {
			return r.scratch, nil
		}
		if err := r.need(); err != nil {
			return nil, err
		}
	}
}

func (r *reader) byte() (byte, error) {
	if r.pos == len(r.chunk) {
		if err := r.need(); err != nil {
			return 0, err
		}
	}
	c := r.chunk[r.pos]
	r.pos++
	return c, nil
}

// varint reads a zigzag-encoded number of up to five bytes. Bits beyond 32 are dropped, as in Java.
func (r *reader) varint() (int32, error) {
	if r.pos < len(r.chunk) && r.chunk[r.pos] < 0x80 {
		c := uint32(r.chunk[r.pos])
		r.pos++
		return int32(c>>1) ^ -int32(c&1), nil
	}
	v, err := r.uvarint(5)
	u := uint32(v)
	return int32(u>>1) ^ -int32(u&1), err
}

// varlong is like varint, for up to ten bytes.
func (r *reader) varlong() (int64, error) {
	v, err := r.uvarint(10)
	return int64(v>>1) ^ -int64(v&1), err
}

func (r *reader) uvarint(most int) (uint64, error) {
	var v uint64
	for shift := 0; shift < 7*most; shift += 7 {
		c, err := r.byte()
		if err != nil {
			return 0, err
		}
		v |= uint64(c&0x7f) << shift
		if c < 0x80 {
			return v, nil
		}
	}
	return 0, errVarint
}

// maxDecompressed returns the maximum size after decompression of n bytes of compressed records. It
// has a minimum in addition to the factor, because a few hundred equal records compress better than
// 1000 to 1.
func maxDecompressed(n int) int64 {
	return min(max(1000*int64(n), 16<<20), 256<<20)
}
