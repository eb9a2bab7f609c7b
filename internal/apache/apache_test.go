package apache

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// fakeBroker is a broker with fixed responses to a handshake and a login. Package interop tests
// what a real broker does with the token.
type fakeBroker struct {
	handshake int16
	login     kmsg.SASLAuthenticateResponse
	message   string // the SASL message of the last login
}

func (a *fakeBroker) Request(_ context.Context, request kmsg.Request) (kmsg.Response, error) {
	switch r := request.(type) {
	case *kmsg.SASLHandshakeRequest:
		response := r.ResponseKind().(*kmsg.SASLHandshakeResponse)
		response.ErrorCode = a.handshake
		return response, nil
	case *kmsg.SASLAuthenticateRequest:
		a.message = string(r.SASLAuthBytes)
		return &a.login, nil
	}
	return nil, errors.New("unexpected request")
}

func newBroker(t *testing.T) *Broker {
	t.Helper()
	b, err := New(Config{Address: "127.0.0.1:1", Issuer: "i", Audience: "a", Keys: openKeys(t, keysConfig(t.TempDir()))})
	testkit.Must(t, err)
	return b
}

// TestSignInAgain checks that the next login is due before the session expires.
func TestSignInAgain(t *testing.T) {
	b := newBroker(t)
	conn := &fakeBroker{}
	conn.login.SessionLifetimeMillis = 100_000
	before := time.Now()
	again, err := b.SignIn(t.Context(), nil, conn, ada)
	testkit.Must(t, err)
	if d := again.Sub(before); d < 50*time.Second || d > 60*time.Second {
		t.Errorf("the next login is due after %v of a session of 100 s", d)
	}
	conn.login.SessionLifetimeMillis = 0
	if again, err := b.SignIn(t.Context(), nil, conn, ada); err != nil || !again.IsZero() {
		t.Errorf("SignIn to a session without end = %v, %v; want never", again, err)
	}
}

func TestSignInFails(t *testing.T) {
	for name, conn := range map[string]*fakeBroker{
		"handshake": {handshake: kerr.UnsupportedSaslMechanism.Code},
		"login":     {login: kmsg.SASLAuthenticateResponse{ErrorCode: kerr.SaslAuthenticationFailed.Code}},
		"challenge": {login: kmsg.SASLAuthenticateResponse{SASLAuthBytes: []byte(`{"status":"invalid_token"}`)}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := newBroker(t).SignIn(t.Context(), nil, conn, ada)
			if err == nil {
				t.Fatal("SignIn = nil, want an error")
			}
			_, token, _ := strings.Cut(conn.message, "Bearer ")
			if token != "" && strings.Contains(fmt.Sprint(err), token[:20]) {
				t.Error("the error shows the token")
			}
		})
	}
}

// TestSubjects checks that no client can be signed in as a super user, whose name is not a UUID.
func TestSubjects(t *testing.T) {
	b := newBroker(t)
	for _, subject := range []string{"", "broker", "diaspora", "*", "User:" + ada, ada + " ", "{" + ada + "}", "urn:uuid:" + ada, strings.ReplaceAll(ada, "-", "")} {
		conn := &fakeBroker{}
		if _, err := b.SignIn(t.Context(), nil, conn, subject); err == nil || conn.message != "" {
			t.Errorf("SignIn(%q) = %v, want an error before anything is sent", subject, err)
		}
	}
}

// TestTokensAreShort checks that a token is valid for two minutes only. A program can obtain one,
// for example by listening on the broker's port while the broker is down.
func TestTokensAreShort(t *testing.T) {
	token, err := newBroker(t).Token(ada)
	testkit.Must(t, err)
	signed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256})
	testkit.Must(t, err)
	var claims jwt.Claims
	testkit.Must(t, signed.UnsafeClaimsWithoutVerification(&claims))
	if left := time.Until(claims.Expiry.Time()); left > 2*time.Minute+time.Second || left < time.Minute {
		t.Errorf("a token is good for %v, want two minutes", left)
	}
}
