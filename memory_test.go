package diaspora

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/spool"
)

// TestMemoryIsPrivate has what was learnt with a credential be kept, found again by that
// credential alone, and never be taken from a file that others could have written.
func TestMemoryIsPrivate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	endpoint := httptest.NewServer(http.NotFoundHandler())
	endpoint.Close() // nobody answers
	config := func(refresh string) Config {
		t.Helper()
		cfg, err := ConfigFromEnv(getenv("DIASPORA_CONFIG_DIR", dir, "DIASPORA_URL", endpoint.URL, "DIASPORA_REFRESH", refresh))
		if err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	ada := globus.Identity{Subject: "ada", Username: "ada@example.edu"}
	discovery := someDiscovery()
	cfg := config(canary)
	cfg.memory.learn(&cfg, func(r *remembered) { r.Identity, r.Discovery = ada, &discovery })
	if got := config(canary).Identity; got.Subject != "ada" {
		t.Errorf("the identity of the same credential is %+v, want %+v", got, ada)
	}
	if got := config(canary + "-other").Identity; got.Subject != "" {
		t.Errorf("another credential is taken for %+v", got)
	}
	known := config(canary)
	client, err := NewClient(known)
	if err != nil {
		t.Fatal(err)
	}
	if d, err := client.discoverOnce(within(t)); err != nil || d.Globus != discovery.Globus {
		t.Errorf("while the fabric is away it is %+v, %v, want what it said before", d, err)
	}
	path := cfg.memory.path(cfg.memory.name)
	data, err := os.ReadFile(path)
	if err != nil || strings.Contains(string(data), canary) || strings.Contains(path, canary) {
		t.Errorf("%s holds %s, %v", path, data, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("its mode is %v, %v, want 0600", info.Mode(), err)
	}
	for _, spoil := range []struct {
		path       string
		mode, back os.FileMode
	}{{path, 0o660, 0o600}, {path, 0o604, 0o600}, {filepath.Dir(path), 0o777, 0o700}} {
		if err := os.Chmod(spoil.path, spoil.mode); err != nil {
			t.Fatal(err)
		}
		if got := config(canary).Identity; got.Subject != "" {
			t.Errorf("with mode %v of %s, %+v was taken from it", spoil.mode, spoil.path, got)
		}
		if err := os.Chmod(spoil.path, spoil.back); err != nil {
			t.Fatal(err)
		}
	}
}

// TestUnboundEventsHaveOneOwner says whose the events are that were logged before it was
// known whose.
func TestUnboundEventsHaveOneOwner(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	mine, theirs := credentialName("mine"), credentialName("theirs")
	m := memory{dir: dir, name: mine}
	cfg := Config{URL: "https://diaspora.example.org"}
	memory{dir: dir, name: theirs}.learn(&cfg, func(r *remembered) { r.Identity.Subject = "grace" })
	for _, try := range []struct {
		what             string
		subject, unbound string
		want             bool
	}{
		{"the credential in use", "ada", spool.Unbound + mine, true},
		{"another person's", "ada", spool.Unbound + theirs, false},
		{"one that is known to be this person's", "grace", spool.Unbound + theirs, true},
		{"one of which nothing is known", "ada", spool.Unbound + credentialName("x"), false},
		{"somebody not known yet", "", spool.Unbound + theirs, false},
		{"a subject", "ada", "grace", false},
		{"a path", "ada", spool.Unbound + "../" + theirs[3:], false},
		{"nobody", "ada", "", false},
	} {
		if got := m.owns(try.subject, try.unbound); got != try.want {
			t.Errorf("%s: owns(%q, %q) = %v, want %v", try.what, try.subject, try.unbound, got, try.want)
		}
	}
}
