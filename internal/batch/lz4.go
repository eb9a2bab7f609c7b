package batch

import (
	"encoding/binary"
	"errors"
	"io"
	"math/bits"

	"github.com/pierrec/lz4/v4"
)

// lz4Source reads one LZ4 frame. As in Apache Kafka, its blocks must be independent of each other.
type lz4Source struct {
	in        []byte
	max       int  // maximum size of a block
	checksums bool // whether each block is followed by a checksum
	checksum  bool // whether the last block is followed by a checksum of all data
	hash      xxh32
	odd       error // the defect
	buf       []byte
}

const (
	lz4Magic         = 0x184d2204
	lz4Uncompressed  = 1 << 31 // flag in the size of a block
	maxLZ4Ratio      = 255     // one byte of a length adds at most this many bytes
	lz4Version       = 1 << 6
	lz4VersionBits   = 3 << 6
	lz4Independent   = 1 << 5
	lz4BlockChecksum = 1 << 4
	lz4ContentSize   = 1 << 3
	lz4Checksum      = 1 << 2
	lz4Reserved      = 3
)

func (s *lz4Source) open(compressed []byte, _ int64) error {
	s.odd = nil
	const fixed = 4 + 2
	if len(compressed) < fixed+1 {
		return errTruncated
	}
	if binary.LittleEndian.Uint32(compressed) != lz4Magic {
		return errors.New("not an LZ4 frame")
	}
	flags, sizes := compressed[4], compressed[5]
	switch {
	case flags&lz4VersionBits != lz4Version, flags&lz4Reserved != 0, sizes&0x8f != 0, sizes>>4 < 4:
		return errInvalid
	case flags&lz4Independent == 0:
		return errors.New("blocks that depend on each other are not supported")
	}
	s.max = 1 << (2*(sizes>>4) + 8)
	s.checksums, s.checksum = flags&lz4BlockChecksum != 0, flags&lz4Checksum != 0
	s.hash = newXXH32()
	end := fixed
	if flags&lz4ContentSize != 0 {
		end += 8
	}
	if len(compressed) <= end {
		return errTruncated
	}
	if compressed[end] != byte(xxh32Of(compressed[4:end])>>8) {
		return errors.New("checksum of the frame header is wrong")
	}
	s.in = compressed[end+1:]
	return nil
}

func (s *lz4Source) close() {
	s.in, s.buf = nil, pooled(s.buf)
}

func (s *lz4Source) defect() error { return s.odd }

func (s *lz4Source) next() ([]byte, error) {
	size, err := s.uint32()
	if err != nil {
		return nil, err
	}
	n := int(size &^ lz4Uncompressed)
	switch {
	case n == 0:
		if size != 0 {
			s.odd = errInvalid
		}
		return nil, s.end()
	case n > s.max:
		return nil, errInvalid
	case n > len(s.in):
		return nil, errTruncated
	}
	block := s.in[:n]
	s.in = s.in[n:]
	if s.checksums {
		if want, err := s.uint32(); err != nil || want != xxh32Of(block) {
			return nil, errors.New("checksum of a block is wrong")
		}
	}
	if size&lz4Uncompressed == 0 {
		s.buf = room(s.buf, min(s.max, maxLZ4Ratio*n))
		n, err := lz4.UncompressBlock(block, s.buf)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			s.odd = errInvalid // Java treats it as the end
			return nil, io.EOF
		}
		block = s.buf[:n]
	}
	if s.checksum {
		s.hash.write(block)
	}
	return block, nil
}

// end checks what follows the last block.
func (s *lz4Source) end() error {
	if s.checksum {
		want, err := s.uint32()
		if err != nil {
			return err
		}
		if want != s.hash.sum() {
			s.odd = errors.New("checksum is wrong")
		}
	}
	if len(s.in) > 0 {
		s.odd = errBehind
	}
	return io.EOF
}

func (s *lz4Source) uint32() (uint32, error) {
	if len(s.in) < 4 {
		return 0, errTruncated
	}
	v := binary.LittleEndian.Uint32(s.in)
	s.in = s.in[4:]
	return v, nil
}

// xxh32 is the hash XXH32 with seed 0, which LZ4 uses as its checksum.
type xxh32 struct {
	lanes [4]uint32
	n     uint64 // bytes hashed
	rest  [16]byte
}

const (
	xxh1 uint32 = 2654435761
	xxh2 uint32 = 2246822519
	xxh3 uint32 = 3266489917
	xxh4 uint32 = 668265263
	xxh5 uint32 = 374761393
)

func newXXH32() xxh32 {
	first, last := xxh1, uint32(0)
	first += xxh2 // computed at run time, because constant expressions must not overflow
	last -= xxh1
	return xxh32{lanes: [4]uint32{first, xxh2, 0, last}}
}

func xxh32Of(b []byte) uint32 {
	h := newXXH32()
	h.write(b)
	return h.sum()
}

func (h *xxh32) write(b []byte) {
	have := int(h.n % 16)
	h.n += uint64(len(b))
	if have > 0 {
		n := copy(h.rest[have:], b)
		if b = b[n:]; have+n < 16 {
			return
		}
		h.stripes(h.rest[:])
	}
	whole := len(b) &^ 15
	h.stripes(b[:whole])
	copy(h.rest[:], b[whole:])
}

// stripes hashes a multiple of 16 bytes.
func (h *xxh32) stripes(b []byte) {
	l0, l1, l2, l3 := h.lanes[0], h.lanes[1], h.lanes[2], h.lanes[3]
	for ; len(b) >= 16; b = b[16:] {
		l0 = bits.RotateLeft32(l0+binary.LittleEndian.Uint32(b)*xxh2, 13) * xxh1
		l1 = bits.RotateLeft32(l1+binary.LittleEndian.Uint32(b[4:])*xxh2, 13) * xxh1
		l2 = bits.RotateLeft32(l2+binary.LittleEndian.Uint32(b[8:])*xxh2, 13) * xxh1
		l3 = bits.RotateLeft32(l3+binary.LittleEndian.Uint32(b[12:])*xxh2, 13) * xxh1
	}
	h.lanes = [4]uint32{l0, l1, l2, l3}
}

func (h *xxh32) sum() uint32 {
	sum := xxh5
	if h.n >= 16 {
		sum = bits.RotateLeft32(h.lanes[0], 1) + bits.RotateLeft32(h.lanes[1], 7) +
			bits.RotateLeft32(h.lanes[2], 12) + bits.RotateLeft32(h.lanes[3], 18)
	}
	sum += uint32(h.n)
	rest := h.rest[:h.n%16]
	for ; len(rest) >= 4; rest = rest[4:] {
		sum = bits.RotateLeft32(sum+binary.LittleEndian.Uint32(rest)*xxh3, 17) * xxh4
	}
	for _, c := range rest {
		sum = bits.RotateLeft32(sum+uint32(c)*xxh5, 11) * xxh1
	}
	sum = (sum ^ sum>>15) * xxh2
	sum = (sum ^ sum>>13) * xxh3
	return sum ^ sum>>16
}
