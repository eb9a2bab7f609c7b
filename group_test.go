package diaspora

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/kafka"
)

// TestFirstGroupEver simulates a cluster that creates the topic for its groups' offsets only now.
func TestFirstGroupEver(t *testing.T) {
	c, cfg := newCluster(t, kfake.SeedTopics(1, "beamline"))
	var asked atomic.Int64
	c.ControlKey(int16(kmsg.FindCoordinator), func(request kmsg.Request) (kmsg.Response, error, bool) {
		if asked.Add(1) > 3 {
			return nil, nil, false
		}
		c.KeepControl()
		response := request.ResponseKind().(*kmsg.FindCoordinatorResponse)
		for _, key := range request.(*kmsg.FindCoordinatorRequest).CoordinatorKeys {
			coordinator := kmsg.NewFindCoordinatorResponseCoordinator()
			coordinator.Key, coordinator.ErrorCode = key, kerr.CoordinatorNotAvailable.Code
			response.Coordinators = append(response.Coordinators, coordinator)
		}
		return response, nil, true
	})
	openConsumer(t, cfg, ConsumerOptions{Topics: []string{"beamline"}, Group: "first"})
	if n := asked.Load(); n < 4 {
		t.Errorf("its coordinator was asked for %d times, want until it was there", n)
	}
}

// TestGroupSessionErrors fails when an error is reported after which the member rejoins by itself.
func TestGroupSessionErrors(t *testing.T) {
	c := &Consumer{fabric: &fabric{}, options: ConsumerOptions{Group: "analysis"}}
	for _, cause := range []error{kerr.NotCoordinator, kerr.CoordinatorNotAvailable, kerr.CoordinatorLoadInProgress, kerr.UnknownMemberID, kerr.IllegalGeneration} {
		if err := c.fetchError("", kgo.FetchPartition{Err: &kgo.ErrGroupSession{Err: cause}}); err != nil {
			t.Errorf("a session that ended with %v gives %v, want nothing", cause, err)
		}
	}
	err := c.fetchError("", kgo.FetchPartition{Err: &kgo.ErrGroupSession{Err: kerr.GroupAuthorizationFailed}})
	if !errors.Is(err, ErrPermission) {
		t.Errorf("a session that ended with %v gives %v, want %v", kerr.GroupAuthorizationFailed, err, ErrPermission)
	}
}

// TestNotFinishedBetweenGenerations fails when a member that has given up partitions, even its last
// ones, counts as finished before it has rejoined and learned its new partitions.
func TestNotFinishedBetweenGenerations(t *testing.T) {
	const topic = "beamline"
	one := func(partition int32) map[string][]int32 { return map[string][]int32{topic: {partition}} }
	type step struct {
		name     string
		do       func(*Consumer)
		finished bool
	}
	gain := func(generation int32, added map[string][]int32) func(*Consumer) {
		return func(c *Consumer) { c.onAssigned("member", generation, added) }
	}
	take := func(partition int32) func(*Consumer) {
		return func(c *Consumer) {
			c.startPartitions(map[string]map[int32]kgo.Offset{topic: {partition: kgo.NewOffset().At(7)}})
		}
	}
	drop := func(generation int32, lost map[string][]int32) func(*Consumer) {
		return func(c *Consumer) { c.onRevoked(generation, lost) }
	}
	for name, steps := range map[string][]step{
		"nothing for this member": {
			{"opened", func(*Consumer) {}, false},
			{"assigned nothing", gain(1, nil), true},
		},
		"one more partition": {
			{"assigned 0", gain(1, one(0)), false},
			{"its offset", take(0), true},
			{"assigned 1 as well", gain(2, one(1)), false},
			{"its offset", take(1), true},
		},
		"out of the group": {
			{"assigned 0", gain(1, one(0)), false},
			{"its offset", take(0), true},
			{"lost", drop(noGeneration, one(0)), false},
			{"assigned it again, in a new group", gain(1, one(0)), false},
			{"its offset", take(0), true},
		},
		"the last one goes to another member (cooperative)": {
			{"assigned 0", gain(1, one(0)), false},
			{"its offset", take(0), true},
			{"gave it up", drop(2, one(0)), false},
			{"assigned nothing, but is to join again", gain(2, nil), false},
			{"assigned 1", gain(3, one(1)), false},
			{"its offset", take(1), true},
		},
		"one for another (cooperative)": {
			{"assigned 0", gain(1, one(0)), false},
			{"its offset", take(0), true},
			{"gave it up", drop(2, one(0)), false},
			{"assigned 1, but is to join again", gain(2, one(1)), false},
			{"its offset", take(1), false},
			{"assigned nothing more", gain(3, nil), true},
		},
		"all are given up before joining (eager)": {
			{"assigned 0", gain(1, one(0)), false},
			{"its offset", take(0), true},
			{"gave it up", drop(1, one(0)), false},
			{"assigned nothing", gain(2, nil), true},
		},
	} {
		c := &Consumer{
			options: ConsumerOptions{Group: "analysis", Until: End}, gaveUp: noGeneration,
			cursors: map[kafka.Partition]*cursor{}, begun: map[kafka.Partition]bool{},
			until: map[kafka.Partition]int64{{Topic: topic, Partition: 0}: 7, {Topic: topic, Partition: 1}: 7},
		}
		for _, s := range steps {
			if s.do(c); c.finished() != s.finished {
				t.Errorf("%s: %s: finished() = %v, want %v", name, s.name, c.finished(), s.finished)
			}
		}
	}
}

// TestRejoinAsAnother has the group remove a member that is about to rejoin. Under its new ID, the
// member must start at the committed offsets. It must not commit what it handled under the old ID,
// because another member may have read further in the meantime.
func TestRejoinAsAnother(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(1, "beamline"))
	number(t, cfg, "beamline", 0, 20)
	c := openConsumer(t, cfg, ConsumerOptions{Topics: []string{"beamline"}, Group: "analysis", CommitEvery: time.Millisecond})
	other, ctx := plain(t, cfg), within(t)
	var got []string
	for r, err := range c.Records(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		if got = append(got, string(r.Value)); len(got) == 10 {
			was, _ := c.fetches.GroupMetadata()
			leave := kmsg.NewPtrLeaveGroupRequest()
			leave.Group = "analysis"
			leave.Members = []kmsg.LeaveGroupRequestMember{{MemberID: was}}
			if _, err := leave.RequestWith(ctx, other); err != nil {
				t.Fatal(err)
			}
			if err := kadm.NewClient(other).CommitAllOffsets(ctx, "analysis", kadm.Offsets{"beamline": {0: {Topic: "beamline", At: 15}}}); err != nil {
				t.Fatal(err)
			}
			c.fetches.ForceRebalance()
			eventually(t, "the member's next life", func() bool {
				c.mu.Lock()
				defer c.mu.Unlock()
				return c.member != was
			})
			if got := committed(t, cfg, "analysis", "beamline"); got != 15 {
				t.Errorf("%d is committed, want 15", got)
			}
		}
		if string(r.Value) == "19" {
			break
		}
	}
	if want := "[0 1 2 3 4 5 6 7 8 9 15 16 17 18 19]"; fmt.Sprint(got) != want {
		t.Errorf("the member got %v, want %s", got, want)
	}
	if err := c.Commit(ctx); err != nil {
		t.Error(err)
	}
	if got := committed(t, cfg, "analysis", "beamline"); got != 19 {
		t.Errorf("%d is committed, want 19", got)
	}
}
