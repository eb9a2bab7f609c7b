package spool

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/diaspora-streams/diaspora/internal/disk/disktest"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// freeze stops the beat of an owner, as if its process or its machine were suspended.
func freeze(s *Spool) {
	close(s.owner.stop)
	s.owner.beat.Wait()
	s.owner.stop = make(chan struct{})
}

func files(fsys *disktest.Model) map[string]string {
	all := map[string]string{}
	for _, name := range fsys.Names() {
		all[name] = string(fsys.Content(name))
	}
	return all
}

// TestLostOwnerWritesNothing suspends an owner until another process has the spool, and then
// resumes it. The old owner has not noticed the change. Even so, none of its calls may change a
// byte.
func TestLostOwnerWritesNothing(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(s *Spool, read []Record) error{
		"Append":     func(s *Spool, _ []Record) error { return s.Append(context.Background(), numbered(7)) },
		"Ack":        func(s *Spool, read []Record) error { return s.Ack(read[0].Position) },
		"Quarantine": func(s *Spool, read []Record) error { return s.Quarantine(read[0], "poison") },
		"Discard":    func(s *Spool, read []Record) error { return s.Discard(read[0].Position) },
		"Note":       func(s *Spool, _ []Record) error { return s.Note("the cluster is away") },
		"no Note":    func(s *Spool, _ []Record) error { return s.Note("") },
		"Next":       func(s *Spool, _ []Record) error { _, err := s.Next(over(), 10, 1<<20); return err },
		"Close":      func(s *Spool, _ []Record) error { return s.Close() },
		"keep":       func(s *Spool, _ []Record) error { return s.writeCursor() },
		"removeDone": func(s *Spool, _ []Record) error { s.durableLow = s.next; return s.removeDone(true) },
		"dropOldest": func(s *Spool, _ []Record) error { return s.dropOldest() },
		"reserve":    func(s *Spool, _ []Record) error { s.reserve.free(s); return ErrInUse },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				fsys := disktest.New()
				fsys.SetShared(true)
				opts := Options{FS: fsys, SegmentBytes: 1 << 10, MaxBytes: 1 << 20}
				first := mustOpen(t, opts)
				mustAppend(t, first, 0, 30)
				read := drain(t, first)
				ackAll(t, first, read[:9])
				testkit.Must(t, first.Note("one event at a time"))
				first.Rewind()
				time.Sleep(time.Minute)
				freeze(first)
				fsys.BreakLocks()
				second := mustOpen(t, opts)
				records := drain(t, second)
				wantNumbered(t, records, 9, 30)
				ackAll(t, second, records[:15])
				mustAppend(t, second, 30, 40)
				time.Sleep(time.Minute)

				before := files(fsys)
				if err := change(first, read[9:]); !errors.Is(err, ErrInUse) {
					t.Errorf("%v, want ErrInUse", err)
				}
				time.Sleep(time.Minute)
				after := files(fsys)
				after[ownerName] = before[ownerName] // the new owner increments its beat there
				if !maps.Equal(before, after) {
					for _, name := range slices.Sorted(maps.Keys(before)) {
						if before[name] != after[name] {
							t.Errorf("the owner before has changed %s", name)
						}
					}
					t.Errorf("there was %v, and there is %v", slices.Sorted(maps.Keys(before)), slices.Sorted(maps.Keys(after)))
				}
				first.Close()
				if o, _ := readOwner(fsys); o == nil || o.Token != second.owner.me.Token {
					t.Errorf("the owner file is of %v", o)
				}
				if st := first.Stats(); st.Damaged != 0 {
					t.Errorf("the owner before counts %d events as damaged", st.Damaged)
				}
				mustClose(t, second)
				third := mustOpen(t, opts)
				wantNumbered(t, drain(t, third), 24, 40)
			})
		})
	}
}

// TestSuspendedInWrite suspends an owner in the middle of a write, or of a sync, until another
// process has the spool. The write reaches the disk after that. It must do no harm, and must not be
// reported as durable.
func TestSuspendedInWrite(t *testing.T) {
	t.Parallel()
	for _, call := range []string{"write", "sync"} {
		synctest.Test(t, func(t *testing.T) {
			fsys := disktest.New()
			fsys.SetShared(true)
			opts := Options{FS: fsys, MaxBytes: 1 << 20}
			first := mustOpen(t, opts)
			mustAppend(t, first, 0, 5)
			freeze(first)
			fsys.BreakLocks()
			var hung atomic.Bool
			fsys.Fault(func(c, name string) error {
				if c == call && strings.HasSuffix(name, ".seg") && hung.CompareAndSwap(false, true) {
					time.Sleep(time.Minute)
				}
				return nil
			})
			late := make(chan error)
			go func() { late <- first.Append(context.Background(), numbered(99)) }()
			synctest.Wait()
			second := mustOpen(t, opts)
			mustAppend(t, second, 5, 10)
			if err := <-late; !errors.Is(err, ErrInUse) {
				t.Errorf("suspended in %s: Append = %v, want ErrInUse", call, err)
			}
			first.Close()
			mustClose(t, second)
			third := mustOpen(t, opts)
			all := slices.DeleteFunc(drain(t, third), func(r Record) bool { return r.ID == "99" }) // it may be there
			wantNumbered(t, all, 0, 10)
			if st := third.Stats(); st.Damaged != 0 {
				t.Errorf("suspended in %s: %d events are damaged", call, st.Damaged)
			}
		})
	}
}

// TestTwoOwners has two owners of a spool whose lock does not work: either its file was removed or,
// on a file system shared by machines, locks stay local and the machine is suspended at times. The
// first owner continues until it notices. All that was guaranteed to it must hold, and nothing that
// the second owner does may be harmed.
func TestTwoOwners(t *testing.T) {
	t.Parallel()
	for _, shared := range []bool{false, true} {
		for seed := range uint64(testkit.Fewer(100)) {
			synctest.Test(t, func(t *testing.T) { race(t, shared, rand.New(rand.NewPCG(seed, 1))) })
			if t.Failed() {
				t.Fatalf("shared %v, seed %d", shared, seed)
			}
		}
	}
}

func race(t *testing.T, shared bool, rng *rand.Rand) {
	fsys := disktest.New()
	fsys.SetShared(shared)
	opts := Options{FS: fsys, SegmentBytes: 1 << 10, MaxBytes: 1 << 20}
	logged, sent := map[string]bool{}, map[string]bool{} // what was guaranteed, by ID
	pause := func(most time.Duration) { time.Sleep(time.Duration(rng.Int64N(int64(most)) + 1)) }
	n := 0
	work := func(s *Spool, steps int) error {
		for range steps {
			id := strconv.Itoa(n)
			n++
			if err := s.Append(t.Context(), Entry{Topic: "t", ID: id, Value: make([]byte, rng.IntN(200))}); err != nil {
				return err
			}
			logged[id] = true
			if rng.IntN(3) == 0 {
				records, err := s.Next(over(), 1+rng.IntN(6), 1<<20)
				if err != nil && !errors.Is(err, over().Err()) {
					return err
				}
				for _, r := range records {
					if err := s.Ack(r.Position); err != nil {
						return err
					}
					sent[r.ID] = true
				}
			}
			if rng.IntN(5) == 0 {
				if err := s.Note(id); err != nil {
					return err
				}
			}
			pause(2 * time.Second)
		}
		return nil
	}
	first := mustOpen(t, opts)
	testkit.Must(t, work(first, rng.IntN(20)))
	if shared {
		freeze(first)
	}
	fsys.BreakLocks()
	lost := make(chan error)
	delay := time.Duration(rng.Int64N(int64(10 * time.Second)))
	go func() { lost <- work(first, 1000) }()
	time.Sleep(delay)
	second := mustOpen(t, opts)
	if err := <-lost; !errors.Is(err, ErrInUse) {
		t.Errorf("the owner before ended with %v, want ErrInUse", err)
	}
	for s := range logged {
		if sent[s] {
			delete(logged, s)
		}
	}
	seen := map[string]bool{}
	last := -1
	for _, r := range drain(t, second) {
		at, _ := strconv.Atoi(r.ID)
		if at <= last {
			t.Errorf("event %d after %d", at, last)
		}
		last, seen[r.ID] = at, true
	}
	for id := range logged {
		if !seen[id] {
			t.Errorf("event %s was appended by the owner before, and is lost", id)
		}
	}
	second.Rewind()
	testkit.Must(t, work(second, 20))
	first.Close()
	mustClose(t, second)
	third := mustOpen(t, opts)
	if st := third.Stats(); st.Damaged != 0 {
		t.Errorf("%d events are damaged", st.Damaged)
	}
	seen = map[string]bool{}
	for _, r := range drain(t, third) {
		seen[r.ID] = true
		delete(sent, r.ID)
	}
	for id := range logged {
		if !seen[id] && !sent[id] {
			t.Errorf("event %s is lost in the end", id)
		}
	}
}

// TestLockFileRemoved removes the lock file of a spool on the real disk, as somebody does who
// thinks that the file is stale. Two Spools then open the directory. The first must stop before the
// second begins.
func TestLockFileRemoved(t *testing.T) {
	t.Parallel()
	path := dir(t)
	first := mustOpen(t, Options{Dir: path})
	mustAppend(t, first, 0, 10)
	if err := os.Remove(filepath.Join(path, lockName)); err != nil {
		t.Skipf("the lock file of a running process cannot be removed on this system: %v", err)
	}
	second := mustOpen(t, Options{Dir: path})
	if err := first.Append(t.Context(), numbered(10)); !errors.Is(err, ErrInUse) {
		t.Errorf("Append by the first = %v, want ErrInUse", err)
	}
	mustAppend(t, second, 10, 20)
	wantNumbered(t, drain(t, second), 0, 20)
}
