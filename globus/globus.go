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

	// ErrRefused says that an access token is not accepted: it is expired, revoked, malformed or
	// meant for another service.
	ErrRefused = errors.New("token refused")

	// ErrUnavailable says that Globus Auth could not be asked now: it is unreachable or overloaded,
	// limits the rate, or another process holds the lock of the token file for too long. It says
	// nothing about the token: keep the token and retry later.
	ErrUnavailable = errors.New("cannot reach Globus Auth")

	// ErrMisconfigured says that something other than Globus Auth seems to answer, for instance with
	// a web page, with status 404, or with an untrusted certificate. The issuer is wrong, or a proxy
	// or a login page of the network intercepts the request. From an [Authenticator] it may also mean
	// that Globus Auth rejects the service itself. It says nothing about the token, and retrying soon
	// does not help.
	ErrMisconfigured = errors.New("unexpected answer")

	// ErrClientRefused says that Globus Auth rejects this client: its ID or secret is wrong, or it
	// may not do what it requested. Logging in does not help; the configuration must be fixed.
	ErrClientRefused = errors.New("client refused")

	// ErrDenied says that the person denied the login in the browser.
	ErrDenied = errors.New("login denied")

	// ErrNotFound says that Globus has no such identity or group, or does not show the group to this
	// service.
	ErrNotFound = errors.New("not found at Globus")

	// ErrAmbiguous says that several identities have the username. Only a subject tells them apart.
	ErrAmbiguous = errors.New("ambiguous username")

	// ErrMembersHidden says that this service may not see the members of the group.
	ErrMembersHidden = errors.New("this service may not see the members")

	// ErrTooManyMembers says that the group has more members than a [Directory] reads: 10,000 active
	// ones, or a list of more than 16 MiB.
	ErrTooManyMembers = errors.New("too many members")
)

// Secret is a string that must not be printed: a token, an authorization code or a client secret.
// Packages fmt, encoding/json and log/slog print it as [redacted]. The verb %p of package fmt is an
// exception, which go vet reports. Use [Secret.Reveal] to get the secret, because reviewers search for
// that.
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

// Format prints what String returns, for every verb but %p and %T, for which fmt does not call it.
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

// TokenSource returns access tokens that are valid now. Implementations must be safe for concurrent
// use. Those that can renew a token do so before it expires, one renewal at a time. Errors usually
// wrap [ErrLoginRequired], [ErrClientRefused], [ErrMisconfigured] or [ErrUnavailable], or are ctx's
// error.
//
// A source may have two more methods. Callers use Refused(Secret) to report that a service has
// rejected an access token that has not expired; the next call of Token must then return another
// one. Settle() waits for a renewal that is in progress, see [Source.Settle].
type TokenSource interface {
	Token(ctx context.Context) (Token, error)
}

// Identity describes an identity at Globus. Use only Subject as a key; the other fields can
// change.
type Identity struct {
	// The tag "form" is for responses of an ACL endpoint; see package aclclient.

	Subject      string   `json:"subject" form:"subject"` // the identity ID, a UUID
	Username     string   `json:"username"`               // for instance ada@example.edu
	Name         string   `json:"name,omitempty"`
	Email        string   `json:"email,omitempty"`
	Organization string   `json:"organization,omitempty"`
	IdentitySet  []string `json:"identity_set,omitempty" form:"subject"` // IDs of all linked identities, including Subject
	// Status is "unused", "used", "private" or "closed". Only a [Directory] sets it.
	Status string `json:"status,omitempty"`
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
