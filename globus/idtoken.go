package globus

import (
	"context"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
)

// clockLeeway is how far two clocks may differ. Globus's own tools found 64
// seconds too little in practice.
const clockLeeway = 300 * time.Second

// errForged says that an ID token is not Globus Auth's, or not for this client.
var errForged = errors.New("not from Globus Auth for this client")

// ClockError says that the local clock is too far off to judge an ID token.
type ClockError struct {
	Skew time.Duration // how far the local clock is ahead; behind if negative
}

func (e *ClockError) Error() string {
	return "this computer's clock is " + describeSkew(e.Skew) + " Globus Auth's: set it right"
}

func describeSkew(skew time.Duration) string {
	if skew < 0 {
		return fmt.Sprintf("%v behind", -skew)
	}
	return fmt.Sprintf("%v ahead of", skew)
}

// VerifyIDToken checks an ID token and returns whom it names: that Globus Auth
// signed it (RS512), for this client, that it is not expired, and, if access is not empty, that it
// came with that access token. Clocks may differ by five minutes; the error
// is a [*ClockError] if the local clock is further off.
func (c *Client) VerifyIDToken(ctx context.Context, raw, access Secret) (Identity, error) {
	return c.verifyIDToken(ctx, raw, access, c.now())
}

func (c *Client) verifyIDToken(ctx context.Context, raw, access Secret, now time.Time) (Identity, error) {
	keys := &keySet{client: c}
	id, err := c.readIDToken(ctx, keys, raw, access, now, false)
	if keys.err != nil {
		return Identity{}, fmt.Errorf("verify ID token: %w", keys.err)
	}
	return id, err
}

// directIDToken checks all of an ID token but its signature. That will do for one
// that came from the token endpoint itself, over TLS, when the keys cannot
// be had (OpenID Connect Core, section 3.1.3.7, point 6).
func (c *Client) directIDToken(ctx context.Context, raw, access Secret, now time.Time) (Identity, error) {
	return c.readIDToken(ctx, nil, raw, access, now, true)
}

func (c *Client) readIDToken(ctx context.Context, keys oidc.KeySet, raw, access Secret, now time.Time, direct bool) (Identity, error) {
	verifier := oidc.NewVerifier(c.issuer, keys, &oidc.Config{
		ClientID:                   c.clientID,
		SupportedSigningAlgs:       []string{oidc.RS512},
		SkipExpiryCheck:            true, // it knows no leeway; see checkTimes
		InsecureSkipSignatureCheck: direct,
	})
	token, err := verifier.Verify(ctx, raw.Reveal())
	if err != nil {
		return Identity{}, fmt.Errorf("verify ID token: %w: %v", errForged, clean(err.Error(), []Secret{raw}))
	}
	if access != "" && token.AccessTokenHash != "" && token.VerifyAccessToken(access.Reveal()) != nil {
		return Identity{}, fmt.Errorf("verify ID token: %w: it came with another access token", errForged)
	}
	if err := c.checkTimes(token, now); err != nil {
		return Identity{}, fmt.Errorf("verify ID token: %w", err)
	}
	var claims identityClaims
	if err := token.Claims(&claims); err != nil {
		return Identity{}, errors.New("verify ID token: it names nobody")
	}
	return claims.identity("verify ID token")
}

func (c *Client) checkTimes(token *oidc.IDToken, now time.Time) error {
	early := token.IssuedAt.Sub(now) > clockLeeway
	late := now.Sub(token.Expiry) > clockLeeway
	if !early && !late {
		return nil
	}
	if skew := c.skew.Load(); skew != nil && skew.Abs() > clockLeeway {
		return &ClockError{Skew: *skew}
	}
	if early {
		return &ClockError{Skew: now.Sub(token.IssuedAt).Truncate(time.Second)}
	}
	return fmt.Errorf("it expired at %s", token.Expiry.UTC().Format(time.RFC3339))
}

// keySet verifies signatures with Globus Auth's public keys. It is its own, not
// go-oidc's, so that it fetches them with our limits and tells an outage
// from a bad signature.
type keySet struct {
	client *Client
	err    error // why the keys could not be had
}

// VerifySignature tries all keys, since Globus's have no kid, and fetches
// them anew once if none fits.
func (k *keySet) VerifySignature(ctx context.Context, jwt string) ([]byte, error) {
	k.client.keys.Lock()
	defer k.client.keys.Unlock()
	if cached := k.client.keys.set; cached != nil {
		if payload, err := verifyWith(ctx, cached, jwt); err == nil {
			return payload, nil
		}
	}
	fetched, err := k.client.fetchKeys(ctx)
	if err != nil {
		k.err = err
		return nil, err
	}
	k.client.keys.set = fetched
	return verifyWith(ctx, fetched, jwt)
}

func verifyWith(ctx context.Context, keys []*rsa.PublicKey, jwt string) ([]byte, error) {
	set := oidc.StaticKeySet{}
	for _, key := range keys {
		set.PublicKeys = append(set.PublicKeys, key)
	}
	return set.VerifySignature(ctx, jwt)
}

func (c *Client) fetchKeys(ctx context.Context) ([]*rsa.PublicKey, error) {
	const op = "get the keys of ID tokens"
	a, err := c.do(ctx, call{op: op, path: "/jwk.json", public: true})
	if err != nil {
		return nil, err
	}
	var doc struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(a.body, &doc); err != nil {
		return nil, malformed(op, "the answer holds no keys")
	}
	var keys []*rsa.PublicKey
	for _, raw := range doc.Keys {
		var key jose.JSONWebKey
		if json.Unmarshal(raw, &key) != nil {
			continue // of a kind that we do not know, and need not
		}
		if public, ok := key.Key.(*rsa.PublicKey); ok {
			keys = append(keys, public)
		}
	}
	if len(keys) == 0 {
		return nil, malformed(op, "the answer holds no keys")
	}
	return keys, nil
}
