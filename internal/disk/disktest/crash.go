package disktest

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
)

// Crash calls program with the seeds 1, 2, 3 and so on, concurrently on all processors. It stops
// when the programs have counted that many crash states, or when one returns an error, which means
// that a guarantee was broken. Crash returns how many states were checked until then. A program
// must return when the count is reached.
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
				counted.Store(int64(states)) // makes the others end as well
			}
		})
	}
	wg.Wait()
	if err == nil {
		checked = int64(states)
	}
	return checked, err
}
