package batch

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// answer is what the Produce response says about a batch.
type answer struct {
	code    *kerr.Error // nil: accepted
	whole   bool        // all partitions of the request get the code
	start   bool        // the response has the log start offset
	records []int32
}

func (a answer) String() string {
	code := "accepted"
	if a.code != nil {
		code = a.code.Message
	}
	return fmt.Sprintf("%s (whole request %v, log start offset %v, records %v)", code, a.whole, a.start, a.records)
}

func (a answer) equal(b answer) bool {
	return a.code == b.code && a.whole == b.whole && a.start == b.start && slices.Equal(a.records, b.records)
}

func validate(t testing.TB, records []byte, l Limits) answer {
	t.Helper()
	h, err := Validate(records, l)
	if err == nil {
		if want := mustParse(t, records); h != want {
			t.Errorf("Validate = %+v, want %+v", h, want)
		}
		return answer{}
	}
	var e *Error
	if !errors.As(err, &e) || !errors.Is(err, e.Code) || h != (Header{}) {
		t.Fatalf("Validate = %+v, %#v, want an *Error and no header", h, err)
	}
	return answer{e.Code, e.WholeRequest, e.LogStartOffset, e.Records}
}

func TestValidateAcceptsWhatProducersSend(t *testing.T) {
	long := strings.Repeat("events of a long run, one like the other; ", 10_000)
	for _, codec := range codecs {
		for name, d := range map[string]*draft{
			"one":        newDraft(codec, "value"),
			"three":      newDraft(codec, "a", "", strings.Repeat("c", 300)),
			"long":       newDraft(codec, long, "short", long, long),
			"idempotent": with(newDraft(codec, "a", "b"), func(d *draft) { d.ProducerID, d.ProducerEpoch, d.FirstSequence = 7, 0, 12 }),
			"last sequence": with(newDraft(codec, "a", "b"), func(d *draft) {
				d.ProducerID, d.ProducerEpoch, d.FirstSequence = math.MaxInt64, math.MaxInt16, math.MaxInt32
			}),
			"nulls":    with(newDraft(codec, "a", "b"), func(d *draft) { d.records[0].Key, d.records[1].Value = nil, nil }),
			"headers":  with(newDraft(codec, "a", "b"), func(d *draft) { d.records[1].Headers = []kmsg.Header{{Key: "k", Value: []byte("v")}, {}} }),
			"sequence": with(newDraft(codec, "a"), func(d *draft) { d.FirstSequence = 5 }), // ignored without a producer
			"epoch":    with(newDraft(codec, "a"), func(d *draft) { d.PartitionLeaderEpoch = 12 }),
			"times":    with(newDraft(codec, "a"), func(d *draft) { d.FirstTimestamp, d.MaxTimestamp = math.MinInt64, math.MaxInt64 }),
			"producer": with(newDraft(codec, "a"), func(d *draft) { d.ProducerID = -2 }),
			"unused":   with(newDraft(codec, "a"), func(d *draft) { d.Attributes |= math.MinInt16 | 0x7f80 }),
			"horizon":  with(newDraft(codec, "a"), func(d *draft) { d.Attributes |= deleteHorizonBit }),
		} {
			t.Run(codec.String()+"/"+name, func(t *testing.T) {
				if got := validate(t, d.bytes(), Limits{MaxBytes: 10 << 20, ProduceVersion: 7}); got.code != nil {
					t.Error(got)
				}
			})
		}
	}
}

// with applies a change to a draft.
func with(d *draft, change func(*draft)) *draft {
	change(d)
	return d
}

// change changes bytes and corrects length and checksum.
func change(b []byte, f func([]byte)) []byte {
	f(b)
	return sum(b)
}

type fault struct {
	name    string
	batch   []byte
	version int16 // of the Produce request; 9 if 0
	want    answer
	kafka   *answer // Apache Kafka's answer, if it differs
}

// faults are all kinds of invalid batches, with one fault each, and the answers of Apache Kafka
// 4.3.
func faults() []fault {
	invalid := answer{code: kerr.InvalidRecord, start: true}
	early := answer{code: kerr.InvalidRecord} // rejected before Apache Kafka accesses the log
	corrupt := answer{code: kerr.CorruptMessage}
	unreadable := answer{code: kerr.UnknownServerError, start: true}
	accepted := answer{}
	one := newDraft(None, "value").bytes()
	three := func(c Codec, change func(*draft)) []byte { return with(newDraft(c, "a", "b", "c"), change).bytes() }
	header := func(change func(*draft)) []byte { return three(None, change) }
	size := func(n int) []byte { // a batch of n bytes, valid except for its size
		return change(bytes.Clone(one[:n]), func(b []byte) { binary.BigEndian.PutUint32(b[lengthAt:], uint32(n-overhead)) })
	}
	length := func(n uint32) []byte {
		b := bytes.Clone(one)
		binary.BigEndian.PutUint32(b[lengthAt:], n)
		return b
	}

	all := []fault{
		{name: "nothing", batch: nil, want: early},
		{name: "a few bytes", batch: one[:11], want: early},
		{name: "no magic", batch: one[:16], want: early},
		{name: "truncated header", batch: one[:60], want: early},
		{name: "truncated", batch: one[:len(one)-1], want: early},
		{name: "length negative", batch: length(0xffffffff), want: answer{code: kerr.CorruptMessage, whole: true}},
		{name: "length 13", batch: length(13), want: answer{code: kerr.CorruptMessage, whole: true}},
		{name: "length beyond an int32", batch: length(math.MaxInt32), want: answer{code: kerr.UnknownServerError, whole: true}},
		{name: "length too great", batch: length(1 << 20), want: early},
		{name: "length too small by one", batch: length(uint32(len(one) - 13)), want: corrupt},
		{name: "size 26", batch: size(26), want: answer{code: kerr.UnknownServerError, whole: true}},
		{name: "size 50", batch: size(50), want: answer{code: kerr.UnknownServerError, whole: true}},
		{name: "size 51", batch: size(51), want: corrupt},
		{name: "size 60", batch: size(60), want: corrupt},
		{name: "magic -1", batch: header(func(d *draft) { d.Magic = -1 }), want: answer{code: kerr.CorruptMessage, whole: true}},
		{name: "magic 0", batch: header(func(d *draft) { d.Magic = 0 }), want: early},
		{name: "magic 1", batch: header(func(d *draft) { d.Magic = 1 }), want: early},
		{name: "magic 3", batch: header(func(d *draft) { d.Magic = 3 }), want: answer{code: kerr.CorruptMessage, whole: true}},
		{name: "transactional", batch: header(func(d *draft) { d.Attributes |= transactionalBit }),
			want: answer{code: kerr.TransactionalIDAuthorizationFailed, whole: true}},
		{name: "transactional with a producer", batch: header(func(d *draft) { d.Attributes |= transactionalBit; d.ProducerID, d.FirstSequence = 1, 0 }),
			want: answer{code: kerr.TransactionalIDAuthorizationFailed, whole: true}},
		{name: "transactional with a wrong checksum", batch: flip(header(func(d *draft) { d.Attributes |= transactionalBit }), crcAt),
			want: answer{code: kerr.TransactionalIDAuthorizationFailed, whole: true}},
		{name: "zstd in version 6", batch: newDraft(Zstd, "a").bytes(), version: 6, want: answer{code: kerr.UnsupportedCompressionType}},
		{name: "codec 5 in version 6", batch: header(func(d *draft) { d.Attributes = 5 }), version: 6, want: answer{code: kerr.UnknownServerError, whole: true}},
		{name: "codec 5", batch: header(func(d *draft) { d.Attributes = 5 }), want: unreadable},
		{name: "codec 7", batch: header(func(d *draft) { d.Attributes = 7 }), want: unreadable},
		{name: "two batches", batch: append(bytes.Clone(one), one...), want: early},
		{name: "second batch incomplete", batch: append(bytes.Clone(one), one[:len(one)-1]...), want: accepted},
		{name: "eleven bytes behind", batch: append(bytes.Clone(one), make([]byte, 11)...), want: accepted},
		{name: "twelve bytes behind", batch: append(bytes.Clone(one), make([]byte, 12)...), want: corrupt},
		{name: "second batch with magic 3", batch: append(bytes.Clone(one), flip(bytes.Clone(one), magicAt)...), want: corrupt},
		{name: "second batch beyond an int32", batch: append(bytes.Clone(one), length(math.MaxInt32)...), want: answer{code: kerr.UnknownServerError, whole: true}},
		{name: "base offset 1", batch: header(func(d *draft) { d.FirstOffset = 1 }), want: invalid},
		{name: "base offset -1", batch: header(func(d *draft) { d.FirstOffset = -1 }), want: invalid},
		{name: "base offset and checksum", batch: flip(header(func(d *draft) { d.FirstOffset = 1 }), crcAt), want: invalid},
		{name: "too large", batch: newDraft(None, strings.Repeat("x", 4096)).bytes(), want: answer{code: kerr.MessageTooLarge}},
		{name: "too large and checksum", batch: flip(newDraft(None, strings.Repeat("x", 4096)).bytes(), crcAt), want: answer{code: kerr.MessageTooLarge}},
		{name: "checksum", batch: flip(bytes.Clone(one), crcAt), want: corrupt},
		{name: "a bit of a record", batch: flip(bytes.Clone(one), len(one)-1), want: corrupt},
		{name: "last offset delta -1", batch: header(func(d *draft) { d.LastOffsetDelta = -1 }), want: invalid},
		{name: "last offset delta 1", batch: header(func(d *draft) { d.LastOffsetDelta = 1 }), want: invalid},
		{name: "last offset delta 3", batch: header(func(d *draft) { d.LastOffsetDelta = 3 }), want: invalid},
		{name: "last offset delta 2³¹-1", batch: header(func(d *draft) { d.LastOffsetDelta = math.MaxInt32 }), want: invalid},
		{name: "count 0", batch: header(func(d *draft) { d.NumRecords = 0 }), want: invalid},
		{name: "count 0 and no records", batch: header(func(d *draft) { d.NumRecords, d.LastOffsetDelta, d.records = 0, -1, nil }), want: invalid},
		{name: "count 0, delta 0 and no records", batch: header(func(d *draft) { d.NumRecords, d.LastOffsetDelta, d.records = 0, 0, nil }), want: invalid},
		{name: "count -1", batch: header(func(d *draft) { d.NumRecords = -1 }), want: invalid},
		{name: "count -5 and last offset delta -6", batch: header(func(d *draft) { d.NumRecords, d.LastOffsetDelta = -5, -6 }), want: invalid},
		{name: "count 2", batch: header(func(d *draft) { d.NumRecords = 2 }), want: invalid},
		{name: "count 1,000,000", batch: header(func(d *draft) { d.NumRecords = 1_000_000 }), want: invalid},
		{name: "control", batch: header(func(d *draft) { d.Attributes |= controlBit }), want: invalid},
		{name: "control with a producer", batch: header(func(d *draft) { d.Attributes |= controlBit; d.ProducerID, d.FirstSequence = 1, 0 }), want: invalid},
		{name: "producer without a sequence", batch: header(func(d *draft) { d.ProducerID, d.ProducerEpoch = 1, 0 }), want: invalid},
		{name: "producer with sequence -2", batch: header(func(d *draft) { d.ProducerID, d.ProducerEpoch, d.FirstSequence = 1, 0, -2 }), want: invalid},
		{name: "producer with epoch -1", batch: header(func(d *draft) { d.ProducerID, d.FirstSequence = 1, 0 }), want: accepted},
		{name: "overlong length of a record", batch: with(newDraft(None, "a"), func(d *draft) { d.body = bytes.Repeat([]byte{0xff}, 20) }).bytes(), want: unreadable},
		{name: "overlong length of a compressed record", batch: with(newDraft(Snappy, "a"), func(d *draft) { d.body = bytes.Repeat([]byte{0xff}, 20) }).bytes(), want: invalid},
	}
	for _, c := range codecs {
		broken, lenient := invalid, &accepted // what Apache Kafka accepts in compressed records only
		if c == None {
			broken, lenient = invalid, nil
		}
		body := func(change func(raw []byte) []byte) []byte {
			return three(c, func(d *draft) { d.body = change(d.raw()) })
		}
		offsets := fault{batch: three(c, func(d *draft) { d.records[1].OffsetDelta = 5 }), want: unreadable}
		if c == None {
			offsets.want, offsets.kafka = invalid, &accepted
		}
		records := []fault{
			{name: "count 1,000,000, consistent", batch: three(c, func(d *draft) { d.NumRecords, d.LastOffsetDelta = 1_000_000, 999_999 }), want: invalid},
			{name: "count 2³¹-1, consistent", batch: three(c, func(d *draft) { d.NumRecords, d.LastOffsetDelta = math.MaxInt32, math.MaxInt32-1 }), want: invalid},
			{name: "count one less, consistent", batch: three(c, func(d *draft) { d.NumRecords, d.LastOffsetDelta = 2, 1 }), want: invalid},
			{name: "count one more, consistent", batch: three(c, func(d *draft) { d.NumRecords, d.LastOffsetDelta = 4, 3 }), want: invalid},
			{name: "no records", batch: body(func([]byte) []byte { return []byte{} }), want: invalid},
			{name: "log append time", batch: three(c, func(d *draft) { d.Attributes |= appendTimeBit }),
				want: answer{code: kerr.InvalidTimestamp, start: true, records: []int32{0, 1, 2}}},
			{name: "log append time and truncated", batch: three(c, func(d *draft) {
				d.Attributes |= appendTimeBit
				d.body = d.raw()[:20]
			}), want: invalid},
			{name: "trailing byte", batch: body(func(b []byte) []byte { return append(b, 0) }), want: invalid},
			{name: "missing byte", batch: body(func(b []byte) []byte { return b[:len(b)-1] }), want: invalid},
			{name: "length one more", batch: body(func(b []byte) []byte { b[0] += 2; return b }), want: broken, kafka: lenient},
			{name: "length one less", batch: body(func(b []byte) []byte { b[0] -= 2; return b }), want: broken, kafka: lenient},
			{name: "length of the last too great", batch: with(newDraft(c, "a"), func(d *draft) { b := d.raw(); b[0] += 2; d.body = b }).bytes(), want: broken, kafka: lenient},
			{name: "length negative", batch: body(func(b []byte) []byte { b[0] = 1; return b }), want: broken, kafka: lenient},
			{name: "length 2³¹-1", batch: body(func(b []byte) []byte { return append(binary.AppendVarint(nil, math.MaxInt32), b[1:]...) }), want: broken, kafka: lenient},
			{name: "trailing byte in a record", batch: body(func(b []byte) []byte {
				n := int(b[0]) / 2
				return slices.Insert(change1(b, 2), n+1, 0)
			}), want: invalid},
			{name: "key length too great", batch: body(func(b []byte) []byte { b[4] = 0x7e; return b }), want: invalid},
			{name: "key length 2³¹-1", batch: body(func(b []byte) []byte { return slices.Replace(b, 4, 5, binary.AppendVarint(nil, math.MaxInt32)...) }), want: invalid},
			{name: "headers -1", batch: with(newDraft(c, "a"), func(d *draft) { b := d.raw(); b[len(b)-1] = 1; d.body = b }).bytes(), want: invalid},
			{name: "headers that are not there", batch: with(newDraft(c, "a"), func(d *draft) { b := d.raw(); b[len(b)-1] = 2; d.body = b }).bytes(), want: invalid},
			{name: "header without a key", batch: body(func([]byte) []byte {
				one := []byte{0, 0, 0, 1, 1, 2, 1, 1} // one header, key length -1
				return append(binary.AppendVarint(nil, int64(len(one))), one...)
			}), want: invalid},
			{name: "zeroes", batch: body(func([]byte) []byte { return make([]byte, 1000) }), want: invalid},
			{name: "offset deltas", batch: offsets.batch, want: offsets.want, kafka: offsets.kafka},
		}
		if c != None {
			records = append(records,
				fault{name: "not compressed", batch: three(c, func(d *draft) { d.compact = func(b []byte) []byte { return b } }), want: unreadable},
				fault{name: "no data", batch: three(c, func(d *draft) { d.compact = func([]byte) []byte { return nil } }), want: unreadable},
				fault{name: "truncated data", batch: three(c, func(d *draft) {
					pack := d.compact
					d.compact = func(b []byte) []byte { c := pack(b); return c[:len(c)-5] }
				}), want: unreadable},
			)
		}
		for _, f := range records {
			f.name = c.String() + ": " + f.name
			if c == Zstd && strings.HasSuffix(f.name, "no data") {
				f.want = invalid // an input without any frame is not a decompression error
			}
			all = append(all, f)
		}
	}
	return append(all, fault{name: "snappy: S2", want: unreadable, batch: with(newDraft(Snappy, "a"), func(d *draft) {
		// A record of 13 bytes: seven literal ones, and one copy from offset 0.
		d.compact = func([]byte) []byte {
			return []byte{27, 6 << 2, 26 * 2, 0, 0, 0, 1, 40, 'x', 1<<2 | 1, 1, 3<<2 | 1, 0, 6 << 2, 0, 0, 0, 0, 0, 0, 0}
		}
	}).bytes()})
}

// change1 adds to the first byte, which is the length of a record.
func change1(b []byte, n byte) []byte {
	b[0] += n
	return b
}

// flip changes a bit of a byte.
func flip(b []byte, at int) []byte {
	b[at] ^= 1
	return b
}

func TestValidateRejects(t *testing.T) {
	for _, f := range faults() {
		t.Run(f.name, func(t *testing.T) {
			l := Limits{MaxBytes: 4096, ProduceVersion: f.version}
			if f.version == 0 {
				l.ProduceVersion = 9
			}
			if got := validate(t, f.batch, l); !got.equal(f.want) {
				t.Errorf("got %v\nwant %v", got, f.want)
			}
		})
	}
}

// testdata/kafka-4.3.1.txt contains valid and invalid batches and the answers of Apache Kafka
// 4.3.1. The batches whose names begin with "java" are from its own producer. If our answer differs
// on purpose, its code follows after a "!".
func TestValidateAnswersAsKafka(t *testing.T) {
	file, err := os.Open("testdata/kafka-4.3.1.txt")
	testkit.Must(t, err)
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	n := 0
	for ; lines.Scan(); n++ {
		var name, data, own string
		var version int16
		var max, code, flags, records int
		if _, err := fmt.Sscan(lines.Text(), &name, &version, &max, &code, &own, &flags, &records, &data); err != nil {
			t.Fatalf("line %d: %v", n+1, err)
		}
		b, err := hex.DecodeString(strings.TrimPrefix(data, "-"))
		if err != nil {
			t.Fatalf("line %d: %v", n+1, err)
		}
		want := answer{whole: flags&1 != 0, start: flags&2 != 0}
		if code != 0 {
			want.code = kerr.TypedErrorForCode(int16(code))
		}
		switch own {
		case "!87":
			want = answer{code: kerr.InvalidRecord, start: true}
		case "!-1":
			want = answer{code: kerr.UnknownServerError, start: true}
		}
		for i := range records {
			want.records = append(want.records, int32(i))
		}
		if got := validate(t, b, Limits{MaxBytes: int32(max), ProduceVersion: version}); !got.equal(want) {
			t.Errorf("line %d, %s: got %v\nwant %v", n+1, name, got, want)
		}
	}
	if err := lines.Err(); err != nil || n < 100 {
		t.Fatalf("%d lines, %v", n, err)
	}
}

// A batch is limited by its decompressed size, however small it is when compressed.
func TestValidateRefusesBombs(t *testing.T) {
	const declared = 20 << 20
	value := make([]byte, declared)
	record := append([]byte{0, 0, 0, 1}, binary.AppendVarint(nil, declared)...)
	record = append(append(record, value...), 0)
	record = append(binary.AppendVarint(nil, int64(len(record))), record...)
	for name, test := range map[string]struct {
		codec Codec
		data  []byte
	}{ // LZ4 does not compress that well
		"gzip":               {Gzip, compress(Gzip, record)},
		"zstd":               {Zstd, compress(Zstd, record)},
		"zstd, large window": {Zstd, zstdStream(record, zstd.WithWindowSize(64<<20))},
	} {
		t.Run(name, func(t *testing.T) {
			if declared < maxDecompressed(len(test.data)) {
				t.Fatalf("%d bytes may yield %d", len(test.data), declared)
			}
			b := with(newDraft(test.codec, "x"), func(d *draft) { d.compact = func([]byte) []byte { return test.data } }).bytes()
			if got, want := validate(t, b, usual), (answer{code: kerr.MessageTooLarge}); !got.equal(want) {
				t.Errorf("got %v, want %v", got, want)
			}
			if err := Records(b, func(Record) bool { return true }); !errors.Is(err, errTooLarge) {
				t.Errorf("Records = %v, want %v", err, errTooLarge)
			}
		})
	}
	t.Run("snappy", func(t *testing.T) {
		// It claims to decompress to 1 GiB, which must not cause an allocation of that size.
		b := with(newDraft(Snappy, "x"), func(d *draft) {
			d.compact = func([]byte) []byte { return binary.AppendUvarint(nil, 1<<30) }
		}).bytes()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if got, want := validate(t, b, usual), (answer{code: kerr.UnknownServerError, start: true}); !got.equal(want) {
			t.Errorf("got %v, want %v", got, want)
		}
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 10<<20 {
			t.Errorf("%d bytes allocated", n)
		}
	})
}

func zstdStream(b []byte, options ...zstd.EOption) []byte {
	var out bytes.Buffer
	w, err := zstd.NewWriter(&out, options...)
	if err != nil {
		panic(err)
	}
	// Flush, so that the encoder does not know the size when it writes the header.
	if _, err := w.Write(b[:1]); err != nil {
		panic(err)
	}
	if err := w.Flush(); err != nil {
		panic(err)
	}
	if _, err := w.Write(b[1:]); err != nil {
		panic(err)
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return out.Bytes()
}

// Producers frame compressed data in more than one way.
func TestValidateFrames(t *testing.T) {
	for _, f := range frames() {
		t.Run(f.name, func(t *testing.T) {
			if got := validate(t, f.batch, usual); !got.equal(f.want) {
				t.Fatalf("got %v, want %v", got, f.want)
			}
			if f.want.code == nil {
				checkRecordsOf(t, f.batch, frameDraft().records)
				Stamp(f.batch, 500, 1, 2000)
				checkConsumed(t, f.batch, frameDraft().records, 500)
			}
		})
	}
}

func frameDraft() *draft {
	return newDraft(None, strings.Repeat("a", 3000), strings.Repeat("b", 100_000), "c")
}

func frames() (all []fault) {
	d := frameDraft()
	raw := d.raw()
	half := len(raw) / 2
	unreadable := answer{code: kerr.UnknownServerError, start: true}
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for _, test := range []struct {
		name   string
		codec  Codec
		data   []byte
		want   answer
		strict bool // Apache Kafka accepts it
	}{
		{name: "xerial", codec: Snappy, data: xerial(raw, 32<<10)},
		{name: "xerial, tiny blocks", codec: Snappy, data: xerial(raw, 7)},
		{name: "xerial, twice", codec: Snappy, data: join(xerial(raw[:half], 1000), xerial(raw[half:], 1000)), want: unreadable, strict: true},
		{name: "xerial, rest of a size", codec: Snappy, data: join(xerial(raw, 1000), []byte{0, 0, 0}), want: unreadable, strict: true},
		{name: "xerial, size of nothing", codec: Snappy, data: join(xerial(raw, 1000), []byte{0, 0, 0, 0}), want: unreadable},
		{name: "xerial, negative size", codec: Snappy, data: join(xerial(raw, 1000), []byte{0xff, 0xff, 0xff, 0xff}), want: unreadable},
		{name: "xerial, truncated", codec: Snappy, data: xerial(raw, 1000)[:half/100], want: unreadable},
		{name: "gzip, twice", codec: Gzip, data: join(compress(Gzip, raw[:half]), compress(Gzip, raw[half:]))},
		{name: "gzip, empty member", codec: Gzip, data: join(compress(Gzip, nil), compress(Gzip, raw))},
		{name: "gzip, garbage behind", codec: Gzip, data: join(compress(Gzip, raw), bytes.Repeat([]byte("garbage "), 10)), want: unreadable, strict: true},
		{name: "gzip, a byte behind", codec: Gzip, data: join(compress(Gzip, raw), []byte{0}), want: unreadable, strict: true},
		{name: "gzip, second truncated", codec: Gzip, data: join(compress(Gzip, raw), compress(Gzip, raw)[:40]), want: unreadable},
		{name: "gzip, checksum", codec: Gzip, data: with1(compress(Gzip, raw), func(b []byte) { b[len(b)-8] ^= 1 }), want: unreadable},
		{name: "zstd, twice", codec: Zstd, data: join(compress(Zstd, raw[:half]), compress(Zstd, raw[half:]))},
		{name: "zstd, empty frame", codec: Zstd, data: join(compress(Zstd, nil), compress(Zstd, raw))},
		{name: "zstd, skippable frame", codec: Zstd, data: join([]byte{0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3}, compress(Zstd, raw))},
		{name: "zstd, garbage behind", codec: Zstd, data: join(compress(Zstd, raw), []byte("garbage")), want: unreadable},
		{name: "zstd, checksum", codec: Zstd, data: with1(zstdStream(raw), func(b []byte) { b[len(b)-1] ^= 1 }), want: unreadable},
		{name: "zstd, window of 16 MiB", codec: Zstd, data: zstdStream(raw, zstd.WithWindowSize(16<<20))},
		{name: "zstd, window of 128 MiB", codec: Zstd, data: zstdStream(raw, zstd.WithWindowSize(128<<20))},
		{name: "zstd, window of 256 MiB", codec: Zstd, data: zstdStream(raw, zstd.WithWindowSize(256<<20)), want: unreadable},
		{name: "zstd, large window twice", codec: Zstd, data: join(zstdStream(raw[:half], zstd.WithWindowSize(64<<20)), zstdStream(raw[half:], zstd.WithWindowSize(64<<20)))},
		{name: "lz4, 64 KiB blocks", codec: LZ4, data: lz4Frame(raw, lz4.BlockSizeOption(lz4.Block64Kb))},
		{name: "lz4, 256 KiB blocks", codec: LZ4, data: lz4Frame(raw, lz4.BlockSizeOption(lz4.Block256Kb))},
		{name: "lz4, no checksum", codec: LZ4, data: lz4Frame(raw, lz4.ChecksumOption(false))},
		{name: "lz4, checksums of blocks", codec: LZ4, data: lz4Frame(raw, lz4.BlockSizeOption(lz4.Block64Kb), lz4.BlockChecksumOption(true))},
		{name: "lz4, wrong checksum of a block", codec: LZ4, data: with1(lz4Frame(raw, lz4.BlockChecksumOption(true), lz4.ChecksumOption(false)), func(b []byte) { b[len(b)-5] ^= 1 }), want: unreadable},
		{name: "lz4, wrong checksum", codec: LZ4, data: with1(lz4Frame(raw), func(b []byte) { b[len(b)-1] ^= 1 }), want: unreadable, strict: true},
		{name: "lz4, size of the content", codec: LZ4, data: lz4Frame(raw, lz4.SizeOption(uint64(len(raw))))},
		{name: "lz4, two frames", codec: LZ4, data: join(lz4Frame(raw), lz4Frame(raw)), want: unreadable, strict: true},
		{name: "lz4, a byte behind", codec: LZ4, data: join(lz4Frame(raw), []byte{0}), want: unreadable, strict: true},
		{name: "lz4, wrong checksum of the header", codec: LZ4, data: with1(lz4Frame(raw), func(b []byte) { b[6] ^= 1 }), want: unreadable},
		{name: "lz4, no end", codec: LZ4, data: lz4Frame(raw)[:len(lz4Frame(raw))-8], want: unreadable},
		{name: "lz4, dependent blocks", codec: LZ4, data: dependent(lz4Frame(raw)), want: unreadable},
	} {
		d.Attributes = int16(test.codec)
		d.compact = func([]byte) []byte { return test.data }
		f := fault{name: test.name, batch: d.bytes(), want: test.want}
		if test.strict {
			f.kafka = &answer{}
		}
		all = append(all, f)
	}
	return all
}

func with1(b []byte, f func([]byte)) []byte {
	if f != nil {
		f(b)
	}
	return b
}

// dependent sets the flag in an LZ4 header that blocks depend on each other.
func dependent(b []byte) []byte {
	b[4] &^= lz4Independent
	b[6] = byte(xxh32Of(b[4:6]) >> 8)
	return b
}

// Every batch that Validate accepts can be read, with the number of records and the offsets in its
// header.
func TestAcceptedIsReadable(t *testing.T) {
	rng := rand.New(rand.NewPCG(rand.Uint64(), 0))
	accepted := 0
	for range testkit.Scaled(t, "DIASPORA_BATCHES", 20_000) {
		b := hostile(rng)
		h, err := Validate(b, usual)
		if err != nil {
			continue
		}
		accepted++
		readable(t, b[:h.Size()], h)
	}
	if accepted == 0 {
		t.Error("no batch was accepted")
	}
}

// readable checks that all records of a batch can be read after it was stamped.
func readable(t *testing.T, b []byte, h Header) {
	t.Helper()
	Stamp(b, 1000, 3, 1_800_000_000_000)
	if !ChecksumOK(b) {
		t.Fatal("wrong checksum after Stamp")
	}
	n := int32(0)
	err := Records(b, func(r Record) bool {
		if r.OffsetDelta != n {
			t.Fatalf("record %d has offset delta %d", n, r.OffsetDelta)
		}
		n++
		return true
	})
	if err != nil || n != h.Count {
		t.Fatalf("Records: %d records, %v, want %d\n%x", n, err, h.Count, b)
	}
}
