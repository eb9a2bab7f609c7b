package commitlog

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/diaspora-streams/diaspora/internal/disk"
)

var (
	// ErrOutOfRange means that an offset is before the start or behind the end of the log.
	ErrOutOfRange = errors.New("offset out of range")
	// ErrDamaged means that stored batches are missing or not what was written.
	ErrDamaged = errors.New("the log is damaged")
	// ErrFailed means that a sync has failed, so that the log cannot tell what is on
	// the disk. Records can be read, but nothing is written until the log is opened again.
	ErrFailed = errors.New("the log takes no writes since a sync failed")
	// ErrClosed means that the log was closed.
	ErrClosed = errors.New("the log is closed")
	// ErrVersion means that a later version of this software wrote the log.
	ErrVersion = errors.New("the log was written by a later version")
)

// Options say where a log is and what it promises.
type Options struct {
	// FS is the partition's own directory. It is made by the first Append. The one
	// above it is the caller's, who has made it durably. Required.
	FS disk.FS

	// SegmentBytes is the size of one segment file. Default: 64 MiB.
	SegmentBytes int64

	// Sync makes Append return only when the batch is on disk, so that it survives
	// a power cut. Without it, acknowledged batches survive the death of the
	// process, and a power cut may cost the last ones.
	Sync bool

	// Now is the clock. Default: time.Now.
	Now func() time.Time

	// Diagnostics receives what the log says about itself. Nil discards it.
	Diagnostics *slog.Logger
}

const (
	defaultSegmentBytes = 64 << 20
	checkpointBytes     = 1 << 20        // Maintain moves the recovery point when so much was appended
	recoveryBytes       = 16 << 20       // and Append does when it is so much: a start has to read it
	producerIdle        = 24 * time.Hour // then a producer is forgotten, as by Apache Kafka
	maxOpen             = 4              // segments that are open beside the active one
)

// Log is the log of one partition. Its methods may be called concurrently.
//
// It has three locks, which are taken in this order. None of them is needed to read
// the bytes of a segment, so readers wait for nobody.
type Log struct {
	opts  Options
	fs    disk.FS
	diag  *slog.Logger
	tasks sync.WaitGroup // checkpoints in the background; Close waits for them

	// appending is held while a batch is checked and written, and while a segment is begun.
	appending sync.Mutex

	// maintaining is held while the checkpoint is written and segments are removed.
	maintaining sync.Mutex

	// mu guards all below. It is never held while a file is read, written or synced.
	mu        sync.Mutex
	start     int64      // offset of the first record
	end       int64      // offset behind the last record that readers may see
	endPos    int64      // where that record ends in the active segment
	next      int64      // offset of the next batch; only with Options.Sync it may be beyond end
	bytes     int64      // size of all segments
	clock     int64      // when the last batch arrived, in milliseconds; never goes back
	segments  []*segment // in the order of their offsets, without gaps; the last one is active
	opened    []*segment // those with a file open
	epochs    epochs
	producers producers
	rollAfter time.Duration // age at which the active segment is closed
	marks     marks
	waiters   map[chan<- struct{}]struct{}

	syncing bool       // an Append syncs, for all that wait
	synced  *sync.Cond // with mu: told when a sync has ended
	saving  bool       // a save runs in the background
	pending int64      // bytes that were appended since the last checkpoint
	round   int        // counts the calls of Maintain, to tell for how long a segment was not used

	dirMade   bool  // the directory exists
	dirSynced bool  // and is durable
	found     bool  // Open has read a checkpoint
	stored    bool  // a checkpoint is durable
	swept     bool  // files that do not belong to the log were removed
	failed    error // if not nil, nothing is written any more
	closed    bool
}

// Open opens a log, and makes an empty one if its directory is missing or empty. After a
// clean stop it reads only the checkpoint. Otherwise it reads what was
// appended since the checkpoint, and cuts off a torn end.
//
// Damage does not keep a log from being opened. The damaged places are found when they are read.
func Open(o Options) (*Log, error) {
	if o.FS == nil {
		return nil, errors.New("open log: no directory given")
	}
	if o.SegmentBytes <= 0 {
		o.SegmentBytes = defaultSegmentBytes
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Diagnostics == nil {
		o.Diagnostics = slog.New(slog.DiscardHandler)
	}
	l := &Log{opts: o, fs: o.FS, diag: o.Diagnostics, rollAfter: maxRollAfter}
	l.synced = sync.NewCond(&l.mu)
	if err := l.recover(); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return l, nil
}

// Start is the offset of the first record, or End if there is none. It never goes back.
func (l *Log) Start() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.start
}

// End is the offset behind the last record that is acknowledged. It never goes back.
func (l *Log) End() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.end
}

// Bytes is the size of the segments on disk.
func (l *Log) Bytes() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bytes
}

// active is the segment that is appended to. The caller holds mu.
func (l *Log) active() *segment { return l.segments[len(l.segments)-1] }

// writable says why nothing may be written, if so. The caller holds mu.
func (l *Log) writable() error {
	if l.closed {
		return ErrClosed
	}
	return l.failed
}

// fail ends all writing, since it is unknown what is on disk. The caller holds mu.
func (l *Log) fail(err error) error {
	if l.failed == nil {
		l.failed = fmt.Errorf("%w: %w", ErrFailed, err)
		l.diag.Error("the log takes no more writes", "err", err)
		l.synced.Broadcast()
	}
	return l.failed
}

// Maintain does what is due from time to time. The broker calls it about once a minute;
// without work to do it costs next to nothing. It moves the recovery point, closes files that were
// not used since the last two calls, and forgets producers that are idle for a day.
func (l *Log) Maintain() error {
	if err := l.sweep(); err != nil {
		return err
	}
	l.mu.Lock()
	l.round++
	due := l.writable() == nil && (l.pending >= checkpointBytes || l.pending > 0 && l.active().idle(l.round))
	before := l.opts.Now().Add(-producerIdle).UnixMilli()
	l.producers.forget(before)
	l.mu.Unlock()
	if due {
		if err := l.save(); err != nil {
			return err
		}
	}
	l.appending.Lock() // so that the active segment's file may be closed
	defer l.appending.Unlock()
	l.mu.Lock()
	idle := l.shut(func(g *segment) bool { return g.idle(l.round) })
	l.mu.Unlock()
	return closeAll(idle)
}

// Close stops the log cleanly: the next Open need not read any batch. Later calls of other
// methods fail with ErrClosed. It may be called twice.
func (l *Log) Close() error { return l.close(true) }

// Discard closes a log that is about to be deleted. It writes nothing.
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
	rest := l.shut(func(*segment) bool { return true })
	l.mu.Unlock()
	return errors.Join(err, closeAll(rest))
}
