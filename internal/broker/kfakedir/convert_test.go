package kfakedir

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/batch"
	"github.com/diaspora-streams/diaspora/internal/commitlog"
	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// convert creates a new log of a partition in the way that the package comment describes.
func convert(t *testing.T, p Partition) *commitlog.Log {
	t.Helper()
	dir := t.TempDir()
	for _, s := range p.Segments {
		testkit.Must(t, s.LinkOrCopy(filepath.Join(dir, fmt.Sprintf("%020d.log", s.Base))))
	}
	writeFile(t, filepath.Join(dir, fmt.Sprintf("%020d.log", p.End)), nil)
	fsys, err := disk.New(dir)
	testkit.Must(t, err)
	t.Cleanup(func() { fsys.Close() })
	l, err := commitlog.Open(commitlog.Options{FS: fsys})
	testkit.Must(t, err)
	t.Cleanup(func() { l.Close() })
	if p.Start > l.Start() {
		if _, err := l.DeleteRecords(p.Start); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

// readLog reads all batches of a log that have records.
func readLog(t *testing.T, l *commitlog.Log) [][]byte {
	t.Helper()
	var all []byte
	for offset := l.Start(); offset < l.End(); {
		b, err := l.Read(nil, offset, 1<<20, true)
		if err != nil || len(b) == 0 {
			t.Fatalf("read at %d: %d bytes, %v", offset, len(b), err)
		}
		all = append(all, b...)
		for len(b) > 0 {
			h, err := batch.ParseHeader(b)
			testkit.Must(t, err)
			offset, b = h.LastOffset()+1, b[h.Size():]
		}
	}
	return split(t, all)
}

// TestConvert opens converted partitions with the new engine's log. The directories are intact or
// damaged, with transactions, compaction and deleted records. It then appends, which must not
// change the old directory.
func TestConvert(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	e := openEngine(t, dir)
	for _, step := range story {
		step.do(e)
	}
	e.createTopic("compacted", 1, map[string]string{"cleanup.policy": "compact", "segment.bytes": "1000", "retention.ms": "-1"})
	e.produce("compacted", 0, 20)
	e.produce("compacted", 0, 20)
	e.cluster.Compact()
	e.createTopic("log", 1, small)
	client := e.newClient(kgo.TransactionalID("tx"))
	transaction1(e, client, 2, kgo.TryAbort)
	transaction1(e, client, 2, kgo.TryCommit)
	e.commit("ahead", "log", 0, 100)
	e.commit("expired", "idle", 0, 70)
	e.close()
	damaged := filepath.Join(dir, "partitions/events-2/0.dat")
	writeFile(t, damaged, []byte("all of it"))
	damaged = filepath.Join(dir, "partitions/events-3/0.dat")
	content := testkit.ReadFile(t, damaged)
	content[batch.HeaderBytes] ^= 1
	writeFile(t, damaged, content)

	before := testkit.Snapshot(t, dir)
	data, _ := read(t, dir)
	for _, topic := range data.Topics {
		for _, p := range topic.Partitions {
			l := convert(t, p)
			if l.Start() != p.Start || l.End() != p.End {
				t.Errorf("%s/%d: from %d to %d, want %d to %d", topic.Name, p.Number, l.Start(), l.End(), p.Start, p.End)
			}
			want := slices.DeleteFunc(split(t, records(t, p)), func(b []byte) bool {
				h, _ := batch.ParseHeader(b)
				return h.LastOffset() < p.Start
			})
			if got := readLog(t, l); !slices.EqualFunc(got, want, bytes.Equal) {
				t.Errorf("%s/%d: %d batches, want %d", topic.Name, p.Number, len(got), len(want))
			}
			b := rawBatch(3, nil)
			h, err := batch.ParseHeader(b)
			testkit.Must(t, err)
			a, err := l.Append(b, h, p.Epoch+1)
			if err != nil || a.BaseOffset != p.End {
				t.Errorf("%s/%d: appended at %d, %v, want %d", topic.Name, p.Number, a.BaseOffset, err, p.End)
			}
		}
	}
	if after := testkit.Snapshot(t, dir); !slices.Equal(after, before) {
		t.Error("the old directory has changed")
	}
}

// BenchmarkRead reads batches of one small event each, which take the most work.
func BenchmarkRead(b *testing.B) {
	dir := b.TempDir()
	e := openEngine(b, dir)
	e.createTopic("log", 1, nil)
	e.close()
	one := rawBatch(1, func(b *kmsg.RecordBatch) { b.PartitionLeaderEpoch = 0 })
	total := int64(testkit.Scaled(b, "KFAKEDIR_BENCH_MB", 64)) << 20
	const segment = 64 << 20
	for offset, size := int64(0), int64(0); size < total; size += segment {
		base := offset
		var content []byte
		for len(content) < segment {
			at := len(content)
			content = append(content, one...)
			for i := range 8 {
				content[at+i] = byte(offset >> (56 - 8*i))
			}
			offset++
		}
		writeFile(b, filepath.Join(dir, "partitions/log-0", fmt.Sprintf("%d.dat", base)), content)
	}
	b.SetBytes(total)
	b.ReportAllocs()
	for b.Loop() {
		data, err := Read(dir)
		testkit.Must(b, err)
		wantNoWarnings(b, data)
	}
}
