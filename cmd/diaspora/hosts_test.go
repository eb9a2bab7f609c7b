package main

import (
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// TestLoginAsks logs in at a terminal to a fabric whose scope names no host. The user sees the hosts that would get the
// tokens, and the login does not start without a confirmation.
func TestLoginAsks(t *testing.T) {
	thief := fabrictest.NewThief(t)
	said := diaspora.Discovery{
		Brokers: []string{"evil.example.com:9092", "worse.example.com:9092", "evil.example.com:9093"}, Security: "tls", CA: thief.CA,
		Globus: diaspora.DiscoveryGlobus{
			Issuer: globus.DefaultIssuer, ClientID: "client", ResourceServer: "server",
			Scope: "https://auth.globus.org/scopes/d1a590a0-0000-4000-8000-0000000000a1/action_all",
		},
	}
	thief.Says(said)
	const begun = "Please visit the following URL"
	for answer, want := range map[string]struct {
		code int
		says string
	}{
		"yes\n": {1, begun}, // confirmed; then no code is entered
		"Y\n":   {1, begun},
		"no\n":  {3, "its hosts were not confirmed; nothing has changed\ndiaspora: hint: ask"},
		"\n":    {3, "its hosts were not confirmed"},
		"":      {3, "its hosts were not confirmed"},
	} {
		d := emptyDesk(t)
		d.vars["DIASPORA_CA_FILE"] = thief.CAFile
		d.stdin = strings.NewReader(answer)
		d.env.terminal = func(any) bool { return true }
		code := d.types(t.Context(), "login", "https://"+thief.HTTPS(), "--no-browser")
		got := strings.ReplaceAll(d.err.String(), "\nhint: ", "\ndiaspora: hint: ")
		if code != want.code || !strings.Contains(got, want.says) || strings.Contains(got, begun) != (want.says == begun) {
			t.Errorf("%q: login exits with %d and says\n%s", answer, code, got)
		}
		for _, shown := range []string{
			"  ACL endpoint   https://" + thief.HTTPS() + "\n",
			"  hosts          127.0.0.1, evil.example.com, worse.example.com\n",
			"  scope          " + said.Globus.Scope + "\n",
			"Are they right? Type yes to log in: ",
		} {
			if !strings.Contains(got, shown) {
				t.Errorf("%q: login does not show %q:\n%s", answer, shown, got)
			}
		}
	}
	if loot := thief.Loot(); len(loot) > 0 {
		t.Errorf("the endpoint has %q", loot)
	}
}

// TestLogoutTellsNoStranger logs out with a token file that does not name the issuer of its tokens, and a profile of an
// earlier version, in which the fabric itself named the issuer. The tokens must not be sent to that issuer.
func TestLogoutTellsNoStranger(t *testing.T) {
	thief := fabrictest.NewThief(t)
	d := emptyDesk(t)
	profiles := diaspora.OpenProfiles(d.vars["DIASPORA_CONFIG_DIR"])
	store, err := profiles.Store("home")
	testkit.Must(t, err)
	for _, err := range []error{
		profiles.Save(diaspora.Profile{Name: "home", URL: "https://evil.example.com", Discovery: diaspora.Discovery{
			Brokers: []string{"evil.example.com:9092"}, Security: "tls",
			Globus: diaspora.DiscoveryGlobus{
				Issuer: "http://" + thief.HTTP(), ClientID: "client", ResourceServer: "server", Scope: "https://auth.globus.org/scopes/evil.example.com/all",
			},
		}}),
		profiles.Use("home"),
		store.Save(t.Context(), &globus.Login{Tokens: []globus.Token{{ResourceServer: "server", AccessToken: "at", RefreshToken: "rt"}}}),
	} {
		testkit.Must(t, err)
	}
	if code := d.types(t.Context(), "logout"); code != 3 {
		t.Errorf("logout exits with %d, want 3:\n%s", code, d.err.String())
	}
	for _, says := range []string{"is not Globus: nothing secret is sent there", `hint: "diaspora logout --local" deletes the tokens from this machine`} {
		if !strings.Contains(d.err.String(), says) {
			t.Errorf("logout does not say %q:\n%s", says, d.err.String())
		}
	}
	d.must(t, "logout", "--local")
	if loot := thief.Loot(); len(loot) > 0 {
		t.Errorf("the attacker has %q", loot)
	}
}
