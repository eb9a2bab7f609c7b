package broker

import (
	"encoding/binary"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/batch"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// Requests that no real client sends are still answered as by Apache Kafka. The differential suite
// of package interop compares the two; these tests preserve what it found.

// oddProduce returns a request with a batch for one partition of each topic. Topics may repeat.
func oddProduce(acks int16, batches map[string][]byte, topics ...string) *kmsg.ProduceRequest {
	request := kmsg.NewPtrProduceRequest()
	request.Acks = acks
	for i, name := range topics {
		topic := kmsg.NewProduceRequestTopic()
		topic.Topic = name
		topic.Partitions = []kmsg.ProduceRequestTopicPartition{{Partition: int32(i), Records: batches[name]}}
		request.Topics = append(request.Topics, topic)
	}
	return request
}

func TestOddProduce(t *testing.T) {
	b := open(t, Config{})
	create(t, b, superUser, newTopic("a", 3))
	good := newBatch(batch.None, nobody, "x")
	old := newBatch(batch.None, nobody, "x")
	old[16] = 1 // the previous format
	transactional := newBatch(batch.None, nobody, "x")
	transactional[22] |= 1 << 4
	negative := newBatch(batch.None, from{id: 7, epoch: -5}, "x")
	type code = *kerr.Error
	for name, test := range map[string]struct {
		request *kmsg.ProduceRequest
		want    map[string]code // error of the first partition of each topic
		start   int64           // LogStartOffset of topic a
	}{
		"a topic twice":                    {oddProduce(-1, map[string][]byte{"a": good}, "a", "a"), map[string]code{"a": nil}, 0},
		"acks":                             {oddProduce(2, map[string][]byte{"a": good}, "a"), map[string]code{"a": kerr.InvalidRequiredAcks}, -1},
		"acks, and no such topic":          {oddProduce(2, map[string][]byte{"no": good}, "no"), map[string]code{"no": kerr.UnknownTopicOrPartition}, -1},
		"acks, and an old format":          {oddProduce(2, map[string][]byte{"a": old}, "a"), map[string]code{"a": kerr.InvalidRecord}, -1},
		"a transaction for no topic":       {oddProduce(-1, map[string][]byte{"a": good, "no": transactional}, "a", "no"), map[string]code{"a": kerr.TransactionalIDAuthorizationFailed, "no": kerr.TransactionalIDAuthorizationFailed}, -1},
		"a producer with a negative epoch": {oddProduce(-1, map[string][]byte{"a": negative}, "a"), map[string]code{"a": kerr.InvalidProducerEpoch}, 0},
		"a transactional ID, for no purpose": {func() *kmsg.ProduceRequest {
			r := oddProduce(-1, map[string][]byte{"a": good}, "a")
			r.TransactionID = new(string)
			return r
		}(), map[string]code{"a": nil}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			response := ask[*kmsg.ProduceResponse](t, b, superUser, test.request, 12)
			if len(response.Topics) != len(test.want) {
				t.Fatalf("%d topics in the answer, want %d: %+v", len(response.Topics), len(test.want), response.Topics)
			}
			for _, topic := range response.Topics {
				got := topic.Partitions[0]
				if want := test.want[topic.Topic]; kerr.ErrorForCode(got.ErrorCode) != want && (want != nil || got.ErrorCode != 0) {
					t.Errorf("topic %s: code %d, want %v", topic.Topic, got.ErrorCode, want)
				}
				if topic.Topic == "a" && got.LogStartOffset != test.start {
					t.Errorf("LogStartOffset = %d, want %d", got.LogStartOffset, test.start)
				}
			}
		})
	}
}

// TestWholeRequestRefused: if one batch causes the whole request to be rejected, the response has
// no details of errors that were found before in other batches.
func TestWholeRequestRefused(t *testing.T) {
	b := open(t, Config{})
	create(t, b, superUser, newTopic("a", 3))
	stamped := newBatch(batch.None, nobody, "x")
	stamped[22] |= 1 << 3 // log append time; the error lists the records
	binary.BigEndian.PutUint32(stamped[17:], checksum(stamped[21:]))
	empty := newBatch(batch.None, nobody, "x")
	empty[23+3], empty[57+3] = 5, 0 // record count 0
	binary.BigEndian.PutUint32(empty[17:], checksum(empty[21:]))
	transactional := newBatch(batch.None, nobody, "x")
	transactional[22] |= 1 << 4
	short := newBatch(batch.None, nobody, "x")
	binary.BigEndian.PutUint32(short[8:], 3)
	truncated := newBatch(batch.None, nobody, "x")[:40]
	binary.BigEndian.PutUint32(truncated[8:], 40-12)
	for name, whole := range map[string]struct {
		batch []byte
		code  *kerr.Error
	}{
		"a transaction":      {transactional, kerr.TransactionalIDAuthorizationFailed},
		"a length":           {short, kerr.CorruptMessage},
		"a header cut short": {truncated, kerr.UnknownServerError},
	} {
		t.Run(name, func(t *testing.T) {
			request := kmsg.NewPtrProduceRequest()
			request.Acks = -1
			topic := kmsg.NewProduceRequestTopic()
			topic.Topic = "a"
			for i, records := range [][]byte{stamped, empty, whole.batch} {
				topic.Partitions = append(topic.Partitions, kmsg.ProduceRequestTopicPartition{Partition: int32(i), Records: records})
			}
			request.Topics = append(request.Topics, topic)
			for _, got := range ask[*kmsg.ProduceResponse](t, b, superUser, request, 12).Topics[0].Partitions {
				if got.ErrorCode != whole.code.Code || got.LogStartOffset != -1 || len(got.ErrorRecords) > 0 {
					t.Errorf("partition %d: code %d, LogStartOffset %d, records %v, want code %d, -1 and none",
						got.Partition, got.ErrorCode, got.LogStartOffset, got.ErrorRecords, whole.code.Code)
				}
			}
		})
	}
}

func TestPartitionsTwice(t *testing.T) {
	b := open(t, Config{})
	create(t, b, superUser, newTopic("a", 1))
	list := kmsg.NewPtrListOffsetsRequest()
	list.Topics = []kmsg.ListOffsetsRequestTopic{{Topic: "a", Partitions: []kmsg.ListOffsetsRequestTopicPartition{{Timestamp: -1}, {Timestamp: -2}}}}
	for _, test := range []struct {
		as   caller
		want []int16
	}{
		{superUser, []int16{kerr.InvalidRequest.Code}},
		{asAda, []int16{kerr.TopicAuthorizationFailed.Code, kerr.TopicAuthorizationFailed.Code}},
	} {
		got := ask[*kmsg.ListOffsetsResponse](t, b, test.as, list).Topics[0].Partitions
		if len(got) != len(test.want) || got[0].ErrorCode != test.want[0] {
			t.Errorf("ListOffsets as %s: %+v, want codes %v", test.as.principal, got, test.want)
		}
	}
	old := kmsg.NewPtrListOffsetsRequest()
	old.Topics = []kmsg.ListOffsetsRequestTopic{{Topic: "no", Partitions: []kmsg.ListOffsetsRequestTopicPartition{{Timestamp: -4}}}}
	if got := ask[*kmsg.ListOffsetsResponse](t, b, superUser, old, 3).Topics[0].Partitions[0].ErrorCode; got != kerr.UnsupportedVersion.Code {
		t.Errorf("ListOffsets with a time that the version does not have: code %d", got)
	}

	remove := kmsg.NewPtrDeleteRecordsRequest()
	remove.Topics = []kmsg.DeleteRecordsRequestTopic{{Topic: "a", Partitions: []kmsg.DeleteRecordsRequestTopicPartition{{Offset: 5}, {Offset: 0}}}}
	if got := ask[*kmsg.DeleteRecordsResponse](t, b, superUser, remove).Topics[0].Partitions; len(got) != 1 || got[0].ErrorCode != 0 {
		t.Errorf("DeleteRecords: %+v, want one answer, to the second", got)
	}
}

func TestOddFetch(t *testing.T) {
	b := open(t, Config{})
	create(t, b, superUser, newTopic("a", 2), newTopic("b", 1))
	ask[*kmsg.ProduceResponse](t, b, superUser, oddProduce(-1, map[string][]byte{"a": newBatch(batch.None, nobody, "x")}, "a"), 12)
	conn, err := b.connect(superUser)
	testkit.Must(t, err)
	defer conn.Close()
	fetch := func(edit func(*kmsg.FetchRequest), partitions ...topicPartition) *kmsg.FetchResponse {
		t.Helper()
		request := kmsg.NewPtrFetchRequest()
		request.Version, request.MaxBytes, request.SessionEpoch = 12, 1<<20, -1
		for _, p := range partitions {
			part := kmsg.NewFetchRequestTopicPartition()
			part.Partition, part.PartitionMaxBytes = p.partition, 1<<20
			request.Topics = append(request.Topics, kmsg.FetchRequestTopic{Topic: p.topic, Partitions: []kmsg.FetchRequestTopicPartition{part}})
		}
		edit(request)
		response, err := requestor{conn}.Request(t.Context(), request)
		testkit.Must(t, err)
		return response.(*kmsg.FetchResponse)
	}
	first := topicPartition{"a", 0}

	negative := fetch(func(r *kmsg.FetchRequest) { r.MaxBytes = -1 }, first)
	if got := negative.Topics[0].Partitions[0].ErrorCode; got != kerr.UnknownServerError.Code {
		t.Errorf("a negative limit: code %d, want %d", got, kerr.UnknownServerError.Code)
	}
	behind := fetch(func(r *kmsg.FetchRequest) { r.MaxBytes = -1 }, topicPartition{"no", 0}, first)
	if got := behind.Topics[0].Partitions[0].ErrorCode; got != kerr.UnknownServerError.Code {
		t.Errorf("a negative limit, behind a partition that is not there: code %d, want %d", got, kerr.UnknownServerError.Code)
	}

	merged := fetch(func(*kmsg.FetchRequest) {}, first, topicPartition{"no", 0}, topicPartition{"a", 1}, topicPartition{"b", 0})
	if len(merged.Topics) != 3 || len(merged.Topics[0].Partitions) != 2 || merged.Topics[2].Topic != "no" {
		t.Errorf("topics in the answer: %+v, want a with two partitions, b, and then the one that is refused", merged.Topics)
	}

	session := fetch(func(r *kmsg.FetchRequest) { r.SessionEpoch = 0 }, first)
	emptied := fetch(func(r *kmsg.FetchRequest) {
		r.SessionID, r.SessionEpoch = session.SessionID, 1
		r.ForgottenTopics = []kmsg.FetchRequestForgottenTopic{{Topic: "a", Partitions: []int32{0}}}
	}, first)
	if emptied.SessionID != 0 || len(emptied.Topics) != 1 {
		t.Errorf("a session that is emptied: ID %d, %+v; want the partition that the request has, and no session", emptied.SessionID, emptied.Topics)
	}
}

// TestFetchOfADeletedTopic: a fetch session remembers the names of topics by ID. As in Apache
// Kafka, it distinguishes a topic that was deleted or created again from an ID that never existed.
func TestFetchOfADeletedTopic(t *testing.T) {
	b := open(t, Config{})
	create(t, b, superUser, newTopic("a", 1))
	described := kmsg.NewPtrMetadataRequest()
	described.Topics = []kmsg.MetadataRequestTopic{{Topic: kmsg.StringPtr("a")}}
	id := ask[*kmsg.MetadataResponse](t, b, superUser, described, 12).Topics[0].TopicID
	conn, err := b.connect(superUser)
	testkit.Must(t, err)
	defer conn.Close()
	fetch := func(session, epoch int32) *kmsg.FetchResponse {
		t.Helper()
		request := kmsg.NewPtrFetchRequest()
		request.Version, request.MaxBytes, request.SessionID, request.SessionEpoch = 17, 1<<20, session, epoch
		part := kmsg.NewFetchRequestTopicPartition()
		part.PartitionMaxBytes = 1 << 20
		request.Topics = append(request.Topics, kmsg.FetchRequestTopic{TopicID: id, Partitions: []kmsg.FetchRequestTopicPartition{part}})
		response, err := requestor{conn}.Request(t.Context(), request)
		testkit.Must(t, err)
		return response.(*kmsg.FetchResponse)
	}
	want := func(what string, response *kmsg.FetchResponse, want *kerr.Error) {
		t.Helper()
		if got := kerr.ErrorForCode(response.Topics[0].Partitions[0].ErrorCode); got != want {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	session := fetch(0, 0).SessionID
	gone := kmsg.NewPtrDeleteTopicsRequest()
	gone.TopicNames = []string{"a"}
	ask[*kmsg.DeleteTopicsResponse](t, b, superUser, gone, 5)
	want("a deleted topic in its session", fetch(session, 1), kerr.UnknownTopicOrPartition)
	want("a deleted topic without a session", fetch(0, -1), kerr.UnknownTopicID)
	create(t, b, superUser, newTopic("a", 1))
	want("a topic of the same name in the session", fetch(session, 2), kerr.InconsistentTopicID)
}

func TestOddVersions(t *testing.T) {
	b := open(t, Config{})
	for _, test := range []struct {
		name, version string
		want          int16
	}{
		{"client-1", "1.0", 0}, {"a", "b", 0}, {"", "1", kerr.InvalidRequest.Code}, {"a b", "1", kerr.InvalidRequest.Code}, {"a", "1-", kerr.InvalidRequest.Code},
	} {
		request := kmsg.NewPtrApiVersionsRequest()
		request.ClientSoftwareName, request.ClientSoftwareVersion = test.name, test.version
		if got := ask[*kmsg.ApiVersionsResponse](t, b, superUser, request); got.ErrorCode != test.want || (got.ErrorCode == 0) != (len(got.ApiKeys) > 0) {
			t.Errorf("ApiVersions from %q %q: code %d with %d keys, want code %d", test.name, test.version, got.ErrorCode, len(got.ApiKeys), test.want)
		}
	}
}

// TestNoShareCoordinator: only brokers may look up the coordinator of a share group, and there is
// none.
func TestNoShareCoordinator(t *testing.T) {
	b := open(t, Config{})
	find := func(as caller, kind int8, version int16) int16 {
		request := kmsg.NewPtrFindCoordinatorRequest()
		request.CoordinatorType, request.CoordinatorKey, request.CoordinatorKeys = kind, "g", []string{"g"}
		response := ask[*kmsg.FindCoordinatorResponse](t, b, as, request, version)
		if version < 4 {
			return response.ErrorCode
		}
		return response.Coordinators[0].ErrorCode
	}
	for _, test := range []struct {
		as      caller
		kind    int8
		version int16
		want    *kerr.Error
	}{
		{asAda, 2, 6, kerr.ClusterAuthorizationFailed}, {asAda, 2, 5, kerr.InvalidRequest}, {asAda, 2, 3, kerr.InvalidRequest}, {asAda, 5, 6, kerr.InvalidRequest},
		{superUser, 2, 6, kerr.InvalidRequest}, {superUser, 5, 6, kerr.InvalidRequest},
	} {
		if got := find(test.as, test.kind, test.version); got != test.want.Code {
			t.Errorf("FindCoordinator version %d of type %d as %s: code %d, want %v", test.version, test.kind, test.as.principal, got, test.want)
		}
	}
	grant(t, b, kmsg.ACLResourceTypeCluster, clusterName, kmsg.ACLOperationClusterAction)
	if got := find(asAda, 2, 6); got != kerr.InvalidRequest.Code {
		t.Errorf("with ClusterAction: code %d", got)
	}
}

// TestRefusedWithPartitions tests errors that can only be reported for each partition.
func TestRefusedWithPartitions(t *testing.T) {
	b := open(t, Config{})
	offsets := kmsg.NewPtrOffsetFetchRequest()
	offsets.Group, offsets.Topics = "group", []kmsg.OffsetFetchRequestTopic{{Topic: "a", Partitions: []int32{0}}}
	got := ask[*kmsg.OffsetFetchResponse](t, b, asAda, offsets, 1)
	if len(got.Topics) != 1 || got.Topics[0].Partitions[0].ErrorCode != kerr.GroupAuthorizationFailed.Code || got.Topics[0].Partitions[0].Offset != -1 {
		t.Errorf("OffsetFetch version 1: %+v", got.Topics)
	}
	nameless := kmsg.NewPtrMetadataRequest()
	nameless.Topics = []kmsg.MetadataRequestTopic{{}}
	if got := ask[*kmsg.MetadataResponse](t, b, superUser, nameless); got.ErrorCode != kerr.UnknownServerError.Code || got.Topics[0].ErrorCode != got.ErrorCode {
		t.Errorf("Metadata of a topic without a name and an ID: %+v", got)
	}
	moves := kmsg.NewPtrListPartitionReassignmentsRequest()
	moves.Topics = []kmsg.ListPartitionReassignmentsRequestTopic{{Topic: "a", Partitions: []int32{0}}}
	if got := ask[*kmsg.ListPartitionReassignmentsResponse](t, b, asAda, moves); got.ErrorCode == 0 || len(got.Topics) != 1 {
		t.Errorf("ListPartitionReassignments: %+v", got)
	}
}

// TestBrokersAskForEpochs: a caller that may act for the cluster needs no topic ACLs to request
// leader epochs.
func TestBrokersAskForEpochs(t *testing.T) {
	b := open(t, Config{})
	create(t, b, superUser, newTopic("a", 1))
	epochs := kmsg.NewPtrOffsetForLeaderEpochRequest()
	epochs.Topics = []kmsg.OffsetForLeaderEpochRequestTopic{{Topic: "a", Partitions: []kmsg.OffsetForLeaderEpochRequestTopicPartition{{CurrentLeaderEpoch: -1}}}}
	code := func() int16 {
		return ask[*kmsg.OffsetForLeaderEpochResponse](t, b, asAda, epochs).Topics[0].Partitions[0].ErrorCode
	}
	if got := code(); got != kerr.TopicAuthorizationFailed.Code {
		t.Errorf("without rights: code %d", got)
	}
	grant(t, b, kmsg.ACLResourceTypeCluster, clusterName, kmsg.ACLOperationClusterAction)
	if got := code(); got != 0 {
		t.Errorf("with ClusterAction: code %d", got)
	}
}
