package batch

import (
	"encoding/binary"
	"math/rand/v2"
	"strings"

	"github.com/pierrec/lz4/v4"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// oddInt returns a number that is likely to break something where another one belongs.
func oddInt(rng *rand.Rand) int64 {
	switch rng.IntN(6) {
	case 0:
		return int64(rng.IntN(5)) - 2
	case 1:
		return int64(1)<<rng.IntN(64) - int64(rng.IntN(2))
	case 2:
		return -(int64(1) << rng.IntN(64))
	case 3:
		return int64(rng.IntN(300))
	case 4:
		return 1_000_000
	}
	return int64(rng.Uint64())
}

// hostile returns a batch with few or no faults.
func hostile(rng *rand.Rand) []byte {
	codec := codecs[rng.IntN(len(codecs))]
	var values []string
	for range 1 + rng.IntN(4) {
		values = append(values, strings.Repeat(string(rune('a'+rng.IntN(26))), rng.IntN(200)*rng.IntN(3)))
	}
	d := newDraft(codec, values...)
	switch rng.IntN(8) {
	case 0:
		d.compact = func(b []byte) []byte { return b }
	case 1:
		if codec == LZ4 {
			d.compact = func(b []byte) []byte {
				return lz4Frame(b, lz4.ChecksumOption(rng.IntN(2) == 0), lz4.BlockChecksumOption(rng.IntN(2) == 0), lz4.BlockSizeOption([]lz4.BlockSize{lz4.Block64Kb, lz4.Block4Mb, lz4.Block256Kb}[rng.IntN(3)]), lz4.SizeOption(uint64(rng.IntN(2)*len(b))))
			}
		}
		if codec == Snappy {
			d.compact = func(b []byte) []byte { return xerial(b, 1+rng.IntN(100)) }
		}
	case 2:
		if codec == Gzip || codec == Zstd || codec == Snappy {
			d.compact = func(b []byte) []byte {
				k := rng.IntN(len(b) + 1)
				if codec == Snappy {
					return append(xerial(b[:k], 20), xerial(b[k:], 10)...)
				}
				return append(compress(codec, b[:k]), compress(codec, b[k:])...)
			}
		}
	}
	if rng.IntN(4) == 0 {
		d.ProducerID, d.ProducerEpoch, d.FirstSequence = int64(rng.IntN(10)), 0, int32(rng.IntN(3))
	}
	for i := range d.records {
		r := &d.records[i]
		switch rng.IntN(8) {
		case 0:
			r.Key = nil
		case 1:
			r.Value = nil
		case 2:
			r.Headers = append(r.Headers, kmsg.Header{Key: "h", Value: []byte("v")}, kmsg.Header{Key: "", Value: nil})
		}
	}
	// faults in the header
	for range rng.IntN(3) * rng.IntN(2) {
		switch rng.IntN(14) {
		case 0:
			d.FirstOffset = oddInt(rng)
		case 1:
			d.PartitionLeaderEpoch = int32(oddInt(rng))
		case 2:
			d.Magic = int8(rng.IntN(5) - 1)
		case 3:
			d.Attributes ^= 1 << rng.IntN(16)
		case 4:
			d.Attributes = d.Attributes&^7 | int16(rng.IntN(8))
		case 5:
			d.LastOffsetDelta = int32(oddInt(rng))
		case 6:
			d.FirstTimestamp = oddInt(rng)
		case 7:
			d.MaxTimestamp = oddInt(rng)
		case 8:
			d.ProducerID = oddInt(rng)
		case 9:
			d.ProducerEpoch = int16(oddInt(rng))
		case 10:
			d.FirstSequence = int32(oddInt(rng))
		case 11:
			d.NumRecords = int32(oddInt(rng))
		case 12:
			d.NumRecords = int32(oddInt(rng))
			d.LastOffsetDelta = d.NumRecords - 1
		case 13:
			d.Attributes |= 8
		}
	}
	d.body = spoil(rng, d)
	if d.body == nil {
		d.body = []byte{}
	}
	pack := d.compact
	d.compact = func(b []byte) []byte {
		c := pack(b)
		switch rng.IntN(16) {
		case 0:
			if len(c) > 0 {
				c[rng.IntN(len(c))] ^= 1 << rng.IntN(8)
			}
		case 1:
			c = c[:rng.IntN(len(c)+1)]
		case 2:
			c = append(c, make([]byte, rng.IntN(40))...)
		case 3:
			c = append(c, compress(codec, nil)...)
		case 4:
			c = append(c, compress(codec, []byte("x"))...)
		}
		return c
	}
	b := d.bytes()
	// faults of the whole batch
	for range rng.IntN(2) * rng.IntN(2) {
		switch rng.IntN(7) {
		case 0:
			b = b[:rng.IntN(len(b)+1)]
		case 1:
			b = append(b, newDraft(None, "x").bytes()...)
		case 2:
			b = append(b, make([]byte, rng.IntN(80))...)
		case 3:
			b[rng.IntN(min(len(b), 61))] ^= 1 << rng.IntN(8)
		case 4:
			binary.BigEndian.PutUint32(b[lengthAt:], uint32(oddInt(rng)))
		case 5:
			k := rng.IntN(len(b))
			b = b[:k]
			if len(b) > 12 {
				binary.BigEndian.PutUint32(b[lengthAt:], uint32(len(b)-12))
			}
			if len(b) > 21 {
				sum(b)
			}
			return b
		case 6:
			if len(b) > 61 {
				sum(b)
				k := rng.IntN(len(b) - 21)
				b[21+k] ^= 1 << rng.IntN(8)
				sum(b)
			}
		}
	}
	return b
}

// hostileRecords returns records as they are in a batch, with few or no faults.
func hostileRecords(rng *rand.Rand) []byte {
	var values []string
	for range 1 + rng.IntN(4) {
		values = append(values, strings.Repeat("v", rng.IntN(200)*rng.IntN(3)))
	}
	return spoil(rng, newDraft(None, values...))
}

// spoil returns the records of a draft with few or no faults.
func spoil(rng *rand.Rand, d *draft) []byte {
	raw := d.raw()
	for range rng.IntN(3) * rng.IntN(2) {
		switch rng.IntN(10) {
		case 0:
			if len(raw) > 0 {
				raw[rng.IntN(len(raw))] ^= 1 << rng.IntN(8)
			}
		case 1:
			raw = raw[:rng.IntN(len(raw)+1)]
		case 2:
			k := rng.IntN(len(raw) + 1)
			raw = append(raw[:k:k], append([]byte{byte(rng.Uint32())}, raw[k:]...)...)
		case 3:
			raw = append(raw, make([]byte, rng.IntN(10))...)
		case 4:
			if len(raw) > 0 {
				raw[rng.IntN(len(raw))] = byte(rng.Uint32())
			}
		case 5: // a structured fault
			raw = nil
			odd := rng.IntN(len(d.records))
			for i, r := range d.records {
				raw = append(raw, oddRecord(rng, r, i == odd)...)
			}
		case 6:
			if k := rng.IntN(len(raw) + 1); k < len(raw) {
				raw = append(raw[:k:k], raw[k+1:]...)
			}
		case 7:
			d.records[rng.IntN(len(d.records))].OffsetDelta = int32(oddInt(rng))
			raw = d.raw()
		case 8, 9:
			k := rng.IntN(len(raw) + 1)
			raw = append(raw[:k:k], append(binary.AppendVarint(nil, oddInt(rng)), raw[k:]...)...)
		}
	}
	return raw
}

func oddRecord(rng *rand.Rand, r kmsg.Record, odd bool) []byte {
	which := -1
	if odd {
		which = rng.IntN(11)
	}
	pick := func(i int, v int64) int64 {
		if i == which {
			return oddInt(rng)
		}
		return v
	}
	num := func(i int, v int64) []byte {
		b := binary.AppendVarint(nil, pick(i, v))
		if i == which && rng.IntN(3) == 0 { // overlong
			b[len(b)-1] |= 0x80
			for range rng.IntN(10) {
				b = append(b, 0x80)
			}
			b = append(b, byte(rng.IntN(256)))
		}
		return b
	}
	size := func(b []byte) int64 {
		if b == nil {
			return -1
		}
		return int64(len(b))
	}
	body := []byte{byte(pick(0, 0))}
	body = append(body, num(1, r.TimestampDelta64)...)
	body = append(body, num(2, int64(r.OffsetDelta))...)
	body = append(append(body, num(3, size(r.Key))...), r.Key...)
	body = append(append(body, num(4, size(r.Value))...), r.Value...)
	body = append(body, num(5, int64(len(r.Headers)))...)
	for _, h := range r.Headers {
		body = append(append(body, num(6, int64(len(h.Key)))...), h.Key...)
		body = append(append(body, num(7, size(h.Value))...), h.Value...)
	}
	return append(num(8, int64(len(body))), body...)
}
