package gateway

import (
	"net"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// clients are two clients of the same broker: one through the gateway, and one directly over TCP,
// which is the baseline.
func clients(b *testing.B, run func(b *testing.B, opts []kgo.Opt)) {
	b.Run("gateway", func(b *testing.B) {
		f := start(b)
		f.claim(b, "weather", ada)
		f.tokens.issue("ada-token", ada, time.Hour)
		run(b, f.opts("ada-token"))
	})
	b.Run("direct", func(b *testing.B) {
		var address string
		cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.DataDir(b.TempDir()), kfake.ListenFn(func(string, string) (net.Listener, error) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err == nil {
				address = ln.Addr().String()
			}
			return ln, err
		}))
		testkit.Must(b, err)
		b.Cleanup(cluster.Close)
		opts := []kgo.Opt{kgo.SeedBrokers(address)}
		client, err := kgo.NewClient(opts...)
		testkit.Must(b, err)
		defer client.Close()
		if _, err := kadm.NewClient(client).CreateTopic(b.Context(), 1, 1, nil, "weather"); err != nil {
			b.Fatal(err)
		}
		run(b, opts)
	})
}

func newClient(b *testing.B, opts ...kgo.Opt) *kgo.Client {
	b.Helper()
	client, err := kgo.NewClient(opts...)
	testkit.Must(b, err)
	b.Cleanup(client.Close)
	return client
}

const benchRecordBytes = 1 << 10

func produce(b *testing.B, opts []kgo.Opt, n int) {
	client := newClient(b, append(opts, kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.MaxBufferedRecords(50_000))...)
	value := make([]byte, benchRecordBytes)
	for range n {
		client.Produce(b.Context(), &kgo.Record{Topic: "weather", Value: value}, func(_ *kgo.Record, err error) {
			if err != nil {
				b.Error(err)
			}
		})
	}
	testkit.Must(b, client.Flush(b.Context()))
}

func BenchmarkProduce(b *testing.B) {
	clients(b, func(b *testing.B, opts []kgo.Opt) {
		b.SetBytes(benchRecordBytes)
		b.ResetTimer()
		produce(b, opts, b.N)
	})
}

func BenchmarkProduceSync(b *testing.B) {
	clients(b, func(b *testing.B, opts []kgo.Opt) {
		client := newClient(b, append(opts, kgo.ProducerLinger(0))...)
		value := make([]byte, 100)
		testkit.Must(b, client.ProduceSync(b.Context(), &kgo.Record{Topic: "weather", Value: value}).FirstErr())
		for b.Loop() {
			testkit.Must(b, client.ProduceSync(b.Context(), &kgo.Record{Topic: "weather", Value: value}).FirstErr())
		}
	})
}

func BenchmarkConsume(b *testing.B) {
	clients(b, func(b *testing.B, opts []kgo.Opt) {
		produce(b, opts, b.N)
		client := newClient(b, append(opts, kgo.ConsumeTopics("weather"))...)
		b.SetBytes(benchRecordBytes)
		b.ResetTimer()
		for n := 0; n < b.N; {
			fetches := client.PollFetches(b.Context())
			testkit.Must(b, fetches.Err())
			n += fetches.NumRecords()
		}
	})
}

func BenchmarkLogin(b *testing.B) {
	f := start(b)
	f.tokens.issue("ada-token", ada, time.Hour)
	for b.Loop() {
		f.login(b, "ada-token").Close()
	}
}
