package commitlog

import (
	"errors"
	"fmt"
	"io"

	"github.com/diaspora-streams/diaspora/internal/batch"
)

// OffsetForTime returns the first record with a timestamp of at least t, in milliseconds, and the
// leader epoch of its batch. If there is no such record, all three are -1.
func (l *Log) OffsetForTime(t int64) (offset, timestamp int64, epoch int32, err error) {
	l.mu.Lock()
	start, end := l.start, l.end
	var later []*segment
	for _, g := range l.segments {
		if g.maxTime >= t && g.end > start && g.base < end {
			later = append(later, g)
		}
	}
	l.mu.Unlock()
	for _, g := range later {
		offset, timestamp, epoch, err = l.findTime(g, start, t)
		if err != nil {
			return -1, -1, -1, fmt.Errorf("find an offset by time: %w", l.reportDamage(g, err))
		}
		if offset >= 0 {
			return offset, timestamp, epoch, nil
		}
	}
	return -1, -1, -1, nil
}

// MaxTimestamp returns the first record with the greatest timestamp, in the same form as
// OffsetForTime.
func (l *Log) MaxTimestamp() (offset, timestamp int64, epoch int32, err error) {
	greatest := int64(-1)
	l.mu.Lock()
	start, end := l.start, l.end
	var partial []*segment // segments with records that are removed or not acknowledged
	for _, g := range l.segments {
		switch {
		case g.end <= start || g.base >= end:
		case g.base < start || g.end > end:
			partial = append(partial, g)
		default:
			greatest = max(greatest, g.maxTime)
		}
	}
	l.mu.Unlock()
	for _, g := range partial {
		err := l.walk(g, start, -1, func(o *openSegment, h batch.Header, _ int64) (bool, error) {
			greatest = max(greatest, h.MaxTimestamp)
			return true, nil
		})
		if err != nil {
			return -1, -1, -1, fmt.Errorf("find the greatest timestamp: %w", l.reportDamage(g, err))
		}
	}
	if greatest < 0 {
		return -1, -1, -1, nil
	}
	return l.OffsetForTime(greatest)
}

// findTime is OffsetForTime for one segment.
func (l *Log) findTime(g *segment, start, t int64) (offset, timestamp int64, epoch int32, err error) {
	offset, timestamp, epoch = -1, -1, -1
	err = l.walk(g, start, t, func(o *openSegment, h batch.Header, at int64) (bool, error) {
		if h.MaxTimestamp < t {
			return true, nil
		}
		if h.LogAppendTime() {
			offset, timestamp, epoch = max(h.BaseOffset, start), h.MaxTimestamp, h.LeaderEpoch
			return false, nil
		}
		b := make([]byte, h.Size())
		if err := readFull(o.file, b, at); err != nil {
			return false, err
		}
		first, its, ok, err := batch.FirstAt(b, start, t)
		if err != nil {
			return false, fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		if ok {
			offset, timestamp, epoch = first, its, h.LeaderEpoch
		}
		return !ok, nil
	})
	return offset, timestamp, epoch, err
}

// walk calls f for the visible batches of a segment with offsets of at least start that may have
// timestamps of at least t, until f returns false.
func (l *Log) walk(g *segment, start, t int64, f func(o *openSegment, h batch.Header, at int64) (bool, error)) error {
	o, err := l.acquire(g)
	if errors.Is(err, ErrOutOfRange) {
		return nil // it was removed in the meantime
	}
	if err != nil {
		return err
	}
	defer l.release(g)
	l.mu.Lock()
	limit := g.size
	if g == l.active() {
		limit = l.endPos
	}
	from := o.index.before(func(e entry) bool { return e.offset > start })
	// All batches before such an entry have smaller timestamps.
	if later := o.index.before(func(e entry) bool { return e.maxTime >= t }); later.pos > from.pos {
		from = later
	}
	l.mu.Unlock()
	s := newScanner(o.file, from.pos, limit, from.offset)
	defer s.free()
	s.chunk = int(o.index.interval)
	for {
		h, at, err := s.next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if h.LastOffset() < start {
			continue
		}
		if more, err := f(o, h, at); err != nil || !more {
			return err
		}
	}
}
