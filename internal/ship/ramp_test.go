package ship

import (
	"testing"
	"time"
)

// TestRampUp fails when all programs send all they have at the end of an outage.
func TestRampUp(t *testing.T) {
	t.Parallel()
	at := time.Now()
	var p rampUp
	if due := p.due(0, 1e9, at); !due.IsZero() {
		t.Errorf("without an outage events may pass at %v, want at once", due)
	}
	p.begin(at, 10_000)
	if due := p.due(0, 1000, at); due.After(at) {
		t.Errorf("the first thousand may pass after %v", due.Sub(at))
	}
	if due := p.due(1000, 1000, at); due.Sub(at).Round(time.Millisecond) != time.Second {
		t.Errorf("the second thousand may pass after %v, want 1s", due.Sub(at))
	}
	if due := p.due(2000, 6000, at); due.Sub(at).Round(time.Millisecond) != 3*time.Second {
		t.Errorf("eight thousand may have passed after %v, want 3s", due.Sub(at))
	}
	if due := p.due(10_000, 1e9, at); !due.IsZero() {
		t.Errorf("what was logged after the outage may pass at %v, want at once", due)
	}
	p.begin(at, 10)
	if due := p.due(0, 3010, at); due.After(at) || p != (rampUp{}) {
		t.Errorf("what goes along with the last ten of an outage may pass after %v", due.Sub(at))
	}
	p.begin(at, 1000)
	if due := p.due(0, 1e9, at.Add(rampEnds+1)); !due.IsZero() {
		t.Errorf("long after an outage events may pass at %v, want at once", due)
	}
	starts := map[time.Duration]bool{}
	for range 100 {
		p.afterOutage(time.Hour, 1)
		delay := time.Until(p.began)
		if delay > maxRampDelay {
			t.Fatalf("begins after %v", delay)
		}
		starts[delay.Round(10*time.Millisecond)] = true
	}
	if len(starts) < 50 {
		t.Errorf("a hundred programs begin at %d different times", len(starts))
	}
}

// TestReconnectBeforeClosing: a program that ends just after an outage tries to connect before it gives up.
func TestReconnectBeforeClosing(t *testing.T) {
	t.Parallel()
	const patience = 5 * time.Second // of a Logger that is closed, by default
	for tries := range 100 {
		if d := reconnectIn(tries); d <= 0 || d > patience-time.Second {
			t.Errorf("after %d failures, the pause is %v, want at least a second less than %v", tries, d, patience)
		}
	}
}
