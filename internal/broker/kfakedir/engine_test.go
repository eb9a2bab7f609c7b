package kfakedir

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/diaspora-streams/diaspora/internal/batch"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// engine is the old engine with a directory.
type engine struct {
	t       testing.TB
	dir     string
	cluster *kfake.Cluster
	clients []*kgo.Client
	client  *kgo.Client
	admin   *kadm.Client
}

func openEngine(t testing.TB, dir string) *engine {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.ClusterID("old"), kfake.DataDir(dir))
	testkit.Must(t, err)
	e := &engine{t: t, dir: dir, cluster: cluster}
	t.Cleanup(e.close)
	versions := kversion.Stable()
	versions.SetMaxKeyVersion(int16(kmsg.OffsetFetch), 8) // by name, because deleted topics have no ID
	e.client = e.newClient(kgo.MaxVersions(versions))
	e.admin = kadm.NewClient(e.client)
	return e
}

func (e *engine) newClient(opts ...kgo.Opt) *kgo.Client {
	e.t.Helper()
	opts = append([]kgo.Opt{
		kgo.SeedBrokers(e.cluster.ListenAddrs()...),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.RetryTimeout(10 * time.Second),
	}, opts...)
	client, err := kgo.NewClient(opts...)
	testkit.Must(e.t, err)
	e.clients = append(e.clients, client)
	return client
}

// close stops the engine in the same way as "diaspora up".
func (e *engine) close() {
	for _, client := range e.clients {
		client.Close()
	}
	e.cluster.Close()
}

func (e *engine) must(err error) {
	e.t.Helper()
	testkit.Must(e.t, err)
}

func (e *engine) createTopic(topic string, partitions int32, configs map[string]string) {
	e.t.Helper()
	e.must(e.cluster.CreateTopic(topic, partitions, configs))
}

func (e *engine) configure(topic, name, value string) {
	e.t.Helper()
	responses, err := e.admin.AlterTopicConfigs(context.Background(), []kadm.AlterConfig{{Name: name, Value: &value}}, topic)
	e.must(err)
	for _, r := range responses {
		e.must(r.Err)
	}
}

// produce writes batches of a few records each.
func (e *engine) produce(topic string, partition int32, batches int, opts ...kgo.Opt) {
	e.t.Helper()
	client := e.newClient(opts...)
	defer client.Close()
	e.produceBy(client, topic, partition, batches)
}

func (e *engine) produceBy(client *kgo.Client, topic string, partition int32, batches int) {
	e.t.Helper()
	for n := range batches {
		var records []*kgo.Record
		for i := range 1 + n%3 {
			records = append(records, &kgo.Record{
				Topic: topic, Partition: partition,
				Key:   fmt.Append(nil, n),
				Value: fmt.Appendf(nil, "%s/%d: batch %d, record %d", topic, partition, n, i),
			})
		}
		e.must(client.ProduceSync(context.Background(), records...).FirstErr())
	}
}

// produceRaw sends a batch unchanged.
func (e *engine) produceRaw(topic string, partition int32, b []byte) {
	e.t.Helper()
	req := kmsg.NewProduceRequest()
	req.Acks, req.TimeoutMillis = -1, 1000
	rt := kmsg.NewProduceRequestTopic()
	rt.Topic, rt.TopicID = topic, e.cluster.TopicInfo(topic).TopicID
	rp := kmsg.NewProduceRequestTopicPartition()
	rp.Partition, rp.Records = partition, b
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	resp, err := req.RequestWith(context.Background(), e.client.Broker(0))
	e.must(err)
	e.must(kerr.ErrorForCode(resp.Topics[0].Partitions[0].ErrorCode))
}

func (e *engine) commit(group, topic string, partition int32, offset int64) {
	e.t.Helper()
	offsets := make(kadm.Offsets)
	offsets.Add(kadm.Offset{Topic: topic, Partition: partition, At: offset, LeaderEpoch: -1, Metadata: "by " + group})
	e.must(e.admin.CommitAllOffsets(context.Background(), group, offsets))
}

// consume reads some records as a member of a group, and commits offsets.
func (e *engine) consume(group, topic string) {
	e.t.Helper()
	client := e.newClient(kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic), kgo.DisableAutoCommit(), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	testkit.Must(e.t, client.PollFetches(ctx).Err())
	e.must(client.CommitUncommittedOffsets(ctx))
}

func (e *engine) createACL(principal, topic string) {
	e.t.Helper()
	b := kadm.NewACLs().Allow(principal).Topics(topic).ResourcePatternType(kadm.ACLPatternLiteral).Operations(kadm.OpRead, kadm.OpDescribe)
	_, err := e.admin.CreateACLs(context.Background(), b)
	e.must(err)
}

// contents is what an engine serves, or what [Read] has found, as text: one line for each item.
type contents []string

func (c contents) compare(t testing.TB, got contents) {
	t.Helper()
	want := slices.Sorted(slices.Values(c))
	got = slices.Sorted(slices.Values(got))
	for _, line := range want {
		if !slices.Contains(got, line) {
			t.Errorf("missing: %s", line)
		}
	}
	for _, line := range got {
		if !slices.Contains(want, line) {
			t.Errorf("too much: %s", line)
		}
	}
}

func (c *contents) add(format string, args ...any) { *c = append(*c, fmt.Sprintf(format, args...)) }

// addTopic adds a topic's configs, sorted.
func (c *contents) addTopic(name string, id [16]byte, configs map[string]string) {
	var sorted []string
	for _, key := range slices.Sorted(maps.Keys(configs)) {
		sorted = append(sorted, key+"="+configs[key])
	}
	c.add("topic %s %x %v", name, id, sorted)
}

func (c *contents) addPartition(topic string, partition int32, start, end int64, batches []byte) {
	c.add("partition %s/%d: %d to %d", topic, partition, start, end)
	for len(batches) > 0 {
		h, err := batch.ParseHeader(batches)
		if err != nil {
			c.add("partition %s/%d: %d bytes: %v", topic, partition, len(batches), err)
			return
		}
		if h.LastOffset() >= start && !empty(h) {
			c.add("batch %s/%d: offsets %d to %d, %x", topic, partition, h.BaseOffset, h.LastOffset(), sha256.Sum256(batches[:h.Size()]))
		}
		batches = batches[h.Size():]
	}
}

func (c *contents) addOffset(group, topic string, partition int32, offset int64, epoch int32, metadata *string) {
	text := "none"
	if metadata != nil {
		text = strconv.Quote(*metadata)
	}
	c.add("offset %s %s/%d: %d, epoch %d, %s", group, topic, partition, offset, epoch, text)
}

// served requests everything that the engine has.
func (e *engine) served() contents {
	e.t.Helper()
	ctx := context.Background()
	var c contents
	metadata, err := kmsg.NewPtrMetadataRequest().RequestWith(ctx, e.client.Broker(0)) // not from the client, which has a cache
	e.must(err)
	c.add("cluster %s", *metadata.ClusterID)
	for _, topic := range metadata.Topics {
		name := *topic.Topic
		configs := make(map[string]string)
		for key, value := range e.cluster.TopicInfo(name).Configs {
			if value != nil {
				configs[key] = *value
			}
		}
		c.addTopic(name, topic.TopicID, configs)
		for _, p := range topic.Partitions {
			at := e.cluster.PartitionInfo(name, p.Partition)
			c.addPartition(name, p.Partition, at.LogStartOffset, at.HighWatermark, e.fetch(name, p.Partition, at.LogStartOffset, at.HighWatermark))
		}
	}
	groups, err := e.admin.ListGroups(ctx)
	e.must(err)
	for _, g := range groups.Sorted() {
		c.add("group %s %s", g.Group, g.ProtocolType)
		req := kmsg.NewPtrOffsetFetchRequest()
		req.Groups = []kmsg.OffsetFetchRequestGroup{{Group: g.Group}}
		resp, err := req.RequestWith(ctx, e.client.Broker(0))
		e.must(err)
		for _, topic := range resp.Groups[0].Topics {
			for _, p := range topic.Partitions {
				c.addOffset(g.Group, topic.Topic, p.Partition, p.Offset, p.LeaderEpoch, p.Metadata)
			}
		}
	}
	acls, err := e.admin.DescribeACLs(ctx, kadm.NewACLs().Allow().AllowHosts().Deny().DenyHosts().AnyResource().Operations(kadm.OpAny).ResourcePatternType(kadm.ACLPatternAny))
	e.must(err)
	for _, found := range acls {
		for _, a := range found.Described {
			c.add("acl %s %s %v %s %v %v %v", a.Principal, a.Host, a.Type, a.Name, a.Pattern, a.Operation, a.Permission)
		}
	}
	return c
}

// fetch returns all batches of a partition.
func (e *engine) fetch(topic string, partition int32, start, end int64) []byte {
	e.t.Helper()
	var all []byte
	for offset := start; offset < end; {
		req := kmsg.NewFetchRequest()
		req.MaxWaitMillis, req.MinBytes, req.MaxBytes = 0, 1, 1<<26
		rt := kmsg.NewFetchRequestTopic()
		rt.Topic = topic
		rt.TopicID = e.cluster.TopicInfo(topic).TopicID
		rp := kmsg.NewFetchRequestTopicPartition()
		rp.Partition, rp.FetchOffset, rp.PartitionMaxBytes = partition, offset, 1<<26
		rt.Partitions = append(rt.Partitions, rp)
		req.Topics = append(req.Topics, rt)
		resp, err := req.RequestWith(context.Background(), e.client.Broker(0))
		e.must(err)
		p := resp.Topics[0].Partitions[0]
		e.must(kerr.ErrorForCode(p.ErrorCode))
		if len(p.RecordBatches) == 0 {
			break
		}
		all = append(all, p.RecordBatches...)
		for rest := p.RecordBatches; len(rest) > 0; {
			h, err := batch.ParseHeader(rest)
			e.must(err)
			offset, rest = h.LastOffset()+1, rest[h.Size():]
		}
	}
	return all
}

// read reads a directory, and returns the result in the same form as served.
func read(t testing.TB, dir string) (*Data, contents) {
	t.Helper()
	data, err := Read(dir)
	testkit.Must(t, err)
	var c contents
	c.add("cluster %s", data.ClusterID)
	for _, topic := range data.Topics {
		c.addTopic(topic.Name, topic.ID, topic.Configs)
		for _, p := range topic.Partitions {
			c.addPartition(topic.Name, p.Number, p.Start, p.End, records(t, p))
		}
	}
	for _, g := range data.Groups {
		c.add("group %s %s", g.ID, g.ProtocolType)
		for _, o := range g.Offsets {
			c.addOffset(g.ID, o.Topic, o.Partition, o.Offset, o.LeaderEpoch, o.Metadata)
		}
	}
	for _, a := range data.ACLs {
		c.add("acl %s %s %v %s %v %v %v", a.Principal, a.Host, a.ResourceType, a.ResourceName, a.Pattern, a.Operation, a.Permission)
	}
	return data, c
}

// records returns the valid batches of a partition, after checking them.
func records(t testing.TB, p Partition) []byte {
	t.Helper()
	var all []byte
	next := p.Start
	for i, s := range p.Segments {
		content := s.good(t)
		if int64(len(content)) != s.Bytes {
			t.Fatalf("segment of %d bytes, want %d", len(content), s.Bytes)
		}
		if i > 0 && s.Base != next || s.Base > next {
			t.Errorf("segment with the base %d after offset %d", s.Base, next)
		}
		next = wantLog(t, content, s.Base)
		if next != s.End {
			t.Errorf("segment ends at %d, want %d", next, s.End)
		}
		all = append(all, content...)
	}
	if p.End != next || p.Start > p.End || p.Start < 0 {
		t.Errorf("partition from %d to %d with batches to %d", p.Start, p.End, next)
	}
	return all
}

// wantLog fails if content does not consist of batches without gaps from base on. It returns their
// end.
func wantLog(t testing.TB, content []byte, base int64) int64 {
	t.Helper()
	epoch := int32(0)
	for len(content) > 0 {
		h, err := batch.ParseHeader(content)
		if err != nil || h.Size() > len(content) || !batch.ChecksumOK(content[:h.Size()]) || h.BaseOffset != base || h.LastOffset() < base || h.LeaderEpoch < epoch {
			t.Fatalf("bad batch behind offset %d, epoch %d: %+v, %v", base, epoch, h, err)
		}
		base, epoch, content = h.LastOffset()+1, h.LeaderEpoch, content[h.Size():]
	}
	return base
}

// empty reports whether a batch replaces others.
func empty(h batch.Header) bool { return h.Count == 0 && h.LastOffsetDelta >= 0 }

// good returns the valid batches of a segment.
func (s Segment) good(t testing.TB) []byte {
	t.Helper()
	file := testkit.ReadFile(t, s.Path)
	for _, p := range s.patches {
		copy(file[p.at:], p.content)
	}
	var good []byte
	for _, p := range s.parts {
		good = append(append(good, file[p.from:p.to]...), p.batches...)
	}
	return good
}

// copyDir copies a directory, in the state in which kill -9 would leave it now.
func copyDir(t testing.TB, from string) string {
	t.Helper()
	to := t.TempDir()
	testkit.Must(t, os.CopyFS(to, os.DirFS(from)))
	return to
}

// wantNoWarnings fails if there are warnings.
func wantNoWarnings(t testing.TB, data *Data) {
	t.Helper()
	if len(data.Warnings) > 0 {
		t.Errorf("warnings: %s", strings.Join(data.Warnings, "\n"))
	}
}

// wantWarning fails if no warning contains the text.
func wantWarning(t testing.TB, data *Data, words string) {
	t.Helper()
	for _, w := range data.Warnings {
		if strings.Contains(w, words) {
			return
		}
	}
	t.Errorf("no warning with %q: %q", words, data.Warnings)
}

func (d *Data) partition(t testing.TB, topic string, n int32) Partition {
	t.Helper()
	i, ok := slices.BinarySearchFunc(d.Topics, topic, func(a Topic, name string) int { return cmp.Compare(a.Name, name) })
	if !ok || int(n) >= len(d.Topics[i].Partitions) {
		t.Fatalf("no partition %s/%d", topic, n)
	}
	return d.Topics[i].Partitions[n]
}
