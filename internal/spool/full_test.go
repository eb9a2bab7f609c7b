package spool

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/diaspora-streams/diaspora/internal/disk/disktest"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestFullDiskIsFreed fills a disk, waits ten minutes, and frees it. The spool must continue by
// itself within 5 s and lose nothing.
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

// TestFullDiskIsDrained frees the disk by acknowledgements only. The reserve gives the cursor the
// space that it needs for that.
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

// TestOpenOnFullDisk opens a spool on a disk without a free byte. The pending entries can be sent,
// and acknowledging them makes room.
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

// appendAsyncAll appends numbered events with AppendAsync or, if many is set, with calls of AppendAllAsync
// for many of them. done gets each result.
func appendAsyncAll(t *testing.T, s *Spool, events int, many bool, done func(n int, err error)) {
	t.Helper()
	if !many {
		for n := range events {
			appendAsync(t, s, numbered(n), func(err error) { done(n, err) })
		}
		return
	}
	const each = 900
	for first := 0; first < events; first += each {
		var entries []Entry
		for n := first; n < min(first+each, events); n++ {
			entries = append(entries, numbered(n))
		}
		accepted, err := s.AppendAllAsync(context.Background(), entries, func(from, to int, err error) {
			for i := from; i < to; i++ {
				done(first+i, err)
			}
		})
		if err != nil || accepted != len(entries) {
			t.Errorf("AppendAllAsync = %d, %v, want %d", accepted, err, len(entries))
		}
	}
}

// burst appends many events at once while a reader acknowledges them, and waits until all have
// arrived. It fails the test if they do not.
func burst(t *testing.T, s *Spool, events int, many bool) {
	t.Helper()
	go appendAsyncAll(t, s, events, many, func(n int, err error) {
		if err != nil {
			t.Errorf("append %d: %v", n, err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	for n := 0; n < events; {
		records, err := s.Next(ctx, 4096, 800_000)
		if err != nil {
			t.Fatalf("%d of %d events arrived, then: %v; %+v", n, events, err, s.Stats())
		}
		wantNumbered(t, records, n, n+len(records))
		time.Sleep(10 * time.Millisecond) // a round trip
		var positions []uint64
		for _, r := range records {
			positions = append(positions, r.Position)
		}
		testkit.Must(t, s.Ack(positions...))
		n += len(records)
	}
}

// TestSmallDisk logs far more than fits on the disk, with the default settings. The only segment
// must be removed once all of it is acknowledged, and a batch that does not fit must be committed
// in parts.
func TestSmallDisk(t *testing.T) {
	t.Parallel()
	const events = 20_000 // 4 MB
	for _, room := range []int64{3 << 20, 1 << 20, 530 << 10, 100 << 10, 48 << 10} {
		for _, many := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d KiB, many %v", room>>10, many), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					fsys := disktest.New()
					fsys.Room(room)
					s := mustOpen(t, Options{FS: fsys})
					start := time.Now()
					burst(t, s, events, many)
					if took := time.Since(start); took > 5*time.Minute {
						t.Errorf("it took %v", took)
					}
					mustClose(t, s)
					s = mustOpen(t, Options{FS: fsys})
					if st := s.Stats(); st.Events != 0 || st.Acknowledged != events || st.Damaged != 0 {
						t.Errorf("%+v, want 30000 acknowledged and nothing left", st)
					}
				})
			})
		}
	}
}

// TestOnlySegmentGoes fills the disk with only one segment: once when all its events are
// acknowledged, and once when one of them is not.
func TestOnlySegmentGoes(t *testing.T) {
	t.Parallel()
	for name, late := range map[string]bool{"acknowledged before": false, "acknowledged while the disk is full": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				fsys := disktest.New()
				s := mustOpen(t, Options{FS: fsys, SegmentBytes: 16 << 10})
				mustAppend(t, s, 0, 100)
				records := drain(t, s)
				last := len(records)
				if late {
					last--
				}
				ackAll(t, s, records[:last])
				time.Sleep(time.Minute)
				if n := s.Stats().Segments; n != 1 {
					t.Fatalf("%d segments, want 1", n)
				}
				fsys.Room(fsys.Used())
				done := make(chan error, 1)
				go func() { done <- s.Append(context.Background(), numbered(100)) }()
				if late {
					time.Sleep(1100 * time.Millisecond)
					if st := s.Stats(); st.Waiting != "the disk is full" {
						t.Errorf("%+v, want it to wait", st)
					}
					ackAll(t, s, records[last:])
				}
				time.Sleep(100 * time.Millisecond)
				select {
				case err := <-done:
					if err != nil {
						t.Error(err)
					}
				default:
					t.Fatalf("it waits although the only segment is acknowledged: %+v", s.Stats())
				}
				wantNumbered(t, drain(t, s), 100, 101)
				mustClose(t, s)
			})
		})
	}
}

// TestSmallSpool is [TestSmallDisk] for the spool's own limit, which is smaller than a batch.
func TestSmallSpool(t *testing.T) {
	t.Parallel()
	const events = 20_000
	for _, most := range []int64{64 << 10, 1 << 20} {
		for _, many := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				s := mustOpen(t, Options{FS: disktest.New(), MaxBytes: most})
				burst(t, s, events, many)
				mustClose(t, s)
			})
		}
	}
}

// TestRejectWhatDoesNotFit checks that events for which there is room are not rejected only because
// more of them arrive at once than fit.
func TestRejectWhatDoesNotFit(t *testing.T) {
	t.Parallel()
	for name, limit := range map[string]func(*disktest.Model, *Options){
		"spool": func(_ *disktest.Model, o *Options) { o.MaxBytes = 64 << 10 },
		"disk":  func(m *disktest.Model, _ *Options) { m.Room(120 << 10) },
	} {
		for _, many := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, many %v", name, many), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					fsys := disktest.New()
					opts := Options{FS: fsys, Policy: Reject}
					limit(fsys, &opts)
					s := mustOpen(t, opts)
					var accepted []int
					appendAsyncAll(t, s, 5000, many, func(n int, err error) {
						if err == nil {
							accepted = append(accepted, n)
						} else if !errors.Is(err, ErrFull) {
							t.Errorf("append %d: %v, want ErrFull", n, err)
						}
					})
					synctest.Wait()
					if n := len(accepted); n < 300 || n == 5000 {
						t.Errorf("%d of 5000 events were accepted", n)
					}
					records := drain(t, s)
					if len(records) != len(accepted) {
						t.Fatalf("%d events are there, %d were accepted", len(records), len(accepted))
					}
					for i, n := range accepted {
						wantNumbered(t, records[i:i+1], n, n+1)
					}
					ackAll(t, s, records)
					if err := s.Append(t.Context(), numbered(0)); err != nil {
						t.Errorf("append when all is acknowledged: %v", err)
					}
					mustClose(t, s)
				})
			})
		}
	}
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
		// The entry that timed out is not there. The next ones are accepted as soon as there is
		// room.
		done := make(chan error)
		go func() { done <- s.Append(t.Context(), numbered(n-1)) }()
		synctest.Wait()
		records := drain(t, s)
		wantNumbered(t, records, 0, n-1)
		ackAll(t, s, records)
		testkit.Must(t, <-done)
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
	testkit.Must(t, err)
	mustAppend(t, s, events/2, events)
	st := s.Stats()
	if st.Bytes > 8<<10 || st.Dropped == 0 || st.Dropped+st.Events != events {
		t.Errorf("%+v, want %d events dropped or waiting, within 8 KiB", st, events)
	}
	if err := s.Ack(first[0].Position); err != nil { // one of them was dropped in the meantime
		t.Error(err)
	}
	wantNumbered(t, drain(t, s), int(st.Dropped), events)
	mustClose(t, s)
	s = mustOpen(t, opts)
	if again := s.Stats(); again.Dropped != st.Dropped || again.Damaged != 0 {
		t.Errorf("after opening again: %+v, want %d dropped", again, st.Dropped)
	}
}

// TestDropOldestOnFullDisk drops entries because the disk is full, not the spool.
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

// TestFullIsSeenFromOutside checks that Stats and other processes that inspect a spool report that
// it is full, even if its disk has no free byte, and stop reporting it when that is over.
func TestFullIsSeenFromOutside(t *testing.T) {
	t.Parallel()
	for _, policy := range []Policy{Block, Reject} {
		for _, want := range []string{DiskFull, "it has reached its limit of 65536 bytes"} {
			t.Run(fmt.Sprint(policy, " ", want), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					fsys := disktest.New()
					opts := Options{FS: fsys, Policy: policy, SegmentBytes: 16 << 10}
					if want == DiskFull {
						fsys.Room(64 << 10)
					} else {
						opts.MaxBytes = 64 << 10
					}
					s := mustOpen(t, opts)
					seen := func() [2]string {
						look, err := openReadOnlyFS(fsys)
						testkit.Must(t, err)
						return [2]string{s.Stats().Full, look.report.Owner.Full}
					}
					if got := seen(); got != [2]string{} {
						t.Errorf("an empty spool is said to be full: %q", got)
					}
					for n := range 1000 {
						appendAsync(t, s, numbered(n), func(error) {})
					}
					time.Sleep(time.Minute)
					if got := seen(); got != [2]string{want, want} {
						t.Errorf("a full spool says %q, want %q", got, want)
					}
					for s.Stats().Events > 0 {
						ackAll(t, s, drain(t, s))
						time.Sleep(time.Second)
					}
					if got := seen(); got != [2]string{} {
						t.Errorf("a spool that was drained is said to be full: %q", got)
					}
					mustClose(t, s)
				})
			})
		}
	}
}
