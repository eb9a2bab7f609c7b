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
	minPooledBits = 13 // 8 KiB
	maxPooledBits = 25 // 32 MiB, the default of MaxRequestBytes
	// stepBits is the logarithm of how many sizes of buffers there are between a power of two and the
	// next. A buffer is at most a quarter larger than the request.
	stepBits = 2
)

// buffers holds unused request buffers by their size; see sizeClass.
var buffers [(maxPooledBits-minPooledBits)<<stepBits + 1]sync.Pool

// sizeClass returns the index in buffers of the smallest buffers with n bytes or more, and their size.
func sizeClass(n int) (class, size int) {
	bits := max(minPooledBits, bits.Len(uint(n-1))-1)
	step := 1 << (bits - stepBits)
	steps := max(0, n-1<<bits+step-1) / step
	return (bits-minPooledBits)<<stepBits + steps, 1<<bits + steps*step
}

// buffer returns a slice of n bytes, and a function that makes it available for reuse. Memory that is
// new each time would have to be cleared by the kernel, by the runtime and by the collector.
func buffer(n int) (b []byte, reuse func()) {
	class, size := sizeClass(n)
	if class >= len(buffers) {
		return make([]byte, n), func() {}
	}
	pooled, _ := buffers[class].Get().(*[]byte)
	if pooled == nil {
		b := make([]byte, size)
		pooled = &b
	}
	return (*pooled)[:n], func() { buffers[class].Put(pooled) }
}

// holdRequest reads a whole request and returns its frame, size included. The caller calls free
// when the request has been handled.
func (c *conn) holdRequest(ctx context.Context, size int) (frame []byte, free func(), err error) {
	n := 4 + size
	if n <= readerBytes { // it fits into the connection's own buffer
		frame, err := c.fromClient.peek(n)
		if err != nil {
			return nil, nil, unexpected(err)
		}
		return frame, func() { c.fromClient.discard(n) }, nil
	}
	release, err := acquire(ctx, n, c.usage.requests)
	if err != nil {
		return nil, nil, err
	}
	releaseForAll, err := c.g.acquireForAll(ctx, n)
	if err != nil {
		release()
		return nil, nil, err
	}
	frame, reuse := buffer(n)
	free = func() {
		reuse()
		release()
		releaseForAll()
	}
	c.g.uploads.begin(c)
	if c.wire != nil && n >= chunkBytes { // for a smaller one, reading ahead could take more memory than the request
		c.wire.readAhead(true)
	}
	_, err = io.ReadFull(&c.fromClient, frame)
	if c.wire != nil {
		c.wire.readAhead(false)
	}
	c.g.uploads.end(c)
	if err != nil {
		free()
		return nil, nil, unexpected(err)
	}
	return frame, free, nil
}

// acquireForAll takes n bytes from the memory budget of all subjects. While it waits for them, it
// closes the connections whose requests take too long to arrive. They may be hostile, and would
// make every other client wait.
func (g *Gateway) acquireForAll(ctx context.Context, n int) (release func(), err error) {
	release = func() { g.requestBudget.Release(int64(n)) }
	if g.requestBudget.TryAcquire(int64(n)) {
		return release, nil
	}
	waiting, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		for waiting.Err() == nil {
			if c := g.uploads.evict(maxUploadTime); c != nil {
				g.rejected(c.client.RemoteAddr(), errSlowUpload)
				c.close()
			}
			backoff.Sleep(waiting, evictInterval)
		}
	}()
	return release, g.requestBudget.Acquire(ctx, int64(n))
}

const (
	// maxUploadTime is how long a request may take to arrive while other requests wait for memory.
	maxUploadTime = 10 * time.Second
	// evictInterval is the minimum time between two evictions. The memory of one may be enough, so
	// this avoids closing more connections than necessary.
	evictInterval = 100 * time.Millisecond
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
// returns nil if no request takes longer than minTime, or if a connection was evicted a moment ago.
func (u *uploads) evict(minTime time.Duration) *conn {
	u.mu.Lock()
	defer u.mu.Unlock()
	if time.Since(u.evicted) < evictInterval {
		return nil
	}
	var slowest *conn
	for c, since := range u.since {
		if time.Since(since) > minTime && (slowest == nil || since.Before(u.since[slowest])) {
			slowest = c
		}
	}
	if slowest != nil {
		delete(u.since, slowest)
		u.evicted = time.Now()
	}
	return slowest
}

// acquire takes n bytes from each budget, waiting until they are available. release returns them.
func acquire(ctx context.Context, n int, budgets ...*semaphore.Weighted) (release func(), err error) {
	for i, b := range budgets {
		if err := b.Acquire(ctx, int64(n)); err != nil {
			for _, b := range budgets[:i] {
				b.Release(int64(n))
			}
			return nil, err
		}
	}
	return func() {
		for _, b := range budgets {
			b.Release(int64(n))
		}
	}, nil
}
