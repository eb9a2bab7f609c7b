package diaspora

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// The benchmarks come in pairs that use the same kind of broker: one for this package, and one for
// the plain Kafka client as the floor to compare with.

func benchCluster(b *testing.B) Config {
	_, cfg := newCluster(b, kfake.SeedTopics(6, "bench"), kfake.DataDir(b.TempDir()))
	return cfg
}

// payloads are different texts that compress about as well as real events.
func payloads(size int) [][]byte {
	r := rand.New(rand.NewSource(1))
	all := make([][]byte, 4096)
	for i := range all {
		p := make([]byte, 0, size+32)
		for len(p) < size {
			p = fmt.Appendf(p, `{"t":%d,"v":%.3f} `, r.Intn(1e6), r.Float64())
		}
		all[i] = p[:size]
	}
	return all
}

// benchmark runs a benchmark with values of two sizes, and a broker of its own for each.
func benchmark(b *testing.B, run func(b *testing.B, cfg Config, next func() []byte)) {
	for _, size := range []int{100, 1024} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			values, i := payloads(size), 0
			b.SetBytes(int64(size))
			b.ReportAllocs()
			run(b, benchCluster(b), func() []byte { i++; return values[i%len(values)] })
		})
	}
}

func BenchmarkSend(b *testing.B) {
	benchmark(b, func(b *testing.B, cfg Config, next func() []byte) {
		l := openLogger(b, cfg)
		for b.Loop() {
			l.Send(Event{Topic: "bench", Value: next()}, func(_ Record, err error) {
				if err != nil {
					b.Error(err)
				}
			})
		}
		testkit.Must(b, l.Flush(context.Background()))
	})
}

func BenchmarkPlainProduce(b *testing.B) {
	benchmark(b, func(b *testing.B, cfg Config, next func() []byte) {
		client := plain(b, cfg)
		for b.Loop() {
			client.Produce(context.Background(), &kgo.Record{Topic: "bench", Value: next()}, func(_ *kgo.Record, err error) {
				if err != nil {
					b.Error(err)
				}
			})
		}
		testkit.Must(b, client.Flush(context.Background()))
	})
}

func BenchmarkLog(b *testing.B) {
	benchmark(b, func(b *testing.B, cfg Config, next func() []byte) {
		l := openLogger(b, cfg)
		for b.Loop() {
			testkit.Must(b, l.Log(context.Background(), Event{Topic: "bench", Value: next()}))
		}
	})
}

func BenchmarkPlainProduceSync(b *testing.B) {
	benchmark(b, func(b *testing.B, cfg Config, next func() []byte) {
		client := plain(b, cfg)
		for b.Loop() {
			testkit.Must(b, client.ProduceSync(context.Background(), &kgo.Record{Topic: "bench", Value: next()}).FirstErr())
		}
	})
}

// BenchmarkHandler logs through slog until everything is acknowledged. Its allocations include
// those of the broker; `go run ./bench -only handler` shows them separately.
func BenchmarkHandler(b *testing.B) {
	l := openLogger(b, benchCluster(b))
	benchmarkSlog(b, NewHandler(l, &HandlerOptions{Topic: "bench"}))
	testkit.Must(b, l.Flush(context.Background()))
}

func BenchmarkSlogJSONDiscarded(b *testing.B) {
	benchmarkSlog(b, slog.NewJSONHandler(io.Discard, nil))
}

func benchmarkSlog(b *testing.B, h slog.Handler) {
	log := slog.New(h)
	ctx := context.Background()
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		i++
		log.LogAttrs(ctx, slog.LevelInfo, "shot taken", slog.String("instrument", "L1"), slog.Int("shot", i),
			slog.Float64("energy_keV", 12.4), slog.Duration("took", 1500*time.Microsecond), slog.Bool("beam", true))
	}
}
