package kfakedir

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora/internal/batch"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestMain runs the tests, or serves as the process that is killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv("KFAKEDIR_TEST_DIR"); dir != "" {
		if err := writeUntilKilled(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// writeUntilKilled runs the old engine, and reports what it has acknowledged.
func writeUntilKilled(dir string) error {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.DataDir(dir))
	if err != nil {
		return err
	}
	for topic, configs := range map[string]map[string]string{
		"keep":  {"segment.bytes": "20000"},
		"short": {"segment.bytes": "5000", "retention.bytes": "20000"},
	} {
		if cluster.TopicInfo(topic) == nil {
			if err := cluster.CreateTopic(topic, 2, configs); err != nil {
				return err
			}
		}
	}
	var out sync.Mutex
	say := func(format string, args ...any) {
		out.Lock()
		defer out.Unlock()
		fmt.Printf(format+"\n", args...)
	}
	failed := make(chan error)
	for writer, codec := range []kgo.CompressionCodec{kgo.NoCompression(), kgo.SnappyCompression()} {
		client, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...), kgo.ProducerBatchCompression(codec), kgo.RecordPartitioner(kgo.RoundRobinPartitioner()))
		if err != nil {
			return err
		}
		admin := kadm.NewClient(client)
		go func() {
			for n := 0; ; n++ {
				topic := [...]string{"keep", "short"}[rand.IntN(2)]
				value := strings.Repeat(strconv.Itoa(n), 1+rand.IntN(40))
				r, err := client.ProduceSync(context.Background(), &kgo.Record{Topic: topic, Value: []byte(value)}).First()
				if err != nil {
					failed <- err
				}
				say("record %s %d %d %s", topic, r.Partition, r.Offset, value)
				if n%5 > 0 {
					continue
				}
				var offsets kadm.Offsets
				offsets.AddOffset(topic, r.Partition, r.Offset, -1)
				group := fmt.Sprint("g", writer, ".", rand.IntN(3))
				if err := admin.CommitAllOffsets(context.Background(), group, offsets); err != nil {
					failed <- err
				}
				say("commit %s %d %d %s", topic, r.Partition, r.Offset, group)
				cluster.ApplyRetention()
			}
		}()
	}
	return <-failed
}

// position is an acknowledged offset.
type position struct {
	topic     string
	partition int32
	offset    int64
}

// TestKill kills a process again and again, and requires that everything acknowledged is found.
func TestKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	recorded := make(map[position]string)
	committed := make(map[string]int64)
	for round := range testkit.Scaled(t, "KFAKEDIR_KILLS", 4) {
		for _, line := range killOne(t, dir) {
			topic, partition, offset, rest := parseLine(t, line)
			switch kind, _, _ := strings.Cut(line, " "); kind {
			case "record":
				recorded[position{topic, partition, offset}] = rest
			case "commit":
				committed[fmt.Sprint(rest, " ", topic, "/", partition)] = offset
			}
		}
		data, got := read(t, dir)
		wantNoWarnings(t, data)
		present := make(map[position]string)
		for _, topic := range data.Topics {
			for _, p := range topic.Partitions {
				for _, b := range split(t, records(t, p)) {
					h, _ := batch.ParseHeader(b)
					err := batch.Records(b, func(r batch.Record) bool {
						present[position{topic.Name, p.Number, h.BaseOffset + int64(r.OffsetDelta)}] = string(r.Value)
						return true
					})
					testkit.Must(t, err)
				}
			}
		}
		for at, value := range recorded {
			if expired := at.topic == "short" && at.offset < data.partition(t, at.topic, at.partition).Start; !expired && present[at] != value {
				t.Errorf("round %d: %+v is %q, want %q", round, at, present[at], value)
			}
		}
		found := make(map[string]int64)
		for _, g := range data.Groups {
			for _, o := range g.Offsets {
				found[fmt.Sprint(g.ID, " ", o.Topic, "/", o.Partition)] = o.Offset
			}
		}
		for at, offset := range committed {
			if found[at] < offset {
				t.Errorf("round %d: committed %s: %d, want %d", round, at, found[at], offset)
			}
		}
		e := openEngine(t, copyDir(t, dir))
		e.served().compare(t, got)
		e.close()
	}
	t.Logf("%d records, all found", len(recorded))
}

func parseLine(t *testing.T, line string) (topic string, partition int32, offset int64, rest string) {
	t.Helper()
	var kind string
	if _, err := fmt.Sscan(line, &kind, &topic, &partition, &offset, &rest); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	return topic, partition, offset, rest
}

// killOne runs a process for a while, kills it, and returns what it reported.
func killOne(t *testing.T, dir string) []string {
	t.Helper()
	cmd, in, _ := testkit.Rerun(t, "KFAKEDIR_TEST_DIR="+dir)
	var lines []string
	enough := 100 + rand.IntN(400)
	for in.Scan() {
		lines = append(lines, in.Text())
		if len(lines) == enough {
			time.AfterFunc(time.Duration(rand.IntN(1000))*time.Microsecond, func() { cmd.Process.Kill() })
		}
	}
	if err := cmd.Wait(); err == nil || len(lines) < enough {
		t.Fatalf("the process has ended by itself after %d lines", len(lines))
	}
	return lines
}
