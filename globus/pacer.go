package globus

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// Limits of the questions about tokens.
const (
	maxAsking   = 64 // at the same time
	knownFirst  = 4  // questions about known tokens to one about an unknown one
	maxUnknowns = 32 // of these, about tokens that nobody knows; the others are kept for known ones

	// Globus Auth does not say how many questions it takes. So there is a largest rate,
	// which is halved when it answers 429, and rises again by one a second.
	maxRate = 100 // a second
	minRate = 1

	// unknownRate and unknownBurst bound the questions about tokens that nobody knows,
	// whoever shows them.
	unknownRate  = 50 // a second
	unknownBurst = 50

	// More unknown tokens do not wait for their turn, of one caller and of all.
	maxWaitingOfCaller = 32
	maxWaiting         = 1000

	shortPause = time.Second     // after a 429
	longPause  = 5 * time.Second // if it says to wait longer, since known tokens must be asked about
)

var errTooMany = &Error{Op: "introspect token", kind: ErrUnavailable, cause: errors.New("too many tokens to ask about")}

type callerKey struct{}

// WithCaller returns a context that tells an [Authenticator] who shows a token, for instance by
// address. While more unknown tokens are shown than Globus Auth is asked about, the callers
// take turns.
func WithCaller(ctx context.Context, caller string) context.Context {
	return context.WithValue(ctx, callerKey{}, caller)
}

func callerOf(ctx context.Context) string {
	caller, _ := ctx.Value(callerKey{}).(string)
	return caller
}

// pacer says when the next question may be asked. Questions about known tokens go first, as a
// flood of unknown ones must not keep anybody from finding out that one was revoked. But one in
// knownFirst is left to the others.
type pacer struct {
	mu      sync.Mutex // guards the fields below
	all     bucket
	unknown bucket
	resume  time.Time // no questions before
	slowed  time.Time // when the rate was halved
	timer   *time.Timer

	asking, unknowns int // under way; of these, about unknown tokens

	knownQueue []*question
	knownInRow int                    // how many were let go while unknown ones waited
	queues     map[string][]*question // of unknown tokens, by caller
	turns      []string               // the callers in queues, the next one first
	waiting    int                    // in queues
}

// question waits for its turn.
type question struct {
	caller string
	known  bool
	turn   chan struct{} // closed when it may be asked
}

// bucket fills at a rate.
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

// wait returns how long until there is one in it.
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

// enter waits until a question may be asked. done is called when it was answered.
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
	case <-q.turn: // at the last moment
		p.finish(q)
	default:
		p.forget(q)
	}
	return nil, errTooMany
}

// forget takes a question back that waits.
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

// overloaded notes that Globus Auth has answered 429, and asked to wait for a while.
func (p *pacer) overloaded(retryAfter time.Duration) (pause time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	pause = min(max(retryAfter, shortPause), longPause)
	if resume := now.Add(pause); resume.After(p.resume) {
		p.resume = resume
	}
	p.fill(now)
	if now.Sub(p.slowed) >= shortPause { // not once for each of the questions that were under way together
		p.slowed = now
		p.all.rate = max(minRate, p.all.rate/2)
	}
	p.all.burst = max(minRate, p.all.rate)
	p.all.left = min(p.all.left, 1)
	return pause
}

// fill brings the buckets up to date.
func (p *pacer) fill(now time.Time) {
	if since := now.Sub(p.all.at); p.all.rate < maxRate && now.After(p.resume) {
		p.all.rate = min(maxRate, p.all.rate+since.Seconds())
		p.all.burst = p.all.rate
	}
	p.all.fill(now)
	p.unknown.fill(now)
}

// advance lets those go on whose turn it is.
func (p *pacer) advance() {
	now := time.Now()
	p.fill(now)
	for {
		wait := max(p.all.wait(), p.resume.Sub(now))
		switch {
		case p.asking >= maxAsking:
			return // finish goes on
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

// unknownReady tells whether an unknown token could be asked about now, if Globus Auth takes a question.
func (p *pacer) unknownReady() bool {
	return len(p.turns) > 0 && p.unknowns < maxUnknowns && p.unknown.wait() == 0
}

func (p *pacer) let(q *question) {
	p.asking++
	p.all.left--
	close(q.turn)
}

// later calls advance after a while.
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
