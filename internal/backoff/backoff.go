// Package backoff spaces out the attempts of something that failed. The pauses grow, up to a limit.
// They are random, because many programs may be waiting for the same service.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// Delay returns how long to wait after a number of failures in a row, not counting the last one: up
// to first after the first failure, and twice as long after each further one, but at most most.
func Delay(failures int, first, most time.Duration) time.Duration {
	limit := min(most, first<<min(max(failures, 0), 16))
	return limit/2 + rand.N(limit/2)
}

// Sleep waits for d, and reports false if ctx ended first.
func Sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// Retry calls do until it succeeds, and returns its last error. It stops after an error for which
// worth returns false, after a number of retries, and when ctx ends.
func Retry(ctx context.Context, retries int, worth func(error) bool, do func() error) error {
	for attempt := 0; ; attempt++ {
		err := do()
		if err == nil || attempt >= retries || !worth(err) || !Sleep(ctx, Delay(attempt, 100*time.Millisecond, 2*time.Second)) {
			return err
		}
	}
}
