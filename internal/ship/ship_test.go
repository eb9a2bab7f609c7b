package ship

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/spool"
)

// The tests of package diaspora send through a Logger what is sent here: order, held topics,
// quarantine, refused logins and outages are tested there.

// testShipper returns a Shipper that sends the spool in dir to a cluster, and the number of
// events that were acknowledged.
func testShipper(t *testing.T, c *kfake.Cluster, dir string) (*Shipper, *atomic.Int64) {
	t.Helper()
	sp, err := spool.Open(t.Context(), spool.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sp.Close() })
	acknowledged := new(atomic.Int64)
	conns := new(kafka.Connections)
	return New(Config{
		Spool:       sp,
		Connections: conns,
		Client: func(context.Context) (*kgo.Client, error) {
			return kgo.NewClient(kgo.SeedBrokers(c.ListenAddrs()...), kgo.WithHooks(conns), kgo.ManualFlushing(), kgo.ProducerLinger(0))
		},
		Record: func(r *kgo.Record, e *spool.Entry) {
			r.Topic, r.Key, r.Value = e.Topic, e.Key, e.Value
		},
		Explain:       func(topic string, err error) error { return fmt.Errorf("%s: %w", topic, err) },
		NeedsLogin:    kafka.LoginRefused,
		ClosePatience: time.Minute,
		DiskPatience:  time.Minute,
		Acknowledged:  func(n int) { acknowledged.Add(int64(n)) },
		Diagnostics:   slog.New(slog.DiscardHandler),
	}), acknowledged
}

func testCluster(t *testing.T) *kfake.Cluster {
	t.Helper()
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "beamline"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// put puts n events into the Shipper's spool.
func put(t *testing.T, s *Shipper, n int) {
	t.Helper()
	for range n {
		err := s.cfg.Spool.AppendAsync(t.Context(), spool.Entry{Topic: "beamline", ID: "id", Time: time.Now(), Value: []byte("x")}, func(error) {})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := s.cfg.Spool.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// runUntilSent runs the Shipper until the cluster has acknowledged n events.
func runUntilSent(t *testing.T, s *Shipper, acknowledged *atomic.Int64, n int) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	over := make(chan struct{})
	go func() { defer close(over); s.Run(ctx) }()
	if err := s.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	stop()
	<-over
	if got := acknowledged.Load(); got != int64(n) {
		t.Fatalf("%d events were acknowledged, want %d", got, n)
	}
}

// TestNoRampWithoutBacklog: what is logged while a new Shipper runs is no backlog, and what
// is logged after a small backlog is none either.
func TestNoRampWithoutBacklog(t *testing.T) {
	t.Parallel()
	c := testCluster(t)
	dir := filepath.Join(t.TempDir(), "spool")
	s, acknowledged := testShipper(t, c, dir)
	put(t, s, 9000)
	runUntilSent(t, s, acknowledged, 9000)
	if s.ramp != (rampUp{}) {
		t.Fatalf("%d events counted as a backlog", s.ramp.sent)
	}

	left, _ := testShipper(t, c, filepath.Join(dir, "left"))
	put(t, left, 10)
	left.cfg.Spool.Close()
	s, acknowledged = testShipper(t, c, filepath.Join(dir, "left"))
	if next := s.cfg.Spool.Stats().Next; s.ramp.end != next || next < 10 {
		t.Fatalf("the backlog ends at %d, want %d", s.ramp.end, next)
	}
	put(t, s, 3000)
	runUntilSent(t, s, acknowledged, 3010)
	if s.ramp != (rampUp{}) {
		t.Errorf("%d events counted as a backlog, want only the ten that had been left", s.ramp.sent)
	}
}

// TestStopped: Flush does not wait for a Shipper that has ended.
func TestStopped(t *testing.T) {
	t.Parallel()
	s, _ := testShipper(t, testCluster(t), filepath.Join(t.TempDir(), "spool"))
	put(t, s, 1)
	ctx, stop := context.WithCancel(t.Context())
	stop()
	s.Run(ctx)
	if err := s.Flush(t.Context()); err != ErrStopped {
		t.Errorf("Flush = %v, want ErrStopped", err)
	}
}
