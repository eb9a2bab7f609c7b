package main

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/inside"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestLoginAsSomebodyElse logs in at a terminal with another identity than that of the profile. The user chooses the
// name of the profile for the new login, and the stored login is not changed.
func TestLoginAsSomebodyElse(t *testing.T) {
	for answer, want := range map[string]struct {
		code    int
		current string
	}{
		"mine\n": {0, "mine"},
		"\n":     {0, "home-grace"},
		"no\n":   {1, "home"},
		"":       {1, "home"},
		"../x\n": {0, "home-grace"}, // an invalid name does not lose the login
		"home\n": {0, "home-grace"},
	} {
		d := newDesk(t)
		d.vars["DISPLAY"] = ":0"
		typed, person := io.Pipe()
		d.stdin = typed
		d.env.terminal = func(any) bool { return true }
		d.env.browser = func(address string) error {
			_, err := visitLogin(address, "grace@example.org", inside.Of(d.fabric).GlobusSecret)
			return err
		}
		_, wait := d.started(t, "login")
		testkit.Eventually(t, "the question", func() bool { return strings.Contains(d.err.String(), "or no to revoke it: ") })
		io.WriteString(person, answer)
		person.Close()
		if code := wait(); code != want.code {
			t.Errorf("%q: login exits with %d, want %d:\n%s", answer, code, want.code, d.err.String())
		}
		for _, shown := range []string{"somebody else is logged in", "Keep this login as another profile? Type its name, nothing for home-grace, or no to revoke it: "} {
			if !strings.Contains(d.err.String(), shown) {
				t.Errorf("%q: login does not show %q:\n%s", answer, shown, d.err.String())
			}
		}
		profiles := diaspora.OpenProfiles(d.vars["DIASPORA_CONFIG_DIR"])
		names, err := profiles.Names()
		current, currentErr := profiles.Current()
		expected := slices.Compact([]string{"home", want.current})
		if err != nil || currentErr != nil || current != want.current || !slices.Equal(names, expected) {
			t.Errorf("%q: there are the profiles %q (%v), and %s is current (%v); want %q and %s", answer, names, err, current, currentErr, expected, want.current)
		}
		for name, username := range map[string]string{"home": "ada@example.edu", want.current: "grace@example.org"} {
			if name == "home" {
				username = "ada@example.edu"
			}
			d.out.Reset()
			if code := d.types(t.Context(), "whoami", "--profile", name); code != 0 || !strings.Contains(d.out.String(), username) {
				t.Errorf("%q: %s is logged in as\n%swant %s", answer, name, d.out.String(), username)
			}
		}
	}
}

// TestLogoutDamaged: a token file that cannot be read is removed by a logout, which says so.
func TestLogoutDamaged(t *testing.T) {
	d := newDesk(t)
	file := filepath.Join(d.vars["DIASPORA_CONFIG_DIR"], "tokens", "home.json")
	for _, args := range [][]string{{"logout"}, {"logout", "--local"}, {"logout", "-o", "json"}} {
		testkit.Must(t, os.WriteFile(file, []byte(`{"version":1,"tokens":`), 0o600))
		d.out.Reset()
		d.must(t, args...)
		want := "the token file of profile home was damaged, or of another version: " + file + " has been removed, but the tokens in it could not be revoked\n"
		if args[len(args)-1] == "json" {
			want = `{"logged_out":false,"profile":"home","removed":"` + file + `","subject":"","username":""}` + "\n"
		}
		if _, err := os.Lstat(file); !errors.Is(err, fs.ErrNotExist) || d.out.String() != want {
			t.Errorf("%v says %q, and the file: %v; want %q and no file", args, d.out.String(), err, want)
		}
	}
	testkit.Must(t, os.WriteFile(file, []byte("{"), 0o600))
	d.err.Reset()
	d.must(t, "profile", "remove", "home")
	if want := "the token file of profile home was damaged, or of another version; the tokens in it could not be revoked\n"; !strings.Contains(d.err.String(), want) {
		t.Errorf("profile remove says %q, want %q", d.err.String(), want)
	}
	d.out.Reset()
	if d.must(t, "logout"); d.out.String() != "nobody was logged in\n" {
		t.Errorf("without a token file, logout says %q", d.out.String())
	}
}

// TestProfileFor checks that a login to another fabric at the same host does not replace the profile of the first, and which
// profile is in use.
func TestProfileFor(t *testing.T) {
	d := emptyDesk(t)
	profiles := diaspora.OpenProfiles(d.vars["DIASPORA_CONFIG_DIR"])
	says := diaspora.Discovery{Brokers: []string{"streams.example.org:9092"}, Security: "tls", Globus: diaspora.DiscoveryGlobus{
		Issuer: "https://auth.globus.org", ClientID: "client", ResourceServer: "server", Scope: "https://auth.globus.org/scopes/streams.example.org/all",
	}}
	for _, step := range []struct{ address, want string }{
		{"https://streams.example.org/a", "streams.example.org"},
		{"https://streams.example.org/b", "streams.example.org-2"},
		{"https://streams.example.org/c", "streams.example.org-3"},
		{"https://streams.example.org/b/acl", "streams.example.org-2"},
		{"http://[::1]:9090", "default"},
		{"http://[::2]:9090", "default-2"},
	} {
		p, err := profileFor(profiles, "", step.address)
		if err != nil || p.Name != step.want {
			t.Fatalf("%s gets the profile %q, %v; want %s", step.address, p.Name, err, step.want)
		}
		p.Discovery = says
		testkit.Must(t, profiles.Save(p))
	}
	testkit.Must(t, profiles.Use("default-2"))

	// DIASPORA_URL selects the profile in use.
	for address, want := range map[string]string{"": "default-2", "https://streams.example.org/b": "streams.example.org-2", "https://streams.example.org/d": ""} {
		d.vars["DIASPORA_URL"] = address
		if _, name, err := d.env.profiles(); err != nil || name != want {
			t.Errorf("with DIASPORA_URL=%s, the profile %q is in use, %v; want %q", address, name, err, want)
		}
	}
}
