// Package keys tells who a client is, whatever it shows: an access token of
// Globus Auth, an access key, or a token that it got with an access key. And it
// makes the latter ([Tokens]), for clients that do OAuth's client credentials.
//
// What each is worth is decided elsewhere: by Globus Auth, and by the ledger of
// package claims. This package hides how they are told apart, and what the
// tokens that are made here look like.
package keys

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/claims"
	"github.com/diaspora-streams/diaspora/internal/gateway"
)

// DefaultSessionLifetime is as long as an access token of Globus Auth is good.
const DefaultSessionLifetime = 48 * time.Hour

// Keys know the access keys. [claims.Service] is the one that counts.
type Keys interface {
	AuthenticateKey(ctx context.Context, id string, secret globus.Secret) (diaspora.AccessKey, error)
	ActiveKey(ctx context.Context, id string) (diaspora.AccessKey, error)
}

// People authenticates the access tokens of Globus Auth, for gateway and ACL endpoint alike.
type People struct {
	Globus *globus.Authenticator

	// Ledger says who of those that Globus Auth knows may use this fabric, see
	// [claims.Service.Admit].
	Ledger interface{ Admit(globus.Identity) error }
}

// Authenticate returns who a token belongs to. Errors are as those of
// [globus.Authenticator.Authenticate].
func (p *People) Authenticate(ctx context.Context, token globus.Secret) (globus.TokenInfo, error) {
	info, err := p.Globus.Authenticate(ctx, token)
	if err == nil {
		err = p.Ledger.Admit(info.Identity)
	}
	if err != nil {
		return globus.TokenInfo{}, err
	}
	return info, nil
}

// Recheck looks whether a person who was let in may still be here. Errors are as those of
// [globus.Authenticator.Recheck].
func (p *People) Recheck(ctx context.Context, token globus.Secret) error {
	info, err := p.Globus.Recheck(ctx, token)
	if err == nil {
		err = p.Ledger.Admit(info.Identity)
	}
	return err
}

// Authenticator is the gateway's. All fields but the last are required.
type Authenticator struct {
	People *People
	Keys   Keys
	Tokens *Tokens

	// SessionLifetime is how long a client may go on that has signed in with an
	// access key, before it has to show it again. Those that cannot on the open
	// connection are cut off then, and connect anew. Default:
	// [DefaultSessionLifetime].
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
		// Never asked about at Globus Auth, whose tokens are not JWTs.
		return a.Tokens.authenticate(ctx, c.Secret)
	}
	info, err := a.People.Authenticate(ctx, c.Secret)
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
	return a.People.Recheck(ctx, c.Secret)
}

// identityOf returns who signs in with a key, until limit or the key's own end.
func identityOf(key diaspora.AccessKey, limit time.Time) gateway.Identity {
	return gateway.Identity{Subject: key.Owner, Principal: claims.KeyPrincipal(key), Read: key.Read, Expiry: earlier(limit, key.Expires)}
}

// earlier returns the earlier of two times; a zero end is never.
func earlier(limit, end time.Time) time.Time {
	if !end.IsZero() && end.Before(limit) {
		return end
	}
	return limit
}

func refused(format string, args ...any) error {
	return &globus.RefusedError{Reason: fmt.Sprintf(format, args...)}
}
