package commitlog

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/batch"
	"github.com/diaspora-streams/diaspora/internal/disk/disktest"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// small returns a model with a closed log of three segments, and its batches. Unless it was closed
// cleanly, the last segment has a tail after the checkpoint.
func small(t testing.TB, clean bool) (*disktest.Model, Options, [][]byte) {
	t.Helper()
	fsys := disktest.New()
	o := Options{FS: fsys.Sub("t-0"), SegmentBytes: 1000, Now: newClock().Now, Diagnostics: slog.New(slog.DiscardHandler)}
	l := mustOpen(t, o)
	var want [][]byte
	for n := range 24 {
		_, b := mustAppend(t, l, newBatch(from{1, 0, int32(n)}, strings.Repeat("v", n*5%70)))
		want = append(want, b)
		if n == 20 {
			testkit.Must(t, l.save())
		}
	}
	l.tasks.Wait()
	if clean {
		mustClose(t, l)
	}
	if n := len(l.segments); n != 3 {
		t.Fatalf("%d segments, want 3", n)
	}
	return fsys, o, want
}

// after opens a log that was damaged and reads it from each offset. Everything that can be read
// must be what was written. It returns the offsets that cannot be read, including those after the
// end.
func after(fsys *disktest.Model, o Options, want [][]byte) (l *Log, lost []int, err error) {
	o.FS = fsys.Sub("t-0")
	l, err = Open(o)
	if err != nil {
		return nil, nil, err
	}
	for i := range want {
		b, err := l.Read(nil, int64(i), 1, true)
		switch {
		case errors.Is(err, ErrDamaged) || errors.Is(err, ErrOutOfRange) || err == nil && int64(i) == l.End():
			lost = append(lost, i)
		case err != nil:
			return l, nil, fmt.Errorf("Read(%d): %w", i, err)
		case !bytes.Equal(b, want[i]):
			return l, nil, fmt.Errorf("Read(%d): %x, want %x", i, b, want[i])
		}
	}
	// The log must accept new batches.
	b := newBatch(nobody, "more")
	h, _ := batch.ParseHeader(b)
	end := l.End()
	if a, err := l.Append(b, h, 1); err != nil || a.BaseOffset != end {
		return l, nil, fmt.Errorf("Append: %+v, %v, want offset %d", a, err, end)
	}
	if got, err := l.Read(nil, end, 1, true); err != nil || !bytes.Equal(got, b) {
		return l, nil, fmt.Errorf("Read(%d) of what was appended: %x, %v", end, got, err)
	}
	return l, lost, nil
}

// TestEveryTruncation truncates each file of a small log to each length. Everything that can be
// read afterwards is what was written, and no batch before the cut is missing. The end of the log
// is unchanged unless the tail was truncated.
func TestEveryTruncation(t *testing.T) {
	t.Parallel()
	for _, clean := range []bool{true, false} {
		fsys, o, want := small(t, clean)
		for _, name := range fsys.Sub("t-0").(*disktest.Model).Names() {
			content := fsys.Sub("t-0").(*disktest.Model).Content(name)
			testkit.Parallel(len(content), func(size int) {
				damaged := fsys.Kill()
				damaged.Sub("t-0").(*disktest.Model).Damage(name, func(b []byte) []byte { return b[:size] })
				l, lost, err := after(damaged, o, want)
				if err != nil {
					t.Errorf("clean %v, %s cut to %d: %v", clean, name, size, err)
					return
				}
				defer l.Discard()
				base, kind, _ := parseName(name)
				if kind != "log" {
					if len(lost) > 0 {
						t.Errorf("clean %v, %s cut to %d: %v cannot be read", clean, name, size, lost)
					}
					return
				}
				// Only the batches that begin before the cut and end after it are lost, and those
				// after them in the file.
				var gone []int
				for at, i := 0, int(base); i < len(want) && at < len(content); i++ {
					if at += len(want[i]); at > size {
						gone = append(gone, i)
					}
				}
				if fmt.Sprint(lost) != fmt.Sprint(gone) {
					t.Errorf("clean %v, %s cut to %d: %v cannot be read, want %v", clean, name, size, lost, gone)
				}
				if end := l.End() - 1; end < 21 || clean && end < int64(len(want)) {
					t.Errorf("clean %v, %s cut to %d: the end is %d", clean, name, size, end)
				}
			})
		}
	}
}

// TestEveryBitFlip flips each bit of each file of a small log. Everything that can be read must be
// what was written. A flip in a segment costs one batch or, if it hits a length, the batches up to
// the next entry of the index. In a tail that is not in the checkpoint it costs all following
// batches, like a torn write. A flip in any other file costs nothing.
func TestEveryBitFlip(t *testing.T) {
	t.Parallel()
	for _, clean := range []bool{true, false} {
		fsys, o, want := small(t, clean)
		flips := 0
		for _, name := range fsys.Sub("t-0").(*disktest.Model).Names() {
			content := fsys.Sub("t-0").(*disktest.Model).Content(name)
			base, kind, _ := parseName(name)
			testkit.Parallel(len(content), func(at int) {
				if testkit.Race && at%7 != 0 {
					return
				}
				for bit := range 8 {
					damaged := fsys.Kill()
					damaged.Sub("t-0").(*disktest.Model).Damage(name, func(b []byte) []byte { b[at] ^= 1 << bit; return b })
					tail, epoch := whereIs(want, int(base), at)
					tail = tail && !clean && kind == "log"
					if tail && epoch {
						continue // nothing covers the epoch of a batch that is not in the checkpoint
					}
					l, lost, err := after(damaged, o, want)
					if err != nil {
						t.Errorf("clean %v, bit %d of byte %d of %s: %v", clean, bit, at, name, err)
						continue
					}
					most := 0
					switch {
					case tail:
						most = 3
					case kind == "log":
						most = 3
					}
					if len(lost) > most || kind == "log" && len(lost) == 0 {
						t.Errorf("clean %v, bit %d of byte %d of %s: %v cannot be read, want at most %d", clean, bit, at, name, lost, most)
					}
					l.Discard()
				}
			})
			flips += len(content) * 8
		}
		t.Logf("clean %v: %d flips", clean, flips)
	}
}

// whereIs reports whether a byte of a segment, which begins with the given batch, is after the
// recovery point of a small log that was not closed cleanly, and whether it belongs to a leader
// epoch.
func whereIs(want [][]byte, first, at int) (tail, epoch bool) {
	for i := first; i < len(want); i++ {
		if at < len(want[i]) {
			return i > 20, at >= 12 && at < 16
		}
		at -= len(want[i])
	}
	return false, false
}
