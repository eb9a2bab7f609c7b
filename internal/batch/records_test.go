package batch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// consume reads a batch as franz-go's consumer does.
func consume(b []byte) kgo.FetchPartition {
	h, _ := ParseHeader(b)
	p := kmsg.NewFetchResponseTopicPartition()
	p.RecordBatches = b
	p.HighWatermark = h.LastOffset() + 1
	p.LastStableOffset = p.HighWatermark
	got, _ := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{Topic: "t", Offset: h.BaseOffset}, &p, kgo.DefaultDecompressor(), nil)
	return got
}

// checkRecordsOf compares the result of Records with the input.
func checkRecordsOf(t *testing.T, b []byte, want []kmsg.Record) {
	t.Helper()
	i := 0
	err := Records(b, func(r Record) bool {
		if i == len(want) {
			t.Fatalf("more than %d records", i)
		}
		w := want[i]
		if r.OffsetDelta != w.OffsetDelta || r.TimestampDelta != w.TimestampDelta64 || !same(r.Key, w.Key) || !same(r.Value, w.Value) || len(r.Headers) != len(w.Headers) {
			t.Fatalf("record %d = %+v, want %+v", i, r, w)
		}
		for k, h := range w.Headers {
			if string(r.Headers[k].Key) != h.Key || !same(r.Headers[k].Value, h.Value) {
				t.Fatalf("record %d, header %d = %+v, want %+v", i, k, r.Headers[k], h)
			}
		}
		i++
		return true
	})
	if err != nil || i != len(want) {
		t.Fatalf("Records: %d records, %v, want %d", i, err, len(want))
	}
}

func same(a, b []byte) bool { return (a == nil) == (b == nil) && bytes.Equal(a, b) }

func TestRecords(t *testing.T) {
	for _, codec := range codecs {
		// Records before, after and across the ends of decompressed pieces.
		d := newDraft(codec, "a", "", strings.Repeat("b", 40_000), strings.Repeat("c", 300_000), "d")
		d.records[0].Key = nil
		d.records[1].Value = nil
		d.records[2].Headers = []kmsg.Header{{Key: "trace", Value: []byte("1")}, {Key: "", Value: nil}, {Key: "empty", Value: []byte{}}}
		d.records[4].TimestampDelta64 = -1 << 62
		b := d.bytes()
		checkRecordsOf(t, b, d.records)
		n := 0
		if err := Records(b, func(Record) bool { n++; return n < 2 }); err != nil || n != 2 {
			t.Errorf("%v: stopped after %d records, %v, want 2", codec, n, err)
		}
	}
}

func TestRecordsFails(t *testing.T) {
	all := func(Record) bool { return true }
	b := newDraft(None, "a", "b").bytes()
	for name, bad := range map[string][]byte{
		"short":      b[:60],
		"truncated":  b[:len(b)-1],
		"longer":     append(bytes.Clone(b), 0),
		"codec 5":    with1(bytes.Clone(b), func(b []byte) { b[attributesAt+1] = 5 }),
		"no gzip":    with1(bytes.Clone(b), func(b []byte) { b[attributesAt+1] = byte(Gzip) }),
		"one more":   with1(bytes.Clone(b), func(b []byte) { b[countAt+3] = 3 }),
		"one less":   with1(bytes.Clone(b), func(b []byte) { b[countAt+3] = 1 }),
		"length lie": with1(bytes.Clone(b), func(b []byte) { b[HeaderBytes] += 2 }),
	} {
		if err := Records(bad, all); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	// A claimed length of 2 GiB must not cause an allocation of 2 GiB.
	for _, codec := range codecs {
		b := with(newDraft(codec, "a"), func(d *draft) { d.body = append(binary.AppendVarint(nil, 1<<31-1), make([]byte, 100)...) }).bytes()
		if err := Records(b, all); !errors.Is(err, errEnd) {
			t.Errorf("%v: Records of a great length = %v, want %v", codec, err, errEnd)
		}
	}
}

func TestFirstAt(t *testing.T) {
	times := []int64{1000, 3000, 2000, 5000}
	for _, codec := range codecs {
		d := newDraft(codec, "a", "b", "c", "d")
		d.FirstOffset, d.FirstTimestamp, d.MaxTimestamp = 100, 1000, 5000
		for i := range d.records {
			d.records[i].TimestampDelta64 = times[i] - 1000
		}
		own := d.bytes()
		stamped := bytes.Clone(own)
		Stamp(stamped, 100, 0, 9000)
		for _, test := range []struct {
			batch   []byte
			from, t int64
			offset  int64 // -1: none
			time    int64
		}{
			{own, 0, 0, 100, 1000},
			{own, 0, 1000, 100, 1000},
			{own, 0, 1001, 101, 3000},
			{own, 101, 0, 101, 3000},
			{own, 102, 0, 102, 2000},
			{own, 102, 2500, 103, 5000},
			{own, 0, 5000, 103, 5000},
			{own, 0, 5001, -1, 0},
			{own, 104, 0, -1, 0},
			{stamped, 0, 0, 100, 9000},
			{stamped, 0, 9000, 100, 9000},
			{stamped, 102, 5000, 102, 9000},
			{stamped, 103, 9000, 103, 9000},
			{stamped, 104, 9000, -1, 0},
			{stamped, 0, 9001, -1, 0},
		} {
			offset, timestamp, ok, err := FirstAt(test.batch, test.from, test.t)
			if err != nil || ok != (test.offset >= 0) || ok && (offset != test.offset || timestamp != test.time) {
				t.Errorf("%v: FirstAt(from %d, t %d) = %d, %d, %v, %v, want %d, %d", codec, test.from, test.t, offset, timestamp, ok, err, test.offset, test.time)
			}
		}
	}
	// MaxTimestamp comes from the producer and may be wrong.
	d := newDraft(None, "a")
	d.MaxTimestamp = 1 << 60
	if _, _, ok, err := FirstAt(d.bytes(), 0, 1<<50); ok || err != nil {
		t.Errorf("FirstAt = %v, %v, want none", ok, err)
	}
	if _, _, _, err := FirstAt(nil, 0, 0); err == nil {
		t.Error("FirstAt of nothing: no error")
	}
	if _, _, _, err := FirstAt(with(newDraft(Zstd, "a"), func(d *draft) { d.body = []byte{1, 2, 3} }).bytes(), 0, 0); err == nil {
		t.Error("FirstAt of a damaged batch: no error")
	}
}

// pieces is a source that returns its data in pieces of random sizes.
type pieces struct {
	data []byte
	rng  *rand.Rand
	buf  []byte
}

func (p *pieces) open([]byte, int64) error { return nil }
func (p *pieces) close()                   {}
func (p *pieces) defect() error            { return nil }
func (p *pieces) next() ([]byte, error) {
	if len(p.data) == 0 {
		return nil, io.EOF
	}
	for i := range p.buf {
		p.buf[i] = 0xaa // invalidate what was returned before
	}
	n := p.rng.IntN(min(len(p.data), 10) + 1)
	p.buf = append(p.buf[:0], p.data[:n]...)
	p.data = p.data[n:]
	return p.buf, nil
}

// read returns the result of reading n records, as text.
func read(r reader, n int32, look bool) (found []string, err error) {
	var rec Record
	for range n {
		var delta int32
		if look {
			delta, err = r.record(&rec)
		} else {
			delta, err = r.record(nil)
		}
		if err != nil {
			return found, err
		}
		if look {
			found = append(found, fmt.Sprintf("%+v", rec))
		} else {
			found = append(found, fmt.Sprint(delta))
		}
	}
	return found, r.end()
}

// However data is cut into pieces, the same records are found, with the same error. Skipping a
// record gives the same result as reading it.
func TestPieces(t *testing.T) {
	rng := rand.New(rand.NewPCG(rand.Uint64(), 0))
	for range testkit.Scaled(t, "DIASPORA_BATCHES", 20_000) {
		checkPieces(t, hostileRecords(rng), 1+rng.Int32N(4), rng)
	}
}

func checkPieces(t *testing.T, data []byte, n int32, rng *rand.Rand) {
	t.Helper()
	for _, look := range []bool{false, true} {
		want, wantErr := read(reader{chunk: data, failed: io.EOF}, n, look)
		got, err := read(reader{source: &pieces{data: data, rng: rng}, left: 1 << 30}, n, look)
		if !slices.Equal(got, want) || (err == nil) != (wantErr == nil) {
			t.Fatalf("%x in pieces: %q, %v, want %q, %v", data, got, err, want, wantErr)
		}
	}
	_, err := read(reader{chunk: data, failed: io.EOF}, n, false)
	_, lookErr := read(reader{chunk: data, failed: io.EOF}, n, true)
	if (err == nil) != (lookErr == nil) {
		t.Fatalf("%x: skipped with %v, read with %v", data, err, lookErr)
	}
	lax := reader{chunk: data, failed: io.EOF, lax: true}
	deltas := 0
	for ; deltas < int(n) && err == nil; deltas++ {
		if _, err := lax.record(nil); err != nil || lax.lied {
			t.Fatalf("%x: record %d, %v, lied %v, without lax it is good", data, deltas, err, lax.lied)
		}
	}
}
