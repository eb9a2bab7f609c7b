package batch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
)

// source decompresses data.
type source interface {
	// open starts with new data. No more than limit bytes will be needed after decompression.
	open(compressed []byte, limit int64) error

	// next returns the next piece, or io.EOF. The piece is valid until the next call and may be
	// empty. next is not called again after an error.
	next() ([]byte, error)

	// defect is called after next has returned io.EOF. It returns an error if the data has a defect
	// that the decoders in Java ignore, unlike those of other consumers.
	defect() error

	// close releases the data. It is also called after a failed open.
	close()
}

// decompressError means that the data cannot be decompressed.
type decompressError struct {
	codec Codec
	err   error
}

func (e *decompressError) Error() string { return fmt.Sprintf("decompress %v: %v", e.codec, e.err) }
func (e *decompressError) Unwrap() error { return e.err }

// decompressFault returns the error to report for an error of a source.
func decompressFault(c Codec, err error) error {
	if err == errTooLarge {
		return err
	}
	return &decompressError{c, err}
}

var (
	errTruncated = errors.New("truncated data")
	errInvalid   = errors.New("invalid data")
	errBehind    = errors.New("there is something behind the end of the data")
)

// sources pools decoders, because they have buffers of up to a few megabytes.
var sources = [Zstd + 1]sync.Pool{
	Gzip:   {New: func() any { return new(gzipSource) }},
	Snappy: {New: func() any { return new(snappySource) }},
	LZ4:    {New: func() any { return new(lz4Source) }},
	Zstd:   {New: func() any { return new(zstdSource) }},
}

// slots limits the number of batches that are decompressed at the same time. This bounds the memory
// for their buffers when thousands of clients send compressed batches. More slots would not be
// faster, because decompression only needs the processor.
var slots = make(chan struct{}, max(4, runtime.GOMAXPROCS(0)))

func openSource(c Codec, compressed []byte, limit int64) (source, error) {
	if c > Zstd {
		return nil, decompressFault(c, errors.New("unknown codec"))
	}
	slots <- struct{}{}
	s := sources[c].Get().(source)
	if err := s.open(compressed, limit); err != nil {
		closeSource(c, s)
		return nil, decompressFault(c, err)
	}
	return s, nil
}

func closeSource(c Codec, s source) {
	s.close()
	sources[c].Put(s)
	<-slots
}

const maxPooledBytes = 4 << 20 // larger buffers are left to the garbage collector

func pooled(b []byte) []byte {
	if cap(b) > maxPooledBytes {
		return nil
	}
	return b
}

// room returns a slice of n bytes, reusing b if it is large enough.
func room(b []byte, n int) []byte {
	if cap(b) < n {
		return make([]byte, n)
	}
	return b[:n]
}

// gzipSource reads consecutive gzip members.
type gzipSource struct {
	in     bytes.Reader
	gz     gzip.Reader
	failed error // error to return after the data in buf
	odd    error // the defect
	buf    []byte
}

const leastGzipMember = 18 // header and trailer

func (s *gzipSource) open(compressed []byte, _ int64) error {
	s.in.Reset(compressed)
	s.failed, s.odd = nil, nil
	if s.buf == nil {
		s.buf = make([]byte, 16<<10)
	}
	return s.member()
}

func (s *gzipSource) close()        { s.in.Reset(nil) }
func (s *gzipSource) defect() error { return s.odd }

func (s *gzipSource) member() error {
	err := s.gz.Reset(&s.in)
	if err == io.EOF {
		return errTruncated
	}
	s.gz.Multistream(false)
	return err
}

func (s *gzipSource) next() ([]byte, error) {
	if s.failed == io.EOF && s.in.Len() > 0 {
		if s.in.Len() <= leastGzipMember || s.member() != nil {
			s.odd = errBehind
			return nil, io.EOF
		}
		s.failed = nil
	}
	if s.failed != nil {
		return nil, s.failed
	}
	n := 0
	for n < len(s.buf) && s.failed == nil {
		var m int
		m, s.failed = s.gz.Read(s.buf[n:])
		n += m
	}
	if s.failed != nil && s.failed != io.EOF {
		var corrupt flate.CorruptInputError
		if errors.As(s.failed, &corrupt) {
			n = 0 // as in Java: drop the data, so that the error comes first and the code is the same
		}
	}
	return s.buf[:n], nil
}

// snappySource reads Snappy data in the two forms that clients write: a single raw block or, like
// snappy-java, a header of 16 bytes and blocks that are preceded by their length.
type snappySource struct {
	in     []byte
	framed bool
	limit  int64
	odd    error // the defect
	buf    []byte
}

const (
	snappyHeaderBytes = 16 // magic, version and oldest compatible version
	snappyMagic       = "\x82SNAPPY\x00"
	maxSnappyRatio    = 32 // no element of the format decompresses to more per byte
)

func (s *snappySource) open(compressed []byte, limit int64) error {
	s.in, s.limit, s.odd = compressed, limit, nil
	if len(compressed) == 0 {
		return errTruncated
	}
	s.framed = len(compressed) >= snappyHeaderBytes && string(compressed[:len(snappyMagic)]) == snappyMagic
	if s.framed {
		s.in = s.in[snappyHeaderBytes:]
	}
	return nil
}

func (s *snappySource) close() {
	s.in, s.buf = nil, pooled(s.buf)
}

func (s *snappySource) defect() error { return s.odd }

func (s *snappySource) next() ([]byte, error) {
	if !s.framed {
		block := s.in
		s.in, s.framed = nil, true
		return s.block(block)
	}
	for len(s.in) >= snappyHeaderBytes && string(s.in[:len(snappyMagic)]) == snappyMagic {
		s.in = s.in[snappyHeaderBytes:] // two consecutive streams
		s.odd = errBehind
	}
	if len(s.in) < 4 {
		if len(s.in) > 0 {
			s.odd = errBehind
		}
		return nil, io.EOF
	}
	size := binary.BigEndian.Uint32(s.in)
	if uint64(size) > uint64(len(s.in)-4) {
		return nil, errTruncated
	}
	block := s.in[4 : 4+size]
	s.in = s.in[4+size:]
	return s.block(block)
}

func (s *snappySource) block(b []byte) ([]byte, error) {
	n, err := s2.DecodedLen(b)
	if err != nil {
		return nil, err
	}
	if n > maxSnappyRatio*len(b) {
		return nil, errInvalid // rejected before a buffer is allocated for it
	}
	if int64(n) > s.limit {
		return nil, errTooLarge
	}
	s.buf = room(s.buf, n)
	if !strictSnappy(b) {
		return nil, errInvalid
	}
	return s2.Decode(s.buf, b)
}

// strictSnappy reports whether b has no copies with offset 0. The decoder takes these for S2, an
// extension of Snappy that Kafka's consumers do not understand. The decoder detects all other
// faults.
func strictSnappy(b []byte) bool {
	_, i := binary.Uvarint(b)
	for i+1 < len(b) {
		tag := b[i]
		if tag&0b11100011 == 1 && b[i+1] == 0 {
			return false
		}
		if n := int(snappyElement[tag]); n != 0 {
			i += n
			continue
		}
		more := int(tag>>2) - 59 // number of bytes that encode the literal's length
		if i+more >= len(b) {
			break
		}
		var size uint32
		for k := more; k > 0; k-- {
			size = size<<8 | uint32(b[i+k])
		}
		if uint64(size) >= uint64(len(b)) {
			break
		}
		i += 1 + more + int(size) + 1
	}
	return true
}

// snappyElement is the size of an element for each first byte, or 0 if the size depends on more
// bytes. It is a table because branches that depend on the data would make the scan as slow as the
// decoder.
var snappyElement = func() (t [256]uint8) {
	for tag := range t {
		switch tag & 3 {
		case 0:
			if size := tag>>2 + 1; size <= 60 {
				t[tag] = uint8(1 + size)
			}
		case 1:
			t[tag] = 2
		case 2:
			t[tag] = 3
		case 3:
			t[tag] = 5
		}
	}
	return t
}()

// zstdSource reads consecutive zstd frames.
type zstdSource struct {
	in      bytes.Reader
	decoder *zstd.Decoder
	buf     []byte

	large bool   // the data has a large window, and largeWindow is locked
	whole []byte // all of the data, if large
}

const (
	// The window of a frame is how far back the frame refers. A streaming decoder has to keep that
	// much data. Up to level 19 the window is at most 8 MiB. At level 22 it is 128 MiB, even for a
	// few bytes. So data with a window above 8 MiB is decompressed in one piece, one batch at a
	// time, to at most 32 MiB. Apache Kafka accepts no window above 128 MiB.
	usualWindowBytes = 8 << 20
	largeWindowBytes = 128 << 20
	largeDataBytes   = 32 << 20
	zstdBlockBytes   = 128 << 10 // maximum size of a decompressed block
)

// largeWindow is locked while data with a large window is decompressed.
var largeWindow sync.Mutex

func (s *zstdSource) open(compressed []byte, limit int64) error {
	if zstdWindow(compressed) > usualWindowBytes {
		return s.openLarge(compressed, min(limit, largeDataBytes))
	}
	if s.decoder == nil {
		var err error
		s.decoder, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(usualWindowBytes))
		if err != nil {
			return err
		}
		s.buf = make([]byte, 64<<10)
	}
	s.in.Reset(compressed)
	return s.decoder.Reset(&s.in)
}

func (s *zstdSource) openLarge(compressed []byte, limit int64) error {
	largeWindow.Lock()
	s.large = true
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(largeWindowBytes), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return err
	}
	defer decoder.Close()
	s.whole, err = decoder.DecodeAll(compressed, make([]byte, 0, limit))
	if err != nil && int64(len(s.whole))+zstdBlockBytes > limit {
		return errTooLarge // when the buffer is full, the decoder may return various errors
	}
	return err
}

func (s *zstdSource) close() {
	s.in.Reset(nil)
	s.whole = nil
	if s.large {
		s.large = false
		largeWindow.Unlock()
	}
}

func (s *zstdSource) defect() error { return nil }

func (s *zstdSource) next() ([]byte, error) {
	if s.large {
		b := s.whole
		s.whole = nil
		if len(b) == 0 {
			return nil, io.EOF
		}
		return b, nil
	}
	n, err := s.decoder.Read(s.buf)
	if n > 0 {
		return s.buf[:n], nil // Read returns the error again at the next call
	}
	return nil, err
}

// zstdWindow returns the window size of the first frame, or 0 if there is no frame.
func zstdWindow(b []byte) uint64 {
	for len(b) > 0 {
		var h zstd.Header
		rest, err := h.DecodeAndStrip(b)
		switch {
		case err != nil:
			return 0
		case h.Skippable && uint64(h.SkippableSize) <= uint64(len(rest)):
			b = rest[h.SkippableSize:]
		case h.SingleSegment:
			return h.FrameContentSize
		default:
			return h.WindowSize
		}
	}
	return 0
}
