//go:build kafka

package interop

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
)

// BenchmarkClaim measures claims in a cluster that has a thousand claimed topics,
// from the request to the answer, which waits until the topic works everywhere.
func BenchmarkClaim(b *testing.B) {
	f, err := fabric.Start(b.Context(), fabric.Config{KafkaFile: clusterFile(b)})
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	var clients []*diaspora.Client
	for _, username := range []string{ada, grace} {
		cfg, err := f.As(b.Context(), username)
		if err != nil {
			b.Fatal(err)
		}
		c, err := diaspora.NewClient(cfg)
		if err != nil {
			b.Fatal(err)
		}
		clients = append(clients, c)
	}
	claim := func(c *diaspora.Client, name string) error {
		_, err := c.Claim(b.Context(), diaspora.ClaimRequest{Name: name})
		return err
	}
	var group errgroup.Group
	group.SetLimit(4)
	for i := range 1000 {
		group.Go(func() error { return claim(clients[i%2], fmt.Sprintf("bench_%03d", i)) })
	}
	if err := group.Wait(); err != nil {
		b.Fatal(err)
	}
	var took []time.Duration
	for b.Loop() {
		name := "bench_one_more"
		began := time.Now()
		if err := claim(clients[0], name); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(began))
		b.StopTimer()
		if err := clients[0].Release(b.Context(), name); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	slices.Sort(took)
	at := func(p int) float64 { return float64(took[len(took)*p/100].Milliseconds()) }
	b.ReportMetric(at(50), "p50-ms")
	b.ReportMetric(at(99), "p99-ms")
}
