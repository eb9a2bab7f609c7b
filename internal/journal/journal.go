package journal

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/diaspora-streams/diaspora/internal/disk"
)

var (
	// ErrClosed means that the journal was closed.
	ErrClosed = errors.New("the journal is closed")
	// ErrDamaged means that bytes of the journal are damaged or missing, and that a crash cannot be
	// the cause.
	ErrDamaged = errors.New("the journal is damaged")
	// ErrTooLarge means that an entry is larger than 16 MiB, or that the entries of one call
	// together are larger than 64 MiB.
	ErrTooLarge = errors.New("too large for the journal")
	// ErrVersion means that a later version of this software wrote the journal.
	ErrVersion = errors.New("the journal was written by a later version")
)

// Entry is one change: the key gets a new value or, if Value is nil, is deleted. An empty Value is
// not nil: it sets the key to an empty value.
type Entry struct{ Key, Value []byte }

// Options configure a [Journal].
type Options struct {
	// FS is the directory of the journal, which contains nothing else. It is created if it does not
	// exist. The caller closes FS after the journal. Required.
	FS disk.FS

	// Sync makes each Append durable before it returns, so that it survives a power cut.
	Sync bool

	// CompactBytes is the minimum size of the log at which it is compacted. Default: 16 MiB.
	CompactBytes int64

	// Diagnostics receives the journal's own messages. Nil discards them.
	Diagnostics *slog.Logger
}

// Journal is an open journal. Its methods may be called concurrently. The owner must ensure that a
// directory is used by only one journal at a time.
//
// Callers of Append take turns as the leader. Only the leader writes to the active segment.
type Journal struct {
	opts Options
	fs   disk.FS
	log  *slog.Logger
	bufs sync.Pool // of *[]byte, for batches

	mu         sync.Mutex // guards the fields below
	queue      []*batch   // batches that wait to be written
	leading    bool       // whether a caller is the leader
	active     *segment   // replaced only while no caller writes
	successor  *segment   // replaces the active segment as soon as no caller writes; may be nil
	swapped    chan struct{}
	sequence   uint64 // of the next frame
	dirty      bool   // the log may contain unsynced bytes
	logBytes   int64  // size of all segments that no snapshot replaces
	snapshot   int64  // size of the newest snapshot
	compacting bool
	base       uint64        // number of the newest snapshot, or 0
	baseFirst  uint64        // sequence number of the first frame after it
	failures   int           // number of consecutive failed compactions
	retryAfter time.Duration // how long to wait after the first failure
	retryAt    time.Time     // after a failure, no compaction starts before this time
	err        error         // if not nil, each Append fails with it
	closing    bool
	drained    chan struct{} // if closing: closed when there is no leader any more

	work      sync.WaitGroup // the goroutine that compacts, if there is one
	closeOnce sync.Once
	closeErr  error
}

// segment is a file of the log.
type segment struct {
	number uint64
	file   disk.File
	seed   uint32
	first  uint64 // the sequence number of its first frame
	size   int64  // size of the acknowledged part; guarded by the journal's mu
}

// batch is written as one frame. It has the entries of one or more calls.
type batch struct {
	buf  *[]byte
	err  error         // set before done is closed
	lead chan struct{} // makes one of the waiting callers the leader; nil if none waits
	done chan struct{} // closed when the batch is written or has failed; nil if none waits
}

const defaultCompactBytes = 16 << 20

// Append appends all of the entries or none. If it returns nil, they are durable with
// [Options.Sync]; and without it, they survive if the process is killed. Concurrent calls share a
// write and a sync. Append does not keep the entries.
//
// After an error the entries may or may not be in the journal. [ErrTooLarge] affects this call
// only. If the disk is full, or another write error occurred, later calls may succeed. After a
// failed sync all calls fail until the journal is opened again.
func (j *Journal) Append(entries ...Entry) error {
	size := 0
	for _, e := range entries {
		if len(e.Key)+len(e.Value) > maxEntryBytes {
			return fmt.Errorf("%w: an entry of %d bytes, at most %d", ErrTooLarge, len(e.Key)+len(e.Value), maxEntryBytes)
		}
		size += len(e.Key) + len(e.Value) + 10 // two varints of at most 4 bytes, and a margin
	}
	if size > maxCallBytes {
		return fmt.Errorf("%w: entries of %d bytes in one call, at most %d", ErrTooLarge, size, maxCallBytes)
	}
	j.mu.Lock()
	switch {
	case j.closing:
		j.mu.Unlock()
		return ErrClosed
	case j.err != nil || len(entries) == 0:
		defer j.mu.Unlock()
		return j.err
	}
	b := j.join(entries)
	if !j.leading {
		j.leading = true
		j.mu.Unlock()
		j.commit()
		return b.err
	}
	if b.done == nil {
		b.lead, b.done = make(chan struct{}, 1), make(chan struct{})
	}
	j.mu.Unlock()
	select {
	case <-b.lead:
		j.commit()
	case <-b.done:
	}
	return b.err
}

// join adds entries to the last waiting batch, or to a new one. The caller holds mu.
func (j *Journal) join(entries []Entry) *batch {
	var b *batch
	if n := len(j.queue); n > 0 && len(*j.queue[n-1].buf) < joinBytes {
		b = j.queue[n-1]
	} else {
		b = &batch{buf: j.buffer()}
		j.queue = append(j.queue, b)
	}
	buf := *b.buf
	for _, e := range entries {
		buf = appendEntry(buf, e)
	}
	*b.buf = buf
	return b
}

// buffer returns a buffer with space for a frame's header.
func (j *Journal) buffer() *[]byte {
	if buf, ok := j.bufs.Get().(*[]byte); ok {
		return buf
	}
	buf := make([]byte, frameHeaderBytes, 1<<10)
	return &buf
}

// commit writes the first batch of the queue. The caller is the leader, and the batch is its own.
// Afterwards a caller that waits for the next batch becomes the leader.
func (j *Journal) commit() {
	j.mu.Lock()
	j.swap()
	b := j.queue[0]
	j.queue = slices.Delete(j.queue, 0, 1)
	flags := uint32(flagSettled)
	if j.dirty {
		flags = 0
	}
	seg, at, sequence, err := j.active, j.active.size, j.sequence, j.err
	j.mu.Unlock()

	broken := false
	if err == nil {
		seal(*b.buf, seg.seed, at, flags, sequence)
		err, broken = j.write(seg.file, *b.buf, at)
	}

	j.mu.Lock()
	if err == nil {
		j.sequence++
		j.active.size += int64(len(*b.buf))
		j.logBytes += int64(len(*b.buf))
	} else {
		b.err = fmt.Errorf("append to the journal: %w", err)
	}
	j.dirty = !j.opts.Sync // a truncation is not synced either
	if broken {
		j.fail(err)
	}
	j.compactIfDue()
	if len(j.queue) > 0 {
		j.queue[0].lead <- struct{}{}
	} else {
		j.leading = false
		j.swap()
		if j.drained != nil {
			close(j.drained)
		}
	}
	j.mu.Unlock()

	if cap(*b.buf) <= joinBytes {
		*b.buf = (*b.buf)[:frameHeaderBytes]
		j.bufs.Put(b.buf)
	}
	b.buf = nil
	if b.done != nil {
		close(b.done)
	}
}

// write writes a frame at the end of the active segment. If it fails, the segment is unchanged,
// unless broken is true.
func (j *Journal) write(f disk.File, frame []byte, at int64) (err error, broken bool) {
	if _, err := f.WriteAt(frame, at); err != nil {
		cut := f.Truncate(at)
		if cut == nil && j.opts.Sync {
			cut = f.Sync() // the next segment may be started without another sync of this one
		}
		return errors.Join(err, cut), cut != nil
	}
	if !j.opts.Sync {
		return nil, false
	}
	if err := f.Sync(); err != nil {
		f.Truncate(at) // the caller gets an error, so a restart should not load these entries
		return err, true
	}
	return nil, false
}

// swap replaces the active segment if there is a successor. The caller holds mu, and no caller
// writes.
func (j *Journal) swap() {
	if j.successor == nil {
		return
	}
	j.successor.first = j.sequence
	j.active, j.successor = j.successor, nil
	j.logBytes += j.active.size
	close(j.swapped)
}

// fail makes all later calls of Append fail. The caller holds mu.
func (j *Journal) fail(err error) {
	if j.err == nil {
		j.err = fmt.Errorf("an earlier write to the journal failed: %w", err)
		j.log.Error("the journal takes no more changes until it is opened again", "err", err)
	}
}

// Close waits for calls of Append in progress, aborts a compaction, and closes the files. Without
// [Options.Sync] it syncs what was appended, and returns an error if that fails. Close may be
// called more than once.
func (j *Journal) Close() error {
	j.closeOnce.Do(func() { j.closeErr = j.close() })
	return j.closeErr
}

func (j *Journal) close() error {
	j.mu.Lock()
	j.closing = true
	if j.leading {
		j.drained = make(chan struct{})
		j.mu.Unlock()
		<-j.drained
	} else {
		j.mu.Unlock()
	}
	j.work.Wait()
	var err error
	if j.dirty && j.err == nil {
		err = j.active.file.Sync()
	}
	return errors.Join(err, j.active.file.Close())
}
