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

// Introspector tells whom an access token belongs to. [Client] is one.
type Introspector interface {
	Introspect(ctx context.Context, token Secret) (TokenInfo, error)
}

// AuthenticatorConfig says which tokens an [Authenticator] takes.
type AuthenticatorConfig struct {
	// Introspector asks Globus Auth. Required.
	Introspector Introspector

	// Issuer is who must have issued the token. Required.
	Issuer string

	// Audience is whom the token must be meant for: this service's resource
	// server. Required, since tokens for other services are just as active.
	Audience string

	// Scope is what the token must be good for. Required.
	Scope string

	// FreshFor is how long an answer is used without asking again, and so how
	// long a revocation may go unseen. Default: 30 s.
	FreshFor time.Duration

	// StaleFor is how long after the last answer a known token is still taken
	// while Globus Auth cannot be reached. Default: 1 h.
	StaleFor time.Duration

	// RefusedFor is how long a refusal is remembered. Default: 10 s.
	RefusedFor time.Duration

	// CacheSize bounds the number of known tokens. Default: 10,000.
	CacheSize int

	// Now is the clock. Default: time.Now.
	Now func() time.Time
}

// Authenticator tells a server who is calling. It asks Globus Auth about each
// access token and remembers the answer for a short while, under the token's hash.
// It may be used concurrently.
type Authenticator struct {
	cfg     AuthenticatorConfig
	known   *lru.Cache[tokenHash, verdict]
	refused *lru.Cache[tokenHash, verdict] // apart, so that guesses cannot push out known tokens
	flight  singleflight.Group
	pacer   *pacer
	slow    atomic.Bool // the last that was heard of Globus Auth took longer than knownWait
}

// verdict is what is known of a token.
type verdict struct {
	info    TokenInfo
	refusal *RefusedError // nil if it is good
	asked   time.Time     // when Globus Auth said so
	askAt   time.Time     // when to ask again
	failure error         // why Globus Auth has not said so again since; nil if it need not
}

const (
	askTimeout     = 10 * time.Second
	outagePause    = 5 * time.Second // how long a known token is not asked about after an outage
	refusedSize    = 10_000
	knownWait      = 500 * time.Millisecond // how long a known token waits for Globus Auth, unless that is slow
	reasonInactive = "the access token has expired or was revoked, or is none"
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

// Authenticate returns what is known of the caller's access token. The error is
// an [ErrRefused], as a [*RefusedError] whose reason can be shown to the caller;
// an [ErrUnavailable] if Globus Auth has to be asked and cannot be: the caller
// should be told to try again, not that the token is bad; or an [ErrMisconfigured] if this
// service gets no answer that it can use, or is refused itself: to try again does not
// help, and the operators have to be told. A token that was good
// when Globus Auth was last asked stays good for StaleFor, never beyond its expiry.
// Nor does it wait, once Globus Auth has been found to be slow: the question is
// asked all the same, and its answer counts the next time.
//
// Globus Auth is asked about a bounded number of unknown tokens in a time, see
// [WithCaller], and about known ones first.
func (a *Authenticator) Authenticate(ctx context.Context, token Secret) (TokenInfo, error) {
	return a.authenticate(ctx, token, a.usable)
}

// Recheck is Authenticate for a server that has let the caller in and looks whether
// the token was revoked since: it goes by what Globus Auth has said within FreshFor. The error
// is [ErrUnavailable] or [ErrMisconfigured] if there is no such answer.
func (a *Authenticator) Recheck(ctx context.Context, token Secret) (TokenInfo, error) {
	return a.authenticate(ctx, token, func(verdict, time.Time) bool { return false })
}

// authenticate finds out about a token. What is no longer fresh counts where usable says so.
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
	// The question outlives the caller who happened to ask it first: others wait
	// for the same answer.
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

func (a *Authenticator) lookup(hash tokenHash) (verdict, bool) {
	if v, ok := a.known.Get(hash); ok {
		return v, true
	}
	return a.refused.Get(hash)
}

// answer is the verdict, if it is fresh, usable, or bad by now whatever Globus Auth would say.
func (a *Authenticator) answer(v verdict, now time.Time, usable func(verdict, time.Time) bool) (TokenInfo, error) {
	info, err := v.answer(now)
	if err == nil && v.failure != nil && !now.Before(v.asked.Add(a.cfg.FreshFor)) && !usable(v, now) {
		return TokenInfo{}, v.failure
	}
	return info, err
}

// usable tells whether a verdict holds while Globus Auth cannot be reached.
func (a *Authenticator) usable(v verdict, now time.Time) bool {
	return v.refusal == nil && now.Before(v.asked.Add(a.cfg.StaleFor))
}

// answer is the verdict at a time: what was good may have expired since.
func (v verdict) answer(now time.Time) (TokenInfo, error) {
	if v.refusal != nil {
		return TokenInfo{}, v.refusal
	}
	if !now.Before(v.info.Expiry) {
		return TokenInfo{}, expired(v.info)
	}
	return v.info, nil
}

// ask asks Globus Auth and remembers the answer.
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
	// Anything else says nothing of the token, a refusal of our own client included.
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

// misconfiguredError is an answer of Globus Auth that has to do with this service, not with the
// token that was asked about: an [ErrMisconfigured].
type misconfiguredError struct{ error }

func (e *misconfiguredError) Unwrap() []error { return []error{ErrMisconfigured, e.error} }

// introspect asks when it is the token's turn.
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

// check judges a token that Globus Auth calls active.
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
