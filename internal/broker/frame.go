package broker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
)

// maxRequestBytes is the largest accepted request. The gateway lets no larger one through.
const maxRequestBytes = 128 << 20

// frame holds the bytes of a request, without the size in front of them. It is also used as a
// buffer for responses.
type frame struct {
	bytes []byte
	class int
}

// Buffers have sizes in classes, each four times as large as the one before, and are pooled by
// class.
const (
	smallestFrame = 4 << 10
	frameClasses  = 8 // up to 64 MiB; larger buffers are not pooled
)

var framePools [frameClasses]sync.Pool

func classBytes(class int) int { return smallestFrame << (2 * class) }

func takeBuffer(class int) []byte {
	if class < frameClasses {
		if buf, ok := framePools[class].Get().(*[]byte); ok {
			return *buf
		}
	}
	return make([]byte, min(classBytes(class), maxRequestBytes))
}

func returnBuffer(buf []byte, class int) {
	if class < frameClasses {
		framePools[class].Put(&buf)
	}
}

// takeFrame returns a frame whose buffer can hold size bytes, up to maxRequestBytes. It may be
// shorter for larger sizes; the caller appends to it.
func takeFrame(size int) frame {
	class := 0
	for classBytes(class) < size && class < frameClasses {
		class++
	}
	if classBytes(class) < size {
		return frame{make([]byte, size), frameClasses}
	}
	return frame{takeBuffer(class), class}
}

// free returns the frame's buffer to its pool. Nothing may refer to the buffer any more.
func (f frame) free() { returnBuffer(f.bytes[:cap(f.bytes)], f.class) }

// readFrame reads a request. Its buffer grows as bytes arrive, because a client could otherwise
// make the broker allocate memory by claiming a large size.
func readFrame(from io.Reader) (frame, error) {
	var header [4]byte
	if _, err := io.ReadFull(from, header[:]); err != nil {
		return frame{}, err
	}
	size := int(int32(binary.BigEndian.Uint32(header[:])))
	if size < 0 || size > maxRequestBytes {
		return frame{}, fmt.Errorf("request of %d bytes", size)
	}
	f := frame{bytes: takeBuffer(0)}
	for have := 0; ; {
		n := min(size, len(f.bytes))
		if _, err := io.ReadFull(from, f.bytes[have:n]); err != nil {
			f.free()
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return frame{}, err
		}
		if n == size {
			f.bytes = f.bytes[:size]
			return f, nil
		}
		larger := frame{takeBuffer(f.class + 1), f.class + 1}
		have = copy(larger.bytes, f.bytes)
		f.free()
		f = larger
	}
}
