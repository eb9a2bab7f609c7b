package kfakedir

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"

	"github.com/diaspora-streams/diaspora/internal/batch"
)

func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// batchState is the result of checking a batch on its own, without its neighbours.
type batchState int

const (
	sound       batchState = iota
	incomplete             // the file ends within the batch
	badHeader              // no batch begins here
	badChecksum            // the header can be parsed, but the checksum is wrong
)

const (
	sourceBytes   = 256 << 10
	maxBatchBytes = 1 << 30 // as in the old engine
	magicAt       = 16
	magic         = 2
)

// source is a segment file. It reads a file of any size through one buffer.
type source struct {
	file   io.ReaderAt
	size   int64
	buf    []byte
	at     int64 // position of buf in the file
	budget int64 // how many bytes [source.search] may still read; a crafted file could make it take very long
}

// newSource returns a source that uses buf, which must have a capacity of sourceBytes.
func newSource(file io.ReaderAt, size int64, buf []byte) *source {
	return &source{file: file, size: size, buf: buf[:0], budget: 16*size + 64<<20}
}

// peek returns n bytes at pos, or fewer if the file ends there. They are valid until the next call.
func (s *source) peek(pos int64, n int) ([]byte, error) {
	n = int(min(int64(n), sourceBytes, max(s.size-pos, 0)))
	if pos < s.at || pos+int64(n) > s.at+int64(len(s.buf)) {
		s.buf = s.buf[:min(sourceBytes, s.size-pos)]
		s.at = pos
		if _, err := s.file.ReadAt(s.buf, pos); err != nil {
			s.buf = s.buf[:0]
			return nil, err
		}
	}
	return s.buf[pos-s.at:][:n], nil
}

// header returns the header at pos, or false if there is no valid one.
func (s *source) header(pos int64) (batch.Header, bool, error) {
	b, err := s.peek(pos, batch.HeaderBytes)
	if err != nil {
		return batch.Header{}, false, err
	}
	h, err := batch.ParseHeader(b)
	return h, err == nil && h.Length <= maxBatchBytes, nil
}

// batch checks the batch at pos on its own.
func (s *source) batch(pos int64) (batch.Header, batchState, error) {
	if s.size-pos < batch.HeaderBytes {
		return batch.Header{}, incomplete, nil
	}
	h, ok, err := s.header(pos)
	switch {
	case err != nil:
		return h, 0, err
	case !ok:
		return h, badHeader, nil
	case pos+int64(h.Size()) > s.size:
		return h, incomplete, nil
	}
	sum := uint32(0)
	for at, end := pos+attributesAt, pos+int64(h.Size()); at < end; {
		b, err := s.peek(at, int(min(end-at, sourceBytes)))
		if err != nil {
			return h, 0, err
		}
		sum = crc32.Update(sum, castagnoli, b)
		at += int64(len(b))
	}
	if sum != h.CRC {
		return h, badChecksum, nil
	}
	return h, sound, nil
}

// search finds the next batch after a damaged one at pos. It returns the size of the file if there
// is none. It first tries the length of the damaged batch, which may be correct. Otherwise it tries
// every position where a header with a base offset of at least least can be parsed.
func (s *source) search(pos, least int64) (int64, error) {
	if h, ok, err := s.header(pos); err != nil {
		return 0, err
	} else if ok {
		next := pos + int64(h.Size())
		if begins, err := s.begins(next); begins || err != nil {
			return next, err
		}
	}
	for pos++; s.size-pos >= batch.HeaderBytes && s.budget > 0; {
		window, err := s.peek(pos, sourceBytes)
		if err != nil {
			return 0, err
		}
		i := candidate(window, least)
		if i < 0 {
			pos += int64(len(window)) - batch.HeaderBytes + 1
			continue
		}
		pos += int64(i)
		if begins, err := s.begins(pos); begins || err != nil {
			return pos, err
		}
		pos++
	}
	return s.size, nil
}

// candidate returns the first position in window where a batch may begin, or -1.
func candidate(window []byte, least int64) int {
	for i := 0; i+batch.HeaderBytes <= len(window); i++ {
		found := bytes.IndexByte(window[i+magicAt:], magic)
		if found < 0 {
			return -1
		}
		if i += found; i+batch.HeaderBytes > len(window) {
			return -1
		}
		h, err := batch.ParseHeader(window[i:])
		if err == nil && h.BaseOffset >= least && h.BaseOffset <= maxOffset && soundCount(h) {
			return i
		}
	}
	return -1
}

// begins reports whether a complete batch begins at pos. The value of a record may look like a
// batch, so the batch must be followed by another one or by the end of the file.
func (s *source) begins(pos int64) (bool, error) {
	h, state, err := s.batch(pos)
	s.budget -= sourceBytes
	if state == sound || state == badChecksum {
		s.budget -= int64(h.Size())
	}
	if err != nil || state != sound || !soundCount(h) {
		return false, err
	}
	rest, err := s.peek(pos+int64(h.Size()), batch.HeaderBytes)
	if err != nil {
		return false, err
	}
	offset := binary.BigEndian.AppendUint64(nil, uint64(h.LastOffset()+1))
	if len(rest) <= magicAt {
		return bytes.HasPrefix(offset, rest[:min(len(rest), len(offset))]), nil
	}
	return bytes.HasPrefix(rest, offset) && rest[magicAt] == magic, nil
}
