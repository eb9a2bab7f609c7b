//go:build kafka

package interop

import (
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestShareIsTakenFromShareGroup takes a topic away from a member of a share group (KIP-932), which has a
// session at the broker. The request that waits is cut, and the next one is refused.
func TestShareIsTakenFromShareGroup(t *testing.T) {
	const cut = 8 * time.Second // as in TestShareIsTakenAway
	s := startSharing(t, fabric.Config{})
	s.share(t, "ada", "grace", diaspora.GrantRequest{Read: true})
	c := s.clients[1].Client
	member := cell{scene: &scene{topic: s.topic, ids: map[string][16]byte{s.topic: s.id}}}
	testkit.Eventually(t, "the member joins", func() bool {
		answer, err := c.Request(testkit.Within(t), member.shareHeartbeat())
		return err == nil && errorCodes(answer) == "ok" // the coordinator may not be ready
	})
	leader := int(s.metadata(t, c, s.nodes(t, c)[0]).Partitions[0].Leader)
	fetch := func(epoch int32, wait time.Duration) string {
		t.Helper()
		q := member.shareFetch()
		q.ShareSessionEpoch, q.MinBytes, q.MaxWaitMillis = epoch, 1, int32(wait.Milliseconds())
		return errorCodes(s.ask(t, c, leader, q))
	}
	testkit.Eventually(t, "the member fetches, and then waits", func() bool { // the first member makes the broker load the group's state, which may fail at first
		return fetch(0, 0) == "ok" && fetch(1, 200*time.Millisecond) == "ok"
	})
	answered := make(chan time.Time, 1)
	go func() {
		defer func() { answered <- time.Now() }()
		if codes := fetch(2, time.Minute); codes != "ok" && codes != topicDenied {
			t.Errorf("the fetch that waits: %s", codes)
		}
	}()
	time.Sleep(500 * time.Millisecond) // so that it waits at the broker
	s.unshare(t, "ada", s.subject("grace"))
	took := time.Now()
	if waited := (<-answered).Sub(took); waited > cut {
		t.Errorf("a fetch waits for %v after the topic was taken away, want %v at most", waited, cut)
	} else {
		t.Logf("cut after %v", waited.Round(10*time.Millisecond))
	}
	if codes := fetch(3, 0); codes != topicDenied {
		t.Errorf("the fetch afterwards: %s", codes)
	}
	q := member.shareHeartbeat()
	q.MemberEpoch = 1
	if answer, err := c.Request(testkit.Within(t), q); err != nil || errorCodes(answer) != topicDenied {
		t.Errorf("the heartbeat afterwards: %+v, %v", answer, err)
	}
}
