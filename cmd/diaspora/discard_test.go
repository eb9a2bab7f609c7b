package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/spool"
)

// TestDiscardInUse fails when events are taken out of a spool that another process has.
func TestDiscardInUse(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	if code := d.types(t.Context(), "produce", "wether", "--value", "1"); code != 4 {
		t.Fatalf("produce to a topic that is not there exits with %d, want 4", code)
	}
	dir := filepath.Join(d.vars["DIASPORA_CONFIG_DIR"], "state", "spool", "home", "1")
	info, err := spool.Inspect(dir)
	if err != nil {
		t.Fatal(err)
	}
	s, err := spool.Open(t.Context(), spool.Options{Dir: dir, Subject: info.Subject})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	saved := filepath.Join(t.TempDir(), "saved")
	if code := d.types(t.Context(), "spool", "discard", "wether", "--yes", "--to", saved); code != 6 || !strings.Contains(d.err.String(), "nothing has changed") {
		t.Errorf("spool discard of a spool in use exits with %d, want 6:\n%s", code, d.err.String())
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	d.must(t, "spool", "discard", "wether", "--yes", "--to", saved)
	if info, err := spool.Inspect(dir); err != nil || info.Events != 0 || info.Discarded != 1 || info.Dropped != 0 {
		t.Errorf("the spool has %+v, %v; want one event discarded", info, err)
	}
}
