package spool

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/diaspora-streams/diaspora/internal/disk/disktest"
)

// TestFullDiskIsFreed fills a disk, waits ten minutes, and frees it: the spool goes
// on by itself within 5 s, and nothing is lost.
func TestFullDiskIsFreed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fsys := disktest.New()
		fsys.Room(64 << 10)
		opts := Options{FS: fsys, SegmentBytes: 4 << 10, MaxBytes: 1 << 20}
		s := mustOpen(t, opts)
		const events = 2000
		appended := make(chan int, events)
		go func() {
			for n := range events {
				if err := s.Append(context.Background(), numbered(n)); err != nil {
					t.Errorf("append %d: %v", n, err)
				}
				appended <- n
			}
		}()
		time.Sleep(time.Minute)
		had := len(appended)
		if st := s.Stats(); st.Waiting != "the disk is full" || !errors.Is(st.Err, syscall.ENOSPC) || had < 100 {
			t.Errorf("after %d events: %+v, want a full disk", had, st)
		}
		time.Sleep(10 * time.Minute)
		if len(appended) != had {
			t.Errorf("%d events were appended to a full disk", len(appended)-had)
		}
		fsys.Room(10 << 20)
		time.Sleep(5 * time.Second)
		if n := len(appended); n != events {
			t.Errorf("5 s after the disk was freed, %d events are appended, want %d", n, events)
		}
		if st := s.Stats(); st.Waiting != "" || st.Damaged != 0 {
			t.Errorf("%+v, want no waiting", st)
		}
		wantNumbered(t, drain(t, s), 0, events)
		mustClose(t, s)
	})
}

// TestFullDiskIsDrained frees the disk by nothing but acknowledgements: the reserve
// gives the cursor the space that it needs for that.
func TestFullDiskIsDrained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fsys := disktest.New()
		fsys.Room(64 << 10)
		opts := Options{FS: fsys, SegmentBytes: 4 << 10, MaxBytes: 1 << 20}
		s := mustOpen(t, opts)
		const events = 2000
		go func() {
			for n := range events {
				if err := s.Append(context.Background(), numbered(n)); err != nil {
					t.Errorf("append %d: %v", n, err)
				}
			}
		}()
		time.Sleep(time.Minute)
		fsys.Room(fsys.Used()) // not a byte more
		for n := 0; n < events; {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			records, err := s.Next(ctx, 10, 1<<20)
			cancel()
			if err != nil {
				t.Fatalf("after %d events: %v; %+v", n, err, s.Stats())
			}
			wantNumbered(t, records, n, n+len(records))
			ackAll(t, s, records)
			n += len(records)
		}
		mustClose(t, s)
	})
}

// TestOpenOnFullDisk opens a spool where there is not a byte of room: what waits can
// be sent, and that makes room.
func TestOpenOnFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := Options{SegmentBytes: 4 << 10, MaxBytes: 1 << 20}
		fsys, _ := filled(t, opts.SegmentBytes, 200, numbered)
		fsys.Room(fsys.Used())
		opts.FS = fsys
		s := mustOpen(t, opts)
		records := drain(t, s)
		wantNumbered(t, records, 0, 200)
		ackAll(t, s, records)
		mustAppend(t, s, 200, 300)
		mustClose(t, s)
	})
}

func TestPolicyBlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := mustOpen(t, Options{FS: disktest.New(), SegmentBytes: 1 << 10, MaxBytes: 8 << 10, Policy: Block})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		n := 0
		var err error
		for ; err == nil; n++ {
			err = s.Append(ctx, numbered(n))
		}
		if !errors.Is(err, context.DeadlineExceeded) || n < 20 {
			t.Fatalf("append %d: %v, want the deadline", n, err)
		}
		if st := s.Stats(); st.Bytes > 8<<10 || st.Waiting == "" {
			t.Errorf("%+v, want at most 8 KiB and a reason to wait", st)
		}
		// The one that timed out is not there; the next ones get in as soon as there is room.
		done := make(chan error)
		go func() { done <- s.Append(t.Context(), numbered(n-1)) }()
		synctest.Wait()
		records := drain(t, s)
		wantNumbered(t, records, 0, n-1)
		ackAll(t, s, records)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		wantNumbered(t, drain(t, s), n-1, n)
		mustClose(t, s)
	})
}

func TestCloseEndsTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := mustOpen(t, Options{FS: disktest.New(), SegmentBytes: 1 << 10, MaxBytes: 8 << 10, Policy: Block})
		done := make(chan error)
		go func() {
			for n := 0; ; n++ {
				if err := s.Append(t.Context(), numbered(n)); err != nil {
					done <- err
					return
				}
			}
		}()
		read := make(chan error)
		go func() {
			for {
				if _, err := s.Next(t.Context(), 10, 1<<20); err != nil {
					read <- err
					return
				}
			}
		}()
		synctest.Wait()
		mustClose(t, s)
		if err := <-done; !errors.Is(err, ErrClosed) {
			t.Errorf("Append: %v, want ErrClosed", err)
		}
		if err := <-read; !errors.Is(err, ErrClosed) {
			t.Errorf("Next: %v, want ErrClosed", err)
		}
	})
}

func TestPolicyReject(t *testing.T) {
	t.Parallel()
	s := mustOpen(t, Options{FS: disktest.New(), SegmentBytes: 1 << 10, MaxBytes: 8 << 10, Policy: Reject})
	n := 0
	var err error
	for ; err == nil; n++ {
		err = s.Append(t.Context(), numbered(n))
	}
	if !errors.Is(err, ErrFull) || n < 20 || s.Stats().Bytes > 8<<10 {
		t.Fatalf("append %d: %v, %+v, want ErrFull at 8 KiB", n, err, s.Stats())
	}
	if s.Stats().Rejected != 1 {
		t.Errorf("%+v, want 1 rejected", s.Stats())
	}
	wantNumbered(t, drain(t, s), 0, n-1)
}

func TestPolicyDropOldest(t *testing.T) {
	t.Parallel()
	fsys := disktest.New()
	opts := Options{FS: fsys, SegmentBytes: 1 << 10, MaxBytes: 8 << 10, Policy: DropOldest}
	s := mustOpen(t, opts)
	const events = 500
	mustAppend(t, s, 0, events/2)
	first, err := s.Next(t.Context(), 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	mustAppend(t, s, events/2, events)
	st := s.Stats()
	if st.Bytes > 8<<10 || st.Dropped == 0 || st.Dropped+st.Events != events {
		t.Errorf("%+v, want %d events dropped or waiting, within 8 KiB", st, events)
	}
	if err := s.Ack(first[0].Position); err != nil { // of one that was dropped meanwhile
		t.Error(err)
	}
	wantNumbered(t, drain(t, s), int(st.Dropped), events)
	mustClose(t, s)
	s = mustOpen(t, opts)
	if again := s.Stats(); again.Dropped != st.Dropped || again.Damaged != 0 {
		t.Errorf("after opening again: %+v, want %d dropped", again, st.Dropped)
	}
}

// TestDropOldestOnFullDisk drops for want of space on the disk, not in the spool.
func TestDropOldestOnFullDisk(t *testing.T) {
	t.Parallel()
	fsys := disktest.New()
	fsys.Room(40 << 10)
	s := mustOpen(t, Options{FS: fsys, SegmentBytes: 1 << 10, MaxBytes: 1 << 20, Policy: DropOldest})
	mustAppend(t, s, 0, 1000)
	st := s.Stats()
	if st.Dropped == 0 || st.Dropped+st.Events != 1000 {
		t.Errorf("%+v, want 1000 events dropped or waiting", st)
	}
	wantNumbered(t, drain(t, s), int(st.Dropped), 1000)
}

func TestTooLarge(t *testing.T) {
	t.Parallel()
	s := mustOpen(t, Options{FS: disktest.New(), SegmentBytes: 1 << 10, MaxBytes: 8 << 10})
	if err := s.Append(t.Context(), Entry{Value: make([]byte, 4<<10)}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("%v, want ErrTooLarge", err)
	}
	mustAppend(t, s, 0, 1)
}
