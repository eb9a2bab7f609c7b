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
	"github.com/diaspora-streams/diaspora/internal/longtest"
)

// TestEachCallFailsOnce makes each kind of call fail once, at each of its first positions, with
// each error. The program continues afterwards, and opens the journal again when it accepts no more
// entries. Whatever happens, nothing acknowledged may be lost.
func TestEachCallFailsOnce(t *testing.T) {
	t.Parallel()
	positions := longtest.Scaled(t, "JOURNAL_FAULTS", 30)
	calls := []string{"make", "syncparent", "syncdir", "list", "open", "create", "rename", "remove", "read", "write", "truncate", "sync", "size", "close"}
	for _, call := range calls {
		for _, fault := range []error{syscall.EIO, syscall.ENOSPC, io.ErrShortWrite} {
			if fault == io.ErrShortWrite && call != "write" {
				continue
			}
			t.Run(fmt.Sprint(call, " ", fault), func(t *testing.T) {
				t.Parallel()
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
				if hits < positions { // the others have fewer calls
					t.Errorf("%d faults, want at least %d", hits, positions)
				}
			})
		}
	}
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
