package batch

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// load returns a batch of n records with values of size bytes each. The values are JSON, like many
// real events.
func load(codec Codec, n, size int) []byte {
	rng := rand.New(rand.NewPCG(1, 2))
	values := make([]string, n)
	for i := range values {
		var v strings.Builder
		for v.Len() < size {
			fmt.Fprintf(&v, `{"time":"2026-11-28T06:%02d:%02d.%06dZ","run":%d,"level":"info","host":"node-%03d","event":"transfer.progress","bytes":%d}`,
				rng.IntN(60), rng.IntN(60), rng.IntN(1e6), 4711, rng.IntN(200), rng.Uint32())
		}
		values[i] = v.String()[:size]
	}
	return newDraft(codec, values...).bytes()
}

func BenchmarkValidate(b *testing.B) {
	for _, size := range []int{100, 1000} {
		plain := load(None, 1<<20/size, size)
		for _, codec := range codecs {
			batch := load(codec, 1<<20/size, size)
			b.Run(fmt.Sprintf("%v/%d", codec, size), func(b *testing.B) {
				b.SetBytes(int64(len(plain)))
				b.ReportAllocs()
				for b.Loop() {
					if _, err := Validate(batch, Limits{MaxBytes: 2 << 20, ProduceVersion: 9}); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(len(plain))/float64(len(batch)), "ratio")
			})
		}
	}
}

func BenchmarkValidateOne(b *testing.B) {
	for _, codec := range codecs {
		batch := load(codec, 1, 100)
		b.Run(codec.String(), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Validate(batch, usual); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkRecords(b *testing.B) {
	for _, codec := range codecs {
		batch := load(codec, 1000, 100)
		b.Run(codec.String(), func(b *testing.B) {
			b.SetBytes(int64(len(load(None, 1000, 100))))
			b.ReportAllocs()
			for b.Loop() {
				n := 0
				if err := Records(batch, func(Record) bool { n++; return true }); err != nil || n != 1000 {
					b.Fatal(n, err)
				}
			}
		})
	}
}

func BenchmarkStamp(b *testing.B) {
	batch := load(None, 100, 1000)
	b.SetBytes(int64(len(batch)))
	b.ReportAllocs()
	for b.Loop() {
		Stamp(batch, 1, 2, 3)
	}
}

func BenchmarkParseHeader(b *testing.B) {
	batch := load(None, 1, 100)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseHeader(batch); err != nil {
			b.Fatal(err)
		}
	}
}
