package groups

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

func TestGenerations(t *testing.T) {
	inWorld(t, func(w *world) {
		a, b := w.consumer("g"), w.consumer("g")
		w.rebalanced(a)
		w.mustState("g", "Stable")
		if a.generation != 1 || !a.leader {
			t.Fatalf("generation %d, leader %v; want 1, true", a.generation, a.leader)
		}
		w.want("heartbeat", a.beat(), nil)

		// A second member: the first is told by its heartbeat, and joins again.
		joined := make(chan error)
		go func() { joined <- b.join() }()
		synctest.Wait()
		w.mustState("g", "PreparingRebalance")
		w.want("heartbeat", a.beat(), kerr.RebalanceInProgress)
		w.want("commit during a rebalance", a.commit(0, 5), nil)
		w.want("sync", a.sync(nil), kerr.RebalanceInProgress)
		w.want("join", a.join(), nil)
		w.want("join", <-joined, nil)
		if a.generation != 2 || b.generation != 2 || !a.leader || b.leader || len(a.members) != 2 || len(b.members) != 0 {
			t.Fatalf("a = %+v, b = %+v", a, b)
		}
		w.mustState("g", "CompletingRebalance")
		w.want("commit before sync", b.commit(0, 6), kerr.RebalanceInProgress)
		w.want("heartbeat before sync", b.beat(), nil)

		synced := make(chan error)
		go func() { synced <- b.sync(nil) }()
		synctest.Wait()
		w.want("sync", a.sync(func(id string) string { return "for " + id }), nil)
		w.want("sync", <-synced, nil)
		if b.assigned != "for "+b.id || a.assigned != "for "+a.id {
			t.Fatalf("assigned %q and %q", a.assigned, b.assigned)
		}
		w.want("sync once more", b.sync(nil), nil)

		// The old generation and unknown members are rejected.
		old := *a
		old.generation = 1
		w.want("heartbeat of the old generation", old.beat(), kerr.IllegalGeneration)
		w.want("commit of the old generation", old.commit(0, 7), kerr.IllegalGeneration)
		w.want("sync of the old generation", old.sync(nil), kerr.IllegalGeneration)
		old.id = "somebody"
		w.want("heartbeat of nobody", old.beat(), kerr.UnknownMemberID)
		w.want("join of nobody", old.join(), kerr.UnknownMemberID)
		w.want("commit from outside", w.commitAlone("g", 0, 8), kerr.UnknownMemberID)
		if got := w.fetched("g", 0); got != 5 {
			t.Fatalf("offset = %d, want 5", got)
		}

		// The leader leaves, and the other member takes over.
		w.want("leave", a.leaveGroup(), nil)
		w.want("leave twice", a.leaveGroup(), kerr.UnknownMemberID)
		w.want("heartbeat", b.beat(), kerr.RebalanceInProgress)
		w.rebalanced(b)
		if !b.leader || b.generation != 3 {
			t.Fatalf("b = %+v", b)
		}
		w.want("leave", b.leaveGroup(), nil)
		d := w.described("g")
		if d.State != "Empty" || d.ProtocolType != "consumer" || d.Protocol != "" || len(d.Members) != 0 {
			t.Fatalf("described = %+v", d)
		}
		w.want("commit from outside", w.commitAlone("g", 0, 9), nil)
		w.want("commit from outside with a generation", w.commitAs("g", "x", nil, 3, 0, 9), kerr.UnknownMemberID)
	})
}

// A follower that joins a stable group again without any change gets the current generation. A
// leader, or a follower with other topics, starts a rebalance.
func TestRejoin(t *testing.T) {
	inWorld(t, func(w *world) {
		a, b := w.consumer("g"), w.consumer("g")
		w.rebalanced(a, b)
		leader, follower := a, b
		if b.leader {
			leader, follower = b, a
		}
		generation := follower.generation
		w.want("rejoin", follower.join(), nil)
		w.mustState("g", "Stable")
		if follower.generation != generation {
			t.Fatalf("generation %d, want %d", follower.generation, generation)
		}
		for _, c := range []*consumer{follower, leader} {
			c.topics = []string{"u"}
			done := make(chan error)
			go func() { done <- c.join() }()
			synctest.Wait()
			w.mustState("g", "PreparingRebalance")
			other := a
			if c == a {
				other = b
			}
			w.want("join", other.join(), nil)
			w.want("join", <-done, nil)
			w.rebalanced(a, b)
		}
		// Joining again while the leader computes the assignment gives the same response again.
		done := make(chan error)
		go func() { done <- leader.join() }()
		synctest.Wait()
		w.want("join", follower.join(), nil)
		w.want("join", <-done, nil)
		generation = leader.generation
		w.want("join again", leader.join(), nil)
		w.mustState("g", "CompletingRebalance")
		if leader.generation != generation || len(leader.members) != 2 {
			t.Fatalf("leader = %+v", leader)
		}
	})
}

func TestSessions(t *testing.T) {
	inWorld(t, func(w *world) {
		a, b := w.consumer("g"), w.consumer("g")
		b.session = 20 * time.Second
		w.rebalanced(a, b)

		// Heartbeats and commits keep a member alive.
		for range 5 {
			time.Sleep(6 * time.Second)
			w.want("heartbeat", a.beat(), nil)
			w.want("commit", b.commit(1, 1), nil)
		}
		// Without them it is removed.
		time.Sleep(9 * time.Second)
		w.want("heartbeat", b.beat(), nil)
		time.Sleep(time.Second + time.Millisecond)
		w.mustState("g", "PreparingRebalance")
		w.want("heartbeat", a.beat(), kerr.UnknownMemberID)
		w.want("heartbeat", b.beat(), kerr.RebalanceInProgress)
		w.rebalanced(b)
		time.Sleep(21 * time.Second)
		w.mustState("g", "Empty")
	})
}

// A member that was given an ID and does not use it delays a rebalance, but only for its session
// timeout.
func TestPending(t *testing.T) {
	inWorld(t, func(w *world) {
		a, b, c := w.consumer("g"), w.consumer("g"), w.consumer("g")
		w.rebalanced(a)
		if resp := c.joinOnce(); resp.ErrorCode != kerr.MemberIDRequired.Code || resp.MemberID == "" {
			t.Fatalf("JoinGroup = %+v", resp)
		}
		w.mustState("g", "Stable")
		start := time.Now()
		done := make(chan error, 2)
		go func() { done <- b.join() }()
		synctest.Wait()
		go func() { done <- a.join() }()
		synctest.Wait()
		w.mustState("g", "PreparingRebalance")
		w.want("join", <-done, nil)
		w.want("join", <-done, nil)
		if d := time.Since(start); d != c.session {
			t.Fatalf("it took %v, want %v", d, c.session)
		}
		w.rebalanced(a, b)
		c.id = w.consumerID("g")
		w.want("leave with a pending ID", c.leaveGroup(), nil)
	})
}

// consumerID returns a member ID that was given out but not used to join.
func (w *world) consumerID(group string) string {
	return w.consumer(group).joinOnce().MemberID
}

// A member that does not join in time is not part of the next generation, even if it is the leader.
func TestLateMembers(t *testing.T) {
	inWorld(t, func(w *world) {
		a, b, c := w.consumer("g"), w.consumer("g"), w.consumer("g")
		for _, m := range []*consumer{a, b, c} {
			m.session, m.rebalance = 30*time.Minute, 10*time.Second
		}
		w.rebalanced(a, b)
		leader, follower := a, b
		if b.leader {
			leader, follower = b, a
		}
		done := make(chan error)
		go func() { done <- c.join() }()
		synctest.Wait()
		start := time.Now()
		w.want("join", follower.join(), nil)
		w.want("join", <-done, nil)
		if d := time.Since(start); d != 10*time.Second {
			t.Fatalf("the rebalance took %v", d)
		}
		w.want("heartbeat", leader.beat(), kerr.UnknownMemberID)
		if !follower.leader || len(follower.members) != 2 {
			t.Fatalf("follower = %+v", follower)
		}
		// A member that joins but does not sync is removed too.
		synced := make(chan error)
		go func() { synced <- follower.sync(func(string) string { return "x" }) }()
		time.Sleep(10*time.Second + time.Millisecond)
		w.want("sync", <-synced, nil)
		w.mustState("g", "PreparingRebalance")
		w.want("heartbeat", c.beat(), kerr.UnknownMemberID)
		w.want("heartbeat", follower.beat(), kerr.RebalanceInProgress)
	})
}

// A new member whose client has disconnected does not wait forever.
func TestNewMemberTimeout(t *testing.T) {
	inWorld(t, func(w *world) {
		a, b := w.consumer("g"), w.consumer("g")
		a.session, a.rebalance = 30*time.Minute, 20*time.Minute
		w.rebalanced(a)
		start := time.Now()
		b.version = 3 // joins at once
		w.want("join", b.join(), kerr.UnknownMemberID)
		if d := time.Since(start); d != 5*time.Minute {
			t.Fatalf("it took %v, want 5 minutes", d)
		}
		w.rebalanced(a)
		if len(a.members) != 1 {
			t.Fatalf("members = %v", a.members)
		}
	})
}

func TestStaticMembers(t *testing.T) {
	inWorld(t, func(w *world) {
		a, b := w.static("g", "a"), w.static("g", "b")
		a.protocols = []string{"range", "roundrobin"}
		w.rebalanced(a, b)
		leader, follower := a, b
		if b.leader {
			leader, follower = b, a
		}
		generation := leader.generation

		// A follower that restarts gets its former assignment, without a rebalance.
		again := *follower
		again.id, again.assigned = "", ""
		w.want("join", again.join(), nil)
		w.mustState("g", "Stable")
		if again.id == follower.id || again.generation != generation || again.leader {
			t.Fatalf("again = %+v", again)
		}
		w.want("sync", again.sync(nil), nil)
		if again.assigned != follower.assigned {
			t.Fatalf("assigned %q, want %q", again.assigned, follower.assigned)
		}
		w.want("heartbeat of the former one", follower.beat(), kerr.FencedInstanceID)
		w.want("commit of the former one", follower.commit(0, 1), kerr.FencedInstanceID)
		w.want("sync of the former one", follower.sync(nil), kerr.FencedInstanceID)
		w.want("join of the former one", follower.join(), kerr.FencedInstanceID)
		w.want("leave of the former one", follower.leaveGroup(), kerr.FencedInstanceID)
		unknown := *follower
		unknown.instance = new(string)
		w.want("heartbeat of another instance", unknown.beat(), kerr.UnknownMemberID)

		// The new member ID survives an immediate restart of the coordinator.
		w.kill()
		w.want("heartbeat", again.beat(), nil)
		w.want("heartbeat of the former one", follower.beat(), kerr.FencedInstanceID)

		// A leader that restarts must not compute assignments.
		for _, version := range []int16{9, 8, 5} {
			former := *leader
			leader.id, leader.version = "", version
			resp := leader.joinOnce()
			if resp.ErrorCode != 0 || resp.Generation != generation {
				t.Fatalf("JoinGroup = %+v", resp)
			}
			if version == 9 && (!resp.SkipAssignment || len(resp.Members) != 2 || resp.LeaderID != resp.MemberID) {
				t.Fatalf("JoinGroup v9 = %+v", resp)
			}
			if version < 9 && (resp.SkipAssignment || len(resp.Members) != 0 || resp.LeaderID != former.id) {
				t.Fatalf("JoinGroup v%d = %+v", version, resp)
			}
		}
		w.mustState("g", "Stable")

		// An administrator removes a static member.
		req := kmsg.NewPtrLeaveGroupRequest()
		req.Version, req.Group = 5, "g"
		for _, instance := range []string{*again.instance, "nobody"} {
			m := kmsg.NewLeaveGroupRequestMember()
			m.InstanceID = &instance
			req.Members = append(req.Members, m)
		}
		req.Members = append(req.Members, kmsg.NewLeaveGroupRequestMember())
		resp := w.LeaveGroup(req)
		got := []int16{resp.ErrorCode}
		for _, m := range resp.Members {
			got = append(got, m.ErrorCode)
		}
		if want := []int16{0, 0, kerr.UnknownMemberID.Code, kerr.UnknownMemberID.Code}; !slices.Equal(got, want) {
			t.Fatalf("LeaveGroup = %v, want %v", got, want)
		}
		w.mustState("g", "PreparingRebalance")
	})
}

// A static member that restarts with other topics needs a rebalance only if the protocol would
// change; during a rebalance it always does.
func TestStaticMemberInRebalance(t *testing.T) {
	inWorld(t, func(w *world) {
		a, b := w.static("g", "a"), w.static("g", "b")
		a.protocols, b.protocols = []string{"range", "roundrobin"}, []string{"range", "roundrobin"}
		w.rebalanced(a, b)

		again := *a
		again.id, again.protocols = "", []string{"roundrobin"}
		done := make(chan error)
		go func() { done <- again.join() }()
		synctest.Wait()
		w.mustState("g", "PreparingRebalance")
		w.want("join", b.join(), nil)
		w.want("join", <-done, nil)
		w.mustState("g", "CompletingRebalance")

		// The leader has computed an assignment for a member ID that no longer exists.
		third := again
		third.id = ""
		go func() { done <- third.join() }()
		synctest.Wait()
		w.mustState("g", "PreparingRebalance")
		b.protocols = []string{"roundrobin"}
		w.want("sync", b.sync(nil), kerr.RebalanceInProgress)
		w.want("join", b.join(), nil)
		w.want("join", <-done, nil)
		w.rebalanced(&third, b)

		// A waiting request with the former member ID is fenced at once.
		go func() { b.topics = []string{"u"}; done <- b.join() }()
		synctest.Wait()
		waits := make(chan error)
		go func() { waits <- third.join() }()
		w.want("join", <-waits, nil)
		w.want("join", <-done, nil)
		b.topics = nil
		go func() { done <- b.join() }()
		synctest.Wait()
		fourth := *b
		fourth.id = ""
		go func() { waits <- fourth.join() }()
		w.want("join of the former one", <-done, kerr.FencedInstanceID)
		w.want("join", third.join(), nil)
		w.want("join", <-waits, nil)
		w.rebalanced(&third, &fourth)
	})
}

// A group whose static members are all away keeps waiting for them until their sessions end.
func TestStaticMembersGone(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.static("g", "a")
		a.session, a.rebalance = time.Minute, 0
		b := w.consumer("g")
		b.session, b.rebalance = 20*time.Second, 3*time.Second
		w.rebalanced(a, b)
		w.want("heartbeat", a.beat(), nil)
		time.Sleep(25 * time.Second) // b expires, and a does not join
		w.mustState("g", "PreparingRebalance")
		time.Sleep(time.Minute)
		w.mustState("g", "Empty")
	})
}

func TestJoinErrors(t *testing.T) {
	inWorld(t, func(w *world) {
		w.cfg.MaxMembers = 2
		w.kill()
		w.rebalanced(w.consumer("g"))
		for _, c := range []struct {
			name   string
			change func(*kmsg.JoinGroupRequest)
			want   *kerr.Error
			id     string
		}{
			{"no group", func(r *kmsg.JoinGroupRequest) { r.Group, r.MemberID = "", "x" }, kerr.InvalidGroupID, "x"},
			{"short session", func(r *kmsg.JoinGroupRequest) { r.SessionTimeoutMillis = 5999 }, kerr.InvalidSessionTimeout, ""},
			{"long session", func(r *kmsg.JoinGroupRequest) { r.SessionTimeoutMillis = 1800001 }, kerr.InvalidSessionTimeout, ""},
			{"unknown member", func(r *kmsg.JoinGroupRequest) { r.MemberID = "x" }, kerr.UnknownMemberID, "x"},
			{"unknown member of an unknown group", func(r *kmsg.JoinGroupRequest) { r.Group, r.MemberID = "none", "x" }, kerr.UnknownMemberID, "x"},
			{"unknown static member", func(r *kmsg.JoinGroupRequest) { r.MemberID, r.InstanceID = "x", new(string) }, kerr.UnknownMemberID, "x"},
			{"other protocol type", func(r *kmsg.JoinGroupRequest) { r.ProtocolType = "connect" }, kerr.InconsistentGroupProtocol, ""},
			{"other protocol", func(r *kmsg.JoinGroupRequest) { r.Protocols[0].Name = "sticky" }, kerr.InconsistentGroupProtocol, ""},
			{"no protocol", func(r *kmsg.JoinGroupRequest) { r.Protocols = nil }, kerr.InconsistentGroupProtocol, ""},
			{"no protocol in a new group", func(r *kmsg.JoinGroupRequest) { r.Group, r.Protocols = "new", nil }, kerr.InconsistentGroupProtocol, ""},
			{"no protocol type in a new group", func(r *kmsg.JoinGroupRequest) { r.Group, r.ProtocolType = "new", "" }, kerr.InconsistentGroupProtocol, ""},
			{"too much", func(r *kmsg.JoinGroupRequest) { r.Protocols[0].Metadata = make([]byte, 1<<20) }, kerr.InvalidRequest, ""},
		} {
			req := w.consumer("g").joinRequest()
			c.change(req)
			resp := w.JoinGroup(w.Context(), everything, req)
			if resp.ErrorCode != c.want.Code || resp.MemberID != c.id || resp.Generation != -1 || resp.LeaderID != "" || resp.Protocol != nil {
				t.Errorf("%s: JoinGroup = %+v, want %v and member ID %q", c.name, resp, c.want, c.id)
			}
		}
		w.mustState("new", "Empty") // as in Kafka
		w.mustState("none", "Dead")
		w.mustState("g", "Stable")
	})
}

func TestMaxMembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{MaxMembers: 2})
		a, b, c := w.consumer("g"), w.consumer("g"), w.consumer("g")
		w.rebalanced(a, b)
		w.want("join", c.join(), kerr.GroupMaxSizeReached)
		w.want("heartbeat", a.beat(), nil)
		w.want("leave", b.leaveGroup(), nil)
		w.rebalanced(a, c)
	})
}

func TestMaxBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{MaxBytes: 20_000, MaxGroups: 3})
		big := w.consumer("g")
		w.rebalanced(big)
		before := w.reserved.Load()
		c := w.consumer("g2")
		c.topics = []string{string(make([]byte, 20_000))}
		w.want("join", c.join(), kerr.GroupMaxSizeReached)
		c.topics = nil
		w.rebalanced(c)
		w.want("leave", c.leaveGroup(), nil)
		if got := w.reserved.Load(); got != before {
			t.Errorf("held %d bytes, want %d", got, before)
		}
		w.want("commit in the last group", w.commitAlone("g3", 0, 1), nil)
		w.want("commit in one more", w.commitAlone("g4", 0, 1), kerr.PolicyViolation)
		w.want("join in one more", w.consumer("g4").join(), kerr.GroupMaxSizeReached)

		// A leader's assignment that is too large fails as in Kafka.
		again := *big
		done := make(chan error)
		go func() { done <- again.join() }()
		w.want("join", <-done, nil)
		w.want("sync", again.sync(func(string) string { return string(make([]byte, 30_000)) }), kerr.UnknownServerError)
		w.rebalanced(&again)
		w.want("leave", again.leaveGroup(), nil)
		w.want("delete", w.deleteGroup("g"), nil)
		w.want("delete", w.deleteGroup("g2"), nil)
		w.want("delete", w.deleteGroup("g3"), nil)
		if got := w.reserved.Load(); got != 0 {
			t.Errorf("held %d bytes, want none", got)
		}
		if live := w.store.live(); len(live) != 0 {
			t.Errorf("the journal still has %d entries", len(live))
		}
	})
}

func (w *world) deleteGroup(id string) error {
	req := kmsg.NewPtrDeleteGroupsRequest()
	req.Groups = []string{id, id}
	resp := w.DeleteGroups(req)
	if len(resp.Groups) != 1 {
		return errors.New("not one result")
	}
	return kerr.ErrorForCode(resp.Groups[0].ErrorCode)
}

func TestProtocolChoice(t *testing.T) {
	inWorld(t, func(w *world) {
		for _, c := range []struct {
			members [][]string
			want    string
		}{
			{[][]string{{"range", "roundrobin"}, {"range", "roundrobin"}}, "range"},
			{[][]string{{"range", "roundrobin"}, {"roundrobin"}}, "roundrobin"},
			{[][]string{{"range", "roundrobin", "x"}, {"roundrobin", "range", "x"}, {"roundrobin", "range"}}, "roundrobin"},
			{[][]string{{"range", "range"}, {"range"}}, "range"},
		} {
			g := newClassicGroup(time.Now())
			for i, protocols := range c.members {
				m := &member{id: string(rune('a' + i))}
				for _, name := range protocols {
					m.protocols = append(m.protocols, protocol{name: name})
				}
				g.add(m)
			}
			if got := g.choose(); got != c.want {
				t.Errorf("choose(%v) = %q, want %q", c.members, got, c.want)
			}
		}
	})
}

// The expected order was printed by Java 17, from the keys of a HashMap.
func TestSortAsJava(t *testing.T) {
	s := []string{"range", "roundrobin", "sticky", "cooperative-sticky"}
	sortAsJava(s)
	if want := []string{"sticky", "range", "roundrobin", "cooperative-sticky"}; !slices.Equal(s, want) {
		t.Errorf("order = %v, want %v", s, want)
	}
}

func TestCloseAnswers(t *testing.T) {
	inWorld(t, func(w *world) {
		a, b := w.consumer("g"), w.consumer("g")
		w.rebalanced(a)
		done := make(chan error)
		go func() { done <- b.join() }()
		synctest.Wait()
		testkit.Must(t, w.Close())
		w.want("join", <-done, kerr.CoordinatorNotAvailable)
		w.want("heartbeat", a.beat(), kerr.CoordinatorNotAvailable)
		w.want("join", a.join(), kerr.CoordinatorNotAvailable)
		w.want("sync", a.sync(nil), kerr.CoordinatorNotAvailable)
		w.want("leave", a.leaveGroup(), kerr.CoordinatorNotAvailable)
		w.want("commit", a.commit(0, 1), kerr.CoordinatorNotAvailable)
	})
}

// If the last member leaves while an ID is pending, the rebalance has no member to wait for.
func TestLastMemberLeavesBeforePending(t *testing.T) {
	inWorld(t, func(w *world) {
		a, b := w.consumer("g"), w.consumer("g")
		w.rebalanced(a)
		b.id = w.consumerID("g")
		w.want("leave", a.leaveGroup(), nil)
		synctest.Wait()
		w.mustState("g", "Empty")
		w.want("join", b.join(), nil)
		if b.generation != 3 {
			t.Errorf("generation %d, want 3", b.generation)
		}
	})
}

// A client that has lost its connection joins again with its ID. The request on the old connection
// is answered.
func TestReconnect(t *testing.T) {
	inWorld(t, func(w *world) {
		a, b := w.consumer("g"), w.consumer("g")
		w.rebalanced(a)
		ctx, cut := context.WithCancel(w.Context())
		defer cut()
		b.id = w.consumerID("g")
		first := make(chan *kmsg.JoinGroupResponse)
		go func() { first <- w.JoinGroup(ctx, everything, b.joinRequest()) }()
		synctest.Wait()
		cut()
		if resp := <-first; resp.ErrorCode != kerr.CoordinatorNotAvailable.Code || resp.MemberID != b.id {
			t.Fatalf("JoinGroup = %+v", resp)
		}
		second, third := make(chan error), make(chan error)
		go func() { second <- b.join() }()
		synctest.Wait()
		again := *b
		go func() { third <- again.join() }()
		w.want("join of the former connection", <-second, kerr.RebalanceInProgress)
		w.want("join", a.join(), nil)
		w.want("join", <-third, nil)

		follower, leader := &again, a
		if again.leader {
			follower, leader = a, &again
		}
		go func() { second <- follower.sync(nil) }()
		synctest.Wait()
		go func() { third <- follower.sync(nil) }()
		w.want("sync of the former connection", <-second, kerr.RebalanceInProgress)
		w.want("sync", leader.sync(func(string) string { return "x" }), nil)
		w.want("sync", <-third, nil)
	})
}

// All members of a group may have died while the coordinator was down.
func TestRestart(t *testing.T) {
	inWorld(t, func(w *world) {
		a, b := w.consumer("g"), w.consumer("g")
		w.rebalanced(a, b)
		w.want("leave", w.consumer("other").leaveGroup(), kerr.UnknownMemberID)
		time.Sleep(7 * time.Second)
		w.kill()
		w.mustState("g", "Stable")
		time.Sleep(9 * time.Second) // the session timers have started again
		w.want("heartbeat", a.beat(), nil)
		w.want("rejoin", a.sync(nil), nil)
		time.Sleep(2 * time.Second)
		w.want("heartbeat", b.beat(), kerr.UnknownMemberID)
		w.want("heartbeat", a.beat(), kerr.RebalanceInProgress)

		// After a restart during a rebalance, the previous generation is in force again.
		b.id = ""
		w.rebalanced(a, b)
		generation := a.generation
		joined := make(chan error)
		c := w.consumer("g")
		go func() { joined <- c.join() }()
		synctest.Wait()
		w.mustState("g", "PreparingRebalance")
		w.kill()
		w.want("join", <-joined, kerr.CoordinatorNotAvailable)
		w.mustState("g", "Stable")
		w.want("heartbeat", a.beat(), nil)
		w.want("heartbeat", b.beat(), nil)
		c.id = ""
		w.rebalanced(a, b, c)
		if a.generation <= generation {
			t.Errorf("generation %d, want more than %d", a.generation, generation)
		}
	})
}
