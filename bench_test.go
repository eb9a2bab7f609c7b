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
)

// The benchmarks come in pairs that use the same kind of broker: one for this package, and one for
// the plain Kafka client as the floor to compare with.

var benchSizes = []int{100, 1024}

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

func BenchmarkSend(b *testing.B) {
	for _, size := range benchSizes {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			l := openLogger(b, benchCluster(b))
			values := payloads(size)
			i := 0
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				i++
				l.Send(Event{Topic: "bench", Value: values[i%len(values)]}, func(_ Record, err error) {
					if err != nil {
						b.Error(err)
					}
				})
			}
			if err := l.Flush(context.Background()); err != nil {
				b.Fatal(err)
			}
		})
	}
}

func BenchmarkPlainProduce(b *testing.B) {
	for _, size := range benchSizes {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			client := plainClient(b, benchCluster(b))
			values := payloads(size)
			i := 0
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				i++
				client.Produce(context.Background(), &kgo.Record{Topic: "bench", Value: values[i%len(values)]}, func(_ *kgo.Record, err error) {
					if err != nil {
						b.Error(err)
					}
				})
			}
			if err := client.Flush(context.Background()); err != nil {
				b.Fatal(err)
			}
		})
	}
}

func BenchmarkLog(b *testing.B) {
	for _, size := range benchSizes {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			l := openLogger(b, benchCluster(b))
			values := payloads(size)
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				i++
				if err := l.Log(context.Background(), Event{Topic: "bench", Value: values[i%len(values)]}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkPlainProduceSync(b *testing.B) {
	for _, size := range benchSizes {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			client := plainClient(b, benchCluster(b))
			values := payloads(size)
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				i++
				if err := client.ProduceSync(context.Background(), &kgo.Record{Topic: "bench", Value: values[i%len(values)]}).FirstErr(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkHandler logs through slog until everything is acknowledged. Its allocations include
// those of the broker; `go run ./bench -only handler` shows them separately.
func BenchmarkHandler(b *testing.B) {
	l := openLogger(b, benchCluster(b))
	benchmarkSlog(b, NewHandler(l, &HandlerOptions{Topic: "bench"}))
	if err := l.Flush(context.Background()); err != nil {
		b.Fatal(err)
	}
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

func plainClient(b *testing.B, cfg Config) *kgo.Client {
	client, err := kgo.NewClient(kgo.SeedBrokers(cfg.Brokers...))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(client.Close)
	return client
}
