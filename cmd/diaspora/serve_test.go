package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/outcome"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
	"github.com/diaspora-streams/diaspora/internal/inside"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestServeWithoutKafka checks that serve says at which address Kafka does not answer, and that --check says which
// checks it had to skip.
func TestServeWithoutKafka(t *testing.T) {
	d := newDesk(t)
	secret, err := inside.Of(d.fabric).Globus.ClientSecret(globusdev.ResourceServerID)
	testkit.Must(t, err)
	dir := t.TempDir()
	secretFile := filepath.Join(dir, "globus-secret")
	testkit.Must(t, os.WriteFile(secretFile, []byte(secret.Reveal()), 0o600))
	settings := filepath.Join(dir, "serve.toml")
	testkit.Must(t, os.WriteFile(settings, []byte(`kafka-username = "diaspora"`), 0o600))
	testkit.Must(t, os.Chmod(settings, 0o666))
	serve := []string{
		"serve", "acl", "--config", settings, "--public-url", "http://127.0.0.1:1", "--acl-listen", "127.0.0.1:0", "--acl-bootstrap", "127.0.0.1:2",
		"--token-key-file", filepath.Join(dir, "token-key.pem"), "--kafka-brokers", "127.0.0.1:3",
		"--globus-issuer", d.fabric.GlobusURL(), "--globus-client-id", globusdev.ResourceServerID, "--globus-client-secret-file", secretFile,
		"--globus-scope", globusdev.Scope, "--globus-login-client-id", globusdev.NativeClientID,
	}
	code := d.types(t.Context(), serve...)
	said := d.err.String()
	if code != outcome.ExitCode(diaspora.ErrUnavailable) || !strings.Contains(said, "diaspora: serve: Kafka does not answer at 127.0.0.1:3: ") || !strings.Contains(said, "\nhint: start Kafka first, and then this command again\n") {
		t.Errorf("serve exits with %d, and says:\n%s", code, said)
	}

	if !strings.Contains(said, "can change "+settings) {
		t.Errorf("serve does not warn of the file that everybody can change:\n%s", said)
	}

	d.err.Reset()
	code = d.types(t.Context(), append(serve, "--check")...)
	found, said := d.out.String(), d.err.String()
	for _, want := range []string{
		"fail  settings file: every user of this host can change " + settings, "\n      chmod 640 " + settings + "\n",
		"\nok    Globus Auth: ", "\nwarn  gateway-kafka-username: ",
		"\nfail  Kafka: ", "\n      cannot connect: check that Kafka is running and that this is its port\n",
		"\nskip  authorizer: not tried", "\nskip  brokers: not tried", "\nskip  ledger: not tried",
	} {
		if !strings.Contains(found, want) {
			t.Errorf("the check does not say %q:\n%s", want, found)
		}
	}
	if want := "found something to change; 3 warnings; 3 could not be tried\n"; code != outcome.ExitCode(diaspora.ErrInvalid) || !strings.Contains(said, want) {
		t.Errorf("the check exits with %d and says %q, want %q", code, said, want)
	}
	if strings.Contains(found+said, secret.Reveal()) {
		t.Error("a secret is shown")
	}
}

// TestServeRefusedSecret checks that serve does not start, and creates no file, if Globus Auth does not accept its secret.
func TestServeRefusedSecret(t *testing.T) {
	d := newOperatorsDesk(t)
	d.givenSecret(t, d.secret)
	d.must(t, d.line()...)
	d.givenSecret(t, "another secret")
	before := d.files(t)
	code := d.types(t.Context(), "serve", "acl", "--config", d.file("serve.toml"))
	if said := d.err.String(); code != 3 || !strings.Contains(said, "the credentials of this service are rejected by Globus Auth at ") || strings.Contains(said, "another secret") {
		t.Errorf("serve exits with %d, and says:\n%s", code, said)
	}
	if after := d.files(t); !slices.Equal(before, after) {
		t.Errorf("it has made %q", after)
	}
}
