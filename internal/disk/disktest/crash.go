package disktest

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// FailTogether returns a function for [Model.Fault]. It makes one call of the given kind fail, after
// as many others as at says, together with the first calls after it that change anything, such as
// those that clean up.
func FailTogether(call string, at, also int) func(call, name string) error {
	var mu sync.Mutex // guards the variables
	left := -1        // -1 until the first failure
	return func(c, name string) error {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case left < 0 && c == call && at > 0:
			at--
		case left < 0 && c == call:
			left = also
			return syscall.EIO
		case left > 0 && Changes(c):
			left--
			return syscall.EIO
		}
		return nil
	}
}

// Crash calls program with the seeds 1, 2, 3 and so on, concurrently on all processors. It stops
// when the programs have counted that many crash states, or when one returns an error, which means
// that a guarantee was broken. Crash returns how many states were checked until then. A program
// must return when the count is reached.
func Crash(states int, program func(seed uint64, counted *atomic.Int64) error) (checked int64, err error) {
	var counted, seeds atomic.Int64
	var mu sync.Mutex // guards checked and err
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for counted.Load() < int64(states) {
				seed := uint64(seeds.Add(1))
				broken := program(seed, &counted)
				if broken == nil {
					continue
				}
				mu.Lock()
				if err == nil {
					checked = min(counted.Load(), int64(states))
				}
				err = errors.Join(err, fmt.Errorf("seed %d: %w", seed, broken))
				mu.Unlock()
				counted.Store(int64(states)) // makes the others end as well
			}
		})
	}
	wg.Wait()
	if err == nil {
		checked = int64(states)
	}
	return checked, err
}

// Program is a program of a crash test, whose random choices follow from a seed. It adds the crash states
// that it has checked to counted, returns when states are counted, and has the disk skip the syncs for
// which skip returns true; see [Model.SkipSyncs].
type Program func(seed uint64, counted *atomic.Int64, states int64, skip func(site string) bool) error

// Crash runs the program until so many states are checked or a guarantee is broken.
func (p Program) Crash(states int, skip func(site string) bool) (checked int64, err error) {
	return Crash(states, func(seed uint64, counted *atomic.Int64) error { return p(seed, counted, int64(states), skip) })
}

// Keeps fails the test if the program breaks a guarantee within so many states.
func (p Program) Keeps(t *testing.T, states int) {
	t.Helper()
	checked, err := p.Crash(states, nil)
	if err != nil {
		t.Fatalf("after %d states: %v", checked, err)
	}
	t.Logf("%d states", checked)
}

// Misses fails the test if the program keeps its guarantees although syncs are skipped.
func (p Program) Misses(t *testing.T, states int, skip func(site string) bool) {
	t.Helper()
	checked, err := p.Crash(states, skip)
	if err == nil {
		t.Fatalf("%d states, and nobody misses the sync", checked)
	}
	t.Logf("after %d states: %v", checked, err)
}

// Syncs returns the places that sync within so many states, as site names them. There must be eight at least.
func (p Program) Syncs(t *testing.T, states int, site func(at string) string) []string {
	t.Helper()
	var mu sync.Mutex
	sites := map[string]bool{}
	if _, err := p.Crash(states, func(at string) bool {
		mu.Lock()
		defer mu.Unlock()
		sites[site(at)] = true
		return false
	}); err != nil {
		t.Fatal(err)
	}
	if len(sites) < 7 {
		t.Errorf("only these lines sync: %v", sites)
	}
	return slices.Sorted(maps.Keys(sites))
}

// MissesEachSync fails the test if the program does not break a guarantee when the syncs of one line are
// skipped, for each of the lines that sync within the first states.
func (p Program) MissesEachSync(t *testing.T, first, states int) {
	t.Helper()
	for _, site := range p.Syncs(t, first, func(at string) string { return at }) {
		t.Run(site, func(t *testing.T) { p.Misses(t, states, func(at string) bool { return at == site }) })
	}
}

// EachFault runs a parallel test for each kind of call with each error. Calls that write may also write less
// than they should.
func EachFault(t *testing.T, calls []string, faults []error, test func(t *testing.T, call string, fault error)) {
	for _, call := range calls {
		faults := faults
		if call == "write" {
			faults = append(slices.Clone(faults), io.ErrShortWrite)
		}
		for _, fault := range faults {
			t.Run(fmt.Sprint(call, " ", fault), func(t *testing.T) {
				t.Parallel()
				test(t, call, fault)
			})
		}
	}
}
