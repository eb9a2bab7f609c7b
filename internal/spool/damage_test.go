package spool

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/disk/disktest"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// filled returns a file system with a closed spool of that many events, and the names of its
// segments.
func filled(t testing.TB, segmentBytes int64, events int, entry func(int) Entry) (*disktest.Model, []string) {
	t.Helper()
	fsys := disktest.New()
	s := mustOpen(t, Options{FS: fsys, SegmentBytes: segmentBytes, MaxBytes: 1 << 24})
	for n := range events {
		testkit.Must(t, s.Append(t.Context(), entry(n)))
	}
	mustClose(t, s)
	var names []string
	for _, name := range fsys.Names() {
		if strings.HasSuffix(name, ".seg") {
			names = append(names, name)
		}
	}
	return fsys, names
}

// frameEnds returns where the frames of a segment end, and the position of its first.
func frameEnds(t testing.TB, fsys *disktest.Model, name string) (base uint64, ends []int64) {
	t.Helper()
	data := fsys.Content(name)
	h, err := parseSegmentHeader(data)
	testkit.Must(t, err)
	scan := newScanner(bytes.NewReader(data), newSeeds(h.spool, h.base), int64(len(data)))
	for {
		if _, err := scan.next(); err == io.EOF {
			return h.base, ends
		} else if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, scan.off)
	}
}

// TestEveryTruncation cuts each of three segments to each length. The entries before the cut, and
// those in the other segments, must be there; the others must be counted.
func TestEveryTruncation(t *testing.T) {
	t.Parallel()
	const events = 110
	fsys, names := filled(t, 4<<10, events, numbered)
	if len(names) != 3 {
		t.Fatalf("%d segments, want 3", len(names))
	}
	for _, name := range names {
		base, ends := frameEnds(t, fsys, name)
		testkit.Parallel(len(fsys.Content(name)), func(size int) {
			if testkit.Race && size%10 != 0 {
				return
			}
			after := fsys.Kill()
			after.Damage(name, func(b []byte) []byte { return b[:size] })
			var want []int
			for n := range events {
				in := n - int(base-1) // its index in the segment, if it belongs to it
				if in < 0 || in >= len(ends) || ends[in] <= int64(size) {
					want = append(want, n)
				}
			}
			s, err := Open(t.Context(), Options{FS: after, SegmentBytes: 4 << 10, MaxBytes: 1 << 24})
			if err != nil {
				t.Errorf("%s cut to %d: %v", name, size, err)
				return
			}
			defer s.Close()
			if err := s.Append(t.Context(), numbered(events)); err != nil {
				t.Errorf("%s cut to %d: %v", name, size, err)
			}
			want = append(want, events)
			got, err := readAll(s)
			if err != nil || len(got) != len(want) {
				t.Errorf("%s cut to %d: %d events (%v), want %d", name, size, len(got), err, len(want))
				return
			}
			for i, n := range want {
				if !reflect.DeepEqual(got[i].Entry, numbered(n)) {
					t.Errorf("%s cut to %d: event %d is %+v, want number %d", name, size, i, got[i].Entry, n)
				}
			}
			if lost := s.Stats().Damaged; lost != uint64(events+1-len(want)) {
				t.Errorf("%s cut to %d: %d events are said to be lost, want %d", name, size, lost, events+1-len(want))
			}
		})
	}
}

// TestEveryBitFlip flips each bit of a segment of 64 KiB. No wrong event may be returned, and at
// most one may be missing.
func TestEveryBitFlip(t *testing.T) {
	t.Parallel()
	fsys, names := filled(t, 1<<20, 330, numbered)
	for n := 330; len(fsys.Content(names[0])) < 64<<10; n += 100 {
		fsys, names = filled(t, 1<<20, n, numbered)
	}
	data := fsys.Content(names[0])[:64<<10]
	h, err := parseSegmentHeader(data)
	testkit.Must(t, err)
	seeds := newSeeds(h.spool, h.base)
	var frames []place
	for scan := newScanner(bytes.NewReader(data), seeds, int64(len(data))); ; {
		f, err := scan.next()
		if err == io.EOF {
			break
		}
		frames = append(frames, place{f.at, f.index, slices.Clone(f.content)})
	}
	testkit.Parallel(len(data), func(at int) {
		flipped := slices.Clone(data)
		// The frames before the one with the flipped bit cannot affect the result.
		first := 0
		for first+1 < len(frames) && frames[first+1].at <= int64(at) {
			first++
		}
		for bit := range 8 {
			flipped[at] ^= 1 << bit
			scan := newScanner(bytes.NewReader(flipped), seeds, int64(len(flipped)))
			scan.off, scan.index, scan.chunk = frames[first].at, frames[first].index, 4<<10
			missing := 0
			for want := first; want < len(frames); want++ {
				f, err := scan.next()
				for ; want < len(frames) && (err == io.EOF || frames[want].index != f.index); want++ {
					missing++
				}
				if err == io.EOF {
					break
				}
				if err != nil || want == len(frames) || f.at != frames[want].at || !bytes.Equal(f.content, frames[want].content) {
					t.Errorf("bit %d of byte %d: a wrong event at %d (%v)", bit, at, f.index, err)
					return
				}
				if f.at > int64(at) {
					break // from here on the result is the same as without the flip
				}
			}
			if missing > 1 || at < headerBytes && missing > 0 {
				t.Errorf("bit %d of byte %d: %d events are missing", bit, at, missing)
			}
			flipped[at] ^= 1 << bit
		}
	})
	t.Logf("%d flips, %d events", 8*len(data), len(frames))
}

type place struct {
	at      int64
	index   uint32
	content []byte
}

// TestOpenAfterBitFlips flips bits in all files of a spool and opens it. It flips every bit in the
// first bytes of a file, where the headers are, and samples the rest.
func TestOpenAfterBitFlips(t *testing.T) {
	t.Parallel()
	const events, stride = 200, 16
	fsys, _ := filled(t, 8<<10, events, numbered)
	var flips []flip
	for _, name := range fsys.Names() {
		for at := range fsys.Content(name) {
			if at < 300 || at%stride == 0 && name != reserveName {
				flips = append(flips, flip{name, at, (at + at/stride) % 8})
			}
		}
	}
	testkit.Parallel(testkit.Fewer(len(flips)), func(i int) {
		f := flips[i]
		after := fsys.Kill()
		after.Damage(f.name, func(b []byte) []byte { b[f.at] ^= 1 << f.bit; return b })
		s, err := Open(t.Context(), Options{FS: after, SegmentBytes: 8 << 10, MaxBytes: 1 << 24})
		if err != nil {
			t.Errorf("%+v: %v", f, err)
			return
		}
		defer s.Close()
		records, err := readAll(s)
		if err != nil {
			t.Errorf("%+v: %v", f, err)
		}
		if len(records) < events-1 {
			t.Errorf("%+v: %d events, want at least %d", f, len(records), events-1)
		}
		for _, r := range records {
			if n := int(r.Position - 1); !reflect.DeepEqual(r.Entry, numbered(n)) {
				t.Errorf("%+v: position %d is %+v", f, r.Position, r.Entry)
			}
		}
		if err := s.Append(t.Context(), numbered(events)); err != nil {
			t.Errorf("%+v: %v", f, err)
		}
	})
	t.Logf("%d flips", len(flips))
}

type flip struct {
	name    string
	at, bit int
}

// TestDamageIsKept checks that damaged bytes end up in the quarantine.
func TestDamageIsKept(t *testing.T) {
	t.Parallel()
	path := dir(t)
	opts := Options{Dir: path, SegmentBytes: 4 << 10, MaxBytes: 1 << 20}
	s := mustOpen(t, opts)
	mustAppend(t, s, 0, 100)
	mustClose(t, s)
	segments, err := filepath.Glob(filepath.Join(path, "*.seg"))
	testkit.Must(t, err)
	data := testkit.ReadFile(t, segments[1])
	data[headerBytes+frameHeaderBytes+20] ^= 1 // in the first event
	testkit.Must(t, os.WriteFile(segments[1], data, 0o600))
	before := testkit.Snapshot(t, path)
	report, err := Verify(path)
	testkit.Must(t, err)
	if report.Damaged != 1 || report.Read != 99 || len(report.Problems) != 1 {
		t.Errorf("Verify: %+v, want 99 good events and 1 problem", report)
	}
	if !slices.Equal(testkit.Snapshot(t, path), before) {
		t.Error("Verify changed the spool")
	}
	s = mustOpen(t, opts)
	records := drain(t, s)
	if st := s.Stats(); len(records) != 99 || st.Damaged != 1 || st.Events != 99 {
		t.Errorf("%d records, %+v, want 99 and 1 damaged", len(records), st)
	}
	s.Rewind()
	if n := len(drain(t, s)); n != 99 || s.Stats().Damaged != 1 {
		t.Errorf("the second time: %d records, %+v", n, s.Stats())
	}
	ackAll(t, s, records)
	mustClose(t, s)
	s = mustOpen(t, opts)
	if st := s.Stats(); st.Damaged != 1 || st.Events != 0 {
		t.Errorf("after all is acknowledged: %+v", st)
	}
	n := 0
	for p, err := range Quarantined(path) {
		testkit.Must(t, err)
		n++
		d := p.Damage
		if d == nil || d.Events != 1 || d.Offset != headerBytes || !bytes.HasPrefix(data[d.Offset:], d.Bytes) || len(d.Bytes) < 50 {
			t.Errorf("%+v is not the damage", p)
		}
	}
	if n != 1 {
		t.Errorf("%d lines in the quarantine, want 1", n)
	}
}

// TestVerifyEmptySegment: a process that was killed after it created a segment, and before it wrote
// to it, has damaged nothing.
func TestVerifyEmptySegment(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	s := mustOpen(t, Options{Dir: dir})
	mustAppend(t, s, 0, 1)
	mustClose(t, s)
	info, err := Inspect(dir)
	testkit.Must(t, err)
	for _, size := range []int64{0, headerBytes - 1, headerBytes} {
		name := filepath.Join(dir, segmentName(1000, info.Next))
		testkit.Must(t, os.WriteFile(name, make([]byte, size), 0o600))
		report, err := Verify(dir)
		testkit.Must(t, err)
		if good := size < headerBytes; (len(report.Problems) == 0) != good || report.Read != 1 {
			t.Errorf("a segment of %d zeros: %d events, problems %q, want one event, and none: %v", size, report.Read, report.Problems, good)
		}
	}
}
