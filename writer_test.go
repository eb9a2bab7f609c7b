package diaspora

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
	"pgregory.net/rapid"
)

var _ io.WriteCloser = (*Writer)(nil)

// TestWriterLines splits a text at every place into two writes.
func TestWriterLines(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(1, logTopic))
	l := openLogger(t, cfg)
	text := "first\n\nthird\r\n\x00\xff\nlast"
	want := []string{"first", "", "third\r", "\x00\xff", "last"}
	for cut := range len(text) + 1 {
		w := NewWriter(l, &WriterOptions{Topic: logTopic, Key: []byte("k")})
		buf := []byte(text[:cut])
		for _, part := range [][]byte{buf, []byte(text[cut:])} {
			if n, err := w.Write(part); n != len(part) || err != nil {
				t.Fatalf("Write() = %d, %v, want %d, nil", n, err, len(part))
			}
		}
		copy(buf, bytes.Repeat([]byte("!"), len(buf))) // the buffer is the caller's again
		if err := errors.Join(w.Close(), w.Close()); err != nil {
			t.Fatal(err)
		}
		if n, err := w.Write([]byte("late\n")); n != 0 || !errors.Is(err, ErrClosed) {
			t.Fatalf("Write() after Close = %d, %v, want 0, ErrClosed", n, err)
		}
	}
	got := logged(t, l, cfg)
	for i := range len(text) + 1 {
		if len(got) < len(want) || !slices.Equal(got[:len(want)], want) {
			t.Fatalf("cut at %d: the events are %q, want %q first", i, got, want)
		}
		got = got[len(want):]
	}
	if len(got) > 0 {
		t.Errorf("more events arrived: %q", got)
	}
	records := readAll(t, cfg, logTopic)
	for _, r := range records {
		if string(r.Key) != "k" || r.Value == nil || len(r.Headers) > 0 {
			t.Fatalf("event %q has key %q, value nil: %v, headers %v", r.Value, r.Key, r.Value == nil, r.Headers)
		}
	}
}

// TestWriterLongLines writes lines with lengths around the limit, in random pieces.
func TestWriterLongLines(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(1, logTopic))
	l := openLogger(t, cfg)
	read := 0
	rapid.Check(t, func(rt *rapid.T) {
		max := rapid.IntRange(1, 5).Draw(rt, "max")
		lines := rapid.SliceOfN(rapid.StringMatching(`[a-c]{0,12}`), 1, 8).Draw(rt, "lines")
		w := NewWriter(l, &WriterOptions{Topic: logTopic, MaxLineBytes: max})
		for rest := strings.Join(lines, "\n") + "\n"; rest != ""; {
			n := rapid.IntRange(1, len(rest)).Draw(rt, "piece")
			if _, err := io.WriteString(w, rest[:n]); err != nil {
				rt.Fatal(err)
			}
			rest = rest[n:]
		}
		if err := errors.Join(w.Close(), l.Flush(within(t))); err != nil {
			rt.Fatal(err)
		}
		var got []string
		line := ""
		records := readAll(t, cfg, logTopic)
		for _, r := range records[read:] {
			if len(r.Value) > max {
				rt.Fatalf("an event has %d bytes, more than %d", len(r.Value), max)
			}
			line += string(r.Value)
			if len(r.Headers) == 1 && r.Headers[0].Key == "continues" && string(r.Headers[0].Value) == "true" {
				continue
			}
			got = append(got, line)
			line = ""
		}
		read = len(records)
		if !slices.Equal(got, lines) || line != "" {
			rt.Fatalf("the lines are %q and %q, want %q", got, line, lines)
		}
	})
}

// TestWriterTakesTheLongestLine writes a line that is longer than the largest event.
func TestWriterTakesTheLongestLine(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(1, logTopic))
	l := openLogger(t, cfg)
	w := NewWriter(l, &WriterOptions{Topic: logTopic, Key: []byte("k"), MaxLineBytes: 1 << 30})
	line := strings.Repeat("0123456789", defaultMaxEventBytes/4)
	if _, err := fmt.Fprintln(w, line); err != nil {
		t.Fatal(err)
	}
	if got := logged(t, l, cfg); len(got) != 3 || strings.Join(got, "") != line {
		t.Errorf("the line of %d bytes became %d events with %d bytes in all, want 3", len(line), len(got), len(strings.Join(got, "")))
	}
}

func TestWriterConcurrently(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(1, logTopic))
	l := openLogger(t, cfg)
	w := NewWriter(l, &WriterOptions{Topic: logTopic})
	logger := log.New(w, "", 0)
	const loops, n = 8, 100
	var wg sync.WaitGroup
	for loop := range loops {
		wg.Go(func() {
			for i := range n {
				if loop%2 == 0 {
					logger.Printf("%d %d\nand more", loop, i)
				} else {
					fmt.Fprintf(w, "%d %d\nand more\n", loop, i)
				}
			}
		})
	}
	wg.Wait()
	got := logged(t, l, cfg)
	if len(got) != 2*loops*n {
		t.Fatalf("%d events arrived, want %d", len(got), 2*loops*n)
	}
	next := map[int]int{}
	for k := 0; k < len(got); k += 2 {
		var loop, i int
		if _, err := fmt.Sscanf(got[k], "%d %d", &loop, &i); err != nil || i != next[loop] || got[k+1] != "and more" {
			t.Fatalf("events %d and %d are %q", k, k+1, got[k:k+2])
		}
		next[loop]++
	}
}

func TestWriterSaysWhatItDropped(t *testing.T) {
	t.Parallel()
	l, cfg, release := heldLogger(t)
	w := NewWriter(l, &WriterOptions{Topic: logTopic, DropAfter: -1})
	taken := 0
	for w.Lost() < 2 {
		n, err := io.WriteString(w, "line\n")
		if n != 5 || (err == nil) != (w.Lost() == 0) || err != nil && !errors.Is(err, ErrUnavailable) {
			t.Fatalf("Write() = %d, %v with %d lost", n, err, w.Lost())
		}
		if err == nil {
			taken++
		}
	}
	release()
	if err := l.Flush(within(t)); err != nil {
		t.Fatal(err)
	}
	const more = 50
	for range more {
		io.WriteString(w, "next\n")
		if err := l.Flush(within(t)); err != nil {
			t.Fatal(err)
		}
	}
	records := readAll(t, cfg, logTopic)
	if len(records) != taken+more {
		t.Fatalf("%d events arrived, want %d", len(records), taken+more)
	}
	for i, r := range records {
		want := "[]"
		if i == taken {
			want = `[{"lost" "2"}]`
		}
		if got := fmt.Sprintf("%q", r.Headers); got != want {
			t.Errorf("event %d of %d has headers %s, want %s", i, len(records), got, want)
		}
	}
}

func TestWriterOnAClosedLogger(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(1, logTopic))
	l := openLogger(t, cfg)
	w := NewWriter(l, &WriterOptions{Topic: logTopic})
	if err := l.Close(within(t)); err != nil {
		t.Fatal(err)
	}
	if n, err := io.WriteString(w, "a\nb\n"); n != 4 || !errors.Is(err, ErrClosed) || w.Lost() != 2 {
		t.Errorf("Write() = %d, %v with %d lost, want 4, ErrClosed, 2", n, err, w.Lost())
	}
}

func TestWriterNeedsATopic(t *testing.T) {
	t.Parallel()
	defer func() {
		if recover() == nil {
			t.Error("NewWriter without a topic returned, want a panic")
		}
	}()
	NewWriter(new(Logger), &WriterOptions{})
}

// TestWriterHandsOverAtOnce fails when a line waits for the next one.
func TestWriterHandsOverAtOnce(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(1, logTopic))
	l := openLogger(t, cfg)
	w := NewWriter(l, &WriterOptions{Topic: logTopic})
	io.WriteString(w, "whole\nbegin")
	if got := logged(t, l, cfg); !slices.Equal(got, []string{"whole"}) {
		t.Fatalf("the topic has %q, want the whole line", got)
	}
	io.WriteString(w, "ning\n")
	if got := logged(t, l, cfg); !slices.Equal(got, []string{"whole", "beginning"}) {
		t.Errorf("the topic has %q, want both lines", got)
	}
}
