// Package admission decides which clients that nobody knows yet are served when more
// come than can be: which of their credentials are looked at ([Guard]), and which
// of their connections stay open ([Strangers]). The gateway and the ACL endpoint
// share it.
//
// Many people may share an address: behind NAT, on a login node, on a campus network. So
// credentials that were good lately are always looked at, and those that nobody has
// shown before do not pay for those that were refused.
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

// AddressOf is what a client's limits hang on: its IPv4 address, or its network of 64
// bits, of which every IPv6 host has all addresses.
func AddressOf(addr netip.Addr) netip.Addr {
	addr = addr.Unmap().WithZone("")
	if addr.Is6() {
		prefix, _ := addr.Prefix(64)
		return prefix.Addr()
	}
	return addr
}

// Hash is what is kept of credentials.
type Hash = [sha256.Size]byte

// Outcome says what became of credentials.
type Outcome int

const (
	Unknown Outcome = iota // nobody could tell
	Good
	Refused
)

// OutcomeOf is what the error of an authenticator says of credentials. Those of somebody who may not
// use the fabric are good, and no guess: such a refusal has a hint.
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

// DefaultBurst is how many credentials an address may show at once that turn out not to be
// good. It gains one more every [Interval].
const (
	DefaultBurst = 100
	Interval     = 200 * time.Millisecond
)

const (
	rememberedClients     = 10_000
	rememberedCredentials = 10_000

	// Whoever comes after others have used up what their address may try waits this
	// long for its turn, beside no more than maxWaiting others.
	patience   = 2 * time.Second
	maxWaiting = 32
)

// Guard bounds how many credentials of each client are looked at that turn out not to be
// good. An attempt is paid for when it begins, since many may be under way at once, and
// gets its price back if the credentials were good. Its methods may be called concurrently.
type Guard struct {
	burst float64

	mu      sync.Mutex // guards the fields below, and all attempts and allowances
	unknown *lru.Cache[string, *allowance]
	refused *lru.Cache[string, *allowance]
	good    *lru.Cache[Hash, struct{}] // when last seen
	bad     *lru.Cache[Hash, struct{}] // likewise
	pending map[Hash]*attempt
}

// NewGuard returns a Guard that lets each client fail burst times at once.
func NewGuard(burst int) *Guard {
	return &Guard{
		burst:   float64(burst),
		unknown: newCache[string, *allowance](rememberedClients),
		refused: newCache[string, *allowance](rememberedClients),
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

// attempt is one look at credentials that were not good when last seen. Others who show
// the same credentials meanwhile share it: a job of a thousand processes starts at once.
type attempt struct {
	admitted chan struct{} // closed once it is known whether it may go on
	ok       bool          // it may
	wait     time.Duration // if not: until it may
	sharers  int
	paid     *allowance // nil once it is paid back
}

// Begin asks whether credentials of a client may be looked at. If not, ok is false, and
// wait is how long to wait before the next attempt. Otherwise the caller calls end
// once, with what came of it. Begin may wait a moment, within ctx.
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
		g.leave(credentials, a)
		return nil, max(a.wait, time.Millisecond), false
	}
	return func(o Outcome) { g.end(credentials, a, o) }, 0, true
}

// admit has an attempt paid for.
func (g *Guard) admit(ctx context.Context, a *attempt, client string, credentials Hash) {
	g.mu.Lock()
	defer g.mu.Unlock()
	defer close(a.admitted)
	if g.bad.Contains(credentials) {
		a.wait, a.ok = g.take(g.allowance(g.refused, client))
		return
	}
	b := g.allowance(g.unknown, client)
	if a.wait, a.ok = g.await(ctx, b); a.ok {
		a.paid = b
	}
}

// Malformed pays for something that cannot be credentials, and so is not looked at. It
// reports false if the client has shown too much of that.
func (g *Guard) Malformed(client string) (wait time.Duration, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.take(g.allowance(g.refused, client))
}

func (g *Guard) end(credentials Hash, a *attempt, o Outcome) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch o {
	case Good:
		g.good.Add(credentials, struct{}{})
		g.bad.Remove(credentials)
		if a != nil && a.paid != nil {
			a.paid.refund(g.burst)
			a.paid = nil
		}
	case Refused:
		g.good.Remove(credentials)
		g.bad.Add(credentials, struct{}{})
	}
	if a != nil {
		g.leave(credentials, a)
	}
}

func (g *Guard) leave(credentials Hash, a *attempt) {
	if a.sharers--; a.sharers == 0 {
		delete(g.pending, credentials)
	}
}

// allowance is what a client may still try. The caller of its methods holds [Guard.mu].
type allowance struct {
	left    float64
	at      time.Time     // when left was computed
	waiting int           // attempts
	freed   chan struct{} // closed when something is paid back
}

func (g *Guard) allowance(of *lru.Cache[string, *allowance], client string) *allowance {
	b, ok := of.Get(client)
	if !ok {
		b = &allowance{left: g.burst, at: time.Now(), freed: make(chan struct{})}
		of.Add(client, b)
	}
	return b
}

// take pays for one attempt, or returns how long until that is possible.
func (g *Guard) take(b *allowance) (wait time.Duration, ok bool) {
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

// await pays for one attempt, and waits for that if need be.
func (g *Guard) await(ctx context.Context, b *allowance) (wait time.Duration, ok bool) {
	limit := time.Now().Add(patience)
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

func (b *allowance) refund(burst float64) {
	b.left = min(burst, b.left+1)
	close(b.freed)
	b.freed = make(chan struct{})
}
