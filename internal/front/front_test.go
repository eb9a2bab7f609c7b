package front

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/apache"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// client is the client ID of the service at Globus Auth.
const client = "10000000-0000-4000-8000-000000000001"

func valid() Config {
	return Config{
		PublicURL:    "https://diaspora.example.org",
		TokenKeyFile: "token-key.pem",
		Globus:       Globus{Issuer: "http://127.0.0.1:1", ClientID: client, ClientSecret: "s", Scope: "https://auth.globus.org/scopes/example.org/x", LoginClientID: "10000000-0000-4000-8000-000000000002"},
		Kafka:        Kafka{Brokers: []string{"127.0.0.1:1"}},
		Gateway:      &Gateway{Listen: "127.0.0.1:0", Broker: "127.0.0.1:1", Issuer: "i", Audience: "a", KeysFile: "k", JWKSFile: "j"},
		ACL:          &ACL{Listen: "127.0.0.1:0", Bootstrap: []string{"diaspora.example.org:9092"}},
	}
}

// TestValidate removes each required setting, and sets each insecure combination of settings.
func TestValidate(t *testing.T) {
	cfg := valid()
	if err := cfg.Validate(); err != nil {
		t.Fatalf("Validate = %v", err)
	}
	for want, spoil := range map[string]func(*Config){
		"public-url": func(c *Config) { c.PublicURL = "" },
		`"127.0.0.1:18090" has no scheme; use https://`: func(c *Config) { c.PublicURL = "127.0.0.1:18090" },
		"public-url: invalid":                           func(c *Config) { c.PublicURL = "https://diaspora.example.org/x" },
		"cross the network":                             func(c *Config) { c.PublicURL = "http://diaspora.example.org" },
		`globus-scope: a fabric has`:                    func(c *Config) { c.Globus.Scope = "action_all" },
		"is a scope of the client 20000000-": func(c *Config) {
			c.Globus.Scope = "https://auth.globus.org/scopes/20000000-0000-4000-8000-000000000001/action_all"
		},
		`globus-client-id: "ada" is not a UUID`:                func(c *Config) { c.Globus.ClientID = "ada" },
		`globus-login-client-id: "l" is not a UUID`:            func(c *Config) { c.Globus.LoginClientID = "l" },
		"the service's own client":                             func(c *Config) { c.Globus.LoginClientID = c.Globus.ClientID },
		`"ada@example.edu" is a username`:                      func(c *Config) { c.Admission.Operators = []string{"ada@example.edu"} },
		"token-key-file":                                       func(c *Config) { c.TokenKeyFile = "" },
		"globus-client-id":                                     func(c *Config) { c.Globus.ClientID = "" },
		"globus-client-secret-file":                            func(c *Config) { c.Globus.ClientSecret = "" },
		"globus-scope":                                         func(c *Config) { c.Globus.Scope = "" },
		"globus-login-client-id":                               func(c *Config) { c.Globus.LoginClientID = "" },
		"kafka-brokers":                                        func(c *Config) { c.Kafka.Brokers = nil },
		"gateway-broker is":                                    func(c *Config) { c.Gateway.Broker = "" },
		"gateway-issuer":                                       func(c *Config) { c.Gateway.Issuer = "" },
		"gateway-audience":                                     func(c *Config) { c.Gateway.Audience = "" },
		"gateway-keys-file":                                    func(c *Config) { c.Gateway.KeysFile = "" },
		"gateway-jwks-file":                                    func(c *Config) { c.Gateway.JWKSFile = "" },
		"not on this host":                                     func(c *Config) { c.Gateway.Broker = "192.0.2.1:9095" },
		"acl-bootstrap":                                        func(c *Config) { c.ACL.Bootstrap = nil },
		"acl-listen \"9090\"":                                  func(c *Config) { c.ACL.Listen = "9090" },
		`acl-listen "127.0.0.1:99190" has no port`:             func(c *Config) { c.ACL.Listen = "127.0.0.1:99190" },
		`gateway-listen "127.0.0.1:kafka" has no port`:         func(c *Config) { c.Gateway.Listen = "127.0.0.1:kafka" },
		`acl-bootstrap: broker "gw.lab.test" is not host:port`: func(c *Config) { c.ACL.Bootstrap = []string{"gw.lab.test:9092", "gw.lab.test"} },
		`kafka-brokers: broker "127.0.0.1:0" has no port from 1 to 65535`: func(c *Config) { c.Kafka.Brokers = []string{"127.0.0.1:0"} },
		`gateway-broker: broker "127.0.0.1:395x" has no port`:             func(c *Config) { c.Gateway.Broker = "127.0.0.1:395x" },
		"acl-listen :9090 is":    func(c *Config) { c.ACL.Listen = ":9090" },
		"gateway-listen 0.0.0.0": func(c *Config) { c.Gateway.Listen = "0.0.0.0:9092" },
		"kafka-brokers: 192.0.2.1:9094": func(c *Config) {
			c.Kafka = Kafka{Brokers: []string{"192.0.2.1:9094"}, Admin: User{"diaspora", "x"}}
		},
		"kafka-brokers: 192.0.2.2:9094": func(c *Config) { // the switch for clients' connections does not allow it
			c.Kafka = Kafka{Brokers: []string{"192.0.2.2:9094"}, Admin: User{"diaspora", "x"}}
			c.InsecureAllowPlaintext = true
		},
		"acl-listen :9091 is": func(c *Config) { // the switch for brokers does not apply to clients' connections
			c.ACL.Listen = ":9091"
			c.Kafka.InsecureAllowPlaintext = true
		},
		"kafka-brokers: 192.0.2.3:9094": func(c *Config) { // the password of a gateway's user is protected as well
			c.ACL = nil
			c.Kafka = Kafka{Brokers: []string{"192.0.2.3:9094"}, Gateway: User{"gateway", "x"}}
		},
		"gateway-kafka-username is missing": func(c *Config) { // earlier versions used the super user here
			c.ACL = nil
			c.Kafka.Admin = User{"diaspora", "x"}
		},
		"gateway-kafka-username is the super user": func(c *Config) {
			c.Kafka.Admin, c.Kafka.Gateway = User{"diaspora", "x"}, User{"diaspora", "x"}
		},
		"nothing to serve": func(c *Config) { c.Gateway, c.ACL = nil, nil },
	} {
		cfg := valid()
		spoil(&cfg)
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Validate = %v, want an error that says %q", err, want)
		}
	}
	for name, allow := range map[string]func(*Config){
		"TLS":      func(c *Config) { c.TLS = &tls.Config{} },
		"a switch": func(c *Config) { c.InsecureAllowPlaintext = true },
	} {
		cfg := valid()
		cfg.ACL.Listen, cfg.Gateway.Listen = ":9090", ":9092"
		allow(&cfg)
		if err := cfg.Validate(); err != nil {
			t.Errorf("with %s, Validate = %v", name, err)
		}
	}
}

// TestPasswordStaysHere checks that a password is not sent unencrypted to a broker on another
// machine that a broker on this machine advertises.
func TestPasswordStaysHere(t *testing.T) {
	other := testkit.Listen(t)
	for name, try := range map[string]struct {
		kafka Kafka
		local bool
	}{
		"a password":                  {Kafka{Admin: User{"diaspora", "x"}}, true},
		"a password, TLS":             {Kafka{Admin: User{"diaspora", "x"}, TLS: &tls.Config{}}, false},
		"a password, and the switch":  {Kafka{Admin: User{"diaspora", "x"}, InsecureAllowPlaintext: true}, false},
		"nothing that could be taken": {Kafka{}, false},
	} {
		try.kafka.Brokers = []string{"127.0.0.1:1"}
		cfg := valid()
		cfg.Kafka = try.kafka
		client, err := kgo.NewClient(cfg.kafkaOpts()...)
		testkit.Must(t, err)
		local := reflect.ValueOf(client.OptValue(kgo.Dialer)).Pointer() == reflect.ValueOf(dialLocally).Pointer()
		if client.Close(); local != try.local {
			t.Errorf("with %s, connections must stay here: %v, want %v", name, local, try.local)
		}
	}
	if conn, err := dialLocally(t.Context(), "tcp", other.Addr().String()); err != nil {
		t.Errorf("a broker on this machine: %v", err)
	} else {
		conn.Close()
	}
	// This checks the decision only, because a test cannot connect to another machine.
	remote := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 9094}
	if isLocal(remote, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7)}) || !isLocal(remote, &net.TCPAddr{IP: remote.IP}) || isLocal(remote, nil) {
		t.Error("only addresses of this machine are here")
	}
}

// TestOpenPorts checks which brokers' ports count as ports on which any user of the host can
// listen.
func TestOpenPorts(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Config)
		first  int
		want   []string
	}{
		"privileged":            {func(c *Config) { c.Gateway.Broker = "127.0.0.1:395" }, 1024, nil},
		"open to all":           {func(c *Config) { c.Gateway.Broker = "127.0.0.1:9095" }, 1024, []string{"gateway-broker"}},
		"the first one":         {func(c *Config) { c.Gateway.Broker = "localhost:1024" }, 1024, []string{"gateway-broker"}},
		"privileged by IPv6":    {func(c *Config) { c.Gateway.Broker = "[::1]:1023" }, 1024, nil},
		"no port is privileged": {func(c *Config) { c.Gateway.Broker = "127.0.0.1:395" }, 0, []string{"gateway-broker"}},
		"no gateway":            {func(c *Config) { c.Gateway = nil }, 1024, nil},
		"a password":            {func(c *Config) { c.Kafka = Kafka{Brokers: []string{"127.0.0.1:9094"}, Admin: User{Name: "diaspora"}} }, 1024, []string{"kafka-brokers"}},
		"a password, over TLS": {func(c *Config) {
			c.Kafka = Kafka{Brokers: []string{"127.0.0.1:9094"}, Admin: User{Name: "diaspora"}, TLS: &tls.Config{}}
		}, 1024, nil},
		"a password, privileged":     {func(c *Config) { c.Kafka = Kafka{Brokers: []string{"127.0.0.1:394"}, Admin: User{Name: "diaspora"}} }, 1024, nil},
		"nothing to steal":           {func(c *Config) { c.Kafka = Kafka{Brokers: []string{"127.0.0.1:9094"}} }, 1024, nil},
		"a password to another host": {func(c *Config) { c.Kafka = Kafka{Brokers: []string{"192.0.2.1:9094"}, Admin: User{Name: "diaspora"}} }, 1024, nil},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := valid()
			c.change(&cfg)
			var got []string
			for _, p := range cfg.openPorts(c.first) {
				got = append(got, p.setting)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("open are %v, want %v", got, c.want)
			}
		})
	}
}

// TestOpenPortsAreTold checks that the service warns of such ports at startup, and that
// `serve --check` reports them.
func TestOpenPortsAreTold(t *testing.T) {
	cfg := valid()
	cfg.Gateway.Broker = "127.0.0.1:65535"
	dir := t.TempDir()
	cfg.TokenKeyFile, cfg.Gateway.KeysFile, cfg.Gateway.JWKSFile = dir+"/token-key.pem", dir+"/keys", dir+"/jwks"
	var said strings.Builder
	cfg.Diagnostics = slog.New(slog.NewTextHandler(&said, nil))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if f, err := Open(ctx, cfg); err == nil {
		t.Fatalf("Open without a cluster = %v, want an error", f.Addrs())
	}
	for _, words := range []string{"level=WARN", "127.0.0.1:65535 is plaintext", "setting=gateway-broker", "CAP_NET_BIND_SERVICE"} {
		if !strings.Contains(said.String(), words) {
			t.Errorf("the start does not say %q: %s", words, said.String())
		}
	}
	told := func(f Finding) bool { return f.Check == "gateway-broker" && f.Status == Warn && f.Fix != "" }
	if findings := Check(ctx, cfg); !slices.ContainsFunc(findings, told) {
		t.Errorf("Check does not warn of gateway-broker: %+v", findings)
	}
}

// TestDeployedPort checks that deploy/ and docs/operate.md put the GATEWAY listener on a port on
// which no other user of the host can listen, and that Kafka's systemd unit allows Kafka to use it.
func TestDeployedPort(t *testing.T) {
	find := func(file, pattern string) string {
		t.Helper()
		text := testkit.ReadFile(t, "../../"+file)
		found := regexp.MustCompile(pattern).FindSubmatch(text)
		if found == nil {
			t.Fatalf("%s has no %s", file, pattern)
		}
		return string(found[1])
	}
	cfg := valid()
	cfg.Gateway.Broker = find("deploy/serve.toml", `(?m)^gateway-broker = "(.*?)"`)
	if listener := find("docs/operate.md", `listeners=GATEWAY://(.*?),`); listener != cfg.Gateway.Broker {
		t.Errorf("docs/operate.md has the listener at %s, and deploy/serve.toml at %s", listener, cfg.Gateway.Broker)
	}
	if open := cfg.openPorts(512); len(open) > 0 { // NFS and RPC clients use the ports from 512 to 1023
		t.Errorf("deploy/serve.toml: %v", open)
	}
	find("deploy/systemd/kafka.service", `(?m)^(AmbientCapabilities=CAP_NET_BIND_SERVICE)$`)
}

// TestOpenFails checks that Open returns an error when its context ends before the cluster can be
// reached.
func TestOpenFails(t *testing.T) {
	cfg := valid()
	cfg.TokenKeyFile = t.TempDir() + "/token-key.pem"
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if f, err := Open(ctx, cfg); err == nil {
		t.Errorf("Open without a cluster = %v, want an error", f.Addrs())
	}
}

// TestCheckWithoutAnything checks that Check reports all services that cannot be reached, and does
// not hang.
func TestCheckWithoutAnything(t *testing.T) {
	cfg := valid()
	dir := t.TempDir()
	cfg.Globus.ClientID = "00000000-0000-4000-8000-000000000001"
	cfg.Gateway.KeysFile, cfg.Gateway.JWKSFile = dir+"/keys", dir+"/jwks"
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	failed := map[string]bool{}
	var skipped []string
	for _, f := range Check(ctx, cfg) {
		failed[f.Check] = f.Status == Fail && f.Found != "" && f.Fix != ""
		if f.Status == Skip && f.Found != "" {
			skipped = append(skipped, f.Check)
		}
	}
	if want := []string{"clock", "authorizer", "brokers", "ledger", "advertised addresses"}; !slices.Equal(skipped, want) {
		t.Errorf("Check says of %q that they were not tried, want %q", skipped, want)
	}
	for _, check := range []string{"Globus Auth", "Kafka", "gateway listener"} {
		if !failed[check] {
			t.Errorf("Check does not find that %s is missing: %v", check, failed)
		}
	}
}

// TestCheckSigningKeys checks that an overdue rotation of valid signing keys is only a warning,
// after which Check continues.
func TestCheckSigningKeys(t *testing.T) {
	cfg := valid()
	dir := t.TempDir()
	cfg.Gateway.KeysFile, cfg.Gateway.JWKSFile = dir+"/keys", dir+"/jwks"
	if _, err := apache.OpenKeys(cfg.Gateway.keys(nil)); err != nil {
		t.Fatal(err)
	}
	look := func() []Finding {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		run := &checks{cfg: &cfg}
		run.gateway(ctx)
		return run.findings
	}
	if found := look(); len(found) != 2 || found[0].Check != "gateway listener" || found[1].Status != Skip {
		t.Errorf("with fresh keys: %+v, want nothing about them", found)
	}
	keys := testkit.ReadFile(t, dir+"/keys")
	added := time.Now().Add(-32 * 24 * time.Hour).Format(time.RFC3339)
	old := regexp.MustCompile(`"added":"[^"]*"`).ReplaceAll(keys, []byte(`"added":"`+added+`"`))
	testkit.Must(t, os.WriteFile(dir+"/keys", old, 0o600))
	if found := look(); len(found) != 3 || found[0].Check != "signing keys" || found[0].Status != Warn || found[0].Fix == "" {
		t.Errorf("found %+v, want a warning about the signing keys and what comes after it", found)
	}
	testkit.Must(t, os.WriteFile(dir+"/jwks", []byte(`{"keys":[]}`), 0o644))
	if found := look(); len(found) != 3 || found[0].Check != "signing keys" || found[0].Status != Fail || found[1].Status != Skip || found[2].Status != Skip {
		t.Errorf("found %+v, want that the signing keys are not published", found)
	}
}

// TestCheckChangesNothing checks that Check creates and changes no files. If an operator runs it as
// root, the service could not open files that it had created.
func TestCheckChangesNothing(t *testing.T) {
	listener := testkit.Listen(t) // stands for a broker
	for name, prepare := range map[string]func(t *testing.T, cfg *Config){
		"nothing is there":  func(*testing.T, *Config) {},
		"a broker is there": func(_ *testing.T, cfg *Config) { cfg.Gateway.Broker = listener.Addr().String() },
		"keys are there": func(t *testing.T, cfg *Config) {
			if _, err := apache.OpenKeys(cfg.Gateway.keys(nil)); err != nil {
				t.Fatal(err)
			}
		},
		"keys are old, and one is not published": func(t *testing.T, cfg *Config) {
			keys := cfg.Gateway.keys(nil)
			keys.MaxAge, keys.Settle = 3, 1
			if _, err := apache.OpenKeys(keys); err != nil {
				t.Fatal(err)
			}
			published := testkit.ReadFile(t, keys.JWKSFile)
			if _, err := apache.OpenKeys(keys); err != nil {
				t.Fatal(err)
			}
			testkit.Must(t, os.WriteFile(keys.JWKSFile, published, 0o644))
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, dir := valid(), t.TempDir()
			for _, sub := range []string{"keys", "run"} {
				testkit.Must(t, os.Mkdir(filepath.Join(dir, sub), 0o700))
			}
			t.Chdir(filepath.Join(dir, "run")) // the working directory must not change either
			cfg.TokenKeyFile, cfg.StateDir = dir+"/keys/token-key.pem", dir+"/keys/state"
			cfg.Gateway.KeysFile, cfg.Gateway.JWKSFile = dir+"/keys/signing-keys.json", dir+"/keys/jwks.json"
			prepare(t, &cfg)
			before := testkit.Snapshot(t, dir)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			findings := Check(ctx, cfg)
			if after := testkit.Snapshot(t, dir); !slices.Equal(before, after) {
				t.Errorf("the check has changed\n%s\nto\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
			}
			if i := slices.IndexFunc(findings, func(f Finding) bool { return f.Check == "signing keys" }); (i >= 0) != strings.HasSuffix(name, "is there") || i >= 0 && (findings[i].Status != Warn || findings[i].Fix == "") {
				t.Errorf("found %+v, want what to do about the signing keys if there are none", findings)
			}
		})
	}
}

// TestCheckFiles checks that Check reports folders in which the service cannot create its files.
func TestCheckFiles(t *testing.T) {
	dir := t.TempDir()
	for _, sub := range []string{"good", "bad"} {
		testkit.Must(t, os.Mkdir(filepath.Join(dir, sub), 0o755))
	}
	testkit.Must(t, os.WriteFile(dir+"/bad/file", nil, 0o600))
	bad := dir + "/bad/file" // a file where a folder should be: not even root can create files in it
	for want, change := range map[string]func(*Config){
		"":                  func(*Config) {},
		"token-key-file":    func(cfg *Config) { cfg.TokenKeyFile = bad + "/token-key.pem" },
		"state-dir":         func(cfg *Config) { cfg.StateDir = bad + "/state" },
		"gateway-keys-file": func(cfg *Config) { cfg.Gateway.KeysFile = dir + "/missing/signing-keys.json" },
		"gateway-jwks-file": func(cfg *Config) { cfg.Gateway.JWKSFile = dir + "/missing/jwks.json" },
	} {
		cfg := valid()
		cfg.TokenKeyFile, cfg.StateDir = dir+"/good/new/token-key.pem", dir+"/good/new/state"
		cfg.Gateway.KeysFile, cfg.Gateway.JWKSFile = dir+"/good/signing-keys.json", dir+"/good/jwks.json"
		change(&cfg)
		run := &checks{cfg: &cfg}
		run.files()
		if want == "" && len(run.findings) != 0 || want != "" && (len(run.findings) != 1 || run.findings[0].Check != want || run.findings[0].Status != Fail || run.findings[0].Fix == "") {
			t.Errorf("with a bad %s: found %+v", want, run.findings)
		}
	}
}

// TestCheckKafkaCanRead checks that Check warns if only the gateway's user can read its public keys,
// which the user of the Kafka broker has to read.
func TestCheckKafkaCanRead(t *testing.T) {
	for name, c := range map[string]struct {
		file, folder os.FileMode // a file of mode 0 does not exist
		fix          string
	}{
		"as installed":      {0o644, 0o755, ""},
		"no file yet":       {0, 0o755, ""},
		"file of the group": {0o640, 0o750, ""},
		"private file":      {0o600, 0o755, "chmod 644 "},
		"private folder":    {0o644, 0o700, "chmod 755 "},
		"hidden for now":    {0, 0o700, "chmod 755 "},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, dir := valid(), t.TempDir()
			testkit.Must(t, os.Chmod(dir, 0o700))
			cfg.TokenKeyFile = dir + "/token-key.pem"
			cfg.Gateway.KeysFile, cfg.Gateway.JWKSFile = dir+"/signing-keys.json", dir+"/public/jwks.json"
			testkit.Must(t, os.Mkdir(dir+"/public", 0o700))
			if c.file != 0 {
				testkit.Must(t, os.WriteFile(cfg.Gateway.JWKSFile, []byte(`{"keys":[]}`), 0o600))
				testkit.Must(t, os.Chmod(cfg.Gateway.JWKSFile, c.file))
			}
			testkit.Must(t, os.Chmod(dir+"/public", c.folder))
			run := &checks{cfg: &cfg}
			run.files()
			if c.fix == "" && len(run.findings) != 0 || c.fix != "" && (len(run.findings) != 1 || run.findings[0].Status != Warn ||
				run.findings[0].Check != "gateway-jwks-file" || !strings.Contains(run.findings[0].Fix, c.fix)) {
				t.Errorf("found %+v, want %q", run.findings, c.fix)
			}
		})
	}
}

// TestCheckGatewaysUser checks that Check warns of an ACL endpoint that gives gateways no rights.
func TestCheckGatewaysUser(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Config)
		warned bool
	}{
		"missing":              {func(c *Config) { c.Gateway = nil }, true},
		"set":                  {func(c *Config) { c.Gateway, c.Kafka.Gateway.Name = nil, "diaspora-gateway" }, false},
		"one process for both": {func(*Config) {}, false},
		"no users at all":      {func(c *Config) { c.Gateway, c.Kafka.Admin.Name = nil, "" }, false},
	} {
		cfg := valid()
		cfg.Kafka.Admin.Name = "diaspora"
		c.change(&cfg)
		run := &checks{cfg: &cfg}
		run.gatewaysUser()
		if warned := len(run.findings) == 1 && run.findings[0].Check == "gateway-kafka-username" && run.findings[0].Status == Warn && run.findings[0].Fix != ""; warned != c.warned || !c.warned && len(run.findings) != 0 {
			t.Errorf("%s: %+v, want a warning: %v", name, run.findings, c.warned)
		}
	}
}

// TestFixOf checks the advice for connections that failed before any setting was used.
func TestFixOf(t *testing.T) {
	dns := &net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: "kafka3.example.org", IsNotFound: true}}
	for want, err := range map[string]error{
		"kafka3.example.org":         fmt.Errorf("unable to dial: %w", dns),
		"check that Kafka is runnin": &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")},
		"the settings":               errors.New("SASL authentication failed"),
	} {
		if fix := fixOf(err, "the settings"); !strings.Contains(fix, want) || strings.Contains(want, "kafka3") && (strings.Contains(fix, "port") || !strings.Contains(fix, "check the name")) {
			t.Errorf("the advice for %v is %q, want %q", err, fix, want)
		}
	}
}

// TestStartAsksGlobus checks that the service does not start, and creates no files, if Globus Auth
// rejects its credentials, and that it only warns if Globus Auth cannot be reached.
func TestStartAsksGlobus(t *testing.T) {
	for name, c := range map[string]struct {
		status  int
		body    string
		refused bool
		says    string
	}{
		"a wrong secret":  {401, `{"errors":[{"status":"401","code":"UNAUTHORIZED","title":"Unauthorized"}],"error":"unauthorized"}`, true, "globus-client-secret-file"},
		"an unknown ID":   {400, `{"error":"invalid_client"}`, true, "globus-client-id"},
		"all is well":     {200, `{"active":false}`, false, ""},
		"an outage":       {503, "", false, "cannot check access tokens"},
		"a page":          {200, "<title>It works!</title>", false, "It works!"},
		"no such request": {501, "", false, "status 501"},
	} {
		t.Run(name, func(t *testing.T) {
			auth := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(c.status)
				io.WriteString(w, c.body)
			}))
			defer auth.Close()
			cfg, dir := valid(), t.TempDir()
			cfg.Globus.Issuer = auth.URL
			cfg.TokenKeyFile, cfg.Gateway.KeysFile, cfg.Gateway.JWKSFile = dir+"/token-key.pem", dir+"/keys", dir+"/jwks"
			var said strings.Builder
			cfg.Diagnostics = slog.New(slog.NewTextHandler(&said, nil))
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond) // there is no cluster
			defer cancel()
			f, err := Open(ctx, cfg)
			if err == nil {
				f.Close()
				t.Fatal("opened without a cluster")
			}
			if errors.Is(err, globus.ErrClientRefused) != c.refused || c.refused && !strings.Contains(err.Error(), c.says) {
				t.Errorf("Open = %v, want it refused: %v, and to say %q", err, c.refused, c.says)
			}
			warned := strings.Contains(said.String(), "cannot check access tokens")
			if warned != (c.says != "" && !c.refused) || warned && !strings.Contains(said.String(), c.says) {
				t.Errorf("the start says %q, want %q", said.String(), c.says)
			}
			if made := testkit.Snapshot(t, dir); c.refused && len(made) != 1 {
				t.Errorf("it has made %v", made)
			}
		})
	}
}

// TestCheckCertificate checks that Check reports a certificate that has expired or soon will, and
// one for another host name.
func TestCheckCertificate(t *testing.T) {
	for name, c := range map[string]struct {
		host  string
		until time.Duration
		want  Status
	}{
		"good":           {"diaspora.example.org", 90 * 24 * time.Hour, OK},
		"for another":    {"elsewhere.example.org", 90 * 24 * time.Hour, Fail},
		"ends next week": {"diaspora.example.org", 7 * 24 * time.Hour, Warn},
		"has ended":      {"diaspora.example.org", -time.Minute, Fail},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			writeCertificate(t, dir+"/cert.pem", dir+"/key.pem", c.host, time.Now().Add(c.until))
			cfg := valid()
			var err error
			if cfg.TLS, err = ServerTLS(dir+"/cert.pem", dir+"/key.pem"); err != nil {
				t.Fatal(err)
			}
			run := func() []Finding {
				run := &checks{cfg: &cfg}
				run.certificate()
				return run.findings
			}
			if c.want == OK {
				if got := run(); len(got) != 1 || got[0].Status != Warn || !strings.Contains(got[0].Fix, "acl-ca-file") {
					t.Errorf("of a certificate that no authority has signed: %+v", got)
				}
			}
			cfg.ACL.CA = string(testkit.ReadFile(t, dir+"/cert.pem"))
			if got := run(); len(got) != 1 || got[0].Status != c.want {
				t.Errorf("found %+v, want %s", got, c.want)
			}
			cfg.TLSKeyFile = dir + "/key.pem"
			testkit.Must(t, os.Chmod(cfg.TLSKeyFile, 0o644))
			if got := run(); len(got) != 2 || got[0].Status != Warn || !strings.Contains(got[0].Fix, "chmod 600") {
				t.Errorf("of a key that everybody can read: %+v", got)
			}
		})
	}
}

// TestCheckGatewayCertificate checks that Check compares a gateway's certificate with the address
// that the brokers announce to clients, which only the cluster knows.
func TestCheckGatewayCertificate(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1)) // announces 127.0.0.1
	testkit.Must(t, err)
	defer cluster.Close()
	client, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...))
	testkit.Must(t, err)
	defer client.Close()
	for name, want := range map[string]Status{"localhost": Fail, "127.0.0.1": OK} {
		dir, cfg := t.TempDir(), valid()
		writeCertificate(t, dir+"/cert.pem", dir+"/key.pem", name, time.Now().Add(90*24*time.Hour))
		cfg.TLS, err = ServerTLS(dir+"/cert.pem", dir+"/key.pem")
		testkit.Must(t, err)
		cfg.ACL, cfg.Gateway.Listen = nil, cluster.ListenAddrs()[0]
		run := &checks{cfg: &cfg}
		run.certificate()
		if got := run.findings; len(got) != 1 || got[0].Status != OK || !strings.HasPrefix(got[0].Found, name) || !strings.Contains(got[0].Found, `see "gateway certificate"`) {
			t.Errorf("before the addresses are known: %+v", got)
		}
		run = &checks{cfg: &cfg}
		run.advertised(t.Context(), kadm.NewClient(client))
		i := slices.IndexFunc(run.findings, func(f Finding) bool { return f.Check == "gateway certificate" })
		if i < 0 || run.findings[i].Status != want || want == Fail && (!strings.Contains(run.findings[i].Found, "localhost") ||
			!strings.Contains(run.findings[i].Found, cluster.ListenAddrs()[0]) || run.findings[i].Fix == "") {
			t.Errorf("with a certificate for %s: %+v, want %s", name, run.findings, want)
		}
	}
}

// TestGatewayCertificateOfSeveral checks a certificate with the addresses of several gateways. It
// needs the name of this host's gateway only.
func TestGatewayCertificateOfSeveral(t *testing.T) {
	all := []string{"k1.example.org:9092", "k2.example.org:9092", "k3.example.org:9092"}
	for name, c := range map[string]struct {
		names, all []string
		listen     string
		here       string // the hosts that are this one
		want       Status
		says       string
	}{
		"all of them":           {[]string{"*.example.org"}, all, ":9092", "", OK, "contains"},
		"this one":              {[]string{"k2.example.org"}, all, ":9092", "k2.example.org", OK, "k2.example.org:9092"},
		"another one":           {[]string{"k1.example.org"}, all, ":9092", "k2.example.org", Fail, "k2.example.org:9092"},
		"one, behind a NAT":     {[]string{"k1.example.org"}, all, ":9092", "", OK, "k1.example.org:9092; make sure"},
		"none, behind a NAT":    {[]string{"localhost"}, all, ":9092", "", Fail, "localhost"},
		"no names":              {[]string{""}, all, ":9092", "k1.example.org", Fail, "k1.example.org:9092"},
		"several of this host":  {[]string{"b"}, []string{"a:1", "b:2", "c:3"}, ":2", "a b c", OK, "b:2"},
		"another of this host":  {[]string{"a"}, []string{"a:1", "b:2", "c:3"}, ":2", "a b c", Fail, "b:2"},
		"another port is shown": {[]string{"a"}, []string{"a:1", "b:2"}, ":9", "a b", Fail, "b:2"},
	} {
		t.Run(name, func(t *testing.T) {
			certificate, _ := testkit.Certificate(t, time.Now().Add(time.Hour), c.names...)
			got := gatewayCertificate(certificate.Leaf, c.all, c.listen, func(host string) bool { return slices.Contains(strings.Fields(c.here), host) })
			if got.Status != c.want || !strings.Contains(got.Found, c.says) || (got.Fix == "") != (c.want == OK) {
				t.Errorf("found %+v, want %s with %q", got, c.want, c.says)
			}
		})
	}
}

// TestCheckAdmission checks that Check says who may use the fabric, and warns if nobody can block them.
func TestCheckAdmission(t *testing.T) {
	cfg := valid()
	run := &checks{cfg: &cfg}
	cfg.Admission.Operators = nil
	run.admission()
	cfg.Admission.Domains, cfg.Admission.Operators = []string{"example.edu"}, []string{"d1a590a0-0000-4000-8000-000000000001"}
	run.admission()
	want := []Status{OK, Warn, OK}
	for i, f := range run.findings {
		if i >= len(want) || f.Status != want[i] {
			t.Errorf("found %+v, want %v", run.findings, want)
		}
	}
	if !strings.HasPrefix(run.findings[0].Found, "everybody") || !strings.Contains(run.findings[2].Found, "example.edu") {
		t.Errorf("found %+v", run.findings)
	}
}

// TestCheckScope checks that Check reports whether clients will send their tokens to the hosts,
// given the scope.
func TestCheckScope(t *testing.T) {
	const byHost, byAPI = "https://auth.globus.org/scopes/example.org/logging", "https://auth.globus.org/scopes/d1a590a0-0000-4000-8000-0000000000a1/logging"
	for name, c := range map[string]struct {
		scope     string
		bootstrap []string
		want      Status
		found     string
	}{
		"names the host":         {byHost, []string{"kafka1.example.org:9092"}, OK, "to diaspora.example.org, kafka1.example.org"},
		"a gateway outside":      {byHost, []string{"kafka1.example.org:9092", "192.0.2.1:9092"}, Fail, "192.0.2.1 is not below example.org"},
		"names the API":          {byAPI, []string{"kafka1.example.org:9092"}, Warn, "names no host, so users have to confirm these hosts at their first login: diaspora.example.org, kafka1.example.org"},
		"of a service of Globus": {"urn:globus:auth:scope:groups.api.globus.org:all", []string{"kafka1.example.org:9092"}, Fail, "a scope of groups.api.globus.org"},
	} {
		cfg := valid()
		cfg.PublicURL, cfg.Globus.Scope, cfg.ACL.Bootstrap = "https://diaspora.example.org", c.scope, c.bootstrap
		run := &checks{cfg: &cfg}
		run.scope()
		if len(run.findings) != 1 || run.findings[0].Status != c.want || !strings.Contains(run.findings[0].Found, c.found) || (run.findings[0].Fix == "") != (c.want == OK) {
			t.Errorf("%s: found %+v, want %s that says %q", name, run.findings, c.want, c.found)
		}
	}
}

// TestTrustedProxies checks that a part sees the client addresses that a load balancer sends.
func TestTrustedProxies(t *testing.T) {
	cfg := valid()
	cfg.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	cfg.Diagnostics = slog.New(slog.DiscardHandler)
	clients := make(chan string, 1)
	p := cfg.port("a part", "127.0.0.1:0")
	p.Serve = func(ctx context.Context, ln net.Listener) error {
		conn, err := ln.Accept()
		if err != nil {
			return err
		}
		clients <- conn.RemoteAddr().String()
		return conn.Close()
	}
	ended, err := p.Start()
	testkit.Must(t, err)
	conn, err := net.Dial("tcp", p.Address)
	testkit.Must(t, err)
	defer conn.Close()
	if _, err := conn.Write([]byte("\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x07\xc6\x33\x64\x01\x1f\x90\x23\x84")); err != nil {
		t.Fatal(err)
	}
	<-ended
	testkit.Must(t, p.Stop())
	if got := <-clients; got != "192.0.2.7:8080" {
		t.Errorf("the part serves %s, want 192.0.2.7:8080", got)
	}
}
