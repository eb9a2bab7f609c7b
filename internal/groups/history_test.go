package groups

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
	"pgregory.net/rapid"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestHistories runs random histories of a classic group. Members join, leave, crash, stop
// responding and commit. The disk is full at times. The coordinator is killed between requests, and
// before and after any write of the journal.
//
//   - No partition is assigned to two members both of which may commit.
//   - An acknowledged commit is there until the next one, whatever happens.
//   - A member that is in the last generation in the journal continues after a kill.
//   - In the end, without faults, the live members share all partitions.
func TestHistories(t *testing.T) {
	stats := &statistics{n: map[string]int{}}
	defer func() { t.Log(stats.n) }()
	for range testkit.Scaled(t, "GROUPS_HISTORIES", 1_000) / 100 {
		rapid.Check(t, func(rt *rapid.T) {
			steps := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) step {
				return step{rapid.SampledFrom(actions).Draw(rt, "action"), rapid.IntRange(0, histClients-1).Draw(rt, "client"), rapid.IntRange(0, 30).Draw(rt, "n")}
			}), 100, 200).Draw(rt, "steps")
			if err := runHistory(t, steps, stats); err != nil {
				rt.Fatal(err)
			}
		})
		if t.Failed() {
			return
		}
	}
}

const (
	histClients    = 4
	histPartitions = 6
)

var actions = []string{"pass", "run", "run", "run", "run", "run", "run", "run", "run", "commit", "commit", "commit", "commit", "wait", "wait", "silence", "leave", "crash", "kill", "kill before", "kill after", "full", "space"}

// statistics count what happened in the histories.
type statistics struct {
	mu sync.Mutex
	n  map[string]int
}

func (s *statistics) count(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n[what]++
}

type step struct {
	action string
	client int
	n      int
}

// history is a world with clients that run step by step.
type history struct {
	*world
	clients []*histClient
	conns   context.Context // context of the connections, which ends with a kill
	cut     context.CancelFunc
	stats   *statistics
	counter int64
	err     error
	acked   [histPartitions]int64
	maybe   [histPartitions][]int64 // commits after the acknowledged one, which may or may not have arrived
}

// histClient is a consumer with at most one request in flight.
type histClient struct {
	*consumer
	mu    sync.Mutex
	alive bool
	busy  bool
	owns  []int32 // the partitions that it believes to be assigned
	epoch int     // number of starts of the client; a response to an earlier start is ignored
}

func runHistory(t *testing.T, steps []step, stats *statistics) (err error) {
	synctest.Test(t, func(t *testing.T) {
		h := &history{world: newWorld(t, Config{}), stats: stats}
		h.connect()
		for i := range histClients {
			c := h.consumer("g")
			c.rebalance = 15 * time.Second
			if i < 2 {
				c.instance = kmsg.StringPtr(fmt.Sprint("i", i))
			}
			h.clients = append(h.clients, &histClient{consumer: c})
		}
		for p := range h.acked {
			h.acked[p] = -1
		}
		defer func() {
			h.cut()
			synctest.Wait()
		}()
		for i, s := range steps {
			h.step(s)
			if err = h.check(); err != nil {
				err = fmt.Errorf("step %d (%s %d %d): %w", i, s.action, s.client, s.n, err)
				return
			}
		}
		err = h.settle()
	})
	return err
}

func (h *history) connect() {
	h.conns, h.cut = context.WithCancel(h.Context())
}

func (h *history) step(s step) {
	c := h.clients[s.client]
	switch s.action {
	case "run":
		c.run(h)
	case "commit":
		c.commitSome(h, s.n)
	case "wait":
		time.Sleep(time.Duration(s.n) * 500 * time.Millisecond)
	case "silence":
		time.Sleep(11 * time.Second)
	case "leave":
		c.leave(h)
	case "crash":
		c.forget()
	case "kill":
		h.killNow()
	case "kill before", "kill after":
		h.store.mu.Lock()
		h.store.killAt = strings.TrimPrefix(s.action, "kill ")
		h.store.mu.Unlock()
	case "full":
		h.store.fail(errFull)
	case "space":
		h.store.fail(nil)
	}
	synctest.Wait()
	if h.dying() {
		h.stats.count("kills in a write")
		h.killNow()
	}
}

// dying reports whether the process was killed during the last step.
func (h *history) dying() bool {
	h.store.mu.Lock()
	defer h.store.mu.Unlock()
	return h.store.closed
}

func (h *history) killNow() {
	h.cut()
	synctest.Wait()
	h.stats.count("kills")
	var valid []*histClient
	for _, c := range h.clients {
		if h.mayCommit(c) && !h.dying() {
			valid = append(valid, c)
		}
	}
	h.kill()
	for _, c := range valid {
		if !h.mayCommit(c) {
			h.err = fmt.Errorf("a kill fences %s of generation %d", c.id, c.generation)
		}
	}
	h.connect()
	synctest.Wait()
}

// heard reports whether the client receives a response: its connection still exists, and the
// process has not been killed in the meantime.
func (c *histClient) heard(h *history, epoch int, conns context.Context) bool {
	return conns.Err() == nil && !h.dying() && c.epoch == epoch && c.alive
}

func (c *histClient) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.alive, c.busy, c.owns = false, false, nil
	c.epoch++
	c.id, c.generation = "", 0
}

// run makes the client do what a consumer does next: start, or send a heartbeat, and join if it has
// to.
func (c *histClient) run(h *history) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.busy {
		return
	}
	c.busy = true
	if !c.alive {
		c.alive, c.id, c.generation = true, "", 0
	}
	go c.proceed(h, c.epoch, h.conns, *c.consumer)
}

// proceed works on a copy, so that a client that has crashed receives nothing.
func (c *histClient) proceed(h *history, epoch int, conns context.Context, me consumer) {
	me.world = &world{TB: h.TB, Coordinator: h.Coordinator}
	done := func(f func()) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.epoch != epoch {
			return
		}
		if c.busy = false; c.heard(h, epoch, conns) {
			f()
		}
	}
	if me.generation > 0 {
		err := me.beat()
		if err == nil {
			done(func() { h.stats.count("heartbeats") })
			return
		}
		if !errors.Is(err, kerr.RebalanceInProgress) {
			done(func() { c.id, c.generation, c.owns = "", 0, nil })
			return
		}
	}
	req := me.joinRequest()
	resp := me.JoinGroup(conns, everything, req)
	if resp.ErrorCode == kerr.MemberIDRequired.Code {
		me.id = resp.MemberID
		resp = me.JoinGroup(conns, everything, me.joinRequest())
	}
	if conns.Err() != nil || resp.ErrorCode != 0 {
		retry := resp.ErrorCode == kerr.CoordinatorNotAvailable.Code || resp.ErrorCode == kerr.RebalanceInProgress.Code
		done(func() {
			c.owns = nil
			if c.generation = 0; !retry {
				c.id = ""
			}
		})
		return
	}
	me.id, me.generation, me.members, me.leader = resp.MemberID, resp.Generation, resp.Members, resp.LeaderID == resp.MemberID
	c.mu.Lock()
	if c.heard(h, epoch, conns) {
		c.owns, c.generation = nil, 0 // from here on it knows about the rebalance
		c.id = me.id
	}
	c.mu.Unlock()

	sync := kmsg.NewPtrSyncGroupRequest()
	sync.Version, sync.Group, sync.MemberID, sync.InstanceID, sync.Generation = 4, me.group, me.id, me.instance, me.generation
	if me.leader && !resp.SkipAssignment {
		for p := range histPartitions {
			i := p % len(me.members)
			for len(sync.GroupAssignment) <= i {
				a := kmsg.NewSyncGroupRequestGroupAssignment()
				a.MemberID = me.members[i].MemberID
				sync.GroupAssignment = append(sync.GroupAssignment, a)
			}
			sync.GroupAssignment[i].MemberAssignment = append(sync.GroupAssignment[i].MemberAssignment, byte(p))
		}
	}
	got := me.SyncGroup(conns, sync)
	done(func() {
		switch err := kerr.ErrorForCode(got.ErrorCode); {
		case err == nil:
			h.stats.count("assignments")
			c.generation = me.generation
			for _, p := range got.MemberAssignment {
				c.owns = append(c.owns, int32(p))
			}
		case errors.Is(err, kerr.UnknownMemberID), errors.Is(err, kerr.IllegalGeneration), errors.Is(err, kerr.FencedInstanceID):
			c.id, c.generation = "", 0
		default:
			c.generation = 0
		}
	})
}

// commitSome commits an offset of a partition that the client believes it owns.
func (c *histClient) commitSome(h *history, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.busy || !c.alive || len(c.owns) == 0 {
		return
	}
	partition := c.owns[n%len(c.owns)]
	h.counter++
	may := h.mayCommit(c)
	err := c.commit(partition, h.counter)
	if err == nil && !may {
		h.err = fmt.Errorf("a commit of generation %d was accepted", c.generation)
	}
	switch {
	case h.dying():
		h.maybe[partition] = append(h.maybe[partition], h.counter)
	case err == nil:
		h.stats.count("acknowledged commits")
		h.acked[partition], h.maybe[partition] = h.counter, nil
	case errors.Is(err, kerr.UnknownMemberID), errors.Is(err, kerr.IllegalGeneration), errors.Is(err, kerr.FencedInstanceID):
		c.id, c.generation, c.owns = "", 0, nil
	}
}

func (c *histClient) leave(h *history) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.busy || !c.alive || c.id == "" {
		return
	}
	_ = c.leaveGroup()
	c.alive, c.owns, c.id, c.generation = false, nil, "", 0
	c.epoch++
}

// check checks what must hold at any time.
func (h *history) check() error {
	if h.err != nil {
		return h.err
	}
	owner := map[int32]int{}
	for i, c := range h.clients {
		if !h.mayCommit(c) {
			continue
		}
		for _, p := range c.owns {
			if j, ok := owner[p]; ok {
				return fmt.Errorf("clients %d and %d both own partition %d", i, j, p)
			}
			owner[p] = i
		}
	}
	for p := range int32(histPartitions) {
		got := h.fetched("g", p)
		if got != h.acked[p] && !slices.Contains(h.maybe[p], got) {
			return fmt.Errorf("offset of partition %d = %d, want %d, or one of %v", p, got, h.acked[p], h.maybe[p])
		}
	}
	return nil
}

// mayCommit reports whether a commit of the client would be accepted.
func (h *history) mayCommit(c *histClient) bool {
	if !c.alive || c.generation == 0 {
		return false
	}
	g := h.find("g")
	if g == nil {
		return false
	}
	defer g.mu.Unlock()
	return g.classic.check(c.id, c.instance) == nil && g.classic.generation == c.generation && g.classic.state != completing
}

// settle runs the live clients until they share all partitions.
func (h *history) settle() error {
	h.killNow()
	living := slices.DeleteFunc(slices.Clone(h.clients), func(c *histClient) bool { return !c.alive })
	for range 120 {
		for _, c := range living {
			c.run(h)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if err := h.check(); err != nil {
			return err
		}
		var owned []int32
		for _, c := range living {
			if h.mayCommit(c) {
				owned = append(owned, c.owns...)
			}
		}
		if len(owned) == histPartitions || len(living) == 0 {
			return nil
		}
	}
	return errors.New("the members do not settle: " + h.described("g").State)
}
