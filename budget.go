package diaspora

import (
	"context"
	"sync"
	"sync/atomic"
)

// budget limits the memory of the events that are not acknowledged yet, in bytes. Every
// event takes from it and gives back, so those that take and those that give back write to
// different cache lines, and the former read the latter's only when the budget seems to be
// used up.
type budget struct {
	max   int64
	hurry func() (stop func()) // called when somebody begins to wait; may be nil

	_     [64]byte
	taken atomic.Int64 // bytes ever taken
	seen  atomic.Int64 // given, when somebody who takes last read it
	_     [64]byte
	given atomic.Int64 // bytes ever given back
	_     [64]byte

	waiting atomic.Int32
	mu      sync.Mutex    // guards freed
	freed   chan struct{} // closed, and set to nil, when some of the budget is free again
}

// used returns how many bytes are taken.
func (b *budget) used() int64 {
	given := b.given.Load() // first, so that the difference is never negative
	return b.taken.Load() - given
}

// low is the use below which those that wait are woken. They are not woken at each event
// that gives back its bytes: they would send batches of one event.
func (b *budget) low() int64 { return b.max - b.max/4 }

// take takes n bytes, at most a quarter of the budget. If they are not free, it waits until
// ctx ends or closing is closed.
func (b *budget) take(ctx context.Context, closing <-chan struct{}, n int64) error {
	if b.tryTake(n) {
		return nil
	}
	if b.hurry != nil {
		defer b.hurry()()
	}
	for !b.tryTake(n) {
		if err := b.wait(ctx, closing, b.low()); err != nil {
			return err
		}
	}
	return nil
}

func (b *budget) tryTake(n int64) bool {
	taken := b.taken.Add(n)
	if taken-b.seen.Load() <= b.max {
		return true
	}
	given := b.given.Load()
	b.seen.Store(given)
	if taken-given <= b.max {
		return true
	}
	b.taken.Add(-n)
	return false
}

// giveBack gives n bytes back.
func (b *budget) giveBack(n int64) {
	b.given.Add(n)
	if b.waiting.Load() == 0 || b.used() > b.low() {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.freed != nil {
		close(b.freed)
		b.freed = nil
	}
}

// wait returns when at most level bytes are taken; level is at most [budget.low].
func (b *budget) wait(ctx context.Context, closing <-chan struct{}, level int64) error {
	b.waiting.Add(1)
	defer b.waiting.Add(-1)
	for {
		b.mu.Lock()
		if b.freed == nil {
			b.freed = make(chan struct{})
		}
		freed := b.freed
		b.mu.Unlock()
		if b.used() <= level { // after announcing the wait, so that no giveBack is missed
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
