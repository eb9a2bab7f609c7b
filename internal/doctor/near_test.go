package doctor

import (
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

func TestNear(t *testing.T) {
	names := []string{"alarms", "weather", "weather_2", "x1"}
	for name, want := range map[string]string{
		"wether": "weather", "weahter": "weather", "Weather": "weather", "weathers": "weather", "weather_3": "weather_2",
		"alarm": "alarms", "x2": "x1", "snow": "", "w": "", "": "",
	} {
		if got := Near(name, names); got != want {
			t.Errorf("Near(%q) = %q, want %q", name, got, want)
		}
	}
}

// TestStanding checks what is known of topics that the caller owns, that others own, and that nobody owns.
func TestStanding(t *testing.T) {
	t.Parallel()
	f := fabrictest.Start(t, fabric.Config{})
	ada, grace := fabrictest.As(t, f, "ada@example.edu"), fabrictest.As(t, f, "grace@example.org")
	owner, caller := fabrictest.Client(t, grace), fabrictest.Client(t, ada)
	for _, name := range []string{"hers", "shared", "public"} {
		fabrictest.Claim(t, grace, name)
	}
	fabrictest.Claim(t, ada, "mine")
	fabrictest.Claim(t, ada, "released")
	share := func(name string, req diaspora.GrantRequest) {
		t.Helper()
		_, err := owner.Share(t.Context(), name, req)
		testkit.Must(t, err)
	}
	share("shared", diaspora.GrantRequest{Subject: ada.Identity.Subject, Read: true})
	share("public", diaspora.GrantRequest{Public: true, Read: true})
	_, err := caller.Retire(t.Context(), "released")
	testkit.Must(t, err)
	for name, want := range map[string]string{
		"nobodys": "free", "mime": "free, near mine", "share": "free, near shared", "her": "free", // not the name of a topic that the caller cannot see
		"hers": "foreign", "shared": "shared, may read", "public": "shared, may read", "mine": "own, may read write manage", "released": "own, released",
	} {
		s := AskStanding(t.Context(), caller, name)
		got := map[bool]string{s.Free: "free", s.Foreign: "foreign", s.Own: "own", s.Shared: "shared"}[true]
		if s.Near != "" {
			got += ", near " + s.Near
		}
		if !s.Topic.Released.IsZero() {
			got += ", released"
		}
		may := ""
		for _, right := range []string{"read", "write", "manage"} {
			if s.May(right) {
				may += " " + right
			}
		}
		if may != "" {
			got += ", may" + may
		}
		if got != want {
			t.Errorf("AskStanding(%q): %s, want %s", name, got, want)
		}
	}
	s := AskStanding(t.Context(), caller, "shared")
	for right, flags := range map[string]string{"write": "--read --write", "read": "--read", "manage": "--manage"} {
		if got := s.AskOwner("shared", ada.Identity, right); !strings.HasSuffix(got, ": diaspora topic share shared --with ada@example.edu "+flags) {
			t.Errorf("AskOwner(%s) = %q, want it to end with %s", right, got, flags)
		}
	}
	testkit.Must(t, f.Close())
	if got := AskStanding(t.Context(), caller, "hers"); got != (Standing{}) {
		t.Errorf("without an answer: %+v, want nothing", got)
	}
}

// TestReader checks that nothing is broken for somebody with whom a topic is shared to read, and that a topic of one's
// own is preferred for the test event, even if others share one called doctor.
func TestReader(t *testing.T) {
	t.Parallel()
	w := newWorld(t, fabric.Config{})
	w.cfg.Topic = ""
	grace := fabrictest.As(t, w.fabric, "grace@example.org")
	for _, name := range []string{EchoTopic, "aerosols"} {
		fabrictest.Claim(t, grace, name)
		_, err := fabrictest.Client(t, grace).Share(t.Context(), name, diaspora.GrantRequest{Subject: w.login.Identity.Subject, Read: true})
		testkit.Must(t, err)
	}
	if _, findings := w.examine(); !strings.HasSuffix(findings["topics"].Seen, "; weather is tried") || findings["topics"].Status != OK {
		t.Errorf("topics: %+v, want weather, the caller's own", findings["topics"])
	}
	w.release()
	report, findings := w.examine()
	if report.Count(Failure) > 0 {
		t.Errorf("a reader's report has failures: %+v", findings)
	}
	if f := findings["write"]; f.Status != NotTried || !strings.Contains(f.Seen, "aerosols is shared with you, but not to write; if you need that, ask its owner") {
		t.Errorf("write: %+v", f)
	}
	if f := findings["read"]; f.Status != OK {
		t.Errorf("read: %+v", f)
	}
}
