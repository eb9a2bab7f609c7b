package batch

import (
	"bytes"
	"encoding/binary"
	"math"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

func TestParseHeader(t *testing.T) {
	d := newDraft(Zstd, "a", "b", "c")
	d.FirstOffset, d.PartitionLeaderEpoch, d.MaxTimestamp = 1<<40, 7, 1_700_000_001_000
	d.ProducerID, d.ProducerEpoch, d.FirstSequence = 1<<50, 12, 99
	b := d.bytes()
	h := mustParse(t, b)
	want := Header{
		BaseOffset: 1 << 40, Length: int32(len(b) - 12), LeaderEpoch: 7, Magic: 2, CRC: binary.BigEndian.Uint32(b[17:]), Attributes: 4, LastOffsetDelta: 2,
		BaseTimestamp: 1_700_000_000_000, MaxTimestamp: 1_700_000_001_000, ProducerID: 1 << 50, ProducerEpoch: 12, BaseSequence: 99, Count: 3,
	}
	if h != want {
		t.Errorf("ParseHeader = %+v, want %+v", h, want)
	}
	if h.Size() != len(b) || h.LastOffset() != 1<<40+2 || h.LastSequence() != 101 || h.Codec() != Zstd || !h.HasProducer() {
		t.Errorf("size %d, last offset %d, last sequence %d, codec %v, producer %v", h.Size(), h.LastOffset(), h.LastSequence(), h.Codec(), h.HasProducer())
	}
	if _, err := ParseHeader(b[:HeaderBytes]); err != nil { // the records may be missing
		t.Errorf("ParseHeader of a header = %v", err)
	}
	for name, b := range map[string][]byte{
		"short":          b[:HeaderBytes-1],
		"magic 1":        with1(bytes.Clone(b), func(b []byte) { b[magicAt] = 1 }),
		"length 48":      with1(bytes.Clone(b), func(b []byte) { binary.BigEndian.PutUint32(b[lengthAt:], 48) }),
		"length below 0": with1(bytes.Clone(b), func(b []byte) { b[lengthAt] = 0xff }),
	} {
		if h, err := ParseHeader(b); err == nil || h != (Header{}) {
			t.Errorf("ParseHeader, %s = %+v, %v, want an error", name, h, err)
		}
	}
	if n := testing.AllocsPerRun(100, func() { mustParse(t, b) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestHeaderAttributes(t *testing.T) {
	for bit, has := range map[int16]func(Header) bool{
		appendTimeBit:    Header.LogAppendTime,
		transactionalBit: Header.Transactional,
		controlBit:       Header.Control,
	} {
		if !has(Header{Attributes: bit}) || has(Header{Attributes: ^bit}) {
			t.Errorf("bit %#x is not told from the others", bit)
		}
	}
	for c, name := range []string{"none", "gzip", "snappy", "lz4", "zstd", "codec 5"} {
		if got := (Header{Attributes: int16(c) | ^codecBits}).Codec(); got != Codec(c) || got.String() != name {
			t.Errorf("codec %v, want %s", got, name)
		}
	}
}

// Sequence number 2³¹-1 is followed by 0.
func TestLastSequence(t *testing.T) {
	for _, test := range []struct{ base, delta, want int32 }{
		{0, 0, 0},
		{5, 2, 7},
		{math.MaxInt32, 0, math.MaxInt32},
		{math.MaxInt32, 1, 0},
		{math.MaxInt32 - 1, 5, 3},
		{math.MaxInt32, math.MaxInt32, math.MaxInt32 - 1},
		{-1, 0, -1},
		{-1, 9, -1},
	} {
		if got := (Header{BaseSequence: test.base, LastOffsetDelta: test.delta}).LastSequence(); got != test.want {
			t.Errorf("from %d, delta %d: %d, want %d", test.base, test.delta, got, test.want)
		}
	}
}

func TestChecksumOK(t *testing.T) {
	b := newDraft(None, "value").bytes()
	if !ChecksumOK(b) {
		t.Error("wrong checksum")
	}
	for i := range b {
		covered := i >= crcAt
		if got := ChecksumOK(flip(bytes.Clone(b), i)); got == covered {
			t.Errorf("byte %d changed: ChecksumOK = %v", i, got)
		}
	}
	for n := range HeaderBytes {
		if ChecksumOK(make([]byte, n)) {
			t.Errorf("%d zeroes have a right checksum", n)
		}
	}
}

func TestStamp(t *testing.T) {
	for _, codec := range codecs {
		d := newDraft(codec, "a", "b", "c")
		d.ProducerID, d.ProducerEpoch, d.FirstSequence = 5, 1, 7
		d.Attributes |= deleteHorizonBit | math.MinInt16 | 0x7f80
		b := d.bytes()
		before := mustParse(t, b)
		records := bytes.Clone(b[HeaderBytes:])
		Stamp(b, 12345, 8, 1_800_000_000_000)
		want := before
		want.BaseOffset, want.LeaderEpoch, want.MaxTimestamp = 12345, 8, 1_800_000_000_000
		want.Attributes = int16(codec) | deleteHorizonBit | appendTimeBit
		got := mustParse(t, b)
		want.CRC = got.CRC
		if got != want || !ChecksumOK(b) || !bytes.Equal(records, b[HeaderBytes:]) {
			t.Errorf("%v: header %+v, checksum %v, want %+v", codec, got, ChecksumOK(b), want)
		}
		checkConsumed(t, b, d.records, 12345)
	}
	b := newDraft(None, "a").bytes()
	if n := testing.AllocsPerRun(100, func() { Stamp(b, 1, 2, 3) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// checkConsumed reads a stamped batch with franz-go's consumer.
func checkConsumed(t *testing.T, b []byte, want []kmsg.Record, offset int64) {
	t.Helper()
	h := mustParse(t, b)
	got := consume(b)
	if got.Err != nil || len(got.Records) != len(want) {
		t.Fatalf("consumed %d records, %v, want %d", len(got.Records), got.Err, len(want))
	}
	for i, r := range got.Records {
		if r.Offset != offset+int64(i) || r.Timestamp.UnixMilli() != h.MaxTimestamp || r.LeaderEpoch != h.LeaderEpoch || !same(r.Key, want[i].Key) || !same(r.Value, want[i].Value) {
			t.Errorf("consumed %+v, want %+v at offset %d", r, want[i], offset+int64(i))
		}
	}
}
