package broker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
)

// maxRequestBytes bounds a request. The gateway lets none through that is larger.
const maxRequestBytes = 128 << 20

// frame is a request as it came, without its size.
type frame struct {
	bytes []byte
	class int
}

// Buffers of requests come in classes of these sizes, each four times the one before.
const (
	smallestFrame = 4 << 10
	frameClasses  = 8 // up to 64 MiB; larger ones are not kept
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

func giveBuffer(buf []byte, class int) {
	if class < frameClasses {
		framePools[class].Put(&buf)
	}
}

// takeFrame returns an empty frame with room for size bytes.
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

// free gives the frame's memory back. Nothing may refer to it any more.
func (f frame) free() { giveBuffer(f.bytes[:cap(f.bytes)], f.class) }

// readFrame reads a request. Its buffer grows as the bytes come, since the size
// that a client names may be a lie.
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
