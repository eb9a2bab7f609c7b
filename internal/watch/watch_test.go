package watch

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

func put(t *testing.T, dir, name, content string) {
	t.Helper()
	testkit.Must(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
}

// fakeLogger keeps all events and, if answers is set, reports err as the outcome of each.
type fakeLogger struct {
	answers bool
	err     error
	events  []diaspora.Event
}

func (l *fakeLogger) Send(event diaspora.Event, done func(diaspora.Record, error)) {
	l.events = append(l.events, event)
	if l.answers {
		done(diaspora.Record{Event: event}, l.err)
	}
}

func (l *fakeLogger) ids() (ids []string) {
	for _, e := range l.events {
		ids = append(ids, e.ID)
	}
	return ids
}

func open(t *testing.T, dir, journals string) (w *Watcher, notices *[]Notice) {
	t.Helper()
	notices = new([]Notice)
	w, err := Open(Config{
		Dir: dir, Pattern: "*", Journals: journals, Topic: "scans",
		Event:    func(line []byte) (diaspora.Event, error) { return diaspora.Event{Topic: "scans", Value: line}, nil },
		Notify:   func(n Notice) { *notices = append(*notices, n) },
		Progress: func(_ string, r io.Reader) io.ReadCloser { return io.NopCloser(r) },
	})
	testkit.Must(t, err)
	return w, notices
}

// TestKilled kills a watch after each of its steps, and truncates its last write at each byte. Until a
// file's line in the journal is complete, the next watch must log the file again, with the same event IDs.
func TestKilled(t *testing.T) {
	t.Parallel()
	dir, journals := t.TempDir(), t.TempDir()
	put(t, dir, "a", "1\n2\n")
	var ids []string
	logsAgain := func(when string, again bool, l *fakeLogger) *Watcher {
		t.Helper()
		w, _ := open(t, dir, journals)
		w.logger = l
		w.scan(t.Context())
		if got := l.ids(); again && ids != nil && !slices.Equal(got, ids) || !again && got != nil {
			t.Fatalf("%s the next watch logs events %v; want those of before, %v: %v", when, got, ids, again)
		}
		return w
	}
	logger := &fakeLogger{}
	kill := func(w *Watcher) { w.journal.Close() } // after a kill, only the journal is left, and it is not locked
	kill(logsAgain("before anything", true, logger))
	if ids = logger.ids(); len(ids) != 2 || ids[0] == ids[1] {
		t.Fatalf("two lines have the IDs %v", ids)
	}
	kill(logsAgain("without an answer", true, &fakeLogger{answers: true}))
	w := logsAgain("after the answers, without a record", true, &fakeLogger{answers: true, err: diaspora.ErrClosed})
	testkit.Must(t, w.Close())
	w = logsAgain("after an answer that says nothing", true, &fakeLogger{answers: true})
	before := testkit.ReadFile(t, w.Journal())
	testkit.Must(t, w.Close())
	content, err := os.ReadFile(w.Journal())
	if err != nil || !bytes.HasPrefix(content, before) || len(content) == len(before) {
		t.Fatalf("the journal is %q, and then %q, %v", before, content, err)
	}
	for cut := len(before); cut <= len(content); cut++ {
		testkit.Must(t, os.WriteFile(w.Journal(), content[:cut], 0o600))
		kill(logsAgain(fmt.Sprintf("after %d of %d bytes of the record", cut-len(before), len(content)-len(before)), cut < len(content)-1, &fakeLogger{}))
	}
}

// TestRefused checks that a file with an event that can never be logged is not logged again, and that the
// journal has the reason.
func TestRefused(t *testing.T) {
	t.Parallel()
	dir, journals := t.TempDir(), t.TempDir()
	put(t, dir, "a", "1\n2\n")
	w, notices := open(t, dir, journals)
	bad := errors.New("it has no key")
	w.cfg.Event = func(line []byte) (diaspora.Event, error) {
		if string(line) == "2" {
			return diaspora.Event{}, bad
		}
		return diaspora.Event{Value: line}, nil
	}
	w.logger = &fakeLogger{answers: true}
	w.scan(t.Context())
	testkit.Must(t, w.Close())
	want := []Notice{{What: Refused, File: "a", Line: 2, Err: bad}, {What: RefusedFile, File: "a", Events: 1, Bytes: 4}}
	if !slices.Equal(*notices, want) {
		t.Errorf("the notices are %+v, want %+v", *notices, want)
	}
	w, _ = open(t, dir, journals)
	defer w.Close()
	logger := &fakeLogger{}
	w.logger = logger
	if w.scan(t.Context()); len(logger.events) > 0 {
		t.Errorf("the next watch logs %v", logger.events)
	}
}

// TestRefusedWhole checks that a file that was refused as a whole is not said to be logged again once it has changed.
func TestRefusedWhole(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	put(t, dir, "a", "1")
	w, notices := open(t, dir, t.TempDir())
	defer w.Close()
	bad := errors.New("it is too large")
	w.cfg.Whole = true
	w.cfg.Event = func([]byte) (diaspora.Event, error) { return diaspora.Event{}, bad }
	w.logger = &fakeLogger{answers: true}
	w.scan(t.Context())
	testkit.Must(t, w.record())
	w.cfg.Event = func(content []byte) (diaspora.Event, error) { return diaspora.Event{Value: content}, nil }
	put(t, dir, "a", "22")
	testkit.Eventually(t, "the file is logged", func() bool {
		w.scan(t.Context())
		testkit.Must(t, w.record())
		return slices.ContainsFunc(*notices, func(n Notice) bool { return n.What == Logged })
	})
	if slices.ContainsFunc(*notices, func(n Notice) bool { return n.What == Again }) {
		t.Errorf("the notices are %+v", *notices)
	}
}

// TestOrigin checks that Origin ignores headers of the same names that the user has added.
func TestOrigin(t *testing.T) {
	t.Parallel()
	header := func(key, value string) diaspora.Header { return diaspora.Header{Key: key, Value: []byte(value)} }
	users := []diaspora.Header{header(HeaderFile, "other"), header(HeaderLine, "3")}
	if file, line := Origin(diaspora.Event{Headers: append(users[:2:2], header(HeaderFile, "a"))}); file != "a" || line != 0 {
		t.Errorf("Origin of a whole file = %q, %d, want a, 0", file, line)
	}
	if file, line := Origin(diaspora.Event{Headers: append(users[:2:2], header(HeaderFile, "a"), header(HeaderLine, "7"))}); file != "a" || line != 7 {
		t.Errorf("Origin of a line = %q, %d, want a, 7", file, line)
	}
}

// TestGrowing checks that a notice is sent for a file that is not logged because it keeps changing.
func TestGrowing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, notices := open(t, t.TempDir(), t.TempDir())
		defer w.Close()
		w.cfg.Settle = 2 * time.Second
		for second := range 200 {
			if w.complete("motor.csv", mark{int64(second), int64(second)}) {
				t.Fatal("a file that grows is complete")
			}
			w.complete("still.csv", mark{1, 1})
			if second < 60 && len(*notices) > 0 {
				t.Fatalf("after %d s it says %v", second, *notices)
			}
			time.Sleep(time.Second)
		}
		if want := []Notice{{What: Growing, File: "motor.csv", After: time.Minute}}; !slices.Equal(*notices, want) {
			t.Errorf("the notices are %+v, want %+v", *notices, want)
		}
		// A file that was empty for a long time has not been changing.
		*notices = nil
		w.complete("late.csv", mark{0, 1})
		time.Sleep(time.Hour)
		if w.complete("late.csv", mark{1, 2}); len(*notices) > 0 {
			t.Errorf("of a file that was empty, it says %v", *notices)
		}
		// With a long Settle, a file that was changed twice is not reported.
		*notices = nil
		w.cfg.Settle = time.Hour
		for minute := range 3 {
			w.complete("slow.csv", mark{int64(minute), 1})
			time.Sleep(50 * time.Minute)
		}
		if len(*notices) > 0 {
			t.Errorf("with a Settle of 1h it says %v", *notices)
		}
	})
}

// TestEmpty checks that a notice is sent, once, for a file that stays empty and so is not logged.
func TestEmpty(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, notices := open(t, t.TempDir(), t.TempDir())
		defer w.Close()
		w.cfg.Settle, w.cfg.Whole = 2*time.Second, true
		for second := range 10 {
			if w.complete("empty.json", mark{0, 1}) || w.complete("soon.json", mark{0, 1}) || len(*notices) > 0 {
				t.Fatalf("after %d s, an empty file is complete, or it says %v", second, *notices)
			}
			time.Sleep(time.Second)
		}
		w.complete("soon.json", mark{1, 2}) // it was created long before it was written
		for range 30 {
			w.complete("empty.json", mark{0, 1})
			time.Sleep(time.Second)
		}
		if want := []Notice{{What: Empty, File: "empty.json"}}; !slices.Equal(*notices, want) {
			t.Errorf("the notices are %+v, want %+v", *notices, want)
		}
	})
}

// TestNotWatched: Survey counts the folders and links that are not watched. Those that are added later are reported, each
// once: nobody else would notice that the files in a new folder are not logged.
func TestNotWatched(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	folder := func(name string) { testkit.Must(t, os.Mkdir(filepath.Join(dir, name), 0o700)) }
	link := func(name string) { testkit.Must(t, os.Symlink("a", filepath.Join(dir, name))) }
	w, notices := open(t, dir, t.TempDir())
	defer w.Close()
	w.logger, w.cfg.Pattern = &fakeLogger{}, "*.json"
	folder("monday")
	link("old.json")
	put(t, dir, "OLD.JSON", "1")
	put(t, dir, "notes.txt", "1")
	if s, err := w.Survey(); err != nil || s.Folders != 1 || s.Links != 1 || s.Files != 2 || s.Matching != 0 || s.Unmatched != "OLD.JSON" || !s.OtherCase {
		t.Fatalf("Survey = %+v, %v; want one folder, one link, and two files that do not match, such as OLD.JSON", s, err)
	}
	for n, step := range []struct {
		do   func()
		want []Notice
	}{
		{func() {}, nil},
		{func() { folder("tuesday"); folder(".hidden"); link("latest") }, []Notice{{What: NewFolders, File: "tuesday", Files: 1}}},
		{func() { put(t, dir, "more.txt", "1"); put(t, dir, ".X.JSON", "1"); put(t, dir, "SCAN.Json", "1") }, []Notice{{What: NewOtherCase, File: "SCAN.Json", Files: 1}}},
		{func() { link("new.json") }, []Notice{{What: NewLinks, File: "new.json", Files: 1}}},
		{func() {}, nil},
		{func() { folder("wednesday"); folder("thursday") }, []Notice{{What: NewFolders, File: "thursday", Files: 2}}},
		{func() { testkit.Must(t, os.Remove(filepath.Join(dir, "tuesday"))) }, nil},
		{func() { folder("tuesday") }, nil},
	} {
		*notices = nil
		step.do()
		if w.scan(t.Context()); !slices.Equal(*notices, step.want) {
			t.Errorf("step %d: the notices are %+v, want %+v", n, *notices, step.want)
		}
	}
}
