package commitlog

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"sync"

	"github.com/diaspora-streams/diaspora/internal/batch"
)

// scanner reads the batches of a segment in order and checks them. Each batch must begin at the
// offset where the one before it ends, and its checksum must be correct. The scanner has one buffer
// of fixed size, whatever the size of the batches.
type scanner struct {
	file          io.ReaderAt
	at            int64 // position of the next batch
	end           int64 // end of the segment
	offset        int64 // the expected offset of the next batch
	skipChecksums bool  // do not check checksums

	buf   *[scanBytes]byte
	from  int64 // position of the buffered bytes
	count int   // number of buffered bytes
	chunk int   // number of bytes to read at once
}

const (
	scanBytes  = 256 << 10
	checksumAt = 17 // position of the checksum in a batch
	coveredAt  = 21
)

var (
	scanBuffers = sync.Pool{New: func() any { return new([scanBytes]byte) }}
	castagnoli  = crc32.MakeTable(crc32.Castagnoli)
)

// newScanner returns a scanner for the bytes from at to end. A batch with the given offset should
// begin at at.
func newScanner(file io.ReaderAt, at, end, offset int64) *scanner {
	return &scanner{file: file, at: at, end: end, offset: offset, chunk: scanBytes, buf: scanBuffers.Get().(*[scanBytes]byte)}
}

// free returns the buffer to its pool.
func (s *scanner) free() {
	scanBuffers.Put(s.buf)
	s.buf = nil
}

// next returns the header of the next batch and its position. It returns io.EOF at the end,
// ErrDamaged if the following bytes are not the next batch, or a read error.
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
	if err == nil && !s.skipChecksums {
		err = s.checksum(h, at)
	}
	if err != nil {
		return h, at, fmt.Errorf("at byte %d: %w", at, err)
	}
	s.at += int64(h.Size())
	s.offset = h.LastOffset() + 1
	return h, at, nil
}

// checkHeader checks the header of a batch that should begin at the given offset and fit into space
// bytes.
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

// peek returns the bytes from pos on, at least n of them.
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

// readFull reads all of b. A file that is too short is damaged.
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

// stampOffset sets the base offset of a batch. The checksum does not cover it.
func stampOffset(b []byte, offset int64) { binary.BigEndian.PutUint64(b, uint64(offset)) }
