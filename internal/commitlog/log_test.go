package commitlog

import (
	"bytes"
	"errors"
	"log/slog"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora/internal/batch"
	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/disk/disktest"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestAppendAndRead appends batches to many small segments and reads them, before and after a clean
// stop and a kill, on each file system and with and without Sync.
func TestAppendAndRead(t *testing.T) {
	systems := map[string]func(t *testing.T) disk.FS{
		"real": func(t *testing.T) disk.FS {
			root, err := disk.New(t.TempDir())
			testkit.Must(t, err)
			return root.Sub("topic-0")
		},
		"memory": func(*testing.T) disk.FS { return disk.Memory().Sub("topic-0") },
		"model":  func(*testing.T) disk.FS { return disktest.New().Sub("topic-0") },
	}
	for name, system := range systems {
		for _, sync := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				o := Options{FS: system(t), SegmentBytes: 2000, Sync: sync, Now: newClock().Now}
				l := mustOpen(t, o)
				var want [][]byte
				add := func(n int) {
					for range n {
						a, b := mustAppend(t, l, plain(len(want), len(want)*7%300))
						if a.BaseOffset != int64(len(want)) || a.Duplicate {
							t.Fatalf("Append: %+v, want offset %d", a, len(want))
						}
						want = append(want, b)
					}
				}
				mustHave(t, l, 0, nil)
				add(100)
				mustHave(t, l, 0, want)
				for i := range want {
					mustHave(t, l, int64(i), want[i:])
				}
				mustClose(t, l)
				l = mustOpen(t, o)
				mustHave(t, l, 0, want)
				add(100)
				mustHave(t, l, 0, want)
				l.tasks.Wait()     // a killed process does not write checkpoints beside the next one
				l = mustOpen(t, o) // as after a kill
				mustHave(t, l, 0, want)
				add(1)
				mustHave(t, l, 0, want)
			})
		}
	}
}

func modelDir() *disktest.Model { return disktest.New().Sub("t-0").(*disktest.Model) }

// TestCleanOpen requires that Open reads only the checkpoint after a clean stop, does not even list
// the directory, and ignores a stray file.
func TestCleanOpen(t *testing.T) {
	fsys := modelDir()
	o := Options{FS: fsys, SegmentBytes: 2000}
	l := mustOpen(t, o)
	var want [][]byte
	for n := range 100 {
		_, b := mustAppend(t, l, plain(n, 100))
		want = append(want, b)
	}
	mustClose(t, l)
	orphans := []string{logName(5), logName(1000), indexName(7), checkpointName + ".tmp", "notes.txt"}
	for _, name := range orphans {
		f, err := fsys.Create(name)
		testkit.Must(t, err)
		if _, err := f.WriteAt(want[0], 0); err != nil {
			t.Fatal(err)
		}
	}
	var calls []string
	fsys.Observe(func(call, name string, _ disktest.Moment) { calls = append(calls, call+" "+path.Base(name)) })
	before := fsys.BytesRead()
	l = mustOpen(t, o)
	fsys.Observe(nil)
	active := logName(l.active().base)
	wantCalls := []string{"open checkpoint", "size checkpoint", "read checkpoint", "close checkpoint",
		"open " + active, "size " + active, "close " + active, "open " + logName(100)}
	if !slices.Equal(calls, wantCalls) {
		t.Errorf("Open called %q, want %q", calls, wantCalls)
	}
	if read, want := fsys.BytesRead()-before, len(fsys.Content(checkpointName)); read != int64(want) {
		t.Errorf("Open read %d bytes, want %d", read, want)
	}
	mustHave(t, l, 0, want)
	testkit.Must(t, l.Maintain())
	left := slices.DeleteFunc(fsys.Names(), func(name string) bool { return !slices.Contains(orphans, name) })
	if !slices.Equal(left, []string{"notes.txt"}) {
		t.Errorf("Maintain left %q, want only what does not look like a file of ours", left)
	}
	mustHave(t, l, 0, want)
}

// TestRead reads with each limit, from each offset of batches with several records.
func TestRead(t *testing.T) {
	o := Options{FS: modelDir(), SegmentBytes: 1000}
	l := mustOpen(t, o)
	var want [][]byte
	for range 12 {
		_, b := mustAppend(t, l, newBatch(nobody, "one", "two", "three"))
		want = append(want, b)
	}
	size := len(want[0])
	for _, fresh := range []bool{false, true} {
		for offset := range int64(36) {
			for most := range 5 * size {
				for _, least := range []bool{false, true} {
					n := most / size
					if least {
						n = max(n, 1)
					}
					first := int(offset / 3)
					all := bytes.Join(want[first:min(len(want), first+n)], nil)
					if got, err := l.Read(nil, offset, most, least); err != nil || !bytes.Equal(got, all) {
						t.Fatalf("Read(%d, %d, %v): %d bytes, %v, want %d", offset, most, least, len(got), err, len(all))
					}
				}
			}
		}
		if fresh {
			break
		}
		mustClose(t, l)
		l = mustOpen(t, o) // so that everything is checked
	}
	if b, err := l.Read(make([]byte, 9), 36, 100, true); err != nil || len(b) != 0 {
		t.Errorf("Read at the end: %d bytes, %v, want none", len(b), err)
	}
	for _, offset := range []int64{-1, 37} {
		if _, err := l.Read(nil, offset, 100, true); !errors.Is(err, ErrOutOfRange) {
			t.Errorf("Read(%d): %v, want ErrOutOfRange", offset, err)
		}
	}
	buf := make([]byte, 0, 2*size)
	if b, err := l.Read(buf, 0, 2*size, false); err != nil || &b[0] != &buf[:1][0] {
		t.Errorf("Read did not use the buffer (%v)", err)
	}
	mustClose(t, l)
	if _, err := l.Read(nil, 0, 100, true); !errors.Is(err, ErrClosed) {
		t.Errorf("Read of a closed log: %v, want ErrClosed", err)
	}
}

// TestExpireAll lets all records expire. The end stays the same, also after a start, even without a
// checkpoint.
func TestExpireAll(t *testing.T) {
	for _, kept := range []bool{true, false} {
		fsys, clock := modelDir(), newClock()
		o := Options{FS: fsys, SegmentBytes: 500, Now: clock.Now}
		l := mustOpen(t, o)
		for n := range 50 {
			mustAppend(t, l, plain(n, 20))
		}
		clock.Add(time.Hour)
		testkit.Must(t, l.Expire(59*time.Minute, -1))
		if l.Start() != 50 || l.End() != 50 || l.Bytes() != 0 {
			t.Errorf("all has expired: %d to %d with %d bytes, want 50 to 50 with none", l.Start(), l.End(), l.Bytes())
		}
		mustClose(t, l)
		if want := []string{logName(50), checkpointName}; !slices.Equal(fsys.Names(), want) {
			t.Errorf("files %q, want %q", fsys.Names(), want)
		}
		if !kept {
			fsys.Remove(checkpointName)
		}
		l = mustOpen(t, o)
		if a, _ := mustAppend(t, l, plain(0, 20)); a.BaseOffset != 50 || l.Start() != 50 {
			t.Errorf("checkpoint kept %v: offset %d, start %d, want 50", kept, a.BaseOffset, l.Start())
		}
	}
}

// TestExpire checks which segments are removed.
func TestExpire(t *testing.T) {
	clock := newClock()
	l := mustOpen(t, Options{FS: modelDir(), SegmentBytes: 400, Now: clock.Now})
	for n := range 12 { // one a second, three to a segment
		mustAppend(t, l, plain(n, 50))
		clock.Add(time.Second)
	}
	size := l.Bytes() / 12
	if n := len(l.segments); n != 4 {
		t.Fatalf("%d segments, want 4", n)
	}
	steps := []struct {
		keep  time.Duration
		bytes int64
		start int64
	}{
		{-1, -1, 0},
		{time.Hour, -1, 0},
		{10 * time.Second, -1, 0}, // the last of the first three came ten seconds ago
		{10*time.Second - time.Millisecond, -1, 3},
		{-1, 9 * size, 3},
		{-1, 6*size + 1, 3},
		{-1, 6 * size, 6},
		{time.Hour, size, 9},
		{0, -1, 12},
	}
	for _, s := range steps {
		if err := l.Expire(s.keep, s.bytes); err != nil || l.Start() != s.start {
			t.Errorf("Expire(%v, %d): start %d, %v, want %d", s.keep, s.bytes, l.Start(), err, s.start)
		}
	}
}

// TestRollByAge requires that a segment gets no more batches after a quarter of the retention time,
// so that expired records are removed soon.
func TestRollByAge(t *testing.T) {
	clock := newClock()
	l := mustOpen(t, Options{FS: modelDir(), Now: clock.Now})
	testkit.Must(t, l.Expire(40*time.Second, -1))
	for range 60 { // one a second
		mustAppend(t, l, plain(0, 50))
		clock.Add(time.Second)
		testkit.Must(t, l.Expire(40*time.Second, -1))
	}
	if kept := l.End() - l.Start(); kept < 40 || kept > 50 {
		t.Errorf("%d records of the last seconds are there, want 40 to 50", kept)
	}
}

// TestSetSegmentBytes changes the size of segments while the log is open.
func TestSetSegmentBytes(t *testing.T) {
	l := mustOpen(t, Options{FS: modelDir()})
	for n := range 20 {
		if n == 10 {
			l.SetSegmentBytes(1)
		}
		mustAppend(t, l, plain(n, 50))
	}
	if n := len(l.segments); n != 11 {
		t.Errorf("%d segments, want one of ten batches and ten of one", n)
	}
}

// TestDeleteRecords removes all records while a segment is being read.
func TestDeleteRecords(t *testing.T) {
	fsys := modelDir()
	l := mustOpen(t, Options{FS: fsys, SegmentBytes: 500})
	for n := range 20 {
		mustAppend(t, l, plain(n, 50))
	}
	g, _, err := l.find(0)
	testkit.Must(t, err)
	o, err := l.openAcquired(g)
	testkit.Must(t, err)
	if start, err := l.DeleteRecords(-1); err != nil || start != 20 {
		t.Fatalf("DeleteRecords(-1): %d, %v, want 20", start, err)
	}
	if err := readFull(o.file, make([]byte, 10), 0); err != nil {
		t.Errorf("a removed segment cannot be read by who reads it already: %v", err)
	}
	l.release(g)
	if want := []string{logName(20), checkpointName}; !slices.Equal(fsys.Names(), want) {
		t.Errorf("files %q, want %q", fsys.Names(), want)
	}
	for _, before := range []int64{-2, 21} {
		if _, err := l.DeleteRecords(before); !errors.Is(err, ErrOutOfRange) {
			t.Errorf("DeleteRecords(%d): %v, want ErrOutOfRange", before, err)
		}
	}
	if start, err := l.DeleteRecords(3); err != nil || start != 20 {
		t.Errorf("DeleteRecords(3): %d, %v, want 20", start, err)
	}
}

// TestFullDisk fills a disk. What does not fit is refused and leaves nothing behind, and everything
// acknowledged stays.
func TestFullDisk(t *testing.T) {
	for _, sync := range []bool{false, true} {
		fsys := modelDir()
		o := Options{FS: fsys, SegmentBytes: 2000, Sync: sync, Now: newClock().Now}
		l := mustOpen(t, o)
		fsys.Room(10_000)
		var want [][]byte
		refused := 0
		for n := range 200 {
			b := plain(n, n*37%300)
			h := header(t, b)
			switch a, err := l.Append(b, h, 1); {
			case disk.Full(err):
				refused++
			case err != nil:
				t.Fatalf("Append: %v, want ENOSPC", err)
			case a.BaseOffset != int64(len(want)):
				t.Fatalf("offset %d, want %d", a.BaseOffset, len(want))
			default:
				want = append(want, b)
			}
		}
		if refused == 0 {
			t.Fatal("the disk is not full")
		}
		l.Close() // there may be no space for the checkpoint
		l = mustOpen(t, o)
		mustHave(t, l, 0, want)
		fsys.Room(0)
		mustAppend(t, l, plain(0, 100))
	}
}

// TestMissingSegment deletes a segment and damages another. Reading there fails with an error that
// names the file.
func TestMissingSegment(t *testing.T) {
	fsys := modelDir()
	var diagnostics bytes.Buffer
	o := Options{FS: fsys, SegmentBytes: 1000, Diagnostics: slog.New(slog.NewTextHandler(&diagnostics, nil))}
	l := mustOpen(t, o)
	var want [][]byte
	for n := range 40 {
		_, b := mustAppend(t, l, plain(n, 100))
		want = append(want, b)
	}
	mustClose(t, l)
	second := l.segments[1]
	testkit.Must(t, fsys.Remove(logName(second.base)))
	l = mustOpen(t, o)
	for i := range int64(40) {
		got, err := l.Read(nil, i, 1, true)
		if i >= second.base && i < second.end {
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("Read(%d) of a missing segment: %v, want ErrDamaged", i, err)
			}
		} else if err != nil || !bytes.Equal(got, want[i]) {
			t.Errorf("Read(%d): %v", i, err)
		}
	}
	if n := strings.Count(diagnostics.String(), logName(second.base)); n == 0 || n > 2 {
		t.Errorf("the file is named %d times in %s", n, diagnostics.String())
	}
	if got, err := l.Read(nil, 0, 100_000, true); err != nil || !bytes.Equal(got, bytes.Join(want[:second.base], nil)) {
		t.Errorf("Read up to the missing segment: %d bytes, %v", len(got), err)
	}
}

// TestGroupCommit blocks a sync. What is not synced is not visible, and everything that was written
// in the meantime is synced at once.
func TestGroupCommit(t *testing.T) {
	fsys := modelDir()
	l := mustOpen(t, Options{FS: fsys, Sync: true})
	mustAppend(t, l, plain(0, 10))
	held, release := make(chan struct{}), make(chan struct{})
	var syncs atomic.Int64
	fsys.Fault(func(call, _ string) error {
		if call == "sync" && syncs.Add(1) == 1 {
			close(held)
			<-release
		}
		return nil
	})
	var wg sync.WaitGroup
	add := func() {
		wg.Go(func() {
			b := plain(1, 10)
			h, _ := batch.ParseHeader(b)
			if _, err := l.Append(b, h, 1); err != nil {
				t.Error(err)
			}
		})
	}
	add()
	<-held
	const more = 20
	for range more {
		add()
	}
	for l.written() < 2+more { // they are written while the sync is blocked
		runtime.Gosched()
	}
	ready := make(chan struct{}, 1)
	l.Notify(1, ready)
	if end := l.End(); end != 1 {
		t.Errorf("End is %d before the sync, want 1", end)
	}
	if b, err := l.Read(nil, 1, 100, true); err != nil || len(b) > 0 {
		t.Errorf("Read before the sync: %d bytes, %v, want none", len(b), err)
	}
	select {
	case <-ready:
		t.Error("a waiter was told before the sync")
	default:
	}
	close(release)
	wg.Wait()
	<-ready
	if n := syncs.Load(); n != 2 {
		t.Errorf("%d syncs for %d appends, want 2", n, 1+more)
	}
	if end := l.End(); end != 2+more {
		t.Errorf("End is %d, want %d", end, 2+more)
	}
}

func (l *Log) written() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.next
}

// TestFailedSync requires that after a failed sync nothing is written, that records can still be
// read, and that the log can be opened again.
func TestFailedSync(t *testing.T) {
	fsys := modelDir()
	o := Options{FS: fsys, Sync: true, Now: newClock().Now}
	l := mustOpen(t, o)
	_, first := mustAppend(t, l, plain(0, 10))
	fsys.Fault(func(call, _ string) error {
		if call == "sync" {
			return syscall.EIO
		}
		return nil
	})
	b := plain(1, 10)
	for range 2 {
		if _, err := l.Append(b, header(t, b), 1); !errors.Is(err, ErrFailed) || !errors.Is(err, syscall.EIO) {
			t.Errorf("Append: %v, want ErrFailed and EIO", err)
		}
		fsys.Fault(nil)
	}
	if _, err := l.DeleteRecords(-1); !errors.Is(err, ErrFailed) {
		t.Errorf("DeleteRecords: %v, want ErrFailed", err)
	}
	if err := l.Expire(0, 0); !errors.Is(err, ErrFailed) {
		t.Errorf("Expire: %v, want ErrFailed", err)
	}
	mustHave(t, l, 0, [][]byte{first})
	mustClose(t, l)
	l = mustOpen(t, o)
	mustAppend(t, l, plain(2, 10))
}

// TestNotify checks which waiters are notified, and when.
func TestNotify(t *testing.T) {
	l := mustOpen(t, Options{FS: modelDir()})
	told := func(ready chan struct{}) bool {
		l.tasks.Wait() // many waiters are notified in the background
		select {
		case <-ready:
			return true
		default:
			return false
		}
	}
	one := make(chan struct{}, 1)
	if l.Notify(0, one); told(one) {
		t.Error("told of an empty log")
	}
	mustAppend(t, l, plain(0, 10))
	if !told(one) {
		t.Error("not told of a batch")
	}
	mustAppend(t, l, plain(0, 10))
	if told(one) {
		t.Error("told twice")
	}
	if l.Notify(1, one); !told(one) {
		t.Error("not told of a batch that is there")
	}
	l.Notify(2, one)
	l.Forget(one)
	mustAppend(t, l, plain(0, 10))
	if told(one) {
		t.Error("told after Forget")
	}
	many := make([]chan struct{}, 10_000)
	for i := range many {
		many[i] = make(chan struct{}, 1)
		l.Notify(3, many[i])
	}
	mustAppend(t, l, plain(0, 10))
	for i, ready := range many {
		if !told(ready) {
			t.Fatalf("waiter %d of many was not told", i)
		}
	}
	l.Notify(4, one)
	mustClose(t, l)
	if !told(one) {
		t.Error("not told that the log was closed")
	}
	if l.Notify(4, one); !told(one) {
		t.Error("not told that the log is closed")
	}
}

// TestConvertedLog opens segments that another program has written, in which batches have
// timestamps set by their producers.
func TestConvertedLog(t *testing.T) {
	fsys := modelDir()
	testkit.Must(t, fsys.Make())
	times := [][]int64{{50, 10}, {20, 90}, {30, 40}, {70, 70}} // a batch each, two batches a segment
	for i := 0; i < len(times); i += 2 {
		f, err := fsys.Create(logName(int64(100 + 2*i)))
		testkit.Must(t, err)
		at := int64(0)
		for j := i; j < i+2; j++ {
			b := timed(times[j]...)
			stampOffset(b, int64(100+2*j))
			if _, err := f.WriteAt(b, at); err != nil {
				t.Fatal(err)
			}
			at += int64(len(b))
		}
	}
	clock := testkit.NewClock(time.Now())
	o := Options{FS: fsys, Now: clock.Now}
	for range 2 { // without a checkpoint, and with one
		l := mustOpen(t, o)
		if l.Start() != 100 || l.End() != 108 {
			t.Errorf("it is %d to %d, want 100 to 108", l.Start(), l.End())
		}
		for _, c := range [][3]int64{{0, 100, 50}, {50, 100, 50}, {51, 103, 90}, {90, 103, 90}, {91, -1, -1}} {
			if offset, at, _, err := l.OffsetForTime(c[0]); err != nil || offset != c[1] || at != c[2] {
				t.Errorf("OffsetForTime(%d): %d, %d, %v, want %d, %d", c[0], offset, at, err, c[1], c[2])
			}
		}
		if offset, at, _, err := l.MaxTimestamp(); err != nil || offset != 103 || at != 90 {
			t.Errorf("MaxTimestamp: %d, %d, %v, want 103, 90", offset, at, err)
		}
		mustClose(t, l)
	}
	l := mustOpen(t, o)
	// Their time of arrival is the files' modification time, whatever the producers' timestamps
	// are.
	if err := l.Expire(time.Hour, -1); err != nil || l.Start() != 100 {
		t.Errorf("Expire: start %d, %v, want 100", l.Start(), err)
	}
	if _, err := l.DeleteRecords(104); err != nil {
		t.Fatal(err)
	}
	if offset, at, _, err := l.MaxTimestamp(); err != nil || offset != 106 || at != 70 {
		t.Errorf("MaxTimestamp of the rest: %d, %d, %v, want 106, 70", offset, at, err)
	}
	clock.Add(2 * time.Hour)
	if err := l.Expire(time.Hour, -1); err != nil || l.Start() != 108 {
		t.Errorf("Expire later: start %d, %v, want 108", l.Start(), err)
	}
}

// TestIdle requires that a log that is not used has no open file and no index in memory, that it is
// completely on disk, and that it can be used again.
func TestIdle(t *testing.T) {
	fsys := modelDir()
	l := mustOpen(t, Options{FS: fsys, SegmentBytes: 2000, Now: newClock().Now})
	var want [][]byte
	for n := range 200 {
		_, b := mustAppend(t, l, plain(n, 100))
		want = append(want, b)
	}
	l.tasks.Wait()
	mustHave(t, l, 0, want)
	if n := len(l.openSegments); n > maxOpen+1 {
		t.Errorf("%d segments are open, want at most %d", n, maxOpen+1)
	}
	for range 4 { // the second call may have to save, which uses the last segment once more
		testkit.Must(t, l.Maintain())
	}
	if n := len(l.openSegments); n != 0 {
		t.Errorf("%d segments of an idle log are open", n)
	}
	fsys.Fault(func(call, name string) error { t.Errorf("an idle log calls %s %s", call, name); return nil })
	testkit.Must(t, l.Maintain())
	fsys.Fault(nil)
	if again := mustOpen(t, Options{FS: fsys.Kill().Sub("t-0"), SegmentBytes: 2000}); again.pending != 0 {
		t.Errorf("%d bytes of an idle log are not behind the recovery point", again.pending)
	}
	mustHave(t, l, 0, want)
	_, b := mustAppend(t, l, plain(0, 100))
	mustHave(t, l, 0, append(want, b))
}

// TestConcurrently appends, reads, waits, removes and maintains concurrently.
func TestConcurrently(t *testing.T) {
	for _, sync := range []bool{false, true} {
		root, err := disk.New(t.TempDir())
		testkit.Must(t, err)
		l := mustOpen(t, Options{FS: root.Sub("t-0"), SegmentBytes: 20_000, Sync: sync})
		concurrently(t, l, testkit.Fewer(2000))
		mustClose(t, l)
	}
}

func concurrently(t *testing.T, l *Log, appends int) {
	const appenders, readers = 4, 3
	var writing, others sync.WaitGroup
	for i := range appenders {
		writing.Go(func() {
			for n := range appends {
				p := from{int64(i), 0, int32(n)}
				b := newBatch(p, strings.Repeat("v", n%200))
				h, _ := batch.ParseHeader(b)
				if _, err := l.Append(b, h, 1); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	end := int64(appenders * appends)
	for range readers {
		others.Go(func() {
			ready := make(chan struct{}, 1)
			var buf []byte
			for offset := int64(0); offset < end; {
				var err error
				buf, err = l.Read(buf, offset, 5000, true)
				if errors.Is(err, ErrOutOfRange) && l.Start() > offset {
					offset = l.Start()
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				if len(buf) == 0 {
					l.Notify(offset, ready)
					<-ready
					continue
				}
				for b := buf; len(b) > 0; {
					h, err := batch.ParseHeader(b)
					if err != nil || h.BaseOffset != offset || !batch.ChecksumOK(b[:h.Size()]) {
						t.Errorf("at %d: %+v, %v", offset, h, err)
						return
					}
					offset, b = h.LastOffset()+1, b[h.Size():]
				}
			}
		})
	}
	done := make(chan struct{})
	var maintaining sync.WaitGroup
	maintaining.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			if err := errors.Join(l.Maintain(), l.Expire(-1, 100_000)); err != nil {
				t.Error(err)
				return
			}
			l.OffsetForTime(0)
			l.Producers()
			if start := l.Start(); start > 100 {
				l.DeleteRecords(start + 10)
			}
		}
	})
	writing.Wait()
	others.Wait()
	close(done)
	maintaining.Wait()
	if l.End() != end {
		t.Errorf("End is %d, want %d", l.End(), end)
	}
}

// TestMemory appends a million batches of one record. Afterwards memory holds the index of the
// active segment and little else.
func TestMemory(t *testing.T) {
	root, err := disk.New(t.TempDir())
	testkit.Must(t, err)
	l := mustOpen(t, Options{FS: root.Sub("t-0"), SegmentBytes: 8 << 20})
	b := plain(0, 10)
	h := header(t, b)
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	for range testkit.Scaled(t, "LOG_BATCHES", 1_000_000) {
		if _, err := l.Append(b, h, 1); err != nil {
			t.Fatal(err)
		}
	}
	if grown := heap() - before; grown > 1<<20 {
		t.Errorf("the heap has grown by %d bytes, want at most 1 MiB", grown)
	}
	runtime.KeepAlive(l)
}
