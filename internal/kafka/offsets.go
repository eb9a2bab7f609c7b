package kafka

import (
	"context"
	"maps"
	"sync"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/errgroup"
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
	resp, err := metadata(ctx, client, topics)
	if err != nil {
		return nil, err
	}
	return placesIn(resp)
}

func metadata(ctx context.Context, client *kgo.Client, topics []string) (*kmsg.MetadataResponse, error) {
	req := kmsg.NewPtrMetadataRequest()
	for _, name := range topics {
		topic := kmsg.NewMetadataRequestTopic()
		topic.Topic = kmsg.StringPtr(name)
		req.Topics = append(req.Topics, topic)
	}
	return req.RequestWith(ctx, client)
}

func placesIn(resp *kmsg.MetadataResponse) (map[Partition]Place, error) {
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
	// A request can have only one timestamp for each partition. The two do not wait for each other,
	// which saves a round trip. If all records are deleted between the two, a start can be past its
	// end; the maximum below corrects that.
	var ends, starts map[Partition]int64
	both, ctx := errgroup.WithContext(ctx)
	both.Go(func() (err error) {
		ends, err = ListOffsets(ctx, client, partitions, latest)
		return err
	})
	both.Go(func() (err error) {
		starts, err = ListOffsets(ctx, client, partitions, earliest)
		return err
	})
	if err := both.Wait(); err != nil {
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

// Probed is the result of a [Probe] of one partition.
type Probed struct {
	Found bool  // there is a record
	Past  int64 // if there is none: the offset up to which there is none
	Err   error
}

// Probe fetches once from partitions, each from an offset; places are those of at least these
// partitions. It returns whether there are records. A consuming client cannot find this out, because
// it skips empty batches, transaction markers and aborted records silently. The errors of
// partitions are [*TopicError]s.
func Probe(ctx context.Context, client *kgo.Client, places map[Partition]Place, from map[Partition]int64) map[Partition]Probed {
	all := make(map[Partition]Probed, len(from))
	byLeader := map[int32]map[Partition]int64{}
	for id, next := range from {
		at, ok := places[id]
		if !ok {
			all[id] = Probed{Past: next, Err: &TopicError{id.Topic, kerr.UnknownTopicOrPartition}}
			continue
		}
		all[id] = Probed{Past: next} // unless an answer says more: a later one may have the partition
		if byLeader[at.Leader] == nil {
			byLeader[at.Leader] = map[Partition]int64{}
		}
		byLeader[at.Leader][id] = next
	}
	var mu sync.Mutex // guards all
	var asking sync.WaitGroup
	for leader, from := range byLeader {
		asking.Go(func() {
			answers, err := probe(ctx, client.Broker(int(leader)), places, from)
			mu.Lock()
			defer mu.Unlock()
			maps.Copy(all, answers)
			for id, next := range from {
				if err != nil {
					all[id] = Probed{Past: next, Err: err}
				}
			}
		})
	}
	asking.Wait()
	return all
}

// probe is Probe for partitions that have the same leader.
func probe(ctx context.Context, leader *kgo.Broker, places map[Partition]Place, from map[Partition]int64) (map[Partition]Probed, error) {
	req := kmsg.NewPtrFetchRequest()
	req.ReplicaID = -1
	req.MaxBytes = 1 << 20
	req.IsolationLevel = readCommitted
	req.SessionEpoch = -1
	names := map[TopicID]string{}
	for topic, partitions := range ByTopic(from) {
		t := kmsg.NewFetchRequestTopic()
		t.Topic = topic
		for partition, next := range partitions {
			t.TopicID = places[Partition{topic, partition}].Topic
			p := kmsg.NewFetchRequestTopicPartition()
			p.Partition, p.FetchOffset, p.PartitionMaxBytes = partition, next, 1<<20
			t.Partitions = append(t.Partitions, p)
		}
		names[t.TopicID] = topic
		req.Topics = append(req.Topics, t)
	}
	answer, err := leader.RetriableRequest(ctx, req)
	if err != nil {
		return nil, err
	}
	resp := answer.(*kmsg.FetchResponse)
	if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
		return nil, &TopicError{req.Topics[0].Topic, err}
	}
	all := map[Partition]Probed{}
	for _, t := range resp.Topics {
		topic := t.Topic
		if topic == "" { // newer versions of the request have only the ID
			topic = names[t.TopicID]
		}
		for i := range t.Partitions {
			id := Partition{topic, t.Partitions[i].Partition}
			next, asked := from[id]
			if !asked {
				continue
			}
			fetched, past := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{
				Offset: next, IsolationLevel: kgo.ReadCommitted(), Topic: topic, Partition: id.Partition,
			}, &t.Partitions[i], kgo.DefaultDecompressor(), nil)
			if fetched.Err != nil {
				all[id] = Probed{Past: next, Err: &TopicError{topic, fetched.Err}}
				continue
			}
			all[id] = Probed{Past: past, Found: len(fetched.Records) > 0}
		}
	}
	return all, nil
}
