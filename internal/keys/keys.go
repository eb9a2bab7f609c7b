// Package keys finds out the identity of a client from the credentials that it shows: an access
// token of Globus Auth, an access key, or a token that it got for an access key. [Tokens] issues
// these tokens, for clients that use OAuth's client credentials grant.
//
// The package hides how the three are told apart, and the format of the tokens that it issues.
// Whether credentials are valid is decided elsewhere: by Globus Auth, and by the ledger of package
// claims. A token that was issued for an access key is accepted only while the key itself is valid.
//
// Start reading at [Authenticator].
package keys

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/claims"
	"github.com/diaspora-streams/diaspora/internal/gateway"
)

// DefaultSessionLifetime is the lifetime of an access token of Globus Auth.
const DefaultSessionLifetime = 48 * time.Hour

// Keys authenticates access keys. The real implementation is [claims.Service].
type Keys interface {
	AuthenticateKey(ctx context.Context, id string, secret globus.Secret) (diaspora.AccessKey, error)
	ActiveKey(ctx context.Context, id string) (diaspora.AccessKey, error)
}

// UserAuthenticator authenticates access tokens of Globus Auth, for the gateway and the ACL
// endpoint.
type UserAuthenticator struct {
	Globus *globus.Authenticator

	// Ledger says which of the people that Globus Auth knows may use this fabric, and makes what is
	// shared with a linked identity hold for the one that signs in. See [claims.Service.Admit] and
	// [claims.Service.Linked].
	Ledger Ledger

	// Diagnostics receives messages about links that cannot be recorded. Nil discards them.
	Diagnostics *slog.Logger
}

// Ledger is what a [UserAuthenticator] needs of package claims.
type Ledger interface {
	Admit(globus.Identity) error
	Linked(context.Context, globus.Identity) error
}

// Authenticate returns the owner of a token. Its errors are those of
// [globus.Authenticator.Authenticate], and those of Admit.
func (p *UserAuthenticator) Authenticate(ctx context.Context, token globus.Secret) (globus.TokenInfo, error) {
	info, err := p.Globus.Authenticate(ctx, token)
	if err == nil {
		err = p.Ledger.Admit(info.Identity)
	}
	if err != nil {
		return globus.TokenInfo{}, err
	}
	// If it fails, the person can do everything but use what is shared with another identity, and the
	// next login tries again.
	if err := p.Ledger.Linked(ctx, info.Identity); err != nil && p.Diagnostics != nil {
		p.Diagnostics.Warn("cannot record the linked identities of a person", "principal", info.Subject, "err", err)
	}
	return info, nil
}

// Recheck checks whether a token that was accepted before is still valid, and its owner still
// admitted. Its errors are those of [globus.Authenticator.Recheck], and those of Admit.
func (p *UserAuthenticator) Recheck(ctx context.Context, token globus.Secret) error {
	info, err := p.Globus.Recheck(ctx, token)
	if err == nil {
		err = p.Ledger.Admit(info.Identity)
	}
	return err
}

// Authenticator is the [gateway.Authenticator]. All fields except the last are required.
type Authenticator struct {
	Users  *UserAuthenticator
	Keys   Keys
	Tokens *Tokens

	// SessionLifetime is how long a client that has signed in with an access key stays signed in.
	// After that it has to show the key again. Clients that cannot do that on the open connection
	// are disconnected, and reconnect. Default: [DefaultSessionLifetime].
	SessionLifetime time.Duration
}

// Authenticate implements [gateway.Authenticator].
func (a *Authenticator) Authenticate(ctx context.Context, c gateway.Credentials) (gateway.Identity, error) {
	switch {
	case c.KeyID != "":
		key, err := a.Keys.AuthenticateKey(ctx, c.KeyID, c.Secret)
		if err != nil {
			return gateway.Identity{}, err
		}
		return identityOf(key, time.Now().Add(cmp.Or(a.SessionLifetime, DefaultSessionLifetime))), nil
	case isJWT(c.Secret):
		// Globus Auth is never asked about a JWT, because its own tokens are not JWTs.
		return a.Tokens.authenticate(ctx, c.Secret)
	}
	info, err := a.Users.Authenticate(ctx, c.Secret)
	if err != nil {
		return gateway.Identity{}, err
	}
	return gateway.Identity{Subject: info.Subject, Principal: info.Subject, Read: true, Expiry: info.Expiry}, nil
}

// Recheck implements [gateway.Authenticator].
func (a *Authenticator) Recheck(ctx context.Context, c gateway.Credentials) error {
	if c.KeyID != "" || isJWT(c.Secret) {
		_, err := a.Authenticate(ctx, c)
		return err
	}
	return a.Users.Recheck(ctx, c.Secret)
}

// identityOf returns the identity for a key. It expires at limit, or when the key does if that is
// earlier.
func identityOf(key diaspora.AccessKey, limit time.Time) gateway.Identity {
	return gateway.Identity{Subject: key.Owner, Principal: claims.KeyPrincipal(key), Read: key.Read, Expiry: earliest(limit, key.Expires)}
}

// earliest returns the earlier of two times. A zero end means never.
func earliest(limit, end time.Time) time.Time {
	if !end.IsZero() && end.Before(limit) {
		return end
	}
	return limit
}

func refused(format string, args ...any) error {
	return &globus.RefusedError{Reason: fmt.Sprintf(format, args...)}
}
