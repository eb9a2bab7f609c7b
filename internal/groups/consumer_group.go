package groups

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// partitionID identifies a partition by the ID of its topic, as KIP-848 does. A topic that is
// deleted and created again has a new ID.
type partitionID struct {
	topic     [16]byte
	partition int32
}

func compareTopics(a, b [16]byte) int { return bytes.Compare(a[:], b[:]) }

func comparePartitions(a, b partitionID) int {
	return cmp.Or(compareTopics(a.topic, b.topic), cmp.Compare(a.partition, b.partition))
}

// byTopic groups sorted partitions by topic.
func byTopic(partitions []partitionID) iter.Seq2[[16]byte, []partitionID] {
	return func(yield func([16]byte, []partitionID) bool) {
		for first := 0; first < len(partitions); {
			topic, end := partitions[first].topic, first+1
			for end < len(partitions) && partitions[end].topic == topic {
				end++
			}
			if !yield(topic, partitions[first:end]) {
				return
			}
			first = end
		}
	}
}

// partitionNumbers returns the partitions without their topics.
func partitionNumbers(partitions []partitionID) []int32 {
	n := make([]int32, len(partitions))
	for i, p := range partitions {
		n[i] = p.partition
	}
	return n
}

const (
	consumerSession   = 45 * time.Second // how long a member lives without a heartbeat
	consumerHeartbeat = 5 * time.Second  // the heartbeat interval that members are told
)

// consumerGroup is a group of the consumer protocol (KIP-848). Its members send
// heartbeats. A heartbeat lists the topics that the member is subscribed to and
// the partitions that it owns; the answer lists the partitions that it may own.
// Three epochs order this:
//
//   - The group epoch rises when the members, their subscriptions or the topics
//     change.
//   - The next heartbeat of any member computes a target assignment for all
//     members. The assignment epoch is the group epoch of the last target
//     assignment.
//   - Each member then moves to its target at its own pace. First it revokes
//     the partitions that are not in its target. When its heartbeats no longer
//     report them, its member epoch becomes the assignment epoch, and it is
//     assigned the rest of its target, each partition as soon as its former
//     owner has revoked it.
//
// Two rules ensure that a partition never has two owners. It is assigned only
// when no other member may still own it. And a member with a wrong epoch is
// fenced: it has to revoke everything and join again.
//
// Members are assigned only topics that they may describe, see
// [consumerGroup.refresh].
//
// A consumerGroup has no lock, goroutine, timer or clock of its own. Its
// methods change memory only. The caller has to write what
// [consumerGroup.changes] emits before it sends any answer.
type consumerGroup struct {
	id         string
	maxMembers int

	epoch           int32
	assignmentEpoch int32
	metadata        uint64 // topicsHash of the target assignment

	members map[string]*consumerMember
	static  map[string]*consumerMember      // by instance ID
	holders map[partitionID]*consumerMember // the member that owns or is revoking a partition

	// The fields below are not stored in the journal.
	topicsVersion uint64                      // number of calls of topicsChanged
	raisedVersion uint64                      // topicsVersion when the epoch was last raised
	patterns      map[string]*consumerPattern // regular expressions of the members

	changed      bool            // whether the group itself has changed since the last call of saved
	changedParts map[string]bool // IDs of members that have changed or left since the last call of saved
}

// consumerFirstEpoch is the epoch of a new group, as in Kafka. It rises when
// the first member subscribes to something.
const consumerFirstEpoch = 1

func newConsumerGroup(id string, maxMembers int) *consumerGroup {
	return &consumerGroup{
		id:              id,
		maxMembers:      maxMembers,
		epoch:           consumerFirstEpoch,
		assignmentEpoch: consumerFirstEpoch,
		metadata:        topicsHash(nil),
		members:         make(map[string]*consumerMember),
		static:          make(map[string]*consumerMember),
		holders:         make(map[partitionID]*consumerMember),
		topicsVersion:   1,
		patterns:        make(map[string]*consumerPattern),
		changedParts:    make(map[string]bool),
	}
}

// heartbeat handles a ConsumerGroupHeartbeat request, with which a member
// joins, stays in the group, changes its subscription, or leaves.
func (g *consumerGroup) heartbeat(now time.Time, who Caller, topics Topics, req *kmsg.ConsumerGroupHeartbeatRequest) *kmsg.ConsumerGroupHeartbeatResponse {
	if resp := checkConsumerHeartbeat(who, req); resp != nil {
		return resp
	}
	if req.MemberEpoch < 0 {
		return g.leave(req)
	}
	m, failed := g.member(req)
	if failed != nil {
		return failed
	}
	if req.SubscribedTopicRegex != nil && *req.SubscribedTopicRegex != m.regex {
		if err := g.compile(*req.SubscribedTopicRegex); err != nil {
			return consumerHeartbeatError(req, kerr.InvalidRegularExpression,
				"SubscribedTopicRegex `%s` is not a valid regular expression: %s.", *req.SubscribedTopicRegex, err)
		}
	}

	// Nothing has changed up to here, and nothing can fail from here on.
	m = g.admit(m, req)
	m.sessionEnds = now.Add(consumerSession)
	newPrincipal := g.update(m, who, req)
	changed := g.subscribe(now, m, who, topics, req, newPrincipal)
	if g.epoch > g.assignmentEpoch {
		g.assign(topics)
	}
	reassigned := !m.hasReached(g.assignmentEpoch) && g.reconcile(now, m, req.Topics, changed)

	resp := consumerHeartbeatResponse(req)
	resp.MemberID = &m.id
	resp.MemberEpoch = m.epoch
	resp.HeartbeatIntervalMillis = int32(consumerHeartbeat.Milliseconds())
	// A client sends a full request when it joins, and when it does not know
	// whether its last heartbeat was processed. It needs the assignment then.
	// Otherwise it is sent only when it has changed.
	full := req.RebalanceTimeoutMillis != -1 && req.Topics != nil && (req.SubscribedTopicNames != nil || req.SubscribedTopicRegex != nil)
	if req.MemberEpoch == 0 || full || reassigned {
		resp.Assignment = &kmsg.ConsumerGroupHeartbeatResponseAssignment{Topics: assignmentTopics(m.assigned)}
	}
	return resp
}

func assignmentTopics(assigned map[partitionID]int32) []kmsg.ConsumerGroupHeartbeatResponseAssignmentTopic {
	topics := []kmsg.ConsumerGroupHeartbeatResponseAssignmentTopic{}
	for topic, partitions := range byTopic(slices.SortedFunc(maps.Keys(assigned), comparePartitions)) {
		t := kmsg.ConsumerGroupHeartbeatResponseAssignmentTopic{TopicID: topic, Partitions: partitionNumbers(partitions)}
		topics = append(topics, t)
	}
	return topics
}

// member returns the sender of a heartbeat, or the error to answer with. It changes nothing. A
// member that joins is not in the group yet. If it replaces a static member, it is a copy of that
// member with the new ID.
func (g *consumerGroup) member(req *kmsg.ConsumerGroupHeartbeatRequest) (*consumerMember, *kmsg.ConsumerGroupHeartbeatResponse) {
	joins := req.MemberEpoch == 0
	if !joins && g.unused() {
		return nil, consumerHeartbeatError(req, kerr.GroupIDNotFound, "Consumer group %s not found.", g.id)
	}
	m := g.members[req.MemberID]
	if m == nil && len(g.members) >= g.maxMembers {
		return nil, consumerHeartbeatError(req, kerr.GroupMaxSizeReached,
			"The consumer group has reached its maximum capacity of %d members.", g.maxMembers)
	}

	if req.InstanceID != nil {
		owner := g.static[*req.InstanceID]
		if joins && owner != nil && owner.epoch != consumerLeftStatic {
			return nil, consumerHeartbeatError(req, kerr.UnreleasedInstanceID,
				"Static member %s with instance id %s cannot join the group because the instance id is owned by %s member.",
				req.MemberID, *req.InstanceID, owner.id)
		}
		if joins && owner != nil {
			replaced := *owner
			replaced.id = consumerMemberID(req)
			replaced.epoch, replaced.previousEpoch = 0, 0
			return &replaced, nil
		}
		if !joins {
			if failed := g.checkStatic(req); failed != nil {
				return nil, failed
			}
			m = owner
		}
	}

	if m == nil {
		if !joins {
			return nil, consumerHeartbeatError(req, kerr.UnknownMemberID, "Member %s is not a member of group %s.", req.MemberID, g.id)
		}
		return &consumerMember{id: consumerMemberID(req), previousEpoch: -1}, nil
	}
	return m, m.checkEpoch(req)
}

// unused reports whether no client can have been told about this group yet.
func (g *consumerGroup) unused() bool { return len(g.members) == 0 && g.epoch == consumerFirstEpoch }

// checkStatic returns nil if the sender of the request owns its instance ID.
func (g *consumerGroup) checkStatic(req *kmsg.ConsumerGroupHeartbeatRequest) *kmsg.ConsumerGroupHeartbeatResponse {
	owner := g.static[*req.InstanceID]
	if owner == nil {
		return consumerHeartbeatError(req, kerr.UnknownMemberID, "Instance id %s is unknown.", *req.InstanceID)
	}
	if owner.id != req.MemberID {
		return consumerHeartbeatError(req, kerr.FencedInstanceID,
			"Static member %s with instance id %s was fenced by member %s.", req.MemberID, *req.InstanceID, owner.id)
	}
	return nil
}

// consumerMemberID returns the ID of a member that joins. With version 0 of the
// request the coordinator may have to generate it. It looks like one of
// Kafka's.
func consumerMemberID(req *kmsg.ConsumerGroupHeartbeatRequest) string {
	if req.MemberID != "" {
		return req.MemberID
	}
	var random [16]byte
	for {
		rand.Read(random[:])
		// An ID with a leading dash looks like a flag on a command line.
		if id := base64.RawURLEncoding.EncodeToString(random[:]); id[0] != '-' {
			return id
		}
	}
}

// admit adds a joining member to the group. If the member takes over an instance ID, admit removes
// the static member that had it.
func (g *consumerGroup) admit(m *consumerMember, req *kmsg.ConsumerGroupHeartbeatRequest) *consumerMember {
	if g.members[m.id] == m {
		return m
	}
	if req.InstanceID != nil {
		if former := g.static[*req.InstanceID]; former != nil {
			g.drop(former)
		}
	}
	// A static member that comes back may use the ID of another member. That member is replaced as
	// well.
	if former := g.members[m.id]; former != nil {
		g.drop(former)
	}
	g.members[m.id] = m
	if m.instance != "" {
		g.static[m.instance] = m
	}
	g.hold(m)
	g.changedParts[m.id] = true
	return m
}

// drop removes a member without raising the group epoch.
func (g *consumerGroup) drop(m *consumerMember) {
	delete(g.members, m.id)
	if g.static[m.instance] == m {
		delete(g.static, m.instance)
	}
	g.release(m)
	g.changedParts[m.id] = true
}

// hold records that m owns its partitions.
func (g *consumerGroup) hold(m *consumerMember) {
	for p := range m.assigned {
		g.holders[p] = m
	}
	for p := range m.revoking {
		g.holders[p] = m
	}
}

// release undoes hold.
func (g *consumerGroup) release(m *consumerMember) {
	for p := range m.assigned {
		delete(g.holders, p)
	}
	for p := range m.revoking {
		delete(g.holders, p)
	}
}

// update copies the member's data from the heartbeat, except for its subscription. It reports
// whether the member has a new principal.
func (g *consumerGroup) update(m *consumerMember, who Caller, req *kmsg.ConsumerGroupHeartbeatRequest) (newPrincipal bool) {
	newPrincipal = setIfChanged(&m.principal, who.Principal)
	changed := newPrincipal
	changed = setIfChanged(&m.clientID, who.ClientID) || changed
	changed = setIfChanged(&m.host, who.host()) || changed
	if req.RackID != nil {
		changed = setIfChanged(&m.rack, *req.RackID) || changed
	}
	if req.ServerAssignor != nil {
		changed = setIfChanged(&m.assignor, *req.ServerAssignor) || changed
	}
	if req.RebalanceTimeoutMillis != -1 {
		changed = setIfChanged(&m.rebalanceMillis, req.RebalanceTimeoutMillis) || changed
	}
	if req.InstanceID != nil && *req.InstanceID != m.instance {
		if g.static[m.instance] == m {
			delete(g.static, m.instance)
		}
		m.instance = *req.InstanceID
		g.static[m.instance] = m
		changed = true
	}
	if changed {
		g.changedParts[m.id] = true
	}
	return newPrincipal
}

// subscribe updates the member's subscription and resolves it to topics when necessary. It raises
// the group epoch if the changes affect assignments. It reports whether the subscription of this
// member, or the set of topics that it resolves to, has changed.
func (g *consumerGroup) subscribe(now time.Time, m *consumerMember, who Caller, topics Topics, req *kmsg.ConsumerGroupHeartbeatRequest, newPrincipal bool) bool {
	newNames := false
	if req.SubscribedTopicNames != nil {
		names := slices.Compact(slices.Sorted(slices.Values(req.SubscribedTopicNames)))
		if newNames = !slices.Equal(names, m.names); newNames {
			m.names = names
		}
	}
	newRegex := req.SubscribedTopicRegex != nil && setIfChanged(&m.regex, *req.SubscribedTopicRegex)
	if newNames || newRegex {
		g.changedParts[m.id] = true
		g.forgetPatterns()
	}

	own, others := false, false
	resolve := newNames || newRegex || newPrincipal
	if m.version != g.topicsVersion || now.Sub(m.refreshed) >= consumerRefresh {
		own, others = g.refresh(now, m, who, topics)
		resolve = true
	} else if resolve {
		own = g.resolve(m, who, topics)
	}
	// If a member has left, a new assignment is pending already. It will use the topics as they
	// were when the member left, so they need no separate epoch, as in Kafka.
	due := g.epoch > g.assignmentEpoch && g.raisedVersion == g.topicsVersion
	switch {
	case newNames || (own || others) && !due:
		g.raiseEpoch()
	case newRegex && (m.regex == "" || len(m.topics) > 0):
		g.raiseEpoch() // Kafka ignores only a new expression that matches nothing
	case resolve && g.epoch == g.assignmentEpoch && topicsHash(g.topicCounts(topics)) != g.metadata:
		g.raiseEpoch() // a topic has more partitions, or was deleted
	}
	return newNames || newRegex || own
}

// setIfChanged sets *p to v and reports whether that is a change.
func setIfChanged[T comparable](p *T, v T) bool {
	if *p == v {
		return false
	}
	*p = v
	return true
}

// raiseEpoch increments the group epoch, so that the next heartbeat computes a new
// target assignment.
func (g *consumerGroup) raiseEpoch() {
	g.epoch++
	g.raisedVersion = g.topicsVersion
	g.changed = true
}

// leave handles the heartbeat of a leaving member. It leaves for good or, if it is static, until it
// restarts.
func (g *consumerGroup) leave(req *kmsg.ConsumerGroupHeartbeatRequest) *kmsg.ConsumerGroupHeartbeatResponse {
	if g.unused() {
		return consumerHeartbeatError(req, kerr.GroupIDNotFound, "Group %s not found.", g.id)
	}
	m := g.members[req.MemberID]
	if req.InstanceID != nil {
		if failed := g.checkStatic(req); failed != nil {
			return failed
		}
		m = g.static[*req.InstanceID]
	}
	switch {
	case m == nil:
		return consumerHeartbeatError(req, kerr.UnknownMemberID, "Member %s is not a member of group %s.", req.MemberID, g.id)
	case req.MemberEpoch == consumerLeftStatic:
		g.pause(m)
	default:
		g.remove(m)
	}
	resp := consumerHeartbeatResponse(req)
	resp.MemberID = &m.id
	resp.MemberEpoch = req.MemberEpoch
	return resp
}

// pause handles a static member that leaves temporarily. Its partitions stay reserved for the next
// member with its instance ID until its session expires. Only the partitions that it was revoking
// become free.
func (g *consumerGroup) pause(m *consumerMember) {
	g.release(m)
	m.epoch = consumerLeftStatic
	m.revoking = nil
	m.revokeBy = time.Time{}
	assigned := make(map[partitionID]int32, len(m.assigned))
	for p := range m.assigned {
		assigned[p] = 0 // the member that comes back may commit with any epoch
	}
	m.assigned = assigned
	g.hold(m)
	g.changedParts[m.id] = true
}

// remove removes a member.
func (g *consumerGroup) remove(m *consumerMember) {
	g.drop(m)
	g.raiseEpoch()
}

// expire removes the members whose session timeout has passed, and those that
// did not revoke partitions within their rebalance timeout. It reports whether
// there were any.
func (g *consumerGroup) expire(now time.Time) bool {
	expired := false
	for _, m := range g.sorted() {
		if !now.Before(m.deadline()) {
			g.remove(m)
			expired = true
		}
	}
	return expired
}

// deadline returns the time at which expire would remove a member, or the zero
// time if the group is empty.
func (g *consumerGroup) deadline() time.Time {
	var first time.Time
	for _, m := range g.members {
		if d := m.deadline(); first.IsZero() || d.Before(first) {
			first = d
		}
	}
	return first
}

// sorted returns the members in the order of their IDs.
func (g *consumerGroup) sorted() []*consumerMember {
	return slices.SortedFunc(maps.Values(g.members), func(a, b *consumerMember) int { return cmp.Compare(a.id, b.id) })
}

// assign computes the target assignment for the group epoch.
func (g *consumerGroup) assign(topics Topics) {
	g.forgetPatterns()
	members := g.sorted()
	counts := g.topicCounts(topics)
	for i, target := range consumerAssignors[g.assignor()](members, counts) {
		if m := members[i]; !slices.Equal(m.target, target) {
			m.target = target
			g.changedParts[m.id] = true
		}
	}
	g.assignmentEpoch = g.epoch
	g.metadata = topicsHash(counts)
	g.changed = true
}

// assignor returns the name of the assignor that most members request. Members without a preference
// do not count.
func (g *consumerGroup) assignor() string {
	votes := make(map[string]int)
	for _, m := range g.members {
		votes[m.assignor]++
	}
	best := consumerDefaultAssignor
	for name := range consumerAssignors {
		if votes[name] > votes[best] {
			best = name
		}
	}
	return best
}

// topicCounts returns the number of partitions of each topic to which a member
// is subscribed. Deleted topics are missing.
func (g *consumerGroup) topicCounts(topics Topics) map[[16]byte]int32 {
	counts := make(map[[16]byte]int32)
	var last [][16]byte
	for _, m := range g.members {
		if len(last) > 0 && len(m.topics) == len(last) && &m.topics[0] == &last[0] {
			continue // members with equal subscriptions share one slice
		}
		last = m.topics
		for _, id := range m.topics {
			if _, done := counts[id]; done {
				continue
			}
			if name, ok := topics.ByID(id); ok {
				if now, count, ok := topics.ByName(name); ok && now == id {
					counts[id] = count
				}
			}
		}
	}
	return counts
}

// topicsHash returns a fingerprint of the topics and their partition counts. It is stored with the
// group. After a restart, it reveals changes to topics that the group had not processed yet.
func topicsHash(counts map[[16]byte]int32) uint64 {
	h := fnv.New64a()
	var count [4]byte
	for _, id := range slices.SortedFunc(maps.Keys(counts), compareTopics) {
		h.Write(id[:])
		binary.BigEndian.PutUint32(count[:], uint32(counts[id]))
		h.Write(count[:])
	}
	return h.Sum64()
}

// empty reports whether the group has no members.
func (g *consumerGroup) empty() bool { return len(g.members) == 0 }

// state returns the name of the group's state in the protocol.
func (g *consumerGroup) state() string {
	switch {
	case g.empty():
		return "Empty"
	case g.epoch > g.assignmentEpoch:
		return "Assigning"
	}
	for _, m := range g.members {
		if !m.hasReached(g.assignmentEpoch) {
			return "Reconciling"
		}
	}
	return "Stable"
}

// subscribed reports whether a member is subscribed to the topic, by name or by
// regular expression.
func (g *consumerGroup) subscribed(topics Topics, topic string) bool {
	id, _, exists := topics.ByName(topic)
	for _, m := range g.members {
		if _, named := slices.BinarySearch(m.names, topic); named || exists && m.subscribed(id) {
			return true
		}
	}
	return false
}

// describe returns the group's part of a ConsumerGroupDescribe response. See
// [hideTopics].
func (g *consumerGroup) describe(topics Topics) kmsg.ConsumerGroupDescribeResponseGroup {
	described := kmsg.NewConsumerGroupDescribeResponseGroup()
	described.Group = g.id
	described.State = g.state()
	described.Epoch = g.epoch
	described.AssignmentEpoch = g.assignmentEpoch
	described.AssignorName = g.assignor()
	for _, m := range g.sorted() {
		described.Members = append(described.Members, m.describe(topics))
	}
	return described
}

// hideTopics replaces the description of a group by an error if it contains a
// topic that the caller may not describe.
func hideTopics(described *kmsg.ConsumerGroupDescribeResponseGroup, who Caller) {
	hidden := func(a kmsg.Assignment) bool {
		return slices.ContainsFunc(a.TopicPartitions, func(t kmsg.AssignmentTopicPartition) bool { return !who.mayDescribe(t.Topic) })
	}
	for _, m := range described.Members {
		if hidden(m.Assignment) || hidden(m.TargetAssignment) {
			group := described.Group
			*described = kmsg.NewConsumerGroupDescribeResponseGroup()
			described.Group = group
			described.ErrorCode = kerr.TopicAuthorizationFailed.Code
			described.ErrorMessage = kmsg.StringPtr("The group has described topic(s) that the client is not authorized to describe.")
			return
		}
	}
}

func consumerHeartbeatResponse(req *kmsg.ConsumerGroupHeartbeatRequest) *kmsg.ConsumerGroupHeartbeatResponse {
	return req.ResponseKind().(*kmsg.ConsumerGroupHeartbeatResponse)
}

func consumerHeartbeatError(
	req *kmsg.ConsumerGroupHeartbeatRequest, code *kerr.Error, format string, args ...any,
) *kmsg.ConsumerGroupHeartbeatResponse {
	resp := consumerHeartbeatResponse(req)
	resp.ErrorCode = code.Code
	if format != "" {
		resp.ErrorMessage = kmsg.StringPtr(fmt.Sprintf(format, args...))
	}
	return resp
}
