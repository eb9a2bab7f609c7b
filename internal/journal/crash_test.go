package journal

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/disk/disktest"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// The crash test runs a program on the model of the file system. At each call of the file system,
// it simulates power cuts in several ways and the death of the process. It opens the journal in
// each resulting state and checks what it loads. From some states the program continues and crashes
// again.

// history is what the program has appended to its journal.
type history struct {
	calls []call
	keys  map[string][]change // in the order of the calls
}

// call is one call of Append. The calls of one step run concurrently and have different keys.
type call struct {
	step  int
	keys  []string
	acked bool // it must survive a kill
	safe  bool // it must survive a power cut
}

// change is the effect of a call on a key.
type change struct {
	call    int
	deleted bool
}

func (h *history) clone() *history {
	c := &history{slices.Clone(h.calls), maps.Clone(h.keys)}
	for key, changes := range c.keys {
		c.keys[key] = slices.Clone(changes)
	}
	return c
}

// add adds a call that changes the keys.
func (h *history) add(step int, rng *rand.Rand, keys ...string) (n int, entries []Entry) {
	n = len(h.calls)
	h.calls = append(h.calls, call{step: step, keys: keys})
	for _, key := range keys {
		deleted := rng.IntN(5) == 0
		h.keys[key] = append(h.keys[key], change{n, deleted})
		e := Entry{Key: []byte(key)}
		if !deleted {
			e.Value = crashValue(n)
		}
		entries = append(entries, e)
	}
	return n, entries
}

// crashValue is the value that call n sets: usually short, sometimes several sectors long.
func crashValue(n int) []byte {
	size := n * 7 % 60
	if n%11 == 0 {
		size = 1500
	}
	return []byte(strconv.Itoa(n) + strings.Repeat("v", size))
}

// check opens the journal after a crash, and compares it with the history.
func (h *history) check(left crash) error {
	j, state, err := openState(left.options())
	if err != nil {
		return err
	}
	return errors.Join(h.compare(state, left.power), j.Close())
}

// compare checks the guarantees: everything acknowledged is there, each call is there completely or
// not at all, and none is there without those of the steps before it.
func (h *history) compare(state map[string]string, power bool) error {
	shown := map[string]int{} // for each key: the latest position in its history that the state can correspond to
	last := -1                // the last step that is certainly in the state
	for key, value := range state {
		i := slices.IndexFunc(h.keys[key], func(c change) bool { return !c.deleted && string(crashValue(c.call)) == value })
		if i < 0 {
			return fmt.Errorf("key %s has value %.10q, which was never appended", key, value)
		}
		shown[key] = i
		last = max(last, h.calls[h.keys[key][i].call].step)
	}
	for key, changes := range h.keys {
		if _, there := state[key]; there {
			continue
		}
		shown[key] = -1
		for i, c := range changes {
			if c.deleted {
				shown[key] = i
			}
		}
	}
	for n, c := range h.calls {
		there := 0
		for _, key := range c.keys {
			if at := shown[key]; at >= 0 && h.keys[key][at].call >= n {
				there++
			}
		}
		switch {
		case there == len(c.keys):
		case c.safe || c.acked && !power:
			return fmt.Errorf("call %d of step %d is lost: keys %v", n, c.step, c.keys)
		case c.step < last:
			return fmt.Errorf("call %d of step %d is lost, but one of step %d is there", n, c.step, last)
		case there > 0 && h.certain(n, state):
			return fmt.Errorf("of call %d only a part is there: keys %v", n, c.keys)
		}
	}
	return nil
}

// certain reports whether a key of call n still has the value that call n gave it.
func (h *history) certain(n int, state map[string]string) bool {
	for _, key := range h.calls[n].keys {
		if state[key] == string(crashValue(n)) {
			return true
		}
	}
	return false
}

// openState opens a journal and returns the state that it loads.
func openState(o Options) (*Journal, map[string]string, error) {
	state := map[string]string{}
	j, err := Open(o, func(e Entry) error {
		if e.Value == nil {
			delete(state, string(e.Key))
		} else {
			state[string(e.Key)] = string(e.Value)
		}
		return nil
	})
	return j, state, err
}

// crash is the state that a crash leaves.
type crash struct {
	fsys    *disktest.Model
	sync    bool
	history *history
	power   bool // it was a power cut
	at      string
}

func (c crash) options() Options { return crashOptions(c.fsys, c.sync) }

func crashOptions(fsys disk.FS, sync bool) Options {
	return Options{FS: fsys, Sync: sync, CompactBytes: 500}
}

const (
	crashDepth   = 3  // how often a program continues after a crash
	cutsPerCall  = 4  // power cuts at each call
	goOnOneIn    = 24 // one in this many states is continued from
	goOnUnsynced = 3  // the same, for states in which a process died before it synced the directory
	programSteps = 30
)

// crasher runs programs and crashes them.
type crasher struct {
	rng    *rand.Rand
	sync   bool
	states *atomic.Int64 // number of states that were checked
	limit  int64
	skip   func(site string) bool // see disktest.Model.SkipSyncs
	err    error                  // the first violation
}

// run runs a program on a file system, then checks the states that its crashes left.
func (c *crasher) run(fsys *disktest.Model, h *history, power bool, depth, steps int) {
	var crashes []crash
	var mu sync.Mutex                                // guards h, which observe reads from other goroutines
	cuts := rand.New(rand.NewPCG(c.rng.Uint64(), 3)) // used by observe
	fsys.SkipSyncs(c.skip)
	fsys.Observe(func(call, name string, now disktest.Moment) {
		if !disktest.Changes(call) {
			return // the state already existed at the call before
		}
		mu.Lock()
		defer mu.Unlock()
		at := call + " " + name
		then := h.clone()
		for range cutsPerCall {
			crashes = append(crashes, crash{now.Cut(cuts), c.sync, then, true, at})
		}
		crashes = append(crashes, crash{now.Kill(), c.sync, then, power, at})
	})
	compactions := 0
	fsys.Fault(func(call, name string) error {
		if call == "create" && strings.HasSuffix(name, snapshotSuffix+tempSuffix) {
			if compactions++; compactions%4 > 0 {
				return syscall.EIO // so that the log has several segments
			}
		}
		return nil
	})
	err := c.program(fsys, h, &mu, power, steps)
	fsys.Fault(nil)
	fsys.Observe(nil)
	crashes = append(crashes, crash{fsys.Cut(cuts), c.sync, h.clone(), true, "the end"})
	if err != nil && c.err == nil {
		c.err = err
	}
	for _, left := range crashes {
		if c.err != nil || c.states.Add(1) > c.limit {
			return
		}
		oneIn := goOnOneIn
		if !left.power && strings.HasPrefix(left.at, "sync") {
			oneIn = goOnUnsynced
		}
		if depth < crashDepth && c.rng.IntN(oneIn) == 0 {
			c.run(left.fsys, left.history.clone(), left.power, depth+1, 1+c.rng.IntN(8))
			continue
		}
		if err := left.history.check(left); err != nil {
			kind := "kill"
			if left.power {
				kind = "power cut"
			}
			c.err = fmt.Errorf("%s before %s, depth %d, sync %v: %w", kind, left.at, depth, c.sync, err)
		}
	}
}

// program appends, and opens the journal again.
func (c *crasher) program(fsys *disktest.Model, h *history, mu *sync.Mutex, power bool, steps int) error {
	j, state, err := openState(crashOptions(fsys, c.sync))
	if err != nil {
		return err
	}
	j.retryAfter = 0
	defer func() { j.Close() }()
	if err := h.compare(state, power); err != nil {
		return err
	}
	mu.Lock()
	c.settle(h, state)
	mu.Unlock()
	step := 0
	if n := len(h.calls); n > 0 {
		step = h.calls[n-1].step + 1
	}
	for ; steps > 0; steps, step = steps-1, step+1 {
		callers := 1
		switch c.rng.IntN(10) {
		case 0:
			if err := j.Close(); err != nil {
				return err
			}
			mu.Lock()
			for n := range h.calls {
				h.calls[n].safe = h.calls[n].safe || h.calls[n].acked
			}
			mu.Unlock()
			if j, _, err = openState(crashOptions(fsys, c.sync)); err != nil {
				return err
			}
			j.retryAfter = 0
		case 1, 2, 3:
			callers = 2 + c.rng.IntN(3)
		}
		var group sync.WaitGroup
		errs := make([]error, callers)
		for i := range callers {
			var keys []string
			for _, k := range c.rng.Perm(4)[:1+c.rng.IntN(3)] {
				keys = append(keys, fmt.Sprint("k", i, k))
			}
			mu.Lock()
			n, entries := h.add(step, c.rng, keys...)
			mu.Unlock()
			group.Go(func() {
				if errs[i] = j.Append(entries...); errs[i] == nil {
					mu.Lock()
					defer mu.Unlock()
					h.calls[n].acked, h.calls[n].safe = true, c.sync
				}
			})
		}
		group.Wait()
		if err := errors.Join(errs...); err != nil {
			return err
		}
	}
	return nil
}

// settle makes the state after a crash the history from here on: what it contains is durable, and
// everything else did not happen.
func (c *crasher) settle(h *history, state map[string]string) {
	calls := len(h.calls)
	keys := map[string][]change{}
	for key, value := range state {
		i := slices.IndexFunc(h.keys[key], func(c change) bool { return !c.deleted && string(crashValue(c.call)) == value })
		keys[key] = []change{h.keys[key][i]}
	}
	// Keep only those parts of the calls that the state contains.
	for n := range calls {
		h.calls[n].keys = nil
		h.calls[n].acked, h.calls[n].safe = true, true
	}
	for key, changes := range keys {
		n := changes[0].call
		h.calls[n].keys = append(h.calls[n].keys, key)
	}
	h.keys = keys
}

var crashProgram = disktest.Program(func(seed uint64, counted *atomic.Int64, states int64, skip func(site string) bool) error {
	c := crasher{rng: rand.New(rand.NewPCG(seed, 1)), sync: seed%2 == 0, states: counted, limit: states, skip: skip}
	c.run(disktest.New(), &history{keys: map[string][]change{}}, false, 0, programSteps)
	return c.err
})

// TestCrashStates checks the guarantees of the package after crashes.
func TestCrashStates(t *testing.T) {
	crashProgram.Keeps(t, testkit.Scaled(t, "JOURNAL_CRASH_STATES", 100_000))
}

// TestEachSyncIsNeeded disables one call of Sync after another, identified by its source line, and
// requires that the crash test then finds a violation.
func TestEachSyncIsNeeded(t *testing.T) { crashProgram.MissesEachSync(t, 20_000, 200_000) }
