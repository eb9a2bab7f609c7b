package kfakedir

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestLinkOrCopy creates new files from segments, some of which are damaged, and requires that the
// old files are unchanged.
func TestLinkOrCopy(t *testing.T) {
	t.Parallel()
	dir, e := log1(t)
	e.produce("log", 0, 30)
	e.close()
	data, _ := read(t, dir)
	segments := data.partition(t, "log", 0).Segments
	if len(segments) < 3 {
		t.Fatalf("%d segments", len(segments))
	}
	damaged := testkit.ReadFile(t, segments[1].Path)
	damaged[90] ^= 1               // in the first batch
	damaged[len(damaged)-100] ^= 1 // in the last one
	damaged = append(damaged, "torn"...)
	second := len(split(t, testkit.ReadFile(t, segments[1].Path))[0])
	damaged[second] ^= 1 // the offset of the second batch, which then does not follow the first one
	writeFile(t, segments[1].Path, damaged)
	flipped := testkit.ReadFile(t, segments[2].Path)
	batches := split(t, slices.Clone(flipped))
	flipped[attributesAt+1] ^= 8
	flipped[len(batches[0])+90] ^= 1
	flipped[len(batches[0])+len(batches[1])+attributesAt+1] ^= 8
	flipped[len(batches[0])+len(batches[1])+len(batches[2])+7]++
	writeFile(t, segments[2].Path, flipped)

	before := testkit.Snapshot(t, dir)
	data, _ = read(t, dir)
	segments = data.partition(t, "log", 0).Segments
	for n, linked := range []bool{true, false, false} {
		s := segments[n]
		for _, do := range []func(string) error{s.LinkOrCopy, s.Copy} {
			to := filepath.Join(t.TempDir(), "new.log")
			testkit.Must(t, do(to))
			if got := testkit.ReadFile(t, to); !bytes.Equal(got, s.good(t)) || int64(len(got)) != s.Bytes {
				t.Errorf("segment %d: %d bytes, want %d", n, len(got), s.Bytes)
			}
			oldInfo, err := os.Stat(s.Path)
			newInfo, newErr := os.Stat(to)
			testkit.Must(t, errors.Join(err, newErr))
			if !newInfo.ModTime().Equal(s.Modified) || !oldInfo.ModTime().Equal(s.Modified) {
				t.Errorf("segment %d: modified %v and %v, want %v", n, oldInfo.ModTime(), newInfo.ModTime(), s.Modified)
			}
			if same := os.SameFile(oldInfo, newInfo); same != linked {
				t.Errorf("segment %d: linked %v, want %v", n, same, linked)
			}
			if err := do(to); !errors.Is(err, fs.ErrExist) {
				t.Errorf("segment %d: %v for a file that exists", n, err)
			}
			if err := do(filepath.Join(dir, "missing", "new.log")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("segment %d: %v in a directory that does not exist", n, err)
			}
			linked = false // Copy never links
		}
	}
	if after := testkit.Snapshot(t, dir); !slices.Equal(after, before) {
		t.Errorf("the directory has changed:\n%q\nwas\n%q", after, before)
	}

	for n, s := range segments[:2] {
		testkit.Must(t, os.Truncate(s.Path, s.Bytes/2))
		to := filepath.Join(t.TempDir(), "new.log")
		if err := s.LinkOrCopy(to); err == nil {
			t.Errorf("segment %d: no error for a file that has changed", n)
		}
		if _, err := os.Lstat(to); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("segment %d: %v, want no new file", n, err)
		}
	}
}
