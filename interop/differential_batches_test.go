//go:build kafka

package interop

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"
)

// batch is a record batch (message format v2) that can be invalid in every field. The zero value
// with some records is valid.
type batch struct {
	baseOffset    int64
	lengthOff     int32 // added to the length
	leaderEpoch   int32
	magic         int8
	crcOff        uint32 // added to the checksum
	attributes    int16  // without the codec bits
	codec         int8
	lastDeltaOff  int32 // added to the last offset delta
	baseTimestamp int64
	maxTimestamp  int64
	producerID    int64
	producerEpoch int16
	sequence      int32
	count         *int32 // replaces the number of records
	records       []record
	trailing      []byte              // after the last record, inside the compression
	squeezed      func([]byte) []byte // modifies the compressed records
	whole         func([]byte) []byte // modifies the encoded batch
}

// record is a record whose lengths can be wrong. Each offset is added to a length or count; zero
// means that it is correct.
type record struct {
	lengthOff, keyOff, valueOff, headersOff int64 // added to lengths and counts
	longLength                              bool  // the length has more bytes than a varint may have
	attributes                              byte
	timestampDelta                          int64
	offsetDelta                             int64
	key, value                              []byte
	headers                                 []header
}

type header struct{ key, value []byte }

// plainBatch returns a valid batch of n records with approximately size bytes each.
func plainBatch(n, size int, codec int8) *batch {
	b := &batch{magic: 2, leaderEpoch: -1, codec: codec, producerID: -1, producerEpoch: -1, sequence: -1,
		baseTimestamp: 1_700_000_000_000, maxTimestamp: 1_700_000_000_000}
	for i := range n {
		r := record{offsetDelta: int64(i), timestampDelta: int64(i), value: fmt.Appendf(nil, "%d%s", i, strings.Repeat("v", size))}
		if i%2 == 1 {
			r.key, r.headers = []byte("key"), []header{{[]byte("h"), []byte("1")}, {[]byte("null"), nil}}
		}
		b.records = append(b.records, r)
		b.maxTimestamp = b.baseTimestamp + int64(i)
	}
	return b
}

func (r record) append(to []byte) []byte {
	body := []byte{r.attributes}
	body = binary.AppendVarint(body, r.timestampDelta)
	body = binary.AppendVarint(body, r.offsetDelta)
	body = appendBytes(body, r.key, r.keyOff)
	body = appendBytes(body, r.value, r.valueOff)
	body = binary.AppendVarint(body, int64(len(r.headers))+r.headersOff)
	for _, h := range r.headers {
		body = appendBytes(body, h.key, 0)
		body = appendBytes(body, h.value, 0)
	}
	if r.longLength {
		to = append(to, bytes.Repeat([]byte{0x80}, 11)...)
	}
	return append(binary.AppendVarint(to, int64(len(body))+r.lengthOff), body...)
}

func appendBytes(to, b []byte, off int64) []byte {
	n := int64(len(b))
	if b == nil {
		n = -1
	}
	return append(binary.AppendVarint(to, n+off), b...)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Positions in a batch, and the size of its header.
const (
	batchLengthAt = 8
	batchCRCAt    = 17
	batchHeader   = 61
)

func (b *batch) encode() []byte {
	var records []byte
	for _, r := range b.records {
		records = r.append(records)
	}
	records = compress(b.codec, append(records, b.trailing...))
	if b.squeezed != nil {
		records = b.squeezed(records)
	}
	count := int32(len(b.records))
	lastDelta := count - 1 + b.lastDeltaOff
	if b.count != nil {
		count = *b.count
	}
	out := binary.BigEndian.AppendUint64(nil, uint64(b.baseOffset))
	out = binary.BigEndian.AppendUint32(out, uint32(int32(batchHeader-12+len(records))+b.lengthOff))
	out = binary.BigEndian.AppendUint32(out, uint32(b.leaderEpoch))
	out = append(out, byte(b.magic), 0, 0, 0, 0)
	out = binary.BigEndian.AppendUint16(out, uint16(b.attributes|int16(b.codec)))
	out = binary.BigEndian.AppendUint32(out, uint32(lastDelta))
	out = binary.BigEndian.AppendUint64(out, uint64(b.baseTimestamp))
	out = binary.BigEndian.AppendUint64(out, uint64(b.maxTimestamp))
	out = binary.BigEndian.AppendUint64(out, uint64(b.producerID))
	out = binary.BigEndian.AppendUint16(out, uint16(b.producerEpoch))
	out = binary.BigEndian.AppendUint32(out, uint32(b.sequence))
	out = binary.BigEndian.AppendUint32(out, uint32(count))
	out = append(out, records...)
	binary.BigEndian.PutUint32(out[batchCRCAt:], crc32.Checksum(out[batchCRCAt+4:], castagnoli)+b.crcOff)
	if b.whole != nil {
		out = b.whole(out)
	}
	return out
}

var codecs = []string{"none", "gzip", "snappy", "lz4", "zstd"}

// compress compresses records. For codecs that do not exist, it returns them unchanged.
func compress(codec int8, records []byte) []byte {
	choices := []kgo.CompressionCodec{kgo.NoCompression(), kgo.GzipCompression(), kgo.SnappyCompression(), kgo.Lz4Compression(), kgo.ZstdCompression()}
	if codec <= 0 || int(codec) >= len(choices) {
		return records
	}
	compressor, err := kgo.DefaultCompressor(choices[codec])
	if err != nil {
		panic(err) // the codecs are fixed
	}
	out, _ := compressor.Compress(new(bytes.Buffer), records)
	return bytes.Clone(out)
}

// defect makes a valid batch of a few records invalid or odd.
type defect struct {
	name  string
	apply func(*batch)
	codec bool // whether to try it with each codec, because it is inside the compression
}

func number(n int32) *int32 { return &n }

// first returns a function that changes the first record; last does the same for the last record.
func first(f func(*record)) func(*batch) { return func(b *batch) { f(&b.records[0]) } }
func last(f func(*record)) func(*batch)  { return func(b *batch) { f(&b.records[len(b.records)-1]) } }

// strangeProducer and the following numbers are IDs that no engine gives out.
const strangeProducer = 1 << 40

// defects are the defects of the suite's invalid batches.
var defects = []defect{
	// The header.
	{"count -1", func(b *batch) { b.count = number(-1) }, true},
	{"count 0", func(b *batch) { b.count = number(0) }, true},
	{"count one less", func(b *batch) { b.count = number(int32(len(b.records)) - 1) }, true},
	{"count one more", func(b *batch) { b.count = number(int32(len(b.records)) + 1) }, true},
	{"count 1,000,000", func(b *batch) { b.count = number(1_000_000) }, true},
	{"count and delta 1,000,000", func(b *batch) { b.count = number(1_000_000); b.lastDeltaOff = 1_000_000 - int32(len(b.records)) }, true},
	{"count 2^31-1", func(b *batch) { b.count = number(math.MaxInt32) }, true},
	{"count and delta negative", func(b *batch) { b.count = number(-1); b.lastDeltaOff = -5 - int32(len(b.records)) }, false},
	{"count and delta one less", func(b *batch) { b.count = number(int32(len(b.records)) - 1); b.lastDeltaOff = -1 }, true},
	{"last offset delta one less", func(b *batch) { b.lastDeltaOff = -1 }, true},
	{"last offset delta one more", func(b *batch) { b.lastDeltaOff = 1 }, true},
	{"last offset delta negative", func(b *batch) { b.lastDeltaOff = -100 }, true},
	{"last offset delta 2^31-1", func(b *batch) { b.lastDeltaOff = math.MaxInt32 - int32(len(b.records)) + 1 }, true},
	{"no records", func(b *batch) { b.records = nil }, true},
	{"no records, delta 0", func(b *batch) { b.records, b.lastDeltaOff = nil, 1 }, true},
	{"attribute bit 3 (log append time)", func(b *batch) { b.attributes = 1 << 3 }, true},
	{"attribute bit 4 (transactional) without a producer", func(b *batch) { b.attributes = 1 << 4 }, false},
	{"attribute bit 4 (transactional) with a producer", func(b *batch) { b.attributes, b.producerID, b.producerEpoch, b.sequence = 1<<4, strangeProducer, 0, 0 }, false},
	{"attribute bit 5 (control)", func(b *batch) { b.attributes = 1 << 5 }, true},
	{"attribute bits 4 and 5 with a producer", func(b *batch) { b.attributes, b.producerID, b.producerEpoch, b.sequence = 3<<4, strangeProducer, 0, 0 }, false},
	{"attribute bit 6 (delete horizon)", func(b *batch) { b.attributes = 1 << 6 }, true},
	{"attribute bit 7", func(b *batch) { b.attributes = 1 << 7 }, true},
	{"attribute bit 15", func(b *batch) { b.attributes = math.MinInt16 }, true},
	{"codec 5", func(b *batch) { b.codec = 5 }, false},
	{"codec 6", func(b *batch) { b.codec = 6 }, false},
	{"codec 7", func(b *batch) { b.codec = 7 }, false},
	{"base offset 5", func(b *batch) { b.baseOffset = 5 }, true},
	{"base offset -1", func(b *batch) { b.baseOffset = -1 }, true},
	{"leader epoch 7", func(b *batch) { b.leaderEpoch = 7 }, false},
	{"leader epoch -5", func(b *batch) { b.leaderEpoch = -5 }, false},
	{"magic 0", func(b *batch) { b.magic = 0 }, false},
	{"magic 1", func(b *batch) { b.magic = 1 }, false},
	{"magic 3", func(b *batch) { b.magic = 3 }, false},
	{"magic -1", func(b *batch) { b.magic = -1 }, false},
	{"length one less", func(b *batch) { b.lengthOff = -1 }, true},
	{"length one more", func(b *batch) { b.lengthOff = 1 }, true},
	{"length 13", func(b *batch) { b.whole = setLength(13) }, false},
	{"length 48", func(b *batch) { b.whole = setLength(48) }, false},
	{"length 0", func(b *batch) { b.whole = setLength(0) }, false},
	{"length negative", func(b *batch) { b.whole = setLength(-1) }, false},
	{"length 2^31-1", func(b *batch) { b.whole = setLength(math.MaxInt32) }, false},
	{"checksum", func(b *batch) { b.crcOff = 1 }, true},
	{"producer without epoch and sequence", func(b *batch) { b.producerID = strangeProducer }, false},
	{"producer without sequence", func(b *batch) { b.producerID, b.producerEpoch = strangeProducer, 0 }, false},
	{"producer with epoch -5", func(b *batch) { b.producerID, b.producerEpoch, b.sequence = strangeProducer, -5, 0 }, false},
	{"sequence -5", func(b *batch) { b.producerID, b.producerEpoch, b.sequence = strangeProducer, 0, -5 }, false},
	{"sequence 5 first", func(b *batch) { b.producerID, b.producerEpoch, b.sequence = strangeProducer, 0, 5 }, false},
	{"epoch and sequence without producer", func(b *batch) { b.producerEpoch, b.sequence = 0, 0 }, false},
	{"producer -2", func(b *batch) { b.producerID, b.producerEpoch, b.sequence = -2, 0, 0 }, false},
	{"times negative", func(b *batch) { b.baseTimestamp, b.maxTimestamp = -5, -5 }, true},
	{"times -1", func(b *batch) { b.baseTimestamp, b.maxTimestamp = -1, -1 }, true},
	{"time of 2001", func(b *batch) { b.baseTimestamp, b.maxTimestamp = 990_000_000_000, 990_000_000_002 }, true},
	{"time of 2255", func(b *batch) { b.baseTimestamp, b.maxTimestamp = 9_000_000_000_000, 9_000_000_000_002 }, true},
	{"largest time a lie", func(b *batch) { b.maxTimestamp += 1_000_000 }, true},
	{"base time 2^63-1", func(b *batch) { b.baseTimestamp = math.MaxInt64 }, false},

	// The records, inside compression.
	{"record length one less", first(func(r *record) { r.lengthOff = -1 }), true},
	{"record length one more", first(func(r *record) { r.lengthOff = 1 }), true},
	{"last record length one less", last(func(r *record) { r.lengthOff = -1 }), true},
	{"last record length one more", last(func(r *record) { r.lengthOff = 1 }), true},
	{"record length 0", func(b *batch) { b.records = nil; b.count, b.lastDeltaOff, b.trailing = number(1), 1, []byte{0} }, true},
	{"record length -1", func(b *batch) { b.records = nil; b.count, b.lastDeltaOff, b.trailing = number(1), 1, []byte{1} }, true},
	{"record length negative", first(func(r *record) { r.lengthOff = -1000 }), true},
	{"record length 1,000,000", first(func(r *record) { r.lengthOff = 1_000_000 }), true},
	{"record length 2^31-1", first(func(r *record) { r.lengthOff = math.MaxInt32 - 100 }), true},
	{"record length of too many bytes", first(func(r *record) { r.longLength = true }), true},
	{"key length one more", last(func(r *record) { r.key = []byte("k"); r.keyOff = 1 }), true},
	{"key length -2", last(func(r *record) { r.key = nil; r.keyOff = -1 }), true},
	{"key length 2^31-1", last(func(r *record) { r.key = []byte("k"); r.keyOff = math.MaxInt32 - 1 }), true},
	{"value length one less", last(func(r *record) { r.valueOff = -1 }), true},
	{"value length one more", last(func(r *record) { r.valueOff = 1 }), true},
	{"value length -2", last(func(r *record) { r.value = nil; r.valueOff = -1 }), true},
	{"value length 2^31-1", last(func(r *record) { r.valueOff = math.MaxInt32 - 100 }), true},
	{"headers -1", last(func(r *record) { r.headers = nil; r.headersOff = -1 }), true},
	{"headers one more", last(func(r *record) { r.headersOff = 1 }), true},
	{"headers 1,000,000", last(func(r *record) { r.headersOff = 1_000_000 }), true},
	{"headers 2^31-1", last(func(r *record) { r.headers = nil; r.headersOff = math.MaxInt32 }), true},
	{"header without a key", last(func(r *record) { r.headers = []header{{nil, []byte("v")}} }), true},
	{"header with an empty key", last(func(r *record) { r.headers = []header{{[]byte{}, []byte("v")}} }), true},
	{"header key not UTF-8", last(func(r *record) { r.headers = []header{{[]byte{0xff, 0xfe}, []byte("v")}} }), true},
	{"record attributes", last(func(r *record) { r.attributes = 0xff }), true},
	{"offset deltas from 1", func(b *batch) { shiftOffsets(b, 1) }, true},
	{"offset deltas from 1, last delta too", func(b *batch) { shiftOffsets(b, 1); b.lastDeltaOff = 1 }, true},
	{"offset delta twice", last(func(r *record) { r.offsetDelta-- }), true},
	{"offset delta negative", first(func(r *record) { r.offsetDelta = -1 }), true},
	{"timestamp delta negative", last(func(r *record) { r.timestampDelta = -10 }), true},
	{"timestamp delta 2^62", last(func(r *record) { r.timestampDelta = 1 << 62 }), true},
	{"bytes behind the records", func(b *batch) { b.trailing = []byte{0, 1, 2} }, true},
	{"a record too many", func(b *batch) { b.trailing = record{offsetDelta: int64(len(b.records))}.append(nil) }, true},

	// The compression.
	{"garbage for records", func(b *batch) { b.squeezed = func([]byte) []byte { return []byte("this is no record at all") } }, true},
	{"compressed stream cut", func(b *batch) { b.squeezed = func(r []byte) []byte { return r[:len(r)-3] } }, true},
	{"compressed stream and more", func(b *batch) { b.squeezed = func(r []byte) []byte { return append(r, 1, 2, 3, 4, 5, 6, 7, 8) } }, true},
	{"compressed stream twice", func(b *batch) { b.squeezed = func(r []byte) []byte { return append(r, r...) } }, true},
	{"compressed stream with a bit flipped", func(b *batch) { b.squeezed = func(r []byte) []byte { r[len(r)/2] ^= 4; return r } }, true},
	{"no compressed bytes", func(b *batch) { b.squeezed = func([]byte) []byte { return nil } }, true},

	// The batch as a whole.
	{"two batches", func(b *batch) { b.whole = func(e []byte) []byte { return append(e, plainBatch(1, 3, 0).encode()...) } }, false},
	{"a batch and a byte", func(b *batch) { b.whole = func(e []byte) []byte { return append(e, 0) } }, false},
	{"a batch and 20 zeros", func(b *batch) { b.whole = func(e []byte) []byte { return append(e, make([]byte, 20)...) } }, false},
	{"a batch and half a batch", func(b *batch) { b.whole = func(e []byte) []byte { return append(e, e[:70]...) } }, false},
	{"a batch cut by a byte", func(b *batch) { b.whole = func(e []byte) []byte { return e[:len(e)-1] } }, true},
	{"a header alone", func(b *batch) { b.whole = func(e []byte) []byte { return e[:batchHeader] } }, false},
	{"60 bytes", func(b *batch) { b.whole = func(e []byte) []byte { return e[:60] } }, false},
	{"17 bytes", func(b *batch) { b.whole = func(e []byte) []byte { return e[:17] } }, false},
	{"12 bytes", func(b *batch) { b.whole = func(e []byte) []byte { return e[:12] } }, false},
	{"11 bytes", func(b *batch) { b.whole = func(e []byte) []byte { return e[:11] } }, false},
	{"one byte", func(b *batch) { b.whole = func(e []byte) []byte { return e[:1] } }, false},
	{"empty", func(b *batch) { b.whole = func([]byte) []byte { return []byte{} } }, false},
	// Null instead of records is missing here: Apache Kafka never answers it.
	{"200 zeros", func(b *batch) { b.whole = func([]byte) []byte { return make([]byte, 200) } }, false},
	{"garbage", func(b *batch) { b.whole = func([]byte) []byte { return bytes.Repeat([]byte("garbage "), 20) } }, false},
	{"message set of format 1", func(b *batch) { b.whole = func([]byte) []byte { return oldMessage(1) } }, false},
	{"message set of format 0", func(b *batch) { b.whole = func([]byte) []byte { return oldMessage(0) } }, false},
	{"a byte over max.message.bytes", func(b *batch) { *b = *sizedBatch(maxMessage + 1) }, false},
	{"as large as max.message.bytes", func(b *batch) { *b = *sizedBatch(maxMessage) }, false},
}

// hostileCompressed are defects that replace the whole batch or its framing.
var hostileCompressed = []defect{
	{"snappy in the framing of snappy-java", func(b *batch) { b.codec = 2; b.squeezed = xerial }, false},
	{"10 MB of one record", func(b *batch) { oneRecord(b, 10<<20, max(b.codec, 1)) }, true},
	{"40 MB of one record", func(b *batch) { oneRecord(b, 40<<20, 4) }, false},
}

// oneRecord replaces a batch by one with a single compressed record of the given size. The producer
// stays the same.
func oneRecord(b *batch, size int, codec int8) {
	large := plainBatch(1, size, codec)
	large.producerID, large.producerEpoch, large.sequence = b.producerID, b.producerEpoch, b.sequence
	*b = *large
}

// strictness describes where the embedded engine rejects a batch that Kafka accepts, and with which
// code. See package batch.
type strictness struct {
	title  string // title of the designed difference
	code   string
	codecs []int8
}

const (
	lyingLength = "Produce: a compressed record that lies about its length"
	oddDeltas   = "Produce: uncompressed offset deltas other than 0, 1, 2"
	brokenEnd   = "Produce: a compressed stream with a defect after the last record"
	tooMuch     = "Produce: a batch that decompresses to a much larger size"
)

var strict = func() map[string]strictness {
	all := map[string]strictness{
		"compressed stream and more":           {brokenEnd, "UNKNOWN_SERVER_ERROR", []int8{1, 3}},
		"compressed stream twice":              {brokenEnd, "UNKNOWN_SERVER_ERROR", []int8{3}},
		"compressed stream with a bit flipped": {brokenEnd, "UNKNOWN_SERVER_ERROR", []int8{3}},
		"40 MB of one record":                  {tooMuch, "MESSAGE_TOO_LARGE", []int8{0, 1, 2, 3, 4}},
	}
	for _, name := range []string{"record length one less", "record length one more", "last record length one less", "last record length one more",
		"record length negative", "record length 1,000,000", "record length 2^31-1"} {
		all[name] = strictness{lyingLength, "INVALID_RECORD", []int8{1, 2, 3, 4}}
	}
	for _, name := range []string{"offset deltas from 1", "offset delta twice", "offset delta negative"} {
		all[name] = strictness{oddDeltas, "INVALID_RECORD", []int8{0}}
	}
	return all
}()

// strictness returns why only the embedded engine rejects a batch, or the zero value.
func (b batchStep) strictness() (s strictness) {
	if known := strict[b.Defect]; slices.Contains(known.codecs, b.Codec) {
		return known
	}
	return s
}

// maxMessage is the default of max.message.bytes.
const maxMessage = 1_048_588

// sizedBatch returns a valid batch of one record with the given total size.
func sizedBatch(size int) *batch {
	b := plainBatch(1, size-100, 0)
	for n := len(b.encode()); n != size; n = len(b.encode()) {
		b.records[0].value = append(b.records[0].value, bytes.Repeat([]byte("v"), max(size-n, 0))...)
		if n > size {
			b.records[0].value = b.records[0].value[:len(b.records[0].value)-(n-size)]
		}
	}
	return b
}

func setLength(n int32) func([]byte) []byte {
	return func(e []byte) []byte {
		binary.BigEndian.PutUint32(e[batchLengthAt:], uint32(n))
		return e
	}
}

func shiftOffsets(b *batch, by int64) {
	for i := range b.records {
		b.records[i].offsetDelta += by
	}
}

// xerial frames a snappy block in the format of snappy-java.
func xerial(block []byte) []byte {
	out := []byte{0x82, 'S', 'N', 'A', 'P', 'P', 'Y', 0, 0, 0, 0, 1, 0, 0, 0, 1}
	out = binary.BigEndian.AppendUint32(out, uint32(len(block)))
	return append(out, block...)
}

// oldMessage returns a message set in a format before v2, with one valid message.
func oldMessage(magic byte) []byte {
	body := []byte{magic, 0}
	if magic == 1 {
		body = binary.BigEndian.AppendUint64(body, 1_700_000_000_000)
	}
	body = append(body, 0xff, 0xff, 0xff, 0xff) // no key
	body = append(binary.BigEndian.AppendUint32(body, 5), "value"...)
	out := binary.BigEndian.AppendUint64(nil, 0)
	out = binary.BigEndian.AppendUint32(out, uint32(4+len(body)))
	out = binary.BigEndian.AppendUint32(out, crc32.ChecksumIEEE(body))
	return append(out, body...)
}
