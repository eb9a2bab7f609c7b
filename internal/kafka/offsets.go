package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Partition names a partition of a topic.
type Partition struct {
	Topic     string
	Partition int32
}

// ByTopic returns what the Kafka client wants instead of a map by partition.
func ByTopic[V any](all map[Partition]V) map[string]map[int32]V {
	topics := map[string]map[int32]V{}
	for id, v := range all {
		if topics[id.Topic] == nil {
			topics[id.Topic] = map[int32]V{}
		}
		topics[id.Topic][id.Partition] = v
	}
	return topics
}

// Place is the location of a partition: its leader, and the ID of its topic. The ID changes if the
// topic is deleted and created again.
type Place struct {
	Leader int32
	Topic  TopicID
}

// TopicError says which topic a request failed on. Other errors of a request concern the whole
// cluster.
type TopicError struct {
	Topic string
	Err   error
}

func (e *TopicError) Error() string { return e.Topic + ": " + e.Err.Error() }
func (e *TopicError) Unwrap() error { return e.Err }

// The special timestamps of a ListOffsets request.
const (
	latest   = -1
	earliest = -2
)

// The isolation levels. With readCommitted, which all readers use, the end of a partition is its last
// stable offset: no reader gets the records behind it.
const (
	readUncommitted = 0
	readCommitted   = 1
)

// Places returns the partitions of topics, and their places.
func Places(ctx context.Context, client *kgo.Client, topics []string) (found map[Partition]Place, err error) {
	err = Repeat(ctx, func() error {
		found, err = places(ctx, client, topics)
		return err
	})
	return found, err
}

func places(ctx context.Context, client *kgo.Client, topics []string) (map[Partition]Place, error) {
	req := kmsg.NewPtrMetadataRequest()
	for _, name := range topics {
		topic := kmsg.NewMetadataRequestTopic()
		topic.Topic = kmsg.StringPtr(name)
		req.Topics = append(req.Topics, topic)
	}
	resp, err := req.RequestWith(ctx, client)
	if err != nil {
		return nil, err
	}
	found := map[Partition]Place{}
	for _, t := range resp.Topics {
		if t.Topic == nil {
			continue
		}
		if err := kerr.ErrorForCode(t.ErrorCode); err != nil {
			return nil, &TopicError{*t.Topic, err}
		}
		for _, p := range t.Partitions {
			if p.Leader < 0 {
				return nil, &TopicError{*t.Topic, kerr.LeaderNotAvailable}
			}
			found[Partition{*t.Topic, p.Partition}] = Place{p.Leader, t.TopicID}
		}
	}
	return found, nil
}

// Span is where a partition began and ended at one moment. The end is that for a reader of
// committed records.
type Span struct{ Start, End int64 }

// Spans returns where the partitions begin and end now.
func Spans(ctx context.Context, client *kgo.Client, partitions []Partition) (map[Partition]Span, error) {
	// Look up the ends first, so that all records between start and end still existed at the
	// second lookup. If records are deleted between the two, a start can be past its end; the
	// maximum below corrects that.
	ends, err := ListOffsets(ctx, client, partitions, latest)
	if err != nil {
		return nil, err
	}
	starts, err := ListOffsets(ctx, client, partitions, earliest)
	if err != nil {
		return nil, err
	}
	spans := make(map[Partition]Span, len(partitions))
	for _, id := range partitions {
		spans[id] = Span{starts[id], max(starts[id], ends[id])}
	}
	return spans, nil
}

// ListOffsets returns for each of the partitions the offset of the first record that is not older
// than timestamp, in milliseconds since 1970, or -1 if there is none.
func ListOffsets(ctx context.Context, client *kgo.Client, partitions []Partition, timestamp int64) (offsets map[Partition]int64, err error) {
	err = Repeat(ctx, func() error {
		offsets, err = listOffsets(ctx, client, partitions, timestamp, readCommitted)
		return err
	})
	return offsets, err
}

func listOffsets(ctx context.Context, client *kgo.Client, partitions []Partition, timestamp int64, isolation int8) (map[Partition]int64, error) {
	req := kmsg.NewPtrListOffsetsRequest()
	req.IsolationLevel = isolation
	topics := map[string]int{}
	for _, id := range partitions {
		i, ok := topics[id.Topic]
		if !ok {
			i = len(req.Topics)
			topics[id.Topic] = i
			t := kmsg.NewListOffsetsRequestTopic()
			t.Topic = id.Topic
			req.Topics = append(req.Topics, t)
		}
		p := kmsg.NewListOffsetsRequestTopicPartition()
		p.Partition, p.Timestamp = id.Partition, timestamp
		req.Topics[i].Partitions = append(req.Topics[i].Partitions, p)
	}
	resp, err := req.RequestWith(ctx, client)
	if err != nil {
		return nil, err
	}
	offsets := make(map[Partition]int64, len(partitions))
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				return nil, &TopicError{t.Topic, err}
			}
			offsets[Partition{t.Topic, p.Partition}] = p.Offset
		}
	}
	for _, id := range partitions {
		if _, ok := offsets[id]; !ok {
			return nil, &TopicError{id.Topic, kerr.UnknownTopicOrPartition}
		}
	}
	return offsets, nil
}

// Probe fetches once from a partition, from the offset next. It returns whether there is a record.
// If not, past is the offset up to which there is none. A consuming client cannot find this out,
// because it skips empty batches, transaction markers and aborted records silently.
func Probe(ctx context.Context, client *kgo.Client, id Partition, next int64) (past int64, found bool, err error) {
	all, err := Places(ctx, client, []string{id.Topic})
	if err != nil {
		return next, false, err
	}
	at, ok := all[id]
	if !ok {
		return next, false, &TopicError{id.Topic, kerr.UnknownTopicOrPartition}
	}
	req := kmsg.NewPtrFetchRequest()
	req.ReplicaID = -1
	req.MaxBytes = 1 << 20
	req.IsolationLevel = readCommitted
	req.SessionEpoch = -1
	t := kmsg.NewFetchRequestTopic()
	t.Topic, t.TopicID = id.Topic, at.Topic
	p := kmsg.NewFetchRequestTopicPartition()
	p.Partition, p.FetchOffset, p.PartitionMaxBytes = id.Partition, next, 1<<20
	t.Partitions = append(t.Partitions, p)
	req.Topics = append(req.Topics, t)
	answer, err := client.Broker(int(at.Leader)).RetriableRequest(ctx, req)
	if err != nil {
		return next, false, err
	}
	resp := answer.(*kmsg.FetchResponse)
	if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
		return next, false, &TopicError{id.Topic, err}
	}
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		return next, false, nil // a later answer may have the partition
	}
	fetched, past := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{
		Offset: next, IsolationLevel: kgo.ReadCommitted(), Topic: id.Topic, Partition: id.Partition,
	}, &resp.Topics[0].Partitions[0], kgo.DefaultDecompressor(), nil)
	if fetched.Err != nil {
		return next, false, &TopicError{id.Topic, fetched.Err}
	}
	return past, len(fetched.Records) > 0, nil
}
