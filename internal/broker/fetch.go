package broker

import (
	"errors"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/commitlog"
)

// maxFetchBytes bounds the bytes that one fetch reads, like Apache Kafka's fetch.max.bytes. The
// first batch may be larger.
const maxFetchBytes = 55 << 20

// fetch reads batches of records. If there are fewer bytes than the client asked for, it waits for
// more.
func (b *Broker) fetch(r *request) (kmsg.Response, error) {
	req := r.Request.(*kmsg.FetchRequest)
	response := req.ResponseKind().(*kmsg.FetchResponse)
	session, refusal := r.conn.sessions.begin(b, req)
	if refusal != nil {
		response.ErrorCode = refusal.Code
		return response, nil
	}
	f := fetchOperation{b: b, r: r, req: req, parts: session.partitions()}
	f.read()
	if !f.enough() {
		f.wait()
	}
	session.answer(response, f.results)
	response.SessionID = session.id
	r.sizeHint = f.bytes + 128*len(response.Topics) + 1024
	return response, nil
}

// fetchOperation is a fetch in progress.
type fetchOperation struct {
	b     *Broker
	r     *request
	req   *kmsg.FetchRequest
	parts []*fetchPartition

	results []fetchResult // one for each of parts
	bytes   int           // of records in results
	failed  bool          // whether a result is an error or reports a diverging log
}

// fetchResult is the result for one partition.
type fetchResult struct {
	*fetchPartition
	kmsg.FetchResponseTopicPartition
}

// enough reports whether the client is answered now. As in Apache Kafka, an error is reported at
// once, so that the client can react to it.
func (f *fetchOperation) enough() bool {
	return f.failed || len(f.parts) == 0 || f.bytes >= int(f.req.MinBytes) || f.req.MaxWaitMillis <= 0
}

// read reads from each partition once. It replaces the results of an earlier read.
func (f *fetchOperation) read() {
	f.release()
	f.results, f.bytes, f.failed = f.results[:0], 0, false
	left := min(int(f.req.MaxBytes), maxFetchBytes)
	for _, p := range f.parts {
		result := fetchResult{p, newFetchResult(p.partition)}
		if err := f.readPartition(p, left, &result.FetchResponseTopicPartition); err != nil {
			result.FetchResponseTopicPartition = newFetchResult(p.partition)
			result.ErrorCode = err.Code
		}
		f.bytes += len(result.RecordBatches)
		if result.rank() == 0 {
			left = max(0, left-len(result.RecordBatches)) // a negative limit applies to one partition only
		}
		f.failed = f.failed || result.ErrorCode != 0 || result.DivergingEpoch.Epoch >= 0
		f.results = append(f.results, result)
	}
}

func newFetchResult(partition int32) kmsg.FetchResponseTopicPartition {
	result := kmsg.NewFetchResponseTopicPartition()
	result.Partition = partition
	result.HighWatermark, result.LastStableOffset, result.LogStartOffset = -1, -1, -1
	result.RecordBatches = []byte{}
	return result
}

func (f *fetchOperation) readPartition(p *fetchPartition, limit int, result *kmsg.FetchResponseTopicPartition) *kerr.Error {
	log, refusal := f.find(p)
	if refusal != nil {
		return refusal
	}
	if refusal := f.b.checkEpoch(p.CurrentLeaderEpoch); refusal != nil {
		return refusal
	}
	// Read the end before the records. If the end were read later, it could include records that
	// are missing from this result. wait would then wait for the log to pass that end, and the
	// client would get those records late.
	end, start := log.End(), log.Start()
	if p.LastFetchedEpoch >= 0 {
		diverging, refusal := divergence(log, p)
		if refusal != nil {
			return refusal
		}
		if diverging != nil {
			result.DivergingEpoch = *diverging
			result.HighWatermark, result.LastStableOffset, result.LogStartOffset = end, end, start
			return nil
		}
	}
	if min(limit, int(p.PartitionMaxBytes)) < 0 && start <= p.FetchOffset && p.FetchOffset < end {
		return kerr.UnknownServerError // Apache Kafka's answer to a negative limit
	}
	records, err := f.readLog(log, p, limit)
	switch {
	case errors.Is(err, commitlog.ErrOutOfRange):
		return kerr.OffsetOutOfRange
	case errors.Is(err, commitlog.ErrClosed):
		return kerr.UnknownTopicOrPartition // deleted a moment ago
	case err != nil:
		f.b.logError("read records", err, "topic", p.name, "partition", p.partition)
		return kerr.KafkaStorageError
	}
	if len(records) > 0 {
		end = max(end, log.End()) // records may have been appended since the end was read
	}
	result.HighWatermark, result.LastStableOffset, result.LogStartOffset = end, end, start
	result.RecordBatches = records
	if f.req.IsolationLevel == readCommitted {
		result.AbortedTransactions = []kmsg.FetchResponseTopicPartitionAbortedTransaction{}
	}
	return nil
}

const readCommitted = 1

// find returns the log of a partition if the caller may read it.
func (f *fetchOperation) find(p *fetchPartition) (*commitlog.Log, *kerr.Error) {
	t := f.b.topics.withID(p.id)
	switch {
	case f.req.Version < 13:
		t = f.b.topics.named(p.name)
	case t != nil:
		p.name = t.Name // the session remembers the name
	case p.name == "":
		return nil, kerr.UnknownTopicID
	}
	if !f.b.acls.allow(f.r.caller, kmsg.ACLOperationRead, kmsg.ACLResourceTypeTopic, p.name) {
		return nil, kerr.TopicAuthorizationFailed
	}
	if t == nil && f.b.topics.named(p.name) != nil { // the topic was deleted during the session and created again
		return nil, kerr.InconsistentTopicID
	}
	log, ok := t.partition(p.partition)
	if !ok {
		return nil, kerr.UnknownTopicOrPartition
	}
	return log, nil
}

// checkEpoch compares the leader epoch that a client knows with the current one (KIP-320).
func (b *Broker) checkEpoch(known int32) *kerr.Error {
	switch {
	case known < 0, known == b.epoch:
		return nil
	case known < b.epoch:
		return kerr.FencedLeaderEpoch
	default:
		return kerr.UnknownLeaderEpoch
	}
}

// divergence detects a client that has read records which the log lost afterwards in a power cut.
// For such a client it returns the epoch and offset up to which the client's records are still
// valid (KIP-595).
func divergence(log *commitlog.Log, p *fetchPartition) (*kmsg.FetchResponseTopicPartitionDivergingEpoch, *kerr.Error) {
	epoch, end := log.EndOffsetForEpoch(p.LastFetchedEpoch)
	if epoch < 0 {
		return nil, kerr.OffsetOutOfRange
	}
	if epoch >= p.LastFetchedEpoch && end >= p.FetchOffset {
		return nil, nil
	}
	diverging := kmsg.NewFetchResponseTopicPartitionDivergingEpoch()
	diverging.Epoch, diverging.EndOffset = epoch, end
	return &diverging, nil
}

// readLog reads records into a pooled buffer, which is freed after the response is sent.
func (f *fetchOperation) readLog(log *commitlog.Log, p *fetchPartition, limit int) ([]byte, error) {
	limit = min(limit, int(p.PartitionMaxBytes))
	buf := takeFrame(int(min(int64(max(0, limit)), log.Bytes())))
	records, err := log.Read(buf.bytes[:0], p.FetchOffset, limit, f.bytes == 0)
	f.r.frames = append(f.r.frames, buf)
	return records, err
}

// release frees the buffers of records that were read but will not be sent. The results no longer
// contain them: a connection that ends while it waits could still write its response.
func (f *fetchOperation) release() {
	for i := range f.results {
		f.results[i].RecordBatches = []byte{}
	}
	for _, buf := range f.r.frames {
		buf.free()
	}
	f.r.frames = f.r.frames[:0]
}

// wait waits until there is enough to answer the client, the client's maximum wait is over, or the
// connection ends.
func (f *fetchOperation) wait() {
	news := make(chan struct{}, 1)
	logs := make([]*commitlog.Log, len(f.parts))
	for i, p := range f.parts {
		if log, err := f.find(p); err == nil {
			logs[i] = log
			defer log.Forget(news)
		}
	}
	timer := time.NewTimer(time.Duration(f.req.MaxWaitMillis) * time.Millisecond)
	defer timer.Stop()
	for late := false; !late && !f.enough(); f.read() {
		for i, log := range logs {
			if log != nil {
				log.Notify(f.results[i].HighWatermark, news)
			}
		}
		f.release() // a waiting connection should hold no records in memory
		select {
		case <-news:
		case <-timer.C:
			late = true
		case <-f.r.ctx.Done():
			return
		}
	}
}
