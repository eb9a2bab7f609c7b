package commitlog

import (
	"errors"
	"fmt"
	"io"

	"github.com/diaspora-streams/diaspora/internal/batch"
)

// Appended is the result of an append.
type Appended struct {
	BaseOffset int64 // of its first record
	Time       int64 // when it arrived, in milliseconds: the timestamp of all its records
	Duplicate  bool  // the batch had been appended before
}

// Append appends a batch that batch.Validate has accepted; h is its header as the producer sent it.
// Append sets the offset, the leader epoch and the time in b, and does not keep b. If it returns
// nil, the batch is durable as described at [Options.Sync].
//
// If an idempotent producer sends a batch again, Append does not write it again, but returns the
// offset and the time of the first copy.
//
// Append fails with kerr.OutOfOrderSequenceNumber or kerr.InvalidProducerEpoch in the same cases as
// Apache Kafka. It can also fail with ErrFailed, ErrClosed, or a write error. After a write error
// the log is unchanged; disk.Full reports whether the disk was full.
func (l *Log) Append(b []byte, h batch.Header, leaderEpoch int32) (Appended, error) {
	// Computing the checksum is most of the work. It does not cover the offset, so it can be done
	// before the lock is taken.
	now := l.opts.Now().UnixMilli()
	batch.Stamp(b, 0, leaderEpoch, now)

	l.appending.Lock()
	a, end, err := l.append(b, h, leaderEpoch, now)
	l.appending.Unlock()
	if err != nil {
		return Appended{}, fmt.Errorf("append: %w", err)
	}
	if l.opts.Sync {
		// A duplicate must not be acknowledged before it is on disk either.
		if err := l.commit(end); err != nil {
			return Appended{}, fmt.Errorf("append: %w", err)
		}
	}
	return a, nil
}

// append checks and writes a batch. end is the offset after the batch. The caller holds appending.
func (l *Log) append(b []byte, h batch.Header, leaderEpoch int32, now int64) (a Appended, end int64, err error) {
	if h.Size() != len(b) {
		return a, 0, fmt.Errorf("the header says %d bytes, but the batch has %d", h.Size(), len(b))
	}
	l.mu.Lock()
	err = l.writable()
	if err == nil && h.HasProducer() {
		var duplicate *producedBatch
		if duplicate, err = l.producers.check(h); duplicate != nil {
			a = Appended{BaseOffset: duplicate.base, Time: duplicate.time, Duplicate: true}
			end = duplicate.base + int64(duplicate.delta) + 1
		}
	}
	offset, clock := l.next, l.clock
	l.mu.Unlock()
	if err != nil || a.Duplicate {
		return a, end, err
	}
	if now < clock { // a batch with a later time was appended first, or the clock was set back
		now = clock
		batch.Stamp(b, 0, leaderEpoch, now)
	}
	g, o, err := l.segmentFor(int64(len(b)), now)
	if err != nil {
		return a, 0, err
	}
	stampOffset(b, offset)
	if err := l.write(g, o, b); err != nil {
		return a, 0, err
	}
	h.BaseOffset, h.LeaderEpoch, h.MaxTimestamp = offset, leaderEpoch, now
	l.mu.Lock()
	defer l.mu.Unlock()
	o.index.add(h, g.size)
	l.addBatch(g, h, now)
	if l.pending += int64(len(b)); l.pending >= recoveryBytes {
		l.saveInBackground()
	}
	if !l.opts.Sync {
		l.advanceEnd(l.next, g.size)
	}
	return Appended{BaseOffset: offset, Time: now}, l.next, nil
}

// segmentFor returns the segment for a batch, with its file open: the active segment or, if that is
// too large or too old, a new one. The caller holds appending.
func (l *Log) segmentFor(bytes, now int64) (*segment, *openSegment, error) {
	l.mu.Lock()
	g := l.active()
	due := g.size > 0 && (g.size+bytes > l.segmentBytes.Load() || now-g.first >= l.rollAfter.Milliseconds())
	o, made := g.open, g.exists
	g.lastUsedRound = l.maintainRound
	l.mu.Unlock()
	switch {
	case due:
		g, err := l.roll()
		if err != nil {
			return nil, nil, err
		}
		l.mu.Lock()
		l.saveInBackground()
		l.mu.Unlock()
		return g, g.open, nil // no other goroutine closes it while appending is held
	case o != nil:
		return g, o, nil
	case !made:
		err := l.create(g)
		return g, g.open, err
	}
	o, err := l.acquire(g)
	if err == nil {
		l.release(g)
	}
	return g, o, err
}

// roll creates a new active segment. With Options.Sync, all earlier segments are on disk when it
// returns, so that only the active segment can have unsynced batches. The caller holds appending.
func (l *Log) roll() (*segment, error) {
	l.mu.Lock()
	next, stored := l.next, l.checkpointSynced
	l.mu.Unlock()
	if l.opts.Sync {
		if err := l.commit(next); err != nil {
			return nil, err
		}
	}
	if !stored {
		if err := l.ensureCheckpoint(); err != nil {
			return nil, err
		}
	}
	g := &segment{base: next, end: next, maxTime: -1}
	if err := l.create(g); err != nil {
		return nil, fmt.Errorf("begin a segment: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.segments = append(l.segments, g)
	l.endPos = 0
	g.lastUsedRound = l.maintainRound
	return g, nil
}

// write writes a batch at the end of a segment. If that fails, it removes what was written of the
// batch. The caller holds appending.
func (l *Log) write(g *segment, o *openSegment, b []byte) error {
	n, err := o.file.WriteAt(b, g.size)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	l.mu.Lock()
	if err == nil {
		err = l.failed // a sync that may have included this batch has failed in the meantime
	}
	l.mu.Unlock()
	if err == nil {
		return nil
	}
	if cut := o.file.Truncate(g.size); cut != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.fail(errors.Join(err, cut))
	}
	return err
}

// addBatch adds a batch that is in the segment's file to the state of the log. Recovery uses it
// too. The caller holds mu.
func (l *Log) addBatch(g *segment, h batch.Header, arrived int64) {
	if g.size == 0 {
		g.first = arrived
	}
	l.next = h.LastOffset() + 1
	g.end = l.next
	g.size += int64(h.Size())
	g.last = arrived
	g.maxTime = max(g.maxTime, h.MaxTimestamp)
	l.bytes += int64(h.Size())
	l.clock = max(l.clock, arrived)
	l.epochs.assign(h.LeaderEpoch, h.BaseOffset)
	if h.HasProducer() && !h.Control() {
		l.producers.add(h.ProducerID, h.ProducerEpoch, producedBatch{h.BaseOffset, arrived, h.LastSequence(), h.LastOffsetDelta})
	}
}

// advanceEnd makes what was written up to an offset visible to readers. pos is the position of the
// offset in the active segment. The caller holds mu.
func (l *Log) advanceEnd(offset, pos int64) {
	l.end, l.endPos = offset, pos
	l.wake()
}
