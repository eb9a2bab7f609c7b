package faultnet

import (
	"net"
	"sync"
	"time"
)

// A network holds little by itself: what a slow one has not passed on stays with the sender.
const (
	pieceBytes = 1 << 10 // passes at once
	pieceQueue = 256     // pieces on their way, on a link of long delay
)

// piece is some bytes on their way.
type piece struct {
	due   time.Time
	bytes []byte
}

// forward passes bytes on in one direction, until the connection ends.
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
	if c.isLost() { // the other side does not hear of the end either
		select {
		case <-c.closed:
		case <-p.closed:
		}
	}
	c.close()
}

// wait reports false if the connection was closed meanwhile.
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

// pipeRate is what all connections share in one direction.
type pipeRate struct {
	mu   sync.Mutex // guards the field below
	free time.Time  // when the pipe has passed on what it was given
}

// reserve returns how long n bytes take to get through.
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
