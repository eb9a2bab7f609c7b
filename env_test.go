package diaspora

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/accesskey"
	"github.com/diaspora-streams/diaspora/internal/learned"
	"github.com/diaspora-streams/diaspora/internal/spool"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/trust"
)

// getenv returns an environment that holds only the given names and values.
func getenv(pairs ...string) func(string) string {
	env := map[string]string{}
	for p := range slices.Chunk(pairs, 2) {
		env[p[0]] = p[1]
	}
	return func(name string) string { return env[name] }
}

func someDiscovery() Discovery {
	return Discovery{
		Brokers: []string{"127.0.0.1:9092"}, Security: "plaintext",
		Globus: DiscoveryGlobus{Issuer: "http://127.0.0.1:1", ClientID: "client", ResourceServer: "server", Scope: "scope"},
	}
}

// saved returns a directory of profiles; each is logged in at https://NAME.example.org.
func saved(t testing.TB, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	p := OpenProfiles(dir)
	for i, name := range names {
		testkit.Must(t, p.Save(Profile{Name: name, URL: "https://" + name + ".example.org", Discovery: someDiscovery()}))
		store, err := p.Store(name)
		testkit.Must(t, err)
		login := &globus.Login{
			Identity: globus.Identity{Subject: "subject-" + name, Username: name + "@example.edu"},
			Tokens:   []globus.Token{{ResourceServer: "server", AccessToken: canary, RefreshToken: canary + "-refresh", Expiry: time.Now().Add(time.Hour)}},
		}
		testkit.Must(t, store.Save(t.Context(), login))
		if i == 0 {
			testkit.Must(t, p.Use(name))
		}
	}
	return dir
}

// TestConfigFromEnv covers every variable, and which of two takes precedence.
func TestConfigFromEnv(t *testing.T) {
	t.Parallel()
	dir := saved(t, "first", "second")
	_, pemBytes := testkit.Certificate(t, time.Now().Add(time.Hour), "127.0.0.1")
	ca := filepath.Join(t.TempDir(), "ca.pem")
	testkit.Must(t, os.WriteFile(ca, pemBytes, 0o600))
	for name, try := range map[string]struct {
		env                []string
		url, who           string
		brokers, caFile    string
		origin, loginHints string
	}{
		"current profile": {
			url: "https://first.example.org", who: "first@example.edu", origin: `profile "first"`, loginHints: "--profile first",
		},
		"another profile": {
			env: []string{"DIASPORA_PROFILE", "second"},
			url: "https://second.example.org", who: "second@example.edu", origin: `profile "second"`, loginHints: "--profile second",
		},
		"URL of a profile that is not current": {
			env: []string{"DIASPORA_URL", " https://second.example.org/acl "},
			url: "https://second.example.org", who: "second@example.edu", origin: `profile "second"`, loginHints: "--profile second",
		},
		"URL and its profile": {
			env: []string{"DIASPORA_URL", "https://second.example.org/", "DIASPORA_PROFILE", "second"},
			url: "https://second.example.org", who: "second@example.edu", origin: `profile "second"`, loginHints: "--profile second",
		},
		"refresh token, current profile": {
			env: []string{"DIASPORA_REFRESH", " " + canary + "\n"},
			url: "https://first.example.org", who: "this identity", origin: "DIASPORA_REFRESH", loginHints: "DIASPORA_REFRESH",
		},
		"refresh token and URL": {
			env: []string{"DIASPORA_REFRESH", canary, "DIASPORA_URL", "https://third.example.org"},
			url: "https://third.example.org", who: "this identity", origin: "DIASPORA_REFRESH", loginHints: "DIASPORA_REFRESH",
		},
		"service before refresh token": {
			env: []string{"DIASPORA_REFRESH", canary, "DIASPORA_CLIENT_ID", "service", "DIASPORA_CLIENT_SECRET", canary},
			url: "https://first.example.org", who: "service@clients.auth.globus.org", origin: "DIASPORA_CLIENT_ID", loginHints: "DIASPORA_CLIENT_SECRET",
		},
		"brokers": {
			env: []string{"DIASPORA_BOOTSTRAP", "127.0.0.1:1, 127.0.0.1:2"},
			url: "https://first.example.org", who: "first@example.edu", origin: `profile "first"`, brokers: "127.0.0.1:1,127.0.0.1:2",
		},
		"CA file": {
			env: []string{"DIASPORA_CA_FILE", ca},
			url: "https://first.example.org", who: "first@example.edu", origin: `profile "first"`, caFile: ca,
		},
	} {
		cfg, err := ConfigFromEnv(getenv(append(try.env, "DIASPORA_CONFIG_DIR", dir)...))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if cfg.URL != try.url || cfg.identityName() != try.who || cfg.origin != try.origin || !strings.Contains(cfg.login, try.loginHints) {
			t.Errorf("%s: URL %s, %s by %s, hint %s; want %s, %s by %s, %s", name, cfg.URL, cfg.identityName(), cfg.origin, cfg.login, try.url, try.who, try.origin, try.loginHints)
		}
		if got := strings.Join(cfg.Brokers, ","); got != try.brokers || cfg.CAFile != try.caFile || cfg.TokenSource == nil {
			t.Errorf("%s: brokers %s, CA file %q; want %s, %q", name, got, cfg.CAFile, try.brokers, try.caFile)
		}
		if strings.Contains(fmt.Sprintf("%v %+v %#v", cfg, cfg, cfg), canary) {
			t.Errorf("%s: the Config shows a secret", name)
		}
	}
}

// A well-formed access key.
const (
	keyIDOfTests     = "key-abcdefghij234567"
	keySecretOfTests = "dks_" + canary + "___________________"
)

// keyFileOfTests is a file that holds this key.
func keyFileOfTests(t testing.TB, address string) string {
	t.Helper()
	text, err := accesskey.Format("", getenv("DIASPORA_URL", address, "DIASPORA_KEY_ID", keyIDOfTests, "DIASPORA_KEY_SECRET", keySecretOfTests))
	testkit.Must(t, err)
	path := filepath.Join(t.TempDir(), "key.env")
	testkit.Must(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// TestKeyFromEnv covers each way to name an access key, next to a login that the key replaces.
func TestKeyFromEnv(t *testing.T) {
	t.Parallel()
	dir := saved(t, "first", "second")
	file := keyFileOfTests(t, "https://second.example.org")
	elsewhere := keyFileOfTests(t, "https://third.example.org")
	for name, try := range map[string]struct {
		env         []string
		url, origin string
	}{
		"file":                   {[]string{"DIASPORA_KEY_FILE", file}, "https://second.example.org", "DIASPORA_KEY_FILE"},
		"file, no profile of it": {[]string{"DIASPORA_KEY_FILE", elsewhere}, "https://third.example.org", "DIASPORA_KEY_FILE"},
		"file and its URL":       {[]string{"DIASPORA_KEY_FILE", file, "DIASPORA_URL", "https://second.example.org/acl"}, "https://second.example.org", "DIASPORA_KEY_FILE"},
		"file and its profile":   {[]string{"DIASPORA_KEY_FILE", file, "DIASPORA_PROFILE", "second"}, "https://second.example.org", "DIASPORA_KEY_FILE"},
		"file and the same key":  {[]string{"DIASPORA_KEY_FILE", file, "DIASPORA_KEY_ID", keyIDOfTests}, "https://second.example.org", "DIASPORA_KEY_FILE"},
		"variables":              {[]string{"DIASPORA_URL", "https://third.example.org", "DIASPORA_KEY_ID", keyIDOfTests, "DIASPORA_KEY_SECRET", keySecretOfTests}, "https://third.example.org", "DIASPORA_KEY_ID"},
		"variables and profile":  {[]string{"DIASPORA_PROFILE", "first", "DIASPORA_KEY_ID", keyIDOfTests, "DIASPORA_KEY_SECRET", keySecretOfTests}, "https://first.example.org", "DIASPORA_KEY_ID"},
	} {
		cfg, err := ConfigFromEnv(getenv(append(try.env, "DIASPORA_CONFIG_DIR", dir)...))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if cfg.URL != try.url || cfg.origin != try.origin || cfg.Key != (Key{keyIDOfTests, keySecretOfTests}) || cfg.TokenSource != nil || cfg.Identity.Subject != "" {
			t.Errorf("%s: %+v, by %s", name, cfg, cfg.origin)
		}
		if err := cfg.complete(); err != nil || cfg.identityName() != "the access key "+keyIDOfTests || !strings.Contains(cfg.login, "diaspora key create") {
			t.Errorf("%s: %v, as %s, hint %q", name, err, cfg.identityName(), cfg.login)
		}
		if strings.Contains(fmt.Sprintf("%v %+v %#v", cfg, cfg, cfg), canary) {
			t.Errorf("%s: the Config shows a secret", name)
		}
	}
}

// TestKeyIsNoLogin fails when an operation that needs a person's login sends an access key instead
// of returning an error that says so.
func TestKeyIsNoLogin(t *testing.T) {
	t.Parallel()
	for name, try := range map[string]struct {
		env  []string
		hint string
	}{
		"variables": {[]string{"DIASPORA_KEY_ID", keyIDOfTests, "DIASPORA_KEY_SECRET", keySecretOfTests}, "unset DIASPORA_KEY_ID and DIASPORA_KEY_SECRET and run"},
		"file":      {[]string{"DIASPORA_KEY_FILE", keyFileOfTests(t, "https://h.example.org")}, "unset DIASPORA_KEY_FILE and run"},
	} {
		cfg, err := ConfigFromEnv(getenv(append(try.env, "DIASPORA_URL", "https://h.example.org", "DIASPORA_CONFIG_DIR", t.TempDir())...))
		testkit.Must(t, err)
		client, err := NewClient(cfg)
		testkit.Must(t, err)
		for op, err := range map[string]error{
			"Claim": second(client.Claim(t.Context(), ClaimRequest{Name: "weather"})), "Topics": second(client.Topics(t.Context())),
			"CreateKey": second(client.CreateKey(t.Context(), AccessKeyRequest{})), "Keys": second(client.Keys(t.Context())),
			"RevokeKey": client.RevokeKey(t.Context(), keyIDOfTests), "Blocked": second(client.Blocked(t.Context())),
		} {
			if !errors.Is(err, ErrUnauthenticated) || !strings.Contains(err.Error(), "takes the login of a person") || !strings.Contains(Hint(err), try.hint) {
				t.Errorf("%s, %s: %v", name, op, err)
			}
			withoutCanary(t, err)
		}
	}
}

// TestKeyIsOneCredential checks that contradictory credentials are rejected before anything is
// sent.
func TestKeyIsOneCredential(t *testing.T) {
	t.Parallel()
	good := Config{URL: "https://h.example.org", Brokers: []string{"127.0.0.1:1"}, Key: Key{keyIDOfTests, keySecretOfTests}}
	both, half, name := good, good, good
	both.TokenSource = &listeningSource{}
	half.Key.Secret = ""
	name.Key.ID = "beamline-7"
	for what, cfg := range map[string]Config{"a token as well": both, "half a key": half, "a key's name": name} {
		_, dial := Dial(t.Context(), cfg)
		_, log := OpenLogger(t.Context(), cfg)
		for _, err := range []error{dial, log} {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("%s: %v, want ErrInvalid", what, err)
			}
			withoutCanary(t, err)
		}
	}
	if _, err := NewClient(both); !errors.Is(err, ErrInvalid) {
		t.Errorf("NewClient with a token as well: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

// TestEnvThatIsWrong fails when an error does not name the wrong variable, or contains a secret.
func TestEnvThatIsWrong(t *testing.T) {
	t.Parallel()
	dir := saved(t, "first", "second")
	keyFile, openFile := keyFileOfTests(t, "https://second.example.org"), keyFileOfTests(t, "https://second.example.org")
	testkit.Must(t, os.Chmod(openFile, 0o644))
	for name, try := range map[string]struct {
		env  []string
		want error
		says string
	}{
		"nothing":         {[]string{"DIASPORA_CONFIG_DIR", t.TempDir()}, ErrNoProfile, `diaspora login URL`},
		"refresh only":    {[]string{"DIASPORA_CONFIG_DIR", t.TempDir(), "DIASPORA_REFRESH", canary}, ErrNoProfile, "DIASPORA_REFRESH says who signs in, but neither a profile nor DIASPORA_URL says to which fabric; set DIASPORA_URL as well"},
		"client only":     {[]string{"DIASPORA_CONFIG_DIR", t.TempDir(), "DIASPORA_CLIENT_ID", "x", "DIASPORA_CLIENT_SECRET", canary}, ErrNoProfile, "DIASPORA_CLIENT_ID says who signs in"},
		"quoted token":    {[]string{"DIASPORA_URL", "https://h", "DIASPORA_REFRESH", `"` + canary + `"`}, ErrInvalid, "DIASPORA_REFRESH has quotation marks in it; set it with"},
		"access token":    {[]string{"DIASPORA_URL", "https://h", "DIASPORA_REFRESH", "dev-at-" + canary}, ErrInvalid, "DIASPORA_REFRESH holds an access token, which is no refresh token"},
		"cut token":       {[]string{"DIASPORA_REFRESH", canary + "…"}, ErrInvalid, "DIASPORA_REFRESH is cut off"},
		"URL only":        {[]string{"DIASPORA_CONFIG_DIR", t.TempDir(), "DIASPORA_URL", "https://h"}, ErrUnauthenticated, "DIASPORA_REFRESH"},
		"bad URL":         {[]string{"DIASPORA_URL", "h/acl?token=" + canary}, ErrInvalid, "DIASPORA_URL: "},
		"URL with a user": {[]string{"DIASPORA_URL", "https://" + canary + "@h"}, ErrInvalid, "DIASPORA_URL: "},
		"unknown profile": {[]string{"DIASPORA_PROFILE", "third"}, ErrNotFound, "--profile third"},
		"bad profile":     {[]string{"DIASPORA_PROFILE", "../first"}, ErrInvalid, "profile"},
		"two fabrics":     {[]string{"DIASPORA_PROFILE", "first", "DIASPORA_URL", "https://second.example.org"}, ErrInvalid, "DIASPORA_URL and DIASPORA_PROFILE"},
		"no secret":       {[]string{"DIASPORA_CLIENT_ID", "x"}, ErrInvalid, "DIASPORA_CLIENT_SECRET"},
		"secret only":     {[]string{"DIASPORA_CLIENT_SECRET", canary}, ErrInvalid, "DIASPORA_CLIENT_ID"},
		"bad brokers":     {[]string{"DIASPORA_BOOTSTRAP", "127.0.0.1:1,,"}, ErrInvalid, "DIASPORA_BOOTSTRAP: "},
		"CA file missing": {[]string{"DIASPORA_CA_FILE", dir + "/nothing"}, ErrInvalid, "DIASPORA_CA_FILE: "},
		"CA file of none": {[]string{"DIASPORA_CA_FILE", dir + "/current"}, ErrInvalid, "DIASPORA_CA_FILE: "},
		"a key as client": {[]string{"DIASPORA_CLIENT_ID", keyIDOfTests, "DIASPORA_CLIENT_SECRET", keySecretOfTests}, ErrInvalid, "DIASPORA_CLIENT_ID is for a client of Globus, and holds a part of an access key; set DIASPORA_KEY_ID and DIASPORA_KEY_SECRET instead"},
		"secret of a key": {[]string{"DIASPORA_CLIENT_ID", "x", "DIASPORA_CLIENT_SECRET", keySecretOfTests}, ErrInvalid, "DIASPORA_CLIENT_SECRET is for a client of Globus"},
		"key, no URL":     {[]string{"DIASPORA_KEY_ID", keyIDOfTests, "DIASPORA_KEY_SECRET", keySecretOfTests}, ErrNoProfile, "DIASPORA_KEY_ID says who signs in, but not to which fabric, and a key is sent only to the fabric that issued it; set DIASPORA_URL as well"},
		"half a key":      {[]string{"DIASPORA_URL", "https://h", "DIASPORA_KEY_ID", keyIDOfTests}, ErrInvalid, "DIASPORA_KEY_ID and DIASPORA_KEY_SECRET belong together"},
		"a key's name":    {[]string{"DIASPORA_URL", "https://h", "DIASPORA_KEY_ID", "beamline-7", "DIASPORA_KEY_SECRET", keySecretOfTests}, ErrInvalid, "it is not the name"},
		"key and refresh": {[]string{"DIASPORA_URL", "https://h", "DIASPORA_KEY_ID", keyIDOfTests, "DIASPORA_KEY_SECRET", keySecretOfTests, "DIASPORA_REFRESH", canary}, ErrInvalid, "DIASPORA_KEY_ID and DIASPORA_REFRESH both say who signs in; unset one of them"},
		"key and client":  {[]string{"DIASPORA_KEY_FILE", keyFile, "DIASPORA_CLIENT_ID", "x", "DIASPORA_CLIENT_SECRET", canary}, ErrInvalid, "DIASPORA_KEY_FILE and DIASPORA_CLIENT_ID both say"},
		"no key file":     {[]string{"DIASPORA_KEY_FILE", dir + "/nothing"}, ErrInvalid, "invalid: DIASPORA_KEY_FILE: key file " + dir + "/nothing: it does not exist; check the path, or make one with"},
		"open key file":   {[]string{"DIASPORA_KEY_FILE", openFile}, ErrInvalid, "chmod 600 " + openFile},
		"two URLs":        {[]string{"DIASPORA_KEY_FILE", keyFile, "DIASPORA_URL", "https://first.example.org"}, ErrInvalid, "is of the fabric https://second.example.org, and not of https://first.example.org"},
		"key and profile": {[]string{"DIASPORA_KEY_FILE", keyFile, "DIASPORA_PROFILE", "first"}, ErrInvalid, `is of another fabric than the profile "first"`},
		"bad Globus":      {[]string{"GLOBUS_SDK_ENVIRONMENT", "nowhere"}, ErrInvalid, "GLOBUS_SDK_ENVIRONMENT"},
		"bad Globus URL":  {[]string{"GLOBUS_SDK_SERVICE_URL_AUTH", "ftp://x", "DIASPORA_REFRESH", canary}, ErrInvalid, "GLOBUS_SDK_SERVICE_URL_AUTH"},
	} {
		if !slices.Contains(try.env, "DIASPORA_CONFIG_DIR") {
			try.env = append(try.env, "DIASPORA_CONFIG_DIR", dir)
		}
		cfg, err := ConfigFromEnv(getenv(try.env...))
		if !errors.Is(err, try.want) || !strings.Contains(err.Error(), try.says) || !strings.HasPrefix(err.Error(), "configuration: ") {
			t.Errorf("%s: %v, want %v that says %q", name, err, try.want, try.says)
		}
		if cfg.TokenSource != nil || cfg.Key != (Key{}) || cfg.URL != "" {
			t.Errorf("%s: the error comes with a Config", name)
		}
		withoutCanary(t, err)
	}
}

// TestEnvironmentIsReadInOnePlace fails when the library has a hard-coded address, or reads the
// environment directly.
func TestEnvironmentIsReadInOnePlace(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"globus", "."} {
		files, err := filepath.Glob(filepath.Join(name, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatal(err, files)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			data, err := os.ReadFile(file)
			testkit.Must(t, err)
			for _, bad := range []string{"os.Getenv(", "os.LookupEnv(", "os.Environ("} {
				if strings.Contains(string(data), bad) {
					t.Errorf("%s calls %s", file, bad)
				}
			}
			if name != "." {
				continue // Globus Auth's own addresses are there
			}
			if at := regexp.MustCompile(`["` + "`" + `]https?://`).FindIndex(data); at != nil {
				t.Errorf("%s has an address compiled in, at byte %d", file, at[0])
			}
		}
	}
}

// TestRefreshTokenGoesWhereTheFabricSays has a fabric that names its Globus Auth, and then Globus's
// own variable, which takes precedence.
func TestRefreshTokenGoesWhereTheFabricSays(t *testing.T) {
	t.Parallel()
	var fabrics, others int
	token := func(n *int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			*n++
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(w, `{"error":"invalid_grant"}`)
		}
	}
	_, globusOfFabric := endpoint(t, token(&fabrics))
	_, otherGlobus := endpoint(t, token(&others))
	asked := 0
	_, acl := endpoint(t, func(w http.ResponseWriter, r *http.Request) {
		asked++
		d := someDiscovery()
		d.Globus.Issuer = globusOfFabric.URL
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(d)
	})
	for name, try := range map[string]struct {
		env           []string
		fabric, other int
	}{
		"fabric's":              {fabric: 1},
		"GLOBUS_SDK_…":          {env: []string{"GLOBUS_SDK_SERVICE_URL_AUTH", otherGlobus.URL}, other: 1},
		"a service, fabric's":   {env: []string{"DIASPORA_CLIENT_ID", "x", "DIASPORA_CLIENT_SECRET", canary}, fabric: 1},
		"a service, GLOBUS_SDK": {env: []string{"DIASPORA_CLIENT_ID", "x", "DIASPORA_CLIENT_SECRET", canary, "GLOBUS_SDK_SERVICE_URL_AUTH", otherGlobus.URL}, other: 1},
	} {
		asked, fabrics, others = 0, 0, 0
		env := append(try.env, "DIASPORA_CONFIG_DIR", t.TempDir(), "DIASPORA_URL", acl.URL, "DIASPORA_REFRESH", canary)
		cfg, err := ConfigFromEnv(getenv(env...))
		testkit.Must(t, err)
		if asked != 0 {
			t.Errorf("%s: ConfigFromEnv has touched the network", name)
		}
		_, err = cfg.TokenSource.Token(within(t))
		if err == nil || fabrics != try.fabric || others != try.other || asked != 1 {
			t.Errorf("%s: %v; the fabric's Globus was asked %d times, the other %d, the fabric %d", name, err, fabrics, others, asked)
		}
		withoutCanary(t, err)
	}
}

type listeningSource struct{ refused []globus.Secret }

func (s *listeningSource) Token(context.Context) (globus.Token, error) { return globus.Token{}, nil }
func (s *listeningSource) Refused(access globus.Secret)                { s.refused = append(s.refused, access) }

// TestDiscoveryHoldsUpNobody has a fabric that is slow to say which Globus Auth it uses. A caller
// that waits for another caller's request must not wait longer than its own context allows.
func TestDiscoveryHoldsUpNobody(t *testing.T) {
	t.Parallel()
	asked, release := make(chan struct{}, 1), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		asked <- struct{}{}
		<-release
	}))
	t.Cleanup(server.Close)
	t.Cleanup(func() { close(release) })
	cfg, err := ConfigFromEnv(getenv("DIASPORA_CONFIG_DIR", t.TempDir(), "DIASPORA_URL", server.URL, "DIASPORA_REFRESH", canary))
	testkit.Must(t, err)
	first, stop := context.WithCancel(context.Background())
	defer stop()
	go cfg.TokenSource.Token(first)
	<-asked
	ended := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		_, err := cfg.TokenSource.Token(ctx)
		cfg.TokenSource.(interface{ Refused(globus.Secret) }).Refused(canary)
		trust.Settle(context.Background(), cfg.TokenSource)
		ended <- err
	}()
	select {
	case err := <-ended:
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Token = %v, want the end of its context", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("Token, Refused or Settle wait for a question that somebody else has asked")
	}
}

// TestMemoryIsPrivate checks that what was learned about a credential is stored, is found only with
// the same credential, and is never read from a file that other users could have written.
func TestMemoryIsPrivate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	endpoint := httptest.NewServer(http.NotFoundHandler())
	endpoint.Close() // the endpoint is unreachable
	config := func(refresh string) Config {
		t.Helper()
		cfg, err := ConfigFromEnv(getenv("DIASPORA_CONFIG_DIR", dir, "DIASPORA_URL", endpoint.URL, "DIASPORA_REFRESH", refresh))
		testkit.Must(t, err)
		return cfg
	}
	ada := globus.Identity{Subject: "ada", Username: "ada@example.edu"}
	discovery := someDiscovery()
	cfg := config(canary)
	cfg.learn(cfg.memory.Name, func(r *remembered) { r.Identity, r.Discovery = ada, &discovery })
	if got := config(canary).Identity; got.Subject != "ada" {
		t.Errorf("the identity of the same credential is %+v, want %+v", got, ada)
	}
	if got := config(canary + "-other").Identity; got.Subject != "" {
		t.Errorf("another credential is taken for %+v", got)
	}
	known := config(canary)
	client, err := NewClient(known)
	testkit.Must(t, err)
	if d, err := client.discoverOnce(within(t)); err != nil || d.Globus != discovery.Globus {
		t.Errorf("while the fabric is away it is %+v, %v, want what it said before", d, err)
	}
	file := filepath.Join(dir, "fabrics", cfg.memory.Name+".json")
	data, err := os.ReadFile(file)
	if err != nil || strings.Contains(string(data), canary) || strings.Contains(file, canary) {
		t.Errorf("%s holds %s, %v", file, data, err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("its mode is %v, %v, want 0600", info.Mode(), err)
	}
	for _, spoil := range []struct {
		path       string
		mode, back os.FileMode
	}{{file, 0o660, 0o600}, {file, 0o604, 0o600}, {filepath.Dir(file), 0o777, 0o700}} {
		testkit.Must(t, os.Chmod(spoil.path, spoil.mode))
		if got := config(canary).Identity; got.Subject != "" {
			t.Errorf("with mode %v of %s, %+v was taken from it", spoil.mode, spoil.path, got)
		}
		testkit.Must(t, os.Chmod(spoil.path, spoil.back))
	}
}

// TestUnboundEventsHaveOneOwner checks who owns events that were logged before their owner was
// known.
func TestUnboundEventsHaveOneOwner(t *testing.T) {
	t.Parallel()
	const mineKey, oldKey, gracesKey, strangeKey = "key-aaaaaaaaaaaaaaaa", "key-bbbbbbbbbbbbbbbb", "key-cccccccccccccccc", "key-dddddddddddddddd"
	asked := map[string]int{}
	_, acl := endpoint(t, func(w http.ResponseWriter, r *http.Request) {
		id := path.Base(r.URL.Path)
		asked[id]++
		if user, _, ok := r.BasicAuth(); !ok || user != mineKey {
			t.Errorf("asked by %q", r.Header.Get("Authorization"))
		}
		if id != oldKey {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(AccessKey{ID: id, Name: "old", Owner: "ada", Read: true})
	})
	dir := t.TempDir()
	mine, theirs := learned.Name("mine"), learned.Name("theirs")
	cfg := Config{URL: acl.URL, DialTimeout: time.Minute, memory: memory{Dir: dir, Name: mine}}
	byKey := cfg
	byKey.Key, byKey.memory.Name = Key{ID: mineKey, Secret: keySecretOfTests}, learned.KeyName(acl.URL, mineKey)
	learn := func(name, subject string) {
		cfg.learn(name, func(r *remembered) { r.Identity.Subject = subject })
	}
	learn(theirs, "grace")
	learn(learned.KeyName(acl.URL, gracesKey), "grace")
	for _, try := range []struct {
		what             string
		cfg              Config
		subject, unbound string
		want             bool
	}{
		{"the credential in use", cfg, "ada", spool.Unbound + mine, true},
		{"another person's", cfg, "ada", spool.Unbound + theirs, false},
		{"one that is known to be this person's", cfg, "grace", spool.Unbound + theirs, true},
		{"one of which nothing is known", cfg, "ada", spool.Unbound + learned.Name("x"), false},
		{"somebody not known yet", cfg, "", spool.Unbound + theirs, false},
		{"a subject", cfg, "ada", "grace", false},
		{"a path", cfg, "ada", spool.Unbound + "../" + theirs[3:], false},
		{"nobody", cfg, "ada", "", false},
		{"the key in use", byKey, "ada", spool.UnboundKey + mineKey, true},
		{"another person's key", byKey, "ada", spool.UnboundKey + gracesKey, false},
		{"a key that is known to be this person's", byKey, "grace", spool.UnboundKey + gracesKey, true},
		{"a key that was this person's, as the fabric says", byKey, "ada", spool.UnboundKey + oldKey, true},
		{"the same, which is kept", byKey, "ada", spool.UnboundKey + oldKey, true},
		{"the same, for somebody else", byKey, "grace", spool.UnboundKey + oldKey, false},
		{"a key of which the fabric says nothing", byKey, "ada", spool.UnboundKey + strangeKey, false},
		{"a key whose owner is not known yet", byKey, spool.UnboundKey + mineKey, spool.UnboundKey + oldKey, false},
		{"what is not a key", byKey, "ada", spool.UnboundKey + "../keys", false},
		{"a credential that is not a key", byKey, "ada", spool.Unbound + theirs, false},
	} {
		if got := try.cfg.owns(t.Context(), try.subject, try.unbound); got != try.want {
			t.Errorf("%s: owns(%q, %q) = %v, want %v", try.what, try.subject, try.unbound, got, try.want)
		}
	}
	if asked[oldKey] != 1 || asked[strangeKey] != 1 || len(asked) != 2 {
		t.Errorf("the fabric was asked %v times", asked)
	}
}
