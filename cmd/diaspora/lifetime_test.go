package main

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestWhoamiOffline checks that whoami says when a stored login expires, without a network and after the access token has
// expired.
func TestWhoamiOffline(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	testkit.Must(t, d.fabric.Close())
	for later, want := range map[time.Duration]string{
		0:              `(?m)^Access token:      expires 20\S+; renewed automatically\nRefresh token:     expires about 20\S+ if it is not used before \(last used 20\S+\)$`,
		49 * time.Hour: `(?m)^Access token:      expired 20\S+; renewed automatically\nRefresh token:     expires about 20`,
	} {
		d.now = func() time.Time { return time.Now().Add(later) }
		d.out.Reset()
		if code := d.types(t.Context(), "whoami"); code != 0 || !regexp.MustCompile(want).MatchString(d.out.String()) {
			t.Errorf("%v later, whoami exits with %d and prints\n%s", later, code, d.out.String())
		}
	}
}

// TestValidForWithoutRefreshToken checks that a login without a refresh token lasts as long as its access token.
func TestValidForWithoutRefreshToken(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	store, err := diaspora.OpenProfiles(d.vars["DIASPORA_CONFIG_DIR"]).Store("home")
	testkit.Must(t, err)
	login, err := store.Load()
	testkit.Must(t, err)
	for i := range login.Tokens {
		login.Tokens[i].RefreshToken = ""
	}
	testkit.Must(t, store.Save(t.Context(), login))
	d.must(t, "token", "--valid-for", "24h")
	if text := d.out.String(); strings.Contains(text, "renewed") {
		t.Errorf("it says that the token is renewed:\n%s", text)
	}
	code := d.types(t.Context(), "token", "--valid-for", "72h")
	const want = "there is no refresh token to renew it\nhint: run \"diaspora login\", which stores a refresh token\nhint: or use an access key"
	if text := d.err.String(); code != 3 || !strings.Contains(text, want) {
		t.Errorf("exit code %d:\n%s", code, text)
	}
}

// TestLifetime checks when the tokens of a login expire.
func TestLifetime(t *testing.T) {
	got := time.Date(2026, 8, 31, 12, 0, 0, 0, time.UTC)
	access := globus.Token{AccessToken: "a", Obtained: got, Expiry: got.Add(48 * time.Hour)}
	if l := lifetimeOf(access); l != (lifetime{AccessToken: access.Expiry}) {
		t.Errorf("without a refresh token: %+v", l)
	}
	access.RefreshToken = "r"
	if l := lifetimeOf(access); l.RefreshTokenUsed != got || l.RefreshToken != got.AddDate(0, 6, 0) {
		t.Errorf("with a refresh token: %+v", l)
	}
	access.Obtained = time.Time{}
	if l := lifetimeOf(access); !l.RefreshToken.IsZero() {
		t.Errorf("without a time: %+v", l)
	}
}

// TestLeftText: the rest of a minute is told, too.
func TestLeftText(t *testing.T) {
	t.Parallel()
	for left, want := range map[time.Duration]string{
		-time.Second: "0s", 10500 * time.Millisecond: "10s", time.Minute: "1m", 90 * time.Second: "1m", time.Hour: "1h0m",
		12*time.Hour - time.Second: "11h59m",
	} {
		if got := leftText(left); got != want {
			t.Errorf("leftText(%v) = %q, want %q", left, got, want)
		}
	}
}
