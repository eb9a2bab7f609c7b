package ship

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/spool"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// The tests of package diaspora send through a Logger what is sent here: order, held topics,
// quarantine, refused logins and outages are tested there.

// testShipper returns a Shipper that sends the spool in dir to a cluster, and the number of
// events that were acknowledged.
func testShipper(t *testing.T, c *kfake.Cluster, dir string) (*Shipper, *atomic.Int64) {
	t.Helper()
	sp, err := spool.Open(t.Context(), spool.Options{Dir: dir})
	testkit.Must(t, err)
	t.Cleanup(func() { sp.Close() })
	acknowledged := new(atomic.Int64)
	conns := new(kafka.Connections)
	return New(Config{
		Spool:       sp,
		Connections: conns,
		Client: func(context.Context) (*kgo.Client, error) {
			return kgo.NewClient(append(ClientOpts(), kgo.SeedBrokers(c.ListenAddrs()...), kgo.WithHooks(conns))...)
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
	testkit.Must(t, err)
	t.Cleanup(c.Close)
	return c
}

// put puts n events into the Shipper's spool.
func put(t *testing.T, s *Shipper, n int) {
	t.Helper()
	for range n {
		err := s.cfg.Spool.AppendAsync(t.Context(), spool.Entry{Topic: "beamline", ID: "id", Time: time.Now(), Value: []byte("x")}, func(error) {})
		testkit.Must(t, err)
	}
	testkit.Must(t, s.cfg.Spool.Sync(t.Context()))
}

// runUntilSent runs the Shipper until the cluster has acknowledged n events.
func runUntilSent(t *testing.T, s *Shipper, acknowledged *atomic.Int64, n int) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	over := make(chan struct{})
	go func() { defer close(over); s.Run(ctx) }()
	testkit.Must(t, s.Flush(ctx))
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

// TestRoundSize: rounds grow on a link with a high latency, unless it is slow, and shrink on another.
func TestRoundSize(t *testing.T) {
	t.Parallel()
	s, _ := testShipper(t, testCluster(t), filepath.Join(t.TempDir(), "spool"))
	link := func(latency time.Duration, bytesPerSecond float64) {
		s.cfg.Connections.OnBrokerE2E(kgo.BrokerMetadata{}, int16(kmsg.SASLHandshake), kgo.BrokerE2E{ReadWait: latency})
		for range 10 {
			s.adapt(s.size, latency+time.Duration(float64(s.size)/bytesPerSecond*float64(time.Second)))
		}
	}
	for _, c := range []struct {
		latency        time.Duration
		bytesPerSecond float64
		least, most    int
	}{
		{time.Millisecond, 500e6, minRoundBytes, minRoundBytes},
		{100 * time.Millisecond, 100e6, maxRoundBytes, maxRoundBytes},
		{100 * time.Millisecond, 5e6, 6e6, 8e6},
		{100 * time.Millisecond, 100e3, minRoundBytes, minRoundBytes},
		{25 * time.Millisecond, 50e6, 12e6, 18e6},
		{time.Second, 10e3, minRoundBytes, minRoundBytes},
	} {
		link(c.latency, c.bytesPerSecond)
		if s.size < c.least || s.size > c.most {
			t.Errorf("with a latency of %v and %.0f bytes per second a round has %d bytes, want %d to %d", c.latency, c.bytesPerSecond, s.size, c.least, c.most)
		}
	}
	s.size = minRoundBytes
	s.adapt(minRoundBytes, time.Nanosecond)
	if s.size > 2*minRoundBytes {
		t.Errorf("one round made the size grow to %d bytes", s.size)
	}
	s.size = maxRoundBytes
	s.adapt(1000, time.Second)
	if s.size != maxRoundBytes {
		t.Error("a small round changed the size")
	}
}

// TestForgottenTopic: after a long time, the first event to a topic is sent alone again.
func TestForgottenTopic(t *testing.T) {
	t.Parallel()
	s, acknowledged := testShipper(t, testCluster(t), filepath.Join(t.TempDir(), "spool"))
	put(t, s, 10)
	runUntilSent(t, s, acknowledged, 10)
	records := make([]spool.Record, 10)
	for i := range records {
		records[i].Topic = "beamline"
	}
	if n, _ := s.fits(records); n != 10 {
		t.Errorf("%d of 10 events are sent together", n)
	}
	s.known["beamline"] = time.Now().Add(-2 * forgottenAfter)
	if n, _ := s.fits(records); n != 1 {
		t.Errorf("after a long time %d events are sent together, want 1", n)
	}
}

// TestLatestHold: of several held topics, the reason is that of the one whose reason is the latest. What was refused
// long ago must not hide it.
func TestLatestHold(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "spool")
	s, _ := testShipper(t, testCluster(t), dir)
	put(t, s, 1)
	held := func(topic string, err error) { s.hold(spool.Record{Entry: spool.Entry{Topic: topic}}, err, true) }
	for _, step := range []struct {
		topic string
		err   error
		want  string
	}{
		{"aether", kerr.TopicAuthorizationFailed, "aether: "},
		{"weather", ErrStuck, "weather: "},
		{"aether", kerr.TopicAuthorizationFailed, "weather: "}, // tried again, with the same result
		{"aether", ErrStuck, "aether: "},
	} {
		held(step.topic, step.err)
		if got := fmt.Sprint(s.Reason()); !strings.HasPrefix(got, step.want) {
			t.Errorf("after %v for %s, the reason is %q, want one for %q", step.err, step.topic, got, step.want)
		}
	}
	s.note(s.Reason())
	info, err := spool.Inspect(dir)
	testkit.Must(t, err)
	if want := "aether: " + ErrStuck.Error() + "; the events of another topic wait too"; info.Note != want {
		t.Errorf("the note is %q, want %q", info.Note, want)
	}
}

// TestNoteOfAnEarlierProcess: what an earlier process has noted stays until this one has reached the cluster. A process
// that ends before that knows no better.
func TestNoteOfAnEarlierProcess(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "spool")
	s, acknowledged := testShipper(t, testCluster(t), dir)
	put(t, s, 1)
	testkit.Must(t, s.cfg.Spool.Note("no broker"))
	note := func() string {
		info, err := spool.Inspect(dir)
		testkit.Must(t, err)
		return info.Note
	}
	s.note(nil)
	if got := note(); got != "no broker" {
		t.Errorf("before the cluster is reached, the note is %q, want that of the earlier process", got)
	}
	runUntilSent(t, s, acknowledged, 1)
	if got := note(); got != "" {
		t.Errorf("after all events were sent, the note is %q", got)
	}
}

// TestRoundsAreFull counts the rounds in which events of one size are sent. If more were read than fit into a
// round, every other round would have only a few events.
func TestRoundsAreFull(t *testing.T) {
	t.Parallel()
	for _, size := range []int{100, 500, 650, 1024, 1500, 20_000} {
		c := testCluster(t)
		s, acknowledged := testShipper(t, c, filepath.Join(t.TempDir(), "spool"))
		s.cfg.RecordOverhead = 124
		event := spool.Entry{Topic: "beamline", ID: "id-of-twenty-letters", Time: time.Now(), Value: make([]byte, size)}
		each := s.cfg.RecordOverhead + len(event.ID) + size
		n := 10 * minRoundBytes / each
		for range n {
			testkit.Must(t, s.cfg.Spool.AppendAsync(t.Context(), event, func(error) {}))
		}
		testkit.Must(t, s.cfg.Spool.Sync(t.Context()))
		rounds := 0
		record := s.cfg.Record
		var last *answers
		s.cfg.Record = func(r *kgo.Record, e *spool.Entry) {
			if a := r.Context.(*flight).answers; a != last {
				rounds, last = rounds+1, a
			}
			record(r, e)
		}
		runUntilSent(t, s, acknowledged, n)
		if rounds > 14 { // the first event, ten that are not quite full, the rest
			t.Errorf("%d events of %d B were sent in %d rounds, want about 11", n, size, rounds)
		}
	}
}
