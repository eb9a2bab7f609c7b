package commitlog

import (
	"bytes"
	"errors"
	"log/slog"
	"reflect"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/batch"
	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// sealAgain adds the checksum that a file with this magic must have, so that fuzzing gets past it.
func sealAgain(b []byte, magic string) []byte {
	b = append([]byte(magic), b...)
	return appendChecksum(b)
}

func FuzzIndex(f *testing.F) {
	x := index{interval: 128, maxTime: -1}
	for i := range int64(3) {
		x.add(batch.Header{BaseOffset: i * 2, LastOffsetDelta: 1, Length: 200, MaxTimestamp: i}, i*212)
	}
	whole := x.encode()
	f.Add(whole[len(indexMagic):len(whole)-4], int64(0))
	f.Add([]byte{}, int64(5))
	f.Fuzz(func(t *testing.T, b []byte, base int64) {
		if _, err := parseIndex(b, base); err == nil {
			t.Fatal("parsed without a checksum")
		}
		sealed := sealAgain(b, indexMagic)
		x, err := parseIndex(sealed, base)
		if err != nil {
			return
		}
		if !bytes.Equal(x.encode(), sealed) {
			t.Fatalf("%x became %x", sealed, x.encode())
		}
		for _, e := range x.entries {
			if got := x.before(func(other entry) bool { return other.offset > e.offset }); got != e {
				t.Fatalf("before(%d) = %+v, want %+v", e.offset, got, e)
			}
		}
	})
}

func FuzzCheckpoint(f *testing.F) {
	c := checkpoint{start: 1, clock: 7, segments: []*segment{{base: 0, end: 5, size: 100, first: 1, last: 2, maxTime: 2}, {base: 5, end: 5, maxTime: -1}}}
	c.epochs.assign(1, 0)
	c.epochs.assign(3, 2)
	c.producers.add(4, 1, producedBatch{1, 2, 3, 0})
	c.producers.add(4, 1, producedBatch{2, 2, 4, 0})
	c.producers.add(5, 0, producedBatch{3, 2, 0, 0})
	whole := c.encode()
	f.Add(whole[len(checkpointMagic) : len(whole)-4])
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := parseCheckpoint(b); err == nil {
			t.Fatal("parsed without a checksum")
		}
		sealed := sealAgain(b, checkpointMagic)
		c, err := parseCheckpoint(sealed)
		if err != nil {
			if !errors.Is(err, errCheckpoint) && !errors.Is(err, ErrVersion) {
				t.Fatal(err)
			}
			return
		}
		if again, err := parseCheckpoint(c.encode()); err != nil || !reflect.DeepEqual(again, c) {
			t.Fatalf("%+v became %+v, %v", c, again, err)
		}
		// A log with such a checkpoint, but without segments, must open and accept batches.
		fsys := disk.Memory()
		testkit.Must(t, fsys.Make())
		testkit.Must(t, disk.Replace(fsys, checkpointName, sealed, false))
		goOn(t, fsys, nil)
	})
}

// FuzzRecover opens a log whose only segment has arbitrary content.
func FuzzRecover(f *testing.F) {
	one := newBatch(nobody, "one")
	batch.Stamp(one, 0, 1, 1000)
	two := newBatch(from{1, 0, 0}, "two", "three")
	batch.Stamp(two, 1, 2, 2000)
	three := newBatch(nobody, "three") // with timestamps of the producer
	stampOffset(three, 3)
	f.Add(bytes.Join([][]byte{one, two}, nil))
	f.Add(bytes.Join([][]byte{one, two, three}, nil))
	f.Add(bytes.Join([][]byte{one, two[:70]}, nil))
	f.Add(bytes.Join([][]byte{one, one}, nil))
	f.Fuzz(func(t *testing.T, content []byte) {
		fsys := disk.Memory()
		testkit.Must(t, fsys.Make())
		testkit.Must(t, disk.Replace(fsys, logName(0), content, false))
		goOn(t, fsys, content)
	})
}

// goOn opens a log, reads what can be read, appends, and opens it again. What is read before the
// append must be the beginning of content.
func goOn(t *testing.T, fsys disk.FS, content []byte) {
	o := Options{FS: fsys, SegmentBytes: 1000, Now: newClock().Now, Diagnostics: slog.New(slog.DiscardHandler)}
	l, err := Open(o)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	start, end := l.Start(), l.End()
	if content != nil {
		all, err := readAll(l, start)
		if got := bytes.Join(all, nil); err != nil || !bytes.HasPrefix(content, got) {
			t.Fatalf("read %x, %v", got, err)
		}
	} else if _, err := l.Read(nil, start, 1000, true); err != nil && !errors.Is(err, ErrDamaged) {
		t.Fatal(err)
	}
	for _, at := range []int64{0, 1, 1500, 1 << 50} {
		if _, _, _, err := l.OffsetForTime(at); err != nil && !errors.Is(err, ErrDamaged) {
			t.Fatal(err)
		}
	}
	if _, _, _, err := l.MaxTimestamp(); err != nil && !errors.Is(err, ErrDamaged) {
		t.Fatal(err)
	}
	if end > 1<<62 {
		return // the largest offset is reached
	}
	b := newBatch(nobody, "more")
	h, _ := batch.ParseHeader(b)
	if a, err := l.Append(b, h, 1<<30); err != nil || a.BaseOffset != end {
		t.Fatalf("Append: %+v, %v, want offset %d", a, err, end)
	}
	for range 2 {
		if got, err := l.Read(nil, end, 1, true); err != nil || !bytes.Equal(got, b) {
			t.Fatalf("Read(%d): %x, %v, want %x", end, got, err, b)
		}
		if l.Start() != start {
			t.Fatalf("the start moved from %d to %d", start, l.Start())
		}
		testkit.Must(t, l.Close())
		if l, err = Open(o); err != nil {
			t.Fatalf("Open again: %v", err)
		}
	}
	l.Close()
}
