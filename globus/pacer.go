package globus

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// Limits of the requests about tokens.
const (
	maxAsking   = 64 // maximum number of concurrent requests
	knownFirst  = 4  // requests about known tokens for each one about an unknown token
	maxUnknowns = 32 // maximum number of concurrent requests about unknown tokens; the rest is reserved for known ones

	// Globus Auth does not document its rate limit. So the rate starts at a maximum and is halved
	// when Globus Auth answers with status 429. Then each second adds one request a second.
	maxRate = 100 // requests a second
	minRate = 1

	// unknownRate and unknownBurst limit the requests about unknown tokens of all callers together.
	unknownRate  = 50 // requests a second
	unknownBurst = 50

	// Maximum number of unknown tokens that wait, for one caller and for all together.
	maxWaitingOfCaller = 32
	maxWaiting         = 1000

	shortPause = time.Second     // minimum pause after status 429
	longPause  = 5 * time.Second // maximum, even if Globus Auth asks for more, because known tokens must be checked for revocation
)

var errTooMany = &Error{Op: "introspect token", kind: ErrUnavailable, cause: errors.New("too many tokens to ask about")}

type callerKey struct{}

// WithCaller returns a context that tells an [Authenticator] which client has sent a token, for
// instance by its address. While there are more unknown tokens than the Authenticator may ask
// about, callers take turns, so that one caller with many tokens does not block the others.
func WithCaller(ctx context.Context, caller string) context.Context {
	return context.WithValue(ctx, callerKey{}, caller)
}

func callerOf(ctx context.Context) string {
	caller, _ := ctx.Value(callerKey{}).(string)
	return caller
}

// pacer is a rate limiter for requests about tokens. Requests about known tokens take priority, so
// that a flood of unknown tokens cannot delay the discovery of a revoked one. After knownFirst of
// them, one request about an unknown token is sent, if any is waiting.
type pacer struct {
	mu      sync.Mutex // guards the fields below
	all     bucket
	unknown bucket
	resume  time.Time // send no requests before
	slowed  time.Time // when the rate was last halved
	timer   *time.Timer

	asking, unknowns int // requests in flight; of these, about unknown tokens

	knownQueue []*question
	knownInRow int                    // requests about known tokens sent since the last one about an unknown token
	queues     map[string][]*question // requests about unknown tokens, by caller
	turns      []string               // the callers in queues, in the order of their turns
	waiting    int                    // number of requests in queues
}

// question is a request that waits for its turn.
type question struct {
	caller string
	known  bool
	turn   chan struct{} // closed when the request may be sent
}

// bucket is a token bucket, which fills at a constant rate.
type bucket struct {
	rate, burst, left float64
	at                time.Time
}

func newBucket(rate, burst float64) bucket {
	return bucket{rate: rate, burst: burst, left: burst, at: time.Now()}
}

func (b *bucket) fill(now time.Time) {
	b.left = min(b.burst, b.left+now.Sub(b.at).Seconds()*b.rate)
	b.at = now
}

// wait returns how long it takes until the bucket holds one token.
func (b *bucket) wait() time.Duration {
	const rounding = 1e-6
	if b.left > 1-rounding {
		return 0
	}
	return time.Duration((1 - b.left) / b.rate * float64(time.Second))
}

func newPacer() *pacer {
	return &pacer{
		all: newBucket(maxRate, maxRate), unknown: newBucket(unknownRate, unknownBurst),
		queues: make(map[string][]*question),
	}
}

// enter waits until a request may be sent. The caller must call done after the response.
func (p *pacer) enter(ctx context.Context, known bool) (done func(), err error) {
	q := &question{caller: callerOf(ctx), known: known, turn: make(chan struct{})}
	p.mu.Lock()
	switch {
	case known:
		p.knownQueue = append(p.knownQueue, q)
	case p.waiting >= maxWaiting || len(p.queues[q.caller]) >= maxWaitingOfCaller:
		p.mu.Unlock()
		return nil, errTooMany
	default:
		if len(p.queues[q.caller]) == 0 {
			p.turns = append(p.turns, q.caller)
		}
		p.queues[q.caller] = append(p.queues[q.caller], q)
		p.waiting++
	}
	p.advance()
	p.mu.Unlock()
	select {
	case <-q.turn:
		return func() { p.leave(q) }, nil
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-q.turn: // its turn came just before ctx ended
		p.finish(q)
	default:
		p.forget(q)
	}
	return nil, errTooMany
}

// forget removes a request that still waits.
func (p *pacer) forget(q *question) {
	if q.known {
		p.knownQueue = slices.DeleteFunc(p.knownQueue, func(other *question) bool { return other == q })
		return
	}
	p.setQueue(q.caller, slices.DeleteFunc(p.queues[q.caller], func(other *question) bool { return other == q }))
	p.waiting--
}

func (p *pacer) setQueue(caller string, queue []*question) {
	if len(queue) > 0 {
		p.queues[caller] = queue
		return
	}
	delete(p.queues, caller)
	p.turns = slices.DeleteFunc(p.turns, func(other string) bool { return other == caller })
}

func (p *pacer) leave(q *question) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.finish(q)
}

func (p *pacer) finish(q *question) {
	p.asking--
	if !q.known {
		p.unknowns--
	}
	p.advance()
}

// overloaded records that Globus Auth has answered with status 429. It returns how long to pause.
func (p *pacer) overloaded(retryAfter time.Duration) (pause time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	pause = min(max(retryAfter, shortPause), longPause)
	if resume := now.Add(pause); resume.After(p.resume) {
		p.resume = resume
	}
	p.fill(now)
	if now.Sub(p.slowed) >= shortPause { // requests in flight together may each get a 429; halve the rate once
		p.slowed = now
		p.all.rate = max(minRate, p.all.rate/2)
	}
	p.all.burst = max(minRate, p.all.rate)
	p.all.left = min(p.all.left, 1)
	return pause
}

// fill brings the rate and the buckets up to date.
func (p *pacer) fill(now time.Time) {
	if since := now.Sub(p.all.at); p.all.rate < maxRate && now.After(p.resume) {
		p.all.rate = min(maxRate, p.all.rate+since.Seconds())
		p.all.burst = p.all.rate
	}
	p.all.fill(now)
	p.unknown.fill(now)
}

// advance sends the requests whose turn it is, and sets a timer if more are waiting. The caller
// holds mu.
func (p *pacer) advance() {
	now := time.Now()
	p.fill(now)
	for {
		wait := max(p.all.wait(), p.resume.Sub(now))
		switch {
		case p.asking >= maxAsking:
			return // finish calls advance again
		case len(p.knownQueue) > 0 && (p.knownInRow < knownFirst || !p.unknownReady()):
			if wait > 0 {
				p.later(wait)
				return
			}
			q := p.knownQueue[0]
			p.knownQueue = p.knownQueue[1:]
			p.knownInRow++
			p.let(q)
		case len(p.turns) > 0 && p.unknowns < maxUnknowns:
			if wait = max(wait, p.unknown.wait()); wait > 0 {
				p.later(wait)
				return
			}
			caller := p.turns[0]
			p.turns = append(p.turns[1:], caller)
			q := p.queues[caller][0]
			p.setQueue(caller, p.queues[caller][1:])
			p.waiting--
			p.unknowns++
			p.unknown.left--
			p.knownInRow = 0
			p.let(q)
		default:
			return
		}
	}
}

// unknownReady reports whether a request about an unknown token may be sent, apart from the overall
// rate.
func (p *pacer) unknownReady() bool {
	return len(p.turns) > 0 && p.unknowns < maxUnknowns && p.unknown.wait() == 0
}

func (p *pacer) let(q *question) {
	p.asking++
	p.all.left--
	close(q.turn)
}

// later calls advance again after a delay.
func (p *pacer) later(wait time.Duration) {
	wait += time.Microsecond
	if p.timer != nil {
		p.timer.Stop()
	}
	p.timer = time.AfterFunc(wait, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.advance()
	})
}
