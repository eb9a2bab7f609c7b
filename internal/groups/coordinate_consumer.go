package groups

import (
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// ConsumerGroupHeartbeat handles the only request of a KIP-848 member. With it a member joins,
// keeps its session alive, changes its subscription, and leaves.
func (c *Coordinator) ConsumerGroupHeartbeat(who Caller, req *kmsg.ConsumerGroupHeartbeatRequest) *kmsg.ConsumerGroupHeartbeatResponse {
	if !c.enter() {
		return consumerHeartbeatError(req, kerr.CoordinatorNotAvailable, "")
	}
	defer c.closeMu.RUnlock()
	if resp := checkConsumerHeartbeat(who, req); resp != nil {
		return resp
	}
	if req.MemberEpoch == 0 && c.reserved.Load() >= c.cfg.MaxBytes {
		return consumerHeartbeatError(req, kerr.GroupMaxSizeReached, "The groups of this broker are too large.")
	}
	g, created := c.find(req.Group), false
	if g == nil && req.MemberEpoch == 0 {
		if g, created = c.findOrCreate(req.Group); g == nil {
			return consumerHeartbeatError(req, kerr.GroupMaxSizeReached, "There are too many groups.")
		}
	}
	if g == nil {
		return c.newConsumerGroup(req.Group).heartbeat(time.Now(), who, c.cfg.Topics, req) // answers that the group is unknown
	}
	defer g.mu.Unlock()
	if g.classic != nil {
		resp := g.becomeConsumer(who, req)
		if created && g.consumer == nil {
			g.drop()
		}
		return resp
	}
	resp := g.consumer.heartbeat(time.Now(), who, c.cfg.Topics, req)
	if err := g.writeConsumer(); err != nil {
		return consumerHeartbeatError(req, storeError(err), "")
	}
	g.wakeForMember(resp)
	return resp
}

func (c *Coordinator) newConsumerGroup(id string) *consumerGroup {
	return newConsumerGroup(id, c.cfg.MaxMembers)
}

// becomeConsumer replaces an empty classic group by a consumer group, if the request is from a
// member that joins. The committed offsets are kept.
func (g *group) becomeConsumer(who Caller, req *kmsg.ConsumerGroupHeartbeatRequest) *kmsg.ConsumerGroupHeartbeatResponse {
	if resp := notConsumerGroup(req, g.classic.state == empty); resp != nil {
		return resp
	}
	next := &group{id: g.id, c: g.c, consumer: g.c.newConsumerGroup(g.id)}
	resp := next.consumer.heartbeat(time.Now(), who, g.c.cfg.Topics, req)
	if next.consumer.empty() {
		return resp
	}
	if err := next.writeConsumer(g.deletionEntries()...); err != nil {
		return consumerHeartbeatError(req, storeError(err), "")
	}
	g.release()
	g.consumer, g.parts = next.consumer, next.parts
	g.wakeForMember(resp)
	return resp
}

// writeConsumer writes the changes of a consumer group to the journal. If that fails, the changes
// are written with the next ones. Until then no client may be told about them.
func (g *group) writeConsumer(more ...entry) error {
	entries := more
	sizes := map[string]int{}
	g.consumer.changes(func(part string, value []byte) {
		entries = append(entries, entry{Key: partKey(g.id, part), Value: value})
		sizes[part] = len(value)
	})
	if len(entries) == 0 {
		return nil
	}
	if err := g.c.append(entries...); err != nil {
		return err
	}
	g.consumer.saved()
	if g.parts == nil {
		g.parts = map[string]int{}
	}
	for part, size := range sizes {
		g.c.reserved.Add(int64(size - g.parts[part]))
		if g.parts[part] = size; size == 0 {
			delete(g.parts, part)
		}
	}
	return nil
}

// wakeForMember makes the timer fire by the deadline of the member that was answered. The deadlines
// of other members do not become earlier, so they need no change.
func (g *group) wakeForMember(resp *kmsg.ConsumerGroupHeartbeatResponse) {
	if resp.MemberID != nil {
		if m := g.consumer.members[*resp.MemberID]; m != nil {
			g.scheduleTick(m.deadline())
		}
	}
}

// tickConsumer removes the members of a consumer group whose deadline has passed. If the journal
// cannot be written, that is retried before the next answer.
func (g *group) tickConsumer(now time.Time) {
	g.consumer.expire(now)
	_ = g.writeConsumer()
	g.scheduleTick(g.consumer.deadline())
}

func (g *group) restoreConsumer(parts map[string][]byte, now time.Time) error {
	g.consumer = g.c.newConsumerGroup(g.id)
	g.parts = make(map[string]int, len(parts))
	for part, value := range parts {
		if err := g.consumer.load(part, value); err != nil {
			return err
		}
		g.parts[part] = len(value)
		g.c.reserved.Add(int64(len(value)))
	}
	g.consumer.restored(now)
	g.scheduleTick(g.consumer.deadline())
	return nil
}

// leaveConsumer removes members of a consumer group for an administrator, who uses the request of
// the classic protocol for it.
func (g *group) leaveConsumer(leaving []kmsg.LeaveGroupResponseMember) *kerr.Error {
	cg := g.consumer
	gone := false
	for i := range leaving {
		l := &leaving[i]
		m := cg.members[l.MemberID]
		if l.InstanceID != nil {
			m = cg.static[*l.InstanceID]
		}
		switch {
		case m == nil:
			l.ErrorCode = kerr.UnknownMemberID.Code
		case l.MemberID != "" && l.MemberID != m.id:
			l.ErrorCode = kerr.FencedInstanceID.Code
		default:
			cg.drop(m)
			gone = true
		}
	}
	if gone {
		cg.raiseEpoch()
	}
	if err := g.writeConsumer(); err != nil {
		return storeError(err)
	}
	return nil
}

// ConsumerGroupDescribe describes groups of the consumer protocol. For a group with topics that the
// caller may not describe, it returns an error.
func (c *Coordinator) ConsumerGroupDescribe(who Caller, req *kmsg.ConsumerGroupDescribeRequest) *kmsg.ConsumerGroupDescribeResponse {
	resp := req.ResponseKind().(*kmsg.ConsumerGroupDescribeResponse)
	for _, id := range req.Groups {
		resp.Groups = append(resp.Groups, c.describeConsumer(who, id))
	}
	return resp
}

func (c *Coordinator) describeConsumer(who Caller, id string) kmsg.ConsumerGroupDescribeResponseGroup {
	refuse := func(err *kerr.Error, message string) kmsg.ConsumerGroupDescribeResponseGroup {
		described := kmsg.NewConsumerGroupDescribeResponseGroup()
		described.Group, described.ErrorCode, described.ErrorMessage = id, err.Code, nullable(message)
		return described
	}
	if id == "" {
		return refuse(kerr.InvalidGroupID, "")
	}
	if !c.enter() {
		return refuse(kerr.CoordinatorNotAvailable, "")
	}
	defer c.closeMu.RUnlock()
	g := c.find(id)
	if g == nil {
		return refuse(kerr.GroupIDNotFound, "Group "+id+" not found.")
	}
	defer g.mu.Unlock()
	if g.consumer == nil {
		return refuse(kerr.GroupIDNotFound, "Group "+id+" is not a consumer group.")
	}
	described := g.consumer.describe(c.cfg.Topics)
	hideTopics(&described, who)
	return described
}
