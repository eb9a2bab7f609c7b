package diaspora

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/globus"
)

// partitionID names a partition of a topic.
type partitionID struct {
	topic     string
	partition int32
}

// span is where a partition begins and ends at one moment. The end is where a
// reader of committed records comes to.
type span struct{ start, end int64 }

// isolation: readers see committed records only, and so does whoever looks for the end.
const readCommitted = 1

// The timestamps of ListOffsets that are places.
const (
	latest   = -1
	earliest = -2
)

// persist does again what the cluster may fail to do for a moment, a few times, if that
// is worth it.
func persist(ctx context.Context, worth func(error) bool, do func() error) error {
	for attempt := 0; ; attempt++ {
		err := do()
		if err == nil || !worth(err) || attempt == 8 || !sleep(ctx, backoff(attempt), farFuture(ctx)) {
			return err
		}
	}
}

// place is where a partition is: at which broker, and in which of the topics that had
// this name one after another.
type place struct {
	leader int32
	topic  [16]byte
}

// partitions returns the partitions of the topics and where they are.
func (f *fabric) partitions(ctx context.Context, client *kgo.Client, topics []string) (found map[partitionID]place, err error) {
	req := kmsg.NewPtrMetadataRequest()
	for _, t := range topics {
		topic := kmsg.NewMetadataRequestTopic()
		topic.Topic = kmsg.StringPtr(t)
		req.Topics = append(req.Topics, topic)
	}
	err = persist(ctx, retriable, func() error {
		found, err = f.partitionsOnce(ctx, client, req)
		return err
	})
	return found, err
}

func (f *fabric) partitionsOnce(ctx context.Context, client *kgo.Client, req *kmsg.MetadataRequest) (map[partitionID]place, error) {
	resp, err := req.RequestWith(ctx, client)
	if err != nil {
		return nil, fmt.Errorf("look up topics: %w", f.signedOut(err))
	}
	found := map[partitionID]place{}
	for _, t := range resp.Topics {
		if t.Topic == nil {
			continue
		}
		if err := kerr.ErrorForCode(t.ErrorCode); err != nil {
			return nil, f.topicError("consume", "read", *t.Topic, err)
		}
		for _, p := range t.Partitions {
			if p.Leader < 0 {
				return nil, f.topicError("consume", "read", *t.Topic, kerr.LeaderNotAvailable)
			}
			found[partitionID{*t.Topic, p.Partition}] = place{p.Leader, t.TopicID}
		}
	}
	return found, nil
}

// spans returns where the partitions begin and end now.
func (f *fabric) spans(ctx context.Context, client *kgo.Client, partitions []partitionID) (map[partitionID]span, error) {
	// The end goes first: what a reader finds between the two was there then.
	ends, err := f.listOffsets(ctx, client, partitions, latest)
	if err != nil {
		return nil, err
	}
	starts, err := f.listOffsets(ctx, client, partitions, earliest)
	if err != nil {
		return nil, err
	}
	spans := make(map[partitionID]span, len(partitions))
	for _, id := range partitions {
		spans[id] = span{starts[id], max(starts[id], ends[id])}
	}
	return spans, nil
}

// resolve returns the offset of a position in each of the partitions.
func (f *fabric) resolvePosition(ctx context.Context, client *kgo.Client, p Position, spans map[partitionID]span) (map[partitionID]int64, error) {
	var at map[partitionID]int64
	if p.kind == positionAt {
		ids := make([]partitionID, 0, len(spans))
		for id := range spans {
			ids = append(ids, id)
		}
		var err error
		if at, err = f.listOffsets(ctx, client, ids, p.t.UnixMilli()); err != nil {
			return nil, err
		}
	}
	offsets := make(map[partitionID]int64, len(spans))
	for id, s := range spans {
		o := s.start
		switch p.kind {
		case positionEnd:
			o = s.end
		case positionAt:
			if o = at[id]; o < 0 {
				o = s.end
			}
		case positionOffset:
			o = p.n
		case positionLast:
			o = s.end - p.n
		}
		offsets[id] = max(o, s.start)
	}
	return offsets, nil
}

// listOffsets asks for the offset of a timestamp in each partition; -1 if it has none.
func (f *fabric) listOffsets(ctx context.Context, client *kgo.Client, partitions []partitionID, timestamp int64) (offsets map[partitionID]int64, err error) {
	err = persist(ctx, retriable, func() error {
		offsets, err = f.listOffsetsOnce(ctx, client, partitions, timestamp)
		return err
	})
	return offsets, err
}

func (f *fabric) listOffsetsOnce(ctx context.Context, client *kgo.Client, partitions []partitionID, timestamp int64) (map[partitionID]int64, error) {
	req := kmsg.NewPtrListOffsetsRequest()
	req.IsolationLevel = readCommitted
	topics := map[string]int{}
	for _, id := range partitions {
		i, ok := topics[id.topic]
		if !ok {
			i = len(req.Topics)
			topics[id.topic] = i
			t := kmsg.NewListOffsetsRequestTopic()
			t.Topic = id.topic
			req.Topics = append(req.Topics, t)
		}
		p := kmsg.NewListOffsetsRequestTopicPartition()
		p.Partition, p.Timestamp = id.partition, timestamp
		req.Topics[i].Partitions = append(req.Topics[i].Partitions, p)
	}
	resp, err := req.RequestWith(ctx, client)
	if err != nil {
		return nil, fmt.Errorf("look up offsets: %w", f.signedOut(err))
	}
	offsets := make(map[partitionID]int64, len(partitions))
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				return nil, f.topicError("consume", "read", t.Topic, err)
			}
			offsets[partitionID{t.Topic, p.Partition}] = p.Offset
		}
	}
	for _, id := range partitions {
		if _, ok := offsets[id]; !ok {
			return nil, f.topicError("consume", "read", id.topic, kerr.UnknownTopicOrPartition)
		}
	}
	return offsets, nil
}

// probe fetches once behind the offset next of a partition. It returns how far a
// reader may go on without finding a record, and whether a record is there. The
// consuming client cannot tell: it passes by empty batches, transaction markers and
// aborted records in silence.
func (f *fabric) probe(ctx context.Context, client *kgo.Client, id partitionID, next int64) (past int64, found bool, err error) {
	places, err := f.partitions(ctx, client, []string{id.topic})
	if err != nil {
		return next, false, err
	}
	at, ok := places[id]
	if !ok {
		return next, false, f.topicError("consume", "read", id.topic, kerr.UnknownTopicOrPartition)
	}
	req := kmsg.NewPtrFetchRequest()
	req.ReplicaID = -1
	req.MaxWaitMillis = 0
	req.MinBytes = 0
	req.MaxBytes = 1 << 20
	req.IsolationLevel = readCommitted
	req.SessionEpoch = -1
	t := kmsg.NewFetchRequestTopic()
	t.Topic, t.TopicID = id.topic, at.topic
	p := kmsg.NewFetchRequestTopicPartition()
	p.Partition, p.FetchOffset, p.PartitionMaxBytes = id.partition, next, 1<<20
	t.Partitions = append(t.Partitions, p)
	req.Topics = append(req.Topics, t)
	answer, err := client.Broker(int(at.leader)).RetriableRequest(ctx, req)
	if err != nil {
		return next, false, fmt.Errorf("consume topic %q: %w", id.topic, f.signedOut(err))
	}
	resp := answer.(*kmsg.FetchResponse)
	if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
		return next, false, f.topicError("consume", "read", id.topic, err)
	}
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		return next, false, nil // the next answer may have it
	}
	fetched, past := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{
		Offset: next, IsolationLevel: kgo.ReadCommitted(), Topic: id.topic, Partition: id.partition,
	}, &resp.Topics[0].Partitions[0], kgo.DefaultDecompressor(), nil)
	if fetched.Err != nil {
		return next, false, f.topicError("consume", "read", id.topic, fetched.Err)
	}
	return past, len(fetched.Records) > 0, nil
}

// signedOut explains an error of a request.
func (f *fabric) signedOut(err error) error { return advise(explain(err), ErrUnauthenticated, f.login) }

// retriable reports whether the same request may succeed later, according to err, which was
// explained. A context's end is its caller's decision, and no such case.
func retriable(err error) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	return errors.Is(err, ErrUnavailable) || errors.Is(err, globus.ErrUnavailable)
}

// farFuture is a deadline for those whom only ctx bounds.
func farFuture(context.Context) time.Time { return time.Now().Add(time.Hour) }
