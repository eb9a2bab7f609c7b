package commitlog

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora/internal/batch"
	"github.com/diaspora-streams/diaspora/internal/disk/disktest"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// The crash test runs a program on the model of the file system. At each call of the file system,
// it simulates power cuts in several ways and the death of the process. It opens the log in each
// resulting state and checks the guarantees. From some states the program continues and fails
// again.

// history is what the program knows about its log.
type history struct {
	sync    bool
	batches []attempt
	start   int64 // the start for which DeleteRecords or Expire has returned nil
	started int64 // the start that was requested: the log may start there
	end     int64 // the highest End that was observed
	safe    int64 // records before this offset survive a power cut; with Sync it equals end
	opens   int32
	cut     bool // the power failed, and no program has checked the remaining state yet
	clock   *testkit.Clock
}

// attempt is a batch that the program has appended.
type attempt struct {
	from   from
	value  string
	state  attemptState
	offset int64  // if acknowledged
	bytes  []byte // if acknowledged: as it is stored
	epoch  int32
}

type attemptState byte

const (
	tried        attemptState = iota // it may be there, but only completely
	acknowledged                     // Append returned nil
	gone                             // a log was opened without it, so it must not come back
)

func (h *history) clone() *history {
	c := *h
	c.batches = slices.Clone(h.batches)
	c.clock = testkit.NewClock(h.clock.Now())
	return &c
}

func (h *history) options(fsys *disktest.Model) Options {
	return Options{FS: fsys.Sub("t-0"), SegmentBytes: 1500, Sync: h.sync, Now: h.clock.Now}
}

func (h *history) afterCut() *history {
	c := h.clone()
	c.cut = true
	return c
}

// check opens the log after a crash and compares it with the history.
func (h *history) check(fsys *disktest.Model) error {
	l, err := Open(h.options(fsys))
	if err != nil {
		return err
	}
	defer l.Discard()
	if err := h.compare(l); err != nil {
		return err
	}
	return h.retry(l)
}

// compare checks what is in the log, and records what is missing.
func (h *history) compare(l *Log) error {
	safe := h.end
	if h.cut {
		safe = h.safe
	}
	start, end := l.Start(), l.End()
	if start < h.start || start > max(h.started, h.start) {
		return fmt.Errorf("it starts at %d, want %d to %d", start, h.start, h.started)
	}
	if end < safe || end < start {
		return fmt.Errorf("it ends at %d, starts at %d, and ended at %d", end, start, safe)
	}
	stored, err := readAll(l, start)
	if err != nil {
		return err
	}
	values := map[string]int{}
	for i, a := range h.batches {
		values[a.value] = i
	}
	found := map[int]bool{}
	for _, b := range stored {
		hd, _ := batch.ParseHeader(b)
		value, n := "", 0
		if err := batch.Records(b, func(r batch.Record) bool { value = string(r.Value); n++; return true }); err != nil {
			return err
		}
		i, ok := values[value]
		if !ok || n == 0 || hd.ProducerID != h.batches[i].from.id || found[i] {
			return fmt.Errorf("%.9q at %d was never appended, or twice", value, hd.BaseOffset)
		}
		found[i] = true
		switch a := h.batches[i]; {
		case a.state == gone:
			return fmt.Errorf("%.9q at %d has come back", value, hd.BaseOffset)
		case a.state == acknowledged && (a.offset != hd.BaseOffset || !bytes.Equal(a.bytes, b)):
			return fmt.Errorf("%.9q at %d was at %d, or had other bytes", value, hd.BaseOffset, a.offset)
		case hd.LeaderEpoch != a.epoch || l.EpochOf(hd.LastOffset()) != a.epoch:
			return fmt.Errorf("%.9q at %d has epochs %d and %d, want %d", value, hd.BaseOffset, hd.LeaderEpoch, l.EpochOf(hd.LastOffset()), a.epoch)
		}
	}
	for i, a := range h.batches {
		switch {
		case found[i] || a.state == gone:
		case a.state == acknowledged && a.offset < safe && a.last() >= start:
			return fmt.Errorf("%.9q at %d is lost; the log is %d to %d", a.value, a.offset, start, end)
		case a.state == tried && start == h.start || a.state == acknowledged && a.offset >= end:
			h.batches[i].state = gone
		}
	}
	h.end = end
	h.started = max(h.started, start)
	if h.sync {
		h.safe = end
	}
	h.safe = min(h.safe, end)
	h.cut = false
	return nil
}

func (a attempt) last() int64 {
	hd, _ := batch.ParseHeader(a.bytes)
	return a.offset + int64(hd.LastOffsetDelta)
}

// retry sends the last acknowledged batch of each producer again, like a client that has not
// received the response, and then the next one.
func (h *history) retry(l *Log) error {
	last := map[int64]attempt{}
	for _, a := range h.batches {
		if a.from.id >= 0 && a.state == acknowledged && a.offset < h.end {
			last[a.from.id] = a
		}
	}
	for _, id := range slices.Sorted(maps.Keys(last)) {
		a := last[id]
		b := newBatch(a.from, a.values()...)
		hd, _ := batch.ParseHeader(b)
		got, err := l.Append(b, hd, h.opens+1)
		if err != nil || !got.Duplicate || got.BaseOffset != a.offset {
			return fmt.Errorf("%.9q again: %+v, %v, want a duplicate at %d", a.value, got, err, a.offset)
		}
	}
	for _, p := range l.Producers() {
		b := newBatch(from{p.ID, p.Epoch, p.LastSequence + 1}, "next")
		hd, _ := batch.ParseHeader(b)
		end := l.End()
		if got, err := l.Append(b, hd, h.opens+1); err != nil || got.Duplicate || got.BaseOffset != end {
			return fmt.Errorf("next batch of producer %d: %+v, %v, want it at %d", p.ID, got, err, end)
		}
	}
	return nil
}

// values are the values of the batch's records; only the last one is not empty.
func (a attempt) values() []string {
	n := len(a.value) % 3
	return append(make([]string, n), a.value)
}

// crasher runs programs and crashes them.
type crasher struct {
	rng    *rand.Rand
	states *atomic.Int64 // number of states that were checked
	limit  int64
	skip   func(site string) bool
	err    error // the first violation
	trace  []string
}

// crash is the state that a crash leaves.
type crash struct {
	fsys    *disktest.Model
	history *history
	what    string
}

const (
	crashDepth   = 3  // how often a program continues after a crash
	cutOneIn     = 1  // one in this many calls has a power cut
	killOneIn    = 2  // one in this many calls has a kill
	goOnOneIn    = 16 // one in this many states is continued from
	goOnUnsynced = 2  // the same, for states in which a process died before it synced the directory
	programSteps = 30
)

// run runs a program on a file system, then checks the states that its crashes left.
func (c *crasher) run(fsys *disktest.Model, h *history, depth, steps int) {
	var crashes []crash
	var mu sync.Mutex                                // guards h, which the observer reads from other goroutines
	cuts := rand.New(rand.NewPCG(c.rng.Uint64(), 3)) // used only by the observer, which handles one call at a time
	fsys.SkipSyncs(c.skip)
	observe := func(call, name string, now disktest.Moment) {
		if !disktest.Changes(call) {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if cuts.IntN(cutOneIn) == 0 {
			crashes = append(crashes, crash{now.Cut(cuts), h.afterCut(), "power cut before " + call + " " + name})
		}
		if cuts.IntN(killOneIn) == 0 {
			crashes = append(crashes, crash{now.Kill(), h.clone(), "kill before " + call + " " + name})
		}
	}
	fsys.Observe(observe)
	err := c.program(fsys, h, &mu, steps)
	fsys.Observe(nil)
	crashes = append(crashes, crash{fsys.Cut(cuts), h.afterCut(), "power cut at the end"})
	if err != nil && c.err == nil {
		c.err = err
	}
	for _, crash := range crashes {
		if c.err != nil || c.states.Add(1) > c.limit {
			return
		}
		oneIn := goOnOneIn
		if strings.HasPrefix(crash.what, "kill before syncdir") {
			oneIn = goOnUnsynced
		}
		if depth < crashDepth && c.rng.IntN(oneIn) == 0 {
			c.trace = append(c.trace, crash.what)
			c.run(crash.fsys, crash.history, depth+1, 1+c.rng.IntN(6))
			if c.err != nil {
				return
			}
			c.trace = c.trace[:len(c.trace)-1]
			continue
		}
		if err := crash.history.check(crash.fsys); err != nil {
			c.err = fmt.Errorf("%v %s, depth %d, sync %v: %w", c.trace, crash.what, depth, crash.history.sync, err)
		}
	}
}

// program appends, from one and from several goroutines, removes records, calls Maintain, and opens
// the log again.
func (c *crasher) program(fsys *disktest.Model, h *history, mu *sync.Mutex, steps int) error {
	do := func(f func()) {
		mu.Lock()
		defer mu.Unlock()
		f()
	}
	var l *Log
	reopen := func() (err error) {
		if l, err = Open(h.options(fsys)); err != nil {
			return err
		}
		after := h.clone() // reading may write an index and so call the observer
		after.opens++
		err = after.compare(l)
		do(func() { after.clock = h.clock; *h = *after })
		l.AssignEpoch(h.opens)
		return err
	}
	defer func() {
		if l != nil {
			l.tasks.Wait() // its background tasks use the same model as the next log
		}
	}()
	if err := reopen(); err != nil {
		return err
	}
	sequences := map[int64]int32{}
	for _, p := range l.Producers() {
		sequences[p.ID] = p.LastSequence + 1
	}
	add := func(p from) func() error {
		var i int
		var a attempt
		do(func() {
			i = len(h.batches)
			v := fmt.Sprint(i, " ")
			a = attempt{from: p, value: v + strings.Repeat("x", i*i*7%4*200), epoch: h.opens}
			h.batches = append(h.batches, a)
		})
		b := newBatch(p, a.values()...)
		hd, _ := batch.ParseHeader(b)
		return func() error {
			got, err := l.Append(b, hd, h.opens)
			if err != nil {
				return err
			}
			do(func() {
				a := &h.batches[i]
				a.state, a.offset, a.bytes = acknowledged, got.BaseOffset, b
				h.end = max(h.end, a.last()+1)
				if h.sync {
					h.safe = h.end
				}
			})
			return nil
		}
	}
	for range steps {
		switch c.rng.IntN(14) {
		default:
			p := nobody
			if c.rng.IntN(2) == 0 {
				id := int64(c.rng.IntN(3))
				p = from{id, 0, sequences[id]}
			}
			send := add(p)
			if p.id >= 0 {
				sequences[p.id] += int32(len(h.batches[len(h.batches)-1].values()))
			}
			if err := send(); err != nil {
				return err
			}
		case 0, 1: // several appends concurrently
			var wg sync.WaitGroup
			errs := make([]error, 1+c.rng.IntN(4))
			for i := range errs {
				send := add(nobody)
				wg.Go(func() { errs[i] = send() })
			}
			wg.Wait()
			if err := errors.Join(errs...); err != nil {
				return err
			}
		case 2: // delete records
			from := l.Start()
			before := from + c.rng.Int64N(h.end-from+1)
			do(func() { h.started = max(h.started, before) })
			start, err := l.DeleteRecords(before)
			if err != nil || start != before {
				return fmt.Errorf("DeleteRecords(%d): %d, %v", before, start, err)
			}
			if before > from { // otherwise nothing is written
				do(func() { h.start = start })
			}
		case 3: // let segments expire
			keep, most := 10*time.Second, int64(-1)
			if c.rng.IntN(2) == 0 {
				keep, most = -1, int64(c.rng.IntN(5000))
			}
			started := h.started
			do(func() { h.started = h.end })
			from := l.Start()
			if err := l.Expire(keep, most); err != nil {
				return err
			}
			start := l.Start()
			do(func() {
				h.started = max(started, start)
				if start > from {
					h.start = start
				}
			})
		case 4:
			h.clock.Add(time.Duration(c.rng.IntN(12)) * time.Second)
		case 5:
			if err := l.Maintain(); err != nil {
				return err
			}
		case 6: // as Maintain does for a busy log
			end := h.end
			if err := l.save(); err != nil {
				return err
			}
			do(func() { h.safe = max(h.safe, end) })
		case 7:
			if err := l.Close(); err != nil {
				return err
			}
			do(func() { h.safe = h.end })
			if err := reopen(); err != nil {
				return err
			}
		}
	}
	return nil
}

var crashProgram = disktest.Program(func(seed uint64, counted *atomic.Int64, states int64, skip func(site string) bool) error {
	c := crasher{rng: rand.New(rand.NewPCG(seed, 1)), states: counted, limit: states, skip: skip}
	fsys := disktest.New()
	c.err = errors.Join(fsys.Make(), fsys.SyncParent()) // the parent directory is the caller's responsibility
	c.run(fsys, &history{sync: seed%2 == 0, clock: newClock()}, 0, programSteps)
	return c.err
})

// TestCrashStates checks the guarantee itself: batches for which Append has returned nil are there
// after any crash, and removed records stay removed.
func TestCrashStates(t *testing.T) {
	crashProgram.Keeps(t, testkit.Scaled(t, "LOG_CRASH_STATES", 100_000))
}

// TestEachSyncIsNeeded disables one call of Sync after another, identified by its source lines, and
// requires that the crash test then finds a violation. For some calls that takes a million
// states, so all of them are required only in a long run, with LOG_CRASH_STATES.
func TestEachSyncIsNeeded(t *testing.T) {
	sites := crashProgram.Syncs(t, testkit.Fewer(20_000), func(string) string { return syncSite() })
	long := os.Getenv("LOG_CRASH_STATES") != ""
	states := testkit.Fewer(8_000)
	if long {
		states = 3_000_000
	}
	missed := 0
	for _, site := range sites {
		t.Run(site, func(t *testing.T) {
			checked, err := crashProgram.Crash(states, func(string) bool { return syncSite() == site })
			if err != nil {
				missed++
			} else if long {
				t.Fatalf("%d states, and nobody misses the sync", checked)
			}
			t.Logf("after %d states: %v", checked, err)
		})
	}
	if least := testkit.Fewer(6); missed < least {
		t.Errorf("%d of %d syncs are missed, want %d at least", missed, len(sites), least)
	}
}

// syncSite returns the line of package disk that called a sync of the model, if any, and the last
// two lines of this package in the call stack.
func syncSite() string {
	var pcs [32]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs[:])])
	var site []string
	for len(site) < 3 {
		f, more := frames.Next()
		pkg, function := path.Split(f.Function)
		name, _, _ := strings.Cut(function, ".")
		at := fmt.Sprintf("%s:%d", path.Base(f.File), f.Line)
		switch {
		case name == "disk" && strings.HasSuffix(pkg, "internal/") && len(site) == 0:
			site = append(site, at)
		case name == "commitlog" && !strings.HasSuffix(f.File, "_test.go"):
			if len(site) == 0 {
				site = append(site, "")
			}
			site = append(site, at)
		}
		if !more {
			break
		}
	}
	return strings.Join(site, " ")
}
