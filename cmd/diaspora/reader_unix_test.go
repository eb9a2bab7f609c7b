//go:build unix

package main

import (
	"bufio"
	"os"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestReaderLeavesInSilence checks that "consume weather --from start | head -2" ends even if no further record
// arrives.
func TestReaderLeavesInSilence(t *testing.T) {
	for _, args := range [][]string{{"--from", "start"}, {"-g", "analysis"}} {
		d := newDesk(t)
		d.must(t, "topic", "claim", "weather")
		d.must(t, "produce", "weather", "--value", "one", "--value", "two")
		r, w, err := os.Pipe()
		testkit.Must(t, err)
		defer w.Close()
		d.stdout = w
		_, wait := d.started(t, append([]string{"consume", "weather"}, args...)...)
		lines := bufio.NewScanner(r)
		for range 2 {
			if !lines.Scan() {
				t.Fatal(lines.Err())
			}
		}
		r.Close()
		if code := wait(); code != 0 {
			t.Errorf("consume %q into a pipe that nobody reads any more exits with %d", args, code)
		}
	}
}

// TestReaderGone checks that readerGone is true only for a pipe without a reader.
func TestReaderGone(t *testing.T) {
	r, w, err := os.Pipe()
	testkit.Must(t, err)
	defer w.Close()
	file, err := os.CreateTemp(t.TempDir(), "")
	testkit.Must(t, err)
	defer file.Close()
	if readerGone(w) || readerGone(file) || readerGone(&testkit.Text{}) {
		t.Error("a pipe with a reader, a file or a buffer is gone")
	}
	full := make([]byte, 1<<20)
	go w.Write(full) // ends when r is closed
	for n := 0; n == 0; {
		if n, err = r.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	if readerGone(w) {
		t.Error("a full pipe is gone")
	}
	r.Close()
	if !readerGone(w) {
		t.Error("a pipe without a reader is not gone")
	}
}
