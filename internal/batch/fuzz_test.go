package batch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/pierrec/lz4/v4"
)

func seedFuzz(f *testing.F) {
	for _, codec := range codecs {
		f.Add(newDraft(codec, "a", "b").bytes())
		f.Add(load(codec, 20, 100))
	}
	for _, fault := range append(faults(), frames()...) {
		if len(fault.batch) < 4096 { // larger inputs slow the fuzzer down
			f.Add(fault.batch)
		}
	}
}

// FuzzValidate looks for batches that are accepted although they cannot be read. It corrects the
// checksum, because otherwise the fuzzer would not get past it.
func FuzzValidate(f *testing.F) {
	seedFuzz(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= HeaderBytes {
			if n := int64(binary.BigEndian.Uint32(b[lengthAt:])) + overhead; n >= HeaderBytes && n <= int64(len(b)) {
				sum(b[:n])
			}
		}
		h, err := Validate(b, usual)
		if err == nil {
			readable(t, b[:h.Size()], h)
			return
		}
		var e *Error
		if !errors.As(err, &e) || e.Code == nil || e.Reason == "" {
			t.Fatalf("Validate = %#v", err)
		}
	})
}

// FuzzRecords reads batches as they may be on disk, which may be damaged.
func FuzzRecords(f *testing.F) {
	seedFuzz(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHeader(b)
		if err == nil && h.Size() < len(b) {
			b = b[:h.Size()]
		}
		found := int32(0)
		failed := Records(b, func(Record) bool { found++; return true })
		if err != nil && failed == nil || found > max(0, h.Count) {
			t.Fatalf("%d records, %v, header %+v, %v", found, failed, h, err)
		}
		if _, _, ok, _ := FirstAt(b, 0, 0); ok && !h.LogAppendTime() && found == 0 {
			t.Fatal("FirstAt found a record where there is none")
		}
		ChecksumOK(b)
	})
}

// FuzzPieces is TestPieces for arbitrary records.
func FuzzPieces(f *testing.F) {
	for _, fault := range faults() {
		if len(fault.batch) > HeaderBytes {
			f.Add(fault.batch[HeaderBytes:], uint8(3), uint64(1))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, n uint8, seed uint64) {
		checkPieces(t, data, int32(n), rand.New(rand.NewPCG(seed, 0)))
	})
}

// FuzzCodecs compresses arbitrary data and requires it back, with every kind of framing.
func FuzzCodecs(f *testing.F) {
	f.Add([]byte("a"))
	f.Add(bytes.Repeat([]byte("some words and "), 100))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, test := range []struct {
			codec      Codec
			compressed []byte
		}{
			{Gzip, compress(Gzip, data)},
			{Snappy, compress(Snappy, data)},
			{Snappy, xerial(data, 100)},
			{LZ4, lz4Frame(data, lz4.BlockSizeOption(lz4.Block64Kb))},
			{Zstd, compress(Zstd, data)},
		} {
			var got []byte
			s, err := openSource(test.codec, test.compressed, 1<<30)
			if err != nil {
				t.Fatalf("%v: %v", test.codec, err)
			}
			for {
				b, err := s.next()
				if err != nil {
					break
				}
				got = append(got, b...)
			}
			closeSource(test.codec, s)
			if !bytes.Equal(got, data) {
				t.Fatalf("%v: got %d bytes, want %d", test.codec, len(got), len(data))
			}
		}
	})
}
