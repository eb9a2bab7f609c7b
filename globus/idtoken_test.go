package globus_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// The keys are made only once, because that is slow.
var (
	firstKey  = sync.OnceValue(newKey)
	secondKey = sync.OnceValue(newKey)
)

func newKey() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
}

// sign makes an ID token as Globus Auth does, without a key ID.
func sign(t *testing.T, alg jose.SignatureAlgorithm, key any, claims map[string]any) globus.Secret {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, nil)
	testkit.Must(t, err)
	body, err := json.Marshal(claims)
	testkit.Must(t, err)
	jws, err := signer.Sign(body)
	testkit.Must(t, err)
	raw, err := jws.CompactSerialize()
	testkit.Must(t, err)
	return globus.Secret(raw)
}

// claims returns the claims of an ID token issued at the given time, with changes; nil removes a
// claim.
func claims(issued time.Time, change map[string]any) map[string]any {
	c := map[string]any{
		"iss": "https://auth.globus.org", "aud": nativeID, "sub": adaSubject,
		"iat": issued.Unix(), "exp": issued.Add(48 * time.Hour).Unix(),
		"preferred_username": "ada@example.edu", "name": nil, "email": "ada@example.edu",
		"identity_set":        []any{map[string]any{"sub": adaSubject, "username": "ada@example.edu", "last_authentication": nil}},
		"last_authentication": 1621481006,
	}
	for k, v := range change {
		if c[k] = v; v == nil {
			delete(c, k)
		}
	}
	return c
}

func atHash(access string) string {
	sum := sha512.Sum512([]byte(access))
	return base64.RawURLEncoding.EncodeToString(sum[:32])
}

// jwks returns the document with the public keys, as Globus Auth writes it.
func jwks(keys ...crypto.PublicKey) string {
	set := []any{}
	for _, k := range keys {
		b, _ := json.Marshal(jose.JSONWebKey{Key: k, Algorithm: "RS512", Use: "sig"})
		set = append(set, json.RawMessage(b))
	}
	return document(map[string]any{"keys": set})
}

func TestVerifyIDToken(t *testing.T) {
	const access = "canary-access"
	for name, c := range map[string]struct {
		sign   func(t *testing.T, now time.Time) globus.Secret
		want   string // part of the error; "" if accepted
		access globus.Secret
	}{
		"good":                         {signed(nil), "", access},
		"with the access token's hash": {signed(map[string]any{"at_hash": atHash(access)}), "", access},
		"another token's hash":         {signed(map[string]any{"at_hash": atHash("stolen")}), "does not belong to this access token", access},
		"hash, nothing to compare":     {signed(map[string]any{"at_hash": atHash("stolen")}), "", ""},
		"audiences":                    {signed(map[string]any{"aud": []any{"x", nativeID}}), "", ""},
		"for another client":           {signed(map[string]any{"aud": serviceID}), "audience", ""},
		"for nobody":                   {signed(map[string]any{"aud": nil}), "audience", ""},
		"another issuer":               {signed(map[string]any{"iss": "https://auth.globus.org.example"}), "different provider", ""},
		"issuer with a slash":          {signed(map[string]any{"iss": "https://auth.globus.org/"}), "different provider", ""},
		"names a line break":           {signed(map[string]any{"sub": "a\nb"}), `names the subject "a\nb", which is not a UUID`, ""},
		"names a username":             {signed(map[string]any{"sub": "ada@example.edu"}), `"ada@example.edu", which is not a UUID`, ""},
		"names nobody":                 {signed(map[string]any{"sub": nil}), "has no subject", ""},
		"never expires":                {signed(map[string]any{"exp": nil}), "expired", ""},
		"expired within the leeway":    {issued(-48*time.Hour - 4*time.Minute), "", ""},
		"expired":                      {issued(-48*time.Hour - 6*time.Minute), "expired at", ""},
		"4 minutes early":              {issued(4 * time.Minute), "", ""},
		"10 minutes early":             {issued(10 * time.Minute), "clock is 10m0s behind Globus Auth's", ""},
		"another key": {func(t *testing.T, now time.Time) globus.Secret {
			return sign(t, jose.RS512, secondKey(), claims(now, nil))
		}, "verify", ""},
		"RS256": {func(t *testing.T, now time.Time) globus.Secret {
			return sign(t, jose.RS256, firstKey(), claims(now, nil))
		}, "malformed", ""},
		"PS512": {func(t *testing.T, now time.Time) globus.Secret {
			return sign(t, jose.PS512, firstKey(), claims(now, nil))
		}, "malformed", ""},
		"HS512 with the public key": {func(t *testing.T, now time.Time) globus.Secret {
			return sign(t, jose.HS512, firstKey().PublicKey.N.Bytes(), claims(now, nil))
		}, "malformed", ""},
		"alg none": {func(t *testing.T, now time.Time) globus.Secret {
			body, _ := json.Marshal(claims(now, nil))
			enc := base64.RawURLEncoding.EncodeToString
			return globus.Secret(enc([]byte(`{"alg":"none"}`)) + "." + enc(body) + ".")
		}, "malformed", ""},
		"changed after signing": {func(t *testing.T, now time.Time) globus.Secret {
			parts := strings.Split(string(sign(t, jose.RS512, firstKey(), claims(now, nil))), ".")
			body, _ := json.Marshal(claims(now, map[string]any{"sub": bobSubject}))
			parts[1] = base64.RawURLEncoding.EncodeToString(body)
			return globus.Secret(strings.Join(parts, "."))
		}, "verify", ""},
		"nonsense": {func(*testing.T, time.Time) globus.Secret { return "canary-nonsense" }, "malformed", ""},
		"nothing":  {func(*testing.T, time.Time) globus.Secret { return "" }, "malformed", ""},
	} {
		t.Run(name, func(t *testing.T) {
			firstKey() // made outside the bubble, because it takes real time
			secondKey()
			synctest.Test(t, func(t *testing.T) {
				w := &wire{handler: answers(ok(jwks(firstKey().Public())))}
				raw := c.sign(t, time.Now())
				got, err := w.client(t).VerifyIDToken(t.Context(), raw, c.access)
				if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
					t.Fatalf("VerifyIDToken = %v, want error with %q", err, c.want)
				}
				if errors.Is(err, globus.ErrUnavailable) {
					t.Errorf("VerifyIDToken = %v, which is called an outage", err)
				}
				if err != nil && raw != "" && strings.Contains(err.Error(), raw.Reveal()) {
					t.Errorf("VerifyIDToken = %v, which shows the token", err)
				}
				if err == nil && (got.Subject != adaSubject || got.Username != "ada@example.edu") {
					t.Errorf("VerifyIDToken = %+v", got)
				}
			})
		})
	}
}

func signed(change map[string]any) func(*testing.T, time.Time) globus.Secret {
	return func(t *testing.T, now time.Time) globus.Secret {
		return sign(t, jose.RS512, firstKey(), claims(now, change))
	}
}

func issued(offset time.Duration) func(*testing.T, time.Time) globus.Secret {
	return func(t *testing.T, now time.Time) globus.Secret {
		return sign(t, jose.RS512, firstKey(), claims(now.Add(offset), nil))
	}
}

func TestVerifyIDTokenKeys(t *testing.T) {
	firstKey()
	secondKey()
	ec := `{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}`
	for name, c := range map[string]struct {
		answers []reply
		calls   int // number of calls of VerifyIDToken; all but the last use the first key
		want    error
		sent    int
	}{
		"kept":                {[]reply{ok(jwks(firstKey().Public()))}, 3, nil, 1},
		"all keys are tried":  {[]reply{ok(jwks(secondKey().Public(), firstKey().Public()))}, 1, nil, 1},
		"keys we do not know": {[]reply{ok(`{"keys":[` + ec + `,{"kty":"?"},7,` + strings.TrimPrefix(jwks(firstKey().Public()), `{"keys":[`))}, 1, nil, 1},
		"no keys":             {[]reply{ok(`{"keys":[]}`)}, 1, globus.ErrMisconfigured, 1},
		"outage":              {[]reply{status(503, "")}, 1, globus.ErrUnavailable, 4},
		"page of a proxy":     {[]reply{ok(html)}, 1, globus.ErrMisconfigured, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &wire{handler: answers(c.answers...)}
				client := w.client(t)
				for range c.calls {
					_, err := client.VerifyIDToken(t.Context(), signed(nil)(t, time.Now()), "")
					checkErr(t, "VerifyIDToken", err, c.want, "")
				}
				if n := len(w.sent()); n != c.sent {
					t.Errorf("sent %d requests, want %d", n, c.sent)
				}
			})
		})
	}
	t.Run("rotated", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := &wire{handler: answers(ok(jwks(firstKey().Public())), ok(jwks(secondKey().Public())))}
			client := w.client(t)
			for _, key := range []*rsa.PrivateKey{firstKey(), secondKey()} {
				if _, err := client.VerifyIDToken(t.Context(), sign(t, jose.RS512, key, claims(time.Now(), nil)), ""); err != nil {
					t.Error(err)
				}
			}
			if n := len(w.sent()); n != 2 {
				t.Errorf("sent %d requests, want 2", n)
			}
		})
	})
	t.Run("ctx", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		w := &wire{handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })}
		if _, err := w.client(t).VerifyIDToken(ctx, signed(nil)(t, time.Now()), ""); !errors.Is(err, context.Canceled) {
			t.Errorf("VerifyIDToken = %v, want canceled", err)
		}
	})
}

// TestClockError checks that the clock is compared with Globus Auth's responses, not with the
// token.
func TestClockError(t *testing.T) {
	firstKey()
	synctest.Test(t, func(t *testing.T) {
		right := time.Now().Add(10 * time.Minute) // Globus Auth's time
		w := &wire{handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Date", right.UTC().Format(http.TimeFormat))
			w.Write([]byte(jwks(firstKey().Public())))
		})}
		_, err := w.client(t).VerifyIDToken(t.Context(), signed(nil)(t, right.Add(-time.Minute)), "")
		var clock *globus.ClockError
		if !errors.As(err, &clock) || clock.Skew != -10*time.Minute {
			t.Errorf("VerifyIDToken = %v, want a ClockError of -10m", err)
		}
	})
	// The Date of a cached response says when it was cached, so it must be ignored.
	synctest.Test(t, func(t *testing.T) {
		w := &wire{handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Date", time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat))
			w.Header().Set("Age", "3600")
			w.Write([]byte(jwks(firstKey().Public())))
		})}
		_, err := w.client(t).VerifyIDToken(t.Context(), issued(-72*time.Hour)(t, time.Now()), "")
		var clock *globus.ClockError
		if err == nil || errors.As(err, &clock) {
			t.Errorf("VerifyIDToken = %v, want it to have expired", err)
		}
	})
}
