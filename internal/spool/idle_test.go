package spool

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestIdle has a disk that takes an hour for each sync: as long as somebody waits for
// it, Idle does not return before its context ends.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := slowDisk(t, Options{SegmentBytes: 4 << 10, MaxBytes: 1 << 20})
		began := time.Now()
		s.AppendAsync(numbered(0), func(error) {})
		ended, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		s.Idle(ended)
		if waited := time.Since(began); waited != time.Minute {
			t.Errorf("Idle with an hour to go and a minute to wait returned after %v", waited)
		}
		s.Idle(t.Context())
		if waited := time.Since(began); waited != time.Hour {
			t.Errorf("Idle returned after %v, want an hour, which the sync takes", waited)
		}
	})
}

// TestIdleWhenFilling says that nobody steps back when reading is what helps: in a
// spool that has reached a part of its size, on a full disk, and at the end.
func TestIdleWhenFilling(t *testing.T) {
	for name, prepare := range map[string]func(t *testing.T, s *Spool, fsys *memFS){
		"filling up": func(_ *testing.T, s *Spool, _ *memFS) {
			s.AppendAsync(Entry{Topic: "beamline", Value: make([]byte, 15<<10)}, func(error) {})
			s.AppendAsync(Entry{Topic: "beamline", Value: make([]byte, 15<<10)}, func(error) {})
			time.Sleep(3 * time.Hour)
			s.AppendAsync(numbered(0), func(error) {})
		},
		"full disk": func(_ *testing.T, s *Spool, fsys *memFS) {
			fsys.mu.Lock()
			fsys.room = fsys.used()
			fsys.mu.Unlock()
			s.AppendAsync(numbered(0), func(error) {})
		},
		"closing": func(t *testing.T, s *Spool, _ *memFS) {
			s.AppendAsync(numbered(0), func(error) {})
			closed := make(chan struct{})
			go func() { defer close(closed); s.Close() }()
			t.Cleanup(func() { <-closed })
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, fsys := slowDisk(t, Options{SegmentBytes: 16 << 10, MaxBytes: 64 << 10})
				prepare(t, s, fsys)
				synctest.Wait()
				began := time.Now()
				s.Idle(t.Context())
				if waited := time.Since(began); waited != 0 {
					t.Errorf("Idle waited for %v", waited)
				}
			})
		})
	}
}

// slowDisk returns a spool on a disk that syncs files in an hour.
func slowDisk(t *testing.T, opts Options) (*Spool, *memFS) {
	fsys := newMemFS()
	opts.FS = fsys
	s := mustOpen(t, opts)
	fsys.setFault(func(call, _ string) error {
		if call == "sync" {
			fsys.mu.Unlock() // it is held in here
			time.Sleep(time.Hour)
			fsys.mu.Lock()
		}
		return nil
	})
	return s, fsys
}
