package broker

import (
	"log/slog"
	"math"
	"sync/atomic"
	"time"

	"github.com/diaspora-streams/diaspora/internal/disk"
)

const (
	// reserveBytes is the space that stays free on the disk. With less, everything that would make
	// the files grow is refused. The reserve leaves space to delete records and write checkpoints,
	// and gives the operator time to act.
	reserveBytes = 64 << 20
	// superReserveBytes is the space that even the super user leaves free. It is smaller because
	// the service is the super user: to release a topic it has to write a few hundred bytes, and
	// that frees more.
	superReserveBytes = 16 << 20
	// measureInterval is how long a measurement of the free space is used. At 1 GB/s the disk loses
	// a quarter of the reserve in that time.
	measureInterval = 16 * time.Millisecond
	// warnInterval is the minimum time between diagnostics.
	warnInterval = time.Minute
)

// diskSpace measures whether the disk is nearly full.
type diskSpace struct {
	dir       string
	diag      *slog.Logger
	free      func() (int64, error)
	start     time.Time
	measured  atomic.Int64 // time of the last call to free, in ns since start; 0 means never
	warned    atomic.Int64 // time of the last diagnostic, in the same form
	freeBytes atomic.Int64 // last result of free, in bytes
}

func newDiskSpace(dir string, diag *slog.Logger) *diskSpace {
	s := &diskSpace{dir: dir, diag: diag, start: time.Now()}
	s.freeBytes.Store(math.MaxInt64)
	if dir != "" {
		s.free = func() (int64, error) {
			free, _, err := disk.Space(dir)
			return free, err
		}
	}
	return s
}

// low reports whether less than the reserve is free. If the free space cannot be measured, it
// returns false. That loses nothing: a write that fails is not acknowledged.
func (s *diskSpace) low() bool { return s.below(reserveBytes) }

// lowFor is like low, with a smaller reserve for the super user.
func (s *diskSpace) lowFor(c caller) bool {
	if c.super {
		return s.below(superReserveBytes)
	}
	return s.low()
}

func (s *diskSpace) below(reserve int64) bool {
	if s.free == nil {
		return false
	}
	now, last := int64(time.Since(s.start))+1, s.measured.Load()
	if (last == 0 || now-last > int64(measureInterval)) && s.measured.CompareAndSwap(last, now) {
		left, err := s.free()
		if err != nil {
			left = math.MaxInt64
		}
		s.freeBytes.Store(left)
		s.warn(now, left)
	}
	return s.freeBytes.Load() < reserve
}

// warn logs a diagnostic if there is too little space, at most once per warnInterval.
func (s *diskSpace) warn(now, left int64) {
	last := s.warned.Load()
	if left >= reserveBytes || last != 0 && now-last < int64(warnInterval) || !s.warned.CompareAndSwap(last, now) {
		return
	}
	s.diag.Error("the disk is nearly full: no events, topics or committed offsets are accepted until some space is freed; "+
		"events can still be read, and topics and records deleted", "directory", s.dir, "free_mib", left>>20, "needed_mib", reserveBytes>>20)
}
