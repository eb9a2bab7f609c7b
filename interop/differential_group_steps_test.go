//go:build kafka

package interop

import (
	"fmt"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kmsg"
	"pgregory.net/rapid"
)

// The steps in this file use groups: committed offsets, classic groups, and KIP-848 groups.

func drawGroup(t *rapid.T) int { return often(t, "group", 0, 1, 5) }

// memberState is what a member knows about itself.
type memberState struct {
	id         string // its latest member ID, "" before it has one
	generation int32
	epoch      int32 // KIP-848
	leader     bool
	members    []string // members of the generation, if this member is the leader
	assigned   []kmsg.ConsumerGroupHeartbeatRequestTopic
	topics     []string // its subscription
	assignor   string   // the assignor that it has requested
}

func memberKey(group, member int) string { return fmt.Sprintf("g%d m%d", group, member) }

func (w *world) member(group, member int) *memberState {
	key := memberKey(group, member)
	if w.members[key] == nil {
		w.members[key] = &memberState{generation: -1}
	}
	return w.members[key]
}

// knows gives a member ID a name, which consists of the member and the number of its ID.
func (w *world) knows(group, member int, id string) {
	if id == "" || w.knownIDs[id] != "" {
		return
	}
	n := 0
	for _, name := range w.knownIDs {
		if strings.HasPrefix(name, memberKey(group, member)+"#") {
			n++
		}
	}
	w.knownIDs[id] = fmt.Sprintf("%s#%d", memberKey(group, member), n)
}

func (w *world) memberName(id string) string {
	if name := w.knownIDs[id]; name != "" {
		return name
	}
	if id == "" || id == unknownMember {
		return fmt.Sprintf("%q", id)
	}
	return "an ID"
}

const unknownMember = "nobody-knows-me"

// memberID returns the ID for a request: the member's own, none, or one that no member has.
func (w *world) memberID(group, member int, which string) string {
	switch which {
	case "none":
		return ""
	case "unknown":
		return unknownMember
	}
	return w.member(group, member).id
}

func drawID(t *rapid.T) string { return often(t, "member ID", "own", "none", "unknown") }

// commitStep commits offsets, as a member or without one.
type commitStep struct {
	Version    int16
	Group      int
	Member     int    // -1 for a group without members
	ID         string // see memberID
	Generation int32  // relative to the member's
	Offsets    []commitOffset
}

type commitOffset struct {
	Topic     int
	Partition int32
	Offset    int64
	Epoch     int32
	Metadata  string
}

func drawCommit(t *rapid.T) step {
	s := commitStep{Version: version(t, kmsg.NewPtrOffsetCommitRequest()), Group: drawGroup(t), Member: often(t, "member", -1, -2)}
	return drawCommitOffsets(t, s)
}

func drawMemberCommit(t *rapid.T) step {
	s := commitStep{Version: version(t, kmsg.NewPtrOffsetCommitRequest()), Member: drawMember(t), ID: drawID(t), Generation: often[int32](t, "generation", 0, 1, -1)}
	return drawCommitOffsets(t, s)
}

func drawCommitOffsets(t *rapid.T, s commitStep) step {
	for range often(t, "offsets", 1, 2, 0) {
		s.Offsets = append(s.Offsets, commitOffset{drawTopic(t), drawPartition(t), pick[int64](t, "offset", 0, 5, 1<<40, -1, -2), often[int32](t, "epoch", noEpoch, 0, 7),
			often(t, "metadata", "", "metadata", nullValue, strings.Repeat("m", 4096), strings.Repeat("m", 4097))})
	}
	return s
}

func (s commitStep) request(w *world) kmsg.Request {
	r := at(w, s.Version, kmsg.NewPtrOffsetCommitRequest())
	r.Group, r.Generation = w.group(s.Group), -1
	switch {
	case s.Member == -2:
		r.Generation, r.MemberID = 3, unknownMember
	case s.Member >= 0:
		m := w.member(s.Group, s.Member)
		r.MemberID, r.Generation = w.memberID(s.Group, s.Member, s.ID), m.generation+s.Generation
		if m.generation < 0 {
			r.Generation = m.epoch + s.Generation
		}
	}
	for _, o := range s.Offsets {
		p := kmsg.NewOffsetCommitRequestTopicPartition()
		p.Partition, p.Offset, p.LeaderEpoch, p.Metadata = o.Partition, o.Offset, o.Epoch, w.orNull(o.Metadata)
		if !w.committed[r.Group] && p.Metadata != nil {
			// See the designed difference "OffsetCommit: a new group, with no offset that is accepted".
			p.Metadata = pointer((*p.Metadata)[:min(len(*p.Metadata), 10)])
		}
		topic := kmsg.NewOffsetCommitRequestTopic()
		topic.Topic = w.topic(o.Topic)
		topic.TopicID, topic.Partitions = w.topicID(topic.Topic), append(topic.Partitions, p)
		r.Topics = append(r.Topics, topic)
	}
	return r
}

func (s commitStep) learn(w *world, request kmsg.Request, response kmsg.Response) {
	for _, topic := range response.(*kmsg.OffsetCommitResponse).Topics {
		for _, p := range topic.Partitions {
			if p.ErrorCode == 0 {
				w.committed[request.(*kmsg.OffsetCommitRequest).Group] = true
			}
		}
	}
}

// offsetsStep reads committed offsets.
type offsetsStep struct {
	Version int16
	Groups  []int
	All     bool
	Stable  bool
	Topics  []int
}

func drawOffsets(t *rapid.T) step {
	s := offsetsStep{Version: version(t, kmsg.NewPtrOffsetFetchRequest()), All: rapid.Bool().Draw(t, "all"), Stable: rapid.Bool().Draw(t, "stable")}
	s.Groups = several(t, often(t, "groups", 1, 2), drawGroup)
	s.Topics = several(t, pick(t, "topics", 1, 2), drawTopic)
	return s
}

func (s offsetsStep) request(w *world) kmsg.Request {
	r := at(w, s.Version, kmsg.NewPtrOffsetFetchRequest())
	r.RequireStable = s.Stable
	partitions := []int32{0, 1, 7}
	r.Group = w.group(s.Groups[0])
	if !s.All || r.Version < 2 {
		for _, i := range s.Topics {
			topic := kmsg.NewOffsetFetchRequestTopic()
			topic.Topic, topic.Partitions = w.topic(i), partitions
			r.Topics = append(r.Topics, topic)
		}
	}
	for _, g := range slices.Compact(slices.Clone(s.Groups)) {
		group := kmsg.NewOffsetFetchRequestGroup()
		group.Group, group.MemberEpoch = w.group(g), -1
		if !s.All {
			for _, i := range s.Topics {
				topic := kmsg.NewOffsetFetchRequestGroupTopic()
				topic.Topic, topic.Partitions = w.topic(i), partitions
				topic.TopicID = w.topicID(topic.Topic)
				group.Topics = append(group.Topics, topic)
			}
		}
		r.Groups = append(r.Groups, group)
	}
	return r
}

// deleteOffsetsStep deletes committed offsets.
type deleteOffsetsStep struct {
	Group     int
	Topic     int
	Partition int32
}

func drawDeleteOffsets(t *rapid.T) step {
	return deleteOffsetsStep{drawGroup(t), drawTopic(t), drawPartition(t)}
}

func (s deleteOffsetsStep) request(w *world) kmsg.Request {
	r := at(w, 0, kmsg.NewPtrOffsetDeleteRequest())
	r.Group = w.group(s.Group)
	p := kmsg.NewOffsetDeleteRequestTopicPartition()
	p.Partition = s.Partition
	topic := kmsg.NewOffsetDeleteRequestTopic()
	topic.Topic, topic.Partitions = w.topic(s.Topic), append(topic.Partitions, p)
	r.Topics = append(r.Topics, topic)
	return r
}

// Classic groups. Group 0 has the members 0 to 4; 3 and 4 are static.

func drawMember(t *rapid.T) int { return often(t, "member", 0, 1, 1, 2, 3, 4) }

func instance(member int) *string {
	if member < 3 {
		return nil
	}
	return pointer(fmt.Sprintf("static-%d", member))
}

// joinStep joins a group.
type joinStep struct {
	Version   int16
	Member    int
	ID        string
	Session   int32
	Type      string
	Protocols string // one letter each
}

func drawJoin(t *rapid.T) step {
	return joinStep{version(t, kmsg.NewPtrJoinGroupRequest()), drawMember(t), drawID(t), often[int32](t, "session timeout", 60_000, 10, -1, 1<<30),
		often(t, "type", "consumer", "consumer", "consumer", "connect", ""), often(t, "protocols", "a", "ab", "b", "")}
}

func (joinStep) mayWait() {}

func (s joinStep) caller() connectionName { return connectionName{member: memberKey(0, s.Member)} }

func (s joinStep) request(w *world) kmsg.Request {
	r := at(w, s.Version, kmsg.NewPtrJoinGroupRequest())
	r.Group, r.SessionTimeoutMillis, r.RebalanceTimeoutMillis = w.group(0), s.Session, 60_000
	r.MemberID, r.InstanceID, r.ProtocolType = w.memberID(0, s.Member, s.ID), instance(s.Member), s.Type
	for _, p := range s.Protocols {
		protocol := kmsg.NewJoinGroupRequestProtocol()
		protocol.Name, protocol.Metadata = string(p), subscription(w, s.Member)
		r.Protocols = append(r.Protocols, protocol)
	}
	return r
}

// subscription returns a consumer's metadata. It must be valid: Apache Kafka never answers a
// consumer whose subscription it cannot parse.
func subscription(w *world, member int) []byte {
	m := kmsg.NewConsumerMemberMetadata()
	m.Version, m.Topics, m.UserData = 1, []string{w.topic(0)}, fmt.Append(nil, member)
	return m.AppendTo(nil)
}

func (s joinStep) learn(w *world, _ kmsg.Request, response kmsg.Response) {
	r := response.(*kmsg.JoinGroupResponse)
	m := w.member(0, s.Member)
	const memberIDRequired = 79
	if r.ErrorCode != 0 && r.ErrorCode != memberIDRequired {
		return
	}
	w.knows(0, s.Member, r.MemberID)
	m.id = r.MemberID
	if r.ErrorCode == 0 {
		m.generation, m.leader, m.members = r.Generation, r.LeaderID == r.MemberID, nil
		for _, other := range r.Members {
			m.members = append(m.members, other.MemberID)
		}
	}
}

// syncStep requests the assignment of a generation. If the member is the leader, it also provides
// the assignments.
type syncStep struct {
	Version    int16
	Member     int
	ID         string
	Generation int32
	Protocol   string // "", or the protocol that the member claims was chosen
}

func drawSync(t *rapid.T) step {
	return syncStep{version(t, kmsg.NewPtrSyncGroupRequest()), drawMember(t), drawID(t), often[int32](t, "generation", 0, 1, -1), often(t, "protocol", "", "a", "b")}
}

func (syncStep) mayWait() {}

func (s syncStep) caller() connectionName { return connectionName{member: memberKey(0, s.Member)} }

func (s syncStep) request(w *world) kmsg.Request {
	r := at(w, s.Version, kmsg.NewPtrSyncGroupRequest())
	m := w.member(0, s.Member)
	r.Group, r.MemberID, r.InstanceID, r.Generation = w.group(0), w.memberID(0, s.Member, s.ID), instance(s.Member), m.generation+s.Generation
	if s.Protocol != "" {
		r.ProtocolType, r.Protocol = pointer("consumer"), &s.Protocol
	}
	if m.leader {
		for _, id := range m.members {
			a := kmsg.NewSyncGroupRequestGroupAssignment()
			a.MemberID, a.MemberAssignment = id, fmt.Appendf(nil, "for %s", w.memberName(id))
			r.GroupAssignment = append(r.GroupAssignment, a)
		}
	}
	return r
}

// heartbeatStep sends a heartbeat.
type heartbeatStep struct {
	Version    int16
	Member     int
	ID         string
	Generation int32
}

func drawHeartbeat(t *rapid.T) step {
	return heartbeatStep{version(t, kmsg.NewPtrHeartbeatRequest()), drawMember(t), drawID(t), often[int32](t, "generation", 0, 1, -1)}
}

func (s heartbeatStep) request(w *world) kmsg.Request {
	r := at(w, s.Version, kmsg.NewPtrHeartbeatRequest())
	r.Group, r.MemberID, r.InstanceID, r.Generation = w.group(0), w.memberID(0, s.Member, s.ID), instance(s.Member), w.member(0, s.Member).generation+s.Generation
	return r
}

// leaveStep removes members from a group.
type leaveStep struct {
	Version int16
	Members []leaver
}

type leaver struct {
	Member int
	ID     string
}

func drawLeave(t *rapid.T) step {
	s := leaveStep{Version: version(t, kmsg.NewPtrLeaveGroupRequest())}
	for range often(t, "members", 1, 2) {
		s.Members = append(s.Members, leaver{drawMember(t), drawID(t)})
	}
	return s
}

func (s leaveStep) request(w *world) kmsg.Request {
	r := at(w, s.Version, kmsg.NewPtrLeaveGroupRequest())
	r.Group = w.group(0)
	for _, l := range s.Members {
		m := kmsg.NewLeaveGroupRequestMember()
		m.MemberID, m.InstanceID = w.memberID(0, l.Member, l.ID), instance(l.Member)
		r.MemberID = m.MemberID
		r.Members = append(r.Members, m)
	}
	return r
}

// describeGroupsStep describes groups of either protocol.
type describeGroupsStep struct {
	Version int16
	Groups  []int
	Ops     bool
}

func drawDescribeGroups(t *rapid.T) step {
	return describeGroupsStep{version(t, kmsg.NewPtrDescribeGroupsRequest()), []int{drawGroup(t)}, rapid.Bool().Draw(t, "operations")}
}

func (s describeGroupsStep) request(w *world) kmsg.Request {
	r := at(w, s.Version, kmsg.NewPtrDescribeGroupsRequest())
	r.IncludeAuthorizedOperations = s.Ops
	for _, g := range s.Groups {
		r.Groups = append(r.Groups, w.group(g))
	}
	return r
}

// listGroupsStep lists groups.
type listGroupsStep struct {
	Version int16
	States  []string
	Types   []string
}

func drawListGroups(t *rapid.T) step {
	s := listGroupsStep{Version: version(t, kmsg.NewPtrListGroupsRequest())}
	if state := often(t, "state", "", "Empty", "Stable", "empty", "PreparingRebalance", "Nonsense"); state != "" {
		s.States = append(s.States, state)
	}
	if kind := often(t, "type", "", "classic", "consumer", "Consumer", "nonsense"); kind != "" {
		s.Types = append(s.Types, kind)
	}
	return s
}

func (s listGroupsStep) request(w *world) kmsg.Request {
	r := at(w, s.Version, kmsg.NewPtrListGroupsRequest())
	r.StatesFilter, r.TypesFilter = s.States, s.Types
	return r
}

// deleteGroupsStep deletes groups.
type deleteGroupsStep struct {
	Version int16
	Groups  []int
}

func drawDeleteGroups(t *rapid.T) step {
	return deleteGroupsStep{version(t, kmsg.NewPtrDeleteGroupsRequest()), []int{drawGroup(t)}}
}

func (s deleteGroupsStep) request(w *world) kmsg.Request {
	r := at(w, s.Version, kmsg.NewPtrDeleteGroupsRequest())
	for _, g := range s.Groups {
		r.Groups = append(r.Groups, w.group(g))
	}
	return r
}

func (s deleteGroupsStep) learn(w *world, _ kmsg.Request, response kmsg.Response) {
	for _, g := range response.(*kmsg.DeleteGroupsResponse).Groups {
		if g.ErrorCode == 0 {
			delete(w.committed, g.Group)
		}
	}
}

// consumerStep is a KIP-848 heartbeat in group 0. Members have the same IDs on both sides.
type consumerStep struct {
	Version int16
	Member  int
	Epoch   string // join, own, ahead, behind, leave, leave for now
	Topics  []int
	Regex   string // @ stands for the run; "" for none
	Keep    bool   // does not send the subscription, like most heartbeats
	Owned   string // assigned, none, or unsaid for null
	Assign  string // the assignor
}

func drawConsumer(t *rapid.T) step {
	s := consumerStep{Version: version(t, kmsg.NewPtrConsumerGroupHeartbeatRequest()), Member: drawMember(t),
		Epoch: pick(t, "epoch", "join", "own", "own", "own", "own", "ahead", "behind", "leave", "leave for now"),
		Owned: often(t, "owned", "assigned", "none", "unsaid"), Assign: often(t, "assignor", "", "uniform", "range", "nonsense")}
	s.Keep = s.Epoch != "join" && rapid.Bool().Draw(t, "keep")
	s.Topics = several(t, often(t, "topics", 1, 2, 0), drawTopic)
	s.Regex = often(t, "regex", "", "@-t[") // Kafka resolves a valid expression asynchronously
	return s
}

func (w *world) consumerID(member int) string {
	id := fmt.Sprintf("%s-consumer-%d", w.run, member)
	w.knows(0, member, id)
	return id
}

func (s consumerStep) request(w *world) kmsg.Request {
	r := at(w, s.Version, kmsg.NewPtrConsumerGroupHeartbeatRequest())
	m := w.member(0, s.Member)
	r.Group, r.MemberID, r.InstanceID, r.RebalanceTimeoutMillis = w.group(0), w.consumerID(s.Member), instance(s.Member), -1
	m.id = r.MemberID
	if m.epoch == 0 && (s.Epoch == "own" || s.Epoch == "ahead" || s.Epoch == "behind") {
		s.Epoch, s.Keep = "join", false
	}
	switch s.Epoch {
	case "join":
		r.MemberEpoch, r.RebalanceTimeoutMillis = 0, 60_000
		r.Topics = []kmsg.ConsumerGroupHeartbeatRequestTopic{}
	case "own":
		r.MemberEpoch = m.epoch
	case "ahead":
		r.MemberEpoch = m.epoch + 1
	case "behind":
		r.MemberEpoch = max(m.epoch-1, 0)
	case "leave":
		r.MemberEpoch = -1
	case "leave for now":
		r.MemberEpoch = -2
	}
	if s.Epoch != "join" {
		switch s.Owned {
		case "assigned":
			r.Topics = slices.Clone(m.assigned)
			if r.Topics == nil {
				r.Topics = []kmsg.ConsumerGroupHeartbeatRequestTopic{}
			}
		case "none":
			r.Topics = []kmsg.ConsumerGroupHeartbeatRequestTopic{}
		}
	}
	if s.Assign != "" {
		r.ServerAssignor = &s.Assign
	}
	if !s.Keep {
		r.SubscribedTopicNames = []string{}
		for _, i := range s.Topics {
			r.SubscribedTopicNames = append(r.SubscribedTopicNames, w.topic(i))
		}
		if s.Regex != "" {
			r.SubscribedTopicRegex = w.orNull(s.Regex)
		}
	}
	return r
}

func (s consumerStep) learn(w *world, request kmsg.Request, response kmsg.Response) {
	r := response.(*kmsg.ConsumerGroupHeartbeatResponse)
	if r.ErrorCode != 0 {
		return
	}
	m := w.member(0, s.Member)
	m.epoch = r.MemberEpoch
	sent := request.(*kmsg.ConsumerGroupHeartbeatRequest)
	if sent.SubscribedTopicNames != nil {
		m.topics = sent.SubscribedTopicNames
	}
	if sent.ServerAssignor != nil {
		m.assignor = *sent.ServerAssignor
	}
	if sent.MemberEpoch == -1 {
		*m = memberState{generation: -1}
		w.left = true
	}
	if sent.MemberEpoch == 0 {
		m.assigned = nil
		w.strayed = w.strayed || w.left && len(sent.SubscribedTopicNames) == 0
	}
	if r.Assignment != nil {
		m.assigned = nil
		for _, topic := range r.Assignment.Topics {
			owned := kmsg.NewConsumerGroupHeartbeatRequestTopic()
			owned.TopicID, owned.Partitions = topic.TopicID, topic.Partitions
			m.assigned = append(m.assigned, owned)
		}
	}
}

// describeConsumersStep describes a KIP-848 group.
type describeConsumersStep struct {
	Version int16
	Group   int
	Ops     bool
}

func drawDescribeConsumers(t *rapid.T) step {
	return describeConsumersStep{version(t, kmsg.NewPtrConsumerGroupDescribeRequest()), drawGroup(t), rapid.Bool().Draw(t, "operations")}
}

func (s describeConsumersStep) request(w *world) kmsg.Request {
	r := at(w, s.Version, kmsg.NewPtrConsumerGroupDescribeRequest())
	r.Groups, r.IncludeAuthorizedOperations = []string{w.group(s.Group)}, s.Ops
	return r
}
