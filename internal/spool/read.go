package spool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"slices"
	"sync"
	"time"
)

// reader is the read position of a spool. It moves from segment to segment and keeps one open.
type reader struct {
	mu      sync.Mutex // guards the fields below; taken before the spool's mu
	at      uint64     // every position below was returned, is done or is lost
	segment *segment
	file    File
	scan    *scanner
	arena   []byte // the memory that the entries' bytes are copied to
	texts   texts
	many    int // how many entries the last call of read returned
}

// Next returns the next entries, in order. It returns at least one and at most "most" entries. It
// stops once their keys and values have maxBytes bytes together; the last entry may exceed that.
// Next waits until there is an entry, or ctx ends. It returns only durable entries, and each of
// them once, until Rewind. The caller owns the result.
//
// Next skips damaged entries: it counts them and keeps their bytes in the quarantine. It returns an
// error of the disk, which may be temporary, [ErrClosed], [ErrInUse] (another process has taken the
// spool) or ctx's error.
func (s *Spool) Next(ctx context.Context, maxEntries, maxBytes int) ([]Record, error) {
	for {
		s.mu.Lock()
		closed, changed := s.closing, s.nextChange()
		s.mu.Unlock()
		if closed {
			return nil, ErrClosed
		}
		if err := s.owner.check(); errors.Is(err, ErrInUse) {
			return nil, err
		}
		s.reader.mu.Lock()
		records, err := s.read(maxEntries, maxBytes)
		s.mu.Lock()
		s.returned = max(s.returned, s.reader.at)
		s.mu.Unlock()
		s.reader.mu.Unlock()
		if len(records) > 0 {
			return records, nil
		}
		if err != nil {
			s.failed("cannot read the spool", err)
			return nil, fmt.Errorf("read spool: %w", err)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Rewind makes Next start again at the first entry that is not acknowledged.
func (s *Spool) Rewind() {
	s.reader.mu.Lock()
	defer s.reader.mu.Unlock()
	s.reader.at = 0
	s.reader.closeSegment()
}

// Pending returns all entries that are not acknowledged, as Next does after Rewind, and then ends.
func (s *Spool) Pending() iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		ended, cancel := context.WithCancel(context.Background())
		cancel() // Next does not wait for further ones
		s.Rewind()
		for {
			records, err := s.Next(ended, 4096, readAhead)
			for _, r := range records {
				if !yield(r, nil) {
					return
				}
			}
			if err != nil {
				if err != context.Canceled {
					yield(Record{}, err)
				}
				return
			}
		}
	}
}

// closeSegment closes the segment that is being read.
func (r *reader) closeSegment() error {
	f := r.file
	r.segment, r.file, r.scan = nil, nil, nil
	return closeFile(f)
}

func (r *reader) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closeSegment()
}

// read returns the entries that can be read without waiting. The caller holds reader.mu.
func (s *Spool) read(maxEntries, maxBytes int) (records []Record, err error) {
	defer func() {
		if len(records) > 0 {
			s.reader.many = len(records)
		}
	}()
	for len(records) < maxEntries && maxBytes > 0 {
		v, ok := s.nextView()
		if !ok {
			return records, nil
		}
		err := s.openSegment(v)
		if errors.Is(err, fs.ErrNotExist) {
			if s.owner != nil && errors.Is(s.owner.check(), ErrInUse) {
				return records, s.owner.check() // the new owner has removed the segment
			}
			s.segmentRemoved(v)
			continue
		}
		if err != nil {
			return records, err
		}
		before := len(records)
		if before == 0 {
			records = make([]Record, 0, min(s.reader.many+s.reader.many/8, maxEntries)) // most calls return about as many as the last one
		}
		records, err = s.readSegment(records, v, maxEntries, maxBytes)
		for _, r := range records[before:] {
			maxBytes -= len(r.Key) + len(r.Value)
		}
		if err != nil {
			return records, err
		}
	}
	return records, nil
}

// A view is the part of a segment that can be read.
type view struct {
	segment *segment
	end     int64  // where its good frames end
	limit   uint64 // the position after the last readable entry
	// Entries below it were synced, so a missing one is damage; later ones were never reported as
	// durable.
	settled uint64
	holes   bool // some positions above the lowest pending one are already acknowledged
}

// nextView returns the segment that holds the next entry. It reports false if there is no entry to
// read.
func (s *Spool) nextView() (view, bool) {
	r := &s.reader
	lost, where := uint64(0), ""
	defer func() { s.countDamage(lost, where) }()
	s.mu.Lock()
	defer s.mu.Unlock()
	r.at = max(r.at, s.done.low)
	if len(s.done.above) >= maxHoles {
		return view{}, false
	}
	for i, g := range s.segments {
		limit := min(g.limit, s.next)
		if limit <= r.at {
			continue
		}
		if r.at < g.base { // the entries in between are gone
			lost, where = s.done.add(r.at, g.base), g.name
			r.at = g.base
		}
		v := view{segment: g, end: g.size, limit: limit, settled: s.settled, holes: len(s.done.above) > 0}
		for _, next := range s.segments[i+1:] {
			if next.base != g.limit {
				break
			}
			v.settled = min(v.settled, next.settled)
		}
		return v, true
	}
	if r.at < s.next { // the last entries are gone
		lost, where = s.done.add(r.at, s.next), "the end"
		r.at = s.next
	}
	return view{}, false
}

// openSegment opens the view's segment, unless it is open already.
func (s *Spool) openSegment(v view) error {
	r := &s.reader
	if r.segment == v.segment {
		r.scan.end = v.end
		return nil
	}
	r.closeSegment()
	f, err := s.fs.Open(v.segment.name, false)
	if err != nil {
		return err
	}
	size, err := f.Size()
	if err != nil {
		f.Close()
		return err
	}
	r.segment, r.file = v.segment, f
	r.scan = newScanner(f, v.segment.seeds(), min(size, v.end))
	return nil
}

// segmentRemoved records that a segment file does not exist any more, and moves on to the next one.
func (s *Spool) segmentRemoved(v view) {
	s.mu.Lock()
	lost := s.done.add(s.reader.at, v.limit)
	s.changes++
	s.mu.Unlock()
	s.reader.at = v.limit
	// For a read-only spool it is most likely that the owner has removed a finished segment.
	if s.report == nil {
		s.countDamage(lost, v.segment.name)
	}
}

// readSegment appends the entries of a segment, starting at the reader's position.
func (s *Spool) readSegment(records []Record, v view, maxEntries, maxBytes int) ([]Record, error) {
	r := &s.reader
	for len(records) < maxEntries && maxBytes > 0 && r.at < v.limit {
		from := v.segment.base + uint64(r.scan.index) // all positions before were seen
		found, err := r.scan.next()
		position := v.segment.base + uint64(found.index)
		if err == io.EOF || err == nil && position >= v.limit {
			s.recordMissing(v, from, v.limit, found)
			r.at = v.limit
			break
		}
		if err != nil {
			return records, err
		}
		if found.bad > 0 {
			s.recordMissing(v, from, position, found)
		}
		if position < r.at || v.holes && s.isDone(position) {
			continue
		}
		r.at = position + 1
		record := Record{Position: position}
		if record.Entry, err = parseEntry(found.flags, r.clone(found.content), &r.texts); err != nil {
			s.recordMissing(v, position, position+1, scanned{at: found.at + frameHeaderBytes + int64(found.length), bad: frameHeaderBytes + int64(found.length)})
			continue
		}
		records = append(records, record)
		maxBytes -= len(record.Key) + len(record.Value)
	}
	return records, nil
}

const arenaBytes = 64 << 10

// clone copies b, because the scanner reuses its buffer.
func (r *reader) clone(b []byte) []byte {
	if len(b) > cap(r.arena)-len(r.arena) {
		r.arena = make([]byte, 0, max(arenaBytes, len(b)))
	}
	at := len(r.arena)
	r.arena = append(r.arena, b...)
	return r.arena[at:len(r.arena):len(r.arena)]
}

func (s *Spool) isDone(position uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.done.has(position)
}

// recordMissing records that a segment holds no readable entries at the positions [from, to). Those
// that had been synced are counted as damaged, and the bad bytes before found go to the quarantine.
// The others were never reported as durable.
func (s *Spool) recordMissing(v view, from, to uint64, found scanned) {
	if from >= to {
		return
	}
	s.mu.Lock()
	lost := uint64(0)
	if settled := max(from, min(to, v.settled)); settled > from {
		lost = s.done.add(from, settled)
	}
	s.done.add(from, to)
	s.changes++
	s.mu.Unlock()
	s.countDamage(lost, v.segment.name)
	if lost == 0 || s.report != nil {
		return
	}
	raw := make([]byte, min(found.bad, maxDamageBytes))
	n, err := s.reader.file.ReadAt(raw, found.at-found.bad)
	if err == nil || err == io.EOF {
		err = s.quarantine.write(s, &Poison{Time: time.Now(), Reason: "damaged", Position: from,
			Damage: &Damage{Segment: v.segment.name, Offset: found.at - found.bad, Bytes: raw[:n], Events: lost}})
	}
	if err != nil {
		s.failed("cannot keep damaged bytes of the spool in the quarantine", err)
	}
}

// Ack records that entries are acknowledged, so that they are not sent again. positions are
// positions that Next has returned, in any order. The cursor advances past an entry once all
// entries before it are acknowledged. Acknowledgements after a gap are stored too, and survive a
// restart.
//
// An acknowledgement survives the death of the process. A power cut may lose those of the last few
// seconds; then Next returns these entries again.
func (s *Spool) Ack(positions ...uint64) error {
	if err := s.owner.check(); errors.Is(err, ErrInUse) {
		return err
	}
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return ErrClosed
	}
	for i := 0; i < len(positions); {
		from, to := positions[i], positions[i]+1
		for i++; i < len(positions) && positions[i] == to; i++ { // most often, all positions are one range
			to++
		}
		if to > s.returned {
			s.mu.Unlock()
			return fmt.Errorf("acknowledge position %d: it was never read", max(from, s.returned))
		}
		s.counts.acknowledged += s.done.add(from, to)
	}
	s.changes++
	s.notifyChanged()
	s.mu.Unlock()
	s.acked.write(s)
	s.notify(s.cursorDue)
	return nil
}

// Quarantine sets an entry aside that the cluster will never accept. It writes the entry, with the
// reason, to a file that people can read. After nil it is durable there, and Next does not return
// it again.
func (s *Spool) Quarantine(r Record, reason string) error {
	s.mu.Lock()
	closed, over := s.closing, s.done.has(r.Position)
	s.mu.Unlock()
	if closed {
		return ErrClosed
	}
	if over {
		return nil
	}
	if err := s.quarantine.write(s, &Poison{Time: time.Now(), Reason: reason, Position: r.Position, Entry: &r.Entry}); err != nil {
		return fmt.Errorf("quarantine position %d: %w", r.Position, err)
	}
	s.mu.Lock()
	s.counts.quarantined += s.done.add(r.Position, r.Position+1)
	s.changes++
	s.notifyChanged()
	s.mu.Unlock()
	s.acked.write(s)
	s.notify(s.cursorDue)
	return nil
}

// Discard removes entries from the spool without sending them, and counts them as discarded.
// positions are positions that Next has returned. After nil the removal is durable. Discard fails
// with ErrHoles, and changes nothing, if the pending entries would be left in more than maxHoles
// separate ranges.
func (s *Spool) Discard(positions ...uint64) error {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return ErrClosed
	}
	done := spans{low: s.done.low, above: slices.Clone(s.done.above)}
	var discarded uint64
	for _, at := range positions {
		if at >= s.returned {
			s.mu.Unlock()
			return fmt.Errorf("discard position %d: it was never read", at)
		}
		discarded += done.add(at, at+1)
	}
	if len(done.above) >= maxHoles {
		s.mu.Unlock()
		return fmt.Errorf("%w: %d, of at most %d", ErrHoles, len(done.above), maxHoles)
	}
	s.done = done
	s.counts.discarded += discarded
	s.changes++
	s.notifyChanged()
	s.mu.Unlock()
	return s.writeCursor()
}
