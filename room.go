package diaspora

import (
	"context"
	"sync"
	"sync/atomic"
)

// room bounds the bytes of the events that wait for their acknowledgement. Going
// in and out costs one atomic addition each while there is enough.
type room struct {
	max  int64
	used atomic.Int64

	waiting atomic.Int32
	mu      sync.Mutex    // guards freed
	freed   chan struct{} // closed, and made anew, when there is room again
}

// enter takes n bytes, and waits for them if they are not there. One that is alone
// always gets in.
func (r *room) enter(ctx context.Context, closing <-chan struct{}, n int64) error {
	for {
		if r.tryEnter(n) {
			return nil
		}
		if err := r.wait(ctx, closing, n); err != nil {
			return err
		}
	}
}

func (r *room) tryEnter(n int64) bool {
	if used := r.used.Add(n); used <= r.max || used == n {
		return true
	}
	r.leave(n)
	return false
}

// wait returns when it is worth another try.
func (r *room) wait(ctx context.Context, closing <-chan struct{}, n int64) error {
	r.waiting.Add(1)
	defer r.waiting.Add(-1)
	r.mu.Lock()
	if r.freed == nil {
		r.freed = make(chan struct{})
	}
	freed := r.freed
	r.mu.Unlock()
	if r.used.Load() <= r.low() { // freed before anybody could know that we wait
		return nil
	}
	select {
	case <-freed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-closing:
		return ErrClosed
	}
}

// low is where those who wait are woken: not at each event that leaves, which
// would send batches of one.
func (r *room) low() int64 { return r.max - r.max/4 }

// leave gives n bytes back.
func (r *room) leave(n int64) {
	used := r.used.Add(-n)
	if r.waiting.Load() == 0 || used > r.low() {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.freed != nil {
		close(r.freed)
		r.freed = nil
	}
}
