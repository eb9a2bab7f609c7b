package spool

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/diaspora-streams/diaspora/internal/disk/disktest"
)

// TestYield has a disk on which each sync takes time. As long as a caller waits for it, the reader
// must pause.
func TestYield(t *testing.T) {
	const ms = time.Millisecond
	for _, tt := range []struct{ sync, worked, want time.Duration }{
		{time.Hour, 10 * ms, 30 * ms},
		{time.Hour, time.Hour, 100 * ms},
		{20 * ms, 10 * ms, 20 * ms},
	} {
		synctest.Test(t, func(t *testing.T) {
			s, _ := slowDisk(t, tt.sync, Options{SegmentBytes: 4 << 10, MaxBytes: 1 << 20})
			appendAsync(t, s, numbered(0), func(error) {})
			began := time.Now()
			s.Yield(t.Context(), tt.worked)
			if rested := time.Since(began); rested != tt.want {
				t.Errorf("having worked for %v, beside a sync of %v, the reader rested for %v, want %v", tt.worked, tt.sync, rested, tt.want)
			}
		})
	}
}

// TestNoYieldWhenFilling: the reader does not pause when reading is what helps: when the spool is
// filling up, when the disk is full, and at the end.
func TestNoYieldWhenFilling(t *testing.T) {
	for name, prepare := range map[string]func(t *testing.T, s *Spool, fsys *disktest.Model){
		"filling up": func(_ *testing.T, s *Spool, _ *disktest.Model) {
			appendAsync(t, s, Entry{Topic: "beamline", Value: make([]byte, 15<<10)}, func(error) {})
			appendAsync(t, s, Entry{Topic: "beamline", Value: make([]byte, 15<<10)}, func(error) {})
			time.Sleep(3 * time.Hour)
			appendAsync(t, s, numbered(0), func(error) {})
		},
		"full disk": func(_ *testing.T, s *Spool, fsys *disktest.Model) {
			fsys.Room(fsys.Used())
			appendAsync(t, s, numbered(0), func(error) {})
		},
		"closing": func(t *testing.T, s *Spool, _ *disktest.Model) {
			appendAsync(t, s, numbered(0), func(error) {})
			closed := make(chan struct{})
			go func() { defer close(closed); s.Close() }()
			t.Cleanup(func() { <-closed })
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, fsys := slowDisk(t, time.Hour, Options{SegmentBytes: 16 << 10, MaxBytes: 64 << 10})
				prepare(t, s, fsys)
				synctest.Wait()
				began := time.Now()
				s.Yield(t.Context(), time.Second)
				if rested := time.Since(began); rested != 0 {
					t.Errorf("the reader rested for %v", rested)
				}
			})
		})
	}
}

// slowDisk returns a spool on a disk where each sync of a file takes time.
func slowDisk(t *testing.T, sync time.Duration, opts Options) (*Spool, *disktest.Model) {
	fsys := disktest.New()
	opts.FS = fsys
	s := mustOpen(t, opts)
	fsys.Fault(func(call, _ string) error {
		if call == "sync" {
			time.Sleep(sync)
		}
		return nil
	})
	return s, fsys
}
