package watch

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// readAll returns all lines, with "!" in place of a line that is rejected.
func readAll(r *LineReader) (lines []string, err error) {
	for {
		line, err := r.Next()
		var bad *LineError
		switch {
		case err == io.EOF:
			return lines, nil
		case errors.As(err, &bad):
			lines = append(lines, "!")
		case err != nil:
			return lines, err
		default:
			lines = append(lines, string(line))
		}
	}
}

func TestLineReader(t *testing.T) {
	long := strings.Repeat("x", 200_000)
	for _, test := range []struct {
		name, in string
		want     []string
	}{
		{"nothing", "", nil},
		{"one line", "a\n", []string{"a"}},
		{"no line feed at the end", "a\nb", []string{"a", "b"}},
		{"empty lines", "\n\na\n\n", []string{"", "", "a", ""}},
		{"carriage returns are bytes", "a\r\nb\r", []string{"a\r", "b\r"}},
		{"any bytes", "\x00\xff\xfe\n\x1b[31m\n", []string{"\x00\xff\xfe", "\x1b[31m"}},
		{"longer than the buffer", long + "\nb", []string{long, "b"}},
		{"longer than the buffer at the end", "a\n" + long, []string{"a", long}},
		{"at the limit", strings.Repeat("x", 300_000) + "\nb\n", []string{strings.Repeat("x", 300_000), "b"}},
		{"over the limit", "a\n" + strings.Repeat("x", 300_001) + "\nb\n", []string{"a", "!", "b"}},
		{"far over the limit", strings.Repeat("x", 5_000_000) + "\nb\n", []string{"!", "b"}},
		{"over the limit at the end", "a\n" + strings.Repeat("x", 300_001), []string{"a", "!"}},
		{"two over the limit", strings.Repeat("x", 300_001) + "\n" + strings.Repeat("y", 400_000), []string{"!", "!"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			for name, in := range map[string]io.Reader{
				"whole":         strings.NewReader(test.in),
				"halves":        iotest.HalfReader(strings.NewReader(test.in)),
				"eof with data": iotest.DataErrReader(strings.NewReader(test.in)),
			} {
				r := NewLineReader(in, 300_000)
				got, err := readAll(r)
				if err != nil || strings.Join(got, "\n") != strings.Join(test.want, "\n") || len(got) != len(test.want) {
					t.Errorf("%s: got %d lines, %v, want %d", name, len(got), err, len(test.want))
				}
				if r.Line != len(test.want) {
					t.Errorf("%s: the last line has number %d, want %d", name, r.Line, len(test.want))
				}
			}
		})
	}
}

// TestLineReaderBroken checks that an incomplete line before a read error is not returned.
func TestLineReaderBroken(t *testing.T) {
	for _, in := range []string{"a\nhal", "a\n" + strings.Repeat("x", 100_000)} {
		broken := errors.New("disk on fire")
		r := NewLineReader(io.MultiReader(strings.NewReader(in), iotest.ErrReader(broken)), 300_000)
		if lines, err := readAll(r); !errors.Is(err, broken) || len(lines) != 1 || lines[0] != "a" {
			t.Errorf("got %.20q, %v, want one line and %v", lines, err, broken)
		}
	}
}

// TestLineReaderMemory checks that an endless line does not exhaust memory.
func TestLineReaderMemory(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r := NewLineReader(io.LimitReader(zeros{}, 1<<30), 1<<20)
	_, err := r.Next()
	runtime.ReadMemStats(&after)
	var bad *LineError
	if !errors.As(err, &bad) || !strings.Contains(err.Error(), "1073741824 bytes") {
		t.Errorf("a line of 1 GiB: %v, want it refused with its size", err)
	}
	if used := after.TotalAlloc - before.TotalAlloc; used > 16<<20 {
		t.Errorf("a line of 1 GiB took %d bytes of memory", used)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func FuzzLineReader(f *testing.F) {
	f.Add([]byte("a\nb\n\nc"), 10)
	f.Add([]byte(strings.Repeat("x", 70_000)+"\n"), 80_000)
	f.Fuzz(func(t *testing.T, data []byte, max int) {
		if max < 0 || max > 1<<20 {
			return
		}
		got, err := readAll(NewLineReader(iotest.HalfReader(bytes.NewReader(data)), max))
		testkit.Must(t, err)
		want := strings.Split(string(data), "\n")
		if want[len(want)-1] == "" {
			want = want[:len(want)-1]
		}
		if len(got) != len(want) {
			t.Fatalf("got %d lines, want %d", len(got), len(want))
		}
		for i, line := range want {
			if len(line) > max {
				line = "!"
			}
			if got[i] != line {
				t.Fatalf("line %d is %q, want %q", i+1, got[i], line)
			}
		}
	})
}
