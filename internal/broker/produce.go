package broker

import (
	"errors"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/errgroup"

	"github.com/diaspora-streams/diaspora/internal/batch"
	"github.com/diaspora-streams/diaspora/internal/commitlog"
)

// errRejectedUnanswered closes the connection of a producer with acks=0 when a batch is rejected.
// Such a producer gets no response, so it cannot learn of the error in another way.
var errRejectedUnanswered = errors.New("a batch was rejected, and a producer with acks=0 gets no response")

// produce appends batches of records to partitions. All batches are checked
// before the first is appended, because some faults reject the whole request.
func (b *Broker) produce(r *request) (kmsg.Response, error) {
	req := r.Request.(*kmsg.ProduceRequest)
	response := req.ResponseKind().(*kmsg.ProduceResponse)
	checked, fault := b.checkProduce(r, req, response)
	if fault == nil {
		b.appendAll(checked)
	}
	failed := false
	for _, c := range checked {
		if fault != nil {
			c.to.LogStartOffset, c.to.ErrorRecords = -1, nil // discard the details of an error in this batch alone
			refuseBatch(c.to, fault)
		}
		failed = failed || c.to.ErrorCode != 0
	}
	switch {
	case req.Acks != 0:
		response.Topics = mergeTopics(response.Topics)
		return response, nil
	case failed:
		return nil, errRejectedUnanswered
	default:
		return nil, nil
	}
}

// mergeTopics merges the entries of each topic. A request may name a topic several times, but the
// response names it once, as in Apache Kafka.
func mergeTopics(topics []kmsg.ProduceResponseTopic) []kmsg.ProduceResponseTopic {
	type key struct {
		id   topicID
		name string
	}
	if len(topics) < 2 {
		return topics
	}
	at := make(map[key]int, len(topics))
	merged := topics[:0]
	for _, t := range topics {
		k := key{t.TopicID, t.Topic}
		if i, ok := at[k]; ok {
			merged[i].Partitions = append(merged[i].Partitions, t.Partitions...)
			continue
		}
		at[k] = len(merged)
		merged = append(merged, t)
	}
	return merged
}

// checkedBatch is one batch of a produce request, the log to append it to, and its response.
type checkedBatch struct {
	ok     bool // it may be appended
	topic  *topic
	log    *commitlog.Log
	bytes  []byte
	header batch.Header
	to     *kmsg.ProduceResponseTopicPartition
}

// checkProduce checks each batch of a request and prepares the response. whole is an error that
// rejects the whole request, or nil.
func (b *Broker) checkProduce(r *request, req *kmsg.ProduceRequest, response *kmsg.ProduceResponse) (all []checkedBatch, whole *batch.Error) {
	response.Topics = make([]kmsg.ProduceResponseTopic, len(req.Topics))
	whole = screen(req)
	for i := range req.Topics {
		from, to := &req.Topics[i], &response.Topics[i]
		t, refusal := b.topicToWrite(r, req, from)
		to.Topic, to.TopicID = from.Topic, from.TopicID
		to.Partitions = make([]kmsg.ProduceResponseTopicPartition, len(from.Partitions))
		for j := range from.Partitions {
			c := checkedBatch{topic: t, to: &to.Partitions[j]}
			c.to.Default()
			c.to.Partition, c.to.BaseOffset, c.to.LogAppendTime, c.to.LogStartOffset = from.Partitions[j].Partition, -1, -1, -1
			if whole == nil {
				whole = b.checkBatch(r, req, &c, from.Partitions[j].Records, refusal)
			}
			all = append(all, c)
		}
	}
	return all, whole
}

// screen looks for an error that rejects the whole request, before ACLs and topics are considered.
func screen(req *kmsg.ProduceRequest) *batch.Error {
	for i := range req.Topics {
		for j := range req.Topics[i].Partitions {
			if fault := batch.Screen(req.Topics[i].Partitions[j].Records); fault != nil {
				return fault
			}
		}
	}
	return nil
}

// checkBatch decides whether a batch may be appended. If not, it sets the error in the response. It
// returns an error that rejects the whole request, or nil.
func (b *Broker) checkBatch(r *request, req *kmsg.ProduceRequest, c *checkedBatch, records []byte, refusal *kerr.Error) *batch.Error {
	if refusal != nil {
		c.to.ErrorCode = refusal.Code
		return nil
	}
	log, ok := c.topic.partition(c.to.Partition)
	if !ok {
		c.to.ErrorCode = kerr.UnknownTopicOrPartition.Code
		return nil
	}
	header, err := batch.Validate(records, batch.Limits{MaxBytes: c.topic.settings.maxMessageBytes, ProduceVersion: req.Version})
	var fault *batch.Error
	errors.As(err, &fault)
	badAcks := req.Acks < -1 || req.Acks > 1
	switch {
	case fault != nil && fault.WholeRequest:
		return fault
	case badAcks && (fault == nil || !fault.BeforeLog):
		c.to.ErrorCode = kerr.InvalidRequiredAcks.Code
		return nil
	case fault != nil:
		refuseBatch(c.to, fault)
		if fault.LogStartOffset {
			c.to.LogStartOffset = log.Start()
		}
		return nil
	}
	if b.space.lowFor(r.caller) {
		c.to.ErrorCode, c.to.ErrorMessage = kerr.KafkaStorageError.Code, kmsg.StringPtr(diskFull)
		return nil
	}
	c.ok, c.log, c.header, c.bytes = true, log, header, records[:header.Size()]
	return nil
}

// refuseBatch sets a batch's error in the response, and the records that caused it (KIP-467).
func refuseBatch(to *kmsg.ProduceResponseTopicPartition, fault *batch.Error) {
	to.ErrorCode, to.ErrorMessage = fault.Code.Code, kmsg.StringPtr(fault.Reason)
	for _, index := range fault.Records {
		record := kmsg.NewProduceResponseTopicPartitionErrorRecord()
		record.RelativeOffset = index
		to.ErrorRecords = append(to.ErrorRecords, record)
	}
}

// topicToWrite returns the topic that a produce request names, or an error if the caller may not
// write to it. The topic is nil if it does not exist.
func (b *Broker) topicToWrite(r *request, req *kmsg.ProduceRequest, from *kmsg.ProduceRequestTopic) (*topic, *kerr.Error) {
	name := from.Topic
	if req.Version >= 13 {
		t := b.topics.withID(from.TopicID)
		if t == nil {
			return nil, kerr.UnknownTopicID
		}
		name = t.Name
	}
	if !b.mayTopic(r, kmsg.ACLOperationWrite, name) {
		return nil, kerr.TopicAuthorizationFailed
	}
	return b.topics.named(name), nil
}

// maxConcurrentAppends is the number of batches of one request that are appended concurrently.
const maxConcurrentAppends = 32

// appendAll appends the batches that passed the checks. With [Config.SyncWrites] each append waits
// for the disk, so batches of different partitions are appended concurrently.
func (b *Broker) appendAll(checked []checkedBatch) {
	if !b.cfg.SyncWrites || len(checked) == 1 {
		for _, c := range checked {
			b.append(c)
		}
		return
	}
	var appending errgroup.Group
	appending.SetLimit(maxConcurrentAppends)
	under := make(map[*commitlog.Log]bool)
	for _, c := range checked {
		if !c.ok {
			continue
		}
		if under[c.log] { // batches of one partition must stay in order
			appending.Wait()
			clear(under)
		}
		under[c.log] = true
		appending.Go(func() error {
			b.append(c)
			return nil
		})
	}
	appending.Wait()
}

// append appends a batch that passed the checks. If that fails, it sets the error in the response.
func (b *Broker) append(c checkedBatch) {
	if !c.ok {
		return
	}
	done, err := c.log.Append(c.bytes, c.header, b.epoch)
	var refused *kerr.Error
	switch {
	case err == nil:
		c.to.BaseOffset, c.to.LogAppendTime, c.to.LogStartOffset = done.BaseOffset, done.Time, c.log.Start()
	case errors.As(err, &refused):
		c.to.ErrorCode, c.to.LogStartOffset = refused.Code, c.log.Start()
	case errors.Is(err, commitlog.ErrClosed):
		c.to.ErrorCode = kerr.UnknownTopicOrPartition.Code // deleted a moment ago
	default:
		b.logError("append records", err, "topic", c.topic.Name, "partition", c.to.Partition)
		c.to.ErrorCode = kerr.KafkaStorageError.Code
	}
}

const diskFull = "the broker's disk is nearly full: less than 64 MiB are free"
