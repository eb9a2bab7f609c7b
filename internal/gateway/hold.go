package gateway

import (
	"context"
	"io"
	"math/bits"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

// A request is held back until the whole of it is here. A broker makes room for all of a
// request when it has read its size, so a client that sends sizes and little more would use up
// the broker's memory. At the gateway a request costs its size out of two budgets, that
// of its subject and that of all.

const (
	// maxPooledBytes bounds the buffers that are kept for the next request.
	maxPooledBytes = 1 << maxPooledBits
	minPooledBits  = 13 // 8 KiB
	maxPooledBits  = 20
)

// buffers are for requests, by the binary logarithm of their capacity.
var buffers [maxPooledBits + 1]sync.Pool

func init() {
	for class := range buffers {
		buffers[class].New = func() any {
			b := make([]byte, 1<<class)
			return &b
		}
	}
}

// buffer returns n bytes, and what to do when they are not needed any more.
func buffer(n int) (b []byte, free func()) {
	if n > maxPooledBytes {
		return make([]byte, n), func() {}
	}
	class := max(minPooledBits, bits.Len(uint(n-1)))
	pooled := buffers[class].Get().(*[]byte)
	return (*pooled)[:n], func() { buffers[class].Put(pooled) }
}

// holdRequest returns a whole request, its size included, as soon as it is here. The caller
// frees it.
func (c *conn) holdRequest(ctx context.Context, size int) (frame []byte, free func(), err error) {
	n := 4 + size
	if n <= readerBytes { // it needs no other memory than the connection has
		frame, err := c.in.peek(n)
		if err != nil {
			return nil, nil, unexpected(err)
		}
		return frame, func() { c.in.discard(n) }, nil
	}
	repay, err := pay(ctx, n, c.account.requests)
	if err != nil {
		return nil, nil, err
	}
	repayAll, err := c.g.payForAll(ctx, n)
	if err != nil {
		repay()
		return nil, nil, err
	}
	frame, release := buffer(n)
	free = func() {
		release()
		repay()
		repayAll()
	}
	c.g.uploads.begin(c)
	_, err = io.ReadFull(&c.in, frame)
	c.g.uploads.end(c)
	if err != nil {
		free()
		return nil, nil, unexpected(err)
	}
	return frame, free, nil
}

// payForAll takes n bytes from the budget of all requests. As long as it has to wait, clients
// that take too long for a request lose their connections: they may be hostile, and
// they would keep everybody waiting.
func (g *Gateway) payForAll(ctx context.Context, n int) (repay func(), err error) {
	repay = func() { g.requestBudget.Release(int64(n)) }
	if g.requestBudget.TryAcquire(int64(n)) {
		return repay, nil
	}
	waiting, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		for waiting.Err() == nil {
			if c := g.uploads.evict(patience); c != nil {
				g.rejected(c.client.RemoteAddr(), errSlowUpload)
				c.close()
			}
			sleep(waiting, evictEvery)
		}
	}()
	return repay, g.requestBudget.Acquire(ctx, int64(n))
}

const (
	// patience is how long a request may take to arrive while others wait for its memory.
	patience = 10 * time.Second
	// evictEvery is the time between two evictions, so that no more connections are closed
	// than need be.
	evictEvery = 100 * time.Millisecond
)

// uploads are the connections with a request that has not arrived yet, and since when.
type uploads struct {
	mu      sync.Mutex // guards the fields below
	since   map[*conn]time.Time
	evicted time.Time // when the last one was
}

func (u *uploads) begin(c *conn) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.since == nil {
		u.since = make(map[*conn]time.Time)
	}
	u.since[c] = time.Now()
}

func (u *uploads) end(c *conn) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.since, c)
}

// evict returns the connection whose request takes the longest, and forgets it. It returns
// nil if none takes longer than least, or if one was evicted a moment ago.
func (u *uploads) evict(least time.Duration) *conn {
	u.mu.Lock()
	defer u.mu.Unlock()
	if time.Since(u.evicted) < evictEvery {
		return nil
	}
	var slowest *conn
	for c, since := range u.since {
		if time.Since(since) > least && (slowest == nil || since.Before(u.since[slowest])) {
			slowest = c
		}
	}
	if slowest != nil {
		delete(u.since, slowest)
		u.evicted = time.Now()
	}
	return slowest
}

// pay takes n bytes from each budget, and waits until they are there.
func pay(ctx context.Context, n int, budgets ...*semaphore.Weighted) (repay func(), err error) {
	for i, budget := range budgets {
		if err := budget.Acquire(ctx, int64(n)); err != nil {
			for _, paid := range budgets[:i] {
				paid.Release(int64(n))
			}
			return nil, err
		}
	}
	return func() {
		for _, paid := range budgets {
			paid.Release(int64(n))
		}
	}, nil
}
