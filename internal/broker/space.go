package broker

import (
	"log/slog"
	"math"
	"sync/atomic"
	"time"

	"github.com/diaspora-streams/diaspora/internal/disk"
)

const (
	// reserveBytes is what is left free on the disk. Below, whatever would make
	// the files grow is refused, so that there is room to delete records, to
	// write checkpoints, and for a person to do something about it.
	reserveBytes = 64 << 20
	// superReserveBytes is what the super user leaves as well. The service is the super
	// user, and to release a topic it writes a few hundred bytes, which frees more.
	superReserveBytes = 16 << 20
	// spaceFor is how long an answer about free space is good. At 1 GB/s the
	// disk loses a quarter of the reserve meanwhile.
	spaceFor = 16 * time.Millisecond
	// complainEvery is how often the diagnostics are told at most.
	complainEvery = time.Minute
)

// space knows whether the disk is nearly full.
type space struct {
	dir   string
	diag  *slog.Logger
	free  func() (int64, error)
	start time.Time
	asked atomic.Int64 // when free was called last, in ns since start; 0 is never
	told  atomic.Int64 // when diag was told last that there is too little, likewise
	left  atomic.Int64 // what free returned
}

func newSpace(dir string, diag *slog.Logger) *space {
	s := &space{dir: dir, diag: diag, start: time.Now()}
	s.left.Store(math.MaxInt64)
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
func (s *space) low() bool { return s.below(reserveBytes) }

// lowFor is low for what a caller writes.
func (s *space) lowFor(c caller) bool {
	if c.super {
		return s.below(superReserveBytes)
	}
	return s.low()
}

func (s *space) below(reserve int64) bool {
	if s.free == nil {
		return false
	}
	now, last := int64(time.Since(s.start))+1, s.asked.Load()
	if (last == 0 || now-last > int64(spaceFor)) && s.asked.CompareAndSwap(last, now) {
		left, err := s.free()
		if err != nil {
			left = math.MaxInt64
		}
		s.left.Store(left)
		s.complain(now, left)
	}
	return s.left.Load() < reserve
}

// complain says in the diagnostics that there is too little space, if so.
func (s *space) complain(now, left int64) {
	last := s.told.Load()
	if left >= reserveBytes || last != 0 && now-last < int64(complainEvery) || !s.told.CompareAndSwap(last, now) {
		return
	}
	s.diag.Error("the disk is nearly full: no events, topics or committed offsets are accepted until some space is freed; "+
		"events can still be read, and topics and records deleted", "directory", s.dir, "free_mib", left>>20, "needed_mib", reserveBytes>>20)
}
