package claims

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// operatedBy makes subjects the operators.
func operatedBy(subjects ...string) func(*Config) {
	return func(cfg *Config) { cfg.Admission = Admission{Operators: subjects, Contact: "help@example.org"} }
}

// TestBlock checks that a block applies to every replica, including those that start later, and
// that the ledger says who blocked whom, when and why.
func TestBlock(t *testing.T) {
	c := newCluster(t)
	s, other := c.open(operatedBy(cleo)), c.open(operatedBy(cleo))
	mustClaim(t, s, "weather")
	// An operator finds out whose a topic is, and may do nothing else with it.
	if got, err := other.Topic(t.Context(), cleo, "weather"); err != nil || got.Owner != ada {
		t.Errorf("Topic for an operator = %+v, %v; want the owner %s", got, err, ada)
	}
	if err := other.Release(t.Context(), cleo, "weather"); !errors.Is(err, diaspora.ErrPermission) {
		t.Errorf("Release by an operator = %v, want ErrPermission", err)
	}
	key, err := s.IssueKey(t.Context(), ada, diaspora.AccessKeyRequest{Name: "laptop", Read: true, Write: true})
	testkit.Must(t, err)
	person := globus.Identity{Subject: ada, Username: "ada@example.edu"}
	check := func(what string, s *Service, blocked bool) {
		t.Helper()
		if err := s.Ready(t.Context()); err != nil { // now it has read the block
			t.Fatal(err)
		}
		_, withSecret := s.AuthenticateKey(t.Context(), key.ID, key.Secret)
		_, active := s.ActiveKey(t.Context(), key.ID)
		for way, err := range map[string]error{"person": s.Admit(person), "key": withSecret, "token of a key": active} {
			var refused *globus.RefusedError
			switch {
			case !blocked && err != nil:
				t.Errorf("%s: %s: %v, want nil", what, way, err)
			case blocked && (!errors.As(err, &refused) || !strings.Contains(refused.Hint, "help@example.org") || strings.Contains(refused.Reason, "spam")):
				t.Errorf("%s: %s: %v, want a refusal that names whom to ask, and not why", what, way, err)
			}
		}
		if err := s.Admit(globus.Identity{Subject: ben}); err != nil {
			t.Errorf("%s: somebody else: %v", what, err)
		}
	}
	check("before", s, false)
	before := time.Now()
	if _, err := s.Block(t.Context(), cleo, diaspora.BlockRequest{Subject: ada, Why: "spam"}); err != nil {
		t.Fatal(err)
	}
	check("here", s, true)
	check("another replica", other, true)
	check("one that starts later", c.open(operatedBy(cleo)), true)
	// The record that was being written is decided by its position in the ledger, which is after
	// the block.
	if _, err := other.Claim(t.Context(), ada, diaspora.ClaimRequest{Name: "late"}); !errors.Is(err, diaspora.ErrPermission) {
		t.Errorf("a claim by somebody who is blocked: %v, want ErrPermission", err)
	}
	for name, s := range map[string]*Service{"here": s, "another replica": other} { // blocks the same subject again
		got, err := s.Block(t.Context(), cleo, diaspora.BlockRequest{Subject: ada, Why: "another reason"})
		if err != nil || got.Why != "spam" || got.By != cleo || got.Since.Before(before.Truncate(time.Second)) {
			t.Errorf("%s: a second Block = %+v, %v, want the first one", name, got, err)
		}
	}
	testkit.Must(t, other.Unblock(t.Context(), cleo, ada))
	check("unblocked here", other, false)
	check("unblocked elsewhere", s, false)

	var acts []string
	for _, value := range c.ledger() {
		var r record
		testkit.Must(t, json.Unmarshal(value, &r))
		if r.Op == opBlock || r.Op == opUnblock {
			acts = append(acts, r.Op+" "+r.Subject+" by "+r.By+": "+r.Why)
			if r.Time.Before(before) || r.key() != "subject/"+ada {
				t.Errorf("the record %s has the time %v and the key %s", value, r.Time, r.key())
			}
		}
	}
	if want := []string{"block " + ada + " by " + cleo + ": spam", "unblock " + ada + " by " + cleo + ": "}; !slices.Equal(acts, want) {
		t.Errorf("the ledger has %q, want %q", acts, want)
	}
}

func TestAdmissionRefused(t *testing.T) {
	for name, a := range map[string]Admission{
		"operator by username": {Operators: []string{"ada@example.edu"}},
		"everybody":            {Operators: []string{"*"}},
		"domain with an @":     {Domains: []string{"@example.edu"}},
		"pattern":              {Domains: []string{"*.example.edu"}},
		"no domain":            {Domains: []string{""}},
		"subject by username":  {Subjects: []string{"ada@example.edu"}},
		"contact on two lines": {Contact: "a\nb"},
	} {
		if err := a.Validate(); err == nil {
			t.Errorf("%s: Validate = nil", name)
		}
	}
}

// TestAllow checks who is admitted by which lists, with a login and with a key.
func TestAllow(t *testing.T) {
	for name, tt := range map[string]struct {
		lists    Admission
		username string
		login    bool
		key      bool
	}{
		"no lists":                      {Admission{}, "ada@example.edu", true, true},
		"domain":                        {Admission{Domains: []string{"example.org", "example.edu"}}, "ada@example.edu", true, true},
		"domain in capitals":            {Admission{Domains: []string{"Example.EDU"}}, "ada@example.edu", true, true},
		"another domain":                {Admission{Domains: []string{"example.org"}}, "ada@example.edu", false, true},
		"a domain below it":             {Admission{Domains: []string{"example.edu"}}, "ada@sub.example.edu", false, true},
		"a domain that ends alike":      {Admission{Domains: []string{"example.edu"}}, "ada@badexample.edu", false, true},
		"two @, the last one counts":    {Admission{Domains: []string{"example.edu"}}, "ada@example.edu@accounts.google.com", false, true},
		"two @, the last one is listed": {Admission{Domains: []string{"accounts.google.com"}}, "ada@example.edu@accounts.google.com", true, true},
		"no domain":                     {Admission{Domains: []string{"example.edu"}}, "example.edu", false, true},
		"no username":                   {Admission{Domains: []string{"example.edu"}}, "", false, true},
		"subject":                       {Admission{Subjects: []string{ben, ada}}, "ada@example.edu", true, true},
		"another subject":               {Admission{Subjects: []string{ben}}, "ada@example.edu", false, false},
		"subject of another domain":     {Admission{Domains: []string{"example.org"}, Subjects: []string{ada}}, "ada@example.edu", true, true},
		"an operator":                   {Admission{Domains: []string{"example.org"}, Operators: []string{ada}}, "ada@example.edu", true, true},
		"an operator, subjects":         {Admission{Subjects: []string{ben}, Operators: []string{ada}}, "ada@example.edu", true, true},
	} {
		if err := tt.lists.Validate(); err != nil {
			t.Errorf("%s: Validate = %v", name, err)
		}
		tt.lists.Contact = "help@example.org"
		s := &ledgerReader{ledger: &ledger{state: newState()}, admission: tt.lists}
		for way, got := range map[string]struct {
			err  error
			want bool
		}{
			"login": {s.Admit(globus.Identity{Subject: ada, Username: tt.username}), tt.login},
			"key":   {s.admitOwner(ada), tt.key},
		} {
			refused := (*globus.RefusedError)(nil)
			if got.want != (got.err == nil) || got.err != nil && (!errors.As(got.err, &refused) || !strings.Contains(refused.Hint, "help@example.org")) {
				t.Errorf("%s: %s: %v, want it admitted: %v, or a refusal that names whom to ask", name, way, got.err, got.want)
			}
		}
	}
}

// TestCheckPerson: a subject that no person can have is refused, and the message says what it is
// instead. The message does not repeat text that may be a token, because others may read it.
func TestCheckPerson(t *testing.T) {
	const secretText = "dev-at-0123456789abcdefghijklmnopqrst"
	for subject, want := range map[string]string{
		"1168fe43-ef48-54e0-8aeb-e0dc24146888": "",
		"1168FE43-EF48-54E0-8AEB-E0DC24146888": "lower case",
		"ada@example.edu":                      "is a username",
		"mary":                                 "is not a subject",
		"":                                     "is not a subject",
		secretText:                             "is not a subject",
		secretText + "@example.edu":            "is a username",
		"group:" + secretText:                  "is not a subject",
	} {
		if got := fmt.Sprint(CheckPerson(subject)); (got == "<nil>") != (want == "") || !strings.Contains(got, want) || strings.Contains(got, secretText) {
			t.Errorf("CheckPerson(%q) = %q, want %q in it, and no token", subject, got, want)
		}
	}
}
