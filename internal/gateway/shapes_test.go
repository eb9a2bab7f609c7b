package gateway

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestShapesAreKafkas compares the layouts with those of the Kafka client, in every version. Each
// request that the Kafka client writes must pass whole and unchanged, nothing shorter may pass, and
// bytes after it are allowed.
func TestShapesAreKafkas(t *testing.T) {
	for _, r := range requests {
		request := kmsg.RequestForKey(r.key)
		for version := range request.MaxVersion() + 1 {
			t.Run(fmt.Sprintf("%s/v%d", kmsg.NameForKey(r.key), version), func(t *testing.T) {
				b := bodies{rand: rand.New(rand.NewPCG(uint64(r.key), uint64(version)))}
				for range 20 {
					frame := appendRequest(b.request(r.key, version), 7)
					checkShape(t, frame)
				}
			})
		}
	}
}

func checkShape(t *testing.T, frame []byte) {
	t.Helper()
	if out, err := pass(frame); err != nil || !bytes.Equal(out, frame) {
		t.Fatalf("passed %d bytes of %d, %v: %x", len(out), len(frame), err, frame)
	}
	for cut := 4 + headerBytes; cut < len(frame); cut += 1 + cut/20 {
		if _, err := pass(resize(frame[:cut])); !errors.Is(err, errFrame) {
			t.Fatalf("passed the first %d bytes: error %v, want %v: %x", cut, err, errFrame, frame)
		}
	}
	longer := resize(append(bytes.Clone(frame), 0))
	if out, err := pass(longer); err != nil || !bytes.Equal(out, longer) {
		t.Fatalf("with a byte behind it: passed %d bytes of %d, %v: %x", len(out), len(longer), err, frame)
	}
}

// resize sets the frame's size field to its real size.
func resize(frame []byte) []byte {
	frame = bytes.Clone(frame)
	binary.BigEndian.PutUint32(frame, uint32(len(frame)-4))
	return frame
}

// pass returns what the broker receives of a request.
func pass(frame []byte) ([]byte, error) {
	out := bytes.Clone(frame)
	_, err := checkRequest(out[4:], parseHeader(frame[4:]), fetchLimit{math.MaxInt32, math.MaxInt32})
	return out, err
}
