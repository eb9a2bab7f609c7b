//go:build kafka

package interop

import (
	"regexp"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// A designed difference is one that stays. docs/engines.md has the same list, in words.
type designed struct {
	answer string                                        // the type of the response
	place  string                                        // a regular expression for the place of the field
	when   func(d difference, request kmsg.Request) bool // nil: always
	why    string
}

var designedDifferences = []designed{
	{"ConsumerGroupHeartbeatResponse", `MemberEpoch|Assignment.*`, func(_ difference, request kmsg.Request) bool {
		return request.(*kmsg.ConsumerGroupHeartbeatRequest).SubscribedTopicRegex != nil
	}, "a regular expression is resolved in the heartbeat that brings it; Kafka resolves it some time later"},
}

// byDesign returns why a difference stays, or "" if it does not.
func byDesign(d difference, request kmsg.Request, response string) (why string) {
	for _, known := range designedDifferences {
		if known.answer == response && regexp.MustCompile("^(?:"+known.place+")$").MatchString(d.place()) && (known.when == nil || known.when(d, request)) {
			return known.why
		}
	}
	return ""
}

// offeredByDesign are the requests that one engine offers and the other does not, or not in the same
// versions, each with the reason.
var offeredByDesign = func() map[int16]string {
	reasons := map[int16]string{}
	for why, keys := range map[string][]kmsg.Key{
		"the embedded engine has no transactions": {kmsg.AddPartitionsToTxn, kmsg.AddOffsetsToTxn, kmsg.EndTxn, kmsg.WriteTxnMarkers, kmsg.TxnOffsetCommit,
			kmsg.DescribeTransactions, kmsg.ListTransactions},
		"it has no share groups": {kmsg.ShareGroupHeartbeat, kmsg.ShareGroupDescribe, kmsg.ShareFetch, kmsg.ShareAcknowledge, kmsg.DescribeShareGroupOffsets,
			kmsg.AlterShareGroupOffsets, kmsg.DeleteShareGroupOffsets, kmsg.InitializeShareGroupState, kmsg.ReadShareGroupState, kmsg.WriteShareGroupState,
			kmsg.DeleteShareGroupState, kmsg.ReadShareGroupStateSummary},
		"it has no groups of Kafka Streams": {kmsg.StreamsGroupHeartbeat, kmsg.StreamsGroupDescribe},
		"it has no delegation tokens":       {kmsg.CreateDelegationToken, kmsg.RenewDelegationToken, kmsg.ExpireDelegationToken, kmsg.DescribeDelegationToken},
		"it is one broker without a quorum": {kmsg.DescribeQuorum, kmsg.UnregisterBroker, kmsg.AddRaftVoter, kmsg.RemoveRaftVoter, kmsg.AlterReplicaLogDirs,
			kmsg.AlterPartitionAssignments, kmsg.ListPartitionReassignments, kmsg.ElectLeaders, kmsg.UpdateFeatures},
	} {
		for _, key := range keys {
			reasons[key.Int16()] = why
		}
	}
	return reasons
}()

// TestDifferentialVersions compares which requests the engines offer, and in which versions.
func TestDifferentialVersions(t *testing.T) {
	d := startDuel(t)
	got, want := offered(t, d.sides[0]), offered(t, d.sides[1])
	for key := range int16(120) {
		g, isGot := got[key]
		w, isWanted := want[key]
		if (isGot != isWanted || g != w) && offeredByDesign[key] == "" {
			t.Errorf("%s (%d): embedded %v %t, Kafka %v %t", kmsg.NameForKey(key), key, g, isGot, w, isWanted)
		}
	}
}
