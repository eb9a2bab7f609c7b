package backoff

import (
	"context"
	"errors"
	"math"
	"testing"
	"testing/synctest"
	"time"
)

func TestDelay(t *testing.T) {
	for failures, limit := range map[int]time.Duration{
		-1: time.Second, 0: time.Second, 1: 2 * time.Second, 4: 16 * time.Second, 5: 30 * time.Second, math.MaxInt: 30 * time.Second,
	} {
		for range 100 {
			if got := Delay(failures, time.Second, 30*time.Second); got < limit/2 || got > limit {
				t.Fatalf("Delay(%d) = %v, want %v to %v", failures, got, limit/2, limit)
			}
		}
	}
}

func TestSleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended, end := context.WithTimeout(t.Context(), time.Minute)
		defer end()
		if !Sleep(ended, 59*time.Second) || !Sleep(ended, 0) {
			t.Error("Sleep = false before the context ends")
		}
		if Sleep(ended, time.Minute) || Sleep(ended, 0) {
			t.Error("Sleep = true although the context ended first")
		}
	})
}

func TestRetry(t *testing.T) {
	soon, never := errors.New("try again"), errors.New("give up")
	for name, try := range map[string]struct {
		errs []error // of the calls; the last one repeats
		want error
		n    int // calls
	}{
		"success":            {[]error{nil}, nil, 1},
		"success at last":    {[]error{soon, soon, nil}, nil, 3},
		"not worth it":       {[]error{soon, never}, never, 2},
		"always unreachable": {[]error{soon}, soon, 5},
	} {
		synctest.Test(t, func(t *testing.T) {
			n := 0
			err := Retry(t.Context(), 4, func(err error) bool { return err == soon }, func() error {
				n++
				return try.errs[min(n, len(try.errs))-1]
			})
			if err != try.want || n != try.n {
				t.Errorf("%s: Retry = %v after %d calls, want %v after %d", name, err, n, try.want, try.n)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := Retry(ctx, math.MaxInt, func(error) bool { return true }, func() error { return soon }); err != soon {
			t.Errorf("Retry whose context ends = %v, want the last error", err)
		}
	})
}
