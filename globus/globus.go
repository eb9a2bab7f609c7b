package globus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

var (
	// ErrLoginRequired says that no usable token is left and only a new
	// login mends it: never logged in, logged out, revoked, or unused too long.
	ErrLoginRequired = errors.New("login required")

	// ErrRefused says that Globus Auth was asked and an access token is not
	// good for this service: expired, revoked, or meant for somebody else.
	ErrRefused = errors.New("token refused")

	// ErrUnavailable says that Globus Auth could not be asked. It says nothing
	// about the token; the caller should keep it and try again.
	ErrUnavailable = errors.New("cannot reach Globus Auth")

	// ErrMisconfigured says that what answered in Globus Auth's place does not answer
	// as Globus Auth does: a web page, status 404 or 501, an answer that cannot be
	// understood. The issuer is wrong, or a proxy or a login page of the network is in
	// the way. It says nothing about the token, and trying again in a moment does not help.
	ErrMisconfigured = errors.New("unexpected answer")

	// ErrClientRefused says that Globus Auth does not accept this client: its
	// ID or secret is wrong, or it may not do what was asked. Nobody's login
	// mends that; the configuration does.
	ErrClientRefused = errors.New("client refused")

	// ErrDenied says that the person said no to the login in the browser.
	ErrDenied = errors.New("login denied")
)

// Secret is a string that must not be seen: a token, an authorization code or a
// client secret. Every verb of package fmt, encoding/json and log/slog print
// it as [redacted]; only [Secret.Reveal] gives it away.
//
// Package fmt cannot call methods of unexported struct fields: a struct that may
// be printed keeps a Secret in an exported field, or in a function that returns it.
type Secret string

const redacted = "[redacted]"

// Reveal returns the secret itself.
func (s Secret) Reveal() string { return string(s) }

// String returns "[redacted]", or "" if there is no secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return redacted
}

// Format prints "[redacted]" for every verb, %x and %#v included.
func (s Secret) Format(f fmt.State, _ rune) { fmt.Fprint(f, s.String()) }

// MarshalText keeps the secret out of JSON and every other text encoding.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue keeps the secret out of diagnostics.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// sealed is a value in a place where nothing that prints can see it.
type sealed[T any] func() T

func seal[T any](v T) sealed[T] { return func() T { return v } }

// Token is one access token, for one resource server.
type Token struct {
	// ResourceServer names the API that the token is good for.
	ResourceServer string
	AccessToken    Secret
	// RefreshToken gets the next access token. Empty if none was asked for.
	RefreshToken Secret
	// Scope lists the scopes that were granted, in no order.
	Scope []string
	// Expiry is when the access token stops working.
	Expiry time.Time
	// Obtained is when Globus Auth issued the access token. Zero if unknown.
	Obtained time.Time
}

// TokenSource yields an access token that is good now. Implementations refresh
// ahead of expiry, in single flight, and may be used concurrently. Errors are
// [ErrLoginRequired], [ErrClientRefused], [ErrMisconfigured] or [ErrUnavailable], or ctx's.
//
// A source may have a method Refused(Secret). It is told of an access token that a service
// refused before its time, so that the next call of Token yields another.
type TokenSource interface {
	Token(ctx context.Context) (Token, error)
}

// Identity is who somebody is at Globus. Only Subject is a key; the rest is to show.
type Identity struct {
	Subject      string   `json:"subject"`  // the identity ID, a UUID
	Username     string   `json:"username"` // for instance ada@example.edu
	Name         string   `json:"name,omitempty"`
	Email        string   `json:"email,omitempty"`
	Organization string   `json:"organization,omitempty"`
	IdentitySet  []string `json:"identity_set,omitempty"` // linked identity IDs, Subject included
}

// TokenInfo is what introspection says of an access token that is active.
type TokenInfo struct {
	Identity
	ClientID  string // who the token was issued to
	Issuer    string
	Audience  []string
	Scope     []string
	IssuedAt  time.Time
	NotBefore time.Time
	Expiry    time.Time
}
