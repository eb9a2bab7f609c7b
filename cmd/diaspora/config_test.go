package main

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestProfileBesideACredential checks the warning if a credential in the environment is used in spite of --profile.
// Without the warning, a user who tests the permissions of another login would unknowingly test those of the credential.
func TestProfileBesideACredential(t *testing.T) {
	d := newDesk(t)
	d.must(t, "topic", "claim", "weather")
	key := filepath.Join(t.TempDir(), "key.env")
	d.must(t, "key", "create", "k", "--save-env", key)
	d.err.Reset()
	d.must(t, "consume", "weather", "--from", "start", "--exit", "--profile", "home")
	if strings.Contains(d.err.String(), "sign in") {
		t.Errorf("without a credential it says %q", d.err.String())
	}
	d.vars["DIASPORA_KEY_FILE"] = key
	d.err.Reset()
	d.must(t, "consume", "weather", "--from", "start", "--exit", "--profile", "home")
	if want := "diaspora: DIASPORA_KEY_FILE is set and is used to sign in; --profile home only chooses the fabric\n"; strings.Count(d.err.String(), want) != 1 {
		t.Errorf("it says %q, want %q once", d.err.String(), want)
	}
}
