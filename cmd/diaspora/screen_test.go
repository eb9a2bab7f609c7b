package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/diaspora-streams/diaspora/internal/doctor"
	"github.com/diaspora-streams/diaspora/internal/front"
	"github.com/diaspora-streams/diaspora/internal/spool"
	"github.com/diaspora-streams/diaspora/internal/terminal"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// atTerminal makes streams of a desk a terminal with this many columns.
func (d *desk) atTerminal(columns int, streams ...any) {
	is := func(stream any) bool {
		for _, s := range streams {
			if s == stream {
				return true
			}
		}
		return false
	}
	d.vars["TERM"] = "xterm"
	d.terminal = is
	d.columns = func(stream any) int {
		if is(stream) {
			return columns
		}
		return 0
	}
}

// seen returns what a terminal shows after this output. It knows only the escape sequences that the command uses.
func seen(t *testing.T, sent string) string {
	t.Helper()
	colours := regexp.MustCompile(`\x1b\[[0-9]+m`)
	lines := []string{""}
	for rest := colours.ReplaceAllString(sent, ""); rest != ""; {
		last := &lines[len(lines)-1]
		switch {
		case strings.HasPrefix(rest, eraseLine):
			*last, rest = "", rest[len(eraseLine):]
		case rest[0] == '\n':
			lines, rest = append(lines, ""), rest[1:]
		case rest[0] < ' ':
			t.Fatalf("the terminal is sent %q", rest)
		default:
			*last, rest = *last+rest[:1], rest[1:]
		}
	}
	return strings.Join(lines, "\n")
}

// drawn returns the progress lines that were shown and erased again.
func drawn(sent string) (lines []string) {
	for _, part := range strings.Split(sent, eraseLine)[1:] {
		if line, _, _ := strings.Cut(part, "\n"); line != "" && !strings.Contains(line, "diaspora:") {
			lines = append(lines, line)
		}
	}
	return lines
}

// showsProgress runs a command that cannot end before it has shown a progress line that matches the pattern. It
// returns the whole output to stderr.
func (d *desk) showsProgress(t *testing.T, pattern string, release func(), args ...string) string {
	t.Helper()
	want := regexp.MustCompile(`\r\x1b\[K` + pattern)
	_, done := d.started(t, args...)
	testkit.Eventually(t, fmt.Sprintf("a line like %q", pattern), func() bool { return want.MatchString(d.err.String()) })
	release()
	if code := done(); code != 0 {
		t.Fatalf("diaspora %v exits with %d:\n%s", args, code, d.err.String())
	}
	return d.err.String()
}

// heldWriter blocks writes until it is released.
type heldWriter struct {
	io.Writer
	released chan struct{}
}

func (w *heldWriter) Write(p []byte) (int, error) {
	<-w.released
	return w.Writer.Write(p)
}

// TestProgress checks that each long command shows its progress in one line, which is erased at the end.
func TestProgress(t *testing.T) {
	d := newDesk(t)
	d.must(t, "topic", "claim", "weather")
	sit := func(columns int) {
		d.err.Reset()
		d.out.Reset()
		d.atTerminal(columns, &d.err)
	}
	tidy := func(t *testing.T, sent string, columns int, want string) {
		t.Helper()
		if got := seen(t, sent); got != want {
			t.Errorf("at the end the terminal shows\n%s\nwant\n%s", got, want)
		}
		for _, line := range drawn(sent) {
			if n := terminal.Width(line); n >= columns {
				t.Errorf("%q has %d columns of %d", line, n, columns)
			}
		}
	}
	t.Run("produce from the input", func(t *testing.T) {
		sit(100)
		read, write := io.Pipe()
		d.stdin = read
		go write.Write([]byte("one\ntwo\nthree\n"))
		sent := d.showsProgress(t, `3 lines, 14 B, \d+ B/s, 0 pending`, func() { write.Close() }, "produce", "weather")
		tidy(t, sent, 100, "diaspora: 3 events acknowledged\n")
	})
	t.Run("produce from a file, to a narrow terminal", func(t *testing.T) {
		sit(60)
		name := filepath.Join(t.TempDir(), "fifo\x1b[31m気温 of a very long name")
		file, err := os.Create(name)
		testkit.Must(t, err)
		fmt.Fprint(file, strings.Repeat("line\n", 20_000), strings.Repeat("x", 1000))
		file.Close()
		read, write := io.Pipe() // read after the file, so that the command does not end
		d.stdin = read
		sent := d.showsProgress(t, `20001 lines, `, func() { write.Close() }, "produce", "weather", name, "-")
		tidy(t, sent, 60, "diaspora: 20001 events acknowledged\n")
		if strings.Contains(sent, "\x1b[31m気温") {
			t.Error("the name of a file commands the terminal")
		}
	})
	t.Run("while something else is told", func(t *testing.T) {
		sit(100)
		read, write := io.Pipe()
		d.stdin = read
		go write.Write([]byte("{}\n"))
		_, done := d.started(t, "produce", "weather", "--input", "ndjson")
		testkit.Eventually(t, "progress", func() bool { return strings.Contains(d.err.String(), eraseLine+"1 line, ") })
		before := len(drawn(d.err.String()))
		fmt.Fprintln(write, "nonsense")
		testkit.Eventually(t, "the line below what was told", func() bool { return len(drawn(d.err.String())) > before+1 })
		write.Close()
		if code := done(); code != 8 {
			t.Errorf("exits with %d", code)
		}
		if got, want := seen(t, d.err.String()), "input line 2: not logged: "; strings.Count(got, want) != 1 || !strings.HasPrefix(got, "diaspora: input line 1") || strings.Contains(got, " pending") {
			t.Errorf("the terminal shows\n%s", got)
		}
	})
	t.Run("consume", func(t *testing.T) {
		sit(100)
		held := &heldWriter{&d.out, make(chan struct{})}
		d.stdout = held
		defer func() { d.stdout = &d.out }()
		sent := d.showsProgress(t, `\d+ of 20004 records, \d+%, [0-9.]+ k?B, `, func() { close(held.released) }, "consume", "weather", "--from", "start", "--exit")
		tidy(t, sent, 100, "diaspora: reading weather from start to end: 20004 records in 1 partition\ndiaspora: 20004 records\n")
	})
	t.Run("spool drain", func(t *testing.T) {
		testkit.Must(t, d.fabric.StopGateway())
		d.must(t, "produce", "weather", "--value", "one", "--value", "two", "--quiet")
		sit(100)
		sent := d.showsProgress(t, `0 of 2 events acknowledged, 0/s`, func() {
			testkit.Must(t, d.fabric.StartGateway())
		}, "spool", "drain")
		tidy(t, sent, 100, "diaspora: 2 events acknowledged, 0 waiting\n")
	})
	t.Run("watch", func(t *testing.T) {
		sit(100)
		dir := t.TempDir()
		stop, _ := d.started(t, "produce", "weather", "--watch", dir, "--settle", "10ms")
		for _, name := range []string{"one.json", "two.json"} {
			testkit.Must(t, os.WriteFile(filepath.Join(dir, name), []byte("0123456789"), 0o600))
			testkit.Eventually(t, name, func() bool { return strings.Contains(d.err.String(), "logged "+name+": 1 event, 10 B\n") })
		}
		stop()
	})
}

// TestNoProgress checks that no progress is shown to programs, or on a terminal that shows other output.
func TestNoProgress(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(d *desk)
		streams bool
		want    string
	}{
		"at a terminal":          {func(d *desk) { d.atTerminal(100, &d.err) }, false, eraseLine + "half" + eraseLine + "half" + eraseLine + "half" + eraseLine},
		"output elsewhere":       {func(d *desk) { d.atTerminal(100, &d.err) }, true, eraseLine + "half" + eraseLine + "half" + eraseLine + "half" + eraseLine},
		"no size known":          {func(d *desk) { d.atTerminal(0, &d.err) }, false, eraseLine + "half" + eraseLine + "half" + eraseLine + "half" + eraseLine},
		"narrow":                 {func(d *desk) { d.atTerminal(4, &d.err) }, false, eraseLine + "ha…" + eraseLine + "ha…" + eraseLine + "ha…" + eraseLine},
		"no terminal":            {func(*desk) {}, false, ""},
		"quiet":                  {func(d *desk) { d.atTerminal(100, &d.err); d.quiet = true }, false, ""},
		"a dumb terminal":        {func(d *desk) { d.atTerminal(100, &d.err); d.vars["TERM"] = "dumb" }, false, ""},
		"lines on the screen":    {func(d *desk) { d.atTerminal(100, &d.err, &d.out) }, true, ""},
		"no lines on the screen": {func(d *desk) { d.atTerminal(100, &d.err, &d.out) }, false, eraseLine + "half" + eraseLine + "half" + eraseLine + "half" + eraseLine},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := emptyDesk(t)
				c.prepare(d)
				d.openScreen()
				stop := d.progress(c.streams, func(time.Time, int) string { return "half" })
				time.Sleep(progressAfter + 2*progressEvery + time.Millisecond) // on the fake clock of synctest
				stop()
				stop()
				if got := d.err.String(); got != c.want {
					t.Errorf("stderr is sent %q, want %q", got, c.want)
				}
				stop = d.progress(c.streams, func(time.Time, int) string { return "half" })
				time.Sleep(progressAfter - time.Millisecond)
				stop()
				if got := d.err.String(); got != c.want {
					t.Errorf("of a short command stderr is sent %q", strings.TrimPrefix(got, c.want))
				}
			})
		})
	}
}

// TestNoProgressOverLines checks that a command shows no progress if its output goes to the same terminal, or if the
// user types its input.
func TestNoProgressOverLines(t *testing.T) {
	d := newDesk(t)
	d.must(t, "topic", "claim", "weather")
	d.must(t, "produce", "weather", "--value", "one")
	for _, args := range [][]string{{"produce", "weather", "-o", "json"}, {"produce", "weather"}, {"consume", "weather", "--from", "start", "--exit"}} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			read, write := io.Pipe()
			held := &heldWriter{&d.out, make(chan struct{})}
			d.stdin, d.stdout = read, held
			d.err.Reset()
			if len(args) == 2 {
				d.atTerminal(100, &d.err, read)
			} else {
				d.atTerminal(100, &d.err, held)
			}
			_, done := d.started(t, args...)
			timer := time.NewTimer(progressAfter + 2*progressEvery) // there is no event to wait for
			defer timer.Stop()
			<-timer.C
			write.Close()
			close(held.released)
			if code := done(); code != 0 || strings.Contains(d.err.String(), "\x1b[K") {
				t.Errorf("exits with %d, and stderr is sent %q", code, d.err.String())
			}
		})
	}
}

// TestScreen writes messages from several goroutines while a progress line is shown.
func TestScreen(t *testing.T) {
	var out testkit.Text
	s := &screen{w: &out}
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for j := range 50 {
				if i == 0 {
					s.show(fmt.Sprintf("%d%%", j))
				} else {
					fmt.Fprintf(s, "line %d of %d\n", j, i)
				}
			}
		})
	}
	all.Wait()
	s.show("100%")
	s.show("")
	s.show("")
	lines := strings.Split(seen(t, out.String()), "\n")
	if len(lines) != 151 || lines[150] != "" {
		t.Errorf("%d lines are left, want the 150 that were said", len(lines)-1)
	}
	for _, line := range lines[:150] {
		if !strings.HasPrefix(line, "line ") || strings.Contains(line, "%") {
			t.Errorf("a line is %q", line)
		}
	}
}

// TestSource checks that a source counts the bytes that are read, from the current offset of the file.
func TestSource(t *testing.T) {
	name := filepath.Join(t.TempDir(), "readings.txt")
	testkit.Must(t, os.WriteFile(name, []byte(strings.Repeat("x", 1100)), 0o600))
	file, err := os.Open(name)
	testkit.Must(t, err)
	defer file.Close()
	if _, err := file.Seek(100, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	var s source
	if got := s.state().percent(80); got != "" {
		t.Errorf("before all it says %q", got)
	}
	io.Copy(io.Discard, s.begin("a stream", strings.NewReader("12345")))
	if at := s.state(); at.total != 5 || at.percent(80) != "" {
		t.Errorf("of a stream: %+v, %q", at, at.percent(80))
	}
	hostile := "a\x1b[2Jb\nc " + strings.Repeat("気", 20) + ".txt"
	r := s.begin(hostile, file)
	for columns, want := range map[int]string{80: `0% of a\x1b[2Jb c ` + strings.Repeat("気", 20) + ".txt", 20: `0% of a\x1b[2…気.txt`, 10: `0% of a\…t`, 9: "0%", 0: "0%"} {
		if got := s.state().percent(columns); got != want {
			t.Errorf("in %d columns it says %q, want %q", columns, got, want)
		}
	}
	io.CopyN(io.Discard, r, 455)
	if at := s.state(); at.total != 460 || at.percent(11) != `45% of a\…t` {
		t.Errorf("of half a file: %+v, %q", at, at.percent(11))
	}
	io.Copy(io.Discard, r)
	if got := s.state().percent(80); !strings.HasPrefix(got, "100% of ") {
		t.Errorf("of a whole file it says %q", got)
	}
	s.end()
	if got := s.state(); got.percent(80) != "" || got.total != 1005 {
		t.Errorf("at the end: %+v", got)
	}
}

func TestMeter(t *testing.T) {
	var m meter
	now := time.Now()
	for second, want := range []float64{0, 100, 100, 100, 100} {
		if got := m.rate(now.Add(time.Duration(second)*time.Second), int64(100*second)); got != want {
			t.Errorf("after %d s: %v a second, want %v", second, got, want)
		}
	}
	for second := 5; second < 10; second++ {
		m.rate(now.Add(time.Duration(second)*time.Second), 400)
	}
	if got := m.rate(now.Add(10*time.Second), 400); got != 0 {
		t.Errorf("what stands still grows by %v a second", got)
	}
	if len(m.times) > 5 {
		t.Errorf("it remembers %d values", len(m.times))
	}
}

// TestColours checks that colours appear only on a terminal and without NO_COLOR, and that text from other people
// cannot set them.
func TestColours(t *testing.T) {
	for name, c := range map[string]struct {
		vars map[string]string
		want bool
	}{
		"a terminal":      {nil, true},
		"NO_COLOR":        {map[string]string{"NO_COLOR": "1"}, false},
		"an empty one":    {map[string]string{"NO_COLOR": ""}, true},
		"a dumb terminal": {map[string]string{"TERM": "dumb"}, false},
		"no kind of it":   {map[string]string{"TERM": ""}, false},
	} {
		d := emptyDesk(t)
		d.atTerminal(100, &d.err, &d.out)
		for name, value := range c.vars {
			d.vars[name] = value
		}
		if code := d.types(t.Context(), "topic", "list"); code != 3 {
			t.Fatalf("exits with %d", code)
		}
		red, cyan := strings.Contains(d.err.String(), "\x1b[31mdiaspora: \x1b[0m"), strings.Contains(d.err.String(), "\x1b[36mhint: \x1b[0m")
		if red != c.want || cyan != c.want || strings.Contains(d.err.String(), "\x1b") != c.want {
			t.Errorf("%s: stderr is sent %q, want colours: %v", name, d.err.String(), c.want)
		}
		d.must(t, "status")
		if want := map[bool]string{true: "\x1b[32mno events are pending\x1b[0m: there is", false: "no events are pending: there is"}[c.want]; !strings.HasPrefix(d.out.String(), want) {
			t.Errorf("%s: status prints %q, want %q", name, d.out.String(), want)
		}
	}
	d := emptyDesk(t)
	d.atTerminal(100, &d.err, &d.out)
	d.warn("strangers say \x1b[31m")
	if got := d.err.String(); got != "\x1b[33mdiaspora: \x1b[0mstrangers say \\x1b[31m\n" {
		t.Errorf("it says %q", got)
	}
	for line, want := range map[doctor.Status]colour{doctor.OK: green, doctor.Warning: yellow, doctor.Failure: red, doctor.NotTried: faint} {
		if doctorColours[line] != want {
			t.Errorf("the doctor's %v is in %q", line, doctorColours[line])
		}
	}
	for line, want := range map[front.Status]colour{front.OK: green, front.Warn: yellow, front.Fail: red} {
		if serveColours[line] != want {
			t.Errorf("%v of serve --check is in %q", line, serveColours[line])
		}
	}
	for want, doc := range map[colour]statusDocument{
		green: {}, yellow: {Events: 1}, red: {Events: 1, Full: "its disk is full"},
	} {
		if c, _, _ := d.statusLine(doc); c != want {
			t.Errorf("status of %+v is in %q, want %q", doc, c, want)
		}
	}
	if c, _, _ := d.statusLine(statusDocument{Losses: spool.Losses{Dropped: 1}}); c != yellow {
		t.Errorf("status after losses is in %q", c)
	}
}

// TestDoctorInColours checks that, on a terminal, each line of doctor begins with its status in a colour.
func TestDoctorInColours(t *testing.T) {
	d := newDesk(t)
	d.atTerminal(100, &d.out)
	d.must(t, "doctor", "--quiet=false")
	lines := strings.Split(strings.TrimSuffix(d.out.String(), "\n"), "\n")
	begin := regexp.MustCompile(`^\x1b\[\d+m[-+!x] (ok|warning|failure|not tried) *\x1b\[0m  \S`)
	for _, line := range lines {
		if !begin.MatchString(line) && !strings.HasPrefix(line, "             hint: ") && !strings.HasPrefix(line, "39 checks: ") {
			t.Errorf("a line is %q", line)
		}
	}
	if len(lines) < 10 {
		t.Errorf("the doctor prints %q", d.out.String())
	}
}

// TestTables checks that tables fit the width of a terminal, and are complete elsewhere.
func TestTables(t *testing.T) {
	rows := func() [][]string {
		return [][]string{
			{"NAME", "DESCRIPTION", "WHY"},
			{"weather", "気温 and wind of the stations on the roof", "-"},
			{"x", "two\nlines \x1b[31m", ""},
		}
	}
	for columns, want := range map[int]string{
		0: "" +
			"NAME     DESCRIPTION                                WHY\n" +
			"weather  気温 and wind of the stations on the roof  -\n" +
			"x        two lines \\x1b[31m\n",
		40: "" +
			"NAME     DESCRIPTION                 WHY\n" +
			"weather  気温 and wind of the stat…  -\n" +
			"x        two lines \\x1b[31m\n",
		25: "" +
			"NAME     DESCRIPTION  WHY\n" +
			"weather  気温 and w…  -\n" +
			"x        two lines …\n",
		10: "" + // columns stay wide enough to be readable
			"NAME     DESCRIPTI…  WHY\n" +
			"weather  気温 and …  -\n" +
			"x        two lines…\n",
	} {
		d := emptyDesk(t)
		d.atTerminal(columns, &d.out)
		testkit.Must(t, d.printTable(rows()))
		if got := d.out.String(); got != want {
			t.Errorf("in %d columns:\n%s\nwant\n%s", columns, got, want)
		}
	}
}

// TestTablesOfCommands checks that a long cell is cut only on a terminal.
func TestTablesOfCommands(t *testing.T) {
	d := newDesk(t)
	long := strings.Repeat("a long description ", 20)
	d.must(t, "topic", "claim", "weather", "--description", long)
	for columns, whole := range map[int]bool{80: false, 0: true} {
		d.out.Reset()
		if columns > 0 {
			d.atTerminal(columns, &d.out)
		} else {
			d.atTerminal(0)
		}
		d.must(t, "topic", "list")
		if got := strings.Contains(d.out.String(), strings.TrimSpace(long)); got != whole {
			t.Errorf("in %d columns the list is\n%s", columns, d.out.String())
		}
		for line := range strings.Lines(d.out.String()) {
			if !whole && terminal.Width(strings.TrimSpace(line)) > columns {
				t.Errorf("%q does not fit", line)
			}
		}
		d.out.Reset()
		d.must(t, "topic", "list", "-o", "json")
		if !strings.Contains(d.out.String(), strings.TrimSpace(long)) {
			t.Errorf("as JSON the list is %s", d.out.String())
		}
	}
}
