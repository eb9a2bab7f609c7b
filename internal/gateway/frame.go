package gateway

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	// readerBytes is the largest part of a frame that a frameReader holds.
	readerBytes = 4 << 10
	// firstBytes is the size of the buffer that each direction of a connection has, even when idle.
	// Most requests fit into it.
	firstBytes = 512
)

// errFrame means that a client sent something that no Kafka client sends.
var errFrame = errors.New("bad request")

func frameError(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errFrame, fmt.Sprintf(format, args...))
}

// frameReader reads frames from one direction of a connection. A frame is a four-byte size,
// followed by that many bytes.
type frameReader struct {
	r          io.Reader
	first      [firstBytes]byte
	large      *[readerBytes]byte // used instead of first if that is too small, until it is empty; from a pool
	start, end int                // what has been read but not used, in the buffer
}

var largeBuffers = sync.Pool{New: func() any { return new([readerBytes]byte) }}

func (f *frameReader) buffer() []byte {
	if f.large != nil {
		return f.large[:]
	}
	return f.first[:]
}

func (f *frameReader) buffered() int { return f.end - f.start }

// makeRoom moves what is buffered to the beginning of the buffer, which then has room for n bytes in
// all. An empty buffer becomes the small one, because the next frame may be long in coming.
func (f *frameReader) makeRoom(n int) {
	large, b := f.large, f.buffer()[f.start:f.end]
	switch {
	case len(b) == 0:
		f.large = nil
	case n > len(f.buffer()):
		f.large = largeBuffers.Get().(*[readerBytes]byte)
	}
	f.start, f.end = 0, copy(f.buffer(), b)
	if large != nil && f.large == nil {
		largeBuffers.Put(large)
	}
}

// peek returns the next n bytes without consuming them. n is at most readerBytes. The bytes are valid
// until they are discarded and something else is read.
func (f *frameReader) peek(n int) ([]byte, error) {
	for f.buffered() < n {
		f.makeRoom(n)
		m, err := f.r.Read(f.buffer()[f.end:])
		f.end += m
		if err != nil && f.end < n {
			if f.end > 0 {
				err = unexpected(err)
			}
			return nil, err
		}
	}
	return f.buffer()[f.start : f.start+n], nil
}

// discard consumes n bytes that peek has returned.
func (f *frameReader) discard(n int) { f.start += n }

// Read reads at least one byte. A large read bypasses the buffer if it is empty. A small one fills
// the buffer first, because a request has many small fields.
func (f *frameReader) Read(p []byte) (int, error) {
	if f.start == f.end && len(p) >= readerBytes {
		return f.r.Read(p)
	}
	if f.start == f.end && len(p) > 0 {
		if _, err := f.peek(1); err != nil {
			return 0, err
		}
	}
	n := copy(p, f.buffer()[f.start:f.end])
	f.start += n
	return n, nil
}

// size returns the size of the next frame, which begins at the next byte.
func (f *frameReader) size() (int, error) {
	b, err := f.peek(4)
	if err != nil {
		return 0, err
	}
	return int(int32(binary.BigEndian.Uint32(b))), nil
}

// readN returns the next n bytes in a new slice. The slice grows as the bytes arrive, because n
// comes from the client and may be wrong.
func (f *frameReader) readN(n int) ([]byte, error) {
	b := make([]byte, 0, min(n, readerBytes))
	for len(b) < n {
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
		m, err := f.Read(b[len(b):min(cap(b), n)])
		b = b[:len(b)+m]
		if err != nil && len(b) < n {
			return nil, unexpected(err)
		}
	}
	return b, nil
}

// unexpected turns io.EOF into io.ErrUnexpectedEOF, for a stream that ends in the middle of a
// frame.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// header is the beginning of every request.
type header struct {
	key, version int16
	correlation  int32
}

const headerBytes = 8

func parseHeader(b []byte) header {
	return header{
		key:         int16(binary.BigEndian.Uint16(b)),
		version:     int16(binary.BigEndian.Uint16(b[2:])),
		correlation: int32(binary.BigEndian.Uint32(b[4:])),
	}
}

func (h header) String() string {
	return fmt.Sprintf("%s (key %d) version %d", kmsg.NameForKey(h.key), h.key, h.version)
}

// appendResponse appends the frame of a response to dst.
func appendResponse(dst []byte, correlation int32, response kmsg.Response) []byte {
	at := len(dst)
	dst = append(dst, 0, 0, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, uint32(correlation))
	if response.IsFlexible() && response.Key() != keyApiVersions {
		dst = append(dst, 0) // no tags
	}
	dst = response.AppendTo(dst)
	binary.BigEndian.PutUint32(dst[at:], uint32(len(dst)-at-4))
	return dst
}

// appendRequest returns the frame of a request.
func appendRequest(request kmsg.Request, correlation int32) []byte {
	return kmsg.NewRequestFormatter().AppendRequest(nil, request, correlation)
}

// maxOwnResponseBytes limits an answer to a request of the gateway's own.
const maxOwnResponseBytes = 1 << 20

// readResponse reads an answer and returns it without size and correlation ID.
func readResponse(from *frameReader) ([]byte, error) {
	size, err := from.size()
	if err != nil {
		return nil, err
	}
	if size < 4 || size > maxOwnResponseBytes {
		return nil, fmt.Errorf("response of %d bytes", size)
	}
	from.discard(4)
	frame, err := from.readN(size)
	if err != nil {
		return nil, err
	}
	return frame[4:], nil
}
