package disktest

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
)

// Crash calls program with the seeds from 1 on, on all processors, until the program has
// counted so many states that crashes left, or returns an error: a promise was broken. It
// returns how many states there were until then. A program ends when the count is reached.
func Crash(states int, program func(seed uint64, counted *atomic.Int64) error) (checked int64, err error) {
	var counted, seeds atomic.Int64
	var mu sync.Mutex // guards checked and err
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for counted.Load() < int64(states) {
				seed := uint64(seeds.Add(1))
				broken := program(seed, &counted)
				if broken == nil {
					continue
				}
				mu.Lock()
				if err == nil {
					checked = min(counted.Load(), int64(states))
				}
				err = errors.Join(err, fmt.Errorf("seed %d: %w", seed, broken))
				mu.Unlock()
				counted.Store(int64(states)) // the others end as well
			}
		})
	}
	wg.Wait()
	if err == nil {
		checked = int64(states)
	}
	return checked, err
}
