package globus

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/singleflight"
)

// Introspector looks up whom an access token belongs to. [Client] implements it.
type Introspector interface {
	Introspect(ctx context.Context, token Secret) (TokenInfo, error)
}

// AuthenticatorConfig says which tokens an [Authenticator] accepts.
type AuthenticatorConfig struct {
	// Introspector asks Globus Auth. Required.
	Introspector Introspector

	// Issuer is the issuer that tokens must have. Required.
	Issuer string

	// Audience is the audience that tokens must have: this service's resource server. Required,
	// because tokens for other services are active too.
	Audience string

	// Scope is the scope that tokens must have. Required.
	Scope string

	// FreshFor is how long a result is used without asking again. A revocation may go unnoticed for
	// as long. Default: 30 s.
	FreshFor time.Duration

	// StaleFor is how long after the last result a known token is still accepted while Globus Auth
	// is unreachable. Default: 1 h.
	StaleFor time.Duration

	// RefusedFor is how long a rejection is cached. Default: 10 s.
	RefusedFor time.Duration

	// CacheSize is the maximum number of known tokens. Default: 10,000.
	CacheSize int

	// Now returns the current time. Default: time.Now.
	Now func() time.Time
}

// Authenticator tells a server whom access tokens belong to. It asks Globus Auth about each token,
// and caches the result for a short time under a hash of the token. It may be used concurrently.
type Authenticator struct {
	cfg     AuthenticatorConfig
	known   *lru.Cache[tokenHash, verdict]
	refused *lru.Cache[tokenHash, verdict] // separate, so that guessed tokens cannot evict known ones
	flight  singleflight.Group
	pacer   *pacer
	slow    atomic.Bool // the last request to Globus Auth took longer than knownWait
}

// verdict is a cached result for a token. Tokens with a verdict that is not a rejection are
// "known".
type verdict struct {
	info    TokenInfo
	refusal *RefusedError // nil if the token is valid
	asked   time.Time     // when Globus Auth gave this result
	askAt   time.Time     // when to ask Globus Auth again
	failure error         // why asking again has failed since; nil if it was not necessary or has succeeded
}

const (
	askTimeout     = 10 * time.Second
	outagePause    = 5 * time.Second // after a failure, how long Globus Auth is not asked again about a known token
	refusedSize    = 10_000
	knownWait      = 500 * time.Millisecond // how long a known token waits for Globus Auth; not at all while Globus Auth is slow
	reasonInactive = "the access token is expired, revoked or malformed"
)

var errAskTimeout = fmt.Errorf("%w: no answer within %v", ErrUnavailable, askTimeout)

// NewAuthenticator returns an Authenticator.
func NewAuthenticator(cfg AuthenticatorConfig) (*Authenticator, error) {
	switch {
	case cfg.Introspector == nil:
		return nil, errors.New("authenticator: the introspector is missing")
	case cfg.Issuer == "":
		return nil, errors.New("authenticator: the issuer is missing")
	case cfg.Audience == "":
		return nil, errors.New("authenticator: the audience is missing")
	case cfg.Scope == "":
		return nil, errors.New("authenticator: the scope is missing")
	}
	cfg.FreshFor = cmpOr(cfg.FreshFor, 30*time.Second)
	cfg.StaleFor = cmpOr(cfg.StaleFor, time.Hour)
	cfg.RefusedFor = cmpOr(cfg.RefusedFor, 10*time.Second)
	if cfg.CacheSize <= 0 {
		cfg.CacheSize = 10_000
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	known, err := lru.New[tokenHash, verdict](cfg.CacheSize)
	if err != nil {
		return nil, err
	}
	refused, err := lru.New[tokenHash, verdict](refusedSize)
	if err != nil {
		return nil, err
	}
	return &Authenticator{cfg: cfg, known: known, refused: refused, pacer: newPacer()}, nil
}

func cmpOr(d, otherwise time.Duration) time.Duration {
	if d <= 0 {
		return otherwise
	}
	return d
}

// Authenticate returns what is known about the caller's access token. The error is one of these:
//
//   - [ErrRefused]: the token is rejected. The error is a [*RefusedError], whose reason may be
//     shown to the caller.
//   - [ErrUnavailable]: Globus Auth has to be asked and is unreachable. Tell the caller to retry,
//     not that the token is invalid.
//   - [ErrMisconfigured]: this service gets no usable response, or is itself rejected. Retrying
//     does not help; tell the operators.
//
// If Globus Auth is unreachable, a token that was valid when Globus Auth was last asked stays valid
// for StaleFor, but not beyond its expiry. Once Globus Auth has been found to be slow, such a token
// is accepted without waiting. The request is sent nevertheless, and its result is used the next
// time.
//
// Globus Auth is asked about known tokens first. The rate of requests about unknown tokens is
// limited; see [WithCaller].
func (a *Authenticator) Authenticate(ctx context.Context, token Secret) (TokenInfo, error) {
	return a.authenticate(ctx, token, a.usable)
}

// Recheck is like Authenticate, for a server that has already accepted the caller and checks
// whether the token has been revoked since. It uses only results that are at most FreshFor old. If
// there is none, the error is [ErrUnavailable] or [ErrMisconfigured].
func (a *Authenticator) Recheck(ctx context.Context, token Secret) (TokenInfo, error) {
	return a.authenticate(ctx, token, func(verdict, time.Time) bool { return false })
}

// authenticate looks a token up. It uses a result that is not fresh any more only if usable reports
// true.
func (a *Authenticator) authenticate(ctx context.Context, token Secret, usable func(verdict, time.Time) bool) (TokenInfo, error) {
	if err := checkSecret(token); err != nil {
		return TokenInfo{}, &RefusedError{Reason: "the access token " + err.Error()}
	}
	hash := hashOf(token)
	v, ok := a.lookup(hash)
	now := a.cfg.Now()
	if ok && now.Before(v.askAt) {
		return a.answer(v, now, usable)
	}
	if err := ctx.Err(); err != nil {
		return TokenInfo{}, err
	}
	// The request must not end with the caller that started it, because other callers wait for the
	// same result.
	answer := a.flight.DoChan(string(hash[:]), func() (any, error) {
		run, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), askTimeout, errAskTimeout)
		defer cancel()
		return a.ask(run, hash, token)
	})
	var stale <-chan time.Time
	if ok && usable(v, now) {
		if a.slow.Load() {
			return v.answer(now)
		}
		t := time.NewTimer(knownWait)
		defer t.Stop()
		stale = t.C
	}
	select {
	case r := <-answer:
		if r.Err != nil {
			return TokenInfo{}, r.Err
		}
		return a.answer(r.Val.(verdict), a.cfg.Now(), usable)
	case <-stale:
		a.slow.Store(true)
		return v.answer(a.cfg.Now())
	case <-ctx.Done():
		return TokenInfo{}, ctx.Err()
	}
}

// lookup returns the cached verdict on a token, if there is one.
func (a *Authenticator) lookup(hash tokenHash) (verdict, bool) {
	if v, ok := a.known.Get(hash); ok {
		return v, true
	}
	return a.refused.Get(hash)
}

// answer returns the verdict. If asking again has failed, and the verdict is neither fresh nor
// usable, it returns why asking failed. A token that has expired since is rejected in any case.
func (a *Authenticator) answer(v verdict, now time.Time, usable func(verdict, time.Time) bool) (TokenInfo, error) {
	info, err := v.answer(now)
	if err == nil && v.failure != nil && !now.Before(v.asked.Add(a.cfg.FreshFor)) && !usable(v, now) {
		return TokenInfo{}, v.failure
	}
	return info, err
}

// usable reports whether a verdict may be used while Globus Auth is unreachable.
func (a *Authenticator) usable(v verdict, now time.Time) bool {
	return v.refusal == nil && now.Before(v.asked.Add(a.cfg.StaleFor))
}

// answer returns the verdict as of now: a token that was valid may have expired since.
func (v verdict) answer(now time.Time) (TokenInfo, error) {
	if v.refusal != nil {
		return TokenInfo{}, v.refusal
	}
	if !now.Before(v.info.Expiry) {
		return TokenInfo{}, expired(v.info)
	}
	return v.info, nil
}

// ask asks Globus Auth and caches the result.
func (a *Authenticator) ask(ctx context.Context, hash tokenHash, token Secret) (verdict, error) {
	pause := outagePause
	info, err := a.introspect(ctx, hash, token)
	if e := (*Error)(nil); errors.As(err, &e) && e.Status == http.StatusTooManyRequests {
		pause = a.pacer.overloaded(e.RetryAfter)
	}
	now := a.cfg.Now()
	if err == nil {
		err = a.check(info, now)
	}
	refusal := (*RefusedError)(nil)
	if errors.Is(err, ErrRefused) && !errors.As(err, &refusal) {
		refusal = &RefusedError{Reason: reasonInactive}
	}
	switch {
	case err == nil:
		v := verdict{info: info, asked: now, askAt: now.Add(a.cfg.FreshFor)}
		a.refused.Remove(hash)
		a.known.Add(hash, v)
		return v, nil
	case refusal != nil:
		v := verdict{refusal: refusal, asked: now, askAt: now.Add(a.cfg.RefusedFor)}
		a.known.Remove(hash)
		a.refused.Add(hash, v)
		return v, nil
	}
	// All other errors say nothing about the token. This includes a rejection of our own client.
	switch {
	case saysNothing(err):
	case errors.As(err, new(*Error)) || errors.Is(err, ErrClientRefused):
		err = &misconfiguredError{err}
	default:
		err = fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if v, ok := a.known.Get(hash); ok && a.usable(v, now) {
		v.askAt, v.failure = now.Add(pause), err
		a.known.Add(hash, v)
		return v, nil
	}
	return verdict{}, err
}

// misconfiguredError is an error response of Globus Auth that is about this service, not about the
// token. It matches [ErrMisconfigured].
type misconfiguredError struct{ error }

func (e *misconfiguredError) Unwrap() []error { return []error{ErrMisconfigured, e.error} }

// introspect waits for the token's turn and then asks Globus Auth.
func (a *Authenticator) introspect(ctx context.Context, hash tokenHash, token Secret) (TokenInfo, error) {
	done, err := a.pacer.enter(ctx, a.known.Contains(hash))
	if err != nil {
		return TokenInfo{}, err
	}
	defer done()
	began := time.Now()
	info, err := a.cfg.Introspector.Introspect(ctx, token)
	a.slow.Store(time.Since(began) > knownWait)
	return info, err
}

// check checks a token that Globus Auth reports as active.
func (a *Authenticator) check(info TokenInfo, now time.Time) error {
	if _, err := subjectOf("introspect token", looseString(info.Subject)); err != nil {
		return err
	}
	switch {
	case !now.Before(info.Expiry):
		return expired(info)
	case info.NotBefore.Sub(now) > clockLeeway || info.IssuedAt.Sub(now) > clockLeeway:
		return &RefusedError{Reason: "the access token is not valid yet; is a clock wrong?"}
	case info.Issuer != a.cfg.Issuer:
		return &RefusedError{Reason: "the access token was issued by somebody else than " + a.cfg.Issuer}
	case !slices.Contains(info.Audience, a.cfg.Audience):
		return &RefusedError{Reason: "the access token is meant for another service than " + a.cfg.Audience}
	case !slices.Contains(info.Scope, a.cfg.Scope):
		return &RefusedError{Reason: "the access token lacks the scope " + a.cfg.Scope, MissingScope: a.cfg.Scope}
	}
	return nil
}

func expired(info TokenInfo) *RefusedError {
	if info.Expiry.IsZero() {
		return &RefusedError{Reason: "the access token does not say when it expires"}
	}
	return &RefusedError{Reason: "the access token expired at " + info.Expiry.UTC().Format(time.RFC3339)}
}
