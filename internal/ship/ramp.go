package ship

import (
	"context"
	"math"
	"math/rand/v2"
	"time"

	"github.com/diaspora-streams/diaspora/internal/backoff"
)

// rampUp limits the rate at which the backlog of an outage is sent. Otherwise the
// thousands of programs that have waited for a cluster would overload it together as soon
// as it is back. The limit starts at a thousand events per second and doubles every second.
// Events that were logged after the outage are not limited. The zero value sets no limit.
type rampUp struct {
	began time.Time // zero if there is no limit
	sent  int       // events since began
	end   uint64    // position in the spool at which the backlog ends
}

const (
	rampFirst = 1000             // events in the first second
	rampEnds  = 12 * time.Second // the limit is four million events per second by then
	// maxRampDelay is the longest random delay of the start. It is shorter than the
	// patience of a program that closes its Logger.
	maxRampDelay = 4 * time.Second
)

// begin limits the events before position end, starting at a given time.
func (r *rampUp) begin(at time.Time, end uint64) { *r = rampUp{began: at, end: end} }

// afterOutage limits the events before position end, starting at a random time soon.
func (r *rampUp) afterOutage(lasted time.Duration, end uint64) {
	r.begin(time.Now().Add(rand.N(min(lasted/4, maxRampDelay)+1)), end)
}

// due returns when n more events may be sent, the first of which is at position. The zero
// time means now.
func (r *rampUp) due(position uint64, n int, now time.Time) time.Time {
	if r.began.IsZero() {
		return time.Time{}
	}
	if position >= r.end || now.Sub(r.began) > rampEnds {
		*r = rampUp{}
		return time.Time{}
	}
	r.sent += int(min(uint64(n), r.end-position)) // events after the backlog do not count
	seconds := max(0, math.Log2(float64(r.sent)/rampFirst))
	due := r.began.Add(time.Duration(seconds * float64(time.Second)))
	if position+uint64(n) >= r.end {
		*r = rampUp{}
	}
	return due
}

// wait waits until n events may be sent, the first of which is at position. It reports
// false if ctx ended first.
func (r *rampUp) wait(ctx context.Context, position uint64, n int) bool {
	return backoff.Sleep(ctx, time.Until(r.due(position, n, time.Now())))
}

// reconnectIn returns how long to wait after a number of failed attempts to reach the cluster.
func reconnectIn(tries int) time.Duration { return backoff.Delay(tries, retryFirst, reconnectMost) }

// retryIn returns how long to wait after a number of failed attempts.
func retryIn(tries int, first time.Duration) time.Duration {
	return backoff.Delay(tries, first, retryMost)
}
