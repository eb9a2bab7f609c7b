package gateway

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// refuseFetch answers a Fetch from a key that may not read. The gateway does this itself, because
// the broker would let the key read topics that an operator has opened to all users.
func (c *conn) refuseFetch(ctx context.Context, h header, frame []byte) error {
	request, _, err := decodeRequest(h, frame)
	if err != nil {
		return err
	}
	// The answers to earlier requests must come first, so wait until the broker has sent them.
	if _, err := (relayRequestor{c}).Request(ctx, kmsg.NewPtrApiVersionsRequest()); err != nil {
		return err
	}
	fetch := request.(*kmsg.FetchRequest)
	answer := fetch.ResponseKind().(*kmsg.FetchResponse)
	for _, t := range fetch.Topics {
		topic := kmsg.NewFetchResponseTopic()
		topic.Topic, topic.TopicID = t.Topic, t.TopicID
		for _, p := range t.Partitions {
			partition := kmsg.NewFetchResponseTopicPartition()
			partition.Partition, partition.ErrorCode = p.Partition, kerr.TopicAuthorizationFailed.Code
			partition.HighWatermark, partition.LastStableOffset, partition.LogStartOffset = -1, -1, -1
			partition.RecordBatches = []byte{}
			topic.Partitions = append(topic.Partitions, partition)
		}
		answer.Topics = append(answer.Topics, topic)
	}
	return c.respond(h.correlation, answer)
}
