package commitlog

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora/internal/batch"
	"github.com/diaspora-streams/diaspora/internal/disk/disktest"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestEachCallFailsOnce makes each kind of call fail once, at each of its first 200 positions, with
// each error. Meanwhile a program continues to run, and opens the log again when it must. Whatever
// happens afterwards, including a power cut, nothing acknowledged may be lost.
//
// One program covers many positions. They are so far apart that the effects of one fault are over
// when the next one comes. Several programs together cover each position once.
func TestEachCallFailsOnce(t *testing.T) {
	t.Parallel()
	const positions, apart = 200, 10
	calls := []string{"make", "syncparent", "list", "open", "create", "rename", "remove", "syncdir", "read", "write", "truncate", "sync", "size", "close"}
	disktest.EachFault(t, calls, []error{syscall.EIO, syscall.ENOSPC}, func(t *testing.T, call string, fault error) {
		hits := int64(0)
		for first := range testkit.Fewer(apart) {
			for _, sync := range []bool{false, true} {
				f := faulty{call: call, fault: fault, first: int64(first), apart: apart, positions: positions}
				if err := f.run(sync); err != nil {
					t.Errorf("sync %v, with the calls %d, %d, ... failing: %v", sync, first, first+apart, err)
				}
				hits += f.hits.Load()
			}
		}
		if hits == 0 {
			t.Error("no call has failed")
		}
	})
}

// faulty runs a program in which the calls first, first+apart, first+2*apart and so on fail, up to
// the call number positions.
type faulty struct {
	call                    string
	fault                   error
	first, apart, positions int64
	seen, hits              atomic.Int64
}

func (f *faulty) run(sync bool) error {
	rng := rand.New(rand.NewPCG(uint64(f.first), 2))
	fsys := disktest.New()
	if err := errors.Join(fsys.Make(), fsys.SyncParent()); err != nil {
		return err
	}
	writes := atomic.Int64{}
	fsys.Fault(func(call, _ string) error {
		if f.call == "truncate" && call == "write" && writes.Add(1)%5 == 0 {
			return io.ErrShortWrite // a truncate follows
		}
		if call != f.call {
			return nil
		}
		if at := f.seen.Add(1) - 1; at%f.apart == f.first && at < f.positions {
			f.hits.Add(1)
			return f.fault
		}
		return nil
	})
	h := &history{sync: sync, clock: newClock()}
	check := func() error {
		if err := h.clone().check(fsys.Kill()); err != nil {
			return fmt.Errorf("after a kill: %w", err)
		}
		if !sync && f.call == "syncdir" {
			// Without Sync, a log continues to use a directory whose sync has failed. A power cut
			// may then lose what was acknowledged, which is allowed.
			return nil
		}
		if err := h.afterCut().check(fsys.Cut(rng)); err != nil {
			return fmt.Errorf("after a power cut: %w", err)
		}
		return nil
	}
	var l *Log
	open := func() (err error) {
		for range 50 {
			if l, err = Open(h.options(fsys)); err == nil {
				h.opens++
				after := h.clone()
				after.clock = h.clock
				if err = after.compare(l); err == nil {
					*h = *after
					return nil
				}
				if !errors.Is(err, f.fault) {
					return err
				}
			}
		}
		return err
	}
	if err := open(); err != nil {
		return err
	}
	sequence := int32(0)
	checked := int64(0)
	// Some calls are rare, so a program may not reach the last position.
	for step := 0; step < 800 && f.seen.Load() < f.positions; step++ {
		i := len(h.batches)
		p := nobody
		if step%2 == 0 {
			for _, known := range l.Producers() {
				sequence = known.LastSequence + 1
			}
			p = from{7, 0, sequence}
		}
		a := attempt{from: p, value: fmt.Sprint(i, " ", strings.Repeat("x", i*i%500)), epoch: h.opens}
		h.batches = append(h.batches, a)
		b := newBatch(p, a.values()...)
		hd, _ := batch.ParseHeader(b)
		got, err := l.Append(b, hd, h.opens)
		if err == nil {
			a.state, a.offset, a.bytes = acknowledged, got.BaseOffset, b
			h.batches[i] = a
			h.end = max(h.end, a.last()+1)
			if sync {
				h.safe = h.end
			}
		}
		switch step % 16 {
		case 3:
			h.clock.Add(time.Second)
			h.started = max(h.started, l.End())
			from := l.Start()
			if err := l.Expire(20*time.Second, -1); err == nil && l.Start() > from {
				h.start = l.Start()
			}
		case 6:
			end := h.end
			if l.save() == nil {
				h.safe = max(h.safe, end)
			}
		case 9:
			l.Maintain()
		case 12:
			from := l.Start()
			before := from + rng.Int64N(l.End()-from+1)
			h.started = max(h.started, before)
			if start, err := l.DeleteRecords(before); err == nil && before > from {
				h.start = start
			}
		}
		l.tasks.Wait()
		if hits := f.hits.Load(); hits > checked {
			checked = hits
			if err := check(); err != nil {
				return err
			}
		}
		if step%10 == 9 || errors.Is(err, ErrFailed) {
			if l.Close() == nil && err == nil {
				h.safe = h.end
			}
			if err := open(); err != nil {
				return err
			}
		}
	}
	l.Close()
	return check()
}

// TestFailedSyncThenRestart makes a sync fail, together with the calls that clean up after it, at each of the
// first positions. As on Linux, what was not synced then looks as if it were: no later sync writes it, and another
// process on the same machine can read it. The log is opened again and takes another batch. After a power cut
// nothing that was acknowledged may be missing, or without Sync, the log must at least open.
func TestFailedSyncThenRestart(t *testing.T) {
	t.Parallel()
	for _, call := range []string{"sync", "syncdir"} {
		for at := range 30 {
			for variant := range 8 {
				also, synced := variant/2, variant%2 == 0
				fsys := disktest.New()
				testkit.Must(t, errors.Join(fsys.Make(), fsys.SyncParent()))
				fsys.Fault(disktest.FailTogether(call, at, also))
				h := &history{sync: synced, clock: newClock()}
				var acknowledged []Appended
				var start, wanted int64
				for restart, batches := range []int{16, 1} {
					l, err := Open(h.options(fsys))
					for n := 0; err == nil && n < batches; n++ {
						b := plain(len(acknowledged), 400)
						if a, err := l.Append(b, header(t, b), int32(restart+1)); err == nil {
							acknowledged = append(acknowledged, a)
						}
						l.tasks.Wait()
						if n%5 == 3 || batches == 1 {
							wanted = min(max(wanted, int64(n)), l.End())
							if _, err := l.DeleteRecords(wanted); err == nil {
								start = max(start, wanted)
							}
							l.Maintain()
						}
					}
					if err == nil && restart == 0 {
						l.Close()
					}
					fsys = fsys.Kill()
				}
				rng := rand.New(rand.NewPCG(uint64(at), uint64(variant)))
				for range 20 {
					l, err := Open(h.options(fsys.Cut(rng)))
					if err == nil && synced {
						if l.Start() < start {
							err = fmt.Errorf("the log starts at %d, want %d", l.Start(), start)
						}
						for _, a := range acknowledged {
							if _, readErr := l.Read(nil, a.BaseOffset, 1, true); a.BaseOffset >= l.Start() && readErr != nil {
								err = errors.Join(err, readErr)
							}
						}
						if n := len(acknowledged); n > 0 && acknowledged[n-1].BaseOffset >= l.End() {
							err = errors.Join(err, fmt.Errorf("the log ends at %d, want %d", l.End(), acknowledged[n-1].BaseOffset+1))
						}
					}
					if err != nil {
						t.Errorf("%s %d fails with %d calls after it (sync %v): after a power cut: %v", call, at, also, synced, err)
						break
					}
					l.Discard()
				}
			}
		}
	}
}
