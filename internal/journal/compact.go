package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/diaspora-streams/diaspora/internal/disk"
)

const (
	snapshotFrameBytes = 128 << 10 // a frame of a snapshot is written when it has at least this size

	retryAfter    = 10 * time.Second // wait after a failed compaction; doubles with each failure,
	maxRetryAfter = 5 * time.Minute  // up to this
)

// compactIfDue starts a compaction if the log is large enough. The caller holds mu.
func (j *Journal) compactIfDue() {
	if j.compacting || j.closing || j.err != nil ||
		j.logBytes < max(j.opts.CompactBytes, 2*j.snapshot) ||
		j.failures > 0 && time.Now().Before(j.retryAt) {
		return
	}
	j.compacting = true
	j.work.Go(j.compact)
}

// compact replaces the log by a snapshot and an empty segment.
func (j *Journal) compact() {
	seg, err := j.rotate()
	size := int64(0)
	if err == nil {
		size, err = j.writeSnapshot(seg)
	}
	if err == nil {
		j.removeBefore(seg.number)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.compacting = false
	if err == nil {
		j.failures, j.snapshot, j.logBytes = 0, size, seg.size
		j.base, j.baseFirst = seg.number, seg.first
		return
	}
	if j.closing {
		return
	}
	j.failures++
	wait := min(j.retryAfter<<min(j.failures-1, 10), maxRetryAfter)
	j.retryAt = time.Now().Add(wait)
	j.log.Warn("the journal cannot be compacted now; nothing is lost, and it is tried again", "err", err, "after", wait)
}

// rotate makes a new segment active and returns it. If the active one has no frames yet, it returns
// that.
func (j *Journal) rotate() (*segment, error) {
	j.mu.Lock()
	old, empty := j.active, j.active.size == headerBytes
	j.mu.Unlock()
	if empty {
		return old, nil
	}
	seg, err := j.createSegment(old.number + 1)
	if err != nil {
		return nil, err
	}
	j.mu.Lock()
	swapped := make(chan struct{})
	j.successor, j.swapped = seg, swapped
	if !j.leading {
		j.swap()
	}
	j.mu.Unlock()
	<-swapped
	if !j.opts.Sync {
		// Close only syncs the active segment. If this compaction fails, the older segments are
		// still needed, so they must be durable.
		if err := old.file.Sync(); err != nil {
			j.mu.Lock()
			j.fail(err)
			j.mu.Unlock()
			return nil, errors.Join(err, old.file.Close())
		}
	}
	return seg, old.file.Close()
}

// writeSnapshot writes the snapshot that replaces all segments before seg, the active one.
func (j *Journal) writeSnapshot(seg *segment) (size int64, err error) {
	name := fileName(seg.number, snapshotSuffix)
	temp := name + tempSuffix
	if err := j.fs.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	f, err := j.fs.Create(temp)
	if err != nil {
		return 0, err
	}
	w := newSnapshotWriter(f, seg.number)
	err = w.begin()
	if err == nil {
		err = j.merge(seg, w.emit)
	}
	if err == nil {
		err = w.end(seg.first)
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = j.fs.Rename(temp, name)
	}
	if err != nil {
		j.fs.Remove(temp)
		return 0, err
	}
	if err := j.fs.Sync(); err != nil {
		// It is unknown whether the name is durable. If the file stayed, a later Open could use it
		// and remove the segments, and then a power cut could lose the name.
		return 0, errors.Join(err, j.fs.Remove(name))
	}
	return w.at, nil
}

// merge emits the current entries before seg: those of the last snapshot that have not changed
// since, and the last change of each other key. To save memory it reads the changes twice and keeps
// only their keys.
func (j *Journal) merge(seg *segment, emit func(Entry) error) error {
	r := replay{fs: j.fs, base: j.base, sequence: j.baseFirst}
	if err := r.openSegments(seg.number); err != nil {
		return err
	}
	defer r.close()
	last := map[string]int{} // index of the last change of each key
	at := 0
	r.load = j.unlessStopped(func(e Entry) error {
		last[string(e.Key)] = at
		at++
		return nil
	})
	if err := r.loadAll(seg.first); err != nil {
		return err
	}
	r.load = j.unlessStopped(func(e Entry) error {
		if _, changed := last[string(e.Key)]; changed {
			return nil
		}
		return emit(e)
	})
	if err := r.loadSnapshot(); err != nil {
		return err
	}
	r.sequence = j.baseFirst
	at = 0
	r.load = j.unlessStopped(func(e Entry) error {
		at++
		if last[string(e.Key)] != at-1 || e.Value == nil {
			return nil
		}
		return emit(e)
	})
	return r.loadAll(seg.first)
}

// loadAll loads the changes up to a sequence number. The journal has written all of them, so a torn
// frame is damage.
func (r *replay) loadAll(until uint64) error {
	for _, s := range r.segments {
		name := fileName(s.number, logSuffix)
		var err error
		if s.seed, err = readHeader(s.file, logKind, s.number); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		torn, err := r.loadSegment(s, name)
		if err != nil {
			return err
		}
		if torn {
			return damaged(name, s.size, errTorn)
		}
	}
	if r.sequence != until {
		return fmt.Errorf("%w: %d frames where %d were written", ErrDamaged, r.sequence, until)
	}
	return nil
}

// unlessStopped returns f with a check: it fails if the compaction must be aborted.
func (j *Journal) unlessStopped(f func(Entry) error) func(Entry) error {
	n := 0
	return func(e Entry) error {
		if n++; n%256 == 0 {
			if err := j.stopped(); err != nil {
				return err
			}
		}
		return f(e)
	}
}

// stopped returns the reason why a compaction must be aborted, or nil.
func (j *Journal) stopped() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closing {
		return ErrClosed
	}
	return j.err
}

// snapshotWriter writes the frames of a snapshot.
type snapshotWriter struct {
	file     disk.File
	header   []byte
	seed     uint32
	at       int64
	buf      []byte
	sequence uint64
	entries  uint64
}

func newSnapshotWriter(f disk.File, number uint64) *snapshotWriter {
	w := &snapshotWriter{file: f, buf: make([]byte, frameHeaderBytes, snapshotFrameBytes+4<<10)}
	w.header, w.seed = newHeader(snapshotKind, number)
	return w
}

func (w *snapshotWriter) begin() error {
	_, err := w.file.WriteAt(w.header, 0)
	w.at = headerBytes
	return err
}

func (w *snapshotWriter) emit(e Entry) error {
	w.entries++
	if w.buf = appendEntry(w.buf, e); len(w.buf) < snapshotFrameBytes {
		return nil
	}
	return w.flush(0)
}

// flush writes the frame, unless it is empty.
func (w *snapshotWriter) flush(flags uint32) error {
	if len(w.buf) == frameHeaderBytes {
		return nil
	}
	seal(w.buf, w.seed, w.at, flags, w.sequence)
	if _, err := w.file.WriteAt(w.buf, w.at); err != nil {
		return err
	}
	w.at += int64(len(w.buf))
	w.sequence++
	w.buf = w.buf[:frameHeaderBytes]
	return nil
}

// end completes and syncs the snapshot. sequence is the sequence number of the first frame of its
// segment.
func (w *snapshotWriter) end(sequence uint64) error {
	if err := w.flush(0); err != nil {
		return err
	}
	w.buf = binary.AppendUvarint(w.buf, w.entries)
	w.buf = binary.AppendUvarint(w.buf, sequence)
	if err := w.flush(flagEnd); err != nil {
		return err
	}
	return w.file.Sync()
}
