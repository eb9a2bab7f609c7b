package broker

import (
	"sync/atomic"
	"time"

	"github.com/diaspora-streams/diaspora/internal/disk"
)

const (
	// reserveBytes is what is left free on the disk. Below, whatever would make
	// the files grow is refused, so that there is room to delete records, to
	// write checkpoints, and for a person to do something about it.
	reserveBytes = 64 << 20
	// spaceFor is how long an answer about free space is good. At 1 GB/s the
	// disk loses a quarter of the reserve meanwhile.
	spaceFor = 16 * time.Millisecond
)

// space knows whether the disk is nearly full.
type space struct {
	free  func() (int64, error)
	start time.Time
	asked atomic.Int64 // when free was called last, in ns since start; 0 is never
	short atomic.Bool
}

func newSpace(dir string) *space {
	s := &space{start: time.Now()}
	if dir != "" {
		s.free = func() (int64, error) {
			free, _, err := disk.Space(dir)
			return free, err
		}
	}
	return s
}

// low reports whether less than the reserve is left. If that cannot be found
// out it is not: a write that fails is not acknowledged in any case.
func (s *space) low() bool {
	if s.free == nil {
		return false
	}
	now, last := int64(time.Since(s.start))+1, s.asked.Load()
	if (last == 0 || now-last > int64(spaceFor)) && s.asked.CompareAndSwap(last, now) {
		free, err := s.free()
		s.short.Store(err == nil && free < reserveBytes)
	}
	return s.short.Load()
}
