package diaspora_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
	"github.com/diaspora-streams/diaspora/internal/inside"
)

// These tests need a whole fabric: gateway, claims and Globus Auth.

const (
	ada   = "ada@example.edu"
	grace = "grace@example.org"
)

func startFabric(t *testing.T, cfg fabric.Config) *fabric.Fabric {
	t.Helper()
	f, err := fabric.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func as(t *testing.T, f *fabric.Fabric, username string) diaspora.Config {
	t.Helper()
	cfg, err := f.As(t.Context(), username)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func newClient(t *testing.T, cfg diaspora.Config) *diaspora.Client {
	t.Helper()
	c, err := diaspora.NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// TestClient calls every method on a real ACL endpoint, as the owner and as another identity.
func TestClient(t *testing.T) {
	t.Parallel()
	f := startFabric(t, fabric.Config{})
	hers, others := newClient(t, as(t, f, ada)), newClient(t, as(t, f, grace))
	ctx := within(t)
	d, err := hers.Discover(ctx)
	if err != nil || d.Security != "plaintext" || d.Globus.Issuer != f.GlobusURL() {
		t.Errorf("Discover = %+v, %v", d, err)
	}
	id, err := hers.Identity(ctx)
	if err != nil || id.Username != ada || id.Subject == "" {
		t.Errorf("Identity = %+v, %v, want %s", id, err, ada)
	}
	for _, created := range []bool{true, false} {
		topic, err := hers.Claim(ctx, diaspora.ClaimRequest{Name: "weather", Partitions: 2})
		if err != nil || topic.Created != created || topic.Owner != id.Subject || topic.Partitions != 2 {
			t.Errorf("Claim = %+v, %v, want created: %v", topic, err, created)
		}
	}
	if topic, err := hers.Topic(ctx, "weather"); err != nil || topic.Name != "weather" || topic.Created {
		t.Errorf("Topic = %+v, %v", topic, err)
	}
	if topics, err := others.Topics(ctx); err != nil || len(topics) != 0 {
		t.Errorf("Topics of another = %v, %v, want none", topics, err)
	}
	_, claim := others.Claim(ctx, diaspora.ClaimRequest{Name: "weather"})
	_, show := others.Topic(ctx, "weather")
	_, missing := hers.Topic(ctx, "nowhere")
	_, partitions := hers.Claim(ctx, diaspora.ClaimRequest{Name: "many", Partitions: 1 << 30})
	for what, try := range map[string]struct{ err, want error }{
		"claim of another's":    {claim, diaspora.ErrConflict},
		"show of another's":     {show, diaspora.ErrPermission},
		"release of another's":  {others.Release(ctx, "weather"), diaspora.ErrPermission},
		"show of nothing":       {missing, diaspora.ErrNotFound},
		"release of nothing":    {hers.Release(ctx, "nowhere"), diaspora.ErrNotFound},
		"too many partitions":   {partitions, diaspora.ErrInvalid},
		"the ledger's own name": {hers.Release(ctx, "_diaspora_ledger"), diaspora.ErrInvalid},
	} {
		if !errors.Is(try.err, try.want) {
			t.Errorf("%s: %v, want %v", what, try.err, try.want)
		}
	}
}

// TestRevoked revokes a token that running Loggers and Consumers use, and opens new ones with it.
func TestRevoked(t *testing.T) {
	t.Parallel()
	f := startFabric(t, fabric.Config{RevocationInterval: 200 * time.Millisecond})
	login, err := f.Login(t.Context(), ada)
	if err != nil {
		t.Fatal(err)
	}
	token, ok := login.Token(f.Discovery().Globus.ResourceServer)
	if !ok {
		t.Fatal("there is no token")
	}
	cfg := diaspora.Config{URL: f.URL(), Identity: login.Identity, TokenSource: globus.StaticToken(token)}
	client := newClient(t, cfg)
	if _, err := client.Claim(within(t), diaspora.ClaimRequest{Name: "weather"}); err != nil {
		t.Fatal(err)
	}
	logger, err := diaspora.OpenLogger(within(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { // the events of the rejected Log are never accepted
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		logger.Close(ended)
	}()
	consumer, err := diaspora.OpenConsumer(within(t), cfg, diaspora.ConsumerOptions{Topics: []string{"weather"}})
	if err != nil {
		t.Fatal(err)
	}
	defer consumer.Close(context.Background())
	if err := inside.Of(f).Globus.Revoke(token.AccessToken); err != nil {
		t.Fatal(err)
	}

	errs := map[string]error{}
	for ctx := within(t); errs["Log"] == nil; {
		errs["Log"] = logger.Log(ctx, diaspora.Event{Topic: "weather", Value: []byte("x")})
	}
	for _, err := range consumer.Records(within(t)) {
		if err != nil {
			errs["Records"] = err
			break
		}
	}
	_, errs["OpenLogger"] = diaspora.OpenLogger(within(t), cfg)
	_, errs["Dial"] = diaspora.Dial(within(t), cfg)
	_, errs["Topics"] = client.Topics(within(t))
	for what, err := range errs {
		if !errors.Is(err, diaspora.ErrUnauthenticated) || diaspora.Hint(err) != `run "diaspora login"` {
			t.Errorf("%s with a token that was revoked = %v, want ErrUnauthenticated and what to do", what, err)
		}
		if strings.Contains(fmt.Sprintf("%+v", err), token.AccessToken.Reveal()) {
			t.Errorf("%s: the error holds the token", what)
		}
	}
}

// TestReleasedAndClaimedAgain fails when a Logger has to be reopened after its topic was released
// and claimed again.
func TestReleasedAndClaimedAgain(t *testing.T) {
	t.Parallel()
	f := startFabric(t, fabric.Config{})
	cfg := as(t, f, ada)
	client := newClient(t, cfg)
	claim := func() {
		t.Helper()
		if _, err := client.Claim(within(t), diaspora.ClaimRequest{Name: "weather"}); err != nil {
			t.Fatal(err)
		}
	}
	claim()
	logger, err := diaspora.OpenLogger(within(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer logger.Close(context.Background())
	event := diaspora.Event{Topic: "weather", Value: []byte("x")}
	if err := logger.Log(within(t), event); err != nil {
		t.Fatal(err)
	}
	if err := client.Release(within(t), "weather"); err != nil {
		t.Fatal(err)
	}
	claim()
	for ctx := within(t); ; {
		err := logger.Log(ctx, event)
		if err == nil {
			break
		}
		if ctx.Err() != nil || !errors.Is(err, diaspora.ErrNotFound) && !errors.Is(err, diaspora.ErrPermission) {
			t.Fatalf("Log to a topic that was claimed again = %v", err)
		}
	}
}

// TestRefusedTokenIsRenewed makes access tokens expire at Globus Auth only. The same happens after
// a new consent, or if the clock here is wrong. With a refresh token, the program must not notice.
func TestRefusedTokenIsRenewed(t *testing.T) {
	t.Parallel()
	f := startFabric(t, fabric.Config{})
	expire := func(t *testing.T) {
		t.Helper()
		if err := f.ExpireTokens(ada); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := newClient(t, as(t, f, ada)).Claim(within(t), diaspora.ClaimRequest{Name: "weather"}); err != nil {
		t.Fatal(err)
	}
	event := diaspora.Event{Topic: "weather", Value: []byte("x")}
	for name, use := range map[string]func(*testing.T, diaspora.Config) error{
		"client": func(t *testing.T, cfg diaspora.Config) error {
			_, err := newClient(t, cfg).Claim(within(t), diaspora.ClaimRequest{Name: "weather"})
			return err
		},
		"logger": func(t *testing.T, cfg diaspora.Config) error {
			l, err := diaspora.OpenLogger(within(t), cfg)
			if err != nil {
				return err
			}
			return errors.Join(l.Log(within(t), event), l.Close(within(t)))
		},
		"spool": func(t *testing.T, cfg diaspora.Config) error {
			cfg.SpoolDir = t.TempDir() + "/spool"
			l, err := diaspora.OpenLogger(within(t), cfg)
			if err != nil {
				return err
			}
			err = errors.Join(l.Log(within(t), event), l.Close(within(t)))
			if s := l.Stats(); s.Spool.Events != 0 {
				err = errors.Join(err, s.Spool.Why)
			}
			return err
		},
		"consumer": func(t *testing.T, cfg diaspora.Config) error {
			c, err := diaspora.OpenConsumer(within(t), cfg, diaspora.ConsumerOptions{Topics: []string{"weather"}, Group: "g"})
			if err != nil {
				return err
			}
			return c.Close(within(t))
		},
	} {
		t.Run("opening/"+name, func(t *testing.T) {
			cfg := as(t, f, ada)
			if _, err := cfg.TokenSource.Token(within(t)); err != nil {
				t.Fatal(err)
			}
			expire(t)
			if err := use(t, cfg); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("running", func(t *testing.T) {
		cfg := as(t, f, ada)
		old, err := cfg.TokenSource.Token(within(t))
		if err != nil {
			t.Fatal(err)
		}
		l, err := diaspora.OpenLogger(within(t), cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close(within(t))
		if err := l.Log(within(t), event); err != nil {
			t.Fatal(err)
		}
		expire(t)
		for now := old; now.AccessToken == old.AccessToken; { // until the gateway has rejected the old token
			if err := l.Log(within(t), event); err != nil {
				t.Fatalf("Log = %v, although the refresh token is good", err)
			}
			if now, err = cfg.TokenSource.Token(within(t)); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Run("for ever", func(t *testing.T) { // if every token is rejected, that is an error, soon
		cfg := as(t, f, ada)
		source := &refusedSource{}
		cfg.TokenSource = source
		if _, err := diaspora.OpenLogger(within(t), cfg); !errors.Is(err, diaspora.ErrUnauthenticated) {
			t.Errorf("OpenLogger = %v, want ErrUnauthenticated", err)
		}
		if _, err := newClient(t, cfg).Topics(within(t)); !errors.Is(err, diaspora.ErrUnauthenticated) {
			t.Errorf("Topics = %v, want ErrUnauthenticated", err)
		}
		if n := source.replaced.Load(); n > 2 {
			t.Errorf("%d tokens were replaced, want one for each service", n)
		}
	})
}

// refusedSource returns tokens that are never valid.
type refusedSource struct{ replaced atomic.Int32 }

func (s *refusedSource) Token(context.Context) (globus.Token, error) {
	return globus.Token{AccessToken: globus.Secret(fmt.Sprintf("dev-at-canary-%d", s.replaced.Load()))}, nil
}

func (s *refusedSource) Refused(globus.Secret) { s.replaced.Add(1) }

// TestCloseWaitsForARenewal ends programs while their login is being renewed with a refresh token
// that can be used only once: the new token must be on disk when Close returns.
func TestCloseWaitsForARenewal(t *testing.T) {
	type closer func(context.Context) error
	for name, open := range map[string]func(*testing.T, diaspora.Config) closer{
		"Logger": func(t *testing.T, cfg diaspora.Config) closer {
			l, err := diaspora.OpenLogger(within(t), cfg)
			if err != nil {
				t.Fatal(err)
			}
			return l.Close
		},
		"Logger with a spool": func(t *testing.T, cfg diaspora.Config) closer {
			cfg.SpoolDir = filepath.Join(t.TempDir(), "spool")
			l, err := diaspora.OpenLogger(within(t), cfg)
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Log(within(t), diaspora.Event{Topic: "weather", Value: []byte("x")}); err != nil {
				t.Fatal(err)
			}
			return l.Close
		},
		"Consumer": func(t *testing.T, cfg diaspora.Config) closer {
			c, err := diaspora.OpenConsumer(within(t), cfg, diaspora.ConsumerOptions{Topics: []string{"weather"}})
			if err != nil {
				t.Fatal(err)
			}
			return c.Close
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := startFabric(t, fabric.Config{})
			if _, err := newClient(t, as(t, f, ada)).Claim(within(t), diaspora.ClaimRequest{Name: "weather"}); err != nil {
				t.Fatal(err)
			}
			store, cfg := storedLogin(t, f)
			before := refreshToken(t, f, store)
			end := open(t, cfg)
			renewSlowly(t, f, cfg, 5*time.Second)
			if err := end(within(t)); err != nil {
				t.Errorf("Close: %v", err)
			}
			if refreshToken(t, f, store) == before {
				t.Error("Close does not wait for the answer, and the refresh token on disk is dead")
			}
		})
	}
}

// TestCloseWaitsNoLongerThanItsContext has a renewal that gets no response.
func TestCloseWaitsNoLongerThanItsContext(t *testing.T) {
	t.Parallel()
	f := startFabric(t, fabric.Config{})
	_, cfg := storedLogin(t, f)
	l, err := diaspora.OpenLogger(within(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	renewSlowly(t, f, cfg, 30*time.Second)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	l.Close(ctx)
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("Close takes %v, want 100ms", took)
	}
}

// renewSlowly starts a renewal whose response is delayed.
func renewSlowly(t *testing.T, f *fabric.Fabric, cfg diaspora.Config, delay time.Duration) {
	t.Helper()
	// Several requests, because the gateway's introspection requests have a path with the same
	// prefix.
	if err := inside.Of(f).Globus.FailNext(10, globusdev.Failure{Path: "/v2/oauth2/token", Delay: delay}); err != nil {
		t.Fatal(err)
	}
	token, err := cfg.TokenSource.Token(within(t))
	if err != nil {
		t.Fatal(err)
	}
	cfg.TokenSource.(interface{ Refused(globus.Secret) }).Refused(token.AccessToken)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := cfg.TokenSource.Token(ctx); err == nil {
		t.Fatal("the renewal was not slow")
	}
}

// storedLogin stores a login whose refresh tokens can be used only once. It returns the
// configuration of the stored profile.
func storedLogin(t *testing.T, f *fabric.Fabric) (*globus.Store, diaspora.Config) {
	t.Helper()
	if err := inside.Of(f).Globus.SetRefreshMode(globusdev.RefreshRotate); err != nil {
		t.Fatal(err)
	}
	login, err := f.Login(within(t), ada)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	profiles := diaspora.OpenProfiles(dir)
	if err := profiles.Save(diaspora.Profile{Name: "test", URL: f.URL(), Discovery: f.Discovery()}); err != nil {
		t.Fatal(err)
	}
	store, err := profiles.Store("test")
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Save(within(t), login); err != nil {
		t.Fatal(err)
	}
	cfg, err := diaspora.ConfigFromEnv(func(name string) string {
		return map[string]string{"DIASPORA_PROFILE": "test", "DIASPORA_CONFIG_DIR": dir}[name]
	})
	if err != nil {
		t.Fatal(err)
	}
	return store, cfg
}

func refreshToken(t *testing.T, f *fabric.Fabric, store *globus.Store) globus.Secret {
	t.Helper()
	login, err := store.Load()
	if err != nil {
		t.Fatal(err)
	}
	token, _ := login.Token(f.Discovery().Globus.ResourceServer)
	return token.RefreshToken
}
