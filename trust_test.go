package diaspora_test

import (
	"context"
	"errors"
	"net"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// These tests are attacks. A user is led to an ACL endpoint at evil.example.com. Its discovery
// document says whatever would get it a token that is valid elsewhere.

const (
	// The scopes of the genuine fabric: one that names only its API, and one that
	// names the host that Globus has verified.
	scopeOfAPI  = globusdev.Scope
	scopeOfHost = "https://auth.globus.org/scopes/streams.example.org/logging"
	scopeOfEvil = "https://auth.globus.org/scopes/evil.example.com/logging"
	groupsScope = "urn:globus:auth:scope:groups.api.globus.org:view_my_groups_and_memberships"
	transfer    = "urn:globus:auth:scope:transfer.api.globus.org:all"
)

// startGlobus starts a Globus Auth that knows these scopes. It stands for the real one:
// GLOBUS_SDK_SERVICE_URL_AUTH names it, so it counts as trusted by the user.
func startGlobus(t *testing.T) *globusdev.Server {
	t.Helper()
	server := httptest.NewUnstartedServer(nil)
	auth, err := globusdev.Open(globusdev.Config{Issuer: "http://" + server.Listener.Addr().String(), Scopes: []globusdev.ScopeDef{
		{Scope: scopeOfHost, ResourceServer: globusdev.ResourceServerID},
		{Scope: scopeOfEvil, ResourceServer: globusdev.ResourceServerID},
		{Scope: transfer, ResourceServer: "transfer.api.globus.org"},
	}})
	testkit.Must(t, err)
	t.Cleanup(func() { auth.Close() })
	server.Config.Handler = auth
	server.Start()
	t.Cleanup(server.Close)
	return auth
}

// startThief starts the attacker's endpoint. Its document names the genuine resource server and the
// attacker's brokers; change may set the rest.
func startThief(t *testing.T, globus string, change func(*diaspora.Discovery, *fabrictest.Thief)) *fabrictest.Thief {
	t.Helper()
	thief := fabrictest.NewThief(t, "*.example.com", "*.example.org", "*.streams.example.org")
	for host, address := range map[string]string{
		"evil.example.com:443": thief.HTTPS(), "streams.example.org:443": thief.HTTPS(), "evil.example.com:80": thief.HTTP(),
	} {
		diaspora.Hosts.Store(host, address) // replaces that of the previous test; these tests do not run in parallel
	}
	d := diaspora.Discovery{
		Brokers: []string{"evil.example.com:9092"}, Security: "tls", CA: thief.CA,
		Globus: diaspora.DiscoveryGlobus{
			Issuer: globus, ClientID: globusdev.NativeClientID, ResourceServer: globusdev.ResourceServerID, Scope: scopeOfAPI,
		},
	}
	if change != nil {
		change(&d, thief)
	}
	thief.Says(d)
	return thief
}

// environ returns an environment that holds only the given variables.
func environ(pairs ...string) func(string) string {
	env := map[string]string{}
	for p := range slices.Chunk(pairs, 2) {
		env[p[0]] = p[1]
	}
	return func(name string) string { return env[name] }
}

// through connects to the attacker's gateway, whichever broker is dialed.
func through(thief *fabrictest.Thief, cfg diaspora.Config) diaspora.Config {
	cfg.DialTimeout = 2 * time.Second
	return diaspora.Through(cfg, func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, thief.Gateway())
	}, 0)
}

// uses are all ways in which a program may send a token.
var uses = map[string]func(context.Context, *testing.T, *fabrictest.Thief, diaspora.Config) error{
	"ACL endpoint": func(ctx context.Context, _ *testing.T, _ *fabrictest.Thief, cfg diaspora.Config) error {
		client, err := diaspora.NewClient(cfg)
		if err != nil {
			return err
		}
		_, err = client.Identity(ctx)
		return err
	},
	"dial": func(ctx context.Context, _ *testing.T, thief *fabrictest.Thief, cfg diaspora.Config) error {
		client, err := diaspora.Dial(ctx, through(thief, cfg))
		if err == nil {
			client.Close()
		}
		return err
	},
	"logger": func(ctx context.Context, _ *testing.T, thief *fabrictest.Thief, cfg diaspora.Config) error {
		logger, err := diaspora.OpenLogger(ctx, through(thief, cfg))
		if err == nil {
			logger.Close(ctx)
		}
		return err
	},
	"spool": func(ctx context.Context, t *testing.T, thief *fabrictest.Thief, cfg diaspora.Config) error {
		cfg = through(thief, cfg)
		cfg.SpoolDir = filepath.Join(t.TempDir(), "spool")
		return logged(ctx, cfg)
	},
	"consumer": func(ctx context.Context, _ *testing.T, thief *fabrictest.Thief, cfg diaspora.Config) error {
		consumer, err := diaspora.OpenConsumer(ctx, through(thief, cfg), diaspora.ConsumerOptions{Topics: []string{"weather"}})
		if err == nil {
			consumer.Close(ctx)
		}
		return err
	},
}

// logged logs an event with a spool, and returns why the event is not sent.
func logged(ctx context.Context, cfg diaspora.Config) error {
	logger, err := diaspora.OpenLogger(ctx, cfg)
	if err != nil {
		return err
	}
	defer logger.Close(ctx)
	if err := logger.Log(ctx, diaspora.Event{Topic: "weather", Value: []byte("21.5")}); err != nil {
		return err
	}
	for look := time.NewTicker(5 * time.Millisecond); ; <-look.C {
		switch s := logger.Stats().Spool; {
		case s.Why != nil:
			return s.Why
		case ctx.Err() != nil:
			return ctx.Err()
		}
	}
}

// attack is a discovery document and the environment of the user who reads it.
type attack struct {
	says     func(*diaspora.Discovery, *fabrictest.Thief)
	scope    string // of the refresh token in DIASPORA_REFRESH; if "", a client ID and secret are set instead
	noGlobus bool   // the user has not named the Globus Auth
	url      string // default: https://evil.example.com
	words    string // expected in the error
}

var attacks = map[string]attack{
	"the genuine scope, which names its API, and brokers of its own": {
		scope: scopeOfAPI, words: "names no host",
	},
	"the genuine scope, which names its host, and brokers of its own": {
		says:  func(d *diaspora.Discovery, _ *fabrictest.Thief) { d.Globus.Scope = scopeOfHost },
		scope: scopeOfHost, words: "evil.example.com is not below streams.example.org",
	},
	"the genuine scope and brokers": {
		says: func(d *diaspora.Discovery, _ *fabrictest.Thief) {
			d.Globus.Scope, d.Brokers = scopeOfHost, []string{"kafka.streams.example.org:9092"}
		},
		scope: scopeOfHost, words: "evil.example.com is not below streams.example.org",
	},
	"a scope of its own, for a token of the genuine API": {
		says:  func(d *diaspora.Discovery, _ *fabrictest.Thief) { d.Globus.Scope = scopeOfEvil },
		scope: scopeOfHost, words: "evil.example.com is not below streams.example.org",
	},
	"brokers on this machine": {
		says: func(d *diaspora.Discovery, _ *fabrictest.Thief) {
			d.Brokers = []string{"127.0.0.1:9092"}
		},
		scope: scopeOfAPI, words: "names no host",
	},
	"the genuine scope, to a client with a secret": {words: "names no host"},
	"the scope of Groups": {
		says: func(d *diaspora.Discovery, _ *fabrictest.Thief) {
			d.Globus.Scope, d.Globus.ResourceServer = groupsScope, "groups.api.globus.org"
		},
		words: "groups.api.globus.org",
	},
	"the scope of Transfer": {
		says: func(d *diaspora.Discovery, _ *fabrictest.Thief) {
			d.Globus.Scope, d.Globus.ResourceServer = transfer, "transfer.api.globus.org"
		},
		words: "transfer.api.globus.org",
	},
	"two scopes in one": {
		says: func(d *diaspora.Discovery, _ *fabrictest.Thief) {
			d.Globus.Scope, d.Globus.ResourceServer = scopeOfAPI+" "+groupsScope, "groups.api.globus.org"
		},
		words: "is not one scope",
	},
	"the scope openid, for a token of Globus Auth itself": {
		says: func(d *diaspora.Discovery, _ *fabrictest.Thief) {
			d.Globus.Scope, d.Globus.ResourceServer = "openid", "auth.globus.org"
		},
		words: "openid",
	},
	"a Globus Auth of its own": {
		says: func(d *diaspora.Discovery, _ *fabrictest.Thief) {
			d.Globus.Issuer, d.Globus.Scope = "https://evil.example.com", scopeOfEvil
		},
		scope: scopeOfAPI, noGlobus: true, words: "https://evil.example.com is not Globus",
	},
	"a Globus Auth of its own, on this machine, for a refresh token": {
		says:  func(d *diaspora.Discovery, thief *fabrictest.Thief) { d.Globus.Issuer = "http://" + thief.HTTP() },
		scope: scopeOfAPI, noGlobus: true, words: "is not Globus",
	},
	"a Globus Auth of its own, on this machine, for a client's secret": {
		says:     func(d *diaspora.Discovery, thief *fabrictest.Thief) { d.Globus.Issuer = "http://" + thief.HTTP() },
		noGlobus: true, words: "is not Globus",
	},
	"another person's Globus Auth": {scope: scopeOfAPI, noGlobus: true, words: "is not Globus"},
	"plain http":                   {scope: scopeOfHost, url: "http://evil.example.com", words: "is not https"},
}

// TestHostileDiscovery fails when the attacker gets a token, or when the error does not tell the
// user why.
func TestHostileDiscovery(t *testing.T) {
	auth := startGlobus(t)
	for name, a := range attacks {
		t.Run(name, func(t *testing.T) {
			thief := startThief(t, auth.Issuer(), a.says)
			for use, send := range uses {
				err := send(testkit.Within(t), t, thief, a.victim(t, auth, thief, t.TempDir()))
				if err == nil || !strings.Contains(err.Error(), a.words) || diaspora.Hint(err) == "" {
					t.Errorf("%s: %v, want an error that says %q, and what to do", use, err, a.words)
				}
			}
			if loot := thief.Loot(); len(loot) > 0 {
				t.Errorf("the attacker has\n%s", strings.Join(loot, "\n"))
			}
		})
	}
}

// victim returns the configuration of a user who was led to the attacker, with profiles in dir.
func (a attack) victim(t *testing.T, auth *globusdev.Server, thief *fabrictest.Thief, dir string, more ...string) diaspora.Config {
	t.Helper()
	url := a.url
	if url == "" {
		url = "https://evil.example.com"
	}
	env := append(more, "DIASPORA_CONFIG_DIR", dir, "DIASPORA_CA_FILE", thief.CAFile, "DIASPORA_URL", url)
	if !a.noGlobus {
		env = append(env, "GLOBUS_SDK_SERVICE_URL_AUTH", auth.Issuer())
	}
	if a.scope == "" {
		secret, err := auth.ClientSecret(globusdev.ServiceClientID)
		testkit.Must(t, err)
		env = append(env, "DIASPORA_CLIENT_ID", globusdev.ServiceClientID, "DIASPORA_CLIENT_SECRET", secret.Reveal())
	} else {
		env = append(env, "DIASPORA_REFRESH", refreshTokenFor(t, auth, a.scope))
	}
	cfg, err := diaspora.ConfigFromEnv(environ(env...))
	testkit.Must(t, err)
	return cfg
}

// refreshTokenFor returns a new refresh token of ada's.
func refreshTokenFor(t *testing.T, auth *globusdev.Server, scope string) string {
	t.Helper()
	grant, err := auth.IssueTokens(fabrictest.Ada, globusdev.NativeClientID, []string{scope}, true)
	testkit.Must(t, err)
	return grant.Tokens[0].RefreshToken.Reveal()
}

// TestHostilePlainHTTP fails when a discovery document is accepted that anybody on the network path
// could have written.
func TestHostilePlainHTTP(t *testing.T) {
	thief := startThief(t, "https://auth.globus.org", nil)
	client, err := diaspora.NewClient(diaspora.Config{URL: "http://evil.example.com"})
	testkit.Must(t, err)
	if _, err := client.Discover(t.Context()); !errors.Is(err, diaspora.ErrInvalid) || !strings.Contains(err.Error(), "is not https") {
		t.Errorf("Discover = %v, want ErrInvalid that says why", err)
	}
	if asked := thief.Asked(); len(asked) > 0 {
		t.Errorf("the attacker was asked for %s", asked)
	}
}

// genuine is the document of the fabric at streams.example.org.
func genuine(scope string) func(*diaspora.Discovery, *fabrictest.Thief) {
	return func(d *diaspora.Discovery, _ *fabrictest.Thief) {
		d.Globus.Scope, d.Brokers = scope, []string{"kafka.streams.example.org:9092"}
	}
}

// got fails unless tokens were sent to both the ACL endpoint and the gateway, or to neither, as
// wanted.
func got(t *testing.T, what string, thief *fabrictest.Thief, want bool) {
	t.Helper()
	loot := strings.Join(thief.Loot(), "\n")
	if http, kafka := strings.Contains(loot, "/v1/identity: "), strings.Contains(loot, "Kafka: "); http != want || kafka != want {
		t.Errorf("%s: tokens went to the ACL endpoint: %v, to the gateway: %v, want %v", what, http, kafka, want)
	}
}

// TestTokensGoWhereTheyBelong has fabrics that are trusted by themselves, or because the user has
// confirmed them in one of the possible ways; and the same without the confirmation.
func TestTokensGoWhereTheyBelong(t *testing.T) {
	auth := startGlobus(t)
	saved := func(confirmed bool, scope string) func(*testing.T, string, *fabrictest.Thief) {
		return func(t *testing.T, dir string, thief *fabrictest.Thief) {
			t.Helper()
			store(t, diaspora.OpenProfiles(dir), auth, thief, confirmed, scope)
		}
	}
	for name, try := range map[string]struct {
		attack
		more  []string // further environment variables
		setup func(*testing.T, string, *fabrictest.Thief)
		want  bool
	}{
		"a scope that names the host": {attack: attack{says: genuine(scopeOfHost), scope: scopeOfHost}, want: true},
		"a scope that names its API":  {attack: attack{says: genuine(scopeOfAPI), scope: scopeOfAPI, words: "diaspora login https://streams.example.org"}},
		"with brokers that the user names": {
			attack: attack{says: genuine(scopeOfAPI), scope: scopeOfAPI},
			more:   []string{"DIASPORA_BOOTSTRAP", "kafka.streams.example.org:9092"}, want: true,
		},
		"with a profile that was confirmed": {
			attack: attack{says: genuine(scopeOfAPI), scope: scopeOfAPI}, setup: saved(true, scopeOfAPI), want: true,
		},
		"with a profile of an earlier version": {
			attack: attack{says: genuine(scopeOfAPI), scope: scopeOfAPI, words: "diaspora login --profile home"}, setup: saved(false, scopeOfAPI),
		},
		"with a profile of an earlier version, whose scope names the host": {
			attack: attack{says: genuine(scopeOfHost), scope: scopeOfHost}, setup: saved(false, scopeOfHost), want: true,
		},
		"with a confirmed profile, for a token of another API": {
			attack: attack{says: genuine(scopeOfAPI), scope: scopeOfEvil, words: "belongs to evil.example.com"}, setup: saved(true, scopeOfAPI),
		},
		"as a client": {attack: attack{says: genuine(scopeOfHost)}, want: true},
		"as a client, to a fabric on this machine that leads elsewhere": {
			attack: attack{says: genuine(scopeOfAPI), url: "https://127.0.0.1", words: "names no host"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			thief := startThief(t, auth.Issuer(), try.says)
			if try.url == "" {
				try.url = "https://streams.example.org"
			} else {
				try.url = "https://" + thief.HTTPS()
			}
			for use, send := range uses {
				if use == "spool" || use == "consumer" || use == "logger" {
					continue // these uses dial; a Logger with a spool does not report success
				}
				dir := t.TempDir()
				if try.setup != nil {
					try.setup(t, dir, thief)
				}
				err := send(testkit.Within(t), t, thief, try.victim(t, auth, thief, dir, try.more...))
				if (err == nil) != try.want || err != nil && !strings.Contains(err.Error(), try.words) {
					t.Errorf("%s: %v, want success: %v, or an error that says %q", use, err, try.want, try.words)
				}
			}
			got(t, name, thief, try.want)
		})
	}
}

// store saves the profile "home" of the genuine fabric with a login of ada's.
func store(t *testing.T, profiles *diaspora.Profiles, auth *globusdev.Server, thief *fabrictest.Thief, confirmed bool, scope string) {
	t.Helper()
	d := diaspora.Discovery{
		Brokers: []string{"kafka.streams.example.org:9092"}, Security: "tls", CA: thief.CA,
		Globus: diaspora.DiscoveryGlobus{
			Issuer: auth.Issuer(), ClientID: globusdev.NativeClientID, ResourceServer: globusdev.ResourceServerID, Scope: scope,
		},
	}
	grant, err := auth.IssueTokens(fabrictest.Ada, globusdev.NativeClientID, []string{scope}, true)
	testkit.Must(t, err)
	store, err := profiles.Store("home")
	testkit.Must(t, err)
	for _, err := range []error{
		profiles.Save(diaspora.Profile{Name: "home", URL: "https://streams.example.org", Discovery: d, Confirmed: confirmed}),
		profiles.Use("home"),
		store.Save(t.Context(), &globus.Login{Issuer: auth.Issuer(), ClientID: globusdev.NativeClientID, Identity: grant.Identity, Tokens: grant.Tokens}),
	} {
		testkit.Must(t, err)
	}
}

// TestStoredLoginsGoWhereTheyBelong has profiles of this version and of earlier ones.
func TestStoredLoginsGoWhereTheyBelong(t *testing.T) {
	auth := startGlobus(t)
	for name, try := range map[string]struct {
		scope     string
		confirmed bool
		env       []string
		want      string // expected in the error; "" for none
	}{
		"confirmed":                        {scopeOfAPI, true, nil, ""},
		"of an earlier version":            {scopeOfAPI, false, nil, `run "diaspora login --profile home" to see and confirm its hosts`},
		"of an earlier version, and named": {scopeOfAPI, false, []string{"DIASPORA_BOOTSTRAP", "kafka.streams.example.org:9092", "DIASPORA_URL", "https://streams.example.org"}, ""},
		"of a scope that names the host":   {scopeOfHost, false, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			thief := startThief(t, auth.Issuer(), genuine(try.scope))
			dir := t.TempDir()
			store(t, diaspora.OpenProfiles(dir), auth, thief, try.confirmed, try.scope)
			env := append(try.env, "DIASPORA_CONFIG_DIR", dir, "DIASPORA_CA_FILE", thief.CAFile, "GLOBUS_SDK_SERVICE_URL_AUTH", auth.Issuer())
			for _, use := range []string{"ACL endpoint", "dial"} {
				cfg, err := diaspora.ConfigFromEnv(environ(env...))
				testkit.Must(t, err)
				err = uses[use](t.Context(), t, thief, cfg)
				if (err == nil) != (try.want == "") || err != nil && (!errors.Is(err, diaspora.ErrUnauthenticated) || diaspora.Hint(err) != try.want) {
					t.Errorf("%s: %v, want %q", use, err, try.want)
				}
			}
			got(t, name, thief, try.want == "")
		})
	}
}

// TestRememberedDiscoveryIsNotBelieved has a credential whose fabric was hostile when it was last
// reached, and is unreachable now.
func TestRememberedDiscoveryIsNotBelieved(t *testing.T) {
	auth := startGlobus(t)
	thief := startThief(t, auth.Issuer(), nil)
	dir, refresh := t.TempDir(), refreshTokenFor(t, auth, scopeOfAPI)
	open := func() error {
		cfg, err := diaspora.ConfigFromEnv(environ("DIASPORA_CONFIG_DIR", dir, "DIASPORA_CA_FILE", thief.CAFile, "DIASPORA_URL", "https://evil.example.com",
			"GLOBUS_SDK_SERVICE_URL_AUTH", auth.Issuer(), "DIASPORA_REFRESH", refresh))
		testkit.Must(t, err)
		return uses["dial"](t.Context(), t, thief, cfg)
	}
	if err := open(); err == nil {
		t.Fatal("the attacker was believed")
	}
	diaspora.Hosts.Store("evil.example.com:443", testkit.FreeAddress(t))
	if err := open(); !errors.Is(err, diaspora.ErrUnauthenticated) || !strings.Contains(err.Error(), "names no host") {
		t.Errorf("by what was remembered: %v, want ErrUnauthenticated that says why", err)
	}
	if loot := thief.Loot(); len(loot) > 0 {
		t.Errorf("the attacker has\n%s", strings.Join(loot, "\n"))
	}
}

// TestOneStrangerAmongBrokers has a genuine endpoint that names one broker on a foreign host.
func TestOneStrangerAmongBrokers(t *testing.T) {
	auth := startGlobus(t)
	thief := startThief(t, auth.Issuer(), func(d *diaspora.Discovery, _ *fabrictest.Thief) {
		d.Globus.Scope, d.Brokers = scopeOfHost, []string{"kafka.streams.example.org:9092", "evil.example.com:9092"}
	})
	a := attack{scope: scopeOfHost, url: "https://streams.example.org"}
	if err := uses["dial"](t.Context(), t, thief, a.victim(t, auth, thief, t.TempDir())); err == nil || !strings.Contains(err.Error(), "evil.example.com is not below") {
		t.Errorf("Dial = %v, want an error that names the stranger", err)
	}
	if loot := thief.Loot(); len(loot) > 0 {
		t.Errorf("tokens went out:\n%s", strings.Join(loot, "\n"))
	}
}

// TestAdvertisedBrokers has a genuine gateway that advertises a broker on a foreign host. Whatever
// the client does, it must not send a token there.
func TestAdvertisedBrokers(t *testing.T) {
	auth := startGlobus(t)
	for name, scope := range map[string]string{"a scope that names the host": scopeOfHost, "a profile that was confirmed": scopeOfAPI} {
		t.Run(name, func(t *testing.T) {
			honest := startThief(t, auth.Issuer(), genuine(scope))
			honest.Leads("evil.example.com:9092")
			evil := fabrictest.NewThief(t, "evil.example.com")
			dir := t.TempDir()
			store(t, diaspora.OpenProfiles(dir), auth, honest, true, scope)
			cfg, err := diaspora.ConfigFromEnv(environ("DIASPORA_CONFIG_DIR", dir, "DIASPORA_CA_FILE", evil.CAFile))
			testkit.Must(t, err)
			cfg.DialTimeout = 5 * time.Second
			cfg = diaspora.Through(cfg, func(ctx context.Context, network, address string) (net.Conn, error) {
				at := honest.Gateway()
				if strings.HasPrefix(address, "evil.") {
					at = evil.Gateway()
				}
				return new(net.Dialer).DialContext(ctx, network, at)
			}, 0)
			const words = "evil.example.com is not "
			for use, send := range map[string]func(context.Context) error{
				"Log": func(ctx context.Context) error {
					logger, err := diaspora.OpenLogger(ctx, cfg)
					if err != nil {
						return err
					}
					err = logger.Log(ctx, diaspora.Event{Topic: "weather", Value: []byte("21.5")})
					ended, cancel := context.WithCancel(ctx)
					cancel() // the event cannot be delivered
					logger.Close(ended)
					return err
				},
				"Log with a spool": func(ctx context.Context) error {
					spooled := cfg
					spooled.SpoolDir = filepath.Join(t.TempDir(), "spool")
					return logged(ctx, spooled)
				},
				"Records": func(ctx context.Context) error {
					consumer, err := diaspora.OpenConsumer(ctx, cfg, diaspora.ConsumerOptions{Topics: []string{"weather"}})
					if err != nil {
						return err
					}
					defer consumer.Close(ctx)
					for _, err := range consumer.Records(ctx) {
						return err
					}
					return nil
				},
			} {
				err := send(testkit.Within(t))
				if !errors.Is(err, diaspora.ErrUnauthenticated) || !strings.Contains(err.Error(), words) || diaspora.Hint(err) == "" {
					t.Errorf("%s: %v, want ErrUnauthenticated that says %q, and what to do", use, err, words)
				}
			}
			if loot := evil.Loot(); len(loot) > 0 {
				t.Errorf("the attacker has\n%s", strings.Join(loot, "\n"))
			}
			if len(honest.Loot()) == 0 {
				t.Error("the genuine gateway has no token either: nothing was tried")
			}
		})
	}
}
