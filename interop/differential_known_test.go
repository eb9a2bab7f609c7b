//go:build kafka

package interop

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// designed is a difference that is intended. The table in docs/engines.md describes each one and
// its reason.
type designed struct {
	title string // the first column of the table

	// Fields of responses that differ:
	answer string                               // the type of the response
	place  string                               // regular expression for the place of the field
	when   func(d difference, x *exchange) bool // nil: always
	parts  bool                                 // the engines' states differ afterwards
	shown  [][]step                             // sequences that show the difference

	keys   []kmsg.Key // or: requests that are supported by only one engine, or in different versions
	unsent bool       // or: requests that the suite does not send
}

var designedDifferences = []designed{
	{title: "ApiVersions: keys 24 to 28, 65, 66", keys: []kmsg.Key{kmsg.AddPartitionsToTxn, kmsg.AddOffsetsToTxn, kmsg.EndTxn, kmsg.WriteTxnMarkers,
		kmsg.TxnOffsetCommit, kmsg.DescribeTransactions, kmsg.ListTransactions}},
	{title: "ApiVersions: keys 76 to 79, 83 to 87, 90 to 92", keys: []kmsg.Key{kmsg.ShareGroupHeartbeat, kmsg.ShareGroupDescribe, kmsg.ShareFetch,
		kmsg.ShareAcknowledge, kmsg.InitializeShareGroupState, kmsg.ReadShareGroupState, kmsg.WriteShareGroupState, kmsg.DeleteShareGroupState,
		kmsg.ReadShareGroupStateSummary, kmsg.DescribeShareGroupOffsets, kmsg.AlterShareGroupOffsets, kmsg.DeleteShareGroupOffsets}},
	{title: "ApiVersions: keys 88, 89", keys: []kmsg.Key{kmsg.StreamsGroupHeartbeat, kmsg.StreamsGroupDescribe}},
	{title: "ApiVersions: keys 38 to 41", keys: []kmsg.Key{kmsg.CreateDelegationToken, kmsg.RenewDelegationToken, kmsg.ExpireDelegationToken, kmsg.DescribeDelegationToken}},
	{title: "ApiVersions: keys 34, 43, 45, 55, 57, 64, 80, 81", keys: []kmsg.Key{kmsg.AlterReplicaLogDirs, kmsg.ElectLeaders, kmsg.AlterPartitionAssignments,
		kmsg.DescribeQuorum, kmsg.UpdateFeatures, kmsg.UnregisterBroker, kmsg.AddRaftVoter, kmsg.RemoveRaftVoter}},
	{title: "ApiVersions: keys 48 to 51", keys: []kmsg.Key{kmsg.DescribeClientQuotas, kmsg.AlterClientQuotas, kmsg.DescribeUserSCRAMCredentials, kmsg.AlterUserSCRAMCredentials}},
	{title: "ApiVersions: keys 17, 36", keys: []kmsg.Key{kmsg.SASLHandshake, kmsg.SASLAuthenticate}},
	{title: "ApiVersions: ListOffsets", keys: []kmsg.Key{kmsg.ListOffsets}},

	{title: lyingLength, answer: "ProduceResponse", place: refusedBatch, when: stricter(lyingLength), parts: true,
		shown: [][]step{{hostile("record length one more", 1)}}},
	{title: oddDeltas, answer: "ProduceResponse", place: refusedBatch, when: stricter(oddDeltas), parts: true,
		shown: [][]step{{hostile("offset delta twice", 0)}}},
	{title: brokenEnd, answer: "ProduceResponse", place: refusedBatch, when: stricter(brokenEnd), parts: true,
		shown: [][]step{{hostile("compressed stream and more", 1)}}},
	{title: tooMuch, answer: "ProduceResponse", place: refusedBatch, when: stricter(tooMuch), parts: true,
		shown: [][]step{{hostile("40 MB of one record", 4)}}},
	{title: "Produce: the same partition twice in a request", answer: "ProduceResponse", place: `Topics\.Partitions.*`, when: samePartitionTwice, parts: true,
		shown: [][]step{{produceStep{Version: 9, Acks: -1, Batches: []batchStep{{Records: 1, Producer: -1}, {Records: 2, Producer: -1}}}}}},

	{title: "CreateTopics, IncrementalAlterConfigs, AlterConfigs: settings that are not offered", answer: "CreateTopicsResponse|IncrementalAlterConfigsResponse|AlterConfigsResponse",
		place: `Resources\.ErrorCode|Topics\.(ErrorCode|TopicID|NumPartitions|ReplicationFactor|Configs.*)`, when: settingNotOffered, parts: true, shown: settingsNotOffered()},

	{title: "DescribeConfigs and others: the topic `__consumer_offsets`", answer: "DescribeConfigsResponse", place: "Resources.*", when: aboutOffsetsTopic,
		shown: [][]step{{describeConfigsStep{Version: 4, Topic: offsetsTopic, Type: int8(kmsg.ConfigResourceTypeTopic)}}}},

	{title: "ConsumerGroupHeartbeat: a regular expression", answer: "ConsumerGroupHeartbeatResponse", place: `MemberEpoch|Assignment.*`, when: newExpression,
		shown: [][]step{{consumerStep{Version: 1, Epoch: "join", Regex: "@-t.*"}}}},

	{title: "DescribeTopicPartitions: an empty topic name without a cursor", answer: "DescribeTopicPartitionsResponse", place: ".*", when: emptyName,
		shown: [][]step{{topicPartitionsStep{Topics: []int{0, -1}, Limit: 2000, Cursor: noCursor}}}},

	{title: "DescribeLogDirs: the size of a partition whose records were deleted", answer: "DescribeLogDirsResponse", place: `Dirs\.Topics\.Partitions\.Size`, when: recordsDeleted,
		shown: [][]step{{records(3), deleteRecordsStep{Version: 2, Offset: -1}, logDirsStep{Version: 4, All: true}}}},

	{title: "ListOffsets: the largest timestamp when all records were deleted", answer: "ListOffsetsResponse", place: `Topics\.Partitions\.(Offset|Timestamp|LeaderEpoch)`,
		when: largestDeleted, shown: [][]step{{records(3), deleteRecordsStep{Version: 2, Offset: -1}, listStep{Version: 7, Time: -3, Epoch: noEpoch}}}},

	{title: "ConsumerGroupHeartbeat, ConsumerGroupDescribe: partitions for which members tie", answer: "ConsumerGroupHeartbeatResponse|ConsumerGroupDescribeResponse",
		place: `MemberEpoch|Assignment.*|Groups\.Members\.(MemberEpoch|Assignment|TargetAssignment).*`, when: membersTie, parts: true},

	{title: "ConsumerGroupHeartbeat, ConsumerGroupDescribe: a member without topics that joins when another has left", answer: "ConsumerGroupHeartbeatResponse|ConsumerGroupDescribeResponse",
		place: `MemberEpoch|Assignment.*|Groups\.Members\.(MemberEpoch|Assignment|TargetAssignment).*`, when: memberWithoutTopics, parts: true,
		shown: [][]step{{consumerStep{Version: 1, Member: 0, Epoch: "join", Topics: []int{0}}, consumerStep{Version: 1, Member: 1, Epoch: "join", Topics: []int{0}},
			consumerStep{Version: 1, Member: 0, Epoch: "leave"}, consumerStep{Version: 1, Member: 0, Epoch: "join"}, describeConsumersStep{Version: 1}}}},

	{title: "JoinGroup: the leader, when the earlier one has left and several members remain", answer: "JoinGroupResponse",
		place: `LeaderID|Members.*`, when: leaderLeft, parts: true},

	{title: "Fetch: a topic without an ID, and others after it", answer: "FetchResponse", place: `ErrorCode|Topics.*`, when: withoutID,
		shown: [][]step{{createTopicsStep{Version: 3, Topics: []newTopic{{Topic: 2, Partitions: 1, Replicas: 1}}},
			fetchStep{Version: 13, MinBytes: 1, MaxBytes: 1 << 20, SessionUse: "none", Partitions: []fetchPartition{
				{Topic: 2, MaxBytes: 1 << 20, CurrentEpoch: noEpoch, LastEpoch: noEpoch}, {Topic: -1, MaxBytes: 1 << 20, CurrentEpoch: noEpoch, LastEpoch: noEpoch}}}}}},

	{title: "Fetch: a session of an earlier connection", unsent: true},
	{title: "ACLs for one host", unsent: true},
	{title: "Produce: null instead of records", unsent: true},
	{title: "JoinGroup: a subscription that cannot be read", unsent: true},
	{title: "LeaveGroup: a member whose SyncGroup waits", unsent: true},
	{title: "OffsetCommit: a new group, with no offset that is accepted", unsent: true},
}

// byDesign returns the designed difference that explains a difference, or nil.
func byDesign(d difference, x *exchange) *designed {
	answer := responseName(x.requests[0])
	for i := range designedDifferences {
		known := &designedDifferences[i]
		if known.answer != "" && whole(known.answer).MatchString(answer) && whole(known.place).MatchString(d.place()) && (known.when == nil || known.when(d, x)) {
			return known
		}
	}
	return nil
}

func whole(expression string) *regexp.Regexp { return regexp.MustCompile("^(?:" + expression + ")$") }

// refusedBatch matches the fields in which the response for an accepted batch differs from that for
// a rejected one.
const refusedBatch = `Topics\.Partitions\.(ErrorCode|BaseOffset|LogAppendTime|LogStartOffset)`

// stricter returns a condition: the embedded engine has rejected a batch for the reason in the
// title, and Kafka has accepted it.
func stricter(title string) func(difference, *exchange) bool {
	return func(d difference, x *exchange) bool {
		s, ok := withoutSubject(x.step).(produceStep)
		if !ok || len(s.Batches) != 1 || s.Batches[0].strictness().title != title {
			return false
		}
		if strings.HasSuffix(d.path, ".ErrorCode") { // Kafka may reject it because of its sequence number
			return d.got == s.Batches[0].strictness().code && (d.want == "NONE" || d.want == kerr.OutOfOrderSequenceNumber.Message)
		}
		return d.got == "-1"
	}
}

// samePartitionTwice reports whether a produce request has two batches for one partition.
func samePartitionTwice(_ difference, x *exchange) bool {
	s, ok := withoutSubject(x.step).(produceStep)
	return ok && s.repeats()
}

// notOffered are topic settings that Kafka accepts and the embedded engine rejects.
var notOffered = []config{
	{"cleanup.policy", "compact"}, {"message.timestamp.type", "CreateTime"}, {"compression.type", "gzip"}, {"flush.messages", "1"}, {"flush.ms", "1000"},
}

// settingNotOffered reports whether a request has one of those settings and is rejected because of
// it.
func settingNotOffered(d difference, x *exchange) bool {
	var configs []config
	switch s := withoutSubject(x.step).(type) {
	case createTopicsStep:
		for _, topic := range s.Topics {
			configs = append(configs, topic.Configs...)
		}
	case alterConfigsStep:
		for _, change := range s.Changes {
			configs = append(configs, change.config)
		}
	case replaceConfigsStep:
		configs = s.Configs
	}
	if !slices.ContainsFunc(configs, func(c config) bool { return slices.Contains(notOffered, c) }) {
		return false
	}
	return !strings.HasSuffix(d.path, ".ErrorCode") || d.got == "INVALID_CONFIG" && d.want == "NONE"
}

func settingsNotOffered() (all [][]step) {
	for _, c := range notOffered {
		all = append(all,
			[]step{createTopicsStep{Version: 7, Topics: []newTopic{{Topic: 2, Partitions: 1, Replicas: 1, Configs: []config{c}}}}},
			[]step{alterConfigsStep{Version: 1, Changes: []configChange{{c, 0}}}},
			[]step{replaceConfigsStep{Version: 2, Configs: []config{c}}})
	}
	return all
}

// aboutOffsetsTopic reports whether a field is about the topic in which Kafka stores committed
// offsets.
func aboutOffsetsTopic(d difference, _ *exchange) bool {
	return strings.Contains(d.path, "[__consumer_offsets]")
}

// emptyName reports whether a request to describe partitions has no cursor and a topic without a
// name.
func emptyName(_ difference, x *exchange) bool {
	s, ok := withoutSubject(x.step).(topicPartitionsStep)
	return ok && s.Cursor == noCursor && slices.ContainsFunc(s.Topics, func(i int) bool { return x.worlds[1].name(i) == "" })
}

// recordsDeleted reports whether the sequence has deleted records, and only the embedded engine has
// freed their space.
func recordsDeleted(d difference, x *exchange) bool {
	got, err1 := strconv.Atoi(d.got)
	want, err2 := strconv.Atoi(d.want)
	return x.worlds[0].deleted && err1 == nil && err2 == nil && got < want
}

// largestDeleted reports whether a request is for the record with the largest timestamp, and the
// embedded engine has none.
func largestDeleted(d difference, x *exchange) bool {
	s, ok := withoutSubject(x.step).(listStep)
	return ok && s.Time == -3 && x.worlds[0].deleted && d.got == "-1"
}

// membersTie reports whether the assignment in a KIP-848 group is ambiguous: the votes for the
// assignor tie, the members cannot have equally many partitions, there are several topics, or
// several members could get new partitions. Topics are ordered by their IDs, which are random. The
// members' epochs differ as well, because a member that has to revoke partitions keeps its epoch
// until it has done so.
func membersTie(_ difference, x *exchange) bool {
	members, topics, votes := 0, map[string]int32{}, map[string]int{}
	w := x.worlds[1]
	for _, m := range w.members {
		if m.epoch == 0 {
			continue
		}
		members++
		votes[m.assignor]++
		for _, topic := range m.topics {
			if n := w.partitions[topic]; n > 0 {
				topics[topic] = n
			}
		}
	}
	delete(votes, "")
	tied := w.grown || len(votes) > 1 && votes["uniform"] == votes["range"]
	for _, partitions := range topics {
		tied = tied || len(topics) > 1 || int(partitions)%members != 0
	}
	return members > 1 && tied
}

// withoutID reports whether a request identifies topics by ID, one of them that is not the last has
// an ID of zeros, and Kafka has answered none of the request.
func withoutID(d difference, x *exchange) bool {
	r, ok := x.requests[1].(*kmsg.FetchRequest)
	if !ok || r.Version < 13 || len(r.Topics) < 2 {
		return false
	}
	zero := slices.ContainsFunc(r.Topics[:len(r.Topics)-1], func(t kmsg.FetchRequestTopic) bool { return t.TopicID == [16]byte{} })
	answer, ok := x.got[1].response.(*kmsg.FetchResponse)
	return zero && ok && answer.ErrorCode == kerr.UnknownServerError.Code
}

// memberWithoutTopics reports whether a member of a KIP-848 group has left, and a member without a
// subscription has joined afterwards. Kafka may have assigned it partitions, and continues from
// that assignment.
func memberWithoutTopics(_ difference, x *exchange) bool { return x.worlds[1].strayed }

// leaderLeft reports whether a classic group has elected a leader in both engines, because that of
// the generation before has left. Kafka takes the first member of a hash table, and member IDs are
// random.
func leaderLeft(_ difference, x *exchange) bool {
	for side, w := range x.worlds {
		r, ok := x.got[side].response.(*kmsg.JoinGroupResponse)
		if !ok || r.ErrorCode != 0 {
			return false
		}
		left := false
		for _, m := range w.members {
			left = left || m.leader && m.generation == r.Generation-1 && m.id != r.LeaderID
		}
		if !left {
			return false
		}
	}
	return true
}

// newExpression reports whether a heartbeat contains a regular expression.
func newExpression(_ difference, x *exchange) bool {
	return x.requests[1].(*kmsg.ConsumerGroupHeartbeatRequest).SubscribedTopicRegex != nil
}

// TestDifferentialDesigned demonstrates each designed difference, so that the list has none that no
// longer exists.
func TestDifferentialDesigned(t *testing.T) {
	duels := startDuels(t)
	for _, known := range designedDifferences {
		for i, steps := range known.shown {
			t.Run(fmt.Sprintf("%s %d", known.title, i), func(t *testing.T) {
				t.Parallel()
				d := *duels.take(t)
				d.tally = newTally()
				if report := d.play(steps); report != "" {
					t.Error(report)
				}
				if d.designed[known.title] == 0 {
					t.Error("the engines answer alike: this difference is gone")
				}
			})
		}
	}
}

// TestDifferentialVersions compares the requests and versions that the engines support.
func TestDifferentialVersions(t *testing.T) {
	d := startDuel(t)
	got, want := offered(t, d.sides[0]), offered(t, d.sides[1])
	known := map[int16]string{}
	for _, item := range designedDifferences {
		for _, key := range item.keys {
			known[key.Int16()] = item.title
		}
	}
	for key := range int16(200) {
		g, isGot := got[key]
		w, isWanted := want[key]
		switch differs := isGot != isWanted || g != w; {
		case differs && known[key] == "":
			t.Errorf("%s (%d): embedded %v %t, Kafka %v %t", kmsg.NameForKey(key), key, g, isGot, w, isWanted)
		case !differs && known[key] != "":
			t.Errorf("%s (%d): offered alike, but on the list: %s", kmsg.NameForKey(key), key, known[key])
		}
	}
}

// TestDifferentialList compares the list above with the table in docs/engines.md.
func TestDifferentialList(t *testing.T) {
	document := testkit.ReadFile(t, "../docs/engines.md")
	_, table, found := strings.Cut(string(document), "\n| request | embedded broker | Apache Kafka | reason |\n| --- | --- | --- | --- |\n")
	if !found {
		t.Fatal("docs/engines.md has no table of designed differences")
	}
	table, _, _ = strings.Cut(table, "\n\n")
	rows := map[string]bool{}
	for line := range strings.Lines(table) {
		rows[strings.TrimSpace(strings.Split(line, "|")[1])] = true
	}
	for _, known := range designedDifferences {
		if !rows[known.title] {
			t.Errorf("docs/engines.md does not have %q", known.title)
		}
		delete(rows, known.title)
	}
	for _, row := range slices.Sorted(maps.Keys(rows)) {
		t.Errorf("designedDifferences does not have %q, which is in docs/engines.md", row)
	}
}
