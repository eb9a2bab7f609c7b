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

// cursorInterval is how often the cursor is made durable. A power cut loses at most the
// acknowledgements of this interval.
const cursorInterval = 5 * time.Second

// cursorLoop is the goroutine that writes the durable cursor and removes segments that are done.
func (s *Spool) cursorLoop() {
	for {
		again := time.NewTimer(s.maintain())
		select {
		case <-s.cursorDue:
		case <-again.C:
		case <-s.quit:
			again.Stop()
			return
		}
		again.Stop()
	}
}

// maintain writes the cursor and removes segments if that is due. It returns the longest time to
// wait before the next call.
func (s *Spool) maintain() time.Duration {
	s.mu.Lock()
	remove := len(s.segments) > 1 && s.segments[0].limit <= s.done.low
	changed := s.changes != s.cursorChanges
	due := cursorInterval - time.Since(s.cursorWrittenAt)
	roomy := s.full != "" && s.firstDone()
	s.mu.Unlock()
	if roomy {
		s.setFull("") // the next event finds room
	}
	if !remove && changed && due > 0 {
		return due
	}
	if !remove && !changed {
		return time.Hour
	}
	err := s.writeCursor()
	if err == nil {
		err = s.removeDone(false)
	}
	s.reserve.fill(s)
	if err != nil {
		s.failed("cannot write the spool's cursor", err)
		if errors.Is(err, ErrInUse) {
			return time.Hour // another process owns the spool
		}
		return retryAfter
	}
	return cursorInterval
}

// writeCursor makes the cursor durable. Each call writes a new file, so that no file is synced
// again after a failed sync. See commit.
func (s *Spool) writeCursor() error {
	s.cursorMu.Lock()
	defer s.cursorMu.Unlock()
	s.mu.Lock()
	c, changes := s.cursor(), s.changes
	c.done.above = slices.Clone(c.done.above)
	s.mu.Unlock()
	content := c.encode(maxCursor)
	err := s.replace(cursorName(s.cursorSlot), content)
	if disk.Full(err) && s.reserve.free(s) {
		err = s.replace(cursorName(s.cursorSlot), content)
	}
	if err != nil {
		return err
	}
	s.cursorSlot++
	s.mu.Lock()
	s.durableLow, s.cursorChanges, s.cursorWrittenAt = c.done.low, changes, time.Now()
	s.mu.Unlock()
	return nil
}

// cursor returns the current cursor. It shares the spans of s.done. The caller holds mu.
func (s *Spool) cursor() cursor {
	s.generation++
	return cursor{spool: s.id, generation: s.generation, end: s.settled, counts: s.counts, subject: s.opts.Subject, done: s.done}
}

// replace durably replaces the file of that name with one that has the content.
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
		err = fmt.Errorf("write %s: short write: %d of %d bytes", name, n, len(content))
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

// removeDone removes the segments whose entries are all done according to the durable cursor. It
// keeps the last segment, which is the one that is appended to, unless all is true.
func (s *Spool) removeDone(all bool) error {
	s.cursorMu.Lock()
	defer s.cursorMu.Unlock()
	defer func(had int64) {
		if s.size() < had {
			s.setFull("") // until the next event finds that there is still no room
		}
	}(s.size())
	for {
		s.mu.Lock()
		var g *segment
		if n := len(s.segments); n > 1 || n > 0 && all {
			g = s.segments[0]
		}
		if g == nil || min(g.limit, s.next) > s.durableLow {
			s.mu.Unlock()
			return nil
		}
		s.mu.Unlock()
		s.reader.mu.Lock()
		if s.reader.segment == g {
			s.reader.closeSegment() // an open file would keep its disk space
		}
		s.reader.mu.Unlock()
		if err := s.fs.Remove(g.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		s.mu.Lock()
		s.segments = slices.Delete(s.segments, 0, 1)
		s.bytes -= g.size
		s.notifyChanged()
		s.mu.Unlock()
		s.notify(s.spaceFreed)
	}
}

// size returns the bytes of all segments.
func (s *Spool) size() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes
}

// firstDone reports whether all entries of the oldest segment are done. The caller holds mu.
func (s *Spool) firstDone() bool {
	return len(s.segments) > 0 && min(s.segments[0].limit, s.next) <= s.done.low
}

// reclaim removes segments whose entries are all done, including the active one. It reports whether
// it removed any. Only the committing goroutine calls it.
func (s *Spool) reclaim() bool {
	s.mu.Lock()
	n, done := len(s.segments), s.firstDone()
	s.mu.Unlock()
	if !done {
		return false
	}
	if n == 1 {
		s.closeActive()
	}
	if err := errors.Join(s.writeCursor(), s.removeDone(n == 1)); err != nil {
		s.failed("cannot write the spool's cursor", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.segments) < n
}

// dropOldest removes the oldest segment and counts its pending entries as dropped. Only the
// committing goroutine calls it.
func (s *Spool) dropOldest() error {
	s.mu.Lock()
	n := len(s.segments)
	if n == 0 {
		s.mu.Unlock()
		return errors.New("the spool has no segment to drop")
	}
	g := s.segments[0]
	dropped := s.done.add(g.base, min(g.limit, s.next))
	s.counts.dropped += dropped
	s.changes++
	s.mu.Unlock()
	s.log.Warn("dropped the oldest events to free space", "events", dropped)
	if n == 1 {
		s.closeActive()
	}
	if err := s.writeCursor(); err != nil {
		return err
	}
	return s.removeDone(n == 1)
}

// reserve is a file that only takes up space. On a full disk the spool removes it to write the
// cursor. Without that space the spool could not recover, because it must write the cursor before
// it can remove a segment.
type reserve struct {
	mu     sync.Mutex // guards the fields below
	exists bool
	bytes  int64 // the size that the file has or should have
}

const (
	reserveName     = "reserve"
	reserveBytes    = 512 << 10
	minReserveBytes = 16 << 10 // enough for a cursor, on a disk that has no more room than that
)

// open uses the file that an earlier process left, if it has at least the right size, or creates a
// new one. size is the size of the existing file.
func (r *reserve) open(s *Spool, size int64) {
	r.bytes = min(reserveBytes, s.opts.SegmentBytes)
	if r.exists = size >= r.bytes; !r.exists {
		s.fs.Remove(reserveName)
		r.fill(s) // if this fails, commit tries again before it writes a batch
	}
}

// fill creates the file if it does not exist. If the disk has too little room, fill tries smaller
// sizes. It fails only if there is no room even for the smallest. Then the caller must not write
// anything else, because that could take the last space that the cursor needs.
func (r *reserve) fill(s *Spool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for !r.exists {
		err := r.make(s)
		if disk.Full(err) && !r.reduceSize() {
			return err
		}
		if !disk.Full(err) {
			r.exists = err == nil || errors.Is(err, fs.ErrExist)
			return nil
		}
	}
	return nil
}

func (r *reserve) make(s *Spool) error {
	content := make([]byte, r.bytes)
	for i := range content {
		content[i] = byte(i) // some file systems do not allocate space for zeros
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

// reduceSize reduces the size of the file to be created. It reports false if it has the smallest
// size already.
func (r *reserve) reduceSize() bool {
	if r.bytes <= minReserveBytes {
		return false
	}
	r.bytes = max(r.bytes/4, minReserveBytes)
	return true
}

// shrink gives part of the reserve to events. It does so only if the spool has no segment, because
// otherwise acknowledgements will free space. It reports whether there was space to give.
func (r *reserve) shrink(s *Spool) bool {
	s.mu.Lock()
	held := len(s.segments) > 0
	s.mu.Unlock()
	if held || !r.free(s) {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reduceSize()
}

// free removes the file and reports whether there was one to remove.
func (r *reserve) free(s *Spool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.exists || s.fs.Remove(reserveName) != nil {
		return false
	}
	r.exists = false
	return true
}

// ackedFile writes the file acked, which the comment on the cursor describes.
type ackedFile struct {
	mu   sync.Mutex // guards the fields below
	file File
	slot int64
}

// open opens or creates the file. If that fails, the spool works without it; then a killed process
// causes more repeats, but no losses.
func (a *ackedFile) open(s *Spool, there bool) {
	var err error
	if there {
		a.file, err = s.fs.Open(ackedName, true)
	} else if a.file, err = s.fs.Create(ackedName); err == nil {
		_, err = a.file.WriteAt(make([]byte, 2*ackedSlot), 0) // allocate the space now
	}
	if err != nil {
		s.failed("cannot open the spool's acked file; continuing without it", err)
	}
}

// write writes the current cursor to the next slot.
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
		s.failed("cannot write the spool's acked file", err)
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
