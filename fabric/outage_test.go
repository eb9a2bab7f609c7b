package fabric_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// TestTroubleForPrograms uses each method with which users can simulate a failure in their own tests.
func TestTroubleForPrograms(t *testing.T) {
	t.Parallel()
	f := fabrictest.Start(t, fabric.Config{RevocationInterval: 100 * time.Millisecond})
	cfg := fabrictest.As(t, f, ada)
	fabrictest.Claim(t, cfg, "weather")
	logger := fabrictest.OpenLogger(t, cfg)
	log := func(ctx context.Context) error {
		return logger.Log(ctx, diaspora.Event{Topic: "weather", Value: []byte("x")})
	}
	testkit.Must(t, log(t.Context()))

	testkit.Must(t, f.StopGateway())
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := log(short); err == nil {
		t.Error("Log without a gateway = nil, want an error")
	}
	if err := errors.Join(f.StopGateway(), f.StartGateway(), log(t.Context())); err != nil {
		t.Errorf("after the gateway is back: %v", err)
	}
	if err := f.StartGateway(); err == nil {
		t.Error("StartGateway of one that serves = nil, want an error")
	}

	testkit.Must(t, f.StopGlobus())
	if _, err := f.As(t.Context(), ada); err == nil {
		t.Error("a login without Globus Auth = nil, want an error")
	}
	testkit.Must(t, f.StartGlobus())

	token, err := cfg.TokenSource.Token(t.Context())
	testkit.Must(t, err)
	testkit.Must(t, f.ExpireTokens(ada))
	client, err := diaspora.NewClient(diaspora.Config{URL: f.URL(), TokenSource: fabrictest.Fixed(token)})
	for err == nil {
		_, err = client.Identity(t.Context())
	}
	if !errors.Is(err, diaspora.ErrUnauthenticated) {
		t.Errorf("Identity with an expired token = %v, want ErrUnauthenticated", err)
	}
	if err := log(t.Context()); err != nil {
		t.Errorf("Log after the token expired: %v", err)
	}

	testkit.Must(t, f.RevokeTokens(ada))
	for err = nil; err == nil; {
		err = log(t.Context())
	}
	if !errors.Is(err, diaspora.ErrUnauthenticated) {
		t.Errorf("Log after the tokens were revoked = %v, want ErrUnauthenticated", err)
	}
	for name, change := range map[string]func(string) error{"RevokeTokens": f.RevokeTokens, "ExpireTokens": f.ExpireTokens} {
		if err := change("nobody@example.edu"); err == nil {
			t.Errorf("%s of somebody unknown = nil, want an error", name)
		}
	}
}
