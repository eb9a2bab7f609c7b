package kfakedir

import (
	"context"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// small is a segment size that holds a few batches.
var small = map[string]string{"segment.bytes": "1000"}

// story is a sequence of user actions. The process may be killed after each step.
var story = []struct {
	name string
	do   func(e *engine)
	lost bool // a kill loses the result of the step, as the engine knew
}{
	{name: "empty", do: func(e *engine) {}},
	{name: "topics", do: func(e *engine) {
		e.createTopic("events", 3, small)
		e.createTopic("plain.name-1", 1, nil)
		e.createTopic("doomed", 2, nil)
		e.createTopic("idle", 2, map[string]string{"retention.ms": "3600000", "max.message.bytes": "2000000"})
	}},
	{name: "produce", do: func(e *engine) {
		e.produce("events", 0, 20, kgo.DisableIdempotentWrite(), kgo.ProducerBatchCompression(kgo.NoCompression()))
		e.produce("events", 1, 20, kgo.ProducerBatchCompression(kgo.ZstdCompression()))
		e.produce("events", 1, 10, kgo.ProducerBatchCompression(kgo.Lz4Compression()))
		e.produce("plain.name-1", 0, 5, kgo.ProducerBatchCompression(kgo.GzipCompression()))
		e.produce("doomed", 1, 5)
	}},
	{name: "groups", do: func(e *engine) {
		e.commit("simple", "events", 0, 7)
		e.commit("simple", "events", 1, 3)
		e.commit("simple", "doomed", 1, 2)
		e.commit("simple", "events", 0, 9)
		e.consume("members", "events")
	}},
	{name: "acls", do: func(e *engine) {
		e.createACL("User:ada", "events")
		e.createACL("User:*", "plain.name-1")
	}},
	{name: "delete topic", do: func(e *engine) { e.must(e.cluster.DeleteTopic("doomed")) }},
	{name: "grow", do: func(e *engine) {
		responses, err := e.admin.UpdatePartitions(context.Background(), 4, "events")
		e.must(err)
		e.must(responses.Error())
	}},
	{name: "configure", do: func(e *engine) {
		e.configure("plain.name-1", "retention.bytes", "1234567")
	}},
	{name: "produce more", do: func(e *engine) { e.produce("events", 3, 3) }},
	{name: "delete whole segments", do: func(e *engine) { e.must(e.cluster.DeleteRecords("events", 0, lastSegment(e, "events-0"))) }},
	{name: "delete records", lost: true, do: func(e *engine) { e.must(e.cluster.DeleteRecords("events", 1, 11)) }},
	{name: "delete offsets", do: func(e *engine) {
		var s kadm.TopicsSet
		s.Add("events", 1)
		_, err := e.admin.DeleteOffsets(context.Background(), "simple", s)
		e.must(err)
	}},
}

// lastSegment returns the offset at which the last segment of a partition begins.
func lastSegment(e *engine, partition string) int64 {
	e.t.Helper()
	r := reader{dir: e.dir}
	bases, _, err := r.segmentFiles("partitions/" + partition)
	e.must(err)
	if len(bases) < 2 {
		e.t.Fatalf("segments %v, want more", bases)
	}
	return bases[len(bases)-1]
}

// TestKillAfterEachStep reads the directory of a running engine, as a killed process leaves it, and
// compares the result with what the engine serves.
func TestKillAfterEachStep(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	e := openEngine(t, dir)
	lost := false
	for _, step := range story {
		step.do(e)
		lost = lost || step.lost
		copied := copyDir(t, dir)
		data, got := read(t, copied)
		want := e.served()
		if lost {
			want = openEngine(t, copied).served()
		}
		t.Run(step.name, func(t *testing.T) {
			wantNoWarnings(t, data)
			want.compare(t, got)
		})
	}
}

// TestStopAfterEachStep does the same with a clean stop after each step, which loses nothing.
func TestStopAfterEachStep(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, step := range story {
		e := openEngine(t, dir)
		step.do(e)
		want := e.served()
		e.close()
		data, got := read(t, dir)
		t.Run(step.name, func(t *testing.T) {
			wantNoWarnings(t, data)
			want.compare(t, got)
		})
		// A kill right after the next start loses nothing either, and leaves old snapshots.
		e = openEngine(t, dir)
		if e.cluster.TopicInfo("events") != nil {
			e.produce("events", 2, 2)
		}
		copied := copyDir(t, dir)
		want = e.served()
		e.close()
		t.Run(step.name+", killed", func(t *testing.T) {
			data, got := read(t, copied)
			wantNoWarnings(t, data)
			want.compare(t, got)
		})
	}
}
