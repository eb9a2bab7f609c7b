package spool

import (
	"context"
	"runtime"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora/internal/disk/disktest"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestOpenReadsLittle compares how much Open reads of a small and of a large backlog. For each
// additional segment it may read the header only.
func TestOpenReadsLittle(t *testing.T) {
	t.Parallel()
	const segmentBytes = 16 << 10
	reads := func(events int) (read int64, segments int) {
		fsys, names := filled(t, segmentBytes, events, numbered)
		before := fsys.BytesRead()
		s := mustOpen(t, Options{FS: fsys, SegmentBytes: segmentBytes, MaxBytes: 1 << 24})
		read = fsys.BytesRead() - before
		if st := s.Stats(); st.Events != uint64(events) {
			t.Errorf("%d events, want %d", st.Events, events)
		}
		mustClose(t, s)
		return read, len(names)
	}
	const least = segmentBytes + 16<<10 // the last segment, cursors, owner
	for _, events := range []int{100, 1000, 20000} {
		read, segments := reads(events)
		t.Logf("%d events in %d segments: %d bytes read", events, segments, read)
		if most := int64(segments*headerBytes + least); read > most {
			t.Errorf("%d bytes were read to open %d segments, want at most %d", read, segments, most)
		}
	}
}

// TestLargeBacklog writes a backlog on the real disk, opens it, and drains some of it.
// SPOOL_BACKLOG_MB makes it larger.
func TestLargeBacklog(t *testing.T) {
	size := int64(testkit.Scaled(t, "SPOOL_BACKLOG_MB", 64)) << 20
	opts := Options{Dir: dir(t), MaxBytes: 2 * size}
	s := mustOpen(t, opts)
	batch := make([]Entry, 900)
	for i := range batch {
		batch[i] = benchEvent(i)
	}
	events := uint64(0)
	for s.Stats().Bytes < size {
		testkit.Must(t, s.Append(t.Context(), batch...))
		events += uint64(len(batch))
	}
	mustClose(t, s)

	before := heap()
	start := time.Now()
	s = mustOpen(t, opts)
	opened := time.Since(start)
	st := s.Stats()
	if st.Events != events || st.Oldest.IsZero() {
		t.Errorf("%+v, want %d events", st, events)
	}
	held := heap() - before
	start = time.Now()
	most := held
	drained := 0
	for ; drained < int(events); drained += 1000 {
		records, err := s.Next(context.Background(), 1000, 8<<20)
		testkit.Must(t, err)
		for _, r := range records {
			testkit.Must(t, s.Ack(r.Position))
		}
		drained += len(records) - 1000
		if drained%100_000 < 1000 {
			most = max(most, heap()-before)
		}
	}
	took := time.Since(start)
	mustClose(t, s)
	t.Logf("%d MB, %d events, %d segments: opened in %v, held %d KB; drained at %.0f events/s, held at most %d KB",
		st.Bytes>>20, events, st.Segments, opened, held>>10, float64(drained)/took.Seconds(), most>>10)
	if most > 64<<20 {
		t.Errorf("%d bytes were held, want at most 64 MB", most)
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestOutOfOrder acknowledges every second event, which is the worst for the cursor.
func TestOutOfOrder(t *testing.T) {
	t.Parallel()
	opts := Options{FS: disktest.New(), SegmentBytes: 1 << 20, MaxBytes: 1 << 28}
	s := mustOpen(t, opts)
	const events = 2*maxHoles + 1000
	batch := make([]Entry, events/100)
	for range 100 {
		testkit.Must(t, s.Append(t.Context(), batch...))
	}
	total := uint64(len(batch) * 100)
	var odd []uint64
	for {
		records, err := s.Next(over(), 1, 1<<10)
		if err != nil {
			break
		}
		if p := records[0].Position; p%2 == 0 {
			odd = append(odd, p)
		}
		if len(odd) == 1000 {
			testkit.Must(t, s.Ack(odd...))
			odd = odd[:0]
		}
	}
	testkit.Must(t, s.Ack(odd...))
	st := s.Stats()
	if st.Waiting == "" || st.Acknowledged < maxHoles || st.Acknowledged > maxHoles+1000 {
		t.Errorf("%+v, want to stop reading after %d holes", st, maxHoles)
	}
	mustClose(t, s)
	s = mustOpen(t, opts)
	if again := s.Stats(); again.Events != total-st.Acknowledged {
		t.Errorf("after opening again %d events wait, want %d", again.Events, total-st.Acknowledged)
	}
	for _, r := range drain(t, s) {
		if r.Position%2 == 0 && r.Position < maxHoles {
			t.Fatalf("position %d is acknowledged, and comes again", r.Position)
		}
	}
}

// TestAges checks the reported age of the oldest pending entry.
func TestAges(t *testing.T) {
	t.Parallel()
	var a ages
	start := time.Unix(1_000_000, 0)
	for n := range 3 * maxAges {
		a.add(uint64(n+1), start.Add(time.Duration(n)*time.Second))
	}
	if len(a) > maxAges {
		t.Errorf("%d ages are kept, want at most %d", len(a), maxAges)
	}
	for _, n := range []uint64{1, 17, 5000, 3 * maxAges} {
		want := start.Add(time.Duration(n-1) * time.Second)
		if got := a.at(n); got.After(want) || want.Sub(got) > 8*time.Second {
			t.Errorf("entry %d is from %v, want %v or a little earlier", n, got, want)
		}
	}
}
