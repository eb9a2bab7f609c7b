package journal

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/diaspora-streams/diaspora/internal/disk"
)

const (
	version          = 1
	headerBytes      = 40
	frameHeaderBytes = 24

	maxEntryBytes = 16 << 20 // key and value of one entry
	maxCallBytes  = 64 << 20 // all entries of one call
	joinBytes     = 1 << 20  // calls join a waiting frame that is smaller than this
	maxFrameBytes = 80 << 20 // more than maxCallBytes, joinBytes and the lengths together

	readAhead = 256 << 10
)

var (
	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

func checksum(seed uint32, b []byte) uint32 { return crc32.Update(seed, castagnoli, b) }

// kind is a kind of file: its magic bytes.
type kind string

const (
	logKind      kind = "DSPLOG\r\n"
	snapshotKind kind = "DSPSNAP\n"
)

// newHeader returns the header of a new file, and the seed of its frames' checksums.
func newHeader(k kind, number uint64) (header []byte, seed uint32) {
	b := append(make([]byte, 0, headerBytes), k...)
	b = le.AppendUint32(b, version)
	b = le.AppendUint64(b, number)
	b = b[:headerBytes-4]
	id := b[headerBytes-20:]
	rand.Read(id)
	return le.AppendUint32(b, checksum(0, b)), checksum(0, id)
}

var errHeader = errors.New("the file's header is damaged")

// parseHeader checks the header of a file. It returns the seed of the frames' checksums.
func parseHeader(b []byte, k kind, number uint64) (seed uint32, err error) {
	if len(b) < headerBytes || kind(b[:8]) != k || le.Uint32(b[headerBytes-4:]) != checksum(0, b[:headerBytes-4]) {
		return 0, errHeader
	}
	if v := le.Uint32(b[8:]); v != version {
		return 0, fmt.Errorf("%w: version %d, this program knows %d", ErrVersion, v, version)
	}
	if le.Uint64(b[12:]) != number {
		return 0, errHeader
	}
	return checksum(0, b[20:36]), nil
}

// Flags of a frame.
const (
	flagSettled = 1 << iota // everything before this frame was synced when it was written
	flagEnd                 // the last frame of a snapshot
	knownFlags  = flagSettled | flagEnd
)

// frame is the header of a frame.
type frame struct {
	length   int
	flags    uint32
	sequence uint64
	payload  uint32 // checksum
}

// sum returns the checksum of a frame's header b at the offset at.
func sum(seed uint32, at int64, b []byte) uint32 {
	return checksum(seed^uint32(at)^uint32(at>>32), b[:frameHeaderBytes-4])
}

// seal completes the frame b, whose payload follows the space for its header. The frame will be
// written at the offset at.
func seal(b []byte, seed uint32, at int64, flags uint32, sequence uint64) {
	payload := b[frameHeaderBytes:]
	le.PutUint32(b, uint32(len(payload)))
	le.PutUint32(b[4:], flags)
	le.PutUint64(b[8:], sequence)
	le.PutUint32(b[16:], checksum(0, payload))
	le.PutUint32(b[20:], sum(seed, at, b))
}

// parseFrame parses a header that seal has written.
func parseFrame(b []byte, seed uint32, at int64) (f frame, ok bool) {
	f = frame{length: int(le.Uint32(b)), flags: le.Uint32(b[4:]), sequence: le.Uint64(b[8:]), payload: le.Uint32(b[16:])}
	ok = f.flags&^knownFlags == 0 && f.length > 0 && f.length <= maxFrameBytes && le.Uint32(b[20:]) == sum(seed, at, b)
	return f, ok
}

// appendEntry appends an entry to a frame's payload.
func appendEntry(b []byte, e Entry) []byte {
	b = binary.AppendUvarint(b, uint64(len(e.Key)))
	b = append(b, e.Key...)
	if e.Value == nil {
		return append(b, 0)
	}
	b = binary.AppendUvarint(b, uint64(len(e.Value))+1)
	return append(b, e.Value...)
}

var errPayload = errors.New("the entries of a frame are damaged")

// parseEntries calls f for each entry of a payload. The entries refer to the payload.
func parseEntries(payload []byte, f func(Entry) error) error {
	for len(payload) > 0 {
		n, used := binary.Uvarint(payload)
		if used <= 0 || n > uint64(len(payload)-used) {
			return errPayload
		}
		payload = payload[used:]
		e := Entry{Key: payload[:n:n]}
		payload = payload[n:]
		n, used = binary.Uvarint(payload)
		if used <= 0 || n > uint64(len(payload)-used)+1 {
			return errPayload
		}
		payload = payload[used:]
		if n > 0 {
			e.Value = payload[: n-1 : n-1]
			payload = payload[n-1:]
		}
		if err := f(e); err != nil {
			return err
		}
	}
	return nil
}

// scanner reads the frames of a file in order. It reads ahead, but never past the end.
type scanner struct {
	src  io.ReaderAt
	seed uint32
	at   int64 // offset of the next frame
	end  int64 // the size of the file

	buf   []byte // read-ahead buffer; starts at bufAt
	bufAt int64
}

func newScanner(src disk.File, seed uint32, size int64) *scanner {
	return &scanner{src: src, seed: seed, at: headerBytes, end: max(size, headerBytes)}
}

var errTorn = errors.New("no frame")

// next returns the next frame. The payload is valid until the next call. At the end of the file
// next returns [io.EOF]. If there is no valid frame, it returns errTorn.
func (s *scanner) next() (f frame, payload []byte, err error) {
	if s.at == s.end {
		return f, nil, io.EOF
	}
	if s.end-s.at < frameHeaderBytes {
		return f, nil, errTorn
	}
	b, err := s.peek(s.at, frameHeaderBytes)
	if err != nil {
		return f, nil, err
	}
	f, ok := parseFrame(b, s.seed, s.at)
	if !ok || int64(f.length) > s.end-s.at-frameHeaderBytes {
		return f, nil, errTorn
	}
	if payload, err = s.peek(s.at+frameHeaderBytes, f.length); err != nil {
		return f, nil, err
	}
	if checksum(0, payload) != f.payload {
		return f, nil, errTorn
	}
	s.at += frameHeaderBytes + int64(f.length)
	return f, payload, nil
}

// search moves to the next valid frame after a position where there is none. It returns [io.EOF] if
// there is no further frame.
func (s *scanner) search() (frame, error) {
	for s.at++; s.at < s.end; s.at++ {
		at := s.at
		f, _, err := s.next()
		if err != errTorn {
			s.at = at
			return f, err
		}
	}
	return frame{}, io.EOF
}

// peek returns n bytes at an offset. They must be before the end of the file.
func (s *scanner) peek(at int64, n int) ([]byte, error) {
	if at >= s.bufAt && at+int64(n) <= s.bufAt+int64(len(s.buf)) {
		i := at - s.bufAt
		return s.buf[i : i+int64(n)], nil
	}
	size := int(min(int64(max(n, readAhead)), s.end-at))
	if cap(s.buf) < size {
		s.buf = make([]byte, size)
	}
	s.buf, s.bufAt = s.buf[:size], at
	if got, err := s.src.ReadAt(s.buf, at); got < size {
		s.buf = s.buf[:0]
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF // the file is shorter than its size
		}
		return nil, err
	}
	return s.buf[:n], nil
}
