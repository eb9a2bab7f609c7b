package spool

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"
)

const (
	version          = 1
	headerBytes      = 256
	frameHeaderBytes = 16
	minBodyBytes     = 2 // the lengths of topic and ID
	maxSubjectBytes  = 128
	segmentMagic     = "DSPSEG\r\n"
	segmentNameForm  = "%08x-%016x.seg"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(seed uint32, b []byte) uint32 { return crc32.Update(seed, castagnoli, b) }

type uuid [16]byte

// segmentHeader stands at the start of each segment.
type segmentHeader struct {
	spool uuid
	id    uint64 // segments are ordered by ID
	base  uint64 // the position of the segment's first entry
	// When this segment was created, all entries of earlier segments below this position were
	// synced.
	settled uint64
	created time.Time
	subject string // the identity that logged the events
}

// segmentName returns a file name with the segment's ID and base. Both are in the header too, so
// that a single bad sector cannot lose them.
func segmentName(id, base uint64) string { return fmt.Sprintf(segmentNameForm, id, base) }

func parseSegmentName(name string) (id, base uint64, ok bool) {
	n, err := fmt.Sscanf(name, segmentNameForm, &id, &base)
	return id, base, err == nil && n == 2 && name == segmentName(id, base)
}

func (h *segmentHeader) encode() []byte {
	b := make([]byte, 0, headerBytes)
	b = append(b, segmentMagic...)
	b = le.AppendUint32(b, version)
	b = append(b, h.spool[:]...)
	b = le.AppendUint64(b, h.id)
	b = le.AppendUint64(b, h.base)
	b = le.AppendUint64(b, h.settled)
	b = le.AppendUint64(b, uint64(h.created.UnixMilli()))
	b = append(b, byte(len(h.subject)))
	b = append(b, h.subject...)
	b = b[:headerBytes]
	le.PutUint32(b[headerBytes-4:], checksum(0, b[:headerBytes-4]))
	return b
}

var (
	errSegmentHeader = errors.New("the segment's header is damaged")

	// ErrVersion means that a later version of this software wrote the spool.
	ErrVersion = errors.New("the spool was written by a later version")
)

func parseSegmentHeader(b []byte) (segmentHeader, error) {
	var h segmentHeader
	if len(b) < headerBytes || string(b[:8]) != segmentMagic ||
		checksum(0, b[:headerBytes-4]) != le.Uint32(b[headerBytes-4:headerBytes]) {
		return h, errSegmentHeader
	}
	if v := le.Uint32(b[8:]); v != version {
		return h, fmt.Errorf("%w: a segment has version %d, this software supports %d", ErrVersion, v, version)
	}
	h.spool = uuid(b[12:28])
	h.id = le.Uint64(b[28:])
	h.base = le.Uint64(b[36:])
	h.settled = le.Uint64(b[44:])
	h.created = time.UnixMilli(int64(le.Uint64(b[52:]))).UTC()
	n := int(b[60])
	if n > maxSubjectBytes {
		return h, errSegmentHeader
	}
	h.subject = string(b[61 : 61+n])
	return h, nil
}

// seeds are the initial values of the checksums of a segment's frames. They differ between spools
// and, for frame headers, between segments. So bytes of another spool, or of a segment that used
// the same disk blocks before, are not mistaken for a frame of this one.
type seeds struct{ frame, body uint32 }

func newSeeds(spool uuid, base uint64) seeds {
	body := checksum(0, spool[:])
	return seeds{body: body, frame: checksum(body, le.AppendUint64(nil, base))}
}

// frame is the content of a frame's header. On disk, in little-endian byte order:
//
//	length of the body  3 bytes
//	flags               1
//	index               4  the entry's position minus the segment's base
//	checksum of body    4  CRC32C
//	checksum            4  CRC32C of these 12 bytes
type frame struct {
	length int
	flags  byte
	index  uint32
	body   uint32
}

// put writes f to b, which has frameHeaderBytes bytes.
func (s seeds) put(b []byte, f frame) {
	le.PutUint32(b, uint32(f.length)|uint32(f.flags)<<24)
	le.PutUint32(b[4:], f.index)
	le.PutUint32(b[8:], f.body)
	le.PutUint32(b[12:], checksum(s.frame, b[:12]))
}

// parse decodes what put wrote. ok is false if b is not a frame header of this segment.
func (s seeds) parse(b []byte) (f frame, ok bool) {
	f.length = int(b[0]) | int(b[1])<<8 | int(b[2])<<16
	f.flags = b[3]
	if f.flags&kindMask != kindEntry || f.length < minBodyBytes {
		return f, false
	}
	f.index = le.Uint32(b[4:])
	f.body = le.Uint32(b[8:])
	return f, checksum(s.frame, b[:12]) == le.Uint32(b[12:])
}

// scanner reads the frames of a segment and skips bytes that are not part of a good frame. It reads
// ahead, but never beyond end.
type scanner struct {
	src   io.ReaderAt
	seeds seeds
	off   int64  // where the next frame should begin
	end   int64  // where the segment ends
	index uint32 // the lowest index that the next frame may have

	buf   []byte // data that was read ahead; it begins at bufAt
	bufAt int64
	chunk int // how many bytes to read ahead
}

// A scanned is a good frame, or the end of the segment (io.EOF), together with the bad bytes before
// it.
type scanned struct {
	frame
	at      int64  // where the frame header begins
	content []byte // valid until the next call
	bad     int64  // how many bytes before the frame are not part of a good frame
}

const readAhead = 256 << 10

func newScanner(src io.ReaderAt, s seeds, end int64) *scanner {
	return &scanner{src: src, seeds: s, off: headerBytes, end: max(end, headerBytes), chunk: readAhead}
}

// next returns the next good frame, io.EOF at the end of the segment, or an error of the disk.
// After an error it can be called again.
func (s *scanner) next() (scanned, error) {
	from, at := s.off, s.off
	lost := uint32(0) // how many frames the bad bytes can hold at most
	for {
		if s.end-at < frameHeaderBytes+minBodyBytes {
			return scanned{at: s.end, bad: s.end - from}, io.EOF
		}
		f, ok, err := s.frameAt(at, lost)
		if err != nil {
			return scanned{}, err
		}
		if !ok {
			at++
			lost = uint32((at-from)/(frameHeaderBytes+minBodyBytes)) + 1
			continue
		}
		content, err := s.peek(at+frameHeaderBytes, f.length)
		if err != nil {
			return scanned{}, err
		}
		after := at + frameHeaderBytes + int64(f.length)
		if checksum(s.seeds.body, content) == f.body {
			s.off, s.index = after, f.index+1
			return scanned{frame: f, at: at, content: content, bad: at - from}, nil
		}
		// The header's checksum is good, so the length is right. Only this frame is lost.
		at, lost = after, lost+1
		lost = max(lost, uint32((at-from)/(frameHeaderBytes+minBodyBytes)))
	}
}

// frameAt returns the frame header at an offset. It reports false if there is no valid header, the
// frame would end beyond the segment, or its index cannot follow the last good frame. lost is how
// many frames can have been in the bad bytes between.
func (s *scanner) frameAt(at int64, lost uint32) (frame, bool, error) {
	b, err := s.peek(at, frameHeaderBytes)
	if err != nil {
		return frame{}, false, err
	}
	f, ok := s.seeds.parse(b)
	ok = ok && f.index >= s.index && f.index-s.index <= lost &&
		int64(f.length) <= s.end-at-frameHeaderBytes
	return f, ok, nil
}

// peek returns n bytes at an offset. The caller makes sure that they lie before end.
func (s *scanner) peek(at int64, n int) ([]byte, error) {
	if at >= s.bufAt && at+int64(n) <= s.bufAt+int64(len(s.buf)) {
		i := at - s.bufAt
		return s.buf[i : i+int64(n)], nil
	}
	size := int(min(int64(max(n, s.chunk)), s.end-at))
	if cap(s.buf) < size {
		s.buf = make([]byte, size)
	}
	s.buf, s.bufAt = s.buf[:size], at
	got, err := s.src.ReadAt(s.buf, at)
	if got < size {
		s.buf = s.buf[:0]
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return s.buf[:n], nil
}
