package fabric_test

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
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// These are tests of the library that need a whole fabric: gateway, claims and Globus Auth.

// TestClient calls every method on a real ACL endpoint, as the owner and as another identity.
func TestClient(t *testing.T) {
	t.Parallel()
	f := fabrictest.Start(t, fabric.Config{})
	hers, others := fabrictest.Client(t, fabrictest.As(t, f, ada)), fabrictest.Client(t, fabrictest.As(t, f, grace))
	ctx := testkit.Within(t)
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
	if topics, err := others.Topics(ctx); err != nil || len(topics.Topics) != 0 {
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
	f := fabrictest.Start(t, fabric.Config{RevocationInterval: 200 * time.Millisecond})
	login := fabrictest.Login(t, f, ada)
	token, ok := login.Token(f.Discovery().Globus.ResourceServer)
	if !ok {
		t.Fatal("there is no token")
	}
	cfg := diaspora.Config{URL: f.URL(), Identity: login.Identity, TokenSource: globus.StaticToken(token)}
	client := fabrictest.Client(t, cfg)
	fabrictest.Claim(t, cfg, "weather")
	logger, err := diaspora.OpenLogger(testkit.Within(t), cfg)
	testkit.Must(t, err)
	defer func() { // the events of the rejected Log are never accepted
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		logger.Close(ended)
	}()
	consumer, err := diaspora.OpenConsumer(testkit.Within(t), cfg, diaspora.ConsumerOptions{Topics: []string{"weather"}})
	testkit.Must(t, err)
	defer consumer.Close(context.Background())
	testkit.Must(t, inside.Of(f).Globus.Revoke(token.AccessToken))

	errs := map[string]error{}
	for ctx := testkit.Within(t); errs["Log"] == nil; {
		errs["Log"] = logger.Log(ctx, diaspora.Event{Topic: "weather", Value: []byte("x")})
	}
	for _, err := range consumer.Records(testkit.Within(t)) {
		if err != nil {
			errs["Records"] = err
			break
		}
	}
	_, errs["OpenLogger"] = diaspora.OpenLogger(testkit.Within(t), cfg)
	_, errs["Dial"] = diaspora.Dial(testkit.Within(t), cfg)
	_, errs["Topics"] = client.Topics(testkit.Within(t))
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
	f := fabrictest.Start(t, fabric.Config{})
	cfg := fabrictest.As(t, f, ada)
	fabrictest.Claim(t, cfg, "weather")
	logger, err := diaspora.OpenLogger(testkit.Within(t), cfg)
	testkit.Must(t, err)
	defer logger.Close(context.Background())
	event := diaspora.Event{Topic: "weather", Value: []byte("x")}
	testkit.Must(t, logger.Log(testkit.Within(t), event))
	testkit.Must(t, fabrictest.Client(t, cfg).Release(testkit.Within(t), "weather"))
	fabrictest.Claim(t, cfg, "weather")
	for ctx := testkit.Within(t); ; {
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
	f := fabrictest.Start(t, fabric.Config{})
	expire := func(t *testing.T) {
		t.Helper()
		testkit.Must(t, f.ExpireTokens(ada))
	}
	fabrictest.Claim(t, fabrictest.As(t, f, ada), "weather")
	event := diaspora.Event{Topic: "weather", Value: []byte("x")}
	for name, use := range map[string]func(*testing.T, diaspora.Config) error{
		"client": func(t *testing.T, cfg diaspora.Config) error {
			_, err := fabrictest.Client(t, cfg).Claim(testkit.Within(t), diaspora.ClaimRequest{Name: "weather"})
			return err
		},
		"logger": func(t *testing.T, cfg diaspora.Config) error {
			l, err := diaspora.OpenLogger(testkit.Within(t), cfg)
			if err != nil {
				return err
			}
			return errors.Join(l.Log(testkit.Within(t), event), l.Close(testkit.Within(t)))
		},
		"spool": func(t *testing.T, cfg diaspora.Config) error {
			cfg.SpoolDir = t.TempDir() + "/spool"
			l, err := diaspora.OpenLogger(testkit.Within(t), cfg)
			if err != nil {
				return err
			}
			err = errors.Join(l.Log(testkit.Within(t), event), l.Close(testkit.Within(t)))
			if s := l.Stats(); s.Spool.Events != 0 {
				err = errors.Join(err, s.Spool.Why)
			}
			return err
		},
		"consumer": func(t *testing.T, cfg diaspora.Config) error {
			c, err := diaspora.OpenConsumer(testkit.Within(t), cfg, diaspora.ConsumerOptions{Topics: []string{"weather"}, Group: "g"})
			if err != nil {
				return err
			}
			return c.Close(testkit.Within(t))
		},
	} {
		t.Run("opening/"+name, func(t *testing.T) {
			cfg := fabrictest.As(t, f, ada)
			if _, err := cfg.TokenSource.Token(testkit.Within(t)); err != nil {
				t.Fatal(err)
			}
			expire(t)
			if err := use(t, cfg); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("running", func(t *testing.T) {
		cfg := fabrictest.As(t, f, ada)
		old, err := cfg.TokenSource.Token(testkit.Within(t))
		testkit.Must(t, err)
		l, err := diaspora.OpenLogger(testkit.Within(t), cfg)
		testkit.Must(t, err)
		defer l.Close(testkit.Within(t))
		testkit.Must(t, l.Log(testkit.Within(t), event))
		expire(t)
		for now := old; now.AccessToken == old.AccessToken; { // until the gateway has rejected the old token
			if err := l.Log(testkit.Within(t), event); err != nil {
				t.Fatalf("Log = %v, although the refresh token is good", err)
			}
			if now, err = cfg.TokenSource.Token(testkit.Within(t)); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Run("for ever", func(t *testing.T) { // if every token is rejected, that is an error, soon
		cfg := fabrictest.As(t, f, ada)
		source := &refusedSource{}
		cfg.TokenSource = source
		if _, err := diaspora.OpenLogger(testkit.Within(t), cfg); !errors.Is(err, diaspora.ErrUnauthenticated) {
			t.Errorf("OpenLogger = %v, want ErrUnauthenticated", err)
		}
		if _, err := fabrictest.Client(t, cfg).Topics(testkit.Within(t)); !errors.Is(err, diaspora.ErrUnauthenticated) {
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
			l, err := diaspora.OpenLogger(testkit.Within(t), cfg)
			testkit.Must(t, err)
			return l.Close
		},
		"Logger with a spool": func(t *testing.T, cfg diaspora.Config) closer {
			cfg.SpoolDir = filepath.Join(t.TempDir(), "spool")
			l, err := diaspora.OpenLogger(testkit.Within(t), cfg)
			testkit.Must(t, err)
			testkit.Must(t, l.Log(testkit.Within(t), diaspora.Event{Topic: "weather", Value: []byte("x")}))
			return l.Close
		},
		"Consumer": func(t *testing.T, cfg diaspora.Config) closer {
			c, err := diaspora.OpenConsumer(testkit.Within(t), cfg, diaspora.ConsumerOptions{Topics: []string{"weather"}})
			testkit.Must(t, err)
			return c.Close
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := fabrictest.Start(t, fabric.Config{})
			fabrictest.Claim(t, fabrictest.As(t, f, ada), "weather")
			store, cfg := storedLogin(t, f)
			before := refreshToken(t, f, store)
			end := open(t, cfg)
			renewSlowly(t, f, cfg, 5*time.Second)
			if err := end(testkit.Within(t)); err != nil {
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
	f := fabrictest.Start(t, fabric.Config{})
	_, cfg := storedLogin(t, f)
	l, err := diaspora.OpenLogger(testkit.Within(t), cfg)
	testkit.Must(t, err)
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
	testkit.Must(t, inside.Of(f).Globus.FailNext(10, globusdev.Failure{Path: "/v2/oauth2/token", Delay: delay}))
	token, err := cfg.TokenSource.Token(testkit.Within(t))
	testkit.Must(t, err)
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
	store, dir := fabrictest.StoredLogin(t, f)
	cfg, err := diaspora.ConfigFromEnv(func(name string) string {
		return map[string]string{"DIASPORA_PROFILE": "test", "DIASPORA_CONFIG_DIR": dir}[name]
	})
	testkit.Must(t, err)
	return store, cfg
}

func refreshToken(t *testing.T, f *fabric.Fabric, store *globus.Store) globus.Secret {
	t.Helper()
	login, err := store.Load()
	testkit.Must(t, err)
	token, _ := login.Token(f.Discovery().Globus.ResourceServer)
	return token.RefreshToken
}
