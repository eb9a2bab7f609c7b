package keys

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/gateway"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

const (
	ada    = "ada00000-0000-4000-8000-000000000001"
	keyID  = "key-abcdefghij234567"
	secret = "dks_secret"
	url    = "https://diaspora.example.org"
)

// ledger is a Keys that looks keys up by ID.
type ledger map[string]diaspora.AccessKey

func (l ledger) AuthenticateKey(ctx context.Context, id string, s globus.Secret) (diaspora.AccessKey, error) {
	if s != secret {
		return diaspora.AccessKey{}, refused("wrong secret")
	}
	return l.ActiveKey(ctx, id)
}

func (l ledger) ActiveKey(_ context.Context, id string) (diaspora.AccessKey, error) {
	key, ok := l[id]
	if !ok {
		return key, refused("the access key was revoked")
	}
	return key, nil
}

func fullKey() diaspora.AccessKey {
	return diaspora.AccessKey{ID: keyID, Owner: ada, Read: true, Write: true}
}

func open(t *testing.T, file string, l ledger) (*Tokens, *Authenticator) {
	t.Helper()
	tokens, err := OpenTokens(file, url, l, DefaultTokenLifetime)
	testkit.Must(t, err)
	asked := introspector{t}
	g, err := globus.NewAuthenticator(globus.AuthenticatorConfig{Introspector: asked, Issuer: "https://auth.globus.org", Audience: "x", Scope: "s"})
	testkit.Must(t, err)
	return tokens, &Authenticator{Users: &UserAuthenticator{Globus: g, Ledger: l}, Keys: l, Tokens: tokens}
}

func (ledger) Admit(globus.Identity) error { return nil }

func (ledger) Linked(context.Context, globus.Identity) error { return nil }

// introspector knows three tokens. It fails the test if it is asked about a JWT.
type introspector struct{ t *testing.T }

func (i introspector) Introspect(_ context.Context, token globus.Secret) (globus.TokenInfo, error) {
	if strings.Contains(token.Reveal(), ".") {
		i.t.Error("Globus Auth was asked about a token that it cannot have issued")
	}
	info := globus.TokenInfo{Issuer: "https://auth.globus.org", Audience: []string{"x"}, Scope: []string{"s"}, Expiry: time.Now().Add(time.Hour)}
	switch token {
	case "adas":
		info.Subject = ada
	case "impostors":
		info.Subject = ada + "." + keyID
	default:
		return info, globus.ErrRefused
	}
	return info, nil
}

func TestAuthenticate(t *testing.T) {
	reads := fullKey()
	reads.ID, reads.Write = "key-bbbbbbbbbbbbbbbb", false
	ends := fullKey()
	ends.ID, ends.Expires = "key-cccccccccccccccc", time.Now().Add(10*time.Minute)
	l := ledger{keyID: fullKey(), reads.ID: reads, ends.ID: ends}
	tokens, a := open(t, "", l)
	for _, tt := range []struct {
		key       diaspora.AccessKey
		principal string
		session   time.Duration // for logins with PLAIN
		token     time.Duration
	}{
		{fullKey(), ada, DefaultSessionLifetime, DefaultTokenLifetime},
		{reads, ada + "." + reads.ID, DefaultSessionLifetime, DefaultTokenLifetime},
		{ends, ada, 10 * time.Minute, 10 * time.Minute},
	} {
		token, err := tokens.Exchange(t.Context(), tt.key.ID, secret)
		testkit.Must(t, err)
		for life, shown := range map[time.Duration]gateway.Credentials{
			tt.session: {KeyID: tt.key.ID, Secret: secret},
			tt.token:   {Secret: token.AccessToken},
		} {
			id, err := a.Authenticate(t.Context(), shown)
			if err != nil || id.Subject != ada || id.Principal != tt.principal {
				t.Errorf("Authenticate = %+v, %v, want %s", id, err, tt.principal)
			}
			if got := time.Until(id.Expiry); got > life || got < life-time.Minute {
				t.Errorf("%s may go on for %v, want %v", tt.key.ID, got, life)
			}
		}
	}
	short := *a
	short.SessionLifetime = 5 * time.Minute
	if id, err := short.Authenticate(t.Context(), gateway.Credentials{KeyID: keyID, Secret: secret}); err != nil || time.Until(id.Expiry) > 5*time.Minute {
		t.Errorf("with sessions of five minutes: %v, %v", time.Until(id.Expiry), err)
	}
	if id, err := a.Authenticate(t.Context(), gateway.Credentials{Secret: "adas"}); err != nil || id.Principal != ada {
		t.Errorf("a token of Globus Auth: %+v, %v", id, err)
	}
	if id, err := a.Authenticate(t.Context(), gateway.Credentials{Secret: "impostors"}); err == nil {
		t.Errorf("somebody is named as a key: %+v", id)
	}
	if _, err := tokens.Exchange(t.Context(), keyID, "wrong"); !errors.Is(err, globus.ErrRefused) {
		t.Errorf("Exchange with a wrong secret = %v", err)
	}
}

// TestTokenIsWhatClientsWant reads a token as clients do, without the signing key.
func TestTokenIsWhatClientsWant(t *testing.T) {
	tokens, _ := open(t, "", ledger{keyID: fullKey()})
	token, err := tokens.Exchange(t.Context(), keyID, secret)
	testkit.Must(t, err)
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token.AccessToken.Reveal(), ".")[1])
	testkit.Must(t, err)
	var c map[string]any
	testkit.Must(t, json.Unmarshal(payload, &c))
	for name, want := range map[string]any{"sub": ada, "client_id": keyID, "iss": url, "aud": url, "scope": "read write"} {
		if c[name] != want {
			t.Errorf("%s is %v, want %v", name, c[name], want)
		}
	}
	if exp, iat := c["exp"].(float64), c["iat"].(float64); exp-iat != DefaultTokenLifetime.Seconds() {
		t.Errorf("exp - iat = %v", exp-iat)
	}
	if strings.Contains(string(payload), secret) {
		t.Error("the secret is in the token")
	}
}

// TestBadTokens checks that only our own tokens are accepted, before they expire, and only while
// their key is valid.
func TestBadTokens(t *testing.T) {
	l := ledger{keyID: fullKey()}
	tokens, a := open(t, "", l)
	good := tokenClaims{
		Claims: jwt.Claims{
			Issuer: url, Subject: ada, Audience: jwt.Audience{url},
			IssuedAt: jwt.NewNumericDate(time.Now()), Expiry: jwt.NewNumericDate(time.Now().Add(time.Hour)),
		},
		ClientID: keyID,
	}
	sign := func(signer jose.Signer, edit func(*tokenClaims)) globus.Secret {
		c := good
		edit(&c)
		signed, err := jwt.Signed(signer).Claims(c).Serialize()
		testkit.Must(t, err)
		return globus.Secret(signed)
	}
	ours := func(edit func(*tokenClaims)) globus.Secret { return sign(tokens.signer, edit) }
	same := func(*tokenClaims) {}
	if _, err := a.Authenticate(t.Context(), gateway.Credentials{Secret: ours(same)}); err != nil {
		t.Fatalf("a good token: %v", err)
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	testkit.Must(t, err)
	foreign, _ := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: other}, nil)
	public, err := tokens.key.PublicKey.Bytes() // an attacker may know it
	testkit.Must(t, err)
	symmetric, _ := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: public}, nil)
	parts := strings.Split(ours(same).Reveal(), ".")
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + parts[1] + "."
	for name, token := range map[string]globus.Secret{
		"foreign key":      sign(foreign, same),
		"symmetric":        sign(symmetric, same),
		"unsigned":         globus.Secret(none),
		"no signature":     globus.Secret(parts[0] + "." + parts[1] + "."),
		"dots":             "..",
		"garbage":          "a.b.c",
		"huge":             globus.Secret(strings.Repeat("a", maxTokenBytes) + ".b.c"),
		"another issuer":   ours(func(c *tokenClaims) { c.Issuer = "https://auth.globus.org" }),
		"another audience": ours(func(c *tokenClaims) { c.Audience = jwt.Audience{"x"} }),
		"no audience":      ours(func(c *tokenClaims) { c.Audience = nil }),
		"no expiry":        ours(func(c *tokenClaims) { c.Expiry = nil }),
		"expired":          ours(func(c *tokenClaims) { c.Expiry = jwt.NewNumericDate(time.Now().Add(-time.Second)) }),
		"another's key":    ours(func(c *tokenClaims) { c.Subject = "bert" }),
		"unknown key":      ours(func(c *tokenClaims) { c.ClientID = "key-x" }),
	} {
		id, err := a.Authenticate(t.Context(), gateway.Credentials{Secret: token})
		if refusal := (*globus.RefusedError)(nil); !errors.As(err, &refusal) || strings.Contains(refusal.Reason, token.Reveal()) {
			t.Errorf("%s: Authenticate = %+v, %v, want a refusal", name, id, err)
		}
	}
	token := ours(same)
	delete(l, keyID)
	if _, err := a.Authenticate(t.Context(), gateway.Credentials{Secret: token}); !errors.Is(err, globus.ErrRefused) {
		t.Errorf("a token of a key that was revoked: %v", err)
	}
}

// TestSigningKey opens the file again, and files that are not valid.
func TestSigningKey(t *testing.T) {
	l := ledger{keyID: fullKey()}
	file := filepath.Join(t.TempDir(), "made", "token-key.pem")
	one, _ := open(t, file, l)
	token, err := one.Exchange(t.Context(), keyID, secret)
	testkit.Must(t, err)
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file: %v, %v, want 0600", info, err)
	}
	if entries, _ := os.ReadDir(filepath.Dir(file)); len(entries) != 1 {
		t.Errorf("the folder has %v, want the file alone", entries)
	}
	_, two := open(t, file, l) // after a restart, or on another replica
	if _, err := two.Authenticate(t.Context(), gateway.Credentials{Secret: token.AccessToken}); err != nil {
		t.Errorf("with the same file: %v", err)
	}
	_, three := open(t, "", l)
	if _, err := three.Authenticate(t.Context(), gateway.Credentials{Secret: token.AccessToken}); !errors.Is(err, globus.ErrRefused) {
		t.Errorf("with another key: %v", err)
	}

	good := testkit.ReadFile(t, file)
	for name, damage := range map[string]func(string) error{
		"readable by others": func(f string) error { return os.WriteFile(f, good, 0o640) },
		"empty":              func(f string) error { return os.WriteFile(f, nil, 0o600) },
		"cut off":            func(f string) error { return os.WriteFile(f, good[:len(good)/2], 0o600) },
		"no key": func(f string) error {
			return os.WriteFile(f, []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"), 0o600)
		},
		"a folder": func(f string) error { return os.Mkdir(f, 0o700) },
	} {
		bad := filepath.Join(t.TempDir(), "key.pem")
		testkit.Must(t, damage(bad))
		if _, err := OpenTokens(bad, url, l, DefaultTokenLifetime); err == nil {
			t.Errorf("%s: OpenTokens = nil, want an error", name)
		}
	}
}
