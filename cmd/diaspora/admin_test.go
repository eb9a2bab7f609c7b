package main

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
	"github.com/diaspora-streams/diaspora/internal/inside"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// TestAdmin blocks and unblocks a person on the command line, as an operator.
func TestAdmin(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	login := fabrictest.Login(t, d.fabric, "grace@example.org")
	who := login.Identity.Subject
	ada := fabrictest.Login(t, d.fabric, "ada@example.edu")
	for _, step := range []struct {
		args string
		code int
		says string // on stdout or stderr
	}{
		{"admin blocked", 0, "nobody is blocked"},
		{"admin block", 2, "whoami --subject"},
		{"admin block " + who, 2, "--why"},
		{"admin block grace@example.org", 2, "--why"},
		{"admin block grace --why spam", 2, `"grace" is not a subject; give the subject, a UUID`},
		{"admin block grace@example.org --why spam", 2, "diaspora: grace@example.org is Grace Hopper, "},
		{"admin block grace@example.org --why spam", 2, "it is not confirmed that this is the right person, and there is no terminal to ask; nothing has changed\nhint: use --yes to skip this question\n"},
		{"admin block nobody@example.org --why spam --yes", 5, "nobody@example.org"},
		{"admin blocked", 0, "nobody is blocked"},
		{"admin block grace@example.org --why spam --yes", 0, "grace@example.org (" + who + ") has been blocked since "},
		{"admin unblock nobody@example.org", 5, "nobody@example.org"},
		{"admin unblock grace@example.org --yes", 2, "hint: omit it: this command does not ask for confirmation\n"},
		{"admin unblock grace@example.org", 0, "grace@example.org (" + who + ") is not blocked any more\n"},
		{"admin unblock " + who, 5, "hint: \"diaspora admin blocked\" lists who is blocked"},
		{"admin block " + who + " --why spam", 0, who + " has been blocked since "},
		{"admin block " + who + " --why loops", 0, "nothing has changed"},
		{"admin block " + who + " --why loops", 0, "\"diaspora admin unblock " + who + "\" takes this back\n"},
		{"admin block " + who + " --why loops", 0, "stand-in for Globus Auth: a person who has its secret can still log in"},
		{"admin blocked", 0, "\ngrace@example.org  " + who + "  "},
		{"admin blocked", 0, "  ada@example.edu  spam\n"},
		{"admin unblock " + who, 0, "not blocked any more"},
		{"admin blocked", 0, "nobody is blocked"},
		{"admin block " + ada.Identity.Subject + " --why oops", 6, "hint: with \"diaspora up\", the person who started it is the operator"},
	} {
		d.out.Reset()
		d.err.Reset()
		code := d.types(t.Context(), strings.Fields(step.args)...)
		if said := d.out.String() + d.err.String(); code != step.code || !strings.Contains(said, step.says) {
			t.Errorf("diaspora %s: exit code %d, want %d and %q:\n%s", step.args, code, step.code, step.says, said)
		}
	}
	for _, step := range [][2]string{
		{"topic claim weather", ""},
		{"topic claim weather --retention 2d", "a claim does not change them, but \"diaspora topic set weather\" does\n"},
	} {
		d.err.Reset()
		d.types(t.Context(), strings.Fields(step[0])...)
		if !strings.Contains(d.err.String(), step[1]) {
			t.Errorf("diaspora %s: %s, want all of the sentence", step[0], d.err.String())
		}
	}
	d.out.Reset()
	if code := d.types(t.Context(), "admin", "blocked", "-o", "json"); code != 0 {
		t.Errorf("exit code %d: %s", code, d.err.String())
	}
	var list diaspora.BlockedList
	if err := json.Unmarshal([]byte(d.out.String()), &list); err != nil || list.Blocked == nil {
		t.Errorf("the list as JSON is %s: %v", d.out.String(), err)
	}
}

// TestAdminAsSomebodyElse checks that a person who is not an operator learns which login was used, and which others
// there are.
func TestAdminAsSomebodyElse(t *testing.T) {
	t.Parallel()
	d := newDesk(t) // its profile "home" belongs to an operator
	profiles := diaspora.OpenProfiles(d.vars["DIASPORA_CONFIG_DIR"])
	login := fabrictest.Login(t, d.fabric, "grace@example.org")
	testkit.Must(t, storeLogin(profiles, "grace", d.fabric, login))
	testkit.Must(t, storeLogin(profiles, "again", d.fabric, login))
	const ada = "10000000-0000-4000-8000-00000000000a"
	try := func(want ...string) {
		t.Helper()
		for _, args := range [][]string{{"admin", "block", ada, "--why", "spam"}, {"admin", "block", "grace@example.org", "--why", "spam"}, {"admin", "unblock", "grace@example.org"}, {"admin", "unblock", ada}, {"admin", "blocked"}} {
			d.err.Reset()
			code := d.types(t.Context(), args...)
			for _, text := range append(want, "only operators of this fabric may do this") {
				if said := d.err.String(); code != 4 || !strings.Contains(said, text) || strings.Contains(said, "--profile again") || args[1] != "blocked" && strings.Contains(said, "list blocked") {
					t.Errorf("%v exits with %d and says %q, want %q", args, code, said, text)
				}
			}
		}
	}
	d.vars["DIASPORA_PROFILE"] = "grace"
	try("hint: you are grace@example.org (profile grace); to use another of your logins to this fabric: --profile home for ada@example.edu\n")
	if code := d.types(t.Context(), "admin", "blocked", "--profile", "home"); code != 0 {
		t.Errorf("with the profile of the hint, exit code %d: %s", code, d.err.String())
	}
	testkit.Must(t, profiles.Delete(t.Context(), "home"))
	try("hint: you are grace@example.org (profile grace); with \"diaspora up\", the only operator is the person who started it: ask that person\n")
	d.out.Reset()
	d.must(t, "token", "--refresh")
	d.vars["DIASPORA_URL"], d.vars["DIASPORA_REFRESH"] = d.fabric.URL(), strings.TrimSpace(d.out.String())
	delete(d.vars, "DIASPORA_PROFILE")
	try("hint: you are signed in with DIASPORA_REFRESH; use the login of an operator\n")
}

// TestNotOperatorOfAService checks that a person who is not an operator of a service with Globus learns of the setting
// that lists the operators.
func TestNotOperatorOfAService(t *testing.T) {
	t.Parallel()
	d := emptyDesk(t)
	cfg := diaspora.Config{URL: "https://diaspora.example.org", Identity: globus.Identity{Subject: "10000000-0000-4000-8000-00000000000a", Username: "ada@example.edu"}}
	cfg.Discovery = &diaspora.Discovery{Globus: diaspora.DiscoveryGlobus{Issuer: "https://auth.globus.org"}}
	_, hints := explanation(d.notOperator(cfg, diaspora.ErrPermission))
	if want := "ask those who run this fabric to add your subject 10000000-0000-4000-8000-00000000000a to the setting \"operators\""; len(hints) != 1 || !strings.Contains(hints[0], want) {
		t.Errorf("the hints are %q, want %q", hints, want)
	}
}

// TestAdminOfAStandIn checks that "admin block" of a subject says who that is, and refuses a subject that nobody has,
// if the stand-in for Globus Auth is there to be asked.
func TestAdminOfAStandIn(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	who := fabrictest.Login(t, d.fabric, "grace@example.org").Identity.Subject
	profiles := diaspora.OpenProfiles(d.vars["DIASPORA_CONFIG_DIR"])
	_, err := saveGlobusSecret(globusSecretFile(profiles, "home"), inside.Of(d.fabric).GlobusSecret)
	testkit.Must(t, err)
	const nobody = "10000000-0000-4000-8000-00000000000a"
	for _, step := range []struct {
		args string
		code int
		says string
	}{
		{"admin block " + nobody + " --why spam", 5, "diaspora: admin block: the stand-in for Globus Auth knows nobody with the subject " + nobody + "; nothing has changed\nhint: "},
		{"admin blocked", 0, "nobody is blocked"},
		{"admin block " + who + " --why spam", 0, "diaspora: " + who + " is Grace Hopper, "},
		{"admin block " + globusdev.ServiceClientID + " --why spam", 0, globusdev.ServiceClientID + " has been blocked since"},
		{"admin unblock " + who, 0, "not blocked any more"},
	} {
		d.out.Reset()
		d.err.Reset()
		code := d.types(t.Context(), strings.Fields(step.args)...)
		if said := d.out.String() + d.err.String(); code != step.code || !strings.Contains(said, step.says) || strings.Contains(said, "cannot check") {
			t.Errorf("diaspora %s: exit code %d, want %d and %q:\n%s", step.args, code, step.code, step.says, said)
		}
	}
}

// TestLoginWithoutToken checks that a login without a token for the fabric's service fails with an explanation, and
// stores no profile.
func TestLoginWithoutToken(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	discovery := d.fabric.Discovery()
	discovery.Globus.ResourceServer = "20000000-0000-4000-8000-000000000001"
	profiles := diaspora.OpenProfiles(filepath.Join(t.TempDir(), "config"))
	s := &session{env: d.env, profiles: profiles, profile: diaspora.Profile{Name: "other", URL: "https://diaspora.example.org", Discovery: discovery}}
	login := fabrictest.Login(t, d.fabric, "grace@example.org")
	err := s.finish(t.Context(), login)
	if err == nil || !strings.Contains(err.Error(), "Globus gave no token for this fabric's service") || exitCode(t.Context(), err) != 7 {
		t.Errorf("finish = %v, want an error about the fabric", err)
	}
	if _, err := profiles.Load("other"); err == nil {
		t.Error("the profile was stored")
	}
}

// TestBlockedPerson checks that commands tell a blocked person so, with the exit code for missing permission. The only
// hint is to ask the operators: logging in again, or creating another access key, does not help.
func TestBlockedPerson(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	profiles := diaspora.OpenProfiles(d.vars["DIASPORA_CONFIG_DIR"])
	login := fabrictest.Login(t, d.fabric, "grace@example.org")
	testkit.Must(t, storeLogin(profiles, "grace", d.fabric, login))
	keyFile := filepath.Join(t.TempDir(), "key.env")
	for _, args := range []string{"topic claim weather", "key create k --read --write --save-env " + keyFile, "produce weather --value x"} {
		d.vars["DIASPORA_PROFILE"] = "grace"
		if code := d.types(t.Context(), strings.Fields(args)...); code != 0 {
			t.Fatalf("diaspora %s: exit code %d: %s", args, code, d.err.String())
		}
	}
	d.vars["DIASPORA_PROFILE"] = "home"
	if code := d.types(t.Context(), "admin", "block", login.Identity.Subject, "--why", "spam"); code != 0 {
		t.Fatalf("exit code %d: %s", code, d.err.String())
	}
	delete(d.vars, "DIASPORA_PROFILE")
	// Test the key first. Its owner is not known on this machine yet, and the fabric does not tell a blocked person.
	for _, c := range []struct{ way, name, value string }{{"an access key", "DIASPORA_KEY_FILE", keyFile}, {"a login", "DIASPORA_PROFILE", "grace"}} {
		way := c.way
		d.vars[c.name] = c.value
		d.vars["DIASPORA_STATE_DIR"] = filepath.Join(t.TempDir(), "state")
		for args, want := range map[string]int{
			"produce weather --value x":            4,
			"produce weather --value x --no-spool": 4,
			"consume weather --from start -n 1":    4,
			"consume weather --group g -n 1":       4,
			"topic list":                           4,
			"admin blocked":                        4,
			"doctor":                               1,
		} {
			if way == "an access key" && (args == "topic list" || args == "admin blocked") {
				continue // they need a login
			}
			d.out.Reset()
			d.err.Reset()
			code := d.types(t.Context(), strings.Fields(args)...)
			said := d.out.String() + d.err.String()
			if code != want || !strings.Contains(said, "have blocked you") || strings.Count(said, "hint: ask the operators of this fabric; a new login or another key does not help") == 0 ||
				strings.Contains(said, "diaspora login") || strings.Contains(said, "another access key") || strings.Contains(said, "you are ") {
				t.Errorf("%s: diaspora %s: exit code %d, want %d and whom to ask:\n%s", way, args, code, want, said)
			}
		}
		d.out.Reset()
		d.must(t, "status")
		if !strings.Contains(d.out.String(), ": permission denied: the operators of this fabric have blocked you") || !strings.Contains(d.out.String(), "(noted by the last process, ") {
			t.Errorf("%s: status does not say why the events wait: %s\n%s", way, d.out.String(), d.err.String())
		}
		delete(d.vars, c.name)
	}
}
