package spool

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/diaspora-streams/diaspora/internal/disk/disktest"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestSharedFileSystem has two machines on a file system whose locks work on one machine only. The
// owner file alone keeps them apart.
func TestSharedFileSystem(t *testing.T) {
	open := func(fsys *disktest.Model) (*Spool, error) {
		fsys.BreakLocks() // this machine's
		return Open(context.Background(), Options{FS: fsys, SegmentBytes: 1 << 10, MaxBytes: 1 << 20})
	}
	elsewhere := func(t *testing.T, fsys *disktest.Model) { // makes the owner one of another machine
		o, err := readOwner(fsys)
		if err != nil || o == nil {
			t.Fatalf("owner %v, %v", o, err)
		}
		o.Host = "elsewhere"
		content, err := o.encode()
		testkit.Must(t, err)
		fsys.Damage(ownerName, func([]byte) []byte { return content })
	}
	synctest.Test(t, func(t *testing.T) {
		fsys := disktest.New()
		fsys.SetShared(true)
		first := mustOpenAt(t, open, fsys)
		first.owner.me.Host = "elsewhere"
		elsewhere(t, fsys)
		start := time.Now()
		if _, err := open(fsys); !errors.Is(err, ErrInUse) || time.Since(start) > beatStopped {
			t.Errorf("after %v: %v, want ErrInUse while the owner lives", time.Since(start), err)
		}
		mustAppend(t, first, 0, 1)
		mustClose(t, first)
		start = time.Now()
		second := mustOpenAt(t, open, fsys)
		if took := time.Since(start); took > 0 {
			t.Errorf("the spool was given back, and opening it took %v", took)
		}

		// The machine stops, and with it the beat.
		close(second.owner.stop)
		second.owner.beat.Wait()
		elsewhere(t, fsys)
		start = time.Now()
		third := mustOpenAt(t, open, fsys)
		if took := time.Since(start); took < beatStopped {
			t.Errorf("the spool was taken after %v, want %v", took, beatStopped)
		}
		// The machine resumes, and notices that it has lost the spool.
		second.owner.stop = make(chan struct{})
		second.owner.beat.Go(second.owner.beatLoop)
		time.Sleep(2 * beatEvery)
		if err := second.Append(t.Context(), numbered(1)); !errors.Is(err, ErrInUse) {
			t.Errorf("Append by the owner before: %v, want ErrInUse", err)
		}
		mustAppend(t, third, 1, 2)
		second.Close()
		if o, _ := readOwner(fsys); o == nil || o.Token != third.owner.me.Token {
			t.Errorf("the owner before has removed the owner file: %v", o)
		}
		mustClose(t, third)
	})
}

// TestOpenHeedsItsContext opens a spool whose owner on another machine shows no sign of life. Its
// context ends before that owner is known to be dead.
func TestOpenHeedsItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fsys := disktest.New()
		fsys.SetShared(true)
		opts := Options{FS: fsys, SegmentBytes: 1 << 10, MaxBytes: 1 << 20}
		content, err := (&Owner{Host: "elsewhere", PID: 1}).encode()
		testkit.Must(t, err)
		testkit.Must(t, fsys.Make())
		f, err := fsys.Create(ownerName)
		testkit.Must(t, err)
		if _, err := f.WriteAt(content, 0); err != nil {
			t.Fatal(err)
		}
		f.Close()
		ctx, cancel := context.WithTimeout(t.Context(), beatEvery/4)
		defer cancel()
		start := time.Now()
		s, err := Open(ctx, opts)
		if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took > beatEvery/4 {
			t.Errorf("Open = %v after %v, want the end of the context after %v", err, took, beatEvery/4)
		}
		if err == nil {
			s.Close()
		}
		if o, err := readOwner(fsys); err != nil || o == nil || o.Host != "elsewhere" {
			t.Errorf("the owner is %v, %v after an attempt to open that ended early", o, err)
		}
		mustClose(t, mustOpen(t, opts)) // and the lock is free
	})
}

func mustOpenAt(t *testing.T, open func(*disktest.Model) (*Spool, error), fsys *disktest.Model) *Spool {
	t.Helper()
	s, err := open(fsys)
	testkit.Must(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}
