package kfakedir

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora/internal/batch"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// expire lets retention remove all records of a topic.
func (e *engine) expire(topic string) {
	e.t.Helper()
	e.configure(topic, "retention.ms", "1")
	time.Sleep(3 * time.Millisecond) // retention uses the real clock
	e.cluster.ApplyRetention()
	e.configure(topic, "retention.ms", "-1")
}

// wantPartition fails if the only partition of the topic "log" has other offsets.
func wantPartition(t *testing.T, dir string, start, end int64, batches int) Partition {
	t.Helper()
	data, _ := read(t, dir)
	p := data.partition(t, "log", 0)
	got := split(t, records(t, p))
	got = slices.DeleteFunc(got, func(b []byte) bool {
		h, _ := batch.ParseHeader(b)
		return h.LastOffset() < p.Start
	})
	if p.Start != start || p.End != end || len(got) != batches {
		t.Errorf("from %d to %d with %d batches, want %d to %d with %d (%q)", p.Start, p.End, len(got), start, end, batches, data.Warnings)
	}
	return p
}

// TestExpired lets all records of a partition expire. At its next start the engine begins at offset
// 0 again; a conversion must not.
func TestExpired(t *testing.T) {
	t.Parallel()
	t.Run("clean stop", func(t *testing.T) {
		dir, e := log1(t)
		e.produce("log", 0, 6) // to 12
		e.expire("log")
		e.close()
		wantPartition(t, dir, 12, 12, 0)
	})
	t.Run("kill, with committed offsets", func(t *testing.T) {
		dir, e := log1(t)
		e.produce("log", 0, 6)
		e.commit("slow", "log", 0, 5)
		e.commit("fast", "log", 0, 11)
		e.expire("log")
		wantPartition(t, copyDir(t, dir), 11, 11, 0)
	})
	t.Run("kill, after a clean stop", func(t *testing.T) {
		dir, e := log1(t)
		e.produce("log", 0, 6)
		e.close()
		e = openEngine(t, dir)
		e.expire("log")
		wantPartition(t, copyDir(t, dir), 12, 12, 0)
	})
	t.Run("kill, after part of it", func(t *testing.T) {
		dir, e := log1(t)
		e.produce("log", 0, 20) // to 39
		e.must(e.cluster.DeleteRecords("log", 0, lastSegment(e, "log-0")))
		start := e.cluster.PartitionInfo("log", 0).LogStartOffset
		batches := len(split(t, e.fetch("log", 0, start, 39)))
		wantPartition(t, copyDir(t, dir), start, 39, batches)
	})
	t.Run("a segment that is only named", func(t *testing.T) {
		dir, e := log1(t)
		e.produce("log", 0, 6)
		e.expire("log")
		copied := copyDir(t, dir)
		writeFile(t, filepath.Join(copied, "partitions/log-0/12.idx"), nil) // as if killed while files are removed
		wantPartition(t, copied, 12, 12, 0)
	})
	t.Run("an offset that somebody made up", func(t *testing.T) {
		dir, e := log1(t)
		e.produce("log", 0, 6)
		e.commit("g", "log", 0, 1<<62)
		wantPartition(t, copyDir(t, dir), 0, 12, 6)
	})
	t.Run("an offset far away", func(t *testing.T) {
		dir, e := log1(t)
		e.produce("log", 0, 6)
		e.commit("g", "log", 0, 1<<50)
		wantPartition(t, copyDir(t, dir), 0, 12, 6)
	})
	t.Run("an offset far away, without records", func(t *testing.T) {
		dir, e := log1(t)
		e.produce("log", 0, 6)
		e.commit("g", "log", 0, 1<<45)
		e.expire("log")
		wantPartition(t, copyDir(t, dir), 1<<45, 1<<45, 0)
	})
	t.Run("a group that is ahead", func(t *testing.T) {
		dir, e := log1(t)
		e.produce("log", 0, 6)
		e.commit("g", "log", 0, 50)
		wantPartition(t, copyDir(t, dir), 0, 50, 6)
	})
}

// TestSecondLife begins a partition at offset 0 again, as the engine did after all records had
// expired. The snapshot of an earlier clean stop must not delete the new records.
func TestSecondLife(t *testing.T) {
	t.Parallel()
	for _, deleted := range []int64{0, 6} {
		for batches, end := range map[int]int64{2: 3, 6: 12, 12: 24} {
			t.Run(fmt.Sprint(deleted, " deleted, then ", batches), func(t *testing.T) {
				dir, e := log1(t)
				e.produce("log", 0, 6, kgo.DisableIdempotentWrite())
				e.must(e.cluster.DeleteRecords("log", 0, deleted))
				e.close() // the snapshot contains the end, 12, and the deleted records
				e = openEngine(t, dir)
				e.expire("log")
				copied := copyDir(t, dir) // killed
				e.close()
				e = openEngine(t, copied)
				e.produce("log", 0, batches, kgo.DisableIdempotentWrite()) // of the same sizes
				if at := e.cluster.PartitionInfo("log", 0); at.LogStartOffset != 0 || at.HighWatermark != end {
					t.Fatalf("%+v: the engine has changed", at)
				}
				wantPartition(t, copyDir(t, copied), 0, max(12, end), batches)
			})
		}
	}
}

// TestDeleted deletes records in the middle of a segment, which the engine records only at a clean
// stop.
func TestDeleted(t *testing.T) {
	t.Parallel()
	dir, e := log1(t)
	e.produce("log", 0, 20) // to 39
	e.must(e.cluster.DeleteRecords("log", 0, 17))
	e.close()
	wantPartition(t, dir, 17, 39, 12)
	e = openEngine(t, dir)
	e.produce("log", 0, 20)
	killed := copyDir(t, dir)
	wantPartition(t, killed, 17, 78, 32)
	e.must(e.cluster.DeleteRecords("log", 0, 70))
	e.close()
	wantPartition(t, dir, 70, 78, 4)

	// Without the snapshot they are there again, with a warning.
	testkit.Must(t, os.Remove(filepath.Join(killed, "partitions/log-0/snapshot.json")))
	data, _ := read(t, killed)
	if p := data.partition(t, "log", 0); p.Start > 17 || p.End != 78 {
		t.Errorf("from %d to %d", p.Start, p.End)
	}
}

// TestCompacted has gaps between offsets that are not damage.
func TestCompacted(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	e := openEngine(t, dir)
	e.createTopic("log", 1, map[string]string{"cleanup.policy": "compact", "segment.bytes": "1000", "retention.ms": "-1"})
	e.produce("log", 0, 20)
	e.produce("log", 0, 20)
	e.cluster.Compact()
	for _, copied := range []string{copyDir(t, dir), dir} {
		if copied == dir {
			e.close()
		}
		data, got := read(t, copied)
		wantNoWarnings(t, data)
		again := openEngine(t, copyDir(t, copied))
		again.served().compare(t, got)
	}
}

// transaction1 writes batches in a transaction, and ends it.
func transaction1(e *engine, client *kgo.Client, batches int, end kgo.TransactionEndTry) {
	e.t.Helper()
	e.must(client.BeginTransaction())
	e.produceBy(client, "log", 0, batches)
	e.must(client.EndTransaction(context.Background(), end))
}

// TestTransactions requires that records of transactions that were not committed are left out. A
// kill aborts a transaction, although the engine writes no marker.
func TestTransactions(t *testing.T) {
	t.Parallel()
	dir, e := log1(t)
	client := e.newClient(kgo.TransactionalID("tx"))
	e.produce("log", 0, 1)                           // 0
	transaction1(e, client, 2, kgo.TryCommit)        // 1 to 3, marker 4
	transaction1(e, client, 2, kgo.TryAbort)         // 5 to 7, marker 8
	other := e.newClient(kgo.TransactionalID("tx2")) // concurrently with the next one
	e.must(other.BeginTransaction())
	e.produceBy(other, "log", 0, 1)                                   // 9
	transaction1(e, client, 1, kgo.TryCommit)                         // 10, marker 11
	e.produceBy(other, "log", 0, 1)                                   // 12
	e.must(other.EndTransaction(context.Background(), kgo.TryCommit)) // 13
	e.must(client.BeginTransaction())
	e.produceBy(client, "log", 0, 1) // 14, never finished
	killed := copyDir(t, dir)
	want := []int64{0, 1, 2, 4, 8, 9, 10, 11, 12, 13}
	wantBases(t, killed, want, 15)

	// After a restart the same transactional ID commits something else.
	e2 := openEngine(t, killed)
	client2 := e2.newClient(kgo.TransactionalID("tx"))
	e2.produce("log", 0, 1)                     // 15
	transaction1(e2, client2, 1, kgo.TryCommit) // 16, marker 17
	transaction1(e2, client2, 1, kgo.TryAbort)  // 18, marker 19
	want = append(want, 15, 16, 17, 19)
	wantBases(t, copyDir(t, killed), want, 20)
	e2.close()
	wantBases(t, killed, want, 20)
}

func wantBases(t *testing.T, dir string, want []int64, end int64) {
	t.Helper()
	data, _ := read(t, dir)
	p := data.partition(t, "log", 0)
	var bases []int64
	for _, b := range split(t, records(t, p)) {
		h, _ := batch.ParseHeader(b)
		bases = append(bases, h.BaseOffset)
	}
	if !slices.Equal(bases, want) || p.Start != 0 || p.End != end {
		t.Errorf("batches at %v from %d to %d, want %v to %d", bases, p.Start, p.End, want, end)
	}
	wantWarning(t, data, "transactions")
}

// TestProducers compares the producers' state of a clean stop with the state that the batches
// result in.
func TestProducers(t *testing.T) {
	t.Parallel()
	dir, e := log1(t)
	e.createTopic("other", 1, nil)
	long, short := e.newClient(), e.newClient()
	e.produceBy(long, "log", 0, 9) // to 18
	e.produceBy(short, "log", 0, 2)
	e.produceBy(short, "other", 0, 1)
	e.produce("log", 0, 3, kgo.DisableIdempotentWrite())
	killed := copyDir(t, dir)
	e.close()
	data, _ := read(t, dir)
	crashed, _ := read(t, killed)
	for _, d := range []*Data{data, crashed} {
		var got [][]ProducerBatch
		for _, p := range d.partition(t, "log", 0).Producers {
			got = append(got, p.Batches)
			if p.ID < 0 || p.Epoch != 0 || time.Since(p.Time) > time.Minute {
				t.Errorf("%+v", p)
			}
		}
		slices.SortFunc(got, func(a, b []ProducerBatch) int { return int(a[0].FirstOffset - b[0].FirstOffset) })
		want := [][]ProducerBatch{
			{{7, 8, 7, 8}, {9, 11, 9, 11}, {12, 12, 12, 12}, {13, 14, 13, 14}, {15, 17, 15, 17}},
			{{0, 0, 18, 18}, {1, 2, 19, 20}},
		}
		if !slices.EqualFunc(got, want, slices.Equal[[]ProducerBatch]) {
			t.Errorf("producers %v, want %v", got, want)
		}
		if n := len(d.partition(t, "other", 0).Producers); n != 1 {
			t.Errorf("%d producers of another topic", n)
		}
	}

	// When the records are deleted, only the file has the state.
	e = openEngine(t, dir)
	e.must(e.cluster.DeleteRecords("log", 0, 24+3))
	e.close()
	data, _ = read(t, dir)
	p := data.partition(t, "log", 0)
	if len(p.Producers) != 2 || len(p.Segments) != 0 || p.End != 27 {
		t.Errorf("%+v", p)
	}
	for _, p := range p.Producers {
		if b := p.Batches[len(p.Batches)-1]; b.LastOffset != 17 && b.LastOffset != 20 {
			t.Errorf("%+v", p)
		}
	}
}

// TestPartlyDeleted deletes some of the last batches of a producer. Duplicates of these are still
// detected.
func TestPartlyDeleted(t *testing.T) {
	t.Parallel()
	dir, e := log1(t)
	e.produce("log", 0, 13, kgo.ProducerBatchCompression(kgo.NoCompression())) // to 25
	e.must(e.cluster.DeleteRecords("log", 0, lastSegment(e, "log-0")))
	e.close()
	data, _ := read(t, dir)
	p := data.partition(t, "log", 0)
	if n := len(split(t, records(t, p))); n >= batchesKnown || n == 0 {
		t.Fatalf("%d batches are left, want some of the last", n)
	}
	want := []ProducerBatch{{15, 17, 15, 17}, {18, 18, 18, 18}, {19, 20, 19, 20}, {21, 23, 21, 23}, {24, 24, 24, 24}}
	if got := p.Producers[0].Batches; !slices.Equal(got, want) {
		t.Errorf("known %v, want %v", got, want)
	}
}

// TestUntrueWindows reads the state of batches that the engine could not store. Retries of those
// must be stored, so they must not be taken for duplicates.
func TestUntrueWindows(t *testing.T) {
	t.Parallel()
	const windows = `{"version":1,"windows":[
		{"pid":1,"topic":"log","partition":0,"entries":[{"first_seq":0,"next_seq":3,"offset":2},{"first_seq":3,"next_seq":4,"offset":5}],"count":2,"at":2,"epoch":0},
		{"pid":2,"topic":"log","partition":0,"entries":[{"first_seq":0,"next_seq":2,"offset":6}],"count":1,"at":1,"epoch":0}]}`
	for _, deleted := range []int64{0, 6} {
		dir, e := log1(t)
		e.produce("log", 0, 3, kgo.DisableIdempotentWrite()) // to 6
		e.must(e.cluster.DeleteRecords("log", 0, deleted))
		e.close()
		writeFile(t, filepath.Join(dir, "seq_windows.json"), []byte(windows))
		p := wantPartition(t, dir, deleted, 6, 3*(1-int(deleted)/6))
		var known []ProducerBatch
		for _, producer := range p.Producers {
			known = append(known, producer.Batches...)
		}
		var want []ProducerBatch
		if deleted > 0 {
			want = []ProducerBatch{{0, 2, 2, 4}, {3, 3, 5, 5}}
		}
		if !slices.Equal(known, want) {
			t.Errorf("%d deleted: known %v, want %v", deleted, known, want)
		}
	}
}

// TestWindowWraps reads sequence numbers that start at 0 again. The engine had one number less than
// Kafka.
func TestWindowWraps(t *testing.T) {
	t.Parallel()
	var w window
	w.Count, w.At = 2, 1
	w.Entries[0].First, w.Entries[0].Next, w.Entries[0].Offset = 2, 5, 14
	w.Entries[4].First, w.Entries[4].Next, w.Entries[4].Offset = 1<<31-3, 2, 10
	want := []ProducerBatch{{1<<31 - 3, 0, 10, 13}, {2, 4, 14, 16}}
	if got := w.batches(); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// TestManyProducers requires that the number of producers of a partition is limited.
func TestManyProducers(t *testing.T) {
	t.Parallel()
	l := &log{producers: make(map[int64]*producerState), segments: make([]Segment, 1)}
	const n = 5 * maxProducers
	for id := range int64(n) {
		l.addProducer(batch.Header{ProducerID: id, BaseOffset: id, Count: 1}, time.Time{})
		if len(l.producers) > 2*maxProducers {
			t.Fatalf("%d producers", len(l.producers))
		}
	}
	producers := new(reader).producers(topicPartition{}, l, Partition{})
	if len(producers) != maxProducers || producers[0].ID != n-maxProducers || producers[maxProducers-1].ID != n-1 {
		t.Errorf("%d producers from %d", len(producers), producers[0].ID)
	}
}

func TestFreeProducerID(t *testing.T) {
	t.Parallel()
	const most = 1<<63 - 1
	for _, test := range []struct {
		taken []int64
		want  int64
	}{
		{nil, 0},
		{[]int64{5 << 40}, 0},
		{[]int64{4, 0, 2}, 5},
		{[]int64{most, 1 << 39, 7, -1}, 1<<39 + 1},
		{[]int64{1 << 39, 1 << 40, 3 << 39}, 3<<39 + 1},
	} {
		if got := freeProducerID(test.taken); got != test.want {
			t.Errorf("freeProducerID(%v) = %d, want %d", test.taken, got, test.want)
		}
	}
}

// TestOrphans requires that partitions are kept that are not in topics.json, as when that file
// could not be written to a full disk.
func TestOrphans(t *testing.T) {
	t.Parallel()
	dir, e := log1(t)
	e.produce("log", 0, 2)
	without := testkit.ReadFile(t, filepath.Join(dir, "topics.json"))
	e.createTopic("new", 3, nil)
	e.createTopic("new.empty", 3, nil)
	e.produce("new", 1, 3)
	responses, err := e.admin.UpdatePartitions(context.Background(), 3, "log")
	e.must(err)
	e.must(responses.Error())
	e.produce("log", 2, 1)
	killed := copyDir(t, dir)
	writeFile(t, filepath.Join(killed, "topics.json"), without)
	for _, name := range []string{"new", "..%2F-0", "x-01", "x--1", "x-", "-1", "x-99999999999"} {
		testkit.Must(t, os.MkdirAll(filepath.Join(killed, "partitions", name), 0o700))
		writeFile(t, filepath.Join(killed, "partitions", name, "0.dat"), []byte("never read"))
	}
	data, _ := read(t, killed)
	var topics []string
	for _, topic := range data.Topics {
		topics = append(topics, fmt.Sprint(topic.Name, " ", len(topic.Partitions), " ", topic.ID != [16]byte{}))
		for n, p := range topic.Partitions {
			if p.Number != int32(n) {
				t.Errorf("%s: partition %d is called %d", topic.Name, n, p.Number)
			}
		}
	}
	if want := []string{"log 3 true", "new 2 false"}; !slices.Equal(topics, want) {
		t.Errorf("topics %v, want %v", topics, want)
	}
	if end := data.partition(t, "new", 1).End; end != 6 {
		t.Errorf("end %d, want 6", end)
	}
	if end := data.partition(t, "log", 2).End; end != 1 {
		t.Errorf("end %d, want 1", end)
	}
	wantWarning(t, data, "topic new, partition 1: topics.json does not have it")
	wantWarning(t, data, "is not the directory of a partition")
}

func TestFound(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "broker")
	for range 2 { // topics.json missing, and empty
		if found, err := Found(dir); found || err != nil {
			t.Errorf("Found(%s) = %v, %v", dir, found, err)
		}
		testkit.Must(t, os.MkdirAll(dir, 0o700))
	}
	e := openEngine(t, dir)
	e.close()
	if found, err := Found(dir); !found || err != nil {
		t.Errorf("Found(%s) = %v, %v", dir, found, err)
	}
	data, _ := read(t, dir)
	wantNoWarnings(t, data)
	testkit.Must(t, os.Remove(filepath.Join(dir, "meta.json")))
	if found, err := Found(dir); !found || err != nil {
		t.Errorf("Found(%s) = %v, %v", dir, found, err)
	}
}
