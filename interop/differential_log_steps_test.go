//go:build kafka

package interop

import (
	"math"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kmsg"
	"pgregory.net/rapid"
)

// The steps in this file use partitions: produce, fetch, offsets, delete records, producers.

// produceStep sends batches.
type produceStep struct {
	Version int16
	Acks    int16
	Apart   bool // each batch gets its own topic entry in the request
	Named   bool // the request has a transactional ID, although no batch is part of a transaction
	Batches []batchStep
}

type batchStep struct {
	Topic     int
	Partition int32
	Codec     int8
	Records   int
	Size      int
	Producer  int    // -1 for none
	Sequence  string // next, again, older, gap, zero, wrap
	Epoch     int16  // relative to the producer's
	Defect    string // "" for none
}

// drawProduce draws a request with batches that both engines accept or both reject.
func drawProduce(t *rapid.T) step {
	s := produceStep{
		Version: version(t, kmsg.NewPtrProduceRequest()),
		Acks:    often[int16](t, "acks", -1, 1, 0, 2, -2),
		Apart:   often(t, "apart", false, true),
		Named:   often(t, "named", false, false, true),
	}
	for range often(t, "batches", 1, 2, 3) {
		b := batchStep{Topic: drawTopic(t), Partition: drawPartition(t),
			Codec: pick(t, "codec", int8(0), 1, 2, 3, 4), Records: pick(t, "records", 1, 2, 3, 10), Size: pick(t, "size", 5, 100, 2000),
			Producer: often(t, "producer", -1, 0, 1)}
		if b.Producer >= 0 {
			b.Sequence = often(t, "sequence", "next", "again", "older", "gap", "zero", "wrap")
			b.Epoch = often(t, "epoch", int16(0), 0, -1, 1)
		}
		b.Defect = often(t, "odd batch", "", rapid.SampledFrom(defectNames).Draw(t, "defect"))
		if b.strictness().title != "" {
			b.Defect = ""
		}
		if s.Batches = append(s.Batches, b); s.repeats() {
			s.Batches = s.Batches[:len(s.Batches)-1]
		}
		if strings.Contains(b.Defect, "transactional") || strings.Contains(b.Defect, "bits 4") {
			s.Named = false // the batch would be part of a real transaction
		}
	}
	return s
}

// drawHostile draws a request with a defect that the engines may treat differently. If they do, the
// sequence ends.
func drawHostile(t *rapid.T) step {
	s := hostile(rapid.SampledFrom(defectNames).Draw(t, "defect"), pick(t, "codec", int8(0), 1, 2, 3, 4))
	s.Version = version(t, kmsg.NewPtrProduceRequest())
	s.Batches[0].Producer = often(t, "producer", -1, 0)
	return s
}

// hostile returns a request with one batch that has a defect.
func hostile(defect string, codec int8) produceStep {
	return produceStep{Version: 9, Acks: -1, Batches: []batchStep{{Records: 3, Size: 5, Producer: -1, Codec: codec, Defect: defect}}}
}

// repeats reports whether two batches are for the same partition.
func (s produceStep) repeats() bool {
	seen := map[partitionNumber]bool{}
	for _, b := range s.Batches {
		at := partitionNumber{b.Topic, b.Partition}
		if seen[at] {
			return true
		}
		seen[at] = true
	}
	return false
}

type partitionNumber struct {
	topic     int
	partition int32
}

var defectNames, defectsByName = func() (names []string, byName map[string]defect) {
	byName = map[string]defect{}
	for _, d := range append(defects, hostileCompressed...) {
		names, byName[d.name] = append(names, d.name), d
	}
	return names, byName
}()

func (s produceStep) request(w *world) kmsg.Request {
	awaitClock()
	r := at(w, s.Version, kmsg.NewPtrProduceRequest())
	r.Acks, r.TimeoutMillis = s.Acks, 5000
	if s.Named {
		r.TransactionID = pointer("transaction")
	}
	for _, b := range s.Batches {
		partition := kmsg.NewProduceRequestTopicPartition()
		partition.Partition, partition.Records = b.Partition, b.encode(w)
		name := w.topic(b.Topic)
		at := slices.IndexFunc(r.Topics, func(t kmsg.ProduceRequestTopic) bool { return t.Topic == name })
		if at < 0 || s.Apart {
			topic := kmsg.NewProduceRequestTopic()
			topic.Topic, topic.TopicID = name, w.topicID(name)
			at, r.Topics = len(r.Topics), append(r.Topics, topic)
		}
		r.Topics[at].Partitions = append(r.Topics[at].Partitions, partition)
	}
	return r
}

func (b batchStep) encode(w *world) []byte {
	out := plainBatch(b.Records, b.Size, b.Codec)
	if b.Producer >= 0 {
		p := w.producers[b.Producer]
		out.producerID, out.producerEpoch, out.sequence = p.id, p.epoch+b.Epoch, b.sequence(w)
	}
	if b.Defect != "" {
		defectsByName[b.Defect].apply(out)
	}
	return out.encode()
}

func (b batchStep) key(w *world) sequenceKey {
	return sequenceKey{b.Producer, partitionName{w.topic(b.Topic), b.Partition}}
}

func (b batchStep) sequence(w *world) int32 {
	next := w.next[b.key(w)]
	n := int32(b.Records)
	switch b.Sequence {
	case "again":
		return max(next-n, 0)
	case "older":
		return max(next-n-3, 0)
	case "gap":
		return sequenceAfter(next, 1)
	case "zero":
		return 0
	case "wrap":
		return math.MaxInt32 - 1
	}
	return next
}

func (s produceStep) learn(w *world, _ kmsg.Request, response kmsg.Response) {
	sequences := map[sequenceKey]int32{}
	for _, b := range s.Batches {
		if b.Producer >= 0 && b.Epoch >= 0 {
			sequences[b.key(w)] = sequenceAfter(b.sequence(w), int32(b.Records))
		}
	}
	for _, topic := range response.(*kmsg.ProduceResponse).Topics {
		name := topic.Topic
		for known, id := range w.topicIDs {
			if id == topic.TopicID {
				name = known
			}
		}
		for _, p := range topic.Partitions {
			if p.ErrorCode != 0 {
				continue
			}
			at := partitionName{name, p.Partition}
			for producer := range w.producers {
				key := sequenceKey{producer, at}
				if next, ok := sequences[key]; ok {
					w.next[key] = next
				}
			}
			// The batches of one request may or may not have arrived in the same millisecond.
			if p.LogAppendTime > 0 && len(s.Batches) == 1 {
				w.times = append(w.times, p.LogAppendTime)
			}
		}
	}
}

// fetchStep fetches records.
type fetchStep struct {
	Version    int16
	MaxWait    int32
	MinBytes   int32
	MaxBytes   int32
	Committed  bool
	Session    int    // index of the session
	SessionUse string // none, new, next, again, wrong ID, wrong epoch, close
	Partitions []fetchPartition
	Forget     []fetchPartition
}

type fetchPartition struct {
	Topic        int
	Partition    int32
	Offset       int64
	MaxBytes     int32
	CurrentEpoch int32 // see epochAt
	LastEpoch    int32
}

const noEpoch = -1

func drawFetch(t *rapid.T) step {
	s := fetchStep{
		Version:    max(version(t, kmsg.NewPtrFetchRequest()), 4),
		MaxWait:    often[int32](t, "max wait", 0, 30),
		MinBytes:   often[int32](t, "min bytes", 1, 0, 100, 1<<20),
		MaxBytes:   often[int32](t, "max bytes", 50<<20, 0, 1, 61, 100, 300, 3000, -1),
		Committed:  rapid.Bool().Draw(t, "committed"),
		SessionUse: pick(t, "session use", "none", "none", "none", "new", "new", "next", "next", "next", "next", "again", "wrong ID", "wrong epoch", "close", "close and new"),
	}
	if s.SessionUse != "none" {
		s.Session = pick(t, "session", 0, 1)
	}
	s.Partitions = several(t, often(t, "partitions", 1, 0, 2, 3), drawFetchPartition)
	for range often(t, "forget", 0, 1, 2) {
		s.Forget = append(s.Forget, fetchPartition{Topic: drawTopic(t), Partition: drawPartition(t)})
	}
	return s
}

func drawOffset(t *rapid.T) int64 {
	return pick[int64](t, "offset", 0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 30, -1, -2, math.MaxInt64, 1<<40)
}

func drawFetchPartition(t *rapid.T) fetchPartition {
	return fetchPartition{Topic: drawTopic(t), Partition: drawPartition(t), Offset: drawOffset(t),
		MaxBytes:     often[int32](t, "partition max bytes", 1<<20, 0, 1, 61, 200, 3000, -1),
		CurrentEpoch: often[int32](t, "current epoch", noEpoch, 0, 1, 5), LastEpoch: often[int32](t, "last epoch", noEpoch, 0, 1, 5)}
}

// epochAt converts an epoch relative to the current leader epoch into an epoch of the engine.
func (w *world) epochAt(relative int32) int32 {
	if relative == noEpoch {
		return -1
	}
	return w.lastEpoch + relative
}

func (s fetchStep) request(w *world) kmsg.Request {
	r := at(w, s.Version, kmsg.NewPtrFetchRequest())
	r.ReplicaID, r.ReplicaState.ID = -1, -1
	r.MaxWaitMillis, r.MinBytes, r.MaxBytes = s.MaxWait, s.MinBytes, s.MaxBytes
	if s.Committed {
		r.IsolationLevel = 1
	}
	session := w.sessions[s.Session]
	switch s.SessionUse {
	case "none":
		r.SessionID, r.SessionEpoch = 0, -1
	case "new":
		r.SessionID, r.SessionEpoch = 0, 0
	case "next":
		r.SessionID, r.SessionEpoch = session.id, session.epoch
	case "again":
		r.SessionID, r.SessionEpoch = session.id, max(session.epoch-1, 1)
	case "wrong ID":
		r.SessionID, r.SessionEpoch = 12345, 3
	case "wrong epoch":
		r.SessionID, r.SessionEpoch = session.id, session.epoch+5
	case "close":
		r.SessionID, r.SessionEpoch = session.id, -1
	case "close and new":
		r.SessionID, r.SessionEpoch = session.id, 0
	}
	for _, p := range s.Partitions {
		partition := kmsg.NewFetchRequestTopicPartition()
		partition.Partition, partition.FetchOffset, partition.PartitionMaxBytes = p.Partition, p.Offset, p.MaxBytes
		partition.CurrentLeaderEpoch, partition.LastFetchedEpoch = w.epochAt(p.CurrentEpoch), w.epochAt(p.LastEpoch)
		topic := kmsg.NewFetchRequestTopic()
		topic.Topic = w.topic(p.Topic)
		topic.TopicID, topic.Partitions = w.topicID(topic.Topic), append(topic.Partitions, partition)
		r.Topics = append(r.Topics, topic)
	}
	for _, p := range s.Forget {
		topic := kmsg.NewFetchRequestForgottenTopic()
		topic.Topic, topic.Partitions = w.topic(p.Topic), []int32{p.Partition}
		topic.TopicID = w.topicID(topic.Topic)
		r.ForgottenTopics = append(r.ForgottenTopics, topic)
	}
	return r
}

func (s fetchStep) learn(w *world, request kmsg.Request, response kmsg.Response) {
	r, sent := response.(*kmsg.FetchResponse), request.(*kmsg.FetchRequest)
	if r.Version < 7 || s.SessionUse == "none" {
		return
	}
	session := &w.sessions[s.Session]
	switch {
	case sent.SessionEpoch == -1:
		*session = sessionState{}
	case r.ErrorCode != 0:
	case sent.SessionEpoch == 0:
		*session = sessionState{r.SessionID, 1}
	default:
		session.epoch = sent.SessionEpoch + 1
	}
}

// listStep requests offsets by time.
type listStep struct {
	Version   int16
	Committed bool
	Topic     int
	Partition int32
	Time      int64 // sent as it is, except for batchTime, which means the time of an earlier batch, plus After
	Batch     int   // index of the earlier batch, if Time is batchTime
	After     int64
	Epoch     int32
	Twice     bool // the request contains the partition twice
}

const batchTime = math.MaxInt64

func drawList(t *rapid.T) step {
	s := listStep{Version: version(t, kmsg.NewPtrListOffsetsRequest()), Committed: rapid.Bool().Draw(t, "committed"),
		Topic: drawTopic(t), Partition: drawPartition(t),
		Time:  pick[int64](t, "time", -1, -2, -3, -4, -5, -6, -7, 0, 1, 1<<60, batchTime, batchTime, batchTime),
		Epoch: often[int32](t, "epoch", noEpoch, 0, 1, 5), Twice: often(t, "twice", false, false, true)}
	if s.Time == batchTime {
		s.Batch, s.After = rapid.IntRange(0, 9).Draw(t, "batch"), pick[int64](t, "after", 0, 1, -1)
	}
	return s
}

func (s listStep) request(w *world) kmsg.Request {
	r := at(w, s.Version, kmsg.NewPtrListOffsetsRequest())
	r.ReplicaID = -1
	if s.Committed {
		r.IsolationLevel = 1
	}
	partition := kmsg.NewListOffsetsRequestTopicPartition()
	partition.Partition, partition.Timestamp, partition.CurrentLeaderEpoch = s.Partition, s.Time, w.epochAt(s.Epoch)
	if s.Time == batchTime {
		partition.Timestamp = 1
		if len(w.times) > 0 {
			partition.Timestamp = w.times[s.Batch%len(w.times)] + s.After
		}
	}
	topic := kmsg.NewListOffsetsRequestTopic()
	topic.Topic, topic.Partitions = w.topic(s.Topic), once(partition, s.Twice)
	r.Topics = append(r.Topics, topic)
	return r
}

// deleteRecordsStep moves the start of a partition.
type deleteRecordsStep struct {
	Version   int16
	Topic     int
	Partition int32
	Offset    int64
	Twice     bool
}

func drawDeleteRecords(t *rapid.T) step {
	return deleteRecordsStep{version(t, kmsg.NewPtrDeleteRecordsRequest()), drawTopic(t), drawPartition(t), drawOffset(t), often(t, "twice", false, false, true)}
}

func (s deleteRecordsStep) request(w *world) kmsg.Request {
	r := at(w, s.Version, kmsg.NewPtrDeleteRecordsRequest())
	r.TimeoutMillis = 5000
	partition := kmsg.NewDeleteRecordsRequestTopicPartition()
	partition.Partition, partition.Offset = s.Partition, s.Offset
	topic := kmsg.NewDeleteRecordsRequestTopic()
	topic.Topic, topic.Partitions = w.topic(s.Topic), once(partition, s.Twice)
	r.Topics = append(r.Topics, topic)
	return r
}

func (s deleteRecordsStep) learn(w *world, _ kmsg.Request, _ kmsg.Response) { w.deleted = true }

// once returns a list that contains v once, or twice.
func once[T any](v T, twice bool) []T {
	if twice {
		return []T{v, v}
	}
	return []T{v}
}

// initProducerStep requests a producer ID.
type initProducerStep struct {
	Version  int16
	Producer int
	Given    string // "", "known", "unknown": the producer that the request names
	Timeout  int32
}

func drawInitProducer(t *rapid.T) step {
	return initProducerStep{version(t, kmsg.NewPtrInitProducerIDRequest()), pick(t, "producer", 0, 1),
		often(t, "given", "", "known", "unknown"), often[int32](t, "timeout", 60_000, 0, -1)}
}

func (s initProducerStep) request(w *world) kmsg.Request {
	r := at(w, s.Version, kmsg.NewPtrInitProducerIDRequest())
	r.TransactionTimeoutMillis, r.ProducerID, r.ProducerEpoch = s.Timeout, -1, -1
	switch p := w.producers[s.Producer]; s.Given {
	case "known":
		r.ProducerID, r.ProducerEpoch = p.id, p.epoch
	case "unknown":
		r.ProducerID, r.ProducerEpoch = 77, 3
	}
	return r
}

func (s initProducerStep) learn(w *world, _ kmsg.Request, response kmsg.Response) {
	if r := response.(*kmsg.InitProducerIDResponse); r.ErrorCode == 0 {
		w.isProducer(s.Producer, r.ProducerID, r.ProducerEpoch)
		for key := range w.next {
			if key.producer == s.Producer {
				delete(w.next, key)
			}
		}
	}
}

// epochStep requests the end of a leader epoch.
type epochStep struct {
	Version      int16
	Topic        int
	Partition    int32
	CurrentEpoch int32
	Epoch        int32
	Twice        bool
}

func drawEpoch(t *rapid.T) step {
	return epochStep{version(t, kmsg.NewPtrOffsetForLeaderEpochRequest()), drawTopic(t), drawPartition(t),
		often[int32](t, "current epoch", noEpoch, 0, 1, 5), pick[int32](t, "epoch", 0, noEpoch, 1, 5), often(t, "twice", false, false, true)}
}

func (s epochStep) request(w *world) kmsg.Request {
	r := at(w, s.Version, kmsg.NewPtrOffsetForLeaderEpochRequest())
	r.ReplicaID = -2
	partition := kmsg.NewOffsetForLeaderEpochRequestTopicPartition()
	partition.Partition, partition.CurrentLeaderEpoch, partition.LeaderEpoch = s.Partition, w.epochAt(s.CurrentEpoch), w.epochAt(s.Epoch)
	topic := kmsg.NewOffsetForLeaderEpochRequestTopic()
	topic.Topic, topic.Partitions = w.topic(s.Topic), once(partition, s.Twice)
	r.Topics = append(r.Topics, topic)
	return r
}

// logDirsStep requests the sizes of partitions.
type logDirsStep struct {
	Version   int16
	All       bool
	Topic     int
	Partition int32
}

func drawLogDirs(t *rapid.T) step {
	return logDirsStep{version(t, kmsg.NewPtrDescribeLogDirsRequest()), rapid.Bool().Draw(t, "all"), drawTopic(t), drawPartition(t)}
}

func (s logDirsStep) request(w *world) kmsg.Request {
	r := at(w, s.Version, kmsg.NewPtrDescribeLogDirsRequest())
	if !s.All {
		topic := kmsg.NewDescribeLogDirsRequestTopic()
		topic.Topic, topic.Partitions = w.topic(s.Topic), []int32{s.Partition}
		r.Topics = append(r.Topics, topic)
	}
	return r
}

// producersStep requests the producers of a partition.
type producersStep struct {
	Topic     int
	Partition int32
}

func drawProducers(t *rapid.T) step { return producersStep{drawTopic(t), drawPartition(t)} }

func (s producersStep) request(w *world) kmsg.Request {
	r := at(w, 0, kmsg.NewPtrDescribeProducersRequest())
	topic := kmsg.NewDescribeProducersRequestTopic()
	topic.Topic, topic.Partitions = w.topic(s.Topic), []int32{s.Partition}
	r.Topics = append(r.Topics, topic)
	return r
}
