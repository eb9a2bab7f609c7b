package doctor

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// TestNoTokenForStrangers has a gateway that the user has not confirmed, and then a confirmed one
// that sends clients to another host. Each check that would send a token there must report why it
// does not.
func TestNoTokenForStrangers(t *testing.T) {
	honest, evil := fabrictest.NewThief(t), fabrictest.NewThief(t, "localhost")
	_, port, _ := strings.Cut(evil.Gateway(), ":")
	honest.Leads("localhost:" + port)
	w := newWorld(t, fabric.Config{})
	d := w.fabric.Discovery()
	d.Brokers, d.Security, d.CA = []string{honest.Gateway()}, "tls", honest.CA
	d.Globus.Issuer = globus.DefaultIssuer
	honest.Says(d)
	w.login.Issuer = globus.DefaultIssuer
	w.vars["DIASPORA_CA_FILE"] = evil.CAFile
	w.cfg.Proxy = func(r *http.Request) (*url.URL, error) {
		if r.URL.Hostname() == "127.0.0.1" {
			return nil, nil
		}
		return url.Parse(honest.Proxy()) // instead of the real Globus
	}
	profiles := diaspora.OpenProfiles(w.vars["DIASPORA_CONFIG_DIR"])
	for _, c := range []struct {
		confirmed bool
		check     string
		says      string
	}{
		{false, "identity", "nobody has confirmed that its tokens may go to 127.0.0.1"},
		{false, "sign-in", "nobody has confirmed that its tokens may go to 127.0.0.1"},
		{true, "brokers", "localhost is not among the hosts that were confirmed"},
	} {
		w.store("https://"+honest.HTTPS(), d)
		testkit.Must(t, profiles.Save(diaspora.Profile{Name: "home", URL: "https://" + honest.HTTPS(), Discovery: d, Confirmed: c.confirmed}))
		_, findings := w.examine()
		if f := findings[c.check]; f.Status != Failure || !strings.Contains(f.Seen, c.says) || f.Next == "" {
			t.Errorf("%s: %+v, want a failure that says %q, and what to do", c.check, f, c.says)
		}
		if loot := len(honest.Loot()); (loot > 0) != c.confirmed {
			t.Errorf("confirmed: %v, and the gateway has %d tokens", c.confirmed, loot)
		}
	}
	if loot := evil.Loot(); len(loot) > 0 {
		t.Errorf("the other host has %q", loot)
	}
}
