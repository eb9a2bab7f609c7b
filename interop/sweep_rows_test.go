package interop

import (
	"hash/crc32"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/claims"
)

// row says what the actors get for a request, in all versions.
type row struct {
	key     kmsg.Key
	of      string                  // what tells the rows of one key apart, or empty
	request func(cell) kmsg.Request // in the cell's version; nil signs in again as somebody else

	prepare func(*testing.T, cell, rawConn)    // makes what the request needs; or nil
	finish  func(cell, rawConn, kmsg.Response) // puts things back after the answer; or nil

	// want has the error codes in the answer for each actor, see [expected].
	want answers

	// changes has, for each actor, prefixes of the parts of the snapshot that the request may
	// change. All other parts stay as they are.
	changes map[string][]string

	// shows has, for each thing that answers may tell, who is told. Nobody else is.
	shows      map[string][]string
	showsSince int16    // the version from which they are told it
	names      []string // of these, the request has, and so may the answer

	// hint is the command that the answer to everybody names, from version hintSince on.
	hint      string
	hintSince int16

	apacheOnly bool // there is no such thing in the embedded engine
}

// The codes of refusals.
const (
	topicDenied   = "TOPIC_AUTHORIZATION_FAILED"
	groupDenied   = "GROUP_AUTHORIZATION_FAILED"
	clusterDenied = "CLUSTER_AUTHORIZATION_FAILED"
	memberUnknown = "UNKNOWN_MEMBER_ID"
	groupUnknown  = "GROUP_ID_NOT_FOUND"
	txnDenied     = "TRANSACTIONAL_ID_AUTHORIZATION_FAILED"
)

// sinceV3: Apache Kafka offers earlier versions of Produce for clients that look at the number
// alone, and takes none.
const sinceV3 = "0: closed, 3: "

// mayJoin is what a group answers that is not somebody else's.
const mayJoin = "0: ok, 4: MEMBER_ID_REQUIRED"

// right is what somebody may do with the topic of the sweep.
type right string

const (
	toDescribe right = "describe" // whoever may do anything else may do this
	toRead     right = "read"
	toWrite    right = "write"
	toManage   right = "manage"
)

// holders have the rights.
var holders = map[right][]string{
	toDescribe: {theOwner, theManager, theWriter, theWriteKey, theReader, theReadersKey, theVisitor},
	toRead:     {theOwner, theManager, theReader, theReadersKey, theVisitor},
	toWrite:    {theOwner, theManager, theWriter, theWriteKey},
	toManage:   {theOwner, theManager},
}

// answers has the error codes in the answer for each actor, see [expected].
type answers map[string]string

func everybody(codes string) answers {
	return answers{}.but(codes, theOwner, theManager, theWriter, theWriteKey, theReader, theReadersKey, theVisitor, theStranger, theOtherKey)
}

// needs is the answer to requests for which one needs a right on the topic.
func needs(r right, codes string) answers { return everybody(topicDenied).but(codes, holders[r]...) }

// ofGroup is the answer to requests about groups. Everybody has groups but a key that may not read.
func ofGroup(a answers) answers { return a.but(groupDenied, theWriteKey) }

// but has other codes for some actors.
func (a answers) but(codes string, actors ...string) answers {
	for _, name := range actors {
		a[name] = codes
	}
	return a
}

// after has all codes after what holds for earlier versions.
func (a answers) after(earlier string) answers {
	for name, codes := range a {
		a[name] = earlier + codes
	}
	return a
}

// changedBy says that those who have a right may change parts of the snapshot.
func changedBy(r right, parts ...string) map[string][]string {
	changes := map[string][]string{}
	for _, name := range holders[r] {
		changes[name] = parts
	}
	return changes
}

func ptr[T any](v T) *T { return &v }

// sweep has a row for each request that the gateway offers, and more for those that can be made
// about different things.
var sweep = []row{
	{key: kmsg.Produce, names: []string{theTopic}, request: func(c cell) kmsg.Request { return c.produce(c.topic) },
		want:    needs(toWrite, "ok").after(sinceV3),
		changes: changedBy(toWrite, "end of {topic}", "producers of {topic}")},
	{key: kmsg.Produce, of: " to the ledger", request: func(c cell) kmsg.Request { return c.produce(claims.LedgerTopic) }, want: everybody(sinceV3 + topicDenied)},
	{key: kmsg.Produce, of: " in a transaction", names: []string{theTopic}, request: func(c cell) kmsg.Request {
		q := c.produce(c.topic)
		q.TransactionID = ptr("transaction")
		q.Topics[0].Partitions[0].Records = encodeRecord(kmsg.RecordBatch{Attributes: 0x10, ProducerID: 1})
		return q
	}, want: everybody(sinceV3 + txnDenied)},
	{key: kmsg.Fetch, names: []string{theTopic}, request: func(c cell) kmsg.Request { return c.fetch(c.topic) },
		want:  needs(toRead, "ok"),
		shows: map[string][]string{theRecord: holders[toRead]}},
	{key: kmsg.Fetch, of: " of the ledger", request: func(c cell) kmsg.Request { return c.fetch(claims.LedgerTopic) }, want: everybody(topicDenied)},
	{key: kmsg.ListOffsets, names: []string{theTopic}, request: func(c cell) kmsg.Request {
		p := kmsg.NewListOffsetsRequestTopicPartition()
		p.Timestamp = -1
		q := kmsg.NewPtrListOffsetsRequest()
		q.Topics = []kmsg.ListOffsetsRequestTopic{{Topic: c.topic, Partitions: []kmsg.ListOffsetsRequestTopicPartition{p}}}
		return q
	}, want: needs(toDescribe, "ok")},
	{key: kmsg.Metadata, names: []string{theTopic}, request: func(c cell) kmsg.Request {
		q := kmsg.NewPtrMetadataRequest()
		q.Topics = []kmsg.MetadataRequestTopic{{Topic: &c.topic}}
		return q
	}, want: needs(toDescribe, "ok")},
	{key: kmsg.Metadata, of: " of all topics", request: func(c cell) kmsg.Request { return kmsg.NewPtrMetadataRequest() }, want: everybody("ok"),
		shows: map[string][]string{theTopic: holders[toDescribe]}},
	{key: kmsg.Metadata, of: " that creates a topic", request: func(c cell) kmsg.Request {
		q := kmsg.NewPtrMetadataRequest()
		q.AllowAutoTopicCreation, q.Topics = true, []kmsg.MetadataRequestTopic{{Topic: ptr("nobodys")}}
		return q
	}, want: everybody(topicDenied)},
	{key: kmsg.OffsetCommit, names: []string{theTopic}, request: func(c cell) kmsg.Request { return c.commit(c.group(committedGroup)) },
		want: ofGroup(needs(toRead, "ok"))},
	{key: kmsg.OffsetCommit, of: " as a member", names: []string{theTopic}, request: func(c cell) kmsg.Request {
		q := c.commit(c.group(liveGroup))
		q.MemberID, q.Generation = c.member, c.generation
		return q
	}, want: ofGroup(needs(toRead, "0: ILLEGAL_GENERATION, 9: GROUP_ID_NOT_FOUND"))},
	{key: kmsg.OffsetFetch, names: []string{theTopic}, request: func(c cell) kmsg.Request {
		q := kmsg.NewPtrOffsetFetchRequest()
		q.Group = committedGroup
		q.Topics = []kmsg.OffsetFetchRequestTopic{{Topic: c.topic, Partitions: []int32{0}}}
		g := kmsg.NewOffsetFetchRequestGroup()
		g.Group, g.Topics = committedGroup, []kmsg.OffsetFetchRequestGroupTopic{{Topic: c.topic, TopicID: c.ids[c.topic], Partitions: []int32{0}}}
		q.Groups = []kmsg.OffsetFetchRequestGroup{g}
		return q
	}, want: ofGroup(needs(toDescribe, "ok")),
		shows: map[string][]string{theMetadata: {theOwner}}},
	{key: kmsg.OffsetFetch, of: " of all topics", request: func(c cell) kmsg.Request {
		q := kmsg.NewPtrOffsetFetchRequest()
		q.Group = committedGroup
		g := kmsg.NewOffsetFetchRequestGroup()
		g.Group = committedGroup
		q.Groups = []kmsg.OffsetFetchRequestGroup{g}
		return q
	}, want: everybody("ok").but("0: ok, 2: "+groupDenied, theWriteKey), showsSince: 2, names: []string{theTopic},
		shows: map[string][]string{theMetadata: {theOwner}}}, // version 1 cannot ask for all
	{key: kmsg.FindCoordinator, request: func(c cell) kmsg.Request {
		q := kmsg.NewPtrFindCoordinatorRequest()
		q.CoordinatorKey, q.CoordinatorKeys = committedGroup, []string{committedGroup}
		return q
	}, want: ofGroup(everybody("ok"))},
	{key: kmsg.FindCoordinator, of: " of a transaction", request: func(c cell) kmsg.Request {
		q := kmsg.NewPtrFindCoordinatorRequest()
		q.CoordinatorType, q.CoordinatorKey, q.CoordinatorKeys = 1, "transaction", []string{"transaction"}
		return q
	}, want: everybody("0: ok, 1: "+txnDenied).but("0: "+groupDenied+", 1: "+txnDenied, theWriteKey)}, // version 0 is about groups
	{key: kmsg.JoinGroup, request: func(c cell) kmsg.Request { return c.join("") }, finish: leaveGroup,
		want: ofGroup(everybody(mayJoin))},
	{key: kmsg.JoinGroup, of: " as a member", names: []string{theMember}, request: func(c cell) kmsg.Request { return c.join(c.member) },
		want: ofGroup(everybody(memberUnknown))},
	{key: kmsg.Heartbeat, names: []string{theMember}, request: func(c cell) kmsg.Request {
		q := kmsg.NewPtrHeartbeatRequest()
		q.Group, q.MemberID, q.Generation = c.group(liveGroup), c.member, c.generation
		return q
	}, want: ofGroup(everybody(memberUnknown))},
	{key: kmsg.LeaveGroup, names: []string{theMember}, request: func(c cell) kmsg.Request {
		q := kmsg.NewPtrLeaveGroupRequest()
		q.Group, q.MemberID, q.Members = c.group(liveGroup), c.member, []kmsg.LeaveGroupRequestMember{{MemberID: c.member}}
		return q
	}, want: ofGroup(everybody(memberUnknown))},
	{key: kmsg.SyncGroup, names: []string{theMember}, request: func(c cell) kmsg.Request {
		q := kmsg.NewPtrSyncGroupRequest()
		q.Group, q.MemberID, q.Generation, q.ProtocolType, q.Protocol = c.group(liveGroup), c.member, c.generation, ptr("consumer"), ptr("range")
		return q
	}, want: ofGroup(everybody(memberUnknown))},
	{key: kmsg.DescribeGroups, request: func(c cell) kmsg.Request {
		q := kmsg.NewPtrDescribeGroupsRequest()
		q.Groups = []string{liveGroup}
		return q
	}, want: ofGroup(everybody("ok")),
		shows: map[string][]string{theMember: {theOwner, theOtherKey}, theTopic: {theOwner, theOtherKey}}},
	{key: kmsg.ListGroups, request: func(cell) kmsg.Request { return kmsg.NewPtrListGroupsRequest() }, want: everybody("ok")},
	{key: kmsg.SASLHandshake, request: func(cell) kmsg.Request {
		q := kmsg.NewPtrSASLHandshakeRequest()
		q.Mechanism = "PLAIN"
		return q
	}, want: everybody("ok")}, // after version 0 the gateway closes the connection
	{key: kmsg.SASLAuthenticate, want: everybody("SASL_AUTHENTICATION_FAILED")},
	{key: kmsg.ApiVersions, request: func(cell) kmsg.Request {
		q := kmsg.NewPtrApiVersionsRequest()
		q.ClientSoftwareName, q.ClientSoftwareVersion = "sweep", "1"
		return q
	}, want: everybody("ok")},
	{key: kmsg.CreateTopics, request: func(c cell) kmsg.Request {
		topic := kmsg.NewCreateTopicsRequestTopic()
		topic.Topic, topic.NumPartitions, topic.ReplicationFactor = "nobodys", 1, 1
		q := kmsg.NewPtrCreateTopicsRequest()
		q.Topics = []kmsg.CreateTopicsRequestTopic{topic}
		return q
	}, want: everybody(topicDenied), hint: "diaspora topic claim nobodys"},
	{key: kmsg.CreateTopics, of: " of a name that cannot be claimed", request: func(c cell) kmsg.Request {
		topic := kmsg.NewCreateTopicsRequestTopic()
		topic.Topic, topic.NumPartitions, topic.ReplicationFactor = "analysis-counts-changelog", 1, 1
		q := kmsg.NewPtrCreateTopicsRequest()
		q.Topics = []kmsg.CreateTopicsRequestTopic{topic}
		return q
	}, want: everybody(topicDenied)},
	{key: kmsg.DeleteTopics, names: []string{theTopic}, request: func(c cell) kmsg.Request {
		q := kmsg.NewPtrDeleteTopicsRequest()
		q.TopicNames, q.Topics = []string{c.topic}, []kmsg.DeleteTopicsRequestTopic{{Topic: &c.topic}}
		return q
	}, want: everybody(topicDenied), hint: "diaspora topic release {topic}", hintSince: 5},
	{key: kmsg.DeleteTopics, of: " by ID", request: func(c cell) kmsg.Request {
		q := kmsg.NewPtrDeleteTopicsRequest()
		q.TopicNames, q.Topics = []string{c.topic}, []kmsg.DeleteTopicsRequestTopic{{TopicID: c.ids[c.topic]}}
		return q
	}, want: everybody(topicDenied), names: []string{theTopic}, hint: "diaspora topic release ", hintSince: 5},
	{key: kmsg.DeleteRecords, names: []string{theTopic}, request: func(c cell) kmsg.Request {
		q := kmsg.NewPtrDeleteRecordsRequest()
		q.Topics = []kmsg.DeleteRecordsRequestTopic{{Topic: c.topic, Partitions: []kmsg.DeleteRecordsRequestTopicPartition{{Offset: 1}}}}
		return q
	}, want: needs(toManage, "ok"),
		changes: changedBy(toManage, "start of {topic}")},
	{key: kmsg.DeleteRecords, of: " of the ledger", request: func(c cell) kmsg.Request {
		q := kmsg.NewPtrDeleteRecordsRequest()
		q.Topics = []kmsg.DeleteRecordsRequestTopic{{Topic: claims.LedgerTopic, Partitions: []kmsg.DeleteRecordsRequestTopicPartition{{Offset: 1}}}}
		return q
	}, want: everybody(topicDenied)},
	{key: kmsg.InitProducerID, request: func(cell) kmsg.Request { return kmsg.NewPtrInitProducerIDRequest() },
		want: everybody("ok").but(clusterDenied, theOtherKey, theReader, theReadersKey, theVisitor)},
	{key: kmsg.InitProducerID, of: " for transactions", request: func(cell) kmsg.Request {
		q := kmsg.NewPtrInitProducerIDRequest()
		q.TransactionalID, q.TransactionTimeoutMillis = ptr("transaction"), 1000
		return q
	}, want: everybody(txnDenied)},
	{key: kmsg.OffsetForLeaderEpoch, names: []string{theTopic}, request: func(c cell) kmsg.Request {
		p := kmsg.NewOffsetForLeaderEpochRequestTopicPartition()
		q := kmsg.NewPtrOffsetForLeaderEpochRequest()
		q.Topics = []kmsg.OffsetForLeaderEpochRequestTopic{{Topic: c.topic, Partitions: []kmsg.OffsetForLeaderEpochRequestTopicPartition{p}}}
		return q
	}, want: needs(toDescribe, "ok")},
	{key: kmsg.DescribeACLs, request: func(cell) kmsg.Request {
		q := kmsg.NewPtrDescribeACLsRequest()
		q.ResourceType, q.ResourcePatternType, q.Operation, q.PermissionType = kmsg.ACLResourceTypeAny, kmsg.ACLResourcePatternTypeAny, kmsg.ACLOperationAny, kmsg.ACLPermissionTypeAny
		return q
	}, want: everybody(clusterDenied)},
	{key: kmsg.CreateACLs, request: func(c cell) kmsg.Request {
		q := kmsg.NewPtrCreateACLsRequest()
		q.Creations = []kmsg.CreateACLsRequestCreation{{ResourceType: kmsg.ACLResourceTypeTopic, ResourceName: c.topic, ResourcePatternType: kmsg.ACLResourcePatternTypeLiteral,
			Principal: "User:*", Host: "*", Operation: kmsg.ACLOperationAll, PermissionType: kmsg.ACLPermissionTypeAllow}}
		return q
	}, want: everybody(clusterDenied)},
	{key: kmsg.DeleteACLs, request: func(cell) kmsg.Request {
		q := kmsg.NewPtrDeleteACLsRequest()
		q.Filters = []kmsg.DeleteACLsRequestFilter{{ResourceType: kmsg.ACLResourceTypeAny, ResourcePatternType: kmsg.ACLResourcePatternTypeAny,
			Operation: kmsg.ACLOperationAny, PermissionType: kmsg.ACLPermissionTypeAny}}
		return q
	}, want: everybody(clusterDenied)},
	{key: kmsg.DescribeConfigs, names: []string{theTopic}, request: func(c cell) kmsg.Request { return describeConfigs(kmsg.ConfigResourceTypeTopic, c.topic) },
		want: needs(toManage, "ok")},
	{key: kmsg.DescribeConfigs, of: " of the broker", request: func(cell) kmsg.Request { return describeConfigs(kmsg.ConfigResourceTypeBroker, "") }, want: everybody(clusterDenied)},
	{key: kmsg.DescribeConfigs, of: " of a group", apacheOnly: true, request: func(cell) kmsg.Request { return describeConfigs(groupConfigs, liveGroup) },
		want: ofGroup(everybody("ok"))},
	{key: kmsg.AlterConfigs, names: []string{theTopic}, request: func(c cell) kmsg.Request { return alterConfigs(kmsg.ConfigResourceTypeTopic, c.topic) }, want: everybody(topicDenied),
		hint: "diaspora topic set {topic} --retention"},
	{key: kmsg.AlterConfigs, of: " of the brokers", request: func(cell) kmsg.Request { return alterConfigs(kmsg.ConfigResourceTypeBroker, "") }, want: everybody(clusterDenied)},
	{key: kmsg.AlterConfigs, of: " of a group", request: func(cell) kmsg.Request { return alterConfigs(groupConfigs, liveGroup) }, want: everybody(groupDenied)},
	{key: kmsg.IncrementalAlterConfigs, names: []string{theTopic}, request: func(c cell) kmsg.Request { return setConfig(kmsg.ConfigResourceTypeTopic, c.topic) }, want: everybody(topicDenied),
		hint: "diaspora topic set {topic} --retention"},
	{key: kmsg.IncrementalAlterConfigs, of: " of the brokers", request: func(cell) kmsg.Request { return setConfig(kmsg.ConfigResourceTypeBroker, "") }, want: everybody(clusterDenied)},
	{key: kmsg.IncrementalAlterConfigs, of: " of a group", request: func(cell) kmsg.Request { return setConfig(groupConfigs, liveGroup) }, want: everybody(groupDenied)},
	{key: kmsg.DescribeLogDirs, request: func(cell) kmsg.Request { return kmsg.NewPtrDescribeLogDirsRequest() }, want: everybody("0: ok, 3: " + clusterDenied)},
	{key: kmsg.CreatePartitions, names: []string{theTopic}, request: func(c cell) kmsg.Request {
		topic := kmsg.NewCreatePartitionsRequestTopic()
		topic.Topic, topic.Count = c.topic, 9
		q := kmsg.NewPtrCreatePartitionsRequest()
		q.Topics = []kmsg.CreatePartitionsRequestTopic{topic}
		return q
	}, want: everybody(topicDenied), hint: "diaspora topic set {topic} --partitions 9"},
	{key: kmsg.DeleteGroups, request: func(c cell) kmsg.Request {
		q := kmsg.NewPtrDeleteGroupsRequest()
		q.Groups = []string{c.group(committedGroup)}
		return q
	}, prepare: commitScratch, want: ofGroup(everybody("ok").but(groupUnknown, theStranger, theWriter))},
	{key: kmsg.OffsetDelete, names: []string{theTopic}, request: func(c cell) kmsg.Request {
		q := kmsg.NewPtrOffsetDeleteRequest()
		q.Group, q.Topics = c.group(committedGroup), []kmsg.OffsetDeleteRequestTopic{{Topic: c.topic, Partitions: []kmsg.OffsetDeleteRequestTopicPartition{{}}}}
		return q
	}, prepare: commitScratch, want: ofGroup(needs(toRead, "ok").but(groupUnknown, theStranger, theWriter))},
	{key: kmsg.DescribeCluster, request: func(cell) kmsg.Request { return kmsg.NewPtrDescribeClusterRequest() }, want: everybody("ok")},
	{key: kmsg.DescribeProducers, names: []string{theTopic}, request: func(c cell) kmsg.Request {
		q := kmsg.NewPtrDescribeProducersRequest()
		q.Topics = []kmsg.DescribeProducersRequestTopic{{Topic: c.topic, Partitions: []int32{0}}}
		return q
	}, want: needs(toRead, "ok")},
	{key: kmsg.ConsumerGroupHeartbeat, names: []string{theTopic}, request: func(c cell) kmsg.Request { return c.consumerHeartbeat() }, finish: leaveConsumerGroup,
		want: ofGroup(needs(toDescribe, "ok"))},
	{key: kmsg.ConsumerGroupHeartbeat, of: " that leaves a classic group", request: func(c cell) kmsg.Request {
		q := kmsg.NewPtrConsumerGroupHeartbeatRequest()
		q.Group, q.MemberID, q.MemberEpoch = c.group(liveGroup), c.member, -1
		return q
	}, want: ofGroup(everybody(groupUnknown))},
	{key: kmsg.ConsumerGroupDescribe, request: func(c cell) kmsg.Request {
		q := kmsg.NewPtrConsumerGroupDescribeRequest()
		q.Groups = []string{consumerGroup}
		return q
	}, want: ofGroup(everybody("ok").but(groupUnknown, theStranger))},
	{key: kmsg.DescribeTopicPartitions, names: []string{theTopic}, request: func(c cell) kmsg.Request {
		q := kmsg.NewPtrDescribeTopicPartitionsRequest()
		q.Topics = []kmsg.DescribeTopicPartitionsRequestTopic{{Topic: c.topic}}
		return q
	}, want: needs(toDescribe, "ok")},
	{key: kmsg.DescribeTopicPartitions, of: " of all topics", request: func(cell) kmsg.Request { return kmsg.NewPtrDescribeTopicPartitionsRequest() }, want: everybody("ok"),
		shows: map[string][]string{theTopic: holders[toDescribe]}},
	{key: kmsg.ShareGroupHeartbeat, apacheOnly: true, names: []string{theTopic}, request: func(c cell) kmsg.Request { return c.shareHeartbeat() }, finish: leaveShareGroup,
		want: ofGroup(needs(toDescribe, "ok"))},
	{key: kmsg.ShareGroupDescribe, apacheOnly: true, request: func(c cell) kmsg.Request {
		q := kmsg.NewPtrShareGroupDescribeRequest()
		q.GroupIDs = []string{shareGroup}
		return q
	}, want: ofGroup(everybody("ok").but(groupUnknown, theStranger))},
	{key: kmsg.ShareFetch, apacheOnly: true, request: func(c cell) kmsg.Request { return c.shareFetch() },
		want: ofGroup(needs(toRead, "ok"))},
	{key: kmsg.ShareAcknowledge, apacheOnly: true, request: func(c cell) kmsg.Request {
		q := kmsg.NewPtrShareAcknowledgeRequest()
		q.GroupID, q.MemberID, q.ShareSessionEpoch = ptr(c.group(shareGroup)), ptr(memberID), 1
		q.Topics = []kmsg.ShareAcknowledgeRequestTopic{{TopicID: c.ids[c.topic], Partitions: []kmsg.ShareAcknowledgeRequestTopicPartition{{
			AcknowledgementBatches: []kmsg.ShareAcknowledgeRequestTopicPartitionAcknowledgementBatch{{AcknowledgeTypes: []int8{1}}}}}}}
		return q
	}, prepare: func(_ *testing.T, c cell, w rawConn) { w.ask(c.shareFetch()) },
		// Kafka may not have processed the acknowledgement of the version before yet.
		want: ofGroup(needs(toRead, "ok or INVALID_RECORD_STATE"))},
	{key: kmsg.DescribeShareGroupOffsets, apacheOnly: true, names: []string{theTopic}, request: func(c cell) kmsg.Request {
		q := kmsg.NewPtrDescribeShareGroupOffsetsRequest()
		q.Groups = []kmsg.DescribeShareGroupOffsetsRequestGroup{{GroupID: shareGroup, Topics: []kmsg.DescribeShareGroupOffsetsRequestGroupTopic{{Topic: c.topic, Partitions: []int32{0}}}}}
		return q
	}, want: ofGroup(needs(toDescribe, "ok"))},
	{key: kmsg.AlterShareGroupOffsets, apacheOnly: true, names: []string{theTopic}, request: func(c cell) kmsg.Request { return c.shareOffset(c.group(shareGroup), 1) },
		want: ofGroup(needs(toRead, "ok"))},
	{key: kmsg.DeleteShareGroupOffsets, apacheOnly: true, names: []string{theTopic}, request: func(c cell) kmsg.Request {
		q := kmsg.NewPtrDeleteShareGroupOffsetsRequest()
		q.GroupID, q.Topics = c.group(shareGroup), []kmsg.DeleteShareGroupOffsetsRequestTopic{{Topic: c.topic}}
		return q
	}, prepare: func(_ *testing.T, c cell, w rawConn) { w.ask(c.shareOffset(c.group(shareGroup), 1)) }, // another actor may have deleted it
		want: ofGroup(needs(toRead, "ok").but(groupUnknown, theStranger))},
}

// groupConfigs is the type of a resource whose configuration is a group's (KIP-848).
const groupConfigs kmsg.ConfigResourceType = 32

// join is a request to join the live group, or a scratch group.
func (c cell) join(member string) kmsg.Request {
	q := kmsg.NewPtrJoinGroupRequest()
	q.Group, q.ProtocolType, q.SessionTimeoutMillis, q.RebalanceTimeoutMillis, q.MemberID = c.group(liveGroup), "consumer", 10_000, 10_000, member
	q.Protocols = []kmsg.JoinGroupRequestProtocol{{Name: "range", Metadata: []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0}}}
	return q
}

// leaveGroup has the member leave that has joined, so that the next one need not wait for it.
func leaveGroup(c cell, w rawConn, answer kmsg.Response) {
	q := kmsg.NewPtrLeaveGroupRequest()
	q.Version, q.Group, q.MemberID = 1, c.group(liveGroup), answer.(*kmsg.JoinGroupResponse).MemberID
	w.ask(q)
}

// commitScratch commits an offset that the actor may delete: in the owner's scratch group, and in the
// actor's own group of the name that the request has.
func commitScratch(t *testing.T, c cell, w rawConn) {
	c.setUp(t, c.scene.commit(scratchGroup+"-"+committedGroup))
	if !c.actor.sharesGroups && slices.Contains(holders[toRead], c.actor.name) {
		w.ask(c.commit(committedGroup))
	}
}

// commit is a request to commit an offset of the actor's own.
func (c cell) commit(group string) *kmsg.OffsetCommitRequest {
	q := c.scene.commit(group)
	q.Topics[0].Partitions[0].Metadata = ptr("metadata of the actor")
	return q
}

// leaveConsumerGroup and leaveShareGroup have the member leave that has joined.
func leaveConsumerGroup(c cell, w rawConn, _ kmsg.Response) {
	q := c.consumerHeartbeat()
	q.MemberEpoch = -1
	w.ask(q)
}

func leaveShareGroup(c cell, w rawConn, _ kmsg.Response) {
	q := c.shareHeartbeat()
	q.MemberEpoch = -1
	w.ask(q)
}

func (c cell) consumerHeartbeat() *kmsg.ConsumerGroupHeartbeatRequest {
	q := kmsg.NewPtrConsumerGroupHeartbeatRequest()
	q.Version, q.Group, q.MemberID, q.RebalanceTimeoutMillis = c.version, c.group(consumerGroup), memberID, 10_000
	q.SubscribedTopicNames, q.Topics = []string{c.topic}, []kmsg.ConsumerGroupHeartbeatRequestTopic{}
	return q
}

func (c cell) shareHeartbeat() *kmsg.ShareGroupHeartbeatRequest {
	q := kmsg.NewPtrShareGroupHeartbeatRequest()
	q.Version, q.GroupID, q.MemberID, q.SubscribedTopicNames = c.version, c.group(shareGroup), memberID, []string{c.topic}
	return q
}

// shareFetch opens a session, which is the connection's.
func (c cell) shareFetch() *kmsg.ShareFetchRequest {
	q := kmsg.NewPtrShareFetchRequest()
	q.Version, q.GroupID, q.MemberID, q.MaxBytes, q.MaxRecords, q.BatchSize = c.version, ptr(c.group(shareGroup)), ptr(memberID), 1<<20, 10, 10
	q.Topics = []kmsg.ShareFetchRequestTopic{{TopicID: c.ids[c.topic], Partitions: []kmsg.ShareFetchRequestTopicPartition{{PartitionMaxBytes: 1 << 20}}}}
	return q
}

func (c cell) produce(topic string) *kmsg.ProduceRequest {
	p := kmsg.NewProduceRequestTopicPartition()
	p.Records = encodeRecord(kmsg.RecordBatch{ProducerID: -1, ProducerEpoch: -1, FirstSequence: -1})
	q := kmsg.NewPtrProduceRequest()
	q.Acks, q.TimeoutMillis = -1, 10_000
	q.Topics = []kmsg.ProduceRequestTopic{{Topic: topic, TopicID: c.ids[topic], Partitions: []kmsg.ProduceRequestTopicPartition{p}}}
	return q
}

func (c cell) fetch(topic string) *kmsg.FetchRequest {
	p := kmsg.NewFetchRequestTopicPartition()
	p.PartitionMaxBytes = 1 << 20
	q := kmsg.NewPtrFetchRequest()
	q.MaxBytes, q.SessionEpoch = 1<<20, -1
	q.Topics = []kmsg.FetchRequestTopic{{Topic: topic, TopicID: c.ids[topic], Partitions: []kmsg.FetchRequestTopicPartition{p}}}
	return q
}

func describeConfigs(of kmsg.ConfigResourceType, name string) kmsg.Request {
	q := kmsg.NewPtrDescribeConfigsRequest()
	q.Resources = []kmsg.DescribeConfigsRequestResource{{ResourceType: of, ResourceName: name}}
	return q
}

// settings have a valid name and a value for each type of resource.
func settingOf(of kmsg.ConfigResourceType) (name string, value *string) {
	switch of {
	case kmsg.ConfigResourceTypeTopic:
		return "retention.ms", ptr("1000")
	case groupConfigs:
		return "consumer.session.timeout.ms", ptr("50000")
	default:
		return "log.retention.ms", ptr("1000")
	}
}

func alterConfigs(of kmsg.ConfigResourceType, resource string) kmsg.Request {
	name, value := settingOf(of)
	q := kmsg.NewPtrAlterConfigsRequest()
	q.Resources = []kmsg.AlterConfigsRequestResource{{ResourceType: of, ResourceName: resource, Configs: []kmsg.AlterConfigsRequestResourceConfig{{Name: name, Value: value}}}}
	return q
}

func setConfig(of kmsg.ConfigResourceType, resource string) kmsg.Request {
	name, value := settingOf(of)
	q := kmsg.NewPtrIncrementalAlterConfigsRequest()
	q.Resources = []kmsg.IncrementalAlterConfigsRequestResource{{ResourceType: of, ResourceName: resource,
		Configs: []kmsg.IncrementalAlterConfigsRequestResourceConfig{{Name: name, Value: value}}}}
	return q
}

// encodeRecord returns the batch, encoded, with a record in it.
func encodeRecord(b kmsg.RecordBatch) []byte {
	const headerBytes, behindLength, behindCRC = 61, 12, 21
	r := kmsg.NewRecord()
	r.Value = []byte("x")
	r.Length = int32(len(r.AppendTo(nil)) - 1) // the length takes a byte
	b.Records = r.AppendTo(nil)
	b.Magic, b.PartitionLeaderEpoch, b.NumRecords = 2, -1, 1
	b.FirstTimestamp, b.MaxTimestamp = 1_700_000_000_000, 1_700_000_000_000
	b.Length = int32(headerBytes - behindLength + len(b.Records))
	b.CRC = int32(crc32.Checksum(b.AppendTo(nil)[behindCRC:], crc32.MakeTable(crc32.Castagnoli)))
	return b.AppendTo(nil)
}
