package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora"
)

// TestAdmin blocks somebody from the command line, as the operator of a fabric.
func TestAdmin(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	login, err := d.fabric.Login(t.Context(), "grace@example.org")
	if err != nil {
		t.Fatal(err)
	}
	who := login.Identity.Subject
	ada, err := d.fabric.Login(t.Context(), "ada@example.edu")
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		args string
		code int
		says string // on stdout or stderr
	}{
		{"admin blocked", 0, "nobody is blocked"},
		{"admin block", 2, "whoami --subject"},
		{"admin block " + who, 2, "--why"},
		{"admin block grace@example.org --why spam", 2, "a subject has only letters"},
		{"admin unblock " + who, 5, "not blocked"},
		{"admin block " + who + " --why spam", 0, who + " is blocked since "},
		{"admin block " + who + " --why loops", 0, "nothing has changed"},
		{"admin blocked", 0, "  spam"},
		{"admin unblock " + who, 0, "not blocked any more"},
		{"admin blocked", 0, "nobody is blocked"},
		{"admin block " + ada.Identity.Subject + " --why oops", 6, "operator"},
	} {
		d.out.reset()
		d.err.reset()
		code := d.types(t.Context(), strings.Fields(step.args)...)
		if said := d.out.String() + d.err.String(); code != step.code || !strings.Contains(said, step.says) {
			t.Errorf("diaspora %s: exit code %d, want %d and %q:\n%s", step.args, code, step.code, step.says, said)
		}
	}
	d.out.reset()
	if code := d.types(t.Context(), "admin", "blocked", "-o", "json"); code != 0 {
		t.Errorf("exit code %d: %s", code, d.err.String())
	}
	var list diaspora.BlockedList
	if err := json.Unmarshal([]byte(d.out.String()), &list); err != nil || list.Blocked == nil {
		t.Errorf("the list as JSON is %s: %v", d.out.String(), err)
	}
}
