package broker

import (
	"errors"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/commitlog"
)

// authorizedLog returns the log of a partition that a request names, if the caller may do op to its
// topic.
func (b *Broker) authorizedLog(r *request, op kmsg.ACLOperation, topic string, partition int32) (*commitlog.Log, *kerr.Error) {
	if !b.mayTopic(r, op, topic) {
		return nil, kerr.TopicAuthorizationFailed
	}
	log, ok := b.topics.named(topic).partition(partition)
	if !ok {
		return nil, kerr.UnknownTopicOrPartition
	}
	return log, nil
}

// Timestamps with a special meaning in ListOffsets.
const (
	latestOffset        = -1
	earliestOffset      = -2
	maxTimestampOffset  = -3 // KIP-734
	earliestLocalOffset = -4 // KIP-405
	latestTieredOffset  = -5 // KIP-1005
)

// timestampSince is the version of ListOffsets that introduced each special timestamp.
var timestampSince = map[int64]int16{latestOffset: 0, earliestOffset: 0, maxTimestampOffset: 7, earliestLocalOffset: 8, latestTieredOffset: 9}

// listOffsets finds offsets: the start, the end, or the first record that is not older than a
// timestamp.
func (b *Broker) listOffsets(r *request, req *kmsg.ListOffsetsRequest) (*kmsg.ListOffsetsResponse, error) {
	response := req.ResponseKind().(*kmsg.ListOffsetsResponse)
	named := make(map[topicPartition]int)
	for _, t := range req.Topics {
		for _, p := range t.Partitions {
			named[topicPartition{t.Topic, p.Partition}]++
		}
	}
	for _, t := range req.Topics {
		topic := kmsg.NewListOffsetsResponseTopic()
		topic.Topic = t.Topic
		for _, p := range t.Partitions {
			found := kmsg.NewListOffsetsResponseTopicPartition()
			found.Partition, found.Offset, found.Timestamp, found.LeaderEpoch = p.Partition, -1, -1, -1
			at := topicPartition{t.Topic, p.Partition}
			if named[at] == 0 {
				continue // already answered
			}
			refusal := b.listOffset(r, req.Version, t.Topic, &p, named[at] > 1, &found)
			if refusal != nil {
				found.ErrorCode = refusal.Code
			}
			if refusal != kerr.TopicAuthorizationFailed {
				named[at] = 0
			}
			topic.Partitions = append(topic.Partitions, found)
		}
		response.Topics = append(response.Topics, topic)
	}
	return response, nil
}

type topicPartition struct {
	topic     string
	partition int32
}

// listOffset finds one offset. twice means that the request names the partition more than once. The
// checks are in the same order as in Apache Kafka.
func (b *Broker) listOffset(r *request, version int16, topic string, p *kmsg.ListOffsetsRequestTopicPartition, twice bool, found *kmsg.ListOffsetsResponseTopicPartition) *kerr.Error {
	log, refusal := b.authorizedLog(r, kmsg.ACLOperationDescribe, topic, p.Partition)
	first, known := timestampSince[p.Timestamp]
	switch {
	case refusal == kerr.TopicAuthorizationFailed:
		return refusal
	case twice:
		return kerr.InvalidRequest
	case p.Timestamp < 0 && (!known || version < first):
		return kerr.UnsupportedVersion
	case refusal != nil:
		return refusal
	}
	if refusal := b.checkEpoch(p.CurrentLeaderEpoch); refusal != nil {
		return refusal
	}
	var err error
	switch p.Timestamp {
	case latestOffset:
		found.Offset, found.LeaderEpoch = log.End(), b.epoch
	case earliestOffset, earliestLocalOffset:
		found.Offset = log.Start()
		found.LeaderEpoch = log.EpochOf(found.Offset)
	case latestTieredOffset: // offset stays -1, because there is no tiered storage
	case maxTimestampOffset:
		found.Offset, found.Timestamp, found.LeaderEpoch, err = log.MaxTimestamp()
	default:
		found.Offset, found.Timestamp, found.LeaderEpoch, err = log.OffsetForTime(p.Timestamp)
	}
	if err != nil {
		b.logError("find an offset by time", err, "topic", topic, "partition", p.Partition)
		return kerr.KafkaStorageError
	}
	return nil
}

// deleteRecords moves the start of logs forward.
func (b *Broker) deleteRecords(r *request, req *kmsg.DeleteRecordsRequest) (*kmsg.DeleteRecordsResponse, error) {
	response := req.ResponseKind().(*kmsg.DeleteRecordsResponse)
	last := make(map[topicPartition]int64) // if a partition is named twice, the last offset applies
	for _, t := range req.Topics {
		for _, p := range t.Partitions {
			last[topicPartition{t.Topic, p.Partition}] = p.Offset
		}
	}
	for _, t := range req.Topics {
		topic := kmsg.NewDeleteRecordsResponseTopic()
		topic.Topic = t.Topic
		for _, p := range t.Partitions {
			at := topicPartition{t.Topic, p.Partition}
			offset, ok := last[at]
			if !ok {
				continue // already answered
			}
			delete(last, at)
			deleted := kmsg.NewDeleteRecordsResponseTopicPartition()
			deleted.Partition, deleted.LowWatermark = p.Partition, -1
			if start, refusal := b.deleteRecordsBefore(r, t.Topic, p.Partition, offset); refusal != nil {
				deleted.ErrorCode = refusal.Code
			} else {
				deleted.LowWatermark = start
			}
			topic.Partitions = append(topic.Partitions, deleted)
		}
		response.Topics = append(response.Topics, topic)
	}
	return response, nil
}

func (b *Broker) deleteRecordsBefore(r *request, topic string, partition int32, offset int64) (int64, *kerr.Error) {
	log, refusal := b.authorizedLog(r, kmsg.ACLOperationDelete, topic, partition)
	if refusal != nil {
		return -1, refusal
	}
	start, err := log.DeleteRecords(offset)
	switch {
	case errors.Is(err, commitlog.ErrOutOfRange):
		return -1, kerr.OffsetOutOfRange
	case err != nil:
		b.logError("delete records", err, "topic", topic, "partition", partition)
		return -1, kerr.KafkaStorageError
	}
	return start, nil
}

// offsetForLeaderEpoch returns the end offset of an epoch. With it a client detects that records
// which it has read were lost (KIP-320).
func (b *Broker) offsetForLeaderEpoch(r *request, req *kmsg.OffsetForLeaderEpochRequest) (*kmsg.OffsetForLeaderEpochResponse, error) {
	response := req.ResponseKind().(*kmsg.OffsetForLeaderEpochResponse)
	if b.acls.allow(r.caller, kmsg.ACLOperationClusterAction, kmsg.ACLResourceTypeCluster, clusterName) {
		r.caller.super = true // brokers use this request as well, and need no topic ACLs for it
	}
	for _, t := range req.Topics {
		topic := kmsg.NewOffsetForLeaderEpochResponseTopic()
		topic.Topic = t.Topic
		for _, p := range t.Partitions {
			end := kmsg.NewOffsetForLeaderEpochResponseTopicPartition()
			end.Partition, end.LeaderEpoch, end.EndOffset = p.Partition, -1, -1
			log, refusal := b.authorizedLog(r, kmsg.ACLOperationDescribe, t.Topic, p.Partition)
			if refusal == nil {
				refusal = b.checkEpoch(p.CurrentLeaderEpoch)
			}
			switch {
			case refusal != nil:
				end.ErrorCode = refusal.Code
			case p.LeaderEpoch == b.epoch:
				end.LeaderEpoch, end.EndOffset = b.epoch, log.End()
			default:
				end.LeaderEpoch, end.EndOffset = log.EndOffsetForEpoch(p.LeaderEpoch)
			}
			topic.Partitions = append(topic.Partitions, end)
		}
		response.Topics = append(response.Topics, topic)
	}
	return response, nil
}
