package gateway

import (
	"context"
	"io"
	"math/bits"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/diaspora-streams/diaspora/internal/backoff"
)

// The gateway holds back a request until all of it has arrived. A broker allocates memory for the
// whole request as soon as it has read the size, so a client that sends little more than sizes
// could use up the broker's memory. At the gateway, the size of a request counts in two memory
// budgets: that of its subject, and that of all subjects.

const (
	// maxPooledBytes is the largest buffer that is kept for reuse.
	maxPooledBytes = 1 << maxPooledBits
	minPooledBits  = 13 // 8 KiB
	maxPooledBits  = 20
)

// buffers holds unused request buffers. The index is the binary logarithm of their capacity.
var buffers [maxPooledBits + 1]sync.Pool

func init() {
	for class := range buffers {
		buffers[class].New = func() any {
			b := make([]byte, 1<<class)
			return &b
		}
	}
}

// buffer returns a slice of n bytes, and a function that makes it available for reuse.
func buffer(n int) (b []byte, free func()) {
	if n > maxPooledBytes {
		return make([]byte, n), func() {}
	}
	class := max(minPooledBits, bits.Len(uint(n-1)))
	pooled := buffers[class].Get().(*[]byte)
	return (*pooled)[:n], func() { buffers[class].Put(pooled) }
}

// holdRequest reads a whole request and returns its frame, size included. The caller calls free
// when the request has been handled.
func (c *conn) holdRequest(ctx context.Context, size int) (frame []byte, free func(), err error) {
	n := 4 + size
	if n <= readerBytes { // it fits into the connection's own buffer
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

// payForAll takes n bytes from the memory budget of all subjects. While it waits for them, it
// closes the connections whose requests take too long to arrive. They may be hostile, and would
// make every other client wait.
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
			backoff.Sleep(waiting, evictEvery)
		}
	}()
	return repay, g.requestBudget.Acquire(ctx, int64(n))
}

const (
	// patience is how long a request may take to arrive while other requests wait for memory.
	patience = 10 * time.Second
	// evictEvery is the minimum time between two evictions. The memory of one may be enough, so
	// this avoids closing more connections than necessary.
	evictEvery = 100 * time.Millisecond
)

// uploads holds the connections whose request has not arrived completely, and since when.
type uploads struct {
	mu      sync.Mutex // guards the fields below
	since   map[*conn]time.Time
	evicted time.Time // when a connection was last evicted
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

// evict removes and returns the connection whose request has been arriving for the longest time. It
// returns nil if no request takes longer than least, or if a connection was evicted a moment ago.
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

// pay takes n bytes from each budget, waiting until they are available. repay returns them.
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
