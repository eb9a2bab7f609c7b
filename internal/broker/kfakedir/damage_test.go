package kfakedir

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"pgregory.net/rapid"

	"github.com/diaspora-streams/diaspora/internal/batch"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// killed returns the directory of an engine that was killed at the end of the story, at its first
// start.
func killed(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	e := openEngine(t, dir)
	for _, step := range story {
		if !step.lost {
			step.do(e)
		}
	}
	copied := copyDir(t, dir)
	e.close()
	return copied
}

func writeFile(t testing.TB, path string, content []byte) {
	t.Helper()
	testkit.Must(t, os.WriteFile(path, content, 0o600))
}

// TestTornTails truncates files that are appended to at every byte, and compares some of the
// results with those of the engine.
func TestTornTails(t *testing.T) {
	t.Parallel()
	dir := killed(t)
	every := testkit.Scaled(t, "KFAKEDIR_CUTS_EVERY", 29) // one in this many truncated directories is opened with the engine too
	for _, name := range []string{"partitions/events-3/0.dat", "partitions/events-3/0.idx", "groups.log", "pids.log"} {
		t.Run(filepath.Base(name), func(t *testing.T) {
			path := filepath.Join(dir, name)
			whole := testkit.ReadFile(t, path)
			for cut := len(whole); cut >= max(0, len(whole)-300); cut-- {
				writeFile(t, path, whole[:cut])
				data, got := read(t, dir)
				if n := len(data.Warnings); n > 1 || n == 1 && !strings.Contains(data.Warnings[0], "incomplete") {
					t.Errorf("cut at %d: warnings %q", cut, data.Warnings)
				}
				if cut%every == 0 {
					e := openEngine(t, copyDir(t, dir))
					e.served().compare(t, got)
					e.close()
				}
			}
			writeFile(t, path, whole)
		})
	}
}

// TestTornJSON truncates JSON files at every byte, as a power cut may. Records and committed
// offsets must survive that, although the engine itself would not start.
func TestTornJSON(t *testing.T) {
	t.Parallel()
	dir := killed(t)
	e := openEngine(t, dir)
	want := slices.DeleteFunc(e.served(), func(line string) bool { return !isData(line) })
	e.close() // writes all files
	for _, name := range []string{"meta.json", "topics.json", "acls.json", "broker_configs.json", "seq_windows.json", "quotas.json", "sasl.json", "partitions/events-1/snapshot.json"} {
		t.Run(filepath.Base(name), func(t *testing.T) {
			path := filepath.Join(dir, name)
			whole := testkit.ReadFile(t, path)
			for cut := 0; cut < len(whole); cut += 1 + len(whole)/200 {
				writeFile(t, path, whole[:cut])
				_, got := read(t, dir)
				want.compare(t, slices.DeleteFunc(got, func(line string) bool { return !isData(line) }))
			}
			testkit.Must(t, os.Remove(path))
			_, got := read(t, dir)
			want.compare(t, slices.DeleteFunc(got, func(line string) bool { return !isData(line) }))
			writeFile(t, path+".tmp", whole)
			data, _ := read(t, dir)
			wantNoWarnings(t, data)
			testkit.Must(t, os.Rename(path+".tmp", path))
		})
	}
}

// isData reports whether a line of contents is about records or committed offsets.
func isData(line string) bool {
	kind, _, _ := strings.Cut(line, " ")
	return kind == "batch" || kind == "offset" || kind == "partition"
}

// log1 creates a topic of one partition, in a directory of an engine that was killed.
func log1(t testing.TB) (dir string, e *engine) {
	t.Helper()
	dir = t.TempDir()
	e = openEngine(t, dir)
	e.createTopic("log", 1, small)
	return dir, e
}

// split splits batches, without empty ones.
func split(t testing.TB, all []byte) [][]byte {
	t.Helper()
	var batches [][]byte
	for len(all) > 0 {
		h, err := batch.ParseHeader(all)
		testkit.Must(t, err)
		if !empty(h) {
			batches = append(batches, all[:h.Size()])
		}
		all = all[h.Size():]
	}
	return batches
}

// TestDamage damages the first segment of a log in ways for which the engine would cut off
// everything that follows.
func TestDamage(t *testing.T) {
	t.Parallel()
	dir, e := log1(t)
	e.produce("log", 0, 9, kgo.DisableIdempotentWrite())
	e.produce("log", 0, 9, kgo.ProducerBatchCompression(kgo.SnappyCompression()))
	e.close()
	path := filepath.Join(dir, "partitions/log-0/0.dat")
	whole := testkit.ReadFile(t, path)
	first := split(t, whole)
	start := func(n int) int { return len(bytes.Join(first[:n], nil)) } // of the n-th batch
	data, _ := read(t, dir)
	all := split(t, records(t, data.partition(t, "log", 0)))
	if len(first) < 6 || len(all) != 18 {
		t.Fatalf("%d batches in the first segment, %d in all", len(first), len(all))
	}
	for _, test := range []struct {
		name string
		do   func(b []byte) []byte
		lost []int // indices of lost batches
		warn string
	}{
		{"none", func(b []byte) []byte { return b }, nil, ""},
		{"value", func(b []byte) []byte { b[start(3)-1] ^= 1; return b }, []int{2}, "records are lost, offsets 3 to 5"},
		{"length", func(b []byte) []byte { b[start(2)+11] ^= 8; return b }, []int{2}, "damaged from byte"},
		{"length beyond the file", func(b []byte) []byte { b[start(2)+9] ^= 8; return b }, []int{2}, "damaged from byte"},
		{"negative length", func(b []byte) []byte { b[start(2)+8] ^= 0x80; return b }, []int{2}, "damaged from byte"},
		{"magic", func(b []byte) []byte { b[start(2)+16] = 1; return b }, []int{2}, "damaged from byte"},
		{"zeros", func(b []byte) []byte { clear(b[start(2)+7 : start(4)-3]); return b }, []int{2, 3}, "records are lost, offsets 3 to 6"},
		{"all zeros", func(b []byte) []byte { clear(b); return b }, count(0, len(first)), "records are lost, offsets 0 to"},
		{"zeros at the end", func(b []byte) []byte { return append(b, make([]byte, 100)...) }, nil, "damaged from byte"},
		{"gone at the end", func(b []byte) []byte { return b[:start(len(first)-1)+5] }, count(len(first)-1, len(first)), "records are lost"},
		{"gone in the middle", func(b []byte) []byte { return slices.Delete(b, start(2)+5, start(3)+9) }, []int{2, 3}, "damaged from byte"},
		{"gone in the middle, whole", func(b []byte) []byte { return slices.Delete(b, start(2), start(3)) }, []int{2}, "records are lost, offsets 3 to 5"},
		{"garbage", func(b []byte) []byte { return slices.Insert(b, start(3), []byte("garbage")...) }, nil, "damaged from byte"},
		{"torn, then more", func(b []byte) []byte { return slices.Insert(b, start(3), first[3][:70]...) }, nil, "damaged from byte"},
		{"twice", func(b []byte) []byte { return slices.Insert(b, start(3), first[2]...) }, nil, "second batch for the offsets 3 to 5"},
		{"two at different places", func(b []byte) []byte { b[start(1)+30] ^= 1; b[start(4)+30] ^= 1; return b }, []int{1, 4}, "damaged from byte"},
		{"offset too high", func(b []byte) []byte { b[start(3)] = 0x40; return b }, nil, "corrected"},
		{"offset somewhat higher", func(b []byte) []byte { b[start(3)+6] = 1; return b }, nil, "corrected"},
		{"offset negative", func(b []byte) []byte { b[start(3)] = 0x80; return b }, nil, "corrected"},
		{"offset too low", func(b []byte) []byte { b[start(3)+7] = 0; return b }, nil, "corrected"},
		{"last offset too high", func(b []byte) []byte { b[start(len(first)-1)+3] = 1; return b }, nil, "corrected"},
		{"offsets too high, one more than the other", func(b []byte) []byte { b[start(3)+2] = 1; b[start(4)] = 1; return b }, nil, "corrected"},
		{"first offsets too high", func(b []byte) []byte { b[2] = 1; b[start(1)] = 1; return b }, nil, "corrected"},
		{"value, then an offset", func(b []byte) []byte { b[start(3)-1] ^= 1; b[start(3)+5] = 1; return b }, []int{2, 3}, "damaged from byte"},
		{"leader epoch", func(b []byte) []byte { b[start(3)+13] = 1; return b }, nil, "leader epoch was 65536: corrected"},
		{"negative leader epoch", func(b []byte) []byte { b[start(3)+12] = 0xff; return b }, nil, "corrected"},
		{"last leader epoch", func(b []byte) []byte { b[start(len(first)-1)+12] = 1; return b }, nil, "corrected"},
		{"append time attribute", func(b []byte) []byte { b[start(3)+22] ^= 8; return b }, nil, "corrected"},
		{"control attribute and checksum", func(b []byte) []byte { b[start(3)+22] ^= 8 | 1<<5; b[start(3)+17] ^= 1; return b }, []int{3}, "records are lost, offsets 6"},
		{"a batch in a value", func(b []byte) []byte {
			value := binary.BigEndian.AppendUint64(nil, 3) // what the value would be read as
			value = append(value, first[1][8:]...)
			b[start(2)+30] ^= 1
			return slices.Insert(b, start(3), append(append([]byte("..."), value...), "..."...)...)
		}, []int{2}, "records are lost, offsets 3 to 5"},
	} {
		t.Run(test.name, func(t *testing.T) {
			writeFile(t, path, test.do(slices.Clone(whole)))
			data, _ := read(t, dir)
			p := data.partition(t, "log", 0)
			got := split(t, records(t, p))
			want := slices.Clone(all)
			for _, n := range slices.Backward(test.lost) {
				want = slices.Delete(want, n, n+1)
			}
			if !slices.EqualFunc(got, want, bytes.Equal) {
				t.Errorf("%d batches, want %d", len(got), len(want))
			}
			if p.Start != 0 || p.End != 36 {
				t.Errorf("from %d to %d, want 0 to 36", p.Start, p.End)
			}
			if test.warn == "" {
				wantNoWarnings(t, data)
			} else {
				wantWarning(t, data, test.warn)
			}
		})
	}
}

// TestMissingSegment removes a segment. The only batch after it stays at the offset in its file.
func TestMissingSegment(t *testing.T) {
	t.Parallel()
	dir, e := log1(t)
	for {
		e.produce("log", 0, 1, kgo.DisableIdempotentWrite())
		r := reader{dir: dir}
		if bases, _, err := r.segmentFiles("partitions/log-0"); err != nil || len(bases) == 3 {
			e.must(err)
			e.close()
			e.must(os.Remove(filepath.Join(dir, fmt.Sprintf("partitions/log-0/%d.dat", bases[1]))))
			data, _ := read(t, dir)
			got := split(t, records(t, data.partition(t, "log", 0)))
			if h, err := batch.ParseHeader(got[len(got)-1]); err != nil || h.BaseOffset != bases[2] || len(got) != int(bases[1])+1 {
				t.Errorf("%d batches, the last at %d, want it at %d", len(got), h.BaseOffset, bases[2])
			}
			wantWarning(t, data, fmt.Sprintf("records are lost, offsets %d to %d", bases[1], bases[2]-1))
			return
		}
	}
}

// TestLastOffset damages the offset of the very last batch, so that no later batch confirms it.
func TestLastOffset(t *testing.T) {
	t.Parallel()
	dir, e := log1(t)
	e.produce("log", 0, 3)
	e.close()
	path := filepath.Join(dir, "partitions/log-0/0.dat")
	b := testkit.ReadFile(t, path)
	all := split(t, b)
	damaged := slices.Clone(b)
	damaged[len(b)-len(all[2])+6] = 1
	writeFile(t, path, damaged)
	p := wantPartition(t, dir, 0, 6, 3)
	if got := records(t, p); !bytes.Equal(got, b) {
		t.Errorf("%x, want %x", got, b)
	}
}

// TestBatchesInValue damages a batch with a record whose value consists of batches.
func TestBatchesInValue(t *testing.T) {
	t.Parallel()
	at := func(offset byte) []byte {
		b := rawBatch(2, func(b *kmsg.RecordBatch) { b.PartitionLeaderEpoch = 0 })
		b[7] = offset
		return b
	}
	outer := rawBatch(2, func(b *kmsg.RecordBatch) {
		r := kmsg.Record{Value: slices.Concat(at(2), at(4), at(6))}
		r.Length = int32(len(r.AppendTo(nil)) - 2)
		b.Records = r.AppendTo(nil)
	})
	outer[7] = 2
	outer[batch.HeaderBytes] ^= 1
	_, got := memoryScanner(t, slices.Concat(at(0), outer, at(4)), new(snapshot))
	if want := slices.Concat(at(0), at(4)); !bytes.Equal(bytes.Join(split(t, got), nil), want) {
		t.Errorf("%x, want %x", got, want)
	}
}

// TestCompactedOffset damages offsets in a compacted log, in which other offsets may be missing.
func TestCompactedOffset(t *testing.T) {
	t.Parallel()
	at := func(offset byte) []byte {
		b := rawBatch(2, func(b *kmsg.RecordBatch) { b.PartitionLeaderEpoch = 0 })
		b[7] = offset
		return b
	}
	for _, test := range []struct{ content, want []byte }{
		{slices.Concat(at(0), at(5), at(9)), slices.Concat(at(0), at(5), at(9))},
		{slices.Concat(at(0), at(77), at(4)), slices.Concat(at(0), at(2), at(4))},
		{slices.Concat(at(0), at(77), at(9)), slices.Concat(at(0), at(9))},
	} {
		s := new(reader).newScanner(topicPartition{"t", 0}, new(snapshot), []int64{0, 1 << 40})
		s.compacted = true
		if _, got := scanMemory(t, test.content, s); !bytes.Equal(bytes.Join(split(t, got), nil), test.want) {
			t.Errorf("%x: %x, want %x", test.content, got, test.want)
		}
	}
}

// TestEpochs requires that increasing leader epochs are kept.
func TestEpochs(t *testing.T) {
	t.Parallel()
	var content []byte
	for n, epoch := range []byte{0, 3, 3, 4} {
		content = append(content, rawBatch(1, func(b *kmsg.RecordBatch) { b.PartitionLeaderEpoch = int32(epoch); b.FirstOffset = int64(n) })...)
	}
	if s, got := memoryScanner(t, content, new(snapshot)); !bytes.Equal(got, content) || s.epoch != 4 || len(s.warnings) > 0 {
		t.Errorf("%x, want %x; epoch %d, %q", got, content, s.epoch, s.warnings)
	}
}

// TestSnapshotFits distinguishes snapshots of a log from those of an earlier log with the same
// offsets.
func TestSnapshotFits(t *testing.T) {
	t.Parallel()
	content := slices.Concat(rawBatch(2, nil), rawBatch(2, nil))
	content[len(content)/2+7] = 2
	for _, test := range []struct {
		json string
		want bool
	}{
		{`{"log_start_offset":1,"high_watermark":4,"max_timestamp":1000000,"segments":[{"base_offset":0}]}`, true},
		{`{"log_start_offset":1,"high_watermark":2,"max_timestamp":1000000,"segments":[{"base_offset":0}]}`, true},
		{`{"log_start_offset":1,"high_watermark":4,"max_timestamp":1000000,"segments":[]}`, false},
		{`{"log_start_offset":1,"high_watermark":4,"max_timestamp":1000000,"segments":[{"base_offset":7}]}`, false},
		{`{"log_start_offset":1,"high_watermark":4,"max_timestamp":1000001,"segments":[{"base_offset":0}]}`, false},
		{`{"log_start_offset":1,"high_watermark":3,"max_timestamp":1000000,"segments":[{"base_offset":0}]}`, false},
		{`{"log_start_offset":1,"high_watermark":5,"max_timestamp":1000000,"segments":[{"base_offset":0}]}`, false},
	} {
		snap := new(snapshot)
		testkit.Must(t, json.Unmarshal([]byte(test.json), snap))
		if s, _ := memoryScanner(t, content, snap); s.fits != test.want {
			t.Errorf("%s fits: %v, want %v", test.json, s.fits, test.want)
		}
	}
}

func count(from, to int) (n []int) {
	for ; from < to; from++ {
		n = append(n, from)
	}
	return n
}

// TestAnyDamage changes bytes anywhere in a log. Everything that is read afterwards is a batch that
// was written, unchanged. Each change costs at most two batches.
func TestAnyDamage(t *testing.T) {
	t.Parallel()
	dir, e := log1(t)
	e.produce("log", 0, 12, kgo.ProducerBatchCompression(kgo.Lz4Compression()))
	e.close()
	data, _ := read(t, dir)
	files := make(map[string][]byte)
	written := make(map[string]bool)
	for _, s := range data.partition(t, "log", 0).Segments {
		files[s.Path] = testkit.ReadFile(t, s.Path)
		for _, b := range split(t, files[s.Path]) {
			written[string(b)] = true
		}
	}
	paths := slices.Sorted(maps.Keys(files))
	rapid.Check(t, func(rt *rapid.T) {
		changes := rapid.IntRange(1, 3).Draw(rt, "changes")
		damaged := maps.Clone(files)
		for range changes {
			path := rapid.SampledFrom(paths).Draw(rt, "file")
			b := slices.Clone(damaged[path])
			b[rapid.IntRange(0, len(b)-1).Draw(rt, "at")] ^= byte(rapid.IntRange(1, 255).Draw(rt, "xor"))
			damaged[path] = b
		}
		for path, b := range damaged {
			writeFile(t, path, b)
		}
		data, _ := read(t, dir)
		got := split(t, records(t, data.partition(t, "log", 0)))
		for _, b := range got {
			b = slices.Clone(b)
			if !written[string(b)] && !onlyUnchecked(b, written) {
				rt.Fatalf("read a batch that nobody wrote: %x", b)
			}
		}
		if len(got) < len(written)-2*changes {
			rt.Errorf("%d of %d batches after %d changes: %q", len(got), len(written), changes, data.Warnings)
		}
	})
}

// onlyUnchecked reports whether a batch differs from a written one only in the leader epoch, or in
// an offset that contradicts nothing: no checksum covers them. Two changes, in the attributes and
// in the checksum, may also have turned it into a batch that looks like one of the engine's own
// errors.
func onlyUnchecked(b []byte, written map[string]bool) bool {
	for w := range written {
		if len(w) == len(b) && w[attributesAt+2:] == string(b[attributesAt+2:]) {
			return true
		}
	}
	return false
}

// rawBatch returns a batch of simple records after change has modified it. Its checksum is correct.
func rawBatch(n int, change func(*kmsg.RecordBatch)) []byte {
	b := kmsg.RecordBatch{
		PartitionLeaderEpoch: -1, Magic: 2,
		LastOffsetDelta: int32(n - 1), NumRecords: int32(n),
		FirstTimestamp: 1_000_000, MaxTimestamp: 1_000_000,
		ProducerID: -1, ProducerEpoch: -1, FirstSequence: -1,
	}
	for i := range n {
		r := kmsg.Record{OffsetDelta: int32(i), Value: fmt.Appendf(nil, "raw %d", i)}
		r.Length = int32(len(r.AppendTo(nil)) - 1)
		b.Records = r.AppendTo(b.Records)
	}
	if change != nil {
		change(&b)
	}
	return seal(b.AppendTo(nil))
}

// seal corrects the length and the checksum of a batch.
func seal(b []byte) []byte {
	binary.BigEndian.PutUint32(b[8:], uint32(len(b)-12))
	binary.BigEndian.PutUint32(b[checksumAt:], checksum(b[attributesAt:]))
	return b
}

// TestAppendTime sends batches with the attribute LogAppendTime. The engine overwrites their
// timestamps without updating the checksum.
func TestAppendTime(t *testing.T) {
	t.Parallel()
	for _, codec := range []kgo.CompressionCodec{kgo.NoCompression(), kgo.ZstdCompression(), kgo.GzipCompression(), kgo.SnappyCompression(), kgo.Lz4Compression()} {
		t.Run(fmt.Sprint(codec), func(t *testing.T) {
			dir, e := log1(t)
			e.produce("log", 0, 3, kgo.ProducerBatchCompression(codec), kgo.DisableIdempotentWrite())
			compressed := slices.Clone(split(t, e.fetch("log", 0, 0, 6))[2])
			clear(compressed[:8])
			compressed[attributesAt+1] |= 8
			compressed[attributesAt+10] ^= 1 // changes the base timestamp by hours, since it could be the current one
			e.produceRaw("log", 0, seal(compressed))
			e.produce("log", 0, 3)
			served := split(t, e.fetch("log", 0, 0, 15))
			if batch.ChecksumOK(served[3]) {
				t.Fatal("the engine has made the checksum right")
			}
			e.close() // the next start would truncate the log
			data, _ := read(t, dir)
			wantWarning(t, data, "the batch at offset 6 had a checksum that did not match its timestamps")
			p := data.partition(t, "log", 0)
			got := split(t, records(t, p))
			served[3] = seal(slices.Clone(served[3]))
			if !slices.EqualFunc(got, served, bytes.Equal) || p.End != 15 {
				t.Errorf("%d batches to %d, want %d to 15", len(got), p.End, len(served))
			}

			// It is not accepted if it is damaged as well.
			path := filepath.Join(dir, "partitions/log-0/0.dat")
			damaged := testkit.ReadFile(t, path)
			at := bytes.Index(damaged, served[3][attributesAt:])
			damaged[at+(batch.HeaderBytes-attributesAt)] ^= 0xff // the length of the first record, or a magic number
			writeFile(t, path, damaged)
			data, _ = read(t, dir)
			wantWarning(t, data, "records are lost, offsets 6 to 8")
		})
	}
}

// TestOddCounts sends batches with a wrong number of records, which the engine accepts.
func TestOddCounts(t *testing.T) {
	t.Parallel()
	dir, e := log1(t)
	e.produce("log", 0, 3) // 0 to 5
	e.produceRaw("log", 0, rawBatch(1, func(b *kmsg.RecordBatch) { b.NumRecords, b.LastOffsetDelta = 0, -1 }))
	e.produce("log", 0, 1) // 6
	e.produceRaw("log", 0, rawBatch(1, func(b *kmsg.RecordBatch) { b.NumRecords, b.LastOffsetDelta = -3, -4 }))
	if end := e.cluster.PartitionInfo("log", 0).HighWatermark; end != 4 {
		t.Fatalf("the log ends at %d, want 4: the engine has changed", end)
	}
	e.produce("log", 0, 3)                                                                                                  // 4 to 9, of which 4 to 6 are in use
	e.produceRaw("log", 0, rawBatch(1, func(b *kmsg.RecordBatch) { b.NumRecords, b.LastOffsetDelta = 1_000_000, 999_999 })) // to 1,000,009
	e.produce("log", 0, 1)
	e.close()
	data, _ := read(t, dir)
	p := data.partition(t, "log", 0)
	var got []string
	for _, b := range split(t, records(t, p)) {
		h, _ := batch.ParseHeader(b)
		got = append(got, fmt.Sprint(h.BaseOffset, "-", h.LastOffset()))
	}
	want := []string{"0-0", "1-2", "3-5", "6-6", "7-9", "10-1000009", "1000010-1000010"}
	if !slices.Equal(got, want) || p.End != 1_000_011 {
		t.Errorf("%v to %d, want %v", got, p.End, want)
	}
	wantWarning(t, data, "says it has 0 records")
	wantWarning(t, data, "says it has -3 records")
	wantWarning(t, data, "second batch for the offsets 4")
}

// TestTornEntry cuts an entry in the middle of groups.log, after which the engine continued to
// append.
func TestTornEntry(t *testing.T) {
	t.Parallel()
	dir, e := log1(t)
	e.commit("g", "log", 0, 1)
	path := filepath.Join(dir, "groups.log")
	entry := testkit.ReadFile(t, path)
	for torn := range len(entry) {
		writeFile(t, path, slices.Concat(entry, entry[:torn]))
		data, _ := read(t, dir)
		if torn > 0 {
			wantWarning(t, data, "incomplete entry")
		}
		later := bytes.Replace(entry[frameHeader:], []byte(`"o":1`), []byte(`"o":5`), 1)
		writeFile(t, path, slices.Concat(entry, entry[:torn], frame(later), entry[:torn]))
		data, _ = read(t, dir)
		if len(data.Groups) != 1 || len(data.Groups[0].Offsets) != 1 || data.Groups[0].Offsets[0].Offset != 5 {
			t.Fatalf("torn at %d: %+v, want offset 5", torn, data.Groups)
		}
		if torn > 0 {
			wantWarning(t, data, fmt.Sprintf("%d bytes between its entries", torn))
		}
	}
}

// TestMadeUpEpoch reads an offset that was committed with an impossible leader epoch.
func TestMadeUpEpoch(t *testing.T) {
	t.Parallel()
	dir, e := log1(t)
	e.close()
	var content []byte
	epochs := []int32{-7, -1, 0, 3, maxEpoch, maxEpoch + 1, 1<<31 - 1}
	for n, epoch := range epochs {
		content = append(content, frame(fmt.Appendf(nil, `{"type":"commit","g":"g","t":"log","p":%d,"e":%d}`, n, epoch))...)
	}
	writeFile(t, filepath.Join(dir, "groups.log"), content)
	data, _ := read(t, dir)
	var got []int32
	for _, o := range data.Groups[0].Offsets {
		got = append(got, o.LeaderEpoch)
	}
	if want := []int32{-1, -1, 0, 3, maxEpoch, -1, -1}; !slices.Equal(got, want) {
		t.Errorf("leader epochs %v of %v, want %v", got, epochs, want)
	}
}

// frame returns an entry of a log.
func frame(content []byte) []byte {
	body := append(binary.LittleEndian.AppendUint16(nil, version), content...)
	header := binary.LittleEndian.AppendUint32(nil, uint32(len(body)))
	return append(binary.LittleEndian.AppendUint32(header, checksum(body)), body...)
}

// TestNewerVersion requires that data of a newer version is not read.
func TestNewerVersion(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"meta.json", "topics.json", "acls.json", "partitions/log-0/snapshot.json"} {
		dir, e := log1(t)
		e.produce("log", 0, 1)
		e.close()
		path := filepath.Join(dir, name)
		var content map[string]any
		testkit.Must(t, json.Unmarshal(testkit.ReadFile(t, path), &content))
		content["version"] = 2
		b, err := json.Marshal(content)
		testkit.Must(t, err)
		writeFile(t, path, b)
		if _, err := Read(dir); err == nil || !strings.Contains(err.Error(), "newer") {
			t.Errorf("%s: %v, want an error", name, err)
		}
	}
}
