package keys

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/gateway"
)

const (
	// DefaultTokenLifetime is the lifetime of a token that is issued for a key. Clients fetch the
	// next one before it expires. The tokens of a revoked key do not stay valid that long, because
	// authenticating a token includes checking its key.
	DefaultTokenLifetime = time.Hour

	maxTokenBytes = 4 << 10
	maxKeyFile    = 16 << 10
)

// Tokens exchanges access keys for short-lived tokens, and authenticates these tokens. They are
// JWTs, because clients that fetch tokens themselves expect that: librdkafka reads exp and sub, and
// the Java client also iat and scope. The gateway needs only the ID of the key from them.
type Tokens struct {
	issuer   string
	keys     Keys
	lifetime time.Duration
	key      *ecdsa.PrivateKey
	signer   jose.Signer
	now      func() time.Time
}

// OpenTokens returns the Tokens of the fabric whose URL is issuer. Its tokens are valid for
// lifetime. It signs them with the private key in file. If the file does not exist, OpenTokens
// creates it, readable by its owner only. Replicas of the service that share the file accept each
// other's tokens. If file is empty, the private key is kept in memory only, and the tokens become
// invalid when the process ends.
func OpenTokens(file, issuer string, keys Keys, lifetime time.Duration) (*Tokens, error) {
	key, err := signingKey(file)
	if err != nil {
		return nil, fmt.Errorf("open the signing key for tokens: %w", err)
	}
	public := jose.JSONWebKey{Key: &key.PublicKey}
	thumbprint, err := public.Thumbprint(crypto.SHA256)
	if err != nil {
		return nil, err
	}
	options := (&jose.SignerOptions{}).WithType("at+jwt").WithHeader("kid", base64.RawURLEncoding.EncodeToString(thumbprint))
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, options)
	if err != nil {
		return nil, err
	}
	return &Tokens{issuer: issuer, keys: keys, lifetime: lifetime, key: key, signer: signer, now: time.Now}, nil
}

// tokenClaims are the claims of RFC 9068. The gateway uses client_id, which is the key's ID.
type tokenClaims struct {
	jwt.Claims
	ClientID string `json:"client_id"`
	Scope    string `json:"scope"`
}

// Exchange returns a token for the key with this ID if the secret is right. Its errors are those of
// [claims.Service.AuthenticateKey].
//
// [claims.Service.AuthenticateKey]: https://pkg.go.dev/github.com/diaspora-streams/diaspora/internal/claims#Service.AuthenticateKey
func (t *Tokens) Exchange(ctx context.Context, id string, secret globus.Secret) (globus.Token, error) {
	key, err := t.keys.AuthenticateKey(ctx, id, secret)
	if err != nil {
		return globus.Token{}, err
	}
	now := t.now()
	token := globus.Token{Scope: scopeOf(key), Obtained: now, Expiry: earliest(now.Add(t.lifetime), key.Expires)}
	signed, err := jwt.Signed(t.signer).Claims(tokenClaims{
		Claims: jwt.Claims{
			Issuer: t.issuer, Subject: key.Owner, Audience: jwt.Audience{t.issuer},
			IssuedAt: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(token.Expiry),
		},
		ClientID: key.ID,
		Scope:    strings.Join(token.Scope, " "),
	}).Serialize()
	if err != nil {
		return globus.Token{}, fmt.Errorf("sign a token: %w", err)
	}
	token.AccessToken = globus.Secret(signed)
	return token, nil
}

// scopeOf returns the key's rights as scopes. They are for people, and for clients that require a
// scope. The broker's ACLs enforce the rights.
func scopeOf(key diaspora.AccessKey) (scope []string) {
	if key.Read {
		scope = append(scope, "read")
	}
	if key.Write {
		scope = append(scope, "write")
	}
	return scope
}

// authenticate returns the identity for a token that Exchange has issued.
func (t *Tokens) authenticate(ctx context.Context, token globus.Secret) (gateway.Identity, error) {
	if len(token) > maxTokenBytes {
		return gateway.Identity{}, errUnknownToken
	}
	parsed, err := jwt.ParseSigned(token.Reveal(), []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return gateway.Identity{}, errUnknownToken
	}
	var c tokenClaims
	if err := parsed.Claims(&t.key.PublicKey, &c); err != nil {
		return gateway.Identity{}, errUnknownToken
	}
	now := t.now()
	switch {
	case c.Issuer != t.issuer || !c.Audience.Contains(t.issuer) || c.Expiry == nil:
		return gateway.Identity{}, errUnknownToken
	case !now.Before(c.Expiry.Time()):
		return gateway.Identity{}, refused("the token that was issued for an access key expired at %s", c.Expiry.Time().UTC().Format(time.RFC3339))
	}
	key, err := t.keys.ActiveKey(ctx, c.ClientID)
	if err != nil {
		return gateway.Identity{}, err
	}
	if key.Owner != c.Subject {
		return gateway.Identity{}, errUnknownToken
	}
	return identityOf(key, c.Expiry.Time()), nil
}

var errUnknownToken = refused("this token was issued neither by Globus Auth nor by this fabric for an access key")

// isJWT reports whether a token looks like a JWT, whoever issued it. The tokens of Globus Auth are
// opaque and have no dots.
func isJWT(token globus.Secret) bool { return strings.Count(token.Reveal(), ".") == 2 }

// signingKey returns the private key in the file. It creates the file if it does not exist.
func signingKey(file string) (*ecdsa.PrivateKey, error) {
	if file == "" {
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	key, err := readKey(file)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	if err := writeKey(file, key); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return readKey(file) // another process may have created the file first
}

func readKey(file string) (*ecdsa.PrivateKey, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s must be a file that only its owner can read: chmod 600 %[1]s", file)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, fmt.Errorf("%s does not contain a private key in PEM", file)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	key, ok := parsed.(*ecdsa.PrivateKey)
	if err != nil || !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("%s does not contain a key of the curve P-256", file) // without err, which may quote the file's content
	}
	return key, nil
}

// writeKey creates the file atomically. It fails with [fs.ErrExist] if the file exists.
func writeKey(file string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	dir := filepath.Dir(file)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "."+filepath.Base(file)+"-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	err = pem.Encode(f, &pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), file); err != nil {
		return err
	}
	folder, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}
