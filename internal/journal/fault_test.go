package journal

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/disk/disktest"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestEachCallFailsOnce makes each kind of call fail once, at each of its first positions, with
// each error. The program continues afterwards, and opens the journal again when it accepts no more
// entries. Whatever happens, nothing acknowledged may be lost.
func TestEachCallFailsOnce(t *testing.T) {
	t.Parallel()
	positions := testkit.Scaled(t, "JOURNAL_FAULTS", 30)
	calls := []string{"make", "syncparent", "syncdir", "list", "open", "create", "rename", "remove", "read", "write", "truncate", "sync", "size", "close"}
	disktest.EachFault(t, calls, []error{syscall.EIO, syscall.ENOSPC}, func(t *testing.T, call string, fault error) {
		hits := 0
		for at := range positions {
			for _, synced := range []bool{false, true} {
				hit, err := failAt(call, fault, at, synced)
				if err != nil {
					t.Errorf("call %d, sync %v: %v", at, synced, err)
				}
				if hit {
					hits++
				}
			}
		}
		if least := min(positions, 30); hits < least { // some calls are rare
			t.Errorf("%d faults, want at least %d", hits, least)
		}
	})
}

// failAt runs a program in which one call fails.
func failAt(call string, fault error, at int, synced bool) (hit bool, err error) {
	fsys := disktest.New()
	rng := rand.New(rand.NewPCG(uint64(at), 2))
	var mu sync.Mutex // guards seen
	seen := 0
	fsys.Fault(func(c, name string) error {
		mu.Lock()
		defer mu.Unlock()
		if c == "write" && rng.IntN(20) == 0 {
			return io.ErrShortWrite // so that there is something to cut
		}
		if c != call {
			return nil
		}
		if seen++; seen == at+1 {
			hit = true
			return fault
		}
		return nil
	})
	h := &history{keys: map[string][]change{}}
	steps := rand.New(rand.NewPCG(uint64(at), 3))
	var j *Journal
	open := func() (err error) {
		var state map[string]string
		for range 20 { // several of its calls may fail
			if j, state, err = openState(crashOptions(fsys, synced)); err == nil {
				j.retryAfter = 0
				return h.compare(state, false)
			}
		}
		return err
	}
	if err := open(); err != nil {
		return hit, err
	}
	for step, after := 0, 0; after < 10 && step < 400; step++ {
		mu.Lock()
		if hit {
			after++
		}
		mu.Unlock()
		n, entries := h.add(step, steps, fmt.Sprint("k", steps.IntN(6)), fmt.Sprint("l", steps.IntN(6)))
		err := j.Append(entries...)
		if err != nil {
			h.failed(n)
		} else {
			h.calls[n].acked, h.calls[n].safe = true, synced
		}
		if step%7 == 6 || err != nil && j.stopped() != nil {
			j.Close() // may fail
			if err := open(); err != nil {
				return hit, fmt.Errorf("open again: %w", err)
			}
		}
		if after == 1 || after == 5 || after == 10 {
			crashes := []crash{{fsys: fsys.Kill(), sync: synced, history: h}}
			if synced || call != "sync" { // otherwise the disk may lose what no sync covered
				crashes = append(crashes, crash{fsys: fsys.Cut(rng), sync: synced, history: h, power: true})
			}
			for _, left := range crashes {
				if err := h.check(left); err != nil {
					return hit, fmt.Errorf("step %d, after a crash (power cut: %v): %w", step, left.power, err)
				}
			}
		}
	}
	if err := j.Close(); err != nil && !errors.Is(err, fault) {
		return hit, err
	}
	return hit, nil
}

// failed removes a failed call from the order that must hold: it may or may not be there.
func (h *history) failed(n int) { h.calls[n].step = 1 << 30 }

// TestFailedSyncThenRestart makes a sync fail, together with the calls that clean up after it, at each of the
// first positions. As on Linux, what was not synced then looks as if it were: no later sync writes it, and another
// process on the same machine can read it. The journal is opened again and takes another entry. After a power cut
// nothing that was acknowledged may be missing, or without Sync, the journal must at least open.
func TestFailedSyncThenRestart(t *testing.T) {
	t.Parallel()
	for _, call := range []string{"sync", "syncdir"} {
		for at := range 40 {
			for variant := range 8 {
				also, synced := variant/2, variant%2 == 0
				fsys := disktest.New()
				o := Options{FS: fsys, Sync: synced, CompactBytes: 200}
				fsys.Fault(disktest.FailTogether(call, at, also))
				acknowledged := map[string]bool{}
				put := func(j *Journal, key string) {
					if j.Append(set(key, "v")) == nil {
						acknowledged[key] = true
					}
					j.idle()
				}
				for restart, entries := range []int{12, 1} {
					j, _, err := openState(o)
					for n := 0; err == nil && n < entries; n++ {
						put(j, fmt.Sprintf("%d-%d", restart, n))
					}
					if err == nil {
						j.Close()
					}
					fsys = fsys.Kill()
					o.FS = fsys
				}
				rng := rand.New(rand.NewPCG(uint64(at), uint64(variant)))
				for range 20 {
					after := o
					after.FS = fsys.Cut(rng)
					j, state, err := openState(after)
					if err != nil {
						t.Errorf("%s %d fails with %d calls after it (sync %v): after a power cut: %v", call, at, also, synced, err)
						break
					}
					for key := range acknowledged {
						if _, ok := state[key]; synced && !ok {
							t.Errorf("%s %d fails with %d calls after it: after a power cut %s is missing", call, at, also, key)
						}
					}
					j.Close()
				}
			}
		}
	}
}
