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
	// refreshAhead is how long before its expiry a token is replaced. Each source adds a random
	// time of up to half as much, so that programs that start together do not refresh together.
	refreshAhead = 60 * time.Second
	// waitIfValid is how long a caller waits for a new token while the old one is still valid. It
	// keeps an outage from delaying callers that do not need a new token.
	waitIfValid = 2 * time.Second
	// renewTimeout limits one renewal, including the wait for other processes.
	renewTimeout = 45 * time.Second
	// When Globus Auth asks for a pause (Retry-After), a source without a valid token returns that
	// error until the pause is over, and does not ask again. maxAuthPause limits the pause, because
	// somebody may log in again in the meantime.
	maxAuthPause = time.Minute
)

var errRenewTimeout = fmt.Errorf("%w: the token was not renewed within %v", ErrUnavailable, renewTimeout)

// StaticToken returns a source that always returns this token. When the token has expired, the
// source returns [ErrLoginRequired].
func StaticToken(token Token) TokenSource { return static(seal(token)) }

type static sealed[Token]

func (s static) Token(context.Context) (Token, error) {
	t := s()
	if !t.Expiry.IsZero() && !time.Now().Before(t.Expiry) {
		return Token{}, fmt.Errorf("%w: the access token has expired", ErrLoginRequired)
	}
	return t, nil
}

// Source is a [TokenSource]. A call of Token renews a token that is about to expire. If the renewal
// fails or is slow, the source keeps returning the old token while that is valid, unless Globus Auth
// says that a new login is required.
type Source struct {
	now    func() time.Time
	diag   *slog.Logger
	ahead  time.Duration
	renew  renewer
	flight singleflight.Group

	renewing sync.Mutex // held during a renewal

	mu       sync.Mutex     // guards the fields below
	token    sealed[Token]  // the current token; nil if there is none
	refused  sealed[Secret] // an access token that a service has rejected: not valid, whatever its expiry
	failures int            // renewals since the last success that failed while the token was valid
	retryAt  time.Time      // do not ask Globus Auth before
	pauseErr error          // if there is no valid token: the error to return until retryAt, or nil
}

// renewer gets the next token for a Source. It may return a token together with an error: the best
// one available, which may still be valid.
type renewer interface {
	// renew returns a new token. An implementation that shares tokens with other programs first
	// calls accept with the token that it finds, which also makes that token available to callers
	// that wait. If accept reports true, renew returns that token. Calls do not overlap.
	renew(ctx context.Context, accept func(Token) bool) (Token, error)
}

func (c *Client) newSource(r renewer) *Source {
	return &Source{
		now:   c.now,
		diag:  c.diag,
		ahead: refreshAhead + rand.N(refreshAhead/2),
		renew: r,
	}
}

// Token returns an access token that is valid now.
func (s *Source) Token(ctx context.Context) (Token, error) {
	if err := ctx.Err(); err != nil {
		return Token{}, err
	}
	now := s.state()
	switch {
	case now.wait && now.good:
		return now.token, nil
	case now.wait:
		return Token{}, now.pauseErr
	}
	// The renewal must not end with the caller that started it. Otherwise, a response with a
	// rotated refresh token could be lost.
	result := s.flight.DoChan("", func() (any, error) {
		run, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), renewTimeout, errRenewTimeout)
		defer cancel()
		s.renewing.Lock()
		defer s.renewing.Unlock()
		return s.runRenewal(run)
	})
	late := time.NewTimer(waitIfValid)
	defer late.Stop()
	for {
		select {
		case r := <-result:
			if r.Err != nil {
				return Token{}, r.Err
			}
			return r.Val.(Token), nil
		case <-late.C:
			// The renewal may have found a token on disk that is still valid.
			if now := s.state(); now.good {
				return now.token, nil
			}
		case <-ctx.Done():
			return Token{}, ctx.Err()
		}
	}
}

// Settle waits until no renewal is running, at most 45 s. A program should call it before it exits,
// unless it closes a diaspora.Logger or Consumer, which call it. Otherwise, the response of a
// running renewal is lost. It may contain a rotated refresh token, and the previous one is not
// valid any more.
func (s *Source) Settle() {
	s.renewing.Lock()
	defer s.renewing.Unlock()
}

// Refused tells the source that a service has rejected this access token although it has not
// expired. The next call of Token then gets another one.
func (s *Source) Refused(access Secret) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.token != nil && s.token().AccessToken == access {
		s.refused = seal(access)
	}
}

// state is a snapshot of a Source.
type state struct {
	token    Token
	good     bool  // the token is valid
	wait     bool  // do not renew now: the token need not be renewed yet, or Globus Auth must not be asked yet
	pauseErr error // the reason to wait, if the token is not valid
}

func (s *Source) state() state {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.now()
	now := state{pauseErr: s.pauseErr}
	if s.token != nil {
		now.token = s.token()
	}
	now.good = s.good(now.token, at)
	switch {
	case now.good && !s.due(now.token, at):
		now.wait = true
	case now.good || s.pauseErr != nil:
		now.wait = at.Before(s.retryAt)
	}
	return now
}

// good reports whether a token is valid. good and due are called with mu held.
func (s *Source) good(t Token, now time.Time) bool {
	return t.AccessToken != "" && now.Before(t.Expiry) && (s.refused == nil || s.refused() != t.AccessToken)
}

func (s *Source) due(t Token, now time.Time) bool {
	ahead := s.ahead
	if life := t.Expiry.Sub(t.Obtained); !t.Obtained.IsZero() && life > 0 {
		ahead = min(ahead, life/4) // otherwise a token that lives only a minute would be renewed at every call
	}
	return !s.good(t, now) || t.Expiry.Sub(now) <= ahead
}

// runRenewal gets a new token. Calls do not overlap.
func (s *Source) runRenewal(ctx context.Context) (Token, error) {
	t, err := s.renew.renew(ctx, func(t Token) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.good(t, s.now()) {
			s.token = seal(t) // for callers whose wait exceeds waitIfValid
		}
		return !s.due(t, s.now())
	})
	t, failure := s.storeResult(t, err)
	if err != nil && failure == nil { // not under the lock, because the handler of the diagnostics may hang
		s.diag.Warn("refresh failed; the token at hand is still good",
			"resource_server", t.ResourceServer, "expiry", t.Expiry, "err", err)
	}
	return t, failure
}

// storeResult stores the result of a renewal. It returns the token to use from now on, or why there is
// none.
func (s *Source) storeResult(t Token, err error) (Token, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	if err == nil {
		s.token, s.failures, s.retryAt, s.pauseErr = seal(t), 0, time.Time{}, nil
		return t, nil
	}
	if errors.Is(err, ErrLoginRequired) {
		s.token = nil
		return Token{}, err
	}
	if t.AccessToken == "" && s.token != nil {
		t = s.token()
	}
	pause := requestedPause(err)
	if !s.good(t, now) {
		s.pauseErr, s.retryAt = nil, time.Time{}
		if pause > 0 {
			s.pauseErr, s.retryAt = err, now.Add(min(pause, maxAuthPause))
		}
		return Token{}, err
	}
	s.token = seal(t)
	s.failures++
	s.retryAt = now.Add(max(pause, time.Second<<min(s.failures, 5)+rand.N(time.Second)))
	return t, nil
}

// requestedPause returns how long Globus Auth asked to wait, or 0.
func requestedPause(err error) time.Duration {
	if e := (*Error)(nil); errors.As(err, &e) {
		return e.RetryAfter
	}
	return 0
}

// ClientCredentialsSource returns a source of access tokens that the client gets for itself, as a
// service and not for a person (RFC 6749, section 4.4). It keeps them only in memory.
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

// StoredSource returns a source of access tokens for one resource server, from a stored login. All
// sources that use the same token file, in all processes, refresh in turn and use each other's
// results. A new refresh token is on disk before its access token is used. If the file cannot be
// written, the source keeps the tokens in memory and reports this to the Diagnostics of the [Config].
func (c *Client) StoredSource(store *Store, resourceServer string) *Source {
	return c.newSource(&storeRenewer{client: c, store: store, resourceServer: resourceServer})
}

// RefreshSource returns a source of access tokens that starts from a refresh token, such as the one
// in DIASPORA_REFRESH. It keeps access tokens and rotated refresh tokens in a token file in dir.
// The file is named after a hash of the refresh token, so that processes with the same refresh
// token share it. If dir is "" or cannot be written, the tokens stay in memory.
func (c *Client) RefreshSource(refresh Secret, resourceServer, dir string) *Source {
	r := &storeRenewer{client: c, resourceServer: resourceServer, seed: seal(refresh)}
	if dir != "" {
		hash := sha256.Sum256([]byte(c.issuer + "\x00" + c.clientID + "\x00" + refresh.Reveal()))
		r.store = &Store{path: filepath.Join(dir, hex.EncodeToString(hash[:])+".json")}
	}
	return c.newSource(r)
}
