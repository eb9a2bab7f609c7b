package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/spool"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestDiscardInUse fails when events are taken out of a spool that another process has.
func TestDiscardInUse(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	if code := d.types(t.Context(), "produce", "wether", "--value", "1"); code != 5 {
		t.Fatalf("produce to a topic that is not there exits with %d, want 5", code)
	}
	dir := filepath.Join(d.vars["DIASPORA_CONFIG_DIR"], "state", "spool", "home", "1")
	info, err := spool.Inspect(dir)
	testkit.Must(t, err)
	s, err := spool.Open(t.Context(), spool.Options{Dir: dir, Subject: info.Subject})
	testkit.Must(t, err)
	defer s.Close()
	saved := filepath.Join(t.TempDir(), "saved")
	if code := d.types(t.Context(), "spool", "discard", "wether", "--yes", "--to", saved); code != 6 || !strings.Contains(d.err.String(), "nothing has changed") {
		t.Errorf("spool discard of a spool in use exits with %d, want 6:\n%s", code, d.err.String())
	}
	testkit.Must(t, s.Close())
	d.must(t, "spool", "discard", "wether", "--yes", "--to", saved)
	if info, err := spool.Inspect(dir); err != nil || info.Events != 0 || info.Discarded != 1 || info.Dropped != 0 {
		t.Errorf("the spool has %+v, %v; want one event discarded", info, err)
	}
}

// TestDiscardWatched fails when events that a watch has logged are to be logged again from a file, though the
// watch with the right topic logs their files too.
func TestDiscardWatched(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.must(t, "topic", "claim", "scans")
	dir, elsewhere := t.TempDir(), t.TempDir()
	put(t, dir, "a.json", "1")
	put(t, dir, "b.json", "2")
	put(t, elsewhere, "c.json", "3")
	state := filepath.Join(d.vars["DIASPORA_CONFIG_DIR"], "state")
	watch := func() {
		t.Helper()
		d.watching(t, 5, func() bool { return len(journalled(t, state)) == 2 }, "scnas", "--watch", dir, "--settle", "0")
	}
	watch()
	saved := filepath.Join(t.TempDir(), "saved")
	discarded := func(want []string, never string, args ...string) {
		t.Helper()
		d.err.Reset()
		d.must(t, append([]string{"spool", "discard", "scnas", "--yes"}, args...)...)
		for _, text := range want {
			if !strings.Contains(d.err.String(), text) {
				t.Errorf("it says %q, want %q", d.err.String(), text)
			}
		}
		if strings.Contains(d.err.String(), never) {
			t.Errorf("it says %q, and so %q", d.err.String(), never)
		}
	}
	discarded([]string{"2 events taken out, and saved in " + saved + "\n", "to log the files that they came from to another topic, watch " + dir + " with that topic; do not log " + saved + " to it as well. A watch with topic \"scnas\" and the same DIASPORA_STATE_DIR does not log them again: for that, log " + saved}, "--input ndjson", "--to", saved)

	// Events that came from elsewhere are told apart.
	put(t, dir, "a.json", "changed")
	d.watching(t, 5, func() bool { return journalled(t, state)["a.json"].Size == 7 }, "scnas", "--watch", dir, "--settle", "0")
	if code := d.types(t.Context(), "produce", "scnas", "--input", "file", filepath.Join(elsewhere, "c.json")); code != 5 {
		t.Fatalf("produce exits with %d, want 5", code)
	}
	discarded([]string{"2 events taken out, and saved in " + saved + "2; ", "the files that 1 of them came from", "--input ndjson " + saved + "2"}, "they came from", "--to", saved+"2")
	if code := d.types(t.Context(), "produce", "scnas", "--input", "file", filepath.Join(elsewhere, "c.json")); code != 5 {
		t.Fatalf("produce exits with %d, want 5", code)
	}
	discarded([]string{"1 event discarded\n"}, "a watch of")
}

// TestDiscardedNeverArrived: events that were logged to a mistyped topic and discarded have not reached it, so a watch
// with the right topic does not say that they were logged there too. Watches with the mistyped topic still count the
// files as logged.
func TestDiscardedNeverArrived(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.must(t, "topic", "claim", "scans")
	dir, state := t.TempDir(), filepath.Join(d.vars["DIASPORA_CONFIG_DIR"], "state")
	put(t, dir, "a.json", "1")
	put(t, dir, "b.json", "2")
	watch := func(code int, topic string, until func() bool) string {
		t.Helper()
		d.err.Reset()
		d.watching(t, code, func() bool { return strings.Contains(d.err.String(), "Ctrl-C") && until() }, topic, "--watch", dir, "--settle", "0")
		return d.err.String()
	}
	watch(5, "scnas", func() bool { return len(journalled(t, state)) == 2 })
	if said := watch(0, "scans", func() bool { return true }); !strings.Contains(said, "2 of them were logged to scnas as well") {
		t.Errorf("while they are pending, a watch says\n%s", said)
	}
	d.must(t, "spool", "discard", "scnas", "--yes")
	for range 2 {
		if said := watch(0, "scans", func() bool { return true }); strings.Contains(said, "scnas") {
			t.Errorf("after they were discarded, a watch says\n%s", said)
		}
	}
	if said := watch(0, "scnas", func() bool { return true }); !strings.Contains(said, "2 files match, 2 are logged already") {
		t.Errorf("a watch of the mistyped topic says\n%s", said)
	}
	put(t, dir, "a.json", "changed")
	watch(5, "scnas", func() bool { return strings.Contains(d.err.String(), "1 event waits") })
	if said := watch(0, "scans", func() bool { return true }); !strings.Contains(said, "1 of them was logged to scnas as well") {
		t.Errorf("after one was logged to it again, a watch says\n%s", said)
	}
}

// TestDiscardElsewhere: discard does not touch events of another credential, and says in which spool they are.
func TestDiscardElsewhere(t *testing.T) {
	d := newDesk(t)
	key := filepath.Join(t.TempDir(), "key.env")
	d.must(t, "key", "create", "k", "--save-env", key)
	d.vars["DIASPORA_CONFIG_DIR"], d.vars["DIASPORA_KEY_FILE"] = filepath.Join(t.TempDir(), "node"), key
	d.vars["DIASPORA_STATE_DIR"] = filepath.Join(t.TempDir(), "state")
	if code := d.types(t.Context(), "produce", "scnas", "--value", "1"); code != 4 {
		t.Fatalf("produce to a topic that nobody has claimed exits with %d, want 4", code)
	}
	dirs, err := d.spoolsAt(nil)
	if err != nil || len(dirs) != 1 {
		t.Fatalf("the spools are %v, %v", dirs, err)
	}
	delete(d.vars, "DIASPORA_KEY_FILE")
	d.vars["DIASPORA_URL"] = "http://127.0.0.1:1"
	d.err.Reset()
	for _, flags := range []string{"", " --yes", " --to moved.ndjson --yes"} { // the hint must not delete what is to be saved
		d.err.Reset()
		code := d.types(t.Context(), append([]string{"spool", "discard", "scnas"}, strings.Fields(flags)...)...)
		said := d.err.String()
		hint := `hint: they are in a spool of another profile or credential; remove them there with "diaspora spool discard scnas ` + dirs[0] + flags + "\", or set DIASPORA_KEY_FILE or DIASPORA_PROFILE as when they were logged\n"
		if code != 5 || !strings.Contains(said, `no events for topic "scnas" are pending in `) || !strings.Contains(said, hint) {
			t.Errorf("discard%s exits with %d, and says:\n%swant\n%s", flags, code, said, hint)
		}
	}
	d.must(t, "spool", "discard", "scnas", dirs[0], "--yes")
}

// TestDiscardReason: once the events of a topic were discarded, that topic is not the reason why other events are pending.
func TestDiscardReason(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	for _, topic := range []string{"wether", "scnas"} {
		if code := d.types(t.Context(), "produce", topic, "--value", "1"); code != 5 {
			t.Fatalf("produce to a topic that is not there exits with %d, want 5", code)
		}
	}
	status := func() string {
		t.Helper()
		d.out.Reset()
		d.must(t, "status")
		return d.out.String()
	}
	said := status()
	named, other := "wether", "scnas"
	if strings.Contains(said, other) {
		named, other = other, named
	}
	d.must(t, "spool", "discard", other, "--yes")
	if again := status(); !strings.Contains(again, named) || !strings.Contains(again, "1 event ") {
		t.Errorf("after discard %s, status says %q; before it said %q", other, again, said)
	}
	d.types(t.Context(), "produce", other, "--value", "1")
	if said = status(); strings.Contains(said, other) {
		named, other = other, named
	}
	d.must(t, "spool", "discard", named, "--yes")
	if again := status(); strings.Contains(again, named) || !strings.Contains(again, "1 event ") {
		t.Errorf("after discard %s, status says %q; before it said %q", named, again, said)
	}
	d.out.Reset()
	d.types(t.Context(), "doctor", "-q")
	if strings.Contains(d.out.String(), "discard "+named) {
		t.Errorf("after discard %s, doctor says %q", named, d.out.String())
	}
}
