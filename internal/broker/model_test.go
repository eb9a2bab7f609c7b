package broker

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
	"pgregory.net/rapid"

	"github.com/diaspora-streams/diaspora/internal/batch"
	"github.com/diaspora-streams/diaspora/internal/disk/disktest"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestModel compares the broker with a few maps. After random requests of any supported version,
// and random stops and kills, the broker has the same topics, settings, ACLs, committed offsets and
// records, each at its offset. Starts and ends of partitions never decrease, and only records that
// expired or were deleted are missing.
func TestModel(t *testing.T) {
	checks := flag.Lookup("rapid.checks")
	before := checks.Value.String()
	testkit.Must(t, flag.Set(checks.Name, strconv.Itoa(testkit.Scaled(t, "BROKER_MODEL_ROUNDS", 200))))
	defer flag.Set(checks.Name, before)
	rapid.Check(t, func(t *rapid.T) {
		m := newBrokerModel(t)
		defer m.close()
		t.Repeat(map[string]func(*rapid.T){
			"create topic":      m.createTopic,
			"grow topic":        m.addPartitions,
			"alter topic":       m.alterTopic,
			"delete topic":      m.deleteTopic,
			"produce":           m.produce,
			"produce more":      func(t *rapid.T) { m.produce(t); m.produce(t); m.produce(t) },
			"produce from one":  m.produceIdempotent,
			"delete records":    m.deleteRecords,
			"create ACLs":       m.createACLs,
			"delete ACLs":       m.deleteACLs,
			"commit":            m.commit,
			"delete group":      m.deleteGroup,
			"new producer":      m.newProducer,
			"offset for a time": m.offsetForTime,
			"fetch":             m.fetchSome,
			"pass":              m.pass,
			"maintain":          m.maintain,
			"pass and maintain": func(t *rapid.T) { m.pass(t); m.maintain(t) },
			"stop":              func(t *rapid.T) { m.restart(t, true) },
			"kill":              func(t *rapid.T) { m.restart(t, false) },
			"":                  m.check,
		})
	})
}

// brokerModel is the expected state of a broker.
type brokerModel struct {
	cfg    Config
	clock  *testkit.Clock
	files  *disktest.Model
	broker *Broker
	conn   net.Conn
	faults *faultLog

	topics    map[string]*modelTopic
	acls      map[acl]bool
	commits   map[modelCommit]int64
	ids       map[int64]bool // producer IDs that were given out
	epoch     int32
	instances map[topicID]bool // all topics that ever existed
	values    int              // number of values so far
}

type modelTopic struct {
	name       string
	id         topicID
	configs    map[string]string
	partitions []*modelPartition
}

type modelPartition struct {
	start, end int64
	batches    []modelBatch // those that are not known to be removed
	last       int64        // time of the last batch
	next       map[int64]from
	sent       map[int64][]modelBatch // batches of each producer, including those that were removed
}

type modelBatch struct {
	batch.Header
	from   from
	bytes  []byte // as they were sent
	values []string
}

type modelCommit struct {
	group     string
	topic     topicID
	partition int32
}

// faultLog collects what a broker reports as errors.
type faultLog struct {
	slog.Handler
	lines *bytes.Buffer
}

func newFaultLog() *faultLog {
	var lines bytes.Buffer
	return &faultLog{slog.NewTextHandler(&lines, &slog.HandlerOptions{Level: slog.LevelError}), &lines}
}

func newBrokerModel(t *rapid.T) *brokerModel {
	m := &brokerModel{
		clock:     newClock(),
		files:     disktest.New(),
		faults:    newFaultLog(),
		topics:    make(map[string]*modelTopic),
		acls:      make(map[acl]bool),
		commits:   make(map[modelCommit]int64),
		ids:       make(map[int64]bool),
		instances: make(map[topicID]bool),
	}
	m.cfg = Config{Advertise: advertised, SyncWrites: rapid.Bool().Draw(t, "sync"), now: m.clock.Now, Diagnostics: slog.New(m.faults)}
	m.open(t)
	m.createTopic(t)
	return m
}

func (m *brokerModel) open(t *rapid.T) {
	m.cfg.files = m.files
	var err error
	if m.broker, err = Open(m.cfg); err != nil {
		t.Fatalf("Open: %v", err)
	}
	if m.broker.epoch <= m.epoch {
		t.Fatalf("leader epoch %d after %d", m.broker.epoch, m.epoch)
	}
	m.epoch = m.broker.epoch
	if m.conn, err = m.broker.connect(superUser); err != nil {
		t.Fatalf("connect: %v", err)
	}
}

func (m *brokerModel) close() error {
	m.conn.Close()
	return m.broker.Close()
}

func (m *brokerModel) restart(t *rapid.T, clean bool) {
	if !clean { // like another process, it finds what was written so far
		m.files = m.files.Kill()
	}
	if err := m.close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	m.open(t)
}

// tell makes a request in any version that the broker supports.
func tell[R kmsg.Response](t *rapid.T, m *brokerModel, req kmsg.Request, least ...int16) R {
	t.Helper()
	a := apis()[req.Key()]
	version := rapid.Int16Range(max(a.min, append(least, 0)[0]), a.max).Draw(t, "version")
	req.SetVersion(version)
	response, err := requestor{m.conn}.Request(context.Background(), req)
	if err != nil {
		t.Fatalf("request %d version %d: %v", req.Key(), version, err)
	}
	return response.(R)
}

var (
	modelTopics  = []string{"a", "b", "c"}
	modelGroups  = []string{"g", "h"}
	modelConfigs = map[string][]string{
		"internal.segment.bytes": {"300", "1000", "5000"},
		"retention.ms":           {"1000", "10000", "-1"},
		"retention.bytes":        {"0", "1500", "-1"},
		"max.message.bytes":      {"100000", "1048588"},
	}
)

func (m *brokerModel) someTopic(t *rapid.T) *modelTopic {
	if len(m.topics) == 0 {
		t.Skip("no topics")
	}
	return m.topics[rapid.SampledFrom(slices.Sorted(maps.Keys(m.topics))).Draw(t, "topic")]
}

func (m *brokerModel) somePartition(t *rapid.T) (*modelTopic, int32, *modelPartition) {
	topic := m.someTopic(t)
	n := rapid.Int32Range(0, int32(len(topic.partitions)-1)).Draw(t, "partition")
	return topic, n, topic.partitions[n]
}

func newModelPartition() *modelPartition {
	return &modelPartition{next: make(map[int64]from), sent: make(map[int64][]modelBatch)}
}

func (m *brokerModel) createTopic(t *rapid.T) {
	name := rapid.SampledFrom(modelTopics).Draw(t, "topic")
	topic := newTopic(name, rapid.Int32Range(1, 3).Draw(t, "partitions"))
	configs := make(map[string]string)
	for _, config := range slices.Sorted(maps.Keys(modelConfigs)) {
		if rapid.Bool().Draw(t, "set") {
			value := rapid.SampledFrom(modelConfigs[config]).Draw(t, config)
			configs[config] = value
			topic.Configs = append(topic.Configs, kmsg.CreateTopicsRequestTopicConfig{Name: config, Value: &value})
		}
	}
	made := tell[*kmsg.CreateTopicsResponse](t, m, createTopics(topic)).Topics[0]
	if m.topics[name] != nil {
		if made.ErrorCode != kerr.TopicAlreadyExists.Code {
			t.Fatalf("create topic %s again: %d", name, made.ErrorCode)
		}
		return
	}
	if made.ErrorCode != 0 {
		t.Fatalf("create topic %s: %d, %v", name, made.ErrorCode, made.ErrorMessage)
	}
	id := m.broker.topics.named(name).ID
	if m.instances[id] {
		t.Fatalf("topic %s has the ID of another", name)
	}
	m.instances[id] = true
	fresh := &modelTopic{name: name, id: id, configs: configs}
	for range topic.NumPartitions {
		fresh.partitions = append(fresh.partitions, newModelPartition())
	}
	m.topics[name] = fresh
}

func (m *brokerModel) addPartitions(t *rapid.T) {
	topic := m.someTopic(t)
	count := rapid.IntRange(1, 6).Draw(t, "partitions")
	request := kmsg.NewPtrCreatePartitionsRequest()
	request.Topics = []kmsg.CreatePartitionsRequestTopic{{Topic: topic.name, Count: int32(count)}}
	code := tell[*kmsg.CreatePartitionsResponse](t, m, request).Topics[0].ErrorCode
	switch {
	case count <= len(topic.partitions):
		if code != kerr.InvalidPartitions.Code {
			t.Fatalf("shrink topic %s: %d", topic.name, code)
		}
	case code != 0:
		t.Fatalf("grow topic %s: %d", topic.name, code)
	}
	for len(topic.partitions) < count {
		topic.partitions = append(topic.partitions, newModelPartition())
	}
}

func (m *brokerModel) alterTopic(t *rapid.T) {
	topic := m.someTopic(t)
	name := rapid.SampledFrom(slices.Sorted(maps.Keys(modelConfigs))).Draw(t, "config")
	config := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
	config.Name, config.Op = name, kmsg.IncrementalAlterConfigOpDelete
	if rapid.Bool().Draw(t, "set") {
		value := rapid.SampledFrom(modelConfigs[name]).Draw(t, "value")
		config.Op, config.Value = kmsg.IncrementalAlterConfigOpSet, &value
		topic.configs[name] = value
	} else {
		delete(topic.configs, name)
	}
	resource := kmsg.NewIncrementalAlterConfigsRequestResource()
	resource.ResourceType, resource.ResourceName = kmsg.ConfigResourceTypeTopic, topic.name
	resource.Configs = append(resource.Configs, config)
	request := kmsg.NewPtrIncrementalAlterConfigsRequest()
	request.Resources = append(request.Resources, resource)
	if got := tell[*kmsg.IncrementalAlterConfigsResponse](t, m, request).Resources[0]; got.ErrorCode != 0 {
		t.Fatalf("alter %s of topic %s: %d", name, topic.name, got.ErrorCode)
	}
}

func (m *brokerModel) deleteTopic(t *rapid.T) {
	topic := m.someTopic(t)
	request := kmsg.NewPtrDeleteTopicsRequest()
	request.TopicNames = []string{topic.name}
	request.Topics = []kmsg.DeleteTopicsRequestTopic{{TopicID: topic.id}}
	if code := tell[*kmsg.DeleteTopicsResponse](t, m, request).Topics[0].ErrorCode; code != 0 {
		t.Fatalf("delete topic %s: %d", topic.name, code)
	}
	delete(m.topics, topic.name)
	maps.DeleteFunc(m.commits, func(c modelCommit, _ int64) bool { return c.topic == topic.id })
}

func (m *brokerModel) someValues(t *rapid.T) (values []string) {
	for range rapid.IntRange(1, 4).Draw(t, "records") {
		m.values++
		values = append(values, fmt.Sprint(m.values, " ", strings.Repeat("v", rapid.IntRange(0, 120).Draw(t, "bytes"))))
	}
	return values
}

func someCodec(t *rapid.T) batch.Codec {
	return rapid.SampledFrom([]batch.Codec{batch.None, batch.Gzip, batch.Snappy, batch.LZ4, batch.Zstd}).Draw(t, "codec")
}

// send produces a batch. A client that retries a batch sends the same bytes again.
func (m *brokerModel) send(t *rapid.T, topic *modelTopic, partition int32, b []byte) kmsg.ProduceResponseTopicPartition {
	p := kmsg.NewProduceRequestTopicPartition()
	p.Partition, p.Records = partition, slices.Clone(b)
	to := kmsg.NewProduceRequestTopic()
	to.Topic, to.TopicID, to.Partitions = topic.name, topic.id, append(to.Partitions, p)
	request := kmsg.NewPtrProduceRequest()
	request.Acks, request.Topics = -1, append(request.Topics, to)
	return tell[*kmsg.ProduceResponse](t, m, request, 7).Topics[0].Partitions[0] // Zstandard needs version 7
}

// add sends a batch that must be appended.
func (m *brokerModel) add(t *rapid.T, topic *modelTopic, partition int32, who from, values []string) {
	p := topic.partitions[partition]
	b := newBatch(someCodec(t), who, values...)
	got := m.send(t, topic, partition, b)
	now := max(p.last, m.clock.Now().UnixMilli())
	if got.ErrorCode != 0 || got.BaseOffset != p.end || got.LogAppendTime != now {
		t.Fatalf("produce to %s/%d as %+v: code %d, offset %d, time %d, want offset %d, time %d",
			topic.name, partition, who, got.ErrorCode, got.BaseOffset, got.LogAppendTime, p.end, now)
	}
	h, _ := batch.ParseHeader(b)
	h.BaseOffset, h.MaxTimestamp, h.LeaderEpoch = p.end, now, m.epoch
	stored := modelBatch{h, who, b, values}
	p.batches = append(p.batches, stored)
	p.end, p.last = h.LastOffset()+1, now
	if who.id >= 0 {
		p.next[who.id] = from{who.id, who.epoch, h.LastSequence() + 1}
		p.sent[who.id] = append(p.sent[who.id], stored)
	}
}

func (m *brokerModel) produce(t *rapid.T) {
	topic, n, _ := m.somePartition(t)
	m.add(t, topic, n, nobody, m.someValues(t))
}

// produceIdempotent sends the next batch of a producer, a duplicate, or a batch out of order.
func (m *brokerModel) produceIdempotent(t *rapid.T) {
	topic, n, p := m.somePartition(t)
	if len(m.ids) == 0 {
		m.newProducer(t)
	}
	id := rapid.SampledFrom(slices.Sorted(maps.Keys(m.ids))).Draw(t, "producer")
	next, known := p.next[id]
	next.id = id
	refused := func(what string, who from, want *kerr.Error) {
		if got := m.send(t, topic, n, newBatch(someCodec(t), who, "refused")); got.ErrorCode != want.Code {
			t.Fatalf("%s %+v: code %d, offset %d, want %v", what, who, got.ErrorCode, got.BaseOffset, want)
		}
	}
	switch kind := rapid.IntRange(0, 9).Draw(t, "kind"); {
	case kind == 0 && known:
		refused("a gap", from{id, next.epoch, next.sequence + 1}, kerr.OutOfOrderSequenceNumber)
	case kind == 1 && known && next.epoch > 0:
		refused("an old epoch", from{id, next.epoch - 1, next.sequence}, kerr.InvalidProducerEpoch)
	case kind == 2 && known:
		m.add(t, topic, n, from{id, next.epoch + 1, 0}, m.someValues(t))
	case kind <= 5 && known:
		again := p.sent[id]
		again = slices.DeleteFunc(slices.Clone(again), func(b modelBatch) bool { return b.from.epoch != next.epoch })
		b := rapid.SampledFrom(again[max(0, len(again)-5):]).Draw(t, "batch")
		got := m.send(t, topic, n, b.bytes)
		if got.ErrorCode != 0 || got.BaseOffset != b.BaseOffset || got.LogAppendTime != b.MaxTimestamp {
			t.Fatalf("%+v again: code %d, offset %d, time %d, want offset %d, time %d",
				b.from, got.ErrorCode, got.BaseOffset, got.LogAppendTime, b.BaseOffset, b.MaxTimestamp)
		}
	default:
		m.add(t, topic, n, next, m.someValues(t))
	}
}

func (m *brokerModel) newProducer(t *rapid.T) {
	got := tell[*kmsg.InitProducerIDResponse](t, m, kmsg.NewPtrInitProducerIDRequest())
	if got.ErrorCode != 0 || m.ids[got.ProducerID] {
		t.Fatalf("new producer: code %d, ID %d, those before are %v", got.ErrorCode, got.ProducerID, m.ids)
	}
	m.ids[got.ProducerID] = true
}

func (m *brokerModel) deleteRecords(t *rapid.T) {
	topic, n, p := m.somePartition(t)
	before := rapid.Int64Range(-1, p.end+1).Draw(t, "before")
	request := kmsg.NewPtrDeleteRecordsRequest()
	request.Topics = []kmsg.DeleteRecordsRequestTopic{{Topic: topic.name, Partitions: []kmsg.DeleteRecordsRequestTopicPartition{{Partition: n, Offset: before}}}}
	got := tell[*kmsg.DeleteRecordsResponse](t, m, request).Topics[0].Partitions[0]
	if before > p.end {
		if got.ErrorCode != kerr.OffsetOutOfRange.Code {
			t.Fatalf("delete records of %s/%d behind the end: %d", topic.name, n, got.ErrorCode)
		}
		return
	}
	if before < 0 {
		before = p.end
	}
	p.removeBefore(max(p.start, before))
	if got.ErrorCode != 0 || got.LowWatermark != p.start {
		t.Fatalf("delete records of %s/%d: code %d, start %d, want %d", topic.name, n, got.ErrorCode, got.LowWatermark, p.start)
	}
}

// removeBefore forgets batches before an offset.
func (p *modelPartition) removeBefore(offset int64) {
	p.start = offset
	p.batches = slices.DeleteFunc(p.batches, func(b modelBatch) bool { return b.LastOffset() < offset })
}

func someACL(t *rapid.T) acl {
	return acl{
		pattern{kmsg.ACLResourceTypeTopic, kmsg.ACLResourcePatternTypeLiteral, rapid.SampledFrom(modelTopics).Draw(t, "resource")},
		"User:" + rapid.SampledFrom([]string{"ada", "bert"}).Draw(t, "principal"), "*",
		rapid.SampledFrom([]kmsg.ACLOperation{kmsg.ACLOperationRead, kmsg.ACLOperationWrite}).Draw(t, "operation"),
		rapid.SampledFrom([]kmsg.ACLPermissionType{kmsg.ACLPermissionTypeAllow, kmsg.ACLPermissionTypeDeny}).Draw(t, "permission"),
	}
}

func (m *brokerModel) createACLs(t *rapid.T) {
	request := kmsg.NewPtrCreateACLsRequest()
	for range rapid.IntRange(1, 3).Draw(t, "ACLs") {
		x := someACL(t)
		m.acls[x] = true
		request.Creations = append(request.Creations, creation(x))
	}
	for _, result := range tell[*kmsg.CreateACLsResponse](t, m, request).Results {
		if result.ErrorCode != 0 {
			t.Fatalf("create ACLs: %d", result.ErrorCode)
		}
	}
}

func creation(x acl) kmsg.CreateACLsRequestCreation {
	c := kmsg.NewCreateACLsRequestCreation()
	c.ResourceType, c.ResourcePatternType, c.ResourceName = x.resource, x.kind, x.name
	c.Principal, c.Host, c.Operation, c.PermissionType = x.principal, x.host, x.operation, x.permission
	return c
}

func (m *brokerModel) deleteACLs(t *rapid.T) {
	x := someACL(t)
	filter := kmsg.NewDeleteACLsRequestFilter()
	filter.ResourceType, filter.ResourcePatternType, filter.ResourceName = x.resource, x.kind, &x.name
	filter.Operation, filter.PermissionType = kmsg.ACLOperationAny, kmsg.ACLPermissionTypeAny
	request := kmsg.NewPtrDeleteACLsRequest()
	request.Filters = append(request.Filters, filter)
	want := 0
	for other := range m.acls {
		if other.pattern == x.pattern {
			delete(m.acls, other)
			want++
		}
	}
	if got := tell[*kmsg.DeleteACLsResponse](t, m, request).Results[0]; got.ErrorCode != 0 || len(got.MatchingACLs) != want {
		t.Fatalf("delete ACLs of topic %s: %d, %d of them, want %d", x.name, got.ErrorCode, len(got.MatchingACLs), want)
	}
}

func (m *brokerModel) commit(t *rapid.T) {
	topic := m.someTopic(t)
	group := rapid.SampledFrom(modelGroups).Draw(t, "group")
	to := kmsg.NewOffsetCommitRequestTopic()
	to.Topic, to.TopicID = topic.name, topic.id
	for n := range int32(len(topic.partitions)) {
		if rapid.Bool().Draw(t, "this one") {
			p := kmsg.NewOffsetCommitRequestTopicPartition()
			p.Partition, p.Offset = n, rapid.Int64Range(0, 1000).Draw(t, "offset")
			to.Partitions = append(to.Partitions, p)
			m.commits[modelCommit{group, topic.id, n}] = p.Offset
		}
	}
	request := kmsg.NewPtrOffsetCommitRequest()
	request.Group, request.Topics = group, append(request.Topics, to)
	response := tell[*kmsg.OffsetCommitResponse](t, m, request)
	for _, topic := range response.Topics {
		for _, p := range topic.Partitions {
			if p.ErrorCode != 0 {
				t.Fatalf("commit: %+v", response)
			}
		}
	}
}

func (m *brokerModel) deleteGroup(t *rapid.T) {
	group := rapid.SampledFrom(modelGroups).Draw(t, "group")
	request := kmsg.NewPtrDeleteGroupsRequest()
	request.Groups = []string{group}
	code := tell[*kmsg.DeleteGroupsResponse](t, m, request).Groups[0].ErrorCode
	if code != 0 && code != kerr.GroupIDNotFound.Code {
		t.Fatalf("delete group %s: %d", group, code)
	}
	maps.DeleteFunc(m.commits, func(c modelCommit, _ int64) bool { return c.group == group })
}

// pass advances the clock, or sometimes sets it back.
func (m *brokerModel) pass(t *rapid.T) {
	most := rapid.SampledFrom([]int{900, 900, 6000}).Draw(t, "at most")
	m.clock.Add(time.Duration(rapid.IntRange(-500, most).Draw(t, "ms")) * time.Millisecond)
}

// maintain lets records expire. The topics' settings determine what may be missing afterwards.
func (m *brokerModel) maintain(t *rapid.T) {
	m.broker.maintainOnce()
	m.broker.deleteExpiredOffsets()
	now := m.clock.Now().UnixMilli()
	for _, topic := range m.topics {
		settings := settingsOf(topic.configs)
		keep := settings.retention.Milliseconds()
		for n, p := range topic.partitions {
			log := m.broker.topics.named(topic.name).partitions[n]
			start := log.Start()
			if start < p.start || start > p.end {
				t.Fatalf("%s/%d: the start moved from %d to %d; the end is %d", topic.name, n, p.start, start, p.end)
			}
			rest := int64(0)
			for _, b := range slices.Backward(p.batches) {
				expired := settings.retention >= 0 && now-b.MaxTimestamp > keep
				surplus := settings.retentionBytes >= 0 && rest >= settings.retentionBytes
				if b.LastOffset() < start && !expired && !surplus {
					t.Fatalf("%s/%d: offset %d has not expired and is gone", topic.name, n, b.BaseOffset)
				}
				rest += int64(b.Size())
			}
			if settings.retention >= 0 && now-p.last > keep && start < p.end {
				t.Fatalf("%s/%d: all records have expired, and it starts at %d; the end is %d", topic.name, n, start, p.end)
			}
			p.removeBefore(start)
		}
	}
}

func (m *brokerModel) offsetForTime(t *rapid.T) {
	topic, n, p := m.somePartition(t)
	at := p.last + rapid.Int64Range(-10_000, 10).Draw(t, "time")
	if at < 0 {
		at = 0
	}
	want := [2]int64{-1, -1}
	for _, b := range p.batches {
		if b.MaxTimestamp >= at {
			want = [2]int64{max(b.BaseOffset, p.start), b.MaxTimestamp}
			break
		}
	}
	if got := m.listOffset(t, topic, n, at); [2]int64{got.Offset, got.Timestamp} != want || got.ErrorCode != 0 {
		t.Fatalf("%s/%d: time %d is %+v, want %v", topic.name, n, at, got, want)
	}
}

func (m *brokerModel) listOffset(t *rapid.T, topic *modelTopic, partition int32, at int64) kmsg.ListOffsetsResponseTopicPartition {
	p := kmsg.NewListOffsetsRequestTopicPartition()
	p.Partition, p.Timestamp = partition, at
	of := kmsg.NewListOffsetsRequestTopic()
	of.Topic, of.Partitions = topic.name, append(of.Partitions, p)
	request := kmsg.NewPtrListOffsetsRequest()
	request.Topics = append(request.Topics, of)
	return tell[*kmsg.ListOffsetsResponse](t, m, request).Topics[0].Partitions[0]
}

// fetchSome reads from any offset, with any limit.
func (m *brokerModel) fetchSome(t *rapid.T) {
	topic, n, p := m.somePartition(t)
	offset := rapid.Int64Range(0, p.end+1).Draw(t, "offset")
	most := rapid.Int32Range(0, 3000).Draw(t, "bytes")
	got := m.fetch(t, topic, most, func(partition int32) int64 {
		if partition == n {
			return offset
		}
		return -1
	})[n]
	if offset < p.start || offset > p.end {
		if got.ErrorCode != kerr.OffsetOutOfRange.Code {
			t.Fatalf("%s/%d: offset %d, which is not in %d to %d: %d", topic.name, n, offset, p.start, p.end, got.ErrorCode)
		}
		return
	}
	m.compare(t, topic, n, got, offset, int(most))
}

// fetch reads from the partitions of a topic, except those with a negative offset.
func (m *brokerModel) fetch(t *rapid.T, topic *modelTopic, most int32, offset func(int32) int64) map[int32]kmsg.FetchResponseTopicPartition {
	from := kmsg.NewFetchRequestTopic()
	from.Topic, from.TopicID = topic.name, topic.id
	for n := range int32(len(topic.partitions)) {
		p := kmsg.NewFetchRequestTopicPartition()
		p.Partition, p.FetchOffset, p.PartitionMaxBytes = n, offset(n), most
		if p.FetchOffset >= 0 {
			from.Partitions = append(from.Partitions, p)
		}
	}
	request := kmsg.NewPtrFetchRequest()
	request.MaxBytes, request.SessionEpoch, request.Topics = 1<<30, -1, append(request.Topics, from)
	response := tell[*kmsg.FetchResponse](t, m, request)
	if response.ErrorCode != 0 || len(response.Topics) != 1 || len(response.Topics[0].Partitions) != len(from.Partitions) {
		t.Fatalf("fetch %s: %+v", topic.name, response)
	}
	all := make(map[int32]kmsg.FetchResponseTopicPartition)
	for _, p := range response.Topics[0].Partitions {
		if response.Version < 5 && p.ErrorCode == 0 {
			p.LogStartOffset = topic.partitions[p.Partition].start // these versions do not return it
		}
		all[p.Partition] = p
	}
	return all
}

// compare checks the result of a fetch from an offset.
func (m *brokerModel) compare(t *rapid.T, topic *modelTopic, n int32, got kmsg.FetchResponseTopicPartition, offset int64, most int) {
	p := topic.partitions[n]
	if got.ErrorCode != 0 || got.HighWatermark != p.end || got.LogStartOffset != p.start {
		t.Fatalf("fetch %s/%d: code %d, %d to %d, want %d to %d", topic.name, n, got.ErrorCode, got.LogStartOffset, got.HighWatermark, p.start, p.end)
	}
	batches, err := batchesOf(got.RecordBatches)
	if err != nil {
		t.Fatalf("fetch %s/%d: %v", topic.name, n, err)
	}
	size := 0
	for _, want := range p.batches {
		if want.LastOffset() < offset {
			continue
		}
		if size += want.Size(); size > most && size > want.Size() { // the first batch is returned whatever its size
			break
		}
		if len(batches) == 0 {
			t.Fatalf("%s/%d: offset %d is missing", topic.name, n, want.BaseOffset)
		}
		b := batches[0]
		h, _ := batch.ParseHeader(b)
		values, err := valuesOf(b)
		if err != nil || !slices.Equal(values, want.values) || h.BaseOffset != want.BaseOffset || h.MaxTimestamp != want.MaxTimestamp ||
			!h.LogAppendTime() || h.LeaderEpoch != want.LeaderEpoch || h.Codec() != want.Codec() ||
			!bytes.Equal(b[batch.HeaderBytes:], want.bytes[batch.HeaderBytes:]) || !bytes.Equal(b[43:57], want.bytes[43:57]) {
			t.Fatalf("%s/%d: %+v with %q, %v, want %+v with %q", topic.name, n, h, values, err, want.Header, want.values)
		}
		batches = batches[1:]
	}
	if len(batches) > 0 {
		h, _ := batch.ParseHeader(batches[0])
		t.Fatalf("%s/%d: a batch too many at offset %d", topic.name, n, h.BaseOffset)
	}
}

// check compares everything. It is called after each step.
func (m *brokerModel) check(t *rapid.T) {
	if m.faults.lines.Len() > 0 {
		t.Fatalf("the broker reports:\n%s", m.faults.lines)
	}
	metadata := kmsg.NewPtrMetadataRequest()
	response := tell[*kmsg.MetadataResponse](t, m, metadata, 1)
	if len(response.Topics) != len(m.topics) {
		t.Fatalf("%d topics, want %d", len(response.Topics), len(m.topics))
	}
	for _, got := range response.Topics {
		topic := m.topics[*got.Topic]
		if topic == nil || got.ErrorCode != 0 || len(got.Partitions) != len(topic.partitions) || response.Version >= 10 && topicID(got.TopicID) != topic.id {
			t.Fatalf("topic %s is %+v, want %+v", *got.Topic, got, topic)
		}
	}
	for _, topic := range m.topics {
		for n, got := range m.fetch(t, topic, 1<<30, func(n int32) int64 { return topic.partitions[n].start }) {
			m.compare(t, topic, n, got, topic.partitions[n].start, 1<<30)
		}
		if got := m.broker.topics.named(topic.name).Configs; !maps.Equal(got, topic.configs) {
			t.Fatalf("topic %s has the settings %v, want %v", topic.name, got, topic.configs)
		}
	}
	m.checkACLs(t)
	m.checkCommits(t)
	infos, err := m.files.Sub("topics").List()
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range infos {
		if id, _, ok := strings.Cut(info.Name(), "-"); ok && !slices.ContainsFunc(slices.Collect(maps.Values(m.topics)), func(topic *modelTopic) bool { return topic.id.String() == id }) {
			t.Fatalf("the directory %s belongs to no topic", info.Name())
		}
	}
}

func (m *brokerModel) checkACLs(t *rapid.T) {
	request := kmsg.NewPtrDescribeACLsRequest()
	request.ResourceType, request.ResourcePatternType = kmsg.ACLResourceTypeAny, kmsg.ACLResourcePatternTypeAny
	request.Operation, request.PermissionType = kmsg.ACLOperationAny, kmsg.ACLPermissionTypeAny
	got := make(map[acl]bool)
	for _, r := range tell[*kmsg.DescribeACLsResponse](t, m, request).Resources {
		for _, x := range r.ACLs {
			got[acl{pattern{r.ResourceType, r.ResourcePatternType, r.ResourceName}, x.Principal, x.Host, x.Operation, x.PermissionType}] = true
		}
	}
	if !maps.Equal(got, m.acls) {
		t.Fatalf("ACLs are %v, want %v", got, m.acls)
	}
}

func (m *brokerModel) checkCommits(t *rapid.T) {
	for _, group := range modelGroups {
		want := make(map[modelCommit]int64)
		for c, offset := range m.commits {
			if c.group == group {
				want[c] = offset
			}
		}
		request := kmsg.NewPtrOffsetFetchRequest()
		request.Group, request.Groups = group, []kmsg.OffsetFetchRequestGroup{{Group: group, MemberEpoch: -1}}
		response := tell[*kmsg.OffsetFetchResponse](t, m, request, 2) // version 1 cannot request all partitions
		got := make(map[modelCommit]int64)
		for _, topic := range response.Topics {
			for _, p := range topic.Partitions {
				got[modelCommit{group, m.topics[topic.Topic].id, p.Partition}] = p.Offset
			}
		}
		for _, g := range response.Groups {
			for _, topic := range g.Topics {
				id := topicID(topic.TopicID)
				if response.Version < 10 {
					id = m.topics[topic.Topic].id
				}
				for _, p := range topic.Partitions {
					got[modelCommit{group, id, p.Partition}] = p.Offset
				}
			}
		}
		if !maps.Equal(got, want) {
			t.Fatalf("group %s has committed %v, want %v", group, got, want)
		}
	}
}
