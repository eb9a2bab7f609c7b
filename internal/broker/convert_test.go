package broker

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// fill creates topics, records, committed offsets and ACLs in an old engine, and returns the state
// that the engine then reports. It leaves the directory in place.
func fill(t *testing.T, dir string) map[string]any {
	t.Helper()
	old, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.ClusterID("old"), kfake.DataDir(dir))
	testkit.Must(t, err)
	defer old.Close()
	connect := func(opts ...kgo.Opt) *kgo.Client {
		client, err := kgo.NewClient(append(opts, kgo.SeedBrokers(old.ListenAddrs()...), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0))...)
		testkit.Must(t, err)
		t.Cleanup(client.Close)
		return client
	}
	admin := kadm.NewClient(connect())
	configs := map[string]*string{"retention.ms": kadm.StringPtr("-1"), "segment.bytes": kadm.StringPtr("1048576")}
	if _, err := admin.CreateTopics(t.Context(), 2, 1, configs, "weather", "deleted", "empty"); err != nil {
		t.Fatal(err)
	}
	for _, codec := range []kgo.CompressionCodec{kgo.NoCompression(), kgo.GzipCompression(), kgo.SnappyCompression(), kgo.Lz4Compression(), kgo.ZstdCompression()} {
		client := connect(kgo.ProducerBatchCompression(codec))
		for i := range 40 {
			r := &kgo.Record{
				Topic: "weather", Partition: int32(i % 2), Key: fmt.Append(nil, i), Value: bytes.Repeat([]byte{byte(i)}, 20_000),
				Headers: []kgo.RecordHeader{{Key: "n", Value: fmt.Append(nil, i)}},
			}
			testkit.Must(t, client.ProduceSync(t.Context(), r).FirstErr())
		}
	}
	testkit.Must(t, connect().ProduceSync(t.Context(), &kgo.Record{Topic: "deleted", Value: []byte("x")}, &kgo.Record{Topic: "empty", Value: []byte("x")}).FirstErr())
	before := make(kadm.Offsets)
	before.AddOffset("weather", 1, 7, -1)
	before.AddOffset("empty", 0, 1, -1)
	if _, err := admin.DeleteRecords(t.Context(), before); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.DeleteTopics(t.Context(), "deleted"); err != nil {
		t.Fatal(err)
	}
	committed := make(kadm.Offsets)
	committed.Add(kadm.Offset{Topic: "weather", Partition: 0, At: 33, LeaderEpoch: 0, Metadata: "half way"})
	committed.AddOffset("weather", 1, 8, -1)
	for _, group := range []string{"analysis", "archive"} {
		testkit.Must(t, admin.CommitAllOffsets(t.Context(), group, committed))
	}
	acls := kadm.NewACLs().Topics("weather").Groups("analysis").Operations(kadm.OpRead).ResourcePatternType(kadm.ACLPatternLiteral).Allow("User:" + ada).AllowHosts("*")
	if _, err := admin.CreateACLs(t.Context(), acls); err != nil {
		t.Fatal(err)
	}
	return look(t, admin, connect())
}

// look collects everything that a conversion has to preserve.
func look(t *testing.T, admin *kadm.Client, reader *kgo.Client) map[string]any {
	t.Helper()
	ctx := t.Context()
	seen := make(map[string]any)
	metadata, err := admin.Metadata(ctx)
	testkit.Must(t, err)
	seen["cluster"] = metadata.Cluster
	assign := make(map[string]map[int32]kgo.Offset)
	want := 0
	starts, err := admin.ListStartOffsets(ctx)
	testkit.Must(t, err)
	ends, err := admin.ListEndOffsets(ctx)
	testkit.Must(t, err)
	for _, topic := range metadata.Topics.Sorted() {
		seen["ID of "+topic.Topic] = topic.ID
		assign[topic.Topic] = make(map[int32]kgo.Offset)
		for _, p := range topic.Partitions.Sorted() {
			start, _ := starts.Lookup(topic.Topic, p.Partition)
			end, _ := ends.Lookup(topic.Topic, p.Partition)
			seen[fmt.Sprintf("offsets of %s-%d", topic.Topic, p.Partition)] = [2]int64{start.Offset, end.Offset}
			want += int(end.Offset - start.Offset)
			assign[topic.Topic][p.Partition] = kgo.NewOffset().At(start.Offset)
		}
	}
	reader.AddConsumePartitions(assign)
	for n := 0; n < want; {
		fetches := reader.PollFetches(ctx)
		testkit.Must(t, fetches.Err())
		fetches.EachRecord(func(r *kgo.Record) {
			n++
			seen[fmt.Sprintf("record %s-%d-%d", r.Topic, r.Partition, r.Offset)] = fmt.Sprintf("%q %q %v %d", r.Key, r.Value, r.Headers, r.Timestamp.UnixMilli())
		})
	}
	for _, group := range []string{"analysis", "archive"} {
		offsets, err := admin.FetchOffsets(ctx, group)
		testkit.Must(t, err)
		for _, o := range offsets.Sorted() {
			seen[fmt.Sprintf("commit of %s in %s-%d", group, o.Topic, o.Partition)] = o.Offset
		}
	}
	acls, err := admin.DescribeACLs(ctx, kadm.NewACLs().AnyResource().Operations().Allow().AllowHosts().ResourcePatternType(kadm.ACLPatternAny))
	testkit.Must(t, err)
	for _, acl := range acls[0].Described {
		seen[fmt.Sprintf("ACL %v", acl)] = true
	}
	configs, err := admin.DescribeTopicConfigs(ctx, "weather")
	testkit.Must(t, err)
	for _, c := range configs[0].Configs {
		if c.Key == "retention.ms" || c.Key == "segment.bytes" {
			seen[c.Key] = *c.Value
		}
	}
	return seen
}

// TestConversion: after a conversion, even one that was interrupted, the broker reports the same
// state as the earlier version, and accepts new records.
func TestConversion(t *testing.T) {
	dir := t.TempDir()
	want := fill(t, dir)
	interrupted := t.TempDir()
	testkit.Must(t, os.CopyFS(interrupted, os.DirFS(dir)))
	for _, name := range []string{"topics/aaaa-0", "groups"} { // left by a start that was killed
		testkit.Must(t, os.MkdirAll(filepath.Join(interrupted, name), 0o700))
		testkit.Must(t, os.WriteFile(filepath.Join(interrupted, name, "00000000000000000001.log"), []byte("half"), 0o600))
	}
	for name, dir := range map[string]string{"at once": dir, "interrupted": interrupted} {
		t.Run(name, func(t *testing.T) {
			want := maps.Clone(want)
			var said bytes.Buffer
			for round := range 3 {
				b := open(t, Config{Dir: dir, Diagnostics: slog.New(slog.NewTextHandler(&said, &slog.HandlerOptions{Level: slog.LevelWarn}))})
				got := look(t, kadm.NewClient(b.admin(t)), b.admin(t))
				if !reflect.DeepEqual(got, want) {
					for k, v := range want {
						if !reflect.DeepEqual(got[k], v) {
							t.Errorf("start %d: %s is %.200v, want %.200v", round, k, got[k], v)
						}
					}
					for k, v := range got {
						if want[k] == nil {
							t.Errorf("start %d: %s is %.200v, want none", round, k, v)
						}
					}
				}
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				offsets := want["offsets of empty-1"].([2]int64)
				r := &kgo.Record{Topic: "empty", Partition: 1, Value: fmt.Append(nil, round)}
				if err := b.admin(t, kgo.RecordPartitioner(kgo.ManualPartitioner())).ProduceSync(ctx, r).FirstErr(); err != nil || r.Offset != offsets[1] {
					t.Errorf("start %d: produce = %v at offset %d, want %d", round, err, r.Offset, offsets[1])
				}
				cancel()
				offsets[1]++
				want["offsets of empty-1"] = offsets
				key := fmt.Sprintf("record empty-1-%d", r.Offset)
				want[key] = look(t, kadm.NewClient(b.admin(t)), b.admin(t))[key] // expect the broker's time instead
				testkit.Must(t, b.Close())
			}
			if said.Len() > 0 {
				t.Errorf("diagnostics: %s", said.String())
			}
			if _, err := os.Stat(filepath.Join(dir, "partitions")); err == nil {
				t.Error("the old files are still there")
			}
		})
	}
}
