package diaspora

import (
	"context"
	"math"
	"math/rand/v2"
	"time"
)

// A pace keeps the thousands of programs that have sat out the same outage from
// falling upon the cluster together. For a while after it began it lets events pass slowly,
// at first a thousand a second, then twice as many with each second.
type pace struct {
	began  time.Time // zero if it lets all pass
	passed int       // events since
}

const (
	paceFirst = 1000             // events in the first second
	paceEnds  = 12 * time.Second // after that, four million events a second would pass
	paceDelay = 4 * time.Second  // the most that it begins later than it could; less than finishPatience
)

func (p *pace) begin(at time.Time) { *p = pace{began: at} }

// afterOutage begins, at some moment that is different from program to program.
func (p *pace) afterOutage(lasted time.Duration) {
	p.begin(time.Now().Add(rand.N(min(lasted/4, paceDelay) + 1)))
}

// due returns when n more events may pass; zero means now.
func (p *pace) due(n int, now time.Time) time.Time {
	if p.began.IsZero() {
		return time.Time{}
	}
	if now.Sub(p.began) > paceEnds {
		*p = pace{}
		return time.Time{}
	}
	p.passed += n
	seconds := max(0, math.Log2(float64(p.passed)/paceFirst))
	return p.began.Add(time.Duration(seconds * float64(time.Second)))
}

// wait waits until n events may pass. It reports false if ctx ended before.
func (p *pace) wait(ctx context.Context, n int) bool {
	delay := time.Until(p.due(n, time.Now()))
	if delay <= 0 {
		return ctx.Err() == nil
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(delay):
		return true
	}
}
