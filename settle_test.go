package diaspora_test

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
	"github.com/diaspora-streams/diaspora/internal/inside"
)

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
