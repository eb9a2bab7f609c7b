package broker

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestMembersHaveTheirOwnTopics: a member is assigned only topics that it may describe itself, even
// if other members of the group may describe more.
func TestMembersHaveTheirOwnTopics(t *testing.T) {
	b := open(t, Config{})
	create(t, b, superUser, newTopic("secret", 3))
	grant(t, b, kmsg.ACLResourceTypeGroup, "group", kmsg.ACLOperationRead)
	heartbeat := func(as caller, member string, epoch int32) *kmsg.ConsumerGroupHeartbeatResponse {
		t.Helper()
		beat := kmsg.NewPtrConsumerGroupHeartbeatRequest()
		beat.Group, beat.MemberID, beat.MemberEpoch, beat.Topics = "group", member, epoch, []kmsg.ConsumerGroupHeartbeatRequestTopic{}
		beat.RebalanceTimeoutMillis, beat.SubscribedTopicRegex = 60_000, kmsg.StringPtr(".*")
		response := ask[*kmsg.ConsumerGroupHeartbeatResponse](t, b, as, beat)
		if response.ErrorCode != 0 {
			t.Fatalf("heartbeat of %s: code %d", member, response.ErrorCode)
		}
		return response
	}
	ada := heartbeat(asAda, "ada", 0)
	super := heartbeat(superUser, "super user", 0)
	create(t, b, superUser, newTopic("another-secret", 3))
	heartbeat(superUser, "super user", super.MemberEpoch)
	response := heartbeat(asAda, "ada", ada.MemberEpoch)
	if response.Assignment == nil || len(response.Assignment.Topics) > 0 {
		t.Errorf("assigned %+v to a member that may describe no topic", response.Assignment)
	}
}
