// Package admission decides which unauthenticated clients are served when there are too many of
// them. [Guard] decides whose credentials are checked, which limits how many a client can guess.
// [AnonymousConns] decides which connections stay open. Packages gateway, which serves Kafka clients,
// and server, which serves HTTP, use both.
//
// Many people may share an address, for example behind NAT, on a login node or on a campus network.
// So credentials that were valid recently are always checked again, however often others have failed
// from the same address. And there is one limit for credentials that were never seen before, and
// another for those that were refused, so that a program that repeats a bad token does not lock out
// new users.
package admission

import (
	"context"
	"crypto/sha256"
	"errors"
	"net/netip"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/diaspora-streams/diaspora/globus"
)

// AddressOf returns the address that a client is counted under: its IPv4 address, or its IPv6 /64
// network, because an IPv6 host can use all addresses of its network.
func AddressOf(addr netip.Addr) netip.Addr {
	addr = addr.Unmap().WithZone("")
	if addr.Is6() {
		prefix, _ := addr.Prefix(64)
		return prefix.Addr()
	}
	return addr
}

// Hash is the SHA-256 of credentials. The credentials themselves are not stored.
type Hash = [sha256.Size]byte

// Outcome is the result of checking credentials.
type Outcome int

const (
	Unknown Outcome = iota // the credentials could not be checked
	Good                   // the credentials are valid
	Refused                // the credentials are not valid
)

// OutcomeOf returns what an authenticator's error says about the credentials. A
// [globus.RefusedError] with a hint means that the credentials are valid, but that their owner may
// not use the fabric. The client did not guess them, so they count as Good.
func OutcomeOf(err error) Outcome {
	refused := (*globus.RefusedError)(nil)
	switch {
	case err == nil, errors.As(err, &refused) && refused.Hint != "":
		return Good
	case errors.Is(err, globus.ErrRefused):
		return Refused
	}
	return Unknown
}

// DefaultBurst is how many failed attempts a client may make in a burst, with new credentials and
// again with refused ones. It may make one more of each after each [Interval].
const (
	DefaultBurst = 100
	Interval     = 200 * time.Millisecond
)

const (
	rememberedClients     = 10_000
	rememberedCredentials = 10_000

	// If a client may make no attempt now, one with new credentials waits up to maxWait until it may,
	// unless maxWaiting others of that client are waiting already.
	maxWait    = 2 * time.Second
	maxWaiting = 32
)

// Guard limits how many attempts to authenticate each client may make, unless they succeed. An attempt
// is counted when it begins, because many may run at the same time. If the credentials turn out to be
// valid, it no longer counts, except for credentials that had been refused before. If they could not
// be checked, it counts. Its methods may be called concurrently.
type Guard struct {
	burst float64

	mu      sync.Mutex                  // guards the fields below, and all attempts and buckets
	unknown *lru.Cache[string, *bucket] // of each client, for credentials that were never seen before
	refused *lru.Cache[string, *bucket] // of each client, for credentials that were refused
	good    *lru.Cache[Hash, struct{}]  // credentials whose last check succeeded
	bad     *lru.Cache[Hash, struct{}]  // credentials whose last check failed
	pending map[Hash]*attempt
}

// NewGuard returns a Guard that lets each client fail burst times in a burst, see [DefaultBurst].
func NewGuard(burst int) *Guard {
	return &Guard{
		burst:   float64(burst),
		unknown: newCache[string, *bucket](rememberedClients),
		refused: newCache[string, *bucket](rememberedClients),
		good:    newCache[Hash, struct{}](rememberedCredentials),
		bad:     newCache[Hash, struct{}](rememberedCredentials),
		pending: make(map[Hash]*attempt),
	}
}

func newCache[K comparable, V any](size int) *lru.Cache[K, V] {
	cache, err := lru.New[K, V](size)
	if err != nil {
		panic(err) // the sizes are positive constants
	}
	return cache
}

// attempt is what is counted when credentials are checked that are not known to be valid. All callers
// of Begin that show the same credentials at the same time share one, so that a job that starts a
// thousand processes uses only one. Each of them still does its own check.
type attempt struct {
	admitted chan struct{} // closed when it is decided whether the attempt may proceed
	ok       bool          // whether it may
	wait     time.Duration // if not: how long until it may
	sharers  int           // callers of Begin that have not called end
	charged  *bucket       // what to refund if the credentials are valid; nil if there is nothing to refund
}

// Begin asks whether the credentials of a client may be checked. If ok is false, they must not be,
// and wait is how long the client should wait before it retries. Otherwise the caller must call end
// exactly once, with the result of the check. Begin may wait a moment, but not beyond ctx.
func (g *Guard) Begin(ctx context.Context, client string, credentials Hash) (end func(Outcome), wait time.Duration, ok bool) {
	g.mu.Lock()
	if g.good.Contains(credentials) {
		g.mu.Unlock()
		return func(o Outcome) { g.end(credentials, nil, o) }, 0, true
	}
	a, shared := g.pending[credentials]
	if shared {
		a.sharers++
	} else {
		a = &attempt{admitted: make(chan struct{}), sharers: 1}
		g.pending[credentials] = a
	}
	g.mu.Unlock()
	if shared {
		select {
		case <-a.admitted:
		case <-ctx.Done():
		}
	} else {
		g.admit(ctx, a, client, credentials)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if !a.ok {
		g.release(credentials, a)
		return nil, max(a.wait, time.Millisecond), false
	}
	return func(o Outcome) { g.end(credentials, a, o) }, 0, true
}

// admit decides whether an attempt may proceed, and counts it.
func (g *Guard) admit(ctx context.Context, a *attempt, client string, credentials Hash) {
	g.mu.Lock()
	defer g.mu.Unlock()
	defer close(a.admitted)
	if g.bad.Contains(credentials) {
		a.wait, a.ok = g.take(g.bucketOf(g.refused, client))
		return
	}
	b := g.bucketOf(g.unknown, client)
	if a.wait, a.ok = g.takeOrWait(ctx, b); a.ok {
		a.charged = b
	}
}

// Malformed counts a value that cannot be credentials and so is not checked. It reports false if
// the client has sent too many of them; wait is then how long the client should wait.
func (g *Guard) Malformed(client string) (wait time.Duration, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.take(g.bucketOf(g.refused, client))
}

func (g *Guard) end(credentials Hash, a *attempt, o Outcome) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch o {
	case Good:
		g.good.Add(credentials, struct{}{})
		g.bad.Remove(credentials)
		if a != nil && a.charged != nil {
			a.charged.refund(g.burst)
			a.charged = nil
		}
	case Refused:
		g.good.Remove(credentials)
		g.bad.Add(credentials, struct{}{})
	}
	if a != nil {
		g.release(credentials, a)
	}
}

func (g *Guard) release(credentials Hash, a *attempt) {
	if a.sharers--; a.sharers == 0 {
		delete(g.pending, credentials)
	}
}

// bucket is a token bucket: how many attempts a client has left. The caller of its methods holds
// [Guard.mu].
type bucket struct {
	left    float64
	at      time.Time     // when left was computed
	waiting int           // attempts that wait
	freed   chan struct{} // closed when an attempt is refunded
}

func (g *Guard) bucketOf(buckets *lru.Cache[string, *bucket], client string) *bucket {
	b, ok := buckets.Get(client)
	if !ok {
		b = &bucket{left: g.burst, at: time.Now(), freed: make(chan struct{})}
		buckets.Add(client, b)
	}
	return b
}

// take counts one attempt. If the client has none left, it returns how long until it has one.
func (g *Guard) take(b *bucket) (wait time.Duration, ok bool) {
	now := time.Now()
	b.left = min(g.burst, b.left+float64(now.Sub(b.at))/float64(Interval))
	b.at = now
	const rounding = 1e-6
	if b.left < 1-rounding {
		return time.Duration((1 - b.left) * float64(Interval)), false
	}
	b.left--
	return 0, true
}

// takeOrWait counts one attempt. If the client has none left, it waits for one. The caller holds
// g.mu, which takeOrWait releases while it waits.
func (g *Guard) takeOrWait(ctx context.Context, b *bucket) (wait time.Duration, ok bool) {
	limit := time.Now().Add(maxWait)
	for {
		wait, ok = g.take(b)
		if ok || b.waiting >= maxWaiting || time.Now().Add(wait).After(limit) || ctx.Err() != nil {
			return wait, ok
		}
		b.waiting++
		freed := b.freed
		g.mu.Unlock()
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-freed:
		case <-ctx.Done():
		}
		timer.Stop()
		g.mu.Lock()
		b.waiting--
	}
}

func (b *bucket) refund(burst float64) {
	b.left = min(burst, b.left+1)
	close(b.freed)
	b.freed = make(chan struct{})
}
