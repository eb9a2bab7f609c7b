package groups

import (
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// maxSubscriptionBytes bounds the size of a member's data in a heartbeat.
const maxSubscriptionBytes = 1 << 20

// checkConsumerHeartbeat performs the checks that do not depend on the group, in the same order as
// Kafka. It returns the error to answer with, or nil.
func checkConsumerHeartbeat(who Caller, req *kmsg.ConsumerGroupHeartbeatRequest) *kmsg.ConsumerGroupHeartbeatResponse {
	for _, name := range req.SubscribedTopicNames {
		if !who.mayDescribe(name) {
			return consumerHeartbeatError(req, kerr.TopicAuthorizationFailed, "")
		}
	}
	if reason := heartbeatFault(req); reason != "" {
		return consumerHeartbeatError(req, kerr.InvalidRequest, "%s", reason)
	}
	if a := req.ServerAssignor; a != nil && consumerAssignors[*a] == nil {
		return consumerHeartbeatError(req, kerr.UnsupportedAssignor, "ServerAssignor %s is not supported. Supported assignors: uniform, range.", *a)
	}
	return nil
}

// heartbeatFault returns what is wrong with a request, or "".
func heartbeatFault(req *kmsg.ConsumerGroupHeartbeatRequest) string {
	mustHaveID := req.Version >= 1 || req.MemberEpoch > 0 || req.MemberEpoch == -1
	switch {
	case mustHaveID && isBlank(&req.MemberID):
		return "MemberId can't be empty."
	case isBlank(&req.Group):
		return "GroupId can't be empty."
	case isBlank(req.InstanceID):
		return "InstanceId can't be empty."
	case isBlank(req.RackID):
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

// isBlank reports whether a string is set but contains only white space. As in Java's String.trim,
// white space is everything up to U+0020.
func isBlank(s *string) bool {
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

// notConsumerGroup returns the error for a heartbeat to a classic group. It returns nil if a new
// consumer group must replace the classic one, because that is empty and a member joins.
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

// checkCommit returns an error if a member may not commit offsets with the epoch in its request.
// Commits from outside the group have an epoch below 0. They are accepted while the group is empty.
//
// With an older epoch, a member may still commit those partitions that were assigned to it at that
// epoch (KIP-1251). In that case check is not nil, and the caller must call it for each partition.
func (g *consumerGroup) checkCommit(memberID string, epoch int32, version int16) (
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

// checkFetch returns an error if a member may not fetch committed offsets with the epoch in its
// request. A request from outside the group has no member ID and an epoch below 0.
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
