package spool

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

var update = flag.Bool("update", false, "write testdata for the present version of the format, which must be a new one")

// goldenSubject wrote the golden spools.
const goldenSubject = "8f6d2c1e-3b54-4c0a-9d27-5f1e0a7b6c34"

func goldenOptions(dir string) Options {
	return Options{Dir: dir, Subject: goldenSubject, SegmentBytes: 1 << 10, MaxBytes: 1 << 20}
}

// TestGolden opens a spool of each version of the format that ever existed. Each holds the events 0
// to 39. Events 0 to 9, 20 and 21 are acknowledged, 12 is in the quarantine, and at the end there
// are bytes that a crash has left.
func TestGolden(t *testing.T) {
	if *update {
		writeGolden(t, "testdata/v1")
	}
	versions, err := filepath.Glob("testdata/v*")
	if err != nil || len(versions) != version {
		t.Fatalf("golden spools %v (%v), want one of each of %d versions", versions, err, version)
	}
	for _, from := range versions {
		t.Run(filepath.Base(from), func(t *testing.T) {
			path := dir(t)
			copySpool(t, from, path)
			report, err := Verify(path)
			if err != nil || len(report.Problems) > 0 {
				t.Errorf("Verify: %v, %v", err, report.Problems)
			}
			if report.Subject != goldenSubject || report.Read != 27 || report.Torn != 20 {
				t.Errorf("Verify: %+v", report)
			}
			s := mustOpen(t, goldenOptions(path))
			if st := s.Stats(); st.Events != 27 || st.Acknowledged != 12 || st.Quarantined != 1 || st.Damaged != 0 {
				t.Errorf("%+v, want 27 events, 12 acknowledged, 1 in quarantine", st)
			}
			got := drain(t, s)
			wantNumbered(t, got[:2], 10, 12)
			wantNumbered(t, got[2:9], 13, 20)
			wantNumbered(t, got[9:], 22, 40)
			for p, err := range Quarantined(path) {
				if err != nil || p.Entry == nil || p.Entry.ID != "12" || p.Reason != "the broker refused it" {
					t.Errorf("in quarantine: %+v, %v", p, err)
				}
			}
			mustAppend(t, s, 40, 41)
			wantNumbered(t, drain(t, s), 40, 41)
			mustClose(t, s)
		})
	}
}

func writeGolden(t *testing.T, to string) {
	path := dir(t)
	s := mustOpen(t, goldenOptions(path))
	mustAppend(t, s, 0, 40)
	got := drain(t, s)
	ackAll(t, s, got[:10])
	ackAll(t, s, got[20:22])
	testkit.Must(t, s.Quarantine(got[12], "the broker refused it"))
	mustClose(t, s)
	segments, err := filepath.Glob(filepath.Join(path, "*.seg"))
	testkit.Must(t, err)
	last, err := os.OpenFile(segments[len(segments)-1], os.O_APPEND|os.O_WRONLY, 0)
	testkit.Must(t, err)
	if _, err := last.WriteString("twenty bytes of junk"); err != nil {
		t.Fatal(err)
	}
	last.Close()
	testkit.Must(t, os.RemoveAll(to))
	copySpool(t, path, to)
}

// copySpool copies a spool and sets the modes that it must have, because version control does not
// keep them.
func copySpool(t *testing.T, from, to string) {
	t.Helper()
	testkit.Must(t, os.MkdirAll(to, 0o700))
	entries, err := os.ReadDir(from)
	testkit.Must(t, err)
	for _, e := range entries {
		if e.Name() == reserveName || e.Name() == lockName {
			continue
		}
		data := testkit.ReadFile(t, filepath.Join(from, e.Name()))
		testkit.Must(t, os.WriteFile(filepath.Join(to, e.Name()), data, 0o600))
	}
}
