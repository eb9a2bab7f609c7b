package diaspora

import (
	"context"
	"sync"
	"sync/atomic"
)

// room bounds the bytes of the events that wait for their acknowledgement. Those
// who enter and those who leave write to different cache lines, and the former look
// at the latter's only when the room seems to be full: it is on the path of every event.
type room struct {
	max   int64
	hurry func() (stop func()) // called when somebody begins to wait for room; may be nil

	_       [64]byte
	entered atomic.Int64 // bytes that ever came in
	seen    atomic.Int64 // left, as those who enter last saw it
	_       [64]byte
	left    atomic.Int64 // bytes that ever went out
	_       [64]byte

	waiting atomic.Int32
	mu      sync.Mutex    // guards freed
	freed   chan struct{} // closed, and forgotten, when there is room again
}

// used returns how many bytes are in the room.
func (r *room) used() int64 {
	left := r.left.Load() // first, so that the difference is never negative
	return r.entered.Load() - left
}

// low is how far the room empties before those who wait are woken: not at each
// event that leaves, which would send batches of one.
func (r *room) low() int64 { return r.max - r.max/4 }

// enter takes n bytes, at most a quarter of the room, and waits for them if they
// are not there, until ctx ends or closing is closed.
func (r *room) enter(ctx context.Context, closing <-chan struct{}, n int64) error {
	if r.tryEnter(n) {
		return nil
	}
	if r.hurry != nil {
		defer r.hurry()()
	}
	for !r.tryEnter(n) {
		if err := r.wait(ctx, closing, r.low()); err != nil {
			return err
		}
	}
	return nil
}

func (r *room) tryEnter(n int64) bool {
	entered := r.entered.Add(n)
	if entered-r.seen.Load() <= r.max {
		return true
	}
	left := r.left.Load()
	r.seen.Store(left)
	if entered-left <= r.max {
		return true
	}
	r.entered.Add(-n)
	return false
}

// leave gives n bytes back.
func (r *room) leave(n int64) {
	r.left.Add(n)
	if r.waiting.Load() == 0 || r.used() > r.low() {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.freed != nil {
		close(r.freed)
		r.freed = nil
	}
}

// wait returns when at most level bytes are in the room; level is at most [room.low].
func (r *room) wait(ctx context.Context, closing <-chan struct{}, level int64) error {
	r.waiting.Add(1)
	defer r.waiting.Add(-1)
	for {
		r.mu.Lock()
		if r.freed == nil {
			r.freed = make(chan struct{})
		}
		freed := r.freed
		r.mu.Unlock()
		if r.used() <= level { // after announcing the wait, so that no leave is missed
			return nil
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return ctx.Err()
		case <-closing:
			return ErrClosed
		}
	}
}
