package commitlog

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/diaspora-streams/diaspora/internal/disk"
)

var (
	// ErrOutOfRange means that an offset is before the start or after the end of the log.
	ErrOutOfRange = errors.New("offset out of range")
	// ErrDamaged means that stored batches are missing or differ from what was written.
	ErrDamaged = errors.New("the log is damaged")
	// ErrFailed means that a sync has failed, so it is unknown what is on the disk. Records can be
	// read, but nothing is written until the log is opened again.
	ErrFailed = errors.New("the log accepts no writes after a failed sync")
	// ErrClosed means that the log was closed.
	ErrClosed = errors.New("the log is closed")
	// ErrVersion means that a later version of this software wrote the log.
	ErrVersion = errors.New("the log was written by a later version")
)

// Options configure a [Log].
type Options struct {
	// FS is the directory of the partition. The first Append creates it. The parent directory must
	// exist and be durable. Required.
	FS disk.FS

	// SegmentBytes is the size of one segment file; see SetSegmentBytes. Default: 64 MiB.
	SegmentBytes int64

	// Sync makes Append return only when the batch is on disk, so that it survives a power cut.
	// Without Sync, acknowledged batches survive if the process is killed, but a power cut may lose
	// the most recent ones.
	Sync bool

	// Now is the clock. Default: time.Now.
	Now func() time.Time

	// Diagnostics receives the log's own messages. Nil discards them.
	Diagnostics *slog.Logger
}

const (
	defaultSegmentBytes = 64 << 20
	checkpointBytes     = 1 << 20        // Maintain moves the recovery point when at least this much was appended
	recoveryBytes       = 16 << 20       // Append moves it when this much was appended, to limit what a start has to read
	producerRetention   = 24 * time.Hour // a producer that was idle for this long is forgotten, as in Apache Kafka
	maxOpen             = 4              // maximum number of open segments, not counting the active one
)

// Log is the log of one partition. Its methods may be called concurrently.
//
// It has three locks, which are acquired in this order: appending, maintaining, mu. None of them is
// held while the bytes of a segment are read, so readers do not wait for appends or maintenance.
type Log struct {
	opts  Options
	fs    disk.FS
	diag  *slog.Logger
	tasks sync.WaitGroup // checkpoints in the background; Close waits for them

	segmentBytes atomic.Int64

	// appending is held while a batch is checked and written, and while a new segment is created.
	appending sync.Mutex

	// maintaining is held while the checkpoint is written and segments are removed.
	maintaining sync.Mutex

	// mu guards the fields below. It is never held while a file is read, written or synced.
	mu           sync.Mutex
	start        int64      // offset of the first record
	end          int64      // offset after the last record that readers may see
	endPos       int64      // position in the active segment at which that record ends
	next         int64      // offset of the next batch; larger than end only with Options.Sync
	bytes        int64      // size of all segments
	clock        int64      // when the last batch arrived, in milliseconds; never decreases
	segments     []*segment // in the order of their offsets, without gaps; the last one is active
	openSegments []*segment // segments with an open file
	epochs       epochs
	producers    producers
	rollAfter    time.Duration // age at which the active segment is closed
	marks        readPositions
	waiters      map[chan<- struct{}]struct{}

	syncing       bool       // whether an Append is syncing, for all that wait
	synced        *sync.Cond // uses mu; signaled when a sync has ended
	saving        bool       // whether save is running in the background
	pending       int64      // bytes appended since the last checkpoint
	maintainRound int        // number of calls of Maintain, to measure how long a segment has been unused

	dirMade          bool  // the directory exists
	dirSynced        bool  // the directory is durable
	foundCheckpoint  bool  // Open has found a checkpoint
	checkpointSynced bool  // a checkpoint is durable
	orphansRemoved   bool  // files that do not belong to the log have been removed
	failed           error // if not nil, nothing may be written any more
	closed           bool
}

// Open opens a log. If its directory is missing or empty, the log is empty. After a clean stop Open
// reads only the checkpoint. Otherwise it also reads what was appended since the checkpoint, and
// cuts off an incomplete end.
//
// Open succeeds even if batches are damaged. Reading those batches fails.
func Open(o Options) (*Log, error) {
	if o.FS == nil {
		return nil, errors.New("open log: FS is required")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	o.Diagnostics = cmp.Or(o.Diagnostics, slog.New(slog.DiscardHandler))
	l := &Log{opts: o, fs: o.FS, diag: o.Diagnostics, rollAfter: maxRollAfter}
	l.synced = sync.NewCond(&l.mu)
	l.SetSegmentBytes(o.SegmentBytes)
	if err := l.recover(); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return l, nil
}

// Start returns the offset of the first record, or End if there is none. It never decreases.
func (l *Log) Start() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.start
}

// End returns the offset after the last acknowledged record. It never decreases.
func (l *Log) End() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.end
}

// Bytes returns the size of the segments on disk.
func (l *Log) Bytes() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bytes
}

// SetSegmentBytes changes the size at which a segment is complete and a new one begins. A size of 0
// or less means the default.
func (l *Log) SetSegmentBytes(n int64) {
	if n <= 0 {
		n = defaultSegmentBytes
	}
	l.segmentBytes.Store(n)
}

// active returns the segment that is appended to. The caller holds mu.
func (l *Log) active() *segment { return l.segments[len(l.segments)-1] }

// writable returns an error if nothing may be written. The caller holds mu.
func (l *Log) writable() error {
	if l.closed {
		return ErrClosed
	}
	return l.failed
}

// fail stops all writing, because it is unknown what is on disk. The caller holds mu.
func (l *Log) fail(err error) error {
	if l.failed == nil {
		l.failed = fmt.Errorf("%w: %w", ErrFailed, err)
		l.diag.Error("the log accepts no more writes", "err", err)
		l.synced.Broadcast()
	}
	return l.failed
}

// Maintain does the periodic work. The broker calls it about once a minute; it is cheap if there is
// nothing to do. It moves the recovery point, closes files that were not used since the last two
// calls, and forgets producers that have been idle for a day.
func (l *Log) Maintain() error {
	if err := l.removeOrphans(); err != nil {
		return err
	}
	l.mu.Lock()
	l.maintainRound++
	due := l.writable() == nil && (l.pending >= checkpointBytes || l.pending > 0 && l.active().idle(l.maintainRound))
	before := l.opts.Now().Add(-producerRetention).UnixMilli()
	l.producers.expire(before)
	l.mu.Unlock()
	if due {
		if err := l.save(); err != nil {
			return err
		}
	}
	l.appending.Lock() // the file of the active segment may only be closed while nothing is appended
	defer l.appending.Unlock()
	l.mu.Lock()
	idle := l.closeSegments(func(g *segment) bool { return g.idle(l.maintainRound) })
	l.mu.Unlock()
	return closeAll(idle)
}

// Close stops the log cleanly, so that the next Open does not have to read batches. Later calls of
// other methods fail with ErrClosed. It may be called more than once.
func (l *Log) Close() error { return l.close(true) }

// Discard closes a log that is about to be deleted, without writing anything.
func (l *Log) Discard() error { return l.close(false) }

func (l *Log) close(clean bool) error {
	l.appending.Lock()
	l.mu.Lock()
	again := l.closed
	l.closed = true
	l.wake()
	save := clean && !again && l.pending > 0 && l.failed == nil
	l.mu.Unlock()
	l.appending.Unlock()
	l.tasks.Wait()
	var err error
	if save {
		err = l.save()
	}
	l.mu.Lock()
	rest := l.closeSegments(func(*segment) bool { return true })
	l.mu.Unlock()
	return errors.Join(err, closeAll(rest))
}
