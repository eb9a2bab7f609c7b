package faultnet

import (
	"net"
	"sync"
	"time"
)

// The proxy buffers little, so that on a slow link pending bytes stay with the sender, as in a real
// network.
const (
	pieceBytes = 1 << 10 // bytes passed on at once if the bandwidth is limited
	pieceQueue = 256     // pieces in flight on a link with a long delay
)

// piece is a number of bytes in flight.
type piece struct {
	due   time.Time
	bytes []byte
}

// forward forwards bytes in one direction until the connection ends.
func (p *Proxy) forward(c *pair, from, to net.Conn, rate *pipeRate) {
	pieces := make(chan piece, pieceQueue)
	var delivering sync.WaitGroup
	delivering.Go(func() {
		for piece := range pieces {
			if !c.wait(time.Until(piece.due)) || c.isLost() {
				continue
			}
			if _, err := to.Write(piece.bytes); err != nil {
				c.close()
			}
		}
	})
	for {
		link := p.now()
		size := 64 * pieceBytes
		if link.BytesPerSecond > 0 {
			size = pieceBytes
		}
		buf := make([]byte, size)
		n, err := from.Read(buf)
		if n > 0 && !c.isLost() {
			c.wait(rate.reserve(n, link.BytesPerSecond))
			pieces <- piece{time.Now().Add(link.Delay), buf[:n]}
		}
		if err != nil {
			break
		}
	}
	close(pieces)
	delivering.Wait()
	if c.isLost() { // on a silent link, the other side must not notice the end either
		select {
		case <-c.closed:
		case <-p.closed:
		}
	}
	c.close()
}

// wait waits for d. It returns false if the connection is closed first.
func (c *pair) wait(d time.Duration) bool {
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-c.closed:
		return false
	}
}

// pipeRate limits the bandwidth of all connections in one direction.
type pipeRate struct {
	mu   sync.Mutex // guards the field below
	free time.Time  // when all bytes reserved so far have passed
}

// reserve reserves bandwidth for n bytes, and returns how long they take.
func (r *pipeRate) reserve(n, perSecond int) time.Duration {
	if perSecond == 0 {
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if r.free.Before(now) {
		r.free = now
	}
	r.free = r.free.Add(time.Duration(n) * time.Second / time.Duration(perSecond))
	return r.free.Sub(now)
}
