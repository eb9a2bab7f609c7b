package main

import (
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/bbolt"

	"github.com/diaspora-streams/diaspora/internal/spool"
)

// floor collects one value from each caller, and then writes and syncs them all at once.
type floor struct {
	mu      sync.Mutex
	file    *os.File
	batch   []byte
	waiting []chan error
	writers int
}

func openFloor(dir string, writers int) (store, error) {
	file, err := os.Create(dir)
	return &floor{file: file, writers: writers}, err
}

func (f *floor) append(value []byte) error {
	f.mu.Lock()
	f.batch = append(f.batch, value...)
	done := make(chan error, 1)
	f.waiting = append(f.waiting, done)
	if len(f.waiting) == f.writers {
		_, err := f.file.Write(f.batch)
		if err == nil {
			err = syscall.Fdatasync(int(f.file.Fd()))
		}
		for _, w := range f.waiting {
			w <- err
		}
		f.batch, f.waiting = f.batch[:0], f.waiting[:0]
	}
	f.mu.Unlock()
	return <-done
}

func (f *floor) drain() (int, error) { return 0, nil }
func (f *floor) close() error        { return f.file.Close() }

// spooled is the spool, used in the way the Logger uses it.
type spooled struct{ *spool.Spool }

func openSpool(dir string, _ int) (store, error) {
	s, err := spool.Open(context.Background(), spool.Options{Dir: dir, MaxBytes: 16 << 30})
	return spooled{s}, err
}

func (s spooled) append(value []byte) error {
	return s.Append(background, spool.Entry{Topic: "bench", ID: "k3v9x0q2m7ta5h1c-abcd", Time: time.Now().Truncate(time.Millisecond), Value: value})
}

func (s spooled) drain() (n int, err error) {
	for s.Stats().Events > 0 {
		records, err := s.Next(background, drainBatch, 1<<20)
		if err != nil {
			return n, err
		}
		positions := make([]uint64, len(records))
		for i, r := range records {
			positions[i] = r.Position
		}
		if err := s.Ack(positions...); err != nil {
			return n, err
		}
		n += len(records)
	}
	return n, nil
}

func (s spooled) close() error { return s.Close() }

// bolt keeps the values in one bucket, under increasing numbers.
type bolt struct {
	db      *bbolt.DB
	writers int
}

var bucket = []byte("queue")

func openBolt(dir string, writers int) (store, error) {
	db, err := bbolt.Open(dir, 0o600, nil)
	if err != nil {
		return nil, err
	}
	// As with the floor, the callers share a transaction as soon as all of them wait.
	db.MaxBatchSize = writers
	return &bolt{db, writers}, db.Update(func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucket(bucket)
		return err
	})
}

func (b *bolt) append(value []byte) error {
	update := b.db.Batch
	if b.writers == 1 {
		update = b.db.Update
	}
	return update(func(tx *bbolt.Tx) error {
		queue := tx.Bucket(bucket)
		queue.FillPercent = 1 // keys are only appended
		n, err := queue.NextSequence()
		if err != nil {
			return err
		}
		return queue.Put(binary.BigEndian.AppendUint64(nil, n), value)
	})
}

func (b *bolt) drain() (n int, err error) {
	for {
		took := 0
		err := b.db.Update(func(tx *bbolt.Tx) error {
			cursor := tx.Bucket(bucket).Cursor()
			took = 0
			for key, value := cursor.First(); key != nil && took < drainBatch; key, value = cursor.Next() {
				sink(value)
				if err := cursor.Delete(); err != nil {
					return err
				}
				took++
			}
			return nil
		})
		if n += took; err != nil || took == 0 {
			return n, err
		}
	}
}

func (b *bolt) close() error { return b.db.Close() }

// tree keeps the values in a Pebble database, under increasing numbers.
type tree struct {
	db   *pebble.DB
	next atomic.Uint64
}

func openPebble(dir string, _ int) (store, error) {
	db, err := pebble.Open(dir, &pebble.Options{Logger: quiet{}})
	return &tree{db: db}, err
}

func (p *tree) append(value []byte) error {
	return p.db.Set(binary.BigEndian.AppendUint64(nil, p.next.Add(1)), value, pebble.Sync)
}

func (p *tree) drain() (n int, err error) {
	for from := uint64(0); ; {
		start := binary.BigEndian.AppendUint64(nil, from)
		iter, err := p.db.NewIter(&pebble.IterOptions{LowerBound: start})
		if err != nil {
			return n, err
		}
		took := 0
		for ok := iter.First(); ok && took < drainBatch; ok = iter.Next() {
			sink(iter.Value())
			from = binary.BigEndian.Uint64(iter.Key()) + 1
			took++
		}
		err = errors.Join(iter.Error(), iter.Close())
		if err == nil && took > 0 {
			err = p.db.DeleteRange(start, binary.BigEndian.AppendUint64(nil, from), pebble.Sync)
		}
		if n += took; err != nil || took == 0 {
			return n, err
		}
	}
}

func (p *tree) close() error { return p.db.Close() }

// quiet discards Pebble's log messages.
type quiet struct{}

func (quiet) Infof(string, ...any)  {}
func (quiet) Errorf(string, ...any) {}
func (quiet) Fatalf(format string, args ...any) {
	panic("pebble: " + format)
}

var seen int

// sink uses a value, so that it really is read.
func sink(value []byte) { seen += len(value) + int(value[len(value)-1]) }

func allocated(info fs.FileInfo) int64 {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return stat.Blocks * 512
	}
	return info.Size()
}
