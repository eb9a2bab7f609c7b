package commitlog

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"sync"

	"github.com/diaspora-streams/diaspora/internal/batch"
)

// A scanner reads the batches of a segment in order and checks them: each has to
// begin with the offset at which the one before it ends, and its checksum must be right. It has one
// buffer of fixed size, whatever the size of the batches.
type scanner struct {
	file   io.ReaderAt
	at     int64 // where the next batch begins
	end    int64 // where the segment ends
	offset int64 // the offset that the next batch must begin with
	loose  bool  // do not check checksums

	buf   *[scanBytes]byte
	from  int64 // where the bytes in the buffer are from
	count int   // how many there are
	chunk int   // how many are read at once
}

const (
	scanBytes  = 256 << 10
	checksumAt = 17 // of a batch; it covers what is behind it
	coveredAt  = 21
)

var (
	scanBuffers = sync.Pool{New: func() any { return new([scanBytes]byte) }}
	castagnoli  = crc32.MakeTable(crc32.Castagnoli)
)

// newScanner scans from at, where a batch with the given offset should begin, up to end.
func newScanner(file io.ReaderAt, at, end, offset int64) *scanner {
	return &scanner{file: file, at: at, end: end, offset: offset, chunk: scanBytes, buf: scanBuffers.Get().(*[scanBytes]byte)}
}

// free gives the buffer back.
func (s *scanner) free() {
	scanBuffers.Put(s.buf)
	s.buf = nil
}

// next returns the header of the next batch and where it begins; io.EOF at the end; an
// ErrDamaged if what follows is not the next batch; or another error of reading.
func (s *scanner) next() (h batch.Header, at int64, err error) {
	at = s.at
	if at >= s.end {
		return h, at, io.EOF
	}
	b, err := s.peek(at, int(min(batch.HeaderBytes, s.end-at)))
	if err != nil {
		return h, at, err
	}
	h, err = checkHeader(b, s.offset, s.end-at)
	if err == nil && !s.loose {
		err = s.checksum(h, at)
	}
	if err != nil {
		return h, at, fmt.Errorf("at byte %d: %w", at, err)
	}
	s.at += int64(h.Size())
	s.offset = h.LastOffset() + 1
	return h, at, nil
}

// checkHeader checks the header of a batch that should begin with the offset and have a place in
// so many bytes.
func checkHeader(b []byte, offset, space int64) (batch.Header, error) {
	h, err := batch.ParseHeader(b)
	switch {
	case err != nil:
		return h, fmt.Errorf("%w: %w", ErrDamaged, err)
	case h.BaseOffset != offset:
		return h, fmt.Errorf("%w: offset %d where %d should be", ErrDamaged, h.BaseOffset, offset)
	case h.LastOffsetDelta < 0 || int64(h.Size()) > space:
		return h, fmt.Errorf("%w: batch of %d bytes in the last %d", ErrDamaged, h.Size(), space)
	}
	return h, nil
}

func (s *scanner) checksum(h batch.Header, at int64) error {
	sum := uint32(0)
	for pos, end := at+coveredAt, at+int64(h.Size()); pos < end; {
		b, err := s.peek(pos, 1)
		if err != nil {
			return err
		}
		b = b[:min(int64(len(b)), end-pos)]
		sum = crc32.Update(sum, castagnoli, b)
		pos += int64(len(b))
	}
	if sum != h.CRC {
		return fmt.Errorf("%w: wrong checksum", ErrDamaged)
	}
	return nil
}

// peek returns at least n of the bytes from pos on.
func (s *scanner) peek(pos int64, n int) ([]byte, error) {
	if skip := pos - s.from; skip < 0 || skip+int64(n) > int64(s.count) {
		s.from, s.count = pos, int(min(int64(max(n, s.chunk)), s.end-pos))
		if err := readFull(s.file, s.buf[:s.count], pos); err != nil {
			s.count = 0
			return nil, err
		}
	}
	return s.buf[pos-s.from : s.count], nil
}

// readFull reads all of b. That the file is too short is damage.
func readFull(file io.ReaderAt, b []byte, at int64) error {
	n, err := file.ReadAt(b, at)
	switch {
	case n == len(b):
		return nil
	case err == nil || err == io.EOF:
		return fmt.Errorf("%w: the file ends at byte %d", ErrDamaged, at+int64(n))
	}
	return err
}

// stampOffset sets the base offset of a batch. No checksum covers it.
func stampOffset(b []byte, offset int64) { binary.BigEndian.PutUint64(b, uint64(offset)) }
