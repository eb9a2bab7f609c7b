package batch

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"testing"

	"github.com/klauspost/compress/s2"
	"github.com/pierrec/lz4/v4"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

var codecs = []Codec{None, Gzip, Snappy, LZ4, Zstd}

// draft is a batch that a test builds. It is valid unless the test changes something.
type draft struct {
	kmsg.RecordBatch
	records []kmsg.Record
	body    []byte // if not nil, replaces the compressed records
	compact func([]byte) []byte
}

func newDraft(codec Codec, values ...string) *draft {
	d := &draft{}
	d.Magic = 2
	d.Attributes = int16(codec)
	d.PartitionLeaderEpoch = -1
	d.LastOffsetDelta = int32(len(values) - 1)
	d.FirstTimestamp = 1_700_000_000_000
	d.MaxTimestamp = d.FirstTimestamp + int64(len(values)-1)
	d.ProducerID, d.ProducerEpoch, d.FirstSequence = -1, -1, -1
	d.NumRecords = int32(len(values))
	d.compact = func(b []byte) []byte { return compress(codec, b) }
	for i, v := range values {
		d.records = append(d.records, kmsg.Record{
			OffsetDelta:      int32(i),
			TimestampDelta64: int64(i),
			Key:              fmt.Appendf(nil, "key-%d", i),
			Value:            []byte(v),
		})
	}
	return d
}

// rawRecord encodes a record with its correct length.
func rawRecord(r kmsg.Record) []byte {
	r.Length = 0
	body := r.AppendTo(nil)[1:]
	return append(binary.AppendVarint(nil, int64(len(body))), body...)
}

func (d *draft) raw() []byte {
	var b []byte
	for _, r := range d.records {
		b = append(b, rawRecord(r)...)
	}
	return b
}

// bytes encodes the batch with its correct length and checksum.
func (d *draft) bytes() []byte {
	raw := d.body
	if raw == nil {
		raw = d.raw()
	}
	batch := d.RecordBatch
	batch.Records = d.compact(raw)
	return seal(batch.AppendTo(nil))
}

// seal sets the length and the checksum of a batch.
func seal(b []byte) []byte {
	binary.BigEndian.PutUint32(b[lengthAt:], uint32(len(b)-overhead))
	return sum(b)
}

// sum sets the checksum of a batch.
func sum(b []byte) []byte {
	binary.BigEndian.PutUint32(b[crcAt:], crc32.Checksum(b[attributesAt:], castagnoli))
	return b
}

// compressors are the compressors of franz-go's producer.
var compressors = func() (all [Zstd + 1]kgo.Compressor) {
	for codec, c := range []kgo.CompressionCodec{Gzip: kgo.GzipCompression(), Snappy: kgo.SnappyCompression(), LZ4: kgo.Lz4Compression(), Zstd: kgo.ZstdCompression()} {
		var err error
		if all[codec], err = kgo.DefaultCompressor(c); err != nil {
			panic(err)
		}
	}
	return all
}()

// compress compresses as franz-go's producer does.
func compress(codec Codec, b []byte) []byte {
	if codec == None || codec > Zstd {
		return b
	}
	out, got := compressors[codec].Compress(new(bytes.Buffer), b)
	if Codec(got) != codec {
		panic(fmt.Sprintf("compressed with %v, want %v", got, codec))
	}
	return bytes.Clone(out)
}

// xerial frames Snappy blocks in the format of snappy-java.
func xerial(b []byte, block int) []byte {
	out := append([]byte(snappyMagic), 0, 0, 0, 1, 0, 0, 0, 1)
	for len(b) > 0 {
		n := min(block, len(b))
		c := s2.EncodeSnappy(nil, b[:n])
		out = binary.BigEndian.AppendUint32(out, uint32(len(c)))
		out = append(out, c...)
		b = b[n:]
	}
	return out
}

func lz4Frame(b []byte, options ...lz4.Option) []byte {
	var out bytes.Buffer
	w := lz4.NewWriter(&out)
	if err := w.Apply(options...); err != nil {
		panic(err)
	}
	if _, err := w.Write(b); err != nil {
		panic(err)
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return out.Bytes()
}

var usual = Limits{MaxBytes: 1 << 20, ProduceVersion: 9}

func mustParse(t testing.TB, b []byte) Header {
	t.Helper()
	h, err := ParseHeader(b)
	if err != nil {
		t.Fatalf("ParseHeader = %v", err)
	}
	return h
}
