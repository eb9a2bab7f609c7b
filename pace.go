package diaspora

import (
	"context"
	"math"
	"math/rand/v2"
	"time"
)

// A pace keeps the thousands of programs that have sat out the same outage from
// falling upon the cluster together. For a while after it began it lets the events that
// the outage left pass slowly, at first a thousand a second, then twice as many with each
// second. What is logged later is not held up by it.
type pace struct {
	began  time.Time // zero if it lets all pass
	passed int       // events since
	end    uint64    // where in the spool what the outage left ends
}

const (
	paceFirst = 1000             // events in the first second
	paceEnds  = 12 * time.Second // after that, four million events a second would pass
	paceDelay = 4 * time.Second  // the most that it begins later than it could; less than defaultClosePatience
)

func (p *pace) begin(at time.Time, end uint64) { *p = pace{began: at, end: end} }

// afterOutage begins, at some moment that is different from program to program.
func (p *pace) afterOutage(lasted time.Duration, end uint64) {
	p.begin(time.Now().Add(rand.N(min(lasted/4, paceDelay)+1)), end)
}

// due returns when n more events, the first of which is at position, may pass; zero means now.
func (p *pace) due(position uint64, n int, now time.Time) time.Time {
	if p.began.IsZero() {
		return time.Time{}
	}
	if position >= p.end || now.Sub(p.began) > paceEnds {
		*p = pace{}
		return time.Time{}
	}
	p.passed += int(min(uint64(n), p.end-position)) // what is behind the end goes along
	seconds := max(0, math.Log2(float64(p.passed)/paceFirst))
	due := p.began.Add(time.Duration(seconds * float64(time.Second)))
	if position+uint64(n) >= p.end {
		*p = pace{}
	}
	return due
}

// wait waits until n events may pass, the first of which is at position. It reports false if
// ctx ended before.
func (p *pace) wait(ctx context.Context, position uint64, n int) bool {
	delay := time.Until(p.due(position, n, time.Now()))
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
