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

// clockLeeway is how far two clocks may differ. The Globus CLI allows the same: before, it allowed 64
// seconds, and there were users whose clocks were further off.
const clockLeeway = 300 * time.Second

// errUntrusted says that an ID token cannot be trusted: it is malformed, it was not issued by Globus
// Auth for this client, or it belongs to another access token.
var errUntrusted = errors.New("it cannot be trusted")

// ClockError says that the local clock is too far off to check an ID token.
type ClockError struct {
	Skew time.Duration // how far the local clock is ahead of Globus Auth's; negative if it is behind
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

// VerifyIDToken checks an ID token and returns the identity that it names. It checks that Globus
// Auth signed the token (RS512) for this client and that it has not expired. If access is not empty
// and the ID token contains the hash of an access token (at_hash), it also checks that this is the
// hash of access. Clocks may differ by five minutes. If the token seems to be expired or not yet
// issued because the local clock is further off, the error is a [*ClockError].
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

// verifyUnsigned checks everything in an ID token except its signature. This is enough for a token
// that came directly from the token endpoint over TLS (OpenID Connect Core, section 3.1.3.7, point
// 6). It is used when the keys cannot be fetched.
func (c *Client) verifyUnsigned(ctx context.Context, raw, access Secret, now time.Time) (Identity, error) {
	return c.readIDToken(ctx, nil, raw, access, now, true)
}

func (c *Client) readIDToken(ctx context.Context, keys oidc.KeySet, raw, access Secret, now time.Time, skipSignature bool) (Identity, error) {
	verifier := oidc.NewVerifier(c.issuer, keys, &oidc.Config{
		ClientID:                   c.clientID,
		SupportedSigningAlgs:       []string{oidc.RS512},
		SkipExpiryCheck:            true, // it allows no leeway; checkTimes does
		InsecureSkipSignatureCheck: skipSignature,
	})
	token, err := verifier.Verify(ctx, raw.Reveal())
	if err != nil {
		return Identity{}, fmt.Errorf("verify ID token: %w: %v", errUntrusted, clean(err.Error(), []Secret{raw}))
	}
	if access != "" && token.AccessTokenHash != "" && token.VerifyAccessToken(access.Reveal()) != nil {
		return Identity{}, fmt.Errorf("verify ID token: %w: it does not belong to this access token", errUntrusted)
	}
	if err := c.checkTimes(token, now); err != nil {
		return Identity{}, fmt.Errorf("verify ID token: %w", err)
	}
	var claims identityClaims
	if err := token.Claims(&claims); err != nil {
		return Identity{}, errors.New("verify ID token: its claims cannot be parsed")
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

// keySet verifies signatures with Globus Auth's public keys. It is used instead of go-oidc's so
// that the keys are fetched with our limits, and an outage can be distinguished from a wrong
// signature.
type keySet struct {
	client *Client
	err    error // why the keys could not be fetched
}

// VerifySignature tries all cached keys, since Globus's keys have no ID ("kid"). If none matches,
// it fetches the keys once, because they may have been rotated.
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
		return nil, malformed(op, "the answer is not a set of keys")
	}
	var keys []*rsa.PublicKey
	for _, raw := range doc.Keys {
		var key jose.JSONWebKey
		if json.Unmarshal(raw, &key) != nil {
			continue // skip key types that this package does not know
		}
		if public, ok := key.Key.(*rsa.PublicKey); ok {
			keys = append(keys, public)
		}
	}
	if len(keys) == 0 {
		return nil, malformed(op, "the answer has no RSA key")
	}
	return keys, nil
}
