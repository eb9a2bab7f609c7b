package server

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestRealTokens sends tokens that a Globus Auth has issued, with the form and the API, and checks
// the results. The server uses the real authenticator.
func TestRealTokens(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	auth, err := globusdev.Open(globusdev.Config{Issuer: "http://" + l.Addr().String()})
	testkit.Must(t, err)
	web := &httptest.Server{Listener: l, Config: &http.Server{Handler: auth}}
	web.Start()
	t.Cleanup(func() {
		web.Close()
		if err := auth.Close(); err != nil {
			t.Error(err)
		}
	})
	secret, err := auth.ClientSecret(globusdev.ResourceServerID)
	testkit.Must(t, err)
	us, err := globus.New(globus.Config{Issuer: auth.Issuer(), ClientID: globusdev.ResourceServerID, ClientSecret: secret})
	testkit.Must(t, err)
	asks := &breakable{Introspector: us}
	authenticator, err := globus.NewAuthenticator(globus.AuthenticatorConfig{
		Introspector: asks, Issuer: auth.Issuer(), Audience: globusdev.ResourceServerID, Scope: globusdev.Scope,
		FreshFor: time.Nanosecond, RefusedFor: time.Nanosecond, // ask each time
	})
	testkit.Must(t, err)
	e := start(t, withClaims(openClaims(t)), func(cfg *Config) { cfg.Authenticator = authenticator })

	issue := func(who, scope string) (string, globus.Token) {
		t.Helper()
		grant, err := auth.IssueTokens(who, globusdev.NativeClientID, []string{scope}, true)
		testkit.Must(t, err)
		token := grant.Tokens[0]
		e.secrets = append(e.secrets, token.AccessToken.Reveal(), token.RefreshToken.Reveal())
		return grant.Identity.Subject, token
	}
	subject, good := issue("ada@example.edu", globusdev.Scope)
	_, expired := issue("ada@example.edu", globusdev.Scope)
	_, revoked := issue("ada@example.edu", globusdev.Scope)
	_, foreign := issue("ada@example.edu", "openid")
	other, grace := issue("grace@example.org", globusdev.Scope)
	testkit.Must(t, auth.Expire(expired.AccessToken))
	testkit.Must(t, auth.Revoke(revoked.AccessToken))

	try := func(subject string, token globus.Secret, topic string) (byForm, byAPI int) {
		t.Helper()
		a := e.do("POST", "/acl", form(subject, token.Reveal(), topic), "Content-Type", typeForm, "Accept", typeJSON)
		b := e.do("POST", "/v1/topics", `{"name":"`+topic+`_2"}`, "Content-Type", typeJSON, "Authorization", "Bearer "+token.Reveal())
		for _, answer := range []answer{a, b} {
			if answer.status == 401 && !strings.Contains(answer.body, "diaspora login") {
				t.Errorf("a refusal does not say what to do next: %s", answer.body)
			}
		}
		return a.status, b.status
	}
	for _, tt := range []struct {
		name          string
		subject       string
		token         globus.Secret
		topic         string
		byForm, byAPI int
	}{
		{"good", subject, good.AccessToken, "weather", 201, 201},
		{"good again", subject, good.AccessToken, "weather", 200, 200},
		{"another's subject", other, good.AccessToken, "snow", 403, 201},
		{"another's topic", other, grace.AccessToken, "weather", 409, 409},
		{"expired", subject, expired.AccessToken, "rain", 401, 401},
		{"revoked", subject, revoked.AccessToken, "rain", 401, 401},
		{"for another service", subject, foreign.AccessToken, "rain", 401, 401},
		{"a refresh token", subject, good.RefreshToken, "rain", 401, 401},
		{"never issued", subject, globus.Secret("dev-at-" + strings.Repeat("x", 40)), "rain", 401, 401},
	} {
		if byForm, byAPI := try(tt.subject, tt.token, tt.topic); byForm != tt.byForm || byAPI != tt.byAPI {
			t.Errorf("%s: %d by the form and %d on the API, want %d and %d", tt.name, byForm, byAPI, tt.byForm, tt.byAPI)
		}
	}

	_, fresh := issue("ada@example.edu", globusdev.Scope)
	asks.broken.Store(true)
	if byForm, byAPI := try(subject, good.AccessToken, "hail"); byForm != 201 || byAPI != 201 {
		t.Errorf("during an outage, a known token: %d and %d, want 201 twice", byForm, byAPI)
	}
	if byForm, byAPI := try(subject, fresh.AccessToken, "fog"); byForm != 503 || byAPI != 503 {
		t.Errorf("during an outage, a new token: %d and %d, want 503 twice", byForm, byAPI)
	}
}

// breakable is an Introspector that can simulate an outage.
type breakable struct {
	globus.Introspector
	broken atomic.Bool
}

func (b *breakable) Introspect(ctx context.Context, token globus.Secret) (globus.TokenInfo, error) {
	if b.broken.Load() {
		return globus.TokenInfo{}, globus.ErrUnavailable
	}
	return b.Introspector.Introspect(ctx, token)
}

// TestMisconfigured: each client is told what Globus Auth answered. The operators are told once a
// minute, however many clients there are.
func TestMisconfigured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logs := &logBuffer{}
		s, err := New(Config{
			Claims: nobodysClaims{t}, Authenticator: identities{}, PublicURL: "http://127.0.0.1:9090",
			Diagnostics: slog.New(slog.NewTextHandler(logs, &slog.HandlerOptions{Level: slog.LevelWarn})),
		})
		testkit.Must(t, err)
		for minute := range 2 {
			for range 20 {
				w, r := httptest.NewRecorder(), httptest.NewRequest("GET", "http://127.0.0.1:9090/v1/topics", nil)
				r.Header.Set("Authorization", "Bearer "+misconToken)
				s.ServeHTTP(w, r)
				var p diaspora.Problem
				testkit.Must(t, json.Unmarshal(w.Body.Bytes(), &p))
				if w.Code != 500 || !strings.Contains(p.Detail, "status 501") || !strings.Contains(p.Hint, "tell the operators") || w.Header().Get("Retry-After") != "" {
					t.Fatalf("answered with %d, %+v", w.Code, p)
				}
			}
			if n := strings.Count(logs.String(), "level=ERROR"); n != minute+1 {
				t.Errorf("told the operators %d times in minute %d, want once a minute:\n%s", n, minute, logs)
			}
			time.Sleep(time.Minute)
		}
	})
}
