package trust

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// table is testdata/table.json, which the Python tests use too.
type table struct {
	Cases []struct {
		Name   string
		Fabric struct {
			URL         string
			Brokers     []string
			Issuer      string
			Scope       string
			NamedIssuer string `json:"named_issuer"`
			Named       []string
			Confirmed   bool
			Profile     string
		}
		Login string
		Hosts []struct {
			To     string
			Scopes []string
			Says   string
		}
	}
	Scopes map[string]string
}

func readTable(t *testing.T) (all table) {
	t.Helper()
	data := testkit.ReadFile(t, "testdata/table.json")
	testkit.Must(t, json.Unmarshal(data, &all))
	delete(all.Scopes, "about")
	return all
}

// wrong compares an error with a verdict and returns what is wrong. The verdict "" means no error;
// any other is a part of the error's text.
func wrong(err error, says string) string {
	untrusted := (*Error)(nil)
	switch {
	case says == "" && err == nil:
		return ""
	case says == "" || err == nil || !strings.Contains(err.Error(), says):
		return fmt.Sprintf("%v, want %q", err, says)
	case !errors.Is(err, ErrUntrusted) || !errors.As(err, &untrusted) || untrusted.Hint == "":
		return fmt.Sprintf("%#v, want an *Error that says what to do", err)
	case untrusted.Unconfirmed != (strings.Contains(untrusted.Reason, "names no host") || strings.Contains(untrusted.Reason, "were confirmed")):
		return fmt.Sprintf("%v says that the user can tell: %v", err, untrusted.Unconfirmed)
	}
	return ""
}

// TestTable checks all combinations of where a fabric is and what it says.
func TestTable(t *testing.T) {
	all := readTable(t)
	for _, c := range all.Cases {
		f := Fabric(c.Fabric)
		if w := wrong(f.CheckLogin(), c.Login); w != "" {
			t.Errorf("%s: CheckLogin() = %s", c.Name, w)
		}
		for _, h := range c.Hosts {
			if w := wrong(f.CheckHost(h.To, h.Scopes), h.Says); w != "" {
				t.Errorf("%s: CheckHost(%q, %q) = %s", c.Name, h.To, h.Scopes, w)
			}
		}
	}
	elsewhere := Fabric{URL: "https://diaspora.example.org", Brokers: []string{"kafka.example.org:9092"}}
	for scope, says := range all.Scopes {
		elsewhere.Scope = scope
		for what, err := range map[string]error{
			"CheckLogin": elsewhere.CheckLogin(), "Check": elsewhere.Check(), "CheckHost": elsewhere.CheckHost("kafka.example.org", []string{scope}),
		} {
			if w := wrong(err, says); w != "" {
				t.Errorf("%s, scope %q: %s", what, scope, w)
			}
		}
	}
	if len(all.Cases) < 10 || len(all.Scopes) < 20 {
		t.Fatalf("the table has %d cases and %d scopes", len(all.Cases), len(all.Scopes))
	}
}

// TestCheck checks all hosts of a fabric together, as a login does.
func TestCheck(t *testing.T) {
	const byHost, byAPI = "https://auth.globus.org/scopes/example.org/all", "https://auth.globus.org/scopes/d1a590a0-0000-4000-8000-0000000000a1/all"
	for name, try := range map[string]struct {
		fabric Fabric
		says   string
	}{
		"below the host":      {Fabric{URL: "https://diaspora.example.org", Brokers: []string{"kafka.example.org:9092"}, Scope: byHost}, ""},
		"an endpoint outside": {Fabric{URL: "https://example.com", Brokers: []string{"kafka.example.org:9092"}, Scope: byHost}, "example.com is not below"},
		"one broker outside":  {Fabric{URL: "https://example.org", Brokers: []string{"a.example.org:1", "b.example.com:1"}, Scope: byHost}, "b.example.com is not below"},
		"by its API":          {Fabric{URL: "https://example.org", Brokers: []string{"a.example.org:1"}, Scope: byAPI}, "names no host"},
		"on this machine":     {Fabric{URL: "http://localhost:1", Brokers: []string{"127.0.0.1:1"}, Issuer: "http://[::1]:1", Scope: byAPI}, ""},
		"without a URL":       {Fabric{Scope: byHost}, "is not below"},
		"with half a URL":     {Fabric{URL: "https://%zz", Scope: byHost}, "is not below"},
	} {
		if w := wrong(try.fabric.Check(), try.says); w != "" {
			t.Errorf("%s: Check() = %s", name, w)
		}
	}
}

// TestOtherProfiles compares a fabric that is to be confirmed with stored ones.
func TestOtherProfiles(t *testing.T) {
	const scope, other = "https://auth.globus.org/scopes/d1a590a0-0000-4000-8000-0000000000a1/", "https://auth.globus.org/scopes/d1a590a0-0000-4000-8000-0000000000a2/all"
	stored := Fabric{URL: "https://diaspora.example.org", Brokers: []string{"a.example.org:9092", "b.example.org:9092"}, Issuer: globus.DefaultIssuer, Scope: scope + "all", Confirmed: true}
	with := func(f Fabric, change func(*Fabric)) Fabric { change(&f); return f }
	for name, try := range map[string]struct {
		asked, stored       Fabric
		agrees, contradicts bool
	}{
		"the same":            {stored, stored, true, false},
		"another scope of it": {with(stored, func(f *Fabric) { f.Scope = scope + "other" }), stored, true, false},
		"fewer brokers":       {with(stored, func(f *Fabric) { f.Brokers = f.Brokers[:1] }), stored, true, false},
		"another port":        {with(stored, func(f *Fabric) { f.Brokers = []string{"A.example.org:1"} }), stored, true, false},
		"more brokers":        {with(stored, func(f *Fabric) { f.Brokers = append(slices.Clone(f.Brokers), "c.example.org:9092") }), stored, false, false},
		"another endpoint":    {with(stored, func(f *Fabric) { f.URL = "https://evil.example.com" }), stored, false, true},
		"at a broker's host":  {with(stored, func(f *Fabric) { f.URL = "https://a.example.org" }), stored, true, false},
		"another API":         {with(stored, func(f *Fabric) { f.URL, f.Scope = "https://evil.example.com", other }), stored, false, false},
		"another Globus Auth": {with(stored, func(f *Fabric) { f.Issuer = "https://auth.preview.globus.org" }), stored, false, false},
		"stored before":       {stored, with(stored, func(f *Fabric) { f.Confirmed = false }), false, false},
		"stored elsewhere":    {stored, with(stored, func(f *Fabric) { f.URL, f.Confirmed = "https://evil.example.com", false }), false, true},
		"stored, of no scope": {stored, with(stored, func(f *Fabric) { f.URL, f.Scope = "https://evil.example.com", "" }), false, false},
		"stored, on this machine": {stored, with(stored, func(f *Fabric) {
			f.URL, f.Brokers, f.Issuer = "http://127.0.0.1:1", []string{"127.0.0.1:1"}, "http://127.0.0.1:2"
		}), false, false},
	} {
		if got := try.asked.Agrees(try.stored); got != try.agrees {
			t.Errorf("%s: Agrees = %v, want %v", name, got, try.agrees)
		}
		if got := try.asked.Contradicts(try.stored); got != try.contradicts {
			t.Errorf("%s: Contradicts = %v, want %v", name, got, try.contradicts)
		}
	}
}

type source struct {
	token   globus.Token
	asked   int
	refused globus.Secret
	settled bool
}

func (s *source) Token(context.Context) (globus.Token, error) { s.asked++; return s.token, nil }
func (s *source) Refused(access globus.Secret)                { s.refused = access }
func (s *source) Settle()                                     { s.settled = true }

// TestToken checks that a token is sent only where it is allowed, and that none is requested where
// no secret may be sent.
func TestToken(t *testing.T) {
	const scope = "https://auth.globus.org/scopes/example.org/all"
	fabric := Fabric{URL: "https://example.org", Brokers: []string{"kafka.example.org:9092"}, Scope: scope}
	tokens := &source{token: globus.Token{AccessToken: "secret", Scope: []string{scope}}}
	guarded := Guard(tokens, fabric)
	for name, try := range map[string]struct {
		source  globus.TokenSource
		address string
		named   []string
		says    string
	}{
		"where it belongs":     {guarded, "kafka.example.org:9092", nil, ""},
		"elsewhere":            {guarded, "evil.example.com:9092", nil, "is not below"},
		"where the user says":  {guarded, "192.0.2.1:9092", []string{"192.0.2.1:9093"}, ""},
		"the program's own":    {tokens, "evil.example.com:9092", nil, ""},
		"a Globus Auth of own": {Guard(tokens, Fabric{URL: fabric.URL, Scope: scope, Issuer: "https://evil.example.com"}), "example.org", nil, "is not Globus"},
	} {
		tokens.asked = 0
		token, err := Token(t.Context(), try.source, try.address, try.named)
		if w := wrong(err, try.says); w != "" || (token.AccessToken == "secret") != (try.says == "") {
			t.Errorf("%s: Token = %v", name, w)
		}
		if strings.Contains(try.says, "Globus") != (tokens.asked == 0) {
			t.Errorf("%s: the source was asked %d times", name, tokens.asked)
		}
	}
	guarded.Refused("secret")
	guarded.Settle()
	if tokens.refused != "secret" || !tokens.settled {
		t.Error("what a Source is told does not reach the source below it")
	}
	if len(fabric.Named) != 0 || len(guarded.Fabric().Named) != 0 {
		t.Error("what was named for one address holds for all")
	}
}

// TestGuardLater checks a Source that does not know its fabric until the first token.
func TestGuardLater(t *testing.T) {
	const scope = "https://auth.globus.org/scopes/example.org/all"
	tokens, fails, asked := new(source), errors.New("not reached"), 0
	s := GuardLater(func(context.Context) (globus.TokenSource, Fabric, error) {
		asked++
		return tokens, Fabric{URL: "https://example.org", Scope: scope}, fails
	})
	s.Refused("too early") // must not panic
	Settle(t.Context(), s)
	if _, err := s.Token(t.Context()); err != fails || s.Fabric().Scope != "" {
		t.Errorf("Token = %v with fabric %+v, want the error and none", err, s.Fabric())
	}
	fails = nil
	for range 2 {
		if _, err := s.Token(t.Context()); err != nil || s.Fabric().Scope != scope {
			t.Errorf("Token = %v with fabric %+v", err, s.Fabric())
		}
	}
	if asked != 2 || tokens.asked != 2 {
		t.Errorf("the fabric was asked %d times and the source %d times, want 2 and 2", asked, tokens.asked)
	}
	s.Refused("bad")
	Settle(t.Context(), s)
	if tokens.refused != "bad" || !tokens.settled {
		t.Error("what a Source is told does not reach the source below it")
	}
}

// FuzzHost searches for an address and a scope for which a token is sent although the host does not
// belong to the scope's owner.
func FuzzHost(f *testing.F) {
	f.Add("kafka.example.org:9092", "https://auth.globus.org/scopes/example.org/all")
	f.Add("[::1]:1", "https://auth.globus.org/scopes/d1a590a0-0000-4000-8000-0000000000a1/all")
	f.Add("example.org.", "urn:globus:auth:scope:groups.api.globus.org:all")
	f.Fuzz(func(t *testing.T, address, scope string) {
		fabric := Fabric{URL: "https://" + address, Scope: scope}
		if fabric.CheckHost(address, []string{scope}) != nil {
			return
		}
		name, verified, err := owner(scope)
		host := hostOf(address)
		if err != nil || !verified || !strings.HasSuffix("."+host, "."+name) || strings.HasSuffix("."+host, ".globus.org") {
			t.Errorf("a token with the scope %q may go to %q", scope, address)
		}
	})
}
