package globus

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
)

const (
	// refreshAhead is how much life a token has left when it is replaced, plus
	// up to half as much so that programs started together do not ask together.
	refreshAhead = 60 * time.Second
	// goodWait is how long a caller waits for a fresh token when the old
	// one is still good: an outage must not hold up who needs no new token.
	goodWait = 2 * time.Second
	// renewTimeout bounds one renewal, waiting for other processes included.
	renewTimeout = 45 * time.Second
	// maxAskedWait bounds how long a source without a good token fails without
	// asking, when Globus Auth asked to be left alone.
	maxAskedWait = time.Minute
)

var errRenewTimeout = fmt.Errorf("%w: no answer within %v", ErrUnavailable, renewTimeout)

// StaticToken returns a source of this one token. When it has expired, the
// source says [ErrLoginRequired].
func StaticToken(token Token) TokenSource { return static(seal(token)) }

type static sealed[Token]

func (s static) Token(context.Context) (Token, error) {
	t := s()
	if !t.Expiry.IsZero() && !time.Now().Before(t.Expiry) {
		return Token{}, fmt.Errorf("%w: the access token has expired", ErrLoginRequired)
	}
	return t, nil
}

// Source is a [TokenSource] that renews its token ahead of expiry. When that fails
// or takes long, it goes on serving the old one while it is good.
type Source struct {
	now    func() time.Time
	diag   *slog.Logger
	ahead  time.Duration
	renew  renewer
	flight singleflight.Group

	renewing sync.Mutex // held during a renewal

	mu       sync.Mutex     // guards the fields below
	token    sealed[Token]  // the last one; nil before the first
	refused  sealed[Secret] // an access token that is no longer good, whatever its expiry
	failures int            // renewals failed since the last success
	retryAt  time.Time      // Globus Auth is left alone until then
	asked    error          // what it said when it asked for that; nil if it did not
}

// renewer gets the next token for a Source. The error may come with a token: the
// best at hand, which may still be good.
type renewer interface {
	// renew returns a token that enough accepts, from disk if somebody else has
	// renewed it, or from Globus Auth. It shows enough what it finds before it
	// asks. Calls do not overlap.
	renew(ctx context.Context, enough func(Token) bool) (Token, error)
}

func (c *Client) newSource(r renewer) *Source {
	return &Source{
		now:   c.now,
		diag:  c.diag,
		ahead: refreshAhead + rand.N(refreshAhead/2),
		renew: r,
	}
}

// Token returns an access token that is good now.
func (s *Source) Token(ctx context.Context) (Token, error) {
	if err := ctx.Err(); err != nil {
		return Token{}, err
	}
	now := s.state()
	switch {
	case now.wait && now.good:
		return now.token, nil
	case now.wait:
		return Token{}, now.asked
	}
	// The renewal does not end with the caller who happened to start it: a
	// rotated refresh token might be lost on the way.
	result := s.flight.DoChan("", func() (any, error) {
		run, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), renewTimeout, errRenewTimeout)
		defer cancel()
		s.renewing.Lock()
		defer s.renewing.Unlock()
		return s.renewed(run)
	})
	late := time.NewTimer(goodWait)
	defer late.Stop()
	for {
		select {
		case r := <-result:
			if r.Err != nil {
				return Token{}, r.Err
			}
			return r.Val.(Token), nil
		case <-late.C:
			// The renewal may have found one on disk that still does.
			if now := s.state(); now.good {
				return now.token, nil
			}
		case <-ctx.Done():
			return Token{}, ctx.Err()
		}
	}
}

// Settle waits until no renewal is under way, 45 s at most. A program that ends
// should call it, unless it closes a diaspora.Logger or Consumer, which do: the
// answer that it does not wait for may hold a rotated refresh token, and the one
// before is dead.
func (s *Source) Settle() {
	s.renewing.Lock()
	defer s.renewing.Unlock()
}

// Refused tells the source that a service refused this access token although it
// has not expired, so that the next call of Token gets another.
func (s *Source) Refused(access Secret) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.token != nil && s.token().AccessToken == access {
		s.refused = seal(access)
	}
}

// state is how a Source is at one moment.
type state struct {
	token Token
	good  bool  // the token is
	wait  bool  // there is nothing to do but wait: the token need not be renewed yet, or cannot
	asked error // why, if it is not good
}

func (s *Source) state() state {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.now()
	now := state{asked: s.asked}
	if s.token != nil {
		now.token = s.token()
	}
	now.good = s.good(now.token, at)
	switch {
	case now.good && !s.due(now.token, at):
		now.wait = true
	case now.good || s.asked != nil:
		now.wait = at.Before(s.retryAt)
	}
	return now
}

// good and due are called with mu held.
func (s *Source) good(t Token, now time.Time) bool {
	return t.AccessToken != "" && now.Before(t.Expiry) && (s.refused == nil || s.refused() != t.AccessToken)
}

func (s *Source) due(t Token, now time.Time) bool {
	ahead := s.ahead
	if life := t.Expiry.Sub(t.Obtained); !t.Obtained.IsZero() && life > 0 {
		ahead = min(ahead, life/4) // tokens of a minute are not renewed all the time
	}
	return !s.good(t, now) || t.Expiry.Sub(now) <= ahead
}

// renewed gets a new token. It is the one flight at a time.
func (s *Source) renewed(ctx context.Context) (Token, error) {
	t, err := s.renew.renew(ctx, func(t Token) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.good(t, s.now()) {
			s.token = seal(t) // for those who wait
		}
		return !s.due(t, s.now())
	})
	t, failure := s.take(t, err)
	if err != nil && failure == nil { // with no lock held: whoever takes diagnostics may hang
		s.diag.Warn("refresh failed; the token at hand is still good",
			"resource_server", t.ResourceServer, "expiry", t.Expiry, "err", err)
	}
	return t, failure
}

// take takes over what a renewal brought, and returns the token to go on with, or
// why there is none.
func (s *Source) take(t Token, err error) (Token, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	if err == nil {
		s.token, s.failures, s.retryAt, s.asked = seal(t), 0, time.Time{}, nil
		return t, nil
	}
	if errors.Is(err, ErrLoginRequired) {
		s.token = nil
		return Token{}, err
	}
	if t.AccessToken == "" && s.token != nil {
		t = s.token()
	}
	asked := askedToWait(err)
	if !s.good(t, now) {
		s.asked, s.retryAt = nil, time.Time{}
		if asked > 0 {
			// Not for long: somebody may log in anew meanwhile.
			s.asked, s.retryAt = err, now.Add(min(asked, maxAskedWait))
		}
		return Token{}, err
	}
	s.token = seal(t)
	s.failures++
	s.retryAt = now.Add(max(asked, time.Second<<min(s.failures, 5)+rand.N(time.Second)))
	return t, nil
}

// askedToWait is how long Globus Auth asked to be left alone, if it did.
func askedToWait(err error) time.Duration {
	if e := (*Error)(nil); errors.As(err, &e) {
		return e.RetryAfter
	}
	return 0
}

// ClientCredentialsSource returns a source of access tokens for the client
// itself: a service. It keeps them in memory only.
func (c *Client) ClientCredentialsSource(resourceServer string, scopes ...string) *Source {
	return c.newSource(&credentialsRenewer{c, resourceServer, scopes})
}

type credentialsRenewer struct {
	client         *Client
	resourceServer string
	scopes         []string
}

func (r *credentialsRenewer) renew(ctx context.Context, _ func(Token) bool) (Token, error) {
	tokens, err := r.client.ClientCredentials(ctx, r.scopes...)
	if err != nil {
		return Token{}, err
	}
	for _, t := range tokens {
		if t.ResourceServer == r.resourceServer {
			return t, nil
		}
	}
	return Token{}, &Error{Op: "get client credentials", kind: ErrClientRefused,
		Detail: fmt.Sprintf("the scopes %q gave no token for %s", strings.Join(r.scopes, " "), r.resourceServer)}
}

// StoredSource returns a source of a stored login's access tokens for one resource
// server. All sources on one token file, in whatever process, refresh in turn and
// see each other's results; a new refresh token is on disk before its access token is used.
// If the file cannot be written, the source goes on from memory and says so to Diagnostics.
func (c *Client) StoredSource(store *Store, resourceServer string) *Source {
	return c.newSource(&storeRenewer{client: c, store: store, resourceServer: resourceServer})
}

// RefreshSource returns a source of access tokens from a bare refresh token, as
// found in DIASPORA_REFRESH. Access tokens and rotated refresh tokens are
// kept in a token file in dir that is named after the refresh token's hash, so that
// processes with the same refresh token share them. Without dir, or if it cannot
// be written, they stay in memory.
func (c *Client) RefreshSource(refresh Secret, resourceServer, dir string) *Source {
	r := &storeRenewer{client: c, resourceServer: resourceServer, seed: seal(refresh)}
	if dir != "" {
		hash := sha256.Sum256([]byte(c.issuer + "\x00" + c.clientID + "\x00" + refresh.Reveal()))
		r.store = &Store{path: filepath.Join(dir, hex.EncodeToString(hash[:])+".json")}
	}
	return c.newSource(r)
}
