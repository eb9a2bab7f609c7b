package diaspora

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/spool"
)

// TestMemoryIsPrivate checks that what was learned about a credential is stored, is found only with
// the same credential, and is never read from a file that other users could have written.
func TestMemoryIsPrivate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	endpoint := httptest.NewServer(http.NotFoundHandler())
	endpoint.Close() // the endpoint is unreachable
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
	file := cfg.memory.path(cfg.memory.name)
	data, err := os.ReadFile(file)
	if err != nil || strings.Contains(string(data), canary) || strings.Contains(file, canary) {
		t.Errorf("%s holds %s, %v", file, data, err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("its mode is %v, %v, want 0600", info.Mode(), err)
	}
	for _, spoil := range []struct {
		path       string
		mode, back os.FileMode
	}{{file, 0o660, 0o600}, {file, 0o604, 0o600}, {filepath.Dir(file), 0o777, 0o700}} {
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

// TestUnboundEventsHaveOneOwner checks who owns events that were logged before their owner was
// known.
func TestUnboundEventsHaveOneOwner(t *testing.T) {
	t.Parallel()
	const mineKey, oldKey, gracesKey, strangeKey = "key-aaaaaaaaaaaaaaaa", "key-bbbbbbbbbbbbbbbb", "key-cccccccccccccccc", "key-dddddddddddddddd"
	asked := map[string]int{}
	_, acl := endpoint(t, func(w http.ResponseWriter, r *http.Request) {
		id := path.Base(r.URL.Path)
		asked[id]++
		if user, _, ok := r.BasicAuth(); !ok || user != mineKey {
			t.Errorf("asked by %q", r.Header.Get("Authorization"))
		}
		if id != oldKey {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(AccessKey{ID: id, Name: "old", Owner: "ada", Read: true})
	})
	dir := t.TempDir()
	mine, theirs := credentialName("mine"), credentialName("theirs")
	cfg := Config{URL: acl.URL, DialTimeout: time.Minute, memory: memory{dir: dir, name: mine}}
	byKey := cfg
	byKey.Key, byKey.memory.name = Key{ID: mineKey, Secret: keySecretOfTests}, keyMemory(acl.URL, mineKey)
	learn := func(name, subject string) {
		memory{dir: dir, name: name}.learn(&cfg, func(r *remembered) { r.Identity.Subject = subject })
	}
	learn(theirs, "grace")
	learn(keyMemory(acl.URL, gracesKey), "grace")
	for _, try := range []struct {
		what             string
		cfg              Config
		subject, unbound string
		want             bool
	}{
		{"the credential in use", cfg, "ada", spool.Unbound + mine, true},
		{"another person's", cfg, "ada", spool.Unbound + theirs, false},
		{"one that is known to be this person's", cfg, "grace", spool.Unbound + theirs, true},
		{"one of which nothing is known", cfg, "ada", spool.Unbound + credentialName("x"), false},
		{"somebody not known yet", cfg, "", spool.Unbound + theirs, false},
		{"a subject", cfg, "ada", "grace", false},
		{"a path", cfg, "ada", spool.Unbound + "../" + theirs[3:], false},
		{"nobody", cfg, "ada", "", false},
		{"the key in use", byKey, "ada", spool.UnboundKey + mineKey, true},
		{"another person's key", byKey, "ada", spool.UnboundKey + gracesKey, false},
		{"a key that is known to be this person's", byKey, "grace", spool.UnboundKey + gracesKey, true},
		{"a key that was this person's, as the fabric says", byKey, "ada", spool.UnboundKey + oldKey, true},
		{"the same, which is kept", byKey, "ada", spool.UnboundKey + oldKey, true},
		{"the same, for somebody else", byKey, "grace", spool.UnboundKey + oldKey, false},
		{"a key of which the fabric says nothing", byKey, "ada", spool.UnboundKey + strangeKey, false},
		{"a key whose owner is not known yet", byKey, spool.UnboundKey + mineKey, spool.UnboundKey + oldKey, false},
		{"what is no key", byKey, "ada", spool.UnboundKey + "../keys", false},
		{"a credential that is no key", byKey, "ada", spool.Unbound + theirs, false},
	} {
		if got := try.cfg.owns(t.Context(), try.subject, try.unbound); got != try.want {
			t.Errorf("%s: owns(%q, %q) = %v, want %v", try.what, try.subject, try.unbound, got, try.want)
		}
	}
	if asked[oldKey] != 1 || asked[strangeKey] != 1 || len(asked) != 2 {
		t.Errorf("the fabric was asked %v times", asked)
	}
}
