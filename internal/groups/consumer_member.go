package groups

import (
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// consumerMember is a member of a consumerGroup. Its maps and slices are
// replaced, never changed in place.
type consumerMember struct {
	id              string
	instance        string // of a static member; "" otherwise
	rack            string
	assignor        string // the assignor that it requests; "": no preference
	principal       string // its rights decide which topics it is assigned
	clientID, host  string
	rebalanceMillis int32 // how long it may take to revoke partitions

	names  []string   // topics that it is subscribed to, sorted
	regex  string     // regular expression that it is subscribed to; "": none
	topics [][16]byte // what names and regex resolve to, sorted; see resolve. May be shared with other members.

	epoch         int32 // consumerLeftStatic while a static member is away
	previousEpoch int32
	state         consumerState
	assigned      map[partitionID]int32 // what it may own, with the epoch in which each partition was assigned
	revoking      map[partitionID]int32 // what it has to revoke and may still own
	target        []partitionID         // what it is going to own, sorted

	// The fields below are not stored in the journal.
	sessionEnds time.Time
	revokeBy    time.Time // when the rebalance timeout ends; zero while it revokes nothing
	version     uint64    // the group's topicsVersion when topics was resolved
	refreshed   time.Time // the time at which topics was resolved
}

// consumerLeftStatic is the epoch in the heartbeat of a static member that leaves temporarily. It
// is also the member's epoch until the member comes back.
const consumerLeftStatic = -2

type consumerState byte

const (
	consumerStable     consumerState = iota // has reached its target
	consumerUnrevoked                       // has to revoke partitions
	consumerUnreleased                      // waits for other members to revoke partitions

	consumerStates
)

// subscribed reports whether the member may be assigned partitions of the
// topic.
func (m *consumerMember) subscribed(topic [16]byte) bool {
	_, found := slices.BinarySearchFunc(m.topics, topic, compareTopics)
	return found
}

// hasReached reports whether the member has reached the target of the assignment
// epoch.
func (m *consumerMember) hasReached(epoch int32) bool {
	return m.state == consumerStable && m.epoch == epoch
}

// deadline returns when the member is removed if it sends no further heartbeat.
func (m *consumerMember) deadline() time.Time {
	if !m.revokeBy.IsZero() && m.revokeBy.Before(m.sessionEnds) {
		return m.revokeBy
	}
	return m.sessionEnds
}

// checkEpoch fences a sender with a wrong epoch. The previous epoch is accepted if all partitions
// that the sender owns are assigned to it, because the response with the new epoch may have been
// lost.
func (m *consumerMember) checkEpoch(req *kmsg.ConsumerGroupHeartbeatRequest) *kmsg.ConsumerGroupHeartbeatResponse {
	switch {
	case req.MemberEpoch == 0 || req.MemberEpoch == m.epoch: // with 0 it joins again
		return nil
	case req.MemberEpoch > m.epoch:
		return consumerHeartbeatError(req, kerr.FencedMemberEpoch,
			"The consumer group member has a greater member epoch (%d) than the one known by the group coordinator (%d). "+
				"The member must abandon all its partitions and rejoin.",
			req.MemberEpoch, m.epoch)
	case req.MemberEpoch == m.previousEpoch && m.hasAll(req.Topics):
		return nil
	}
	return consumerHeartbeatError(req, kerr.FencedMemberEpoch,
		"The consumer group member has a smaller member epoch (%d) than the one known by the group coordinator (%d). "+
			"The member must abandon all its partitions and rejoin.",
		req.MemberEpoch, m.epoch)
}

// hasAll reports whether all partitions in owned are assigned to the member. If owned is nil, the
// client did not send its partitions, and the result is false.
func (m *consumerMember) hasAll(owned []kmsg.ConsumerGroupHeartbeatRequestTopic) bool {
	if owned == nil {
		return false
	}
	for _, t := range owned {
		for _, p := range t.Partitions {
			if _, ok := m.assigned[partitionID{t.TopicID, p}]; !ok {
				return false
			}
		}
	}
	return true
}

// mayOwn reports whether a member that reports the partitions in owned may still own one of
// partitions.
func mayOwn(owned []kmsg.ConsumerGroupHeartbeatRequestTopic, partitions map[partitionID]int32) bool {
	if owned == nil {
		return true // the client did not send its partitions
	}
	for _, t := range owned {
		for _, p := range t.Partitions {
			if _, ok := partitions[partitionID{t.TopicID, p}]; ok {
				return true
			}
		}
	}
	return false
}

// reconcile moves a member closer to its target. owned lists the partitions
// that the member owns according to its heartbeat, or is nil if the heartbeat has none; changed
// means that its subscription has changed. reconcile reports whether the assigned partitions have
// changed.
func (g *consumerGroup) reconcile(now time.Time, m *consumerMember, owned []kmsg.ConsumerGroupHeartbeatRequestTopic, changed bool) bool {
	next := *m
	switch {
	case m.state != consumerUnrevoked || !mayOwn(owned, m.revoking):
		g.advanceMember(&next, owned)
	case changed:
		// It is still revoking. Topics that it is no longer subscribed to are revoked as well.
		next.unassign(func(p partitionID) bool { return !m.subscribed(p.topic) })
		if len(next.assigned) < len(m.assigned) {
			next.enter(consumerUnrevoked, m.epoch)
		}
	}
	reassigned := !maps.Equal(next.assigned, m.assigned)
	if !reassigned && next.epoch == m.epoch && next.previousEpoch == m.previousEpoch && next.state == m.state &&
		maps.Equal(next.revoking, m.revoking) {
		return false
	}
	g.release(m)
	*m = next
	g.hold(m)
	g.changedParts[m.id] = true
	m.revokeBy = time.Time{}
	if m.state == consumerUnrevoked {
		m.revokeBy = now.Add(time.Duration(m.rebalanceMillis) * time.Millisecond)
	}
	return reassigned
}

// advanceMember computes the next state of a member that has nothing left to revoke from
// earlier steps.
func (g *consumerGroup) advanceMember(m *consumerMember, owned []kmsg.ConsumerGroupHeartbeatRequestTopic) {
	target := make(map[partitionID]bool, len(m.target))
	for _, p := range m.target {
		target[p] = true
	}
	was := m.revoking
	m.revoking = nil
	m.unassign(func(p partitionID) bool { return !target[p] })
	if mayOwn(owned, m.revoking) && len(m.revoking) > 0 {
		m.enter(consumerUnrevoked, m.epoch)
		return
	}
	m.revoking = nil

	state := consumerStable
	for _, p := range m.target {
		if _, has := m.assigned[p]; has {
			continue
		}
		// A partition that the member itself has just revoked is free.
		if _, mine := was[p]; g.holders[p] != nil && !mine {
			state = consumerUnreleased
			continue
		}
		m.assigned[p] = g.assignmentEpoch // unassign has made a new map
	}
	m.enter(state, g.assignmentEpoch)
}

// unassign moves the assigned partitions that match to the partitions to revoke.
func (m *consumerMember) unassign(match func(partitionID) bool) {
	assigned, revoking := make(map[partitionID]int32, len(m.assigned)), maps.Clone(m.revoking)
	for p, epoch := range m.assigned {
		if !match(p) {
			assigned[p] = epoch
			continue
		}
		if revoking == nil {
			revoking = make(map[partitionID]int32)
		}
		revoking[p] = epoch
	}
	m.assigned, m.revoking = assigned, revoking
}

func (m *consumerMember) enter(state consumerState, epoch int32) {
	m.state = state
	m.previousEpoch, m.epoch = m.epoch, epoch
}

// describe returns the member's part of a ConsumerGroupDescribe response,
// without deleted topics.
func (m *consumerMember) describe(topics Topics) kmsg.ConsumerGroupDescribeResponseGroupMember {
	described := kmsg.NewConsumerGroupDescribeResponseGroupMember()
	described.MemberID = m.id
	described.InstanceID = nullable(m.instance)
	described.RackID = nullable(m.rack)
	described.MemberEpoch = m.epoch
	described.ClientID = m.clientID
	described.ClientHost = m.host
	described.SubscribedTopics = append([]string{}, m.names...)
	described.SubscribedTopicRegex = kmsg.StringPtr(m.regex)
	// The member owns the partitions that it has to revoke until it has revoked them.
	owned := slices.AppendSeq(slices.Collect(maps.Keys(m.assigned)), maps.Keys(m.revoking))
	slices.SortFunc(owned, comparePartitions)
	described.Assignment = describeAssignment(owned, topics)
	described.TargetAssignment = describeAssignment(m.target, topics)
	described.MemberType = 1 // the consumer protocol
	return described
}

// describeAssignment describes sorted partitions, without those of deleted topics.
func describeAssignment(partitions []partitionID, topics Topics) kmsg.Assignment {
	a := kmsg.Assignment{TopicPartitions: []kmsg.AssignmentTopicPartition{}}
	for topic, of := range byTopic(partitions) {
		if name, ok := topics.ByID(topic); ok {
			a.TopicPartitions = append(a.TopicPartitions, kmsg.AssignmentTopicPartition{TopicID: topic, Topic: name, Partitions: partitionNumbers(of)})
		}
	}
	return a
}
