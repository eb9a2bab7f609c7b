package spool

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/disk/disktest"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestFailedSegmentIsNotRead fails each sync, so that an event is rejected, and also fails the
// operations that would remove it from the segment. The event stays there, at the position that the
// next event gets. Only the next event may be returned, even if the event before it is damaged.
func TestFailedSegmentIsNotRead(t *testing.T) {
	t.Parallel()
	fsys := disktest.New()
	opts := Options{FS: fsys, SegmentBytes: 4 << 10, MaxBytes: 1 << 20}
	s := mustOpen(t, opts)
	mustAppend(t, s, 0, 3)
	failures := 0
	fsys.Fault(func(call, name string) error {
		if call == "sync" && failures < maxFailures && strings.HasSuffix(name, ".seg") {
			failures++
			return syscall.EIO
		}
		if call == "truncate" {
			return syscall.EIO
		}
		return nil
	})
	if err := s.Append(t.Context(), numbered(100)); !errors.Is(err, syscall.EIO) {
		t.Fatalf("%v, want EIO", err)
	}
	fsys.Fault(nil)
	mustAppend(t, s, 3, 6)
	wantNumbered(t, drain(t, s), 0, 6)
	mustClose(t, s)

	_, ends := frameEnds(t, fsys, segmentName(1, 1))
	if len(ends) != 4 {
		t.Fatalf("%d frames in the failed segment, want the refused one too", len(ends))
	}
	fsys.Damage(segmentName(1, 1), func(b []byte) []byte { b[ends[2]-1] ^= 1; return b })
	s = mustOpen(t, opts)
	got := drain(t, s)
	wantNumbered(t, got[:2], 0, 2)
	wantNumbered(t, got[2:], 3, 6)
	if st := s.Stats(); st.Damaged != 1 {
		t.Errorf("%+v, want 1 damaged", st)
	}
}

// TestTornBeforeKill loses what a killed process had not synced, but not what the next process
// wrote after it. That is not damage.
func TestTornBeforeKill(t *testing.T) {
	t.Parallel()
	fsys := disktest.New()
	opts := Options{FS: fsys, SegmentBytes: 16 << 10, MaxBytes: 1 << 20}
	large := Entry{Topic: "t", Value: make([]byte, 2000)}
	// atSync returns a copy of the file system as it is when the next sync of a segment begins.
	atSync := func(fsys *disktest.Model) func() *disktest.Model {
		var found *disktest.Model
		fsys.Observe(func(call, name string, now disktest.Moment) {
			if found == nil && call == "sync" && strings.HasSuffix(name, ".seg") {
				found = now.Kill()
			}
		})
		return func() *disktest.Model {
			fsys.Observe(nil)
			return found
		}
	}
	for process := range 2 {
		s := mustOpen(t, opts)
		if process == 0 {
			mustAppend(t, s, 0, 1)
		}
		killed := atSync(fsys)
		testkit.Must(t, s.Append(t.Context(), large))
		fsys = killed()
		mustClose(t, s) // what is left of it is in fsys
		opts.FS = fsys
	}
	// fsys now holds "large" twice, neither copy synced: try many power cuts.
	rng := rand.New(rand.NewPCG(1, 1))
	for range 2000 {
		cut := opts
		cut.FS = fsys.Cut(rng)
		s := mustOpen(t, cut)
		drain(t, s)
		if st := s.Stats(); st.Damaged != 0 {
			t.Fatalf("%+v, want no damage", st)
		}
		mustClose(t, s)
	}
}

// TestIndexMustFit puts a frame where a frame with its index cannot be.
func TestIndexMustFit(t *testing.T) {
	t.Parallel()
	e := numbered(0)
	segment := appendFrame(make([]byte, headerBytes), 0, &e)
	end := int64(len(segment))
	segment = appendFrame(segment, 3, &e)
	scan := newScanner(bytes.NewReader(segment), fuzzSeeds, int64(len(segment)))
	if _, err := scan.next(); err != nil {
		t.Fatal(err)
	}
	if found, err := scan.next(); err != io.EOF || found.bad != int64(len(segment))-end {
		t.Errorf("frame %d at %d (%v), want none", found.index, found.at, err)
	}
}

// TestNothingKnown opens a spool for which a crash has left neither a header nor a cursor, so that
// it belongs to no identity.
func TestNothingKnown(t *testing.T) {
	t.Parallel()
	fsys := disktest.New()
	testkit.Must(t, fsys.Make())
	for id, base := range []uint64{1, 5} {
		f, err := fsys.Create(segmentName(uint64(id+1), base))
		testkit.Must(t, err)
		if _, err := f.WriteAt(make([]byte, 700), 0); err != nil {
			t.Fatal(err)
		}
	}
	opts := Options{FS: fsys, SegmentBytes: 1 << 10, MaxBytes: 1 << 20, Subject: "ada"}
	s := mustOpen(t, opts)
	mustAppend(t, s, 0, 3)
	mustClose(t, s)
	s = mustOpen(t, opts)
	wantNumbered(t, drain(t, s), 0, 3)
	if st := s.Stats(); st.Damaged != 0 {
		t.Errorf("%+v, want no damage", st)
	}
}
