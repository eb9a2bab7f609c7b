package diaspora

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
)

// withSpool gives a configuration a spool.
func withSpool(t testing.TB, cfg Config) Config {
	t.Helper()
	cfg.SpoolDir = filepath.Join(t.TempDir(), "spool")
	return cfg
}

func TestSpooledLogThenConsume(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(3, "beamline"))
	l := openLogger(t, withSpool(t, cfg))
	var sent Record
	l.Send(Event{Topic: "beamline", Key: []byte("k"), Value: []byte("a")}, func(r Record, err error) {
		if err != nil {
			t.Error(err)
		}
		sent = r
	})
	if err := l.Log(within(t), Event{Topic: "beamline", Key: []byte("k"), Value: []byte("b")}, Event{Topic: "beamline", Key: []byte("k"), Value: []byte("c")}); err != nil {
		t.Fatal(err)
	}
	if err := l.Flush(within(t)); err != nil {
		t.Fatal(err)
	}
	got := readAll(t, cfg, "beamline")
	if values(got) != "[a b c]" {
		t.Fatalf("the topic has %s, want [a b c]", values(got))
	}
	if sent.ID == "" || got[0].ID != sent.ID || !got[0].Time.Equal(sent.Time) || sent.Partition != -1 || sent.Offset != -1 {
		t.Errorf("Send told %+v, the cluster has %+v", sent, got[0])
	}
	if s := l.Stats(); s.Acknowledged != 3 || s.Spool.Events != 0 || s.Spool.Why != nil {
		t.Errorf("Stats() = %+v", s)
	}
}

// TestSpooledWhileTheBrokerIsAway fails when opening, Log or Close need a cluster.
func TestSpooledWhileTheBrokerIsAway(t *testing.T) {
	t.Parallel()
	c, cfg := newCluster(t, kfake.SeedTopics(1, "beamline"))
	addr := c.ListenAddrs()[0]
	c.Close()
	cfg = withSpool(t, cfg)
	l := openLogger(t, cfg)
	for i := range 10 {
		if err := l.Log(within(t), Event{Topic: "beamline", Key: []byte("k"), Value: fmt.Append(nil, i)}); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	eventually(t, "the reason", func() bool { return errors.Is(l.Stats().Spool.Why, ErrUnavailable) })
	cancel()
	if err := l.Close(ctx); err != nil {
		t.Fatalf("Close = %v, want nil, as nothing is lost", err)
	}
	if s := l.Stats().Spool; s.Events != 10 || s.Oldest.IsZero() || s.Bytes == 0 || !errors.Is(s.Why, ErrUnavailable) {
		t.Errorf("Stats().Spool = %+v, want 10 events and why", s)
	}
	_ = addr
	_, again := newCluster(t, kfake.SeedTopics(1, "beamline"))
	again.SpoolDir = cfg.SpoolDir
	l = openLogger(t, again)
	if err := l.Close(within(t)); err != nil {
		t.Fatal(err)
	}
	if got := values(readAll(t, again, "beamline")); got != "[0 1 2 3 4 5 6 7 8 9]" {
		t.Errorf("the topic has %s", got)
	}
}
