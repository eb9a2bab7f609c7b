package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
	"github.com/diaspora-streams/diaspora/internal/watch"
)

// put writes a file under another name, and renames it, as careful instruments do.
func put(t *testing.T, dir, name, content string) {
	t.Helper()
	temp := filepath.Join(dir, ".new-"+name)
	testkit.Must(t, os.WriteFile(temp, []byte(content), 0o600))
	testkit.Must(t, os.Rename(temp, filepath.Join(dir, name)))
}

// journalLine is what a journal says of a file.
type journalLine struct {
	File, Refused string
	Size, Events  int64
}

// journalled returns what the journals below a folder say of files.
func journalled(t *testing.T, state string) map[string]journalLine {
	t.Helper()
	names, _ := filepath.Glob(filepath.Join(state, "watch", "*", "*.ndjson"))
	files := map[string]journalLine{}
	for _, name := range names {
		content := testkit.ReadFile(t, name)
		for line := range bytes.Lines(content) {
			var l journalLine
			if json.Unmarshal(line, &l) == nil && l.File != "" {
				files[l.File] = l
			}
		}
	}
	return files
}

// watchedEvent is what consume prints of an event from a file.
type watchedEvent struct {
	ID, Key, Value string
	Time           time.Time
	Headers        json.RawMessage
}

func (d *desk) events(t *testing.T, topic string) (all []watchedEvent) {
	t.Helper()
	d.out.Reset()
	d.must(t, "consume", topic, "--from", "start", "--exit", "-o", "json")
	for line := range strings.Lines(d.out.String()) {
		var e watchedEvent
		testkit.Must(t, json.Unmarshal([]byte(line), &e))
		all = append(all, e)
	}
	return all
}

// watching runs produce --watch until what is asked for holds, and then Ctrl-C. It checks the exit code.
func (d *desk) watching(t *testing.T, want int, until func() bool, args ...string) {
	t.Helper()
	ctx, interrupt := context.WithCancel(t.Context())
	code := make(chan int, 1)
	go func() { code <- d.types(ctx, append([]string{"produce"}, args...)...) }()
	testkit.Eventually(t, "what is watched for:\n"+d.err.String(), until)
	interrupt()
	if c := <-code; c != want {
		t.Errorf("produce --watch ends with %d, want %d:\n%s", c, want, d.err.String())
	}
}

// TestWatch fails when a file is not logged, twice, or in part, or one that is not meant to be.
func TestWatch(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.must(t, "topic", "claim", "scans")
	dir, state := t.TempDir(), filepath.Join(d.vars["DIASPORA_CONFIG_DIR"], "state")
	put(t, dir, "a.json", "{\n1\n}\n")
	put(t, dir, "b.txt", "no match")
	put(t, dir, "empty.json", "")
	put(t, dir, "large.json", strings.Repeat("x", 2<<20))
	put(t, dir, ".hidden.json", "hidden")
	secret := filepath.Join(t.TempDir(), "secret")
	testkit.Must(t, os.WriteFile(secret, []byte("secret"), 0o600))
	for from, to := range map[string]string{"out.json": secret, "in.json": "a.json"} {
		testkit.Must(t, os.Symlink(to, filepath.Join(dir, from)))
	}
	testkit.Must(t, os.Mkdir(filepath.Join(dir, "folder.json"), 0o700))
	slow := filepath.Join(dir, "slow.json")
	grow := func(text string) {
		f, err := os.OpenFile(slow, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err == nil {
			_, err = f.WriteString(text)
			f.Close()
		}
		if err != nil {
			t.Error(err)
		}
	}
	grow("0")
	var writing sync.WaitGroup
	writing.Go(func() { // never still for as long as --settle
		for i := 1; i < 10; i++ {
			time.Sleep(100 * time.Millisecond)
			grow(fmt.Sprint(i))
		}
	})
	args := []string{"scans", "--watch", dir, "--pattern", "*.json", "--settle", "600ms", "-H", "unit=C"}
	done := func(n int) func() bool { return func() bool { return len(journalled(t, state)) == n } }
	d.watching(t, 8, done(3), args...)
	writing.Wait()
	if talk := d.err.String(); !strings.Contains(talk, "large.json: not logged") || !strings.Contains(talk, "not tried again") {
		t.Errorf("of the large file it says %q", talk)
	}
	if l := journalled(t, state)["large.json"]; l.Refused == "" || l.Events != 0 {
		t.Errorf("the journal says %+v of the large file", l)
	}
	got := d.events(t, "scans")
	if len(got) != 2 || got[0].Key != "a.json" || got[0].Value != "{\n1\n}\n" || got[1].Key != "slow.json" || got[1].Value != "0123456789" {
		t.Errorf("the topic has %+v, want a.json and slow.json, whole", got)
	}
	info, err := os.Stat(slow)
	if err != nil || !got[1].Time.Equal(info.ModTime().Truncate(time.Nanosecond)) || !strings.Contains(string(got[1].Headers), `"slow.json"`) || !strings.Contains(string(got[1].Headers), `"unit"`) {
		t.Errorf("of slow.json the topic has %+v, want its time %v and name", got[1], info.ModTime())
	}

	// Again: only what is new, or has changed.
	d.err.Reset()
	put(t, dir, "a.json", "changed")
	put(t, dir, "c.json", "new")
	d.watching(t, 0, func() bool { return len(journalled(t, state)) == 4 && journalled(t, state)["a.json"].Size == 7 }, args...)
	if values := fmt.Sprint(d.events(t, "scans")[2:]); !strings.Contains(values, "changed") || !strings.Contains(values, "new") || len(d.events(t, "scans")) != 4 {
		t.Errorf("then it has %s, want a.json and c.json", values)
	}
	if strings.Contains(d.err.String(), "large.json: ") {
		t.Errorf("the large file is tried again: %s", d.err.String())
	}
}

// TestWatchLines fails when the lines of a file are not in order, or a bad one takes others along.
func TestWatchLines(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.must(t, "topic", "claim", "scans")
	dir, state := t.TempDir(), filepath.Join(d.vars["DIASPORA_CONFIG_DIR"], "state")
	put(t, dir, "a.csv", "1\n2\n"+strings.Repeat("x", 2<<20)+"\n4")
	put(t, dir, "b.csv", "")
	d.watching(t, 8, func() bool { return len(journalled(t, state)) == 2 }, "scans", "--watch", dir, "--settle", "0", "--input", "lines", "-k", "mine")
	got := d.events(t, "scans")
	if len(got) != 3 || got[0].Value+got[1].Value+got[2].Value != "124" || got[2].Key != "mine" || !strings.Contains(string(got[2].Headers), `"4"`) {
		t.Errorf("the topic has %+v, want lines 1, 2 and 4", got)
	}
	if l := journalled(t, state)["a.csv"]; l.Events != 3 || l.Refused == "" {
		t.Errorf("the journal says %+v", l)
	}
}

// TestWatchHalfLine fails when a line is logged that somebody is about to go on with, or a last line
// without an end never is.
func TestWatchHalfLine(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.must(t, "topic", "claim", "scans")
	dir, state := t.TempDir(), filepath.Join(d.vars["DIASPORA_CONFIG_DIR"], "state")
	appendTo := func(name, text string) {
		t.Helper()
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err == nil {
			_, err = f.WriteString(text)
			err = errors.Join(err, f.Close())
		}
		testkit.Must(t, err)
	}
	knows := func(files ...string) bool {
		known := journalled(t, state)
		for _, file := range files {
			if _, ok := known[file]; !ok {
				return false
			}
		}
		return true
	}
	held := func() bool { return strings.Contains(d.err.String(), "the last line has no line feed") }
	args := []string{"scans", "--watch", dir, "--input", "lines", "--settle"}
	appendTo("growing", "one\ntw")
	d.watching(t, 0, func() bool {
		if knows("growing") {
			t.Fatal("a half line is logged")
		}
		if !held() {
			return false
		}
		appendTo("growing", "o\n")
		appendTo("still", "three\nfour")
		testkit.Eventually(t, "both files logged", func() bool { return knows("growing", "still") })
		return true
	}, append(args, "200ms")...)
	// The end of the run does not leave it out.
	d.err.Reset()
	appendTo("last", "five\nsix")
	d.watching(t, 0, held, append(args, "1s")...)
	if !knows("last") {
		t.Error("a file whose last line has not ended is not logged at the end of the run")
	}
	d.must(t, "spool", "drain") // a slow machine leaves some to the next run
	got := map[string][]string{}
	for _, e := range d.events(t, "scans") {
		got[e.Key] = append(got[e.Key], e.Value)
	}
	if want := "map[growing:[one two] last:[five six] still:[three four]]"; fmt.Sprint(got) != want {
		t.Errorf("the topic has %v, want %s", got, want)
	}
	appendTo("last", "\n") // and so it is another file
	d.watching(t, 0, func() bool { return len(d.events(t, "scans")) == 8 }, append(args, "200ms")...)
}

// TestWatchFolderReplaced fails when a folder that took the place of the watched one is not watched, or
// when a folder is kept open, which would keep a disk from being unmounted.
func TestWatchFolderReplaced(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.must(t, "topic", "claim", "scans")
	parent, state := t.TempDir(), filepath.Join(d.vars["DIASPORA_CONFIG_DIR"], "state")
	dir := filepath.Join(parent, "w")
	logged := func(name string) {
		t.Helper()
		put(t, dir, name, name)
		testkit.Eventually(t, name+" logged:\n"+d.err.String(), func() bool { _, ok := journalled(t, state)[name]; return ok })
	}
	says := func(text string) {
		t.Helper()
		testkit.Eventually(t, "the message "+text, func() bool { return strings.Contains(d.err.String(), text) })
		d.err.Reset()
	}
	testkit.Must(t, os.Mkdir(dir, 0o700))
	d.watching(t, 0, func() bool {
		logged("a")
		testkit.Eventually(t, "that the folder is not open", func() bool {
			n := opened(dir)
			if n > 1 {
				t.Errorf("the folder is open %d times", n)
			}
			return n == 0
		})
		testkit.Must(t, os.RemoveAll(dir))
		testkit.Must(t, os.Mkdir(dir, 0o700))
		logged("b")
		testkit.Must(t, os.Rename(dir, dir+".old"))
		testkit.Must(t, os.Mkdir(dir, 0o700))
		logged("c")
		says("is another folder now")
		testkit.Must(t, os.Rename(dir, dir+".away"))
		says("cannot be read")
		testkit.Must(t, os.Rename(dir+".away", dir))
		says("can be read again")
		logged("d")
		return true
	}, "scans", "--watch", dir, "--settle", "0")
	var names []string
	for _, e := range d.events(t, "scans") {
		names = append(names, e.Value)
	}
	if !slices.Equal(names, []string{"a", "b", "c", "d"}) {
		t.Errorf("the topic has %v, want a, b, c, d", names)
	}
}

// opened returns how often this process has the folder open, where the system can tell.
func opened(dir string) (n int) {
	links, _ := filepath.Glob("/proc/self/fd/*")
	for _, link := range links {
		if to, _ := os.Readlink(link); to == dir {
			n++
		}
	}
	return n
}

// TestWatchFollowsLink fails when a link to a folder is not followed to where it leads now, or when
// the files of a folder are logged again after it led elsewhere.
func TestWatchFollowsLink(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.must(t, "topic", "claim", "scans")
	parent, state := t.TempDir(), filepath.Join(d.vars["DIASPORA_CONFIG_DIR"], "state")
	link := filepath.Join(parent, "current")
	leads := func(to string) {
		t.Helper()
		testkit.Must(t, os.Symlink(to, link+".new"))
		testkit.Must(t, os.Rename(link+".new", link))
	}
	for _, day := range []string{"monday", "tuesday"} {
		testkit.Must(t, os.Mkdir(filepath.Join(parent, day), 0o700))
		put(t, filepath.Join(parent, day), "1", day)
		put(t, filepath.Join(parent, day), day, day)
	}
	leads("monday")
	done := func(name string) func() bool {
		return func() bool { _, ok := journalled(t, state)[name]; return ok }
	}
	args := []string{"scans", "--watch", link, "--settle", "0"}
	d.watching(t, 0, func() bool {
		testkit.Eventually(t, "monday", done("monday"))
		leads("tuesday")
		testkit.Eventually(t, "tuesday", done("tuesday"))
		leads("monday")
		put(t, filepath.Join(parent, "monday"), "late", "late")
		testkit.Eventually(t, "late", done("late"))
		return true
	}, args...)
	put(t, filepath.Join(parent, "monday"), "later", "later")
	d.watching(t, 0, done("later"), args...)
	got := map[string]int{}
	for _, e := range d.events(t, "scans") {
		got[e.Key+" "+e.Value]++
	}
	want := map[string]int{"1 monday": 1, "monday monday": 1, "1 tuesday": 1, "tuesday tuesday": 1, "late late": 1, "later later": 1}
	if !maps.Equal(got, want) {
		t.Errorf("the topic has %v, want %v", got, want)
	}
}

func TestWatchMisused(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.must(t, "topic", "claim", "scans")
	dir := t.TempDir()
	for _, args := range [][]string{
		{"--watch", filepath.Join(dir, "none")}, {"--watch", dir, "file"}, {"--watch", dir, "--value", "1"},
		{"--watch", dir, "--pattern", "["}, {"--watch", dir, "--pattern", "a/b"}, {"--watch", dir, "--settle", "-1s"},
		{"--pattern", "*.json"}, {"--settle", "1s"}, {"--input", "file", "-K", ","}, {"--watch", dir, "--key-separator", ","},
	} {
		if code := d.types(t.Context(), append([]string{"produce", "scans"}, args...)...); code != 2 {
			t.Errorf("produce %s exits with %d, want 2", strings.Join(args, " "), code)
		}
	}
	// One process for a folder and a topic.
	put(t, dir, "a", "1")
	state := filepath.Join(d.vars["DIASPORA_CONFIG_DIR"], "state")
	d.watching(t, 0, func() bool {
		return len(journalled(t, state)) == 1 && d.types(t.Context(), "produce", "scans", "--watch", dir) == 6
	}, "scans", "--watch", dir, "--settle", "0")
	// A journal that is none is not taken for an empty one.
	names, _ := filepath.Glob(filepath.Join(state, "watch", "*", "*.ndjson"))
	testkit.Must(t, os.WriteFile(names[0], []byte("junk\n"), 0o600))
	if code := d.types(t.Context(), "produce", "scans", "--watch", dir); code != 9 {
		t.Errorf("produce with a damaged journal exits with %d, want 9", code)
	}
}

// TestWatchSurvivesKill kills produce --watch again and again while files come: each is
// logged, and whenever it is logged, under the same id.
func TestWatchSurvivesKill(t *testing.T) {
	t.Parallel()
	const kills, files = 25, 400
	w := newWorld(t)
	w.up(t, "--kafka-port", "0", "--http-port", "0", "--globus-port", "0")
	w.run(t, "topic", "claim", "scans")
	dir, state := t.TempDir(), filepath.Join(w.dir, "config", "state")
	var writing sync.WaitGroup
	writing.Go(func() {
		for i := range files {
			put(t, dir, fmt.Sprintf("%03d.json", i), fmt.Sprintf(`{"scan":%d}`, i))
			time.Sleep(5 * time.Millisecond)
		}
	})
	start := func() func() {
		cmd := w.command("produce", "scans", "--watch", dir, "--pattern", "*.json", "--settle", "0")
		var talk bytes.Buffer
		cmd.Stderr = &talk
		testkit.Must(t, cmd.Start())
		return func() {
			cmd.Process.Kill()
			cmd.Wait()
			if strings.Contains(talk.String(), "not logged") {
				t.Errorf("produce says %q", talk.String())
			}
		}
	}
	for range kills {
		before := len(journalled(t, state))
		kill := start()
		after := min(before+1+rand.IntN(20), files)
		testkit.Eventually(t, "further files", func() bool { return len(journalled(t, state)) >= after })
		kill()
	}
	writing.Wait()
	kill := start()
	testkit.Eventually(t, "all files", func() bool { return len(journalled(t, state)) == files })
	kill()
	w.run(t, "spool", "drain")
	ids := map[string]map[string]bool{} // by file
	repeats := -files
	for line := range strings.Lines(w.run(t, "consume", "scans", "--from", "start", "--exit", "-o", "json")) {
		var e watchedEvent
		testkit.Must(t, json.Unmarshal([]byte(line), &e))
		var n int
		if fmt.Sscanf(e.Key, "%d.json", &n); e.Value != fmt.Sprintf(`{"scan":%d}`, n) {
			t.Fatalf("%s has %s", e.Key, e.Value)
		}
		if ids[e.Key] == nil {
			ids[e.Key] = map[string]bool{}
		}
		ids[e.Key][e.ID] = true
		repeats++
	}
	for file, of := range ids {
		if len(of) != 1 {
			t.Errorf("%s has %d ids", file, len(of))
		}
	}
	if len(ids) != files {
		t.Errorf("%d files of %d were logged", len(ids), files)
	}
	t.Logf("%d kills, %d files, %d repeats", kills, files, repeats)
}

// TestWatchUnsure fails when a file counts as logged of which the cluster may have nothing.
func TestWatchUnsure(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.must(t, "topic", "claim", "scans")
	dir, state := t.TempDir(), filepath.Join(d.vars["DIASPORA_CONFIG_DIR"], "state")
	put(t, dir, "a", "1")
	away := false
	d.watching(t, 8, func() bool {
		if len(journalled(t, state)) == 1 && !away {
			away = true
			d.fabric.Close()
			put(t, dir, "b", "2")
		}
		return strings.Contains(d.err.String(), "1 event waits")
	}, "scans", "--watch", dir, "--settle", "0", "--no-spool")
	if files := journalled(t, state); len(files) != 1 {
		t.Errorf("the journal has %v, want a alone", files)
	}
}

// TestWatchGrowing fails when a person is not told what to do about a file that keeps changing.
func TestWatchGrowing(t *testing.T) {
	t.Parallel()
	d := emptyDesk(t)
	p := &produceRun{env: d.env}
	p.notice(watch.Notice{What: watch.Growing, File: "motor.csv", After: time.Minute + time.Millisecond}, 2*time.Second)
	const want = "diaspora: motor.csv has been changing for 1m0s; it is logged once it has not changed for --settle (2s). If it never stops growing, begin a new file from time to time\n"
	if d.err.String() != want {
		t.Errorf("it says %q, want %q", d.err.String(), want)
	}
}

// TestWatchUnsettled fails when a watch ends and says nothing of the files that had not settled, or when a file
// is logged again and nothing is said of it.
func TestWatchUnsettled(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.must(t, "topic", "claim", "scans")
	dir, state := t.TempDir(), filepath.Join(d.vars["DIASPORA_CONFIG_DIR"], "state")
	put(t, dir, "motor.csv", "1")
	put(t, dir, "empty.csv", "")
	d.watching(t, 0, func() bool { return strings.Contains(d.err.String(), "watching ") }, "scans", "--watch", dir, "--settle", "1h")
	if want := "1 file changed within --settle (1h0m0s) and is not logged"; !strings.Contains(d.err.String(), want) {
		t.Errorf("at the end it says %q, want %q", d.err.String(), want)
	}
	d.err.Reset()
	logged := func(size int64) {
		testkit.Eventually(t, "motor.csv logged", func() bool { return journalled(t, state)["motor.csv"].Size == size })
	}
	d.watching(t, 0, func() bool {
		logged(1)
		put(t, dir, "motor.csv", "12")
		logged(2)
		put(t, dir, "motor.csv", "123")
		logged(3)
		return true
	}, "scans", "--watch", dir, "--settle", "0")
	talk := d.err.String()
	if n := strings.Count(talk, "motor.csv has changed since it was logged, and is logged again as a whole; if it was still being written, use a longer --settle\n"); n != 1 || strings.Contains(talk, "not logged") {
		t.Errorf("of a file that was logged three times it says %d times that it is logged again:\n%s", n, talk)
	}
}

// TestWatchIntroduced fails when the first line of a watch does not say what it is about to do: what is logged
// already, or that a pattern matches nothing.
func TestWatchIntroduced(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.must(t, "topic", "claim", "scans")
	d.must(t, "topic", "claim", "scnas")
	dir, state := t.TempDir(), filepath.Join(d.vars["DIASPORA_CONFIG_DIR"], "state")
	says := func(files int, topic, pattern, first string, notes ...string) {
		t.Helper()
		want := strings.Join(append([]string{first + "; end with Ctrl-C"}, notes...), "\n  ") + "\n"
		d.err.Reset()
		d.watching(t, 0, func() bool {
			return len(journalled(t, state)) == files && strings.Contains(d.err.String(), "Ctrl-C")
		}, topic, "--watch", dir, "--settle", "0", "--pattern", pattern)
		if !strings.Contains(d.err.String(), want) {
			t.Errorf("it says %q, want %q", d.err.String(), want)
		}
	}
	journals := "journal: " + filepath.Join(state, "watch", "home")
	says(0, "scans", "*", "watching "+dir+": it has no files yet")
	put(t, dir, "a.json", "1")
	put(t, dir, "b.txt", "2")
	put(t, dir, ".hidden", "3")
	says(0, "scans", "json", "watching "+dir+": none of its 2 files matches the pattern 'json'", "a pattern must match the whole name, like '*.json', and be in quotes: without them, the shell replaces it by names of files in the current folder")
	says(0, "scans", "beamline-7.env", "watching "+dir+": none of its 2 files matches the pattern 'beamline-7.env'", "a pattern must match the whole name, like '*.env', and be in quotes: without them, the shell replaces it by names of files in the current folder")
	says(0, "scans", "*.csv", "watching "+dir+": none of its 2 files matches the pattern '*.csv'")
	says(0, "scans", "*.Txt", "watching "+dir+": none of its 2 files matches the pattern '*.Txt'", "b.txt does not match (only upper and lower case differ)")
	says(1, "scnas", "*.json", "watching "+dir+": 1 file matches, 0 are logged already, 1 is new", "1 file does not match '*.json', and is not logged: b.txt", journals)
	put(t, dir, "B.JSON", "2")
	says(1, "scnas", "*.json", "watching "+dir+": 1 file matches, 1 is logged already", "2 files do not match '*.json', and are not logged: B.JSON, … (only upper and lower case differ)", journals)
	testkit.Must(t, os.Remove(filepath.Join(dir, "B.JSON")))
	says(2, "scans", "*", "watching "+dir+": 2 files match, 0 are logged already, 2 are new", "1 of them was logged to scnas as well", journals)
	says(2, "scans", "*", "watching "+dir+": 2 files match, 2 are logged already", "1 of them was logged to scnas as well", journals)
	put(t, dir, "a.json", "11")
	says(2, "scans", "*", "watching "+dir+": 2 files match, 1 is logged already, 1 has changed since", journals)
	put(t, dir, "c.json", "")
	says(2, "scans", "*", "watching "+dir+": 3 files match, 2 are logged already, 1 is empty", journals)
	put(t, dir, "large.json", strings.Repeat("x", 2_000_000))
	testkit.Must(t, os.Remove(filepath.Join(dir, "c.json")))
	testkit.Must(t, os.Mkdir(filepath.Join(dir, "monday"), 0o700))
	testkit.Must(t, os.Symlink("a.json", filepath.Join(dir, "link.json")))
	d.watching(t, 8, func() bool { return len(journalled(t, state)) == 3 }, "scans", "--watch", dir, "--settle", "0")
	says(3, "scans", "*", "watching "+dir+": 3 files match, 2 are logged already, 1 was refused as a whole or in part", "refused: large.json; touch a file to try it again", "it also has 1 folder and 1 symbolic link, which are not watched", journals)
}

// TestWatchMeant fails when a command line that nearly says what is meant is not told what to write.
func TestWatchMeant(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	dir := t.TempDir()
	put(t, dir, "motor.csv", "1")
	motor := filepath.Join(dir, "motor.csv")
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"produce", "scans", "--watch", "--pattern", "*.json", dir}, "the folder is missing after --watch\nhint: write --watch DIR"},
		{[]string{"produce", "scans", "--watch", dir, "--pattern", "1.json", "2.json", "3.json"}, "--watch and files exclude each other (2.json, …)\nhint: put the pattern in quotes"},
		{[]string{"produce", "scans", "--watch", dir, "2.json"}, "--watch and files exclude each other (2.json)"},
		{[]string{"produce", "scans", "--watch", motor}, "--watch " + motor + ": it is not a folder"},
		{[]string{"produce", "scans", "--watch", motor, "2.csv"}, "--watch " + dir + " --pattern '*.json'"},
		{[]string{"produce", "scans", "--watch", filepath.Join(dir, "*.json")}, "--watch " + dir + " --pattern '*.json'"},
		{[]string{"produce", "scans", "--watch", filepath.Join(dir, "none")}, "/none: no such file or directory\nhint: create the folder, or wait until its disk is mounted"},
		{[]string{"produce", "scans", motor, "--settle", "5s"}, "--settle goes with --watch\nhint: add --watch DIR, or omit --settle"},
		{[]string{"produce", "scans", "--watch", dir, "--settle", "5"}, "write --settle 5s, with a unit"},
		{[]string{"produce", "scans", "--wait", "1.5"}, "write --wait 1.5s, with a unit"},
		{[]string{"produce", "scans", "--wait", "soon"}, "write --wait 90s or --wait 2m; the units are"},
		{[]string{"spool", "drain", "--timeout", "60"}, "write --timeout 60s, with a unit"},
		{[]string{"produce", "scans", "--follow", motor}, `"diaspora produce TOPIC --watch DIR"`},
		{[]string{"consume", "scans", "--follow"}, "consume continues with new records"},
		{[]string{"watch", dir}, `"diaspora produce TOPIC --watch DIR"`},
	} {
		d.err.Reset()
		if code := d.types(t.Context(), c.args...); code != 2 {
			t.Errorf("%q exits with %d, want 2", c.args, code)
		}
		if talk := d.err.String(); !strings.Contains(talk, c.want) {
			t.Errorf("%q says %q, want %q", c.args, talk, c.want)
		}
	}
	// A folder may have such a name.
	odd := filepath.Join(dir, "scans[1]")
	testkit.Must(t, os.Mkdir(odd, 0o700))
	d.must(t, "topic", "claim", "scans")
	d.watching(t, 0, func() bool { return strings.Contains(d.err.String(), "watching "+odd) }, "scans", "--watch", odd)
}

// TestWatchOlder fails when a watch says that events wait, as if they were its own, of those that an earlier
// run has logged to another topic.
func TestWatchOlder(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.must(t, "topic", "claim", "scans")
	dir, state := t.TempDir(), filepath.Join(d.vars["DIASPORA_CONFIG_DIR"], "state")
	if code := d.types(t.Context(), "produce", "scnas", "--value", "1"); code != 5 {
		t.Fatalf("produce exits with %d, want 5", code)
	}
	d.err.Reset()
	put(t, dir, "a.json", "1")
	d.watching(t, 0, func() bool {
		talk := d.err.String()
		return len(journalled(t, state)) == 1 && strings.Contains(talk, "did you mean scans?; older events for scnas stay in the spool; events for other topics are sent\n") &&
			strings.Contains(talk, `diaspora spool discard scnas --to FILE"`)
	}, "scans", "--watch", dir, "--settle", "0")
}

// TestWatchStopped: a service is stopped with a signal. It must say that a file was not logged, and name it, but it was not
// interrupted in the middle of anything.
func TestWatchStopped(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.must(t, "topic", "claim", "scans")
	dir, state := t.TempDir(), filepath.Join(d.vars["DIASPORA_CONFIG_DIR"], "state")
	put(t, dir, "good.json", "1")
	for n, c := range []struct {
		code int
		want string
	}{
		{0, "diaspora: 1 event acknowledged\n"},
		{8, "diaspora: 0 events acknowledged, 1 failed\ndiaspora: produce to topic \"scans\": 1 of 1 event was not logged: large.json\n"},
		{8, "diaspora: 1 event acknowledged, 2 failed\ndiaspora: produce to topic \"scans\": 2 of 3 events were not logged; the first was "},
	} {
		d.err.Reset()
		if n > 0 {
			put(t, dir, "large.json", strings.Repeat("x", 2_000_000+n))
		}
		if n > 1 {
			put(t, dir, "large2.json", strings.Repeat("x", 2_000_000))
			put(t, dir, "good2.json", "1")
		}
		stop, _ := d.started(t, "produce", "scans", "--watch", dir, "--settle", "0")
		testkit.Eventually(t, "the files", func() bool { return len(journalled(t, state)) == []int{1, 2, 4}[n] })
		if code := stop(); code != c.code || !strings.Contains(d.err.String(), c.want) {
			t.Errorf("the watch exits with %d and says\n%s\nwant %d and\n%s", code, d.err.String(), c.code, c.want)
		}
	}
}

// TestWatchToldOfRefusals: after a file was not logged, a watch does not say that nothing is lost. What it says to do
// about a topic that nobody has claimed begins with the end of the watch, because spool discard does not change a spool
// that is in use.
func TestWatchToldOfRefusals(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	dir := t.TempDir()
	put(t, dir, "bad.json", "not JSON\n")
	put(t, dir, "good.json", "{\"value\":1}\n")
	d.watching(t, 8, func() bool {
		return strings.Contains(d.err.String(), "\nhint: the events are sent once that is allowed")
	},
		"scnas", "--watch", dir, "--settle", "0", "--input", "ndjson")
	said := d.err.String()
	for _, want := range []string{
		"/state; 1 other line was not logged, as said before\n",
		`if the name is wrong, end the watch (a service: stop it), type "DIASPORA_CONFIG_DIR=` + d.vars["DIASPORA_CONFIG_DIR"] + ` diaspora spool discard scnas --to FILE --yes", and watch with the right topic`,
		"\ndiaspora: 1 event logged to this disk only, 1 failed; 1 event waits in ",
		"\ndiaspora: log topic \"scnas\": permission denied", // at the end, again
		": 1 of 2 events was not logged: bad.json line 1\n",
	} {
		if !strings.Contains(said, want) || strings.Contains(said, "nothing is lost") {
			t.Errorf("the watch says\n%s\nwant %q, and not that nothing is lost", said, want)
		}
	}
	d.err.Reset()
	put(t, dir, "bad.json", "")
	d.must(t, "topic", "claim", "scans")
	d.watching(t, 0, func() bool { return strings.Contains(d.err.String(), "discard scnas --to FILE --yes") }, "scans", "--watch", dir, "--settle", "0")
	if want := `diaspora spool discard scnas --to FILE --yes", and watch with the right topic, which logs the files again`; !strings.Contains(d.err.String(), want) {
		t.Errorf("the watch says\n%s\nwant %q", d.err.String(), want)
	}
}

// TestWatchNoRight: a watch reports a mistyped topic also while there is nothing to log.
func TestWatchNoRight(t *testing.T) {
	d := newDesk(t)
	d.must(t, "topic", "claim", "scans")
	said := func(text string) func() bool { return func() bool { return strings.Contains(d.err.String(), text) } }
	d.err.Reset()
	d.watching(t, 0, said("log topic \"scnas\": nobody has claimed scnas; did you mean scans?; new files wait on disk until this is solved\nhint: "), "scnas", "--watch", t.TempDir())
	// A name that no topic can have is refused at once.
	d.err.Reset()
	if code := d.types(t.Context(), "produce", "my-scans", "--watch", t.TempDir()); code != 2 || !said("a topic's name has only letters, digits and underscores")() {
		t.Errorf("a watch with a name that nobody can claim exits with %d and says\n%s", code, d.err.String())
	}
	key := filepath.Join(t.TempDir(), "key.env")
	d.must(t, "key", "create", "k", "--topic", "scans", "--read", "--save-env", key)
	d.vars["DIASPORA_KEY_FILE"] = key
	d.err.Reset()
	d.watching(t, 0, said(" may not write to it, it may read only; new files wait on disk"), "scans", "--watch", t.TempDir())
	// The name of the topic is right, so there is no hint to discard the events.
	dir := t.TempDir()
	put(t, dir, "a.json", "1")
	d.err.Reset()
	d.watching(t, 4, said(" may not write to it, it may read only; 1 event waits in "), "scans", "--watch", dir, "--settle", "0")
	if strings.Contains(d.err.String(), "discard") {
		t.Errorf("the watch says\n%s", d.err.String())
	}
}

// TestWatchRejectedLogin: a watch reports a revoked key also while there is nothing to log.
func TestWatchRejectedLogin(t *testing.T) {
	d := newDesk(t)
	d.must(t, "topic", "claim", "scans")
	key := filepath.Join(t.TempDir(), "key.env")
	d.must(t, "key", "create", "k", "--save-env", key)
	d.must(t, "key", "revoke", "k")
	d.vars["DIASPORA_KEY_FILE"] = key
	d.err.Reset()
	said := func() bool {
		return strings.Contains(d.err.String(), "; new files wait on disk until this is solved\nhint: make another access key")
	}
	d.watching(t, 0, said, "scans", "--watch", t.TempDir())
}

// TestWatchKeyIsReplaced: a watch whose key is refused says why it does not use the file that replaces the key file, and goes
// on with one that it can use.
func TestWatchKeyIsReplaced(t *testing.T) {
	d := newDesk(t)
	d.must(t, "topic", "claim", "scans")
	dir, watched := t.TempDir(), t.TempDir()
	gone, good, used := filepath.Join(dir, "gone.env"), filepath.Join(dir, "good.env"), filepath.Join(dir, "used.env")
	d.must(t, "key", "create", "gone", "--topic", "scans", "--write", "--save-env", gone)
	d.must(t, "key", "create", "good", "--topic", "scans", "--write", "--save-env", good)
	d.must(t, "key", "revoke", "gone")
	use := func(file string, mode os.FileMode) {
		t.Helper()
		testkit.Must(t, os.WriteFile(used+".new", testkit.ReadFile(t, file), mode))
		testkit.Must(t, os.Rename(used+".new", used))
	}
	said := func(text string) func() bool { return func() bool { return strings.Contains(d.err.String(), text) } }
	use(gone, 0o600)
	put(t, watched, "a.json", "1")
	d.vars["DIASPORA_KEY_FILE"] = used
	d.err.Reset()
	stop, _ := d.started(t, "produce", "scans", "--watch", watched, "--settle", "0")
	testkit.Eventually(t, "the revoked key is reported", said("the access key was revoked; 1 event waits in "))
	use(good, 0o644)
	testkit.Eventually(t, "a file that others may read is reported", said("the access key was revoked; key file: DIASPORA_KEY_FILE: key file "+used+": others may read or change it (mode 0644)"))
	use(good, 0o600)
	testkit.Eventually(t, "the event is sent", said("that is solved: the events are sent"))
	stop()
	delete(d.vars, "DIASPORA_KEY_FILE")
	if got := d.events(t, "scans"); len(got) != 1 {
		t.Errorf("the topic has %d events, want 1", len(got))
	}
}

// TestWatchForeignKey: a watch was started with a key of another person. It says that the right key, which replaces that one,
// is not used, because the events belong to the other person now.
func TestWatchForeignKey(t *testing.T) {
	d := newDesk(t)
	d.must(t, "topic", "claim", "scans")
	dir, watched := t.TempDir(), t.TempDir()
	used := filepath.Join(dir, "used.env")
	foreign := fabrictest.CreateKey(t, fabrictest.As(t, d.fabric, "grace@example.org"), diaspora.AccessKeyRequest{Name: "g", Write: true})
	text := fmt.Sprintf("DIASPORA_URL=%s\nDIASPORA_KEY_ID=%s\nDIASPORA_KEY_SECRET=%s\n", d.fabric.URL(), foreign.ID, foreign.Secret.Reveal())
	testkit.Must(t, os.WriteFile(used, []byte(text), 0o600))
	good := filepath.Join(dir, "good.env")
	d.must(t, "key", "create", "good", "--topic", "scans", "--write", "--save-env", good)
	put(t, watched, "a.json", "1")
	d.vars["DIASPORA_KEY_FILE"] = used
	d.err.Reset()
	stop, _ := d.started(t, "produce", "scans", "--watch", watched, "--settle", "0")
	said := func(text string) func() bool { return func() bool { return strings.Contains(d.err.String(), text) } }
	testkit.Eventually(t, "the missing right is reported", said("1 event waits in "))
	d.err.Reset()
	testkit.Must(t, os.Rename(good, used))
	testkit.Eventually(t, "the key that is not used is reported", said(" belongs to another person than "+foreign.ID+", with which the pending events were logged; put a key of the same person into it"))
	stop()
}

// TestWatchOtherKey: a watch that is started again with another login or key than before logs all files again, and says
// so. A topic of the same name in another fabric is another topic.
func TestWatchOtherKey(t *testing.T) {
	d := newDesk(t)
	d.must(t, "topic", "claim", "scans")
	key := filepath.Join(t.TempDir(), "key.env")
	d.must(t, "key", "create", "k", "--save-env", key)
	dir, state := t.TempDir(), filepath.Join(d.vars["DIASPORA_CONFIG_DIR"], "state")
	put(t, dir, "a.json", "1")
	put(t, dir, "b.json", "2")
	const warning = "diaspora: 2 of these files were logged to scans before, with another login or key, and are logged again: each has a journal of its own\nhint: "
	watch := func(files int, warns bool, until func() bool) {
		t.Helper()
		d.err.Reset()
		d.watching(t, 0, func() bool {
			return until() && len(journalled(t, state)) == files && strings.Contains(d.err.String(), "Ctrl-C")
		}, "scans", "--watch", dir, "--settle", "0")
		if strings.Contains(d.err.String(), warning) != warns {
			t.Errorf("the watch says\n%s\nwant %q: %v", d.err.String(), warning, warns)
		}
	}
	always := func() bool { return true }
	arrived := func(n int) func() bool { return func() bool { return len(d.events(t, "scans")) == n } }
	d.vars["DIASPORA_KEY_FILE"] = key
	watch(2, false, arrived(2))
	delete(d.vars, "DIASPORA_KEY_FILE")
	watch(2, true, arrived(4))
	watch(2, false, always)
	put(t, dir, "a.json", "11")
	put(t, dir, "b.json", "22")
	watch(2, false, arrived(6)) // both journals have them as they were
	d.vars["DIASPORA_KEY_FILE"] = key
	watch(2, true, arrived(8))

	other := newDesk(t)
	other.vars["DIASPORA_CONFIG_DIR"], other.vars["DIASPORA_STATE_DIR"] = filepath.Join(t.TempDir(), "config"), state
	testkit.Must(t, storeLogin(diaspora.OpenProfiles(other.vars["DIASPORA_CONFIG_DIR"]), "elsewhere", other.fabric, fabrictest.Login(t, other.fabric, "ada@example.edu")))
	other.must(t, "topic", "claim", "scans")
	other.watching(t, 0, func() bool { return len(other.events(t, "scans")) == 2 }, "scans", "--watch", dir, "--settle", "0")
	if strings.Contains(other.err.String(), "before") {
		t.Errorf("in another fabric, the watch says\n%s", other.err.String())
	}
}

// TestWatchNewFolder: files in a folder that is added while a watch runs are not logged, and the watch says so.
func TestWatchNewFolder(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.must(t, "topic", "claim", "scans")
	dir := t.TempDir()
	d.watching(t, 0, func() bool {
		return strings.Contains(d.err.String(), "Ctrl-C") && mkdir(filepath.Join(dir, "tuesday")) && strings.Contains(d.err.String(), "new folder")
	},
		"scans", "--watch", dir, "--settle", "0")
	if want := "diaspora: the new folder " + filepath.Join(dir, "tuesday") + " is not watched: log the files in it with another \"diaspora produce --watch\"\n"; strings.Count(d.err.String(), want) != 1 {
		t.Errorf("the watch says\n%s\nwant once %q", d.err.String(), want)
	}
	p := &produceRun{env: d.env, watch: new(watch.Watcher)}
	d.err.Reset()
	p.notice(watch.Notice{What: watch.NewOtherCase, File: "X.JSON", Files: 1}, 0)
	if want := "diaspora: the new file X.JSON is not logged: only upper and lower case differ from the pattern\n"; !strings.HasSuffix(d.err.String(), want) {
		t.Errorf("it says %q, want %q", d.err.String(), want)
	}
	d.err.Reset()
	p.notice(watch.Notice{What: watch.NewLinks, File: "x.json", Files: 2}, 0)
	if want := "diaspora: 2 new symbolic links in , such as x.json, are not watched: use hard links (ln without -s), or copies\n"; d.err.String() != want {
		t.Errorf("it says %q, want %q", d.err.String(), want)
	}
}

func mkdir(dir string) bool {
	os.Mkdir(dir, 0o700) // it may exist already
	return true
}

// TestWatchTwice: a second watch of the same folder and topic, for other files, is told what to do.
func TestWatchTwice(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.must(t, "topic", "claim", "scans")
	dir := t.TempDir()
	stop, _ := d.started(t, "produce", "scans", "--watch", dir, "--pattern", "*.json")
	testkit.Eventually(t, "the first watch", func() bool { return strings.Contains(d.err.String(), "Ctrl-C") })
	if code := d.types(t.Context(), "produce", "scans", "--watch", dir, "--pattern", "*.csv"); code != 6 {
		t.Errorf("the second watch exits with %d, want 6", code)
	}
	stop()
	if want := "another process watches " + dir + " for topic \"scans\"\nhint: stop that process first; or, if it logs other files (another --pattern), log these to another topic, or set DIASPORA_STATE_DIR"; !strings.Contains(d.err.String(), want) {
		t.Errorf("the second watch says\n%s\nwant %q", d.err.String(), want)
	}
}

// TestWatchStamps fails if the messages of a watch have no time in a file, or have one elsewhere, where somebody else adds
// it.
func TestWatchStamps(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.must(t, "topic", "claim", "scans")
	dir, file := t.TempDir(), filepath.Join(t.TempDir(), "scans.log")
	log, err := os.Create(file)
	testkit.Must(t, err)
	defer log.Close()
	d.env.stderr = log
	d.watching(t, 0, func() bool { return strings.Contains(string(testkit.ReadFile(t, file)), "Ctrl-C") }, "scans", "--watch", dir)
	stamped := regexp.MustCompile(`^20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d) diaspora: watching .* Ctrl-C\n`)
	if said := testkit.ReadFile(t, file); !stamped.Match(said) {
		t.Errorf("the log says %s", said)
	}
}
