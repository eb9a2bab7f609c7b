package groups

import (
	"errors"
	"testing"
	"testing/synctest"

	"github.com/twmb/franz-go/pkg/kerr"
)

var errFull = errors.New("no space left on device")

// On a full disk nothing is acknowledged that a crash would lose. Everything works again when there
// is free space.
func TestFullDisk(t *testing.T) {
	inWorld(t, func(w *world) {
		a, b := w.static("g", "a"), w.static("g", "b")
		w.rebalanced(a, b)
		w.want("commit", a.commit(1, 5), nil)
		w.store.fail(errFull)

		w.want("heartbeat", a.beat(), nil)
		w.want("commit", a.commit(1, 6), kerr.CoordinatorNotAvailable)
		w.want("commit", w.commitAlone("alone", 1, 6), kerr.CoordinatorNotAvailable)
		w.mustState("alone", "Dead")
		w.want("join of a new group", w.consumer("new").join(), kerr.CoordinatorNotAvailable)
		w.mustState("new", "Dead")
		w.want("delete", w.deleteGroup("g"), kerr.NonEmptyGroup)
		if got := w.fetched("g", 1); got != 5 {
			t.Errorf("offset = %d, want 5", got)
		}
		if got := w.deleteOffsets("g", everything, map[string][]int32{"u": {1}}); got != "0; u: 1=0; " {
			t.Errorf("OffsetDelete of what is not there = %s", got)
		}

		// A static member that restarts cannot take over its former membership.
		again := *b
		again.id = ""
		again.topics = []string{"t", "u"}
		resp := again.joinOnce()
		if resp.ErrorCode != kerr.CoordinatorNotAvailable.Code || resp.MemberID != "" {
			t.Fatalf("JoinGroup = %+v", resp)
		}
		w.want("heartbeat of the former one", b.beat(), nil)
		w.want("heartbeat", a.beat(), nil)

		// A generation cannot begin.
		leader, follower := a, b
		if b.leader {
			leader, follower = b, a
		}
		done := make(chan error)
		go func() { done <- leader.join() }()
		synctest.Wait()
		w.want("join", follower.join(), nil)
		w.want("join", <-done, nil)
		go func() { done <- follower.sync(nil) }()
		synctest.Wait()
		w.want("sync", leader.sync(func(string) string { return "x" }), kerr.CoordinatorNotAvailable)
		w.want("sync", <-done, kerr.CoordinatorNotAvailable)
		w.mustState("g", "PreparingRebalance")

		w.store.fail(nil)
		w.rebalanced(a, b)
		w.want("commit", a.commit(1, 7), nil)
		w.kill()
		w.want("heartbeat", a.beat(), nil)
		w.want("heartbeat", b.beat(), nil)
		if got := w.fetched("g", 1); got != 7 {
			t.Errorf("offset = %d, want 7", got)
		}

		// A group becomes empty even on a full disk. A crash restores its last members, whose
		// sessions then expire.
		w.store.fail(errFull)
		w.want("leave", a.leaveGroup(), nil)
		w.want("leave", b.leaveGroup(), nil)
		w.mustState("g", "Empty")
		w.want("delete", w.deleteGroup("g"), kerr.CoordinatorNotAvailable)
		if got := w.deleteOffsets("g", everything, map[string][]int32{"t": {1}}); got != "15; " {
			t.Errorf("OffsetDelete = %s", got)
		}
		if err := w.DeleteExpired(); err != nil {
			t.Errorf("DeleteExpired with nothing to do = %v", err)
		}
		w.store.fail(nil)
		w.want("delete", w.deleteGroup("g"), nil)
	})
}
