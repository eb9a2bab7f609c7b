package spool

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/diaspora-streams/diaspora/internal/disk/disktest"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestEachCallFailsOnce makes each kind of call fail once, at each of its first 200 positions, with
// each error. Append must succeed all the same, since it retries. And no acknowledged entry may be
// lost, whatever happens next, a power cut included.
//
// One program covers many positions. They are far enough apart that the spool has recovered from
// one fault before the next. Several programs together cover each position once.
func TestEachCallFailsOnce(t *testing.T) {
	t.Parallel()
	const positions, apart = 200, 10
	calls := []string{"make", "lock", "syncparent", "list", "open", "create", "rename", "remove", "syncdir", "read", "write", "sync", "size", "close"}
	disktest.EachFault(t, calls, []error{syscall.EIO, syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS}, func(t *testing.T, call string, fault error) {
		faults := 0
		for first := range testkit.Fewer(apart) {
			synctest.Test(t, func(t *testing.T) { // the spool waits while the disk is full
				hits, err := failAt(call, fault, first, apart, positions)
				if err != nil {
					t.Errorf("with the calls %d, %d, ... failing: %v", first, first+apart, err)
				}
				faults += hits
			})
		}
		if want := positions / apart * testkit.Fewer(apart); faults != want {
			t.Errorf("%d faults, want %d", faults, want)
		}
	})
}

// failAt runs a program in which the first call fails, and then one in every so many, up to a
// position.
func failAt(call string, fault error, first, apart, positions int) (hits int, err error) {
	fsys := disktest.New()
	var mu sync.Mutex // guards hits and seen
	seen := 0
	fsys.Fault(func(c, _ string) error {
		if c != call {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		at := seen
		if seen++; at%apart == first && at < positions {
			hits++
			return fault
		}
		return nil
	})
	rng := rand.New(rand.NewPCG(uint64(first), 2))
	h := &history{}
	check := func() error {
		cut, kill := fsys.Cut(rng), fsys.Kill()
		if err := h.check(cut); err != nil {
			return fmt.Errorf("after a power cut: %w", err)
		}
		return h.check(kill)
	}
	counted := func() (int, bool) {
		mu.Lock()
		defer mu.Unlock()
		return hits, seen >= positions
	}
	err = faultyProgram(fsys, h, rng, check, counted)
	hits, _ = counted()
	return hits, err
}

// faultyProgram continues after errors, as a Logger does, and checks the spool after each fault.
func faultyProgram(fsys *disktest.Model, h *history, rng *rand.Rand, check func() error, faults func() (hits int, done bool)) (err error) {
	var s *Spool
	reopen := func() error {
		for range 3 { // it may fail, and more often than the number of its calls allows
			if s, err = Open(context.Background(), crashOptions(fsys)); err == nil {
				break
			}
		}
		return err
	}
	if err := reopen(); err != nil {
		return err
	}
	ctx, ended := context.Background(), over()
	for step, checked := 0, 0; ; step++ {
		hits, done := faults()
		if hits > checked && step%3 == 0 || done {
			checked = hits
			if err := check(); err != nil {
				return err
			}
		}
		if done {
			s.Close()
			return check()
		}
		n := len(h.states)
		h.states = append(h.states, tried)
		if err := s.Append(ctx, crashEntry(n)); err != nil {
			return fmt.Errorf("append: %w", err)
		}
		h.states[n] = durable
		if step%2 == 1 {
			s.Close() // may fail; the spool is released all the same
			if err := reopen(); err != nil {
				return err
			}
		}
		records, err := s.Next(ended, 1+rng.IntN(3), 1<<20)
		if err != nil && !errors.Is(err, context.Canceled) {
			continue
		}
		for _, r := range records {
			n, _ := strconv.Atoi(r.ID)
			if rng.IntN(24) == 0 {
				h.states[n] = aside
				if err := s.Quarantine(r, "poison"); err != nil {
					continue // the entry stays in the spool
				}
				h.states[n] = putAside
				continue
			}
			h.states[n] = sent
			if err := s.Ack(r.Position); err != nil {
				return err
			}
		}
	}
}

// TestFailedSyncThenRestart makes a sync fail, together with the calls that clean up after it, at each of the
// first positions. As on Linux, what was not synced then looks as if it were: no later sync writes it, and another
// process on the same machine can read it. The spool is opened again and takes more entries. After a power cut
// nothing that was acknowledged may be missing.
func TestFailedSyncThenRestart(t *testing.T) {
	t.Parallel()
	for _, call := range []string{"sync", "syncdir"} {
		for at := range 40 {
			for _, also := range []int{0, 1, 2, 3, 6, 9, 30} { // Append tries again, in new segments
				fsys := disktest.New()
				fsys.Fault(disktest.FailTogether(call, at, also))
				h := &history{}
				for restart, entries := range []int{1 + (5*at+also)%16, 1 + at%3} {
					s, err := Open(context.Background(), crashOptions(fsys))
					for n := 0; err == nil && n < entries; n++ {
						h.states = append(h.states, tried)
						if s.Append(context.Background(), crashEntry(len(h.states)-1)) == nil {
							h.states[len(h.states)-1] = durable
						}
						if n%4 != 3 && n < entries-1 {
							continue
						}
						records, _ := s.Next(over(), 2+98*(also%2), 1<<20) // some or all
						for _, r := range records {
							n, _ := strconv.Atoi(r.ID)
							h.states[n] = sent
							s.Ack(r.Position)
						}
						s.maintain()
					}
					killed := fsys.Kill()
					if err == nil {
						s.Close()
					}
					if (at>>restart)%2 == 0 { // a process that ends cleanly
						killed = fsys.Kill()
					}
					fsys = killed
				}
				rng := rand.New(rand.NewPCG(uint64(at), uint64(also)))
				for range 20 {
					if err := h.check(fsys.Cut(rng)); err != nil {
						t.Errorf("%s %d fails with %d calls after it: after a power cut: %v", call, at, also, err)
						break
					}
				}
			}
		}
	}
}
