package spool

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/disk/disktest"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// The crash test runs a program on the model of the file system. At each call of the file system it
// simulates several power cuts and the death of the process. It opens the spool in each resulting
// state and checks that every guarantee holds. In some of these states it lets the program
// continue, and crash again.

// history is what the program knows of its events. Event n has the ID n.
type history struct {
	states []eventState
}

type eventState byte

const (
	tried    eventState = iota // it may be there, but only whole
	durable                    // Append returned nil: it must be there
	sent                       // Ack was called: it may come again
	aside                      // Quarantine was called: it may come again
	putAside                   // Quarantine returned nil: it is in the quarantine, and only a power cut may make it come again
)

func (h *history) clone() *history { return &history{slices.Clone(h.states)} }

// check opens the spool that a crash has left and compares it with the guarantees.
func (h *history) check(fsys *disktest.Model) error {
	s, err := Open(context.Background(), crashOptions(fsys))
	if err != nil {
		return err
	}
	defer s.Close()
	return h.compare(s, fsys)
}

func crashOptions(fsys *disktest.Model) Options {
	return Options{Dir: "model", FS: fsys, SegmentBytes: 1 << 10, MaxBytes: 1 << 20, Subject: "ada"}
}

func crashEntry(n int) Entry {
	return Entry{Topic: "t", ID: strconv.Itoa(n), Value: []byte(strings.Repeat(strconv.Itoa(n)+" ", (n*n*7)%150))}
}

// compare checks the guarantees.
func (h *history) compare(s *Spool, fsys FS) error {
	records, err := readAll(s)
	if err != nil {
		return err
	}
	seen := make([]bool, len(h.states))
	last := -1
	for _, r := range records {
		n, err := strconv.Atoi(r.ID)
		if err != nil || n >= len(h.states) || !reflect.DeepEqual(r.Entry, crashEntry(n)) {
			return fmt.Errorf("%+v was never appended", r)
		}
		if n <= last {
			return fmt.Errorf("event %d came after %d", n, last)
		}
		last, seen[n] = n, true
	}
	aside, err := readQuarantine(fsys)
	if err != nil {
		return err
	}
	for n, state := range h.states {
		if state == durable && !seen[n] {
			return fmt.Errorf("event %d is lost", n)
		}
		if state == putAside && !aside[n] {
			return fmt.Errorf("event %d is not in the quarantine", n)
		}
	}
	if st := s.Stats(); st.Damaged != 0 || st.Dropped != 0 {
		return fmt.Errorf("%d events are said to be damaged", st.Damaged)
	}
	return nil
}

// readAll reads all pending entries. Its context has ended, so Next returns without waiting.
func readAll(s *Spool) ([]Record, error) {
	over, cancel := context.WithCancel(context.Background())
	cancel()
	var all []Record
	for {
		records, err := s.Next(over, 1000, 1<<20)
		if errors.Is(err, context.Canceled) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		all = append(all, records...)
	}
}

// readQuarantine returns the IDs of the entries in the quarantine.
func readQuarantine(fsys FS) (map[int]bool, error) {
	infos, err := fsys.List()
	if err != nil {
		return nil, err
	}
	ids := map[int]bool{}
	for _, info := range infos {
		if _, ok := parseQuarantineName(info.Name()); !ok {
			continue
		}
		content, err := disk.ReadFile(fsys, info.Name(), 1<<20)
		if err != nil {
			return nil, err
		}
		for line := range strings.SplitSeq(string(content), "\n") {
			if p, err := parsePoison([]byte(line)); err == nil && p.Entry != nil {
				n, err := strconv.Atoi(p.Entry.ID)
				if err != nil || !reflect.DeepEqual(*p.Entry, crashEntry(n)) {
					return nil, fmt.Errorf("quarantined %+v was never appended", p.Entry)
				}
				ids[n] = true
			}
		}
	}
	return ids, nil
}

// crasher runs programs and lets them crash.
type crasher struct {
	rng    *rand.Rand
	states *atomic.Int64 // states that were checked
	limit  int64
	skip   func(site string) bool // see disktest.Model.SkipSyncs
	err    error                  // the first broken guarantee
}

// A crash is the state that a crash has left.
type crash struct {
	fsys    *disktest.Model
	history *history
	kind    string
	at      string
}

const (
	crashDepth   = 3  // how often a program continues after a crash
	cutsPerCall  = 4  // power cuts simulated at each call
	goOnOneIn    = 24 // the program continues in one of so many states,
	goOnUnsynced = 3  // and in one of so many if the process died before it synced the directory
	programSteps = 40
)

// run runs a program on a file system, then checks the states that its crashes have left.
func (c *crasher) run(fsys *disktest.Model, h *history, depth, steps int) {
	var crashes []crash
	var mu sync.Mutex                                // guards h for observe, which other goroutines call
	cuts := rand.New(rand.NewPCG(c.rng.Uint64(), 3)) // used by observe
	fsys.SkipSyncs(c.skip)
	fsys.Observe(func(call, name string, now disktest.Moment) {
		if !disktest.Changes(call) {
			return // changes nothing, so the state was checked at the call before
		}
		mu.Lock()
		defer mu.Unlock()
		at := call + " " + name
		for range cutsPerCall {
			crashes = append(crashes, crash{now.Cut(cuts), h.clone(), "power cut", at})
		}
		crashes = append(crashes, crash{now.Kill(), h.clone(), "kill", at})
	})
	err := c.program(fsys, h, &mu, steps)
	fsys.Observe(nil)
	crashes = append(crashes, crash{fsys.Cut(cuts), h.clone(), "power cut", "the end"})
	if err != nil && c.err == nil {
		c.err = err
	}
	for _, crash := range crashes {
		if c.err != nil || c.states.Add(1) > c.limit {
			return
		}
		oneIn := goOnOneIn
		if crash.kind == "kill" && strings.HasPrefix(crash.at, "syncdir") {
			oneIn = goOnUnsynced
		}
		if depth < crashDepth && c.rng.IntN(oneIn) == 0 {
			c.run(crash.fsys, crash.history, depth+1, 1+c.rng.IntN(6))
			continue
		}
		if err := crash.history.check(crash.fsys); err != nil {
			c.err = fmt.Errorf("%s before %s, depth %d: %w", crash.kind, crash.at, depth, err)
		}
	}
}

// program appends, reads, acknowledges and quarantines entries, and reopens the spool.
func (c *crasher) program(fsys *disktest.Model, h *history, mu *sync.Mutex, steps int) error {
	s, err := Open(context.Background(), crashOptions(fsys))
	if err != nil {
		return err
	}
	defer func() { s.Close() }()
	if err := h.compare(s, fsys); err != nil {
		return err
	}
	s.Rewind()
	set := func(n int, state eventState) {
		mu.Lock()
		defer mu.Unlock()
		h.states[n] = state
	}
	try := func() int {
		mu.Lock()
		defer mu.Unlock()
		h.states = append(h.states, tried)
		return len(h.states) - 1
	}
	ctx := context.Background()
	for range steps {
		switch c.rng.IntN(12) {
		default: // one call, one or more events
			from := len(h.states)
			var entries []Entry
			for range 1 + c.rng.IntN(3) {
				entries = append(entries, crashEntry(try()))
			}
			if err := s.Append(ctx, entries...); err != nil {
				return err
			}
			for i := range entries {
				set(from+i, durable)
			}
		case 0, 1: // several calls at once
			var wg sync.WaitGroup
			for range 1 + c.rng.IntN(4) {
				n := try()
				wg.Add(1)
				err := s.AppendAsync(context.Background(), crashEntry(n), func(err error) {
					if err == nil {
						set(n, durable)
					}
					wg.Done()
				})
				if err != nil {
					wg.Done()
				}
			}
			wg.Wait()
		case 2, 3, 4, 5: // send some
			records, err := s.Next(over(), 1+c.rng.IntN(8), 1<<20)
			if errors.Is(err, context.Canceled) {
				continue
			}
			if err != nil {
				return err
			}
			if c.rng.IntN(3) == 0 {
				c.rng.Shuffle(len(records), func(i, j int) { records[i], records[j] = records[j], records[i] })
			}
			for _, r := range records {
				n, _ := strconv.Atoi(r.ID)
				switch c.rng.IntN(12) {
				case 0: // the cluster never answers
				case 1:
					set(n, aside)
					if err := s.Quarantine(r, "poison"); err != nil {
						return err
					}
					set(n, putAside)
				default:
					set(n, sent)
					if err := s.Ack(r.Position); err != nil {
						return err
					}
				}
			}
		case 6:
			s.Rewind()
		case 7:
			if err := s.Close(); err != nil {
				return err
			}
			if s, err = Open(context.Background(), crashOptions(fsys)); err != nil {
				return err
			}
		}
	}
	return nil
}

func over() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

var crashProgram = disktest.Program(func(seed uint64, counted *atomic.Int64, states int64, skip func(site string) bool) error {
	c := crasher{rng: rand.New(rand.NewPCG(seed, 1)), states: counted, limit: states, skip: skip}
	c.run(disktest.New(), &history{}, 0, programSteps)
	return c.err
})

// TestCrashStates checks the main guarantee: entries for which Append has returned nil are there
// after any crash.
func TestCrashStates(t *testing.T) {
	crashProgram.Keeps(t, testkit.Scaled(t, "SPOOL_CRASH_STATES", 100_000))
}

// TestEachSyncIsNeeded disables one call of Sync after the other, identified by its source line,
// and fails if the crash test does not find a broken guarantee then.
func TestEachSyncIsNeeded(t *testing.T) { crashProgram.MissesEachSync(t, 5_000, 200_000) }
