package kfakedir

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/batch"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// FuzzFrames reads arbitrary bytes as a log of frames.
func FuzzFrames(f *testing.F) {
	a, b := frame([]byte(`{"type":"commit","g":"g","t":"t","o":5}`)), frame([]byte(`{"type":"meta","g":"g"}`))
	f.Add(slices.Concat(a, b))
	f.Add(slices.Concat(a[:9], b, b[:3]))
	f.Add(frame(nil))
	f.Fuzz(func(t *testing.T, log []byte) {
		var framed []byte
		skipped, torn := frames(log, func(content []byte) { framed = append(framed, frame(content)...) })
		if skipped+torn+len(framed) != len(log) || skipped < 0 || torn < 0 {
			t.Errorf("%d bytes skipped, %d torn, %d in frames, want %d together", skipped, torn, len(framed), len(log))
		}
		again := 0
		if skipped, torn := frames(framed, func(content []byte) { again += len(frame(content)) }); skipped+torn > 0 || again != len(framed) {
			t.Errorf("the same frames without the rest: %d skipped, %d torn, %d of %d in frames", skipped, torn, again, len(framed))
		}
	})
}

// memoryScanner scans segments in memory that begin at offset 0.
func memoryScanner(t testing.TB, content []byte, snap *snapshot) (*scanner, []byte) {
	t.Helper()
	return scanMemory(t, content, new(reader).newScanner(topicPartition{"t", 0}, snap, []int64{0, 1 << 40}))
}

func scanMemory(t testing.TB, content []byte, s *scanner) (*scanner, []byte) {
	t.Helper()
	src := newSource(bytes.NewReader(content), int64(len(content)), s.buf)
	seg := Segment{size: src.size}
	testkit.Must(t, s.batches(src, &seg, 0))
	s.finish()
	content = slices.Clone(content)
	for _, p := range seg.patches {
		copy(content[p.at:], p.content)
	}
	var good []byte
	for _, p := range seg.parts {
		good = append(append(good, content[p.from:p.to]...), p.batches...)
	}
	if int64(len(good)) != seg.Bytes || seg.unchanged() && !bytes.Equal(good, content) {
		t.Errorf("%d good bytes, want %d", len(good), seg.Bytes)
	}
	if end := wantLog(t, good, 0); end != seg.End || end > s.next {
		t.Errorf("ends at %d, want %d, next %d", end, seg.End, s.next)
	}
	return s, good
}

// sealAll corrects the checksums of all batches that can be found.
func sealAll(content []byte) []byte {
	content = slices.Clone(content)
	for rest := content; ; {
		h, err := batch.ParseHeader(rest)
		if err != nil || h.Size() > len(rest) {
			return content
		}
		binary.BigEndian.PutUint32(rest[checksumAt:], checksum(rest[attributesAt:h.Size()]))
		rest = rest[h.Size():]
	}
}

// FuzzSegment reads arbitrary bytes as a segment.
func FuzzSegment(f *testing.F) {
	at := func(offset byte, change func(*kmsg.RecordBatch)) []byte {
		b := rawBatch(2, change)
		b[7] = offset
		return b
	}
	idempotent := func(b *kmsg.RecordBatch) { b.ProducerID, b.ProducerEpoch, b.FirstSequence = 7, 0, 0 }
	transactional := func(b *kmsg.RecordBatch) { idempotent(b); b.Attributes = 1 << 4 }
	control := func(b *kmsg.RecordBatch) { idempotent(b); b.Attributes = 1<<4 | 1<<5 }
	healable := at(2, func(b *kmsg.RecordBatch) { b.Attributes = 8 })
	healable[checksumAt] ^= 1
	f.Add(true, slices.Concat(at(0, nil), at(2, idempotent), at(4, nil)))
	f.Add(true, slices.Concat(at(0, transactional), at(2, control), at(4, transactional)))
	f.Add(false, slices.Concat(at(0, nil), healable, at(4, nil), at(6, nil)[:50]))
	f.Add(true, slices.Concat(at(0, nil), at(77, nil), at(4, nil), []byte("garbage"), at(6, nil)))
	f.Add(true, slices.Concat(at(0, nil), at(2, func(b *kmsg.RecordBatch) { b.NumRecords, b.LastOffsetDelta = -5, -6 }), at(0, nil)))
	f.Fuzz(func(t *testing.T, sealed bool, content []byte) {
		if sealed {
			content = sealAll(content)
		}
		_, good := memoryScanner(t, content, &snapshot{Start: 1, End: 4})
		batches := split(t, good)
		_, again := memoryScanner(t, bytes.Join(batches, nil), new(snapshot))
		// Without the bytes between the batches, offsets that nothing confirms are no longer
		// accepted.
		same := func(a, b []byte) bool { return bytes.Equal(a[magicAt:], b[magicAt:]) }
		if !slices.EqualFunc(split(t, again), batches, same) {
			t.Errorf("%d of %d good bytes when they are read again", len(again), len(good))
		}
	})
}

// FuzzFiles writes arbitrary content into the other files.
func FuzzFiles(f *testing.F) {
	dir := f.TempDir()
	names := []string{
		"meta.json", "topics.json", "acls.json", "broker_configs.json", "seq_windows.json", "groups.log", "pids.log",
		"partitions/t-0/snapshot.json", "partitions/t-0/0.dat", "partitions/t-0/0.idx",
	}
	testkit.Must(f, os.MkdirAll(filepath.Join(dir, "partitions/t-0"), 0o700))
	for n, content := range []string{
		`{"version":1,"cluster_id":"c"}`,
		`{"version":1,"topics":[{"name":"t","id":"AAAAAAAAAAAAAAAAAAAAAA==","partitions":2,"configs":{"cleanup.policy":"compact"}}]}`,
		`{"version":1,"acls":[{"principal":"User:a","host":"*","resource_type":2,"resource_name":"t","pattern":3,"operation":3,"permission":3}]}`,
		`{"version":1,"configs":{"log.retention.ms":"5"}}`,
		`{"version":1,"windows":[{"pid":7,"topic":"t","partition":0,"entries":[{"first_seq":0,"next_seq":2,"offset":0}],"count":1,"at":1,"epoch":0,"seen":true,"next_seq":2}]}`,
		string(frame([]byte(`{"type":"commit","g":"g","t":"t","o":5,"e":-1,"m":"","lc":5}`))),
		string(frame([]byte(`{"type":"init","pid":7,"epoch":0}`))),
		`{"version":1,"high_watermark":4,"log_start_offset":1,"epoch":0,"max_timestamp":1000000,"segments":[{"base_offset":0,"size":99}]}`,
		string(rawBatch(2, nil)),
		``,
	} {
		writeFile(f, filepath.Join(dir, names[n]), []byte(content))
		f.Add(byte(n), []byte(content))
	}
	f.Fuzz(func(t *testing.T, n byte, content []byte) {
		path := filepath.Join(dir, names[int(n)%len(names)])
		before := testkit.ReadFile(t, path)
		defer func() { writeFile(t, path, before) }()
		writeFile(t, path, content)
		data, err := Read(dir)
		if err != nil {
			return
		}
		for _, topic := range data.Topics {
			for n, p := range topic.Partitions {
				if p.Number != int32(n) || p.Start < 0 || p.Start > p.End || p.End > 1<<54 {
					t.Errorf("%s/%d: %d, from %d to %d", topic.Name, n, p.Number, p.Start, p.End)
				}
				records(t, p)
			}
		}
	})
}
