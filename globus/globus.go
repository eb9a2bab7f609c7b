package globus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

var (
	// ErrLoginRequired says that there is no usable token and that only a new login helps: the
	// person never logged in, logged out, revoked the tokens, or did not use them for too long.
	ErrLoginRequired = errors.New("login required")

	// ErrRefused says that Globus Auth has rejected an access token for this service: it is
	// expired, revoked, or meant for another service.
	ErrRefused = errors.New("token refused")

	// ErrUnavailable says that Globus Auth is unreachable. It says nothing about the token: keep
	// the token and retry later.
	ErrUnavailable = errors.New("cannot reach Globus Auth")

	// ErrMisconfigured says that the response is not one of Globus Auth: a web page, status 404 or
	// 501, or malformed JSON. The issuer is wrong, or a proxy or a login page of the network
	// intercepts the request. It says nothing about the token, and retrying soon does not help.
	ErrMisconfigured = errors.New("unexpected answer")

	// ErrClientRefused says that Globus Auth rejects this client: its ID or secret is wrong, or it
	// may not do what it requested. Logging in does not help; the configuration must be fixed.
	ErrClientRefused = errors.New("client refused")

	// ErrDenied says that the person denied the login in the browser.
	ErrDenied = errors.New("login denied")
)

// Secret is a string that must not be printed: a token, an authorization code or a client secret.
// All verbs of package fmt, encoding/json and log/slog print it as [redacted]. Only [Secret.Reveal]
// returns it.
//
// Package fmt cannot call methods of unexported struct fields and prints their contents. A struct
// that may be printed therefore holds a Secret in an exported field, or in a function that returns
// it.
type Secret string

const redacted = "[redacted]"

// Reveal returns the secret itself.
func (s Secret) Reveal() string { return string(s) }

// String returns "[redacted]", or "" if the secret is empty.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return redacted
}

// Format prints "[redacted]" for every verb, including %x and %#v.
func (s Secret) Format(f fmt.State, _ rune) { fmt.Fprint(f, s.String()) }

// MarshalText keeps the secret out of JSON and all other text encodings.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue keeps the secret out of diagnostics.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// sealed holds a value in a closure, where fmt and other printers cannot find it.
type sealed[T any] func() T

func seal[T any](v T) sealed[T] { return func() T { return v } }

// Token is an access token for one resource server.
type Token struct {
	// ResourceServer names the API that accepts the token.
	ResourceServer string
	AccessToken    Secret
	// RefreshToken can be exchanged for the next access token. Empty if none was requested.
	RefreshToken Secret
	// Scope lists the granted scopes, in no particular order.
	Scope []string
	// Expiry is when the access token expires.
	Expiry time.Time
	// Obtained is when Globus Auth issued the access token. Zero if unknown.
	Obtained time.Time
}

// TokenSource returns access tokens that are valid now. Implementations refresh a token before it
// expires, run only one refresh at a time, and may be used concurrently. Errors are
// [ErrLoginRequired], [ErrClientRefused], [ErrMisconfigured], [ErrUnavailable], or ctx's error.
//
// A source may have a method Refused(Secret). Callers use it to report that a service has rejected
// an access token that has not expired. The next call of Token must then return another one.
type TokenSource interface {
	Token(ctx context.Context) (Token, error)
}

// Identity describes an identity at Globus. Use only Subject as a key; the other fields are for
// display.
type Identity struct {
	Subject      string   `json:"subject"`  // the identity ID, a UUID
	Username     string   `json:"username"` // for instance ada@example.edu
	Name         string   `json:"name,omitempty"`
	Email        string   `json:"email,omitempty"`
	Organization string   `json:"organization,omitempty"`
	IdentitySet  []string `json:"identity_set,omitempty"` // IDs of all linked identities, including Subject
}

// TokenInfo is the result of introspecting an active access token.
type TokenInfo struct {
	Identity
	ClientID  string // the client that the token was issued to
	Issuer    string
	Audience  []string
	Scope     []string
	IssuedAt  time.Time
	NotBefore time.Time
	Expiry    time.Time
}
