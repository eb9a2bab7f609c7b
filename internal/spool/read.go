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

// reader reads on from the cursor. It goes from segment to segment and keeps one open.
type reader struct {
	mu      sync.Mutex // guards all; taken before the spool's
	at      uint64     // what is below was handed out, is acknowledged, or lost
	segment *segment
	file    File
	scan    *scanner
	arena   []byte // from which the entries' bytes are cut
}

// Next returns the next entries, in order: at least one, and no more than most or,
// together, than about maxBytes. It waits until there is one, or ctx ends. An entry is
// returned once until Rewind; only one that is durable is returned. The caller owns the result.
//
// Damaged entries are passed over: they are counted, and their bytes kept in the
// quarantine. An error is one of reading, and may pass, or is [ErrClosed], [ErrInUse]
// (another process has taken the spool), or ctx's.
func (s *Spool) Next(ctx context.Context, most, maxBytes int) ([]Record, error) {
	for {
		s.mu.Lock()
		closed, changed := s.closing, s.change()
		s.mu.Unlock()
		if closed {
			return nil, ErrClosed
		}
		if err := s.owner.check(); errors.Is(err, ErrInUse) {
			return nil, err
		}
		s.reader.mu.Lock()
		records, err := s.read(most, maxBytes)
		s.mu.Lock()
		s.handed = max(s.handed, s.reader.at)
		s.mu.Unlock()
		s.reader.mu.Unlock()
		if len(records) > 0 {
			return records, nil
		}
		if err != nil {
			s.failed("the spool cannot read", err)
			return nil, fmt.Errorf("read spool: %w", err)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Rewind makes Next begin again with the first entry that is not acknowledged.
func (s *Spool) Rewind() {
	s.reader.mu.Lock()
	defer s.reader.mu.Unlock()
	s.reader.at = 0
	s.reader.leave()
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

// leave forgets the segment.
func (r *reader) leave() error {
	f := r.file
	r.segment, r.file, r.scan = nil, nil, nil
	return closeFile(f)
}

func (r *reader) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.leave()
}

// read returns what can be read now.
func (s *Spool) read(most, maxBytes int) (records []Record, err error) {
	for len(records) < most && maxBytes > 0 {
		v, ok := s.view()
		if !ok {
			return records, nil
		}
		err := s.visit(v)
		if errors.Is(err, fs.ErrNotExist) {
			if s.owner != nil && errors.Is(s.owner.check(), ErrInUse) {
				return records, s.owner.check() // its new owner has removed it
			}
			s.vanished(v)
			continue
		}
		if err != nil {
			return records, err
		}
		before := len(records)
		records, err = s.readSegment(records, v, most, maxBytes)
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
	limit   uint64 // the position at which they end
	settled uint64 // what is missing from here on was never acknowledged
	holes   bool   // something ahead is acknowledged
}

// view returns the segment in which the next entry is, if there is one.
func (s *Spool) view() (view, bool) {
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
		if r.at < g.base { // what was between is gone
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
	if r.at < s.next { // the last ones are gone
		lost, where = s.done.add(r.at, s.next), "the end"
		r.at = s.next
	}
	return view{}, false
}

// visit opens the view's segment, if it is another one than before.
func (s *Spool) visit(v view) error {
	r := &s.reader
	if r.segment == v.segment {
		r.scan.end = v.end
		return nil
	}
	r.leave()
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

// vanished says that somebody has removed a segment.
func (s *Spool) vanished(v view) {
	s.mu.Lock()
	lost := s.done.add(s.reader.at, v.limit)
	s.changes++
	s.mu.Unlock()
	s.reader.at = v.limit
	if s.report == nil { // else it is the owner, most likely, who is done with it
		s.countDamage(lost, v.segment.name)
	}
}

// readSegment appends the entries of a segment, from the reader's position on.
func (s *Spool) readSegment(records []Record, v view, most, maxBytes int) ([]Record, error) {
	r := &s.reader
	topic := ""
	for len(records) < most && maxBytes > 0 && r.at < v.limit {
		from := v.segment.base + uint64(r.scan.index) // all before was seen
		found, err := r.scan.next()
		position := v.segment.base + uint64(found.index)
		if err == io.EOF || err == nil && position >= v.limit {
			s.missed(v, from, v.limit, found)
			r.at = v.limit
			break
		}
		if err != nil {
			return records, err
		}
		if found.bad > 0 {
			s.missed(v, from, position, found)
		}
		if position < r.at || v.holes && s.isDone(position) {
			continue
		}
		r.at = position + 1
		record := Record{Position: position}
		if record.Entry, err = parseEntry(found.flags, r.keep(found.content)); err != nil {
			s.missed(v, position, position+1, scanned{at: found.at + frameHeaderBytes + int64(found.length), bad: frameHeaderBytes + int64(found.length)})
			continue
		}
		if record.Topic == topic {
			record.Topic = topic // shares the string
		}
		topic = record.Topic
		records = append(records, record)
		maxBytes -= len(record.Key) + len(record.Value)
	}
	return records, nil
}

const arenaBytes = 64 << 10

// keep copies bytes that will change.
func (r *reader) keep(b []byte) []byte {
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

// missed says that there are no entries [from, to) in a segment. Those that were
// synced are counted as damaged, and the bytes before found are kept; the others were
// never acknowledged.
func (s *Spool) missed(v view, from, to uint64, found scanned) {
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
		s.failed("damaged bytes of the spool could not be kept", err)
	}
}

// Ack says that entries, of which Next has returned the positions, are acknowledged:
// they need not be sent again. They may come in any order. The cursor moves when all
// before are acknowledged too; those that wait for that survive a restart as well.
//
// An acknowledgement survives the death of the process. A power cut may take those
// of the last seconds: then these entries are returned again.
func (s *Spool) Ack(positions ...uint64) error {
	if err := s.owner.check(); errors.Is(err, ErrInUse) {
		return err
	}
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return ErrClosed
	}
	for _, at := range positions {
		if at >= s.handed {
			s.mu.Unlock()
			return fmt.Errorf("acknowledge position %d: it was never read", at)
		}
		s.counts.acknowledged += s.done.add(at, at+1)
	}
	s.changes++
	s.changing()
	s.mu.Unlock()
	s.acked.write(s)
	s.raise(s.tidy)
	return nil
}

// Quarantine puts an entry that can never be acknowledged aside, with the reason,
// into a file that people can read. After nil it is there durably, and does not come again.
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
	s.changing()
	s.mu.Unlock()
	s.acked.write(s)
	s.raise(s.tidy)
	return nil
}

// Discard takes entries, of which Next has returned the positions, out of the spool without
// their being sent; they count as discarded. After nil that is durable. It fails, and does
// nothing, with ErrHoles if too many stretches of others would be left between.
func (s *Spool) Discard(positions ...uint64) error {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return ErrClosed
	}
	done := spans{low: s.done.low, above: slices.Clone(s.done.above)}
	var discarded uint64
	for _, at := range positions {
		if at >= s.handed {
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
	s.changing()
	s.mu.Unlock()
	return s.keep()
}
