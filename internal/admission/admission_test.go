package admission

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

func hashOf(credentials string) Hash { return sha256.Sum256([]byte(credentials)) }

func TestAddressOf(t *testing.T) {
	for address, want := range map[string]string{
		"192.0.2.1":        "192.0.2.1",
		"::ffff:192.0.2.1": "192.0.2.1",
		"2001:db8::1":      "2001:db8::",
		"2001:db8:0:1::1":  "2001:db8:0:1::",
		"fe80::1%eth0":     "fe80::",
	} {
		if got := AddressOf(netip.MustParseAddr(address)).String(); got != want {
			t.Errorf("AddressOf(%s) = %s, want %s", address, got, want)
		}
	}
	if got := AddressOf(netip.Addr{}); got.IsValid() {
		t.Errorf("AddressOf of no address = %v", got)
	}
}

// TestGuardSharesAttempts: concurrent attempts with the same credentials are a single attempt. If
// it is refused, all of them are.
func TestGuardSharesAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGuard(1)
		first, _, ok1 := g.Begin(t.Context(), "a", hashOf("x"))
		second, _, ok2 := g.Begin(t.Context(), "b", hashOf("x"))
		if !ok1 || !ok2 {
			t.Fatal("the first credentials are not looked at")
		}
		first(Good)
		second(Good)
		if end, _, ok := g.Begin(t.Context(), "a", hashOf("y")); !ok {
			t.Error("what was good is not refunded")
		} else {
			end(Unknown)
		}
		// No attempts are left, and all who show z wait for the same one.
		began := time.Now()
		results := make(chan bool)
		for range 10 {
			go func() {
				end, _, ok := g.Begin(t.Context(), "a", hashOf("z"))
				if ok {
					end(Refused)
				}
				results <- ok
			}()
		}
		for range 10 {
			if !<-results {
				t.Error("an attempt is not admitted, though there was time")
			}
		}
		if waited := time.Since(began).Round(time.Millisecond); waited != Interval {
			t.Errorf("waited %v, want %v", waited, Interval)
		}
		if len(g.pending) != 0 {
			t.Errorf("%d attempts are still under way", len(g.pending))
		}
	})
}

// TestGuardWaits checks how many attempts wait, for how long, and that they stop waiting when their
// client leaves.
func TestGuardWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGuard(1)
		if _, _, ok := g.Begin(t.Context(), "a", hashOf("first")); !ok {
			t.Fatal("the first credentials are not looked at")
		}
		ctx, cancel := context.WithCancel(t.Context())
		results := make(chan bool)
		for i := range 2 * maxWaiting {
			go func() {
				_, wait, ok := g.Begin(ctx, "a", hashOf(fmt.Sprint(i)))
				if !ok && (wait <= 0 || wait > Interval) {
					t.Errorf("told to wait %v", wait)
				}
				results <- ok
			}()
		}
		for range maxWaiting {
			if <-results {
				t.Error("an attempt is admitted at once")
			}
		}
		synctest.Wait()
		time.Sleep(maxWait / 2)
		cancel()
		admitted := 0
		for range maxWaiting {
			if <-results {
				admitted++
			}
		}
		if want := int(maxWait / 2 / Interval); admitted != want {
			t.Errorf("%d attempts are admitted in %v, want %d", admitted, maxWait/2, want)
		}
	})
}

func TestGuardIsBounded(t *testing.T) {
	g := NewGuard(DefaultBurst)
	for i := range 2 * rememberedClients {
		end, _, _ := g.Begin(t.Context(), fmt.Sprint(i), hashOf(fmt.Sprint(i)))
		end(Outcome(i % 3))
		g.Malformed(fmt.Sprint(i))
	}
	if n := max(g.unknown.Len(), g.refused.Len(), g.good.Len(), g.bad.Len()); n > rememberedClients {
		t.Errorf("remembers %d, want at most %d", n, rememberedClients)
	}
}

func TestAnonymousConns(t *testing.T) {
	var s AnonymousConns
	var closed []string
	add := func(name, address string) *AnonymousConn {
		return s.Add(netip.MustParseAddr(address), func() { closed = append(closed, name) })
	}
	a1, a2, a3 := add("a1", "192.0.2.1"), add("a2", "192.0.2.1"), add("a3", "192.0.2.1")
	b1 := add("b1", "192.0.2.2")
	a1.SetChecking(true)
	s.Evict() // evicts a2, because the credentials of a1 are being checked
	a1.SetChecking(false)
	s.EvictFrom(netip.MustParseAddr("192.0.2.2"))
	s.Evict() // evicts a1
	if got := fmt.Sprint(closed); got != "[a2 b1 a1]" {
		t.Errorf("closed %s, want [a2 b1 a1]", got)
	}
	if a2.Remove() || b1.Remove() || !a3.Remove() || a3.Remove() {
		t.Error("Remove does not tell whether it was on the list")
	}
	if s.Len() != 0 || s.Evict() || s.EvictFrom(netip.MustParseAddr("192.0.2.1")) {
		t.Errorf("there are %d, want none", s.Len())
	}
}
