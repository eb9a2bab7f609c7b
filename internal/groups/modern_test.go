package groups

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// modern is a KIP-848 client.
type modern struct {
	*world
	group, id string
	instance  *string
	epoch     int32
	assigned  []kmsg.ConsumerGroupHeartbeatResponseAssignmentTopic
}

func (w *world) modern(group string) *modern {
	return &modern{world: w, group: group, id: uuid.NewString()}
}

// beat sends a heartbeat with the complete state of the client.
func (m *modern) beat() error {
	req := kmsg.NewPtrConsumerGroupHeartbeatRequest()
	req.Version, req.Group, req.MemberID, req.InstanceID, req.MemberEpoch = 1, m.group, m.id, m.instance, m.epoch
	req.RebalanceTimeoutMillis, req.SubscribedTopicNames = 60_000, []string{"t"}
	req.Topics = []kmsg.ConsumerGroupHeartbeatRequestTopic{}
	if m.epoch > 0 {
		for _, t := range m.assigned {
			req.Topics = append(req.Topics, kmsg.ConsumerGroupHeartbeatRequestTopic{TopicID: t.TopicID, Partitions: t.Partitions})
		}
	}
	return m.send(req)
}

func (m *modern) leaveGroup() error {
	req := kmsg.NewPtrConsumerGroupHeartbeatRequest()
	req.Version, req.Group, req.MemberID, req.MemberEpoch = 1, m.group, m.id, -1
	return m.send(req)
}

func (m *modern) send(req *kmsg.ConsumerGroupHeartbeatRequest) error {
	resp := m.ConsumerGroupHeartbeat(everything, req)
	if resp.ErrorCode == 0 {
		m.epoch = resp.MemberEpoch
		if resp.Assignment != nil {
			m.assigned = resp.Assignment.Topics
		}
	}
	return kerr.ErrorForCode(resp.ErrorCode)
}

func (m *modern) count() (n int) {
	for _, t := range m.assigned {
		n += len(t.Partitions)
	}
	return n
}

func (w *world) describedConsumer(group string) kmsg.ConsumerGroupDescribeResponseGroup {
	req := kmsg.NewPtrConsumerGroupDescribeRequest()
	req.Groups = []string{group}
	return w.ConsumerGroupDescribe(everything, req).Groups[0]
}

func TestConsumerProtocol(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.modern("g")
		a.epoch = 3
		w.want("heartbeat of an unknown group", a.beat(), kerr.GroupIDNotFound)
		w.mustState("g", "Dead")
		a.epoch = 0
		w.want("join", a.beat(), nil)
		if a.epoch == 0 || a.count() != 10 {
			t.Fatalf("a = %+v", a)
		}
		w.want("commit", w.commitAs("g", a.id, nil, a.epoch, 0, 5), nil)
		w.want("commit with another epoch", w.commitAs("g", a.id, nil, a.epoch+1, 0, 5), kerr.StaleMemberEpoch)
		w.want("commit from outside", w.commitAlone("g", 0, 5), kerr.UnknownMemberID)
		old := w.consumer("g")
		w.want("classic join", old.join(), kerr.InconsistentGroupProtocol)
		old.id, old.generation = a.id, a.epoch
		w.want("classic heartbeat", old.beat(), kerr.UnknownMemberID)
		w.want("classic join", old.join(), kerr.InconsistentGroupProtocol)
		if d := w.described("g"); d.State != "Dead" || *d.ErrorMessage != "Group g is not a classic group." {
			t.Errorf("described = %+v", d)
		}

		// After a restart of the coordinator, members continue where they were.
		for range 2 {
			w.kill()
			epoch := a.epoch
			w.want("heartbeat", a.beat(), nil)
			if a.epoch != epoch {
				t.Fatalf("epoch %d, want %d", a.epoch, epoch)
			}
		}

		b := w.modern("g")
		w.want("join", b.beat(), nil)
		for range 3 {
			w.want("heartbeat", a.beat(), nil)
			w.want("heartbeat", b.beat(), nil)
		}
		if a.count() != 5 || b.count() != 5 || w.describedConsumer("g").State != "Stable" {
			t.Fatalf("a has %d and b %d partitions, %+v", a.count(), b.count(), w.describedConsumer("g"))
		}
		time.Sleep(40 * time.Second)
		w.want("heartbeat", b.beat(), nil)
		time.Sleep(6 * time.Second)
		w.want("heartbeat of an expired member", a.beat(), kerr.UnknownMemberID)
		w.want("heartbeat", b.beat(), nil)
		if b.count() != 10 {
			t.Fatalf("b has %d partitions", b.count())
		}
		w.want("delete", w.deleteGroup("g"), kerr.NonEmptyGroup)

		// An administrator removes b with the classic request.
		req := kmsg.NewPtrLeaveGroupRequest()
		req.Version, req.Group = 5, "g"
		m := kmsg.NewLeaveGroupRequestMember()
		m.MemberID = b.id
		req.Members = append(req.Members, m, kmsg.NewLeaveGroupRequestMember())
		resp := w.LeaveGroup(req)
		if resp.Members[0].ErrorCode != 0 || resp.Members[1].ErrorCode != kerr.UnknownMemberID.Code {
			t.Fatalf("LeaveGroup = %+v", resp)
		}
		w.want("heartbeat", b.beat(), kerr.UnknownMemberID)
		w.want("commit from outside", w.commitAlone("g", 1, 6), nil)

		// When it is empty, it becomes a classic group, and a consumer group again. The offsets are
		// kept.
		for range 2 {
			c := w.consumer("g")
			w.rebalanced(c)
			w.kill()
			w.want("heartbeat", c.beat(), nil)
			m := w.modern("g")
			w.want("join", m.beat(), kerr.GroupIDNotFound)
			w.want("leave", c.leaveGroup(), nil)
			w.want("join", m.beat(), nil)
			w.kill()
			w.want("heartbeat", m.beat(), nil)
			w.want("leave", m.leaveGroup(), nil)
			if w.fetched("g", 0) != 5 || w.fetched("g", 1) != 6 {
				t.Fatal("offsets are gone")
			}
		}
		w.want("delete", w.deleteGroup("g"), nil)
		if live := w.store.live(); len(live) != 0 {
			t.Errorf("%d entries are left in the journal", len(live))
		}
		if held := w.reserved.Load(); held != 0 {
			t.Errorf("%d bytes are held", held)
		}
	})
}

// Changes that cannot be written are not told to any client, and are written later.
func TestConsumerProtocolFullDisk(t *testing.T) {
	inWorld(t, func(w *world) {
		a, b := w.modern("g"), w.modern("g")
		w.want("join", a.beat(), nil)
		w.store.fail(errFull)
		w.want("heartbeat without a change", a.beat(), nil)
		w.want("join", b.beat(), kerr.CoordinatorNotAvailable)
		w.want("heartbeat", a.beat(), kerr.CoordinatorNotAvailable)
		c := w.modern("new")
		w.want("join of a new group", c.beat(), kerr.CoordinatorNotAvailable)
		w.mustState("new", "Dead")
		w.store.fail(nil)
		w.want("join", b.beat(), nil)
		for range 3 {
			w.want("heartbeat", a.beat(), nil)
			w.want("heartbeat", b.beat(), nil)
		}
		w.kill()
		w.want("heartbeat", a.beat(), nil)
		w.want("heartbeat", b.beat(), nil)
		if a.count() != 5 || b.count() != 5 {
			t.Fatalf("a has %d and b %d partitions", a.count(), b.count())
		}
		w.want("join of a new group", c.beat(), nil)
	})
}
