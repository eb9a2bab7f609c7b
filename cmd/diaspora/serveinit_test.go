package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/front"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
	"github.com/diaspora-streams/diaspora/internal/inside"
	"github.com/diaspora-streams/diaspora/internal/outcome"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// operatorsDesk is the desk of an operator whose Globus is that of a fabric. ada administers the project of the service.
type operatorsDesk struct {
	*desk
	dir    string // for serve.toml
	secret string // of the service's client
	as     string // who logs in
}

func newOperatorsDesk(t *testing.T) *operatorsDesk {
	t.Helper()
	d := &operatorsDesk{desk: emptyDesk(t), dir: t.TempDir(), as: "ada@example.edu"}
	d.fabric = fabrictest.Start(t, fabric.Config{})
	secret, err := inside.Of(d.fabric).Globus.ClientSecret(globusdev.ResourceServerID)
	testkit.Must(t, err)
	d.secret = secret.Reveal()
	d.vars["DISPLAY"] = ":0"
	d.env.browser = func(address string) error {
		_, err := visitLogin(address, d.as, inside.Of(d.fabric).GlobusSecret)
		return err
	}
	return d
}

// files returns the names and contents of the files in the folder.
func (d *operatorsDesk) files(t *testing.T) (all []string) {
	t.Helper()
	testkit.Must(t, filepath.WalkDir(d.dir, func(path string, entry os.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			all = append(all, strings.TrimPrefix(path, d.dir+"/")+": "+string(testkit.ReadFile(t, path)))
		}
		return err
	}))
	return all
}

func (d *operatorsDesk) file(name string) string { return filepath.Join(d.dir, name) }

// line is the command line of an init with all flags. Each of more is a flag and its value, and replaces a flag of the same name;
// the value "" removes it.
func (d *operatorsDesk) line(more ...string) []string {
	flags := map[string]string{
		"--config": d.file("serve.toml"), "--public-url": "http://127.0.0.1:1", "--globus-issuer": d.fabric.GlobusURL(),
		"--globus-client-id": globusdev.ResourceServerID, "--globus-login-client-id": globusdev.NativeClientID,
		"--globus-client-secret-file": d.file("globus-secret"), "--kafka-brokers": "127.0.0.1:2",
	}
	for i := 0; i < len(more); i += 2 {
		flags[more[i]] = more[i+1]
	}
	line := []string{"serve", "init"}
	for name, value := range flags {
		if value != "" {
			line = append(line, name, value)
		}
	}
	return line
}

// givenSecret creates the file with the client secret.
func (d *operatorsDesk) givenSecret(t *testing.T, secret string) {
	t.Helper()
	testkit.Must(t, os.WriteFile(d.file("globus-secret"), []byte(secret+"\n"), 0o600))
}

// TestServeInit rehearses how docs/one-server.md and docs/operate.md set up a service: init with flags, serve --check, serve, and a login. The cluster is
// an imitation of Apache Kafka.
func TestServeInit(t *testing.T) {
	d := newOperatorsDesk(t)
	d.givenSecret(t, d.secret)
	testkit.Must(t, os.WriteFile(d.file("kafka-password"), []byte("of the super user"), 0o600))
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.EnableSASL(), kfake.EnableACLs(), kfake.Superuser("PLAIN", "diaspora", "of the super user"))
	testkit.Must(t, err)
	defer cluster.Close()
	url := "http://" + testkit.FreeAddress(t)
	d.must(t, append(d.line("--public-url", url, "--kafka-brokers", cluster.ListenAddrs()[0], "--max-topics", "7"), "-o", "json")...)
	var made initDocument
	testkit.Must(t, json.Unmarshal([]byte(d.out.String()), &made))
	scope := globus.ScopeOf(globusdev.ResourceServerID, "logging")
	next := []string{"diaspora serve --check --config " + d.file("serve.toml"), "diaspora serve --config " + d.file("serve.toml"), "diaspora login " + url}
	ada, err := inside.Of(d.fabric).Globus.Subject("ada@example.edu")
	testkit.Must(t, err)
	if made.Config != d.file("serve.toml") || made.Scope != scope || !slices.Equal(made.Operators, []string{ada}) || !slices.Equal(made.Next, next) || !slices.Equal(made.Secrets, []string{d.file("gateway-kafka-password")}) {
		t.Errorf("init prints %+v", made)
	}
	text := string(testkit.ReadFile(t, d.file("serve.toml")))
	for _, want := range []string{
		"\n# The registration at Globus; see docs/operate.md.\n", "\nglobus-scope = \"" + scope + "\" # ", "\noperators = [\"" + ada + "\"]\n", "\nmax-topics = 7\n",
		"\n# trusted-proxies = [\"10.0.0.0/24\"]\n", "\nacl-bootstrap = [\"127.0.0.1:9092\"]\n", "\nkafka-brokers = [\"" + cluster.ListenAddrs()[0] + "\"]\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the file does not have %q:\n%s", want, text)
		}
	}
	password := string(testkit.ReadFile(t, d.file("gateway-kafka-password")))
	for _, secret := range []string{d.secret, strings.TrimSpace(password), "of the super user", "dev-at-"} {
		if strings.Contains(text+d.out.String()+d.err.String(), secret) || len(secret) < 7 {
			t.Errorf("the secret %q is shown", secret)
		}
	}
	for name, mode := range map[string]os.FileMode{"serve.toml": 0o640, "gateway-kafka-password": 0o600} {
		if info, err := os.Stat(d.file(name)); err != nil || info.Mode() != mode {
			t.Errorf("%s has mode %v, %v", name, info.Mode(), err)
		}
	}
	d.noTokenLeft(t)

	d.out.Reset()
	if code := d.types(t.Context(), strings.Fields("serve acl --check --config "+d.file("serve.toml"))...); code != 0 || strings.Contains(d.out.String(), "fail") {
		t.Errorf("serve acl --check exits with %d:\n%s%s", code, d.out.String(), d.err.String())
	}
	stop, _ := d.started(t, strings.Fields("serve acl --config "+d.file("serve.toml"))...)
	defer func() {
		if code := stop(); code != 0 {
			t.Errorf("serve exits with %d:\n%s", code, d.err.String())
		}
	}()
	testkit.Eventually(t, "serve to start", func() bool { return strings.Contains(d.err.String(), "serves at") })
	d.must(t, "login", url, "--yes")
	d.must(t, "topic", "claim", "weather")
	d.must(t, "admin", "blocked") // ada is an operator
}

// noTokenLeft checks that no token that can manage projects is valid.
func (d *operatorsDesk) noTokenLeft(t *testing.T) {
	t.Helper()
	state := d.globusState(t)
	if strings.Contains(state, "manage_projects") {
		t.Errorf("a token of the administrator is still valid: %s", state)
	}
	if requests := inside.Of(d.fabric).Globus.Requests(); !slices.ContainsFunc(requests, func(r globusdev.Request) bool { return r.Path == "/v2/oauth2/token/revoke" }) {
		t.Error("no token was revoked")
	}
	for _, r := range inside.Of(d.fabric).Globus.Requests() {
		if r.Parameters["scope"] != "" && (r.Parameters["access_type"] != "online" || r.Parameters["prompt"] != "login") {
			t.Errorf("the login asks for %v", r.Parameters)
		}
	}
}

// TestServeInitHost checks that init uses a scope that exists, and verifies a host name once.
func TestServeInitHost(t *testing.T) {
	d := newOperatorsDesk(t)
	d.givenSecret(t, d.secret)
	line := d.line("--public-url", "https://diaspora.streams.lab.test", "--kafka-brokers", "kafka1.streams.lab.test:9094,kafka2.streams.lab.test:9094", "--verify-host", "streams.lab.test")
	before := d.files(t)
	record := globusdev.ResourceServerID + ".streams.lab.test"
	code := d.types(t.Context(), line...)
	for _, want := range []string{
		"looks for this record in DNS: " + record + " TXT \"" + globusdev.ResourceServerID + "\"\n",
		"diaspora: serve init: not found: Globus has not verified streams.lab.test: ",
		"hint: create the TXT record " + record + " with the value " + globusdev.ResourceServerID + ", and repeat this command once \"dig +short TXT " + record + "\" prints it\n",
	} {
		if said := d.err.String(); code != outcome.ExitCode(diaspora.ErrNotFound) || !strings.Contains(said, want) {
			t.Errorf("without the record, init exits with %d, and does not say %q:\n%s", code, want, said)
		}
	}
	if after := d.files(t); !slices.Equal(before, after) {
		t.Errorf("it has made %v", after)
	}
	d.noTokenLeft(t)
	testkit.Must(t, inside.Of(d.fabric).Globus.SetTXT(record, globusdev.ResourceServerID))
	for range 2 { // the second time, the scope exists and the host is verified
		d.must(t, line...)
		text := string(testkit.ReadFile(t, d.file("serve.toml")))
		for _, want := range []string{
			"\nglobus-scope = \"https://auth.globus.org/scopes/streams.lab.test/logging\"", "\nacl-listen = \":443\"\n", "\ngateway-listen = \":9092\"\n",
			"\nacl-bootstrap = [\"kafka1.streams.lab.test:9092\", \"kafka2.streams.lab.test:9092\"]\n",
			"\nkafka-ca-file = \"" + d.file("tls/internal-ca.pem") + "\"\n", "\ntls-cert-file = \"" + d.file("tls/fullchain.pem") + "\"",
		} {
			if !strings.Contains(text, want) {
				t.Errorf("the file does not have %q:\n%s", want, text)
			}
		}
		testkit.Must(t, os.Remove(d.file("serve.toml")))
	}
}

// TestServeInitRefused gives wrong answers, one after the other. Each is one clear error, and init makes no file.
func TestServeInitRefused(t *testing.T) {
	d := newOperatorsDesk(t)
	global := inside.Of(d.fabric).Globus
	grant, err := global.IssueTokens("ada@example.edu", globusdev.NativeClientID, []string{globus.ManageProjectsScope}, false)
	testkit.Must(t, err)
	admin, err := globus.New(globus.Config{Issuer: d.fabric.GlobusURL(), ClientID: globusdev.NativeClientID})
	testkit.Must(t, err)
	_, err = admin.CreateScope(t.Context(), grant.Tokens[0].AccessToken, globus.ScopeRegistration{ClientID: globusdev.ResourceServerID, Suffix: "no_refresh", Name: "x", Description: "x"})
	testkit.Must(t, err)
	testkit.Must(t, admin.Revoke(t.Context(), grant.Tokens[0].AccessToken))
	for name, c := range map[string]struct {
		flags  []string
		secret string // "" is the right one
		as     string // "" is ada
		code   int
		says   string
	}{
		"nothing": {[]string{"--public-url", "", "--globus-client-id", "", "--globus-login-client-id", "", "--kafka-brokers", "", "--globus-client-secret-file", "/nowhere"}, "", "", 2,
			"these flags are missing: --public-url, --globus-client-id, --globus-login-client-id, --kafka-brokers, --globus-client-secret-file\nhint: run it on a terminal to be asked\n"},
		"two missing":            {[]string{"--public-url", "", "--kafka-brokers", ""}, "", "", 2, "these flags are missing: --public-url, --kafka-brokers\n"},
		"wrong UUID":             {[]string{"--globus-client-id", "ada"}, "", "", 2, `globus-client-id: "ada" is not a UUID; copy the client's from `},
		"the same client":        {[]string{"--globus-login-client-id", globusdev.ResourceServerID}, "", "", 2, "globus-login-client-id is the service's own client"},
		"no https":               {[]string{"--public-url", "http://diaspora.lab.test"}, "", "", 2, "public-url: "},
		"a placeholder":          {[]string{"--public-url", "https://diaspora.streams.example.org"}, "", "", 2, "public-url (--public-url): diaspora.streams.example.org is a placeholder; write your own"},
		"no port":                {[]string{"--kafka-brokers", "kafka1.lab.test"}, "", "", 2, `kafka-brokers: broker "kafka1.lab.test" is not host:port`},
		"no number":              {[]string{"--max-topics", "many"}, "", "", 2, "max-topics: it is not a number of 1 or more"},
		"wrong suffix":           {[]string{"--scope-suffix", "Log-ging"}, "", "", 2, `scope-suffix: "Log-ging" does not consist of lower-case letters, digits and underscores`},
		"host of others":         {[]string{"--verify-host", "other.lab.test", "--public-url", "https://diaspora.lab.test"}, "", "", 2, "verify-host: at Globus, the scope https://auth.globus.org/scopes/other.lab.test/logging belongs to other.lab.test, and diaspora.lab.test is not below"},
		"no host":                {[]string{"--verify-host", "https://lab.test", "--public-url", "https://diaspora.lab.test"}, "", "", 2, `verify-host: "https://lab.test" is not a host name`},
		"two ways to the scope":  {[]string{"--verify-host", "lab.test", "--globus-scope", "https://auth.globus.org/scopes/lab.test/x"}, "", "", 2, "--globus-scope and --verify-host exclude each other"},
		"wrong secret":           {nil, "wrong", "", 3, "Globus Auth does not accept the secret of " + globusdev.ResourceServerID},
		"unknown client":         {[]string{"--globus-client-id", globusdev.Subject("nobody@example.edu")}, "", "", 3, "Globus Auth does not accept the secret of "},
		"Globus does not answer": {[]string{"--globus-issuer", "http://127.0.0.1:1"}, "", "", 7, "check the client secret: "},
		"no administrator":       {nil, "", "grace@example.org", 4, "you do not administer the project of the client " + globusdev.ResourceServerID},
		"suffix taken":           {[]string{"--scope-suffix", "action_all"}, "", "", 6, "The client has a scope with this suffix\nhint: choose another suffix with --scope-suffix\n"},
		"no refresh tokens":      {[]string{"--scope-suffix", "no_refresh"}, "", "", 6, "exists and forbids refresh tokens"},
		"no folder":              {[]string{"--config", "/nowhere/deep/serve.toml"}, "", "", 1, "create /nowhere/deep/serve.toml: "},
		"no folder of a secret":  {[]string{"--kafka-password-file", "/nowhere/kafka-password"}, "", "", 1, "create /nowhere/kafka-password: no such file or directory; nothing has changed\nhint: create the folder"},
		"no cluster":             {[]string{"--kafka", "/nowhere"}, "", "", 2, `"make kafka-up" in a clone starts an Apache Kafka`},
	} {
		t.Run(name, func(t *testing.T) {
			d.err.Reset()
			secret := c.secret
			if secret == "" {
				secret = d.secret
			}
			d.givenSecret(t, secret)
			if d.as = c.as; d.as == "" {
				d.as = "ada@example.edu"
			}
			before := d.files(t)
			code := d.types(t.Context(), d.line(c.flags...)...)
			if said := d.err.String(); code != c.code || !strings.Contains(said, c.says) {
				t.Errorf("init exits with %d, want %d and %q:\n%s", code, c.code, c.says, said)
			}
			if after := d.files(t); !slices.Equal(before, after) {
				t.Errorf("it has made\n%s\nfrom\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
			}
			if strings.Contains(d.err.String(), d.secret) {
				t.Error("it shows the secret")
			}
		})
	}
	d.noTokenLeft(t)
}

// TestServeInitKeeps checks that init replaces no file, and leaves none of its own if it cannot create them all.
func TestServeInitKeeps(t *testing.T) {
	d := newOperatorsDesk(t)
	d.givenSecret(t, d.secret)
	testkit.Must(t, os.WriteFile(d.file("serve.toml"), []byte("mine"), 0o600))
	code := d.types(t.Context(), d.line()...)
	want := "diaspora: serve init: " + d.file("serve.toml") + " exists; nothing has changed\nhint: edit that file, or name another one with --config; to begin again, delete it and the files beside it that it names\n"
	if said := d.err.String(); code != outcome.ExitCode(diaspora.ErrConflict) || said != want {
		t.Errorf("init exits with %d, and says %q", code, said)
	}
	if got := string(testkit.ReadFile(t, d.file("serve.toml"))); got != "mine" {
		t.Errorf("the file has %q", got)
	}

	// Somebody else creates one of the files during the login. The files that init has created by then are removed.
	log := d.env.browser
	for _, name := range []string{"kafka-password", "serve.toml"} {
		testkit.Must(t, os.Remove(d.file("serve.toml")))
		d.env.browser = func(address string) error {
			if err := os.WriteFile(d.file(name), []byte("of somebody else"), 0o600); err != nil {
				return err
			}
			return log(address)
		}
		d.err.Reset()
		code = d.types(t.Context(), d.line()...)
		if said := d.err.String(); code != outcome.ExitCode(diaspora.ErrConflict) || !strings.Contains(said, d.file(name)+" has been created in the meantime; nothing has changed\n") {
			t.Errorf("init exits with %d, and says %q", code, said)
		}
		if made := d.files(t); !slices.Equal(made, []string{"globus-secret: " + d.secret + "\n", name + ": of somebody else"}) {
			t.Errorf("with %s of somebody else, there are %q", name, made)
		}
		os.Remove(d.file("kafka-password"))
		testkit.Must(t, os.WriteFile(d.file("serve.toml"), nil, 0o600))
	}
}

// TestServeInitReplacesComments checks that init replaces a file that has only comments, as the packages install it, but not if
// somebody fills it in during the login.
func TestServeInitReplacesComments(t *testing.T) {
	d := newOperatorsDesk(t)
	d.givenSecret(t, d.secret)
	const packaged = "# Settings.\n# public-url = \"https://diaspora.streams.example.org\"\n"
	file, log := d.file("serve.toml"), d.env.browser
	testkit.Must(t, os.WriteFile(file, []byte(packaged), 0o600))
	d.env.browser = func(address string) error {
		if err := os.WriteFile(file, []byte("acl-listen = \":1\"\n"), 0o600); err != nil {
			return err
		}
		return log(address)
	}
	if code := d.types(t.Context(), d.line()...); code != outcome.ExitCode(diaspora.ErrConflict) || string(testkit.ReadFile(t, file)) != "acl-listen = \":1\"\n" {
		t.Errorf("init exits with %d, and says %q; the file has %q", code, d.err.String(), testkit.ReadFile(t, file))
	}
	d.env.browser = log
	testkit.Must(t, os.WriteFile(file, []byte(packaged), 0o600))
	d.err.Reset()
	if code := d.types(t.Context(), d.line()...); code != 0 {
		t.Fatalf("init exits with %d, and says %q", code, d.err.String())
	}
	info, err := os.Stat(file)
	testkit.Must(t, err)
	if text := string(testkit.ReadFile(t, file)); !strings.Contains(text, "\npublic-url = ") || info.Mode().Perm() != 0o640 {
		t.Errorf("the file has mode %v and %q", info.Mode(), text)
	}
}

// TestServeInitFolder checks that init creates the folder of its files, and removes it after an error.
func TestServeInitFolder(t *testing.T) {
	d := newOperatorsDesk(t)
	d.givenSecret(t, d.secret)
	config, log := d.file("new/serve.toml"), d.env.browser
	d.env.browser = func(address string) error {
		return errors.Join(os.WriteFile(d.file("kafka-password"), nil, 0o600), log(address))
	}
	code := d.types(t.Context(), d.line("--config", config, "--kafka-password-file", d.file("kafka-password"))...)
	if _, err := os.Stat(d.file("new")); code != outcome.ExitCode(diaspora.ErrConflict) || !os.IsNotExist(err) {
		t.Errorf("init exits with %d, and the folder: %v\n%s", code, err, d.err.String())
	}
	d.env.browser = log
	d.must(t, d.line("--config", config)...)
	if made := d.files(t); len(made) != 6 {
		t.Errorf("init has made %q", made)
	}
}

// TestServeInitKafka checks that init writes the settings of a new Apache Kafka of one node on the same host, and of no other.
func TestServeInitKafka(t *testing.T) {
	for name, try := range map[string]struct {
		flags  []string
		writes bool
	}{
		"on this host":   {[]string{"--kafka-brokers", "127.0.0.1:396", "--acl-bootstrap", "streams.lab.test:9092"}, true},
		"on other hosts": {[]string{"--kafka-brokers", "kafka1.lab.test:9094", "--acl-bootstrap", "kafka1.lab.test:9092"}, false},
		"two gateways":   {[]string{"--kafka-brokers", "127.0.0.1:396", "--acl-bootstrap", "a.lab.test:9092,b.lab.test:9092"}, false},
		"with passwords": {[]string{"--kafka-brokers", "127.0.0.1:396", "--kafka-password-file", "given"}, false},
	} {
		d := newOperatorsDesk(t)
		d.givenSecret(t, d.secret)
		if name == "with passwords" {
			try.flags[3] = d.file("given")
			testkit.Must(t, os.WriteFile(d.file("given"), []byte("of the super user"), 0o600))
		}
		d.must(t, d.line(append(try.flags, "--globus-scope", globusdev.Scope)...)...)
		file := d.file("server.properties")
		said := d.out.String() + d.err.String()
		text, err := os.ReadFile(file)
		if made := err == nil; made != try.writes || strings.Contains(said, "\nkafka     "+file+"\n") != made {
			t.Errorf("%s: the file is made: %t, want %t; init says\n%s", name, made, try.writes, said)
		}
		if !try.writes {
			continue
		}
		info, err := os.Stat(file)
		testkit.Must(t, err)
		password := strings.TrimSpace(string(testkit.ReadFile(t, d.file("kafka-password"))))
		for _, want := range []string{
			"\nlisteners=GATEWAY://127.0.0.1:395,INTERNAL://127.0.0.1:396,CONTROLLER://127.0.0.1:397\n", "\nadvertised.listeners=GATEWAY://streams.lab.test:9092,",
			` user_diaspora="` + password + `" user_diaspora-gateway="`, "\ndefault.replication.factor=1\n",
		} {
			if info.Mode().Perm() != 0o600 || !strings.Contains(string(text), want) || strings.Contains(said, password) {
				t.Errorf("the file has mode %v, and not %q:\n%s", info.Mode(), want, text)
			}
		}
	}
}

// TestServeInitSession checks the error if the administrator has not logged in recently.
func TestServeInitSession(t *testing.T) {
	d := newOperatorsDesk(t)
	global := inside.Of(d.fabric).Globus
	grant, err := global.IssueTokens("ada@example.edu", globusdev.NativeClientID, []string{globus.ManageProjectsScope}, false)
	testkit.Must(t, err)
	client := func(id string, secret globus.Secret) *globus.Client {
		c, err := globus.New(globus.Config{Issuer: d.fabric.GlobusURL(), ClientID: id, ClientSecret: secret})
		testkit.Must(t, err)
		return c
	}
	r := front.Registration{
		Admin: client(globusdev.NativeClientID, ""), Access: grant.Tokens[0].AccessToken,
		Service: client(globusdev.ResourceServerID, globus.Secret(d.secret)), Suffix: "logging",
	}
	global.AdvanceClock(31 * time.Minute)
	_, err = r.Register(t.Context())
	if text, hints := explanation(err); exitCode(context.Background(), err) != 4 || !strings.Contains(text, "in session within the last 30 minutes") || len(hints) != 1 || !strings.HasPrefix(hints[0], "repeat this command, and log in") {
		t.Errorf("half an hour after the login, Register = %v, with the hints %q", err, hints)
	}
}

// globusState returns what the stand-in for Globus Auth has, without secrets.
func (d *operatorsDesk) globusState(t *testing.T) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, d.fabric.GlobusURL()+"/_dev/state", nil)
	testkit.Must(t, err)
	req.Header.Set("Authorization", strings.TrimPrefix(globusdev.SecretHeader(inside.Of(d.fabric).GlobusSecret), "Authorization: "))
	resp, err := http.DefaultClient.Do(req)
	testkit.Must(t, err)
	defer resp.Body.Close()
	state, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("GET /_dev/state = %d, %v", resp.StatusCode, err)
	}
	return string(state)
}

// TestServeInitScope checks that nobody has to log in with --globus-scope. The file is the one in DIASPORA_SERVE_CONFIG, and relative
// names are written as absolute ones.
func TestServeInitScope(t *testing.T) {
	d := newOperatorsDesk(t)
	d.givenSecret(t, d.secret)
	d.env.browser = func(string) error { t.Error("init opens a browser"); return nil }
	d.vars["DIASPORA_SERVE_CONFIG"] = d.file("serve.toml")
	t.Chdir(d.dir)
	code := d.types(t.Context(), d.line("--config", "", "--globus-scope", globus.ScopeOf(globusdev.ServiceClientID, "x"))...)
	if said := d.err.String(); code != 2 || !strings.Contains(said, "is a scope of the client "+globusdev.ServiceClientID) {
		t.Errorf("with a scope of another client, init exits with %d:\n%s", code, said)
	}
	d.must(t, d.line("--config", "", "--globus-scope", globusdev.Scope, "--globus-client-secret-file", "globus-secret", "--state-dir", "state")...)
	text := string(testkit.ReadFile(t, d.file("serve.toml")))
	for _, want := range []string{
		"\nglobus-scope = \"" + globusdev.Scope + "\"", "\n# operators = ", "\nglobus-client-secret-file = \"" + d.file("globus-secret") + "\"\n", "\nstate-dir = \"" + d.file("state") + "\"",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the file does not have %q:\n%s", want, text)
		}
	}
	if said := d.err.String(); !strings.Contains(said, "there is no operator, so nobody can block a person: set operators in "+d.file("serve.toml")) {
		t.Errorf("init does not warn that there is no operator:\n%s", said)
	}
}
