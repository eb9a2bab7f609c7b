package groups

import (
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// maxSubscriptionBytes bounds the size of what a member sends about itself.
const maxSubscriptionBytes = 1 << 20

// checkConsumerHeartbeat does the checks that do not depend on the group, in
// the order of Kafka. It returns the error to answer, or nil.
func checkConsumerHeartbeat(who Caller, req *kmsg.ConsumerGroupHeartbeatRequest) *kmsg.ConsumerGroupHeartbeatResponse {
	for _, name := range req.SubscribedTopicNames {
		if !who.mayDescribe(name) {
			return consumerHeartbeatError(req, kerr.TopicAuthorizationFailed, "")
		}
	}
	if reason := badHeartbeat(req); reason != "" {
		return consumerHeartbeatError(req, kerr.InvalidRequest, "%s", reason)
	}
	if a := req.ServerAssignor; a != nil && consumerAssignors[*a] == nil {
		return consumerHeartbeatError(req, kerr.UnsupportedAssignor, "ServerAssignor %s is not supported. Supported assignors: uniform, range.", *a)
	}
	return nil
}

// badHeartbeat returns what is wrong with a request, or "".
func badHeartbeat(req *kmsg.ConsumerGroupHeartbeatRequest) string {
	mustHaveID := req.Version >= 1 || req.MemberEpoch > 0 || req.MemberEpoch == -1
	switch {
	case mustHaveID && blank(&req.MemberID):
		return "MemberId can't be empty."
	case blank(&req.Group):
		return "GroupId can't be empty."
	case blank(req.InstanceID):
		return "InstanceId can't be empty."
	case blank(req.RackID):
		return "RackId can't be empty."
	case req.MemberEpoch == 0 && req.RebalanceTimeoutMillis == -1:
		return "RebalanceTimeoutMs must be provided in first request."
	case req.MemberEpoch == 0 && (req.Topics == nil || len(req.Topics) > 0):
		return "TopicPartitions must be empty when (re-)joining."
	case req.MemberEpoch == 0 && req.SubscribedTopicNames == nil && req.SubscribedTopicRegex == nil:
		return "Either SubscribedTopicNames or SubscribedTopicRegex must be non-null when (re-)joining."
	case req.MemberEpoch == consumerLeftStatic && req.InstanceID == nil:
		return "InstanceId can't be null."
	case req.MemberEpoch < consumerLeftStatic:
		return "MemberEpoch is invalid."
	case subscriptionBytes(req) > maxSubscriptionBytes:
		return "The subscription is too large."
	}
	return ""
}

// blank reports whether a string is set but has nothing except white space,
// which for Java's String.trim is everything up to U+0020.
func blank(s *string) bool {
	return s != nil && strings.TrimLeftFunc(*s, func(r rune) bool { return r <= ' ' }) == ""
}

func subscriptionBytes(req *kmsg.ConsumerGroupHeartbeatRequest) int {
	n := len(req.MemberID)
	for _, s := range []*string{req.InstanceID, req.RackID, req.SubscribedTopicRegex} {
		if s != nil {
			n += len(*s)
		}
	}
	for _, name := range req.SubscribedTopicNames {
		n += len(name) + 1
	}
	return n
}

// notConsumerGroup returns the error to answer if a heartbeat is for a classic
// group. It is nil if a new consumer group has to replace the classic one,
// because that is empty and a member joins.
func notConsumerGroup(req *kmsg.ConsumerGroupHeartbeatRequest, empty bool) *kmsg.ConsumerGroupHeartbeatResponse {
	switch {
	case req.MemberEpoch != 0:
		return consumerHeartbeatError(req, kerr.GroupIDNotFound, "Group %s is not a consumer group.", req.Group)
	case !empty:
		return consumerHeartbeatError(req, kerr.GroupIDNotFound,
			"Cannot upgrade classic group %s to consumer group because online upgrade is disabled.", req.Group)
	}
	return nil
}

// checkCommit reports whether a member may commit offsets with the epoch in its
// request. Commits from outside the group have an epoch below 0; they are
// accepted while the group is empty.
//
// A member may also commit with an older epoch those partitions that were
// already assigned to it then (KIP-1251). In that case check is not nil, and
// the caller has to ask it about each partition.
func (g *consumerGroup) checkCommit(memberID string, _ *string, epoch int32, version int16) (
	check func(topicID [16]byte, partition int32) *kerr.Error, err *kerr.Error,
) {
	if epoch < 0 && g.empty() {
		return nil, nil
	}
	m := g.members[memberID]
	switch {
	case m == nil:
		return nil, kerr.UnknownMemberID
	case version < 9:
		return nil, kerr.UnsupportedVersion // the client does not know STALE_MEMBER_EPOCH
	case epoch == m.epoch:
		return nil, nil
	case epoch > m.epoch:
		return nil, kerr.StaleMemberEpoch
	}
	return func(topicID [16]byte, partition int32) *kerr.Error {
		p := partitionID{topicID, partition}
		since, has := m.assigned[p]
		if !has {
			since, has = m.revoking[p]
		}
		if !has || epoch < since {
			return kerr.StaleMemberEpoch
		}
		return nil
	}, nil
}

// checkFetch reports whether a member may fetch committed offsets with the
// epoch in its request. Without a member the epoch is below 0.
func (g *consumerGroup) checkFetch(memberID *string, epoch int32) *kerr.Error {
	if memberID == nil && epoch < 0 {
		return nil
	}
	var m *consumerMember
	if memberID != nil {
		m = g.members[*memberID]
	}
	switch {
	case m == nil:
		return kerr.UnknownMemberID
	case epoch != m.epoch:
		return kerr.StaleMemberEpoch
	}
	return nil
}
