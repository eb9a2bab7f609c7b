package spool

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"github.com/diaspora-streams/diaspora/internal/disk"
)

// keepEvery bounds how many acknowledgements a power cut takes.
const keepEvery = 5 * time.Second

// keepAll is the goroutine that keeps the cursor and removes the segments that are
// done with.
func (s *Spool) keepAll() {
	for {
		again := time.NewTimer(s.recycle())
		select {
		case <-s.tidy:
		case <-again.C:
		case <-s.quit:
			again.Stop()
			return
		}
		again.Stop()
	}
}

// recycle does what is due, and returns when it wants to be called again at the latest.
func (s *Spool) recycle() time.Duration {
	s.mu.Lock()
	remove := len(s.segments) > 1 && s.segments[0].limit <= s.done.low
	changed := s.changes != s.keptChanges
	due := keepEvery - time.Since(s.keptAt)
	roomy := s.full != "" && s.firstDone()
	s.mu.Unlock()
	if roomy {
		s.setFull("") // the next event takes the room
	}
	if !remove && changed && due > 0 {
		return due
	}
	if !remove && !changed {
		return time.Hour
	}
	err := s.keep()
	if err == nil {
		err = s.removeDone(false)
	}
	s.reserve.fill(s)
	if err != nil {
		s.failed("the spool cannot keep its cursor", err)
		if errors.Is(err, ErrInUse) {
			return time.Hour // it is another's
		}
		return retryAfter
	}
	return keepEvery
}

// keep makes the cursor durable. Each time the file is a new one, so that no failed
// sync is ever repeated.
func (s *Spool) keep() error {
	s.keepMu.Lock()
	defer s.keepMu.Unlock()
	s.mu.Lock()
	c, changes := s.cursor(), s.changes
	c.done.above = slices.Clone(c.done.above)
	s.mu.Unlock()
	content := c.encode(maxCursor)
	err := s.replace(cursorName(s.keptSlot), content)
	if disk.Full(err) && s.reserve.free(s) {
		err = s.replace(cursorName(s.keptSlot), content)
	}
	if err != nil {
		return err
	}
	s.keptSlot++
	s.mu.Lock()
	s.kept, s.keptChanges, s.keptAt = c.done.low, changes, time.Now()
	s.mu.Unlock()
	return nil
}

// cursor returns what the cursor is now. The caller holds mu.
func (s *Spool) cursor() cursor {
	s.generation++
	return cursor{spool: s.id, generation: s.generation, end: s.settled, counts: s.counts, subject: s.opts.Subject, done: s.done}
}

// replace makes a file with the content, durably, in place of the one of that name.
func (s *Spool) replace(name string, content []byte) error {
	if err := s.fs.Remove(cursorTemp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := s.fs.Create(cursorTemp)
	if err != nil {
		return err
	}
	n, err := f.WriteAt(content, 0)
	if err == nil && n < len(content) {
		err = fmt.Errorf("write %s: %d of %d bytes were written", name, n, len(content))
	}
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = s.fs.Rename(cursorTemp, name)
	}
	if err == nil {
		err = s.fs.Sync()
	}
	return err
}

// removeDone removes the segments that the durable cursor has passed. The last one
// stays, since it is appended to, unless all are to go.
func (s *Spool) removeDone(all bool) error {
	s.keepMu.Lock()
	defer s.keepMu.Unlock()
	defer func(had int64) {
		if s.size() < had {
			s.setFull("") // until the next event says otherwise
		}
	}(s.size())
	for {
		s.mu.Lock()
		var g *segment
		if n := len(s.segments); n > 1 || n > 0 && all {
			g = s.segments[0]
		}
		if g == nil || min(g.limit, s.next) > s.kept {
			s.mu.Unlock()
			return nil
		}
		s.mu.Unlock()
		s.reader.mu.Lock()
		if s.reader.segment == g {
			s.reader.leave() // or its space would stay taken
		}
		s.reader.mu.Unlock()
		if err := s.fs.Remove(g.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		s.mu.Lock()
		s.segments = slices.Delete(s.segments, 0, 1)
		s.bytes -= g.size
		s.changing()
		s.mu.Unlock()
		s.raise(s.room)
	}
}

// size returns the bytes of all segments.
func (s *Spool) size() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes
}

// firstDone tells whether all of the oldest segment is done with. The caller holds mu.
func (s *Spool) firstDone() bool {
	return len(s.segments) > 0 && min(s.segments[0].limit, s.next) <= s.done.low
}

// reclaim removes what is acknowledged, also the segment that is appended to. It reports whether
// there was any, and is called by the goroutine that commits.
func (s *Spool) reclaim() bool {
	s.mu.Lock()
	n, done := len(s.segments), s.firstDone()
	s.mu.Unlock()
	if !done {
		return false
	}
	if n == 1 {
		s.retire()
	}
	if err := errors.Join(s.keep(), s.removeDone(n == 1)); err != nil {
		s.failed("the spool cannot keep its cursor", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.segments) < n
}

// dropOldest drops the oldest segment, with all that is not acknowledged in it. It
// is called by the goroutine that commits.
func (s *Spool) dropOldest() error {
	s.mu.Lock()
	n := len(s.segments)
	if n == 0 {
		s.mu.Unlock()
		return errors.New("there is nothing to drop")
	}
	g := s.segments[0]
	dropped := s.done.add(g.base, min(g.limit, s.next))
	s.counts.dropped += dropped
	s.changes++
	s.mu.Unlock()
	s.log.Warn("the oldest events were dropped to make room", "events", dropped)
	if n == 1 {
		s.retire()
	}
	if err := s.keep(); err != nil {
		return err
	}
	return s.removeDone(n == 1)
}

// reserve is a file that is there only to be removed: on a full disk its space goes
// to the cursor, without which no segment can be removed.
type reserve struct {
	mu    sync.Mutex // guards the fields below
	there bool
	bytes int64 // how large it is to be
}

const (
	reserveName       = "reserve"
	reserveBytes      = 512 << 10
	leastReserveBytes = 16 << 10 // enough for the cursor of a spool on a disk that has no more
)

// open takes an earlier process's file, of so many bytes, if it is whole, or makes one.
func (r *reserve) open(s *Spool, size int64) {
	r.bytes = min(reserveBytes, s.opts.SegmentBytes)
	if r.there = size >= r.bytes; !r.there {
		s.fs.Remove(reserveName)
		r.fill(s) // if there is no room, nothing is appended until there is
	}
}

// fill makes the file, if it is not there: a smaller one if the disk has no more. It fails
// only for want of space: then nothing else may be written, or it would take what the
// cursor may need.
func (r *reserve) fill(s *Spool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for !r.there {
		err := r.make(s)
		if disk.Full(err) && !r.smaller() {
			return err
		}
		if !disk.Full(err) {
			r.there = err == nil || errors.Is(err, fs.ErrExist)
			return nil
		}
	}
	return nil
}

func (r *reserve) make(s *Spool) error {
	content := make([]byte, r.bytes)
	for i := range content {
		content[i] = byte(i) // a file of zeros may take no space
	}
	f, err := s.fs.Create(reserveName)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(content, 0)
	if err = errors.Join(err, f.Close()); err != nil {
		s.fs.Remove(reserveName)
	}
	return err
}

// smaller has the next file be smaller. It reports false if that cannot be.
func (r *reserve) smaller() bool {
	if r.bytes <= leastReserveBytes {
		return false
	}
	r.bytes = max(r.bytes/4, leastReserveBytes)
	return true
}

// shrink gives some of the space to events, when no segment has any. It reports whether there was some to give.
func (r *reserve) shrink(s *Spool) bool {
	s.mu.Lock()
	held := len(s.segments) > 0
	s.mu.Unlock()
	if held || !r.free(s) {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.smaller()
}

// free gives the space back, if it is there.
func (r *reserve) free(s *Spool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.there || s.fs.Remove(reserveName) != nil {
		return false
	}
	r.there = false
	return true
}

// ackedFile is what the cursor's comment calls the file acked.
type ackedFile struct {
	mu   sync.Mutex // guards file, and keeps the slots in turn
	file File
	slot int64
}

// open opens or makes the file. Without it a killed process repeats more, no worse.
func (a *ackedFile) open(s *Spool, there bool) {
	var err error
	if there {
		a.file, err = s.fs.Open(ackedName, true)
	} else if a.file, err = s.fs.Create(ackedName); err == nil {
		_, err = a.file.WriteAt(make([]byte, 2*ackedSlot), 0) // takes the space
	}
	if err != nil {
		s.failed("the spool does without its acked file", err)
	}
}

// write writes the cursor to the next slot.
func (a *ackedFile) write(s *Spool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.file == nil {
		return
	}
	s.mu.Lock()
	c := s.cursor()
	content := c.encode(ackedSlot)
	s.mu.Unlock()
	if _, err := a.file.WriteAt(content, a.slot*ackedSlot); err != nil {
		s.failed("the spool cannot write its acked file", err)
	}
	a.slot = 1 - a.slot
}

func (a *ackedFile) close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	f := a.file
	a.file = nil
	return closeFile(f)
}
