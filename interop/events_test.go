package interop

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/inside"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// TestClaimedTopicWorks uses a topic the moment its claim is answered.
func TestClaimedTopicWorks(t *testing.T) {
	parallel(t)
	f := start(t, fabric.Config{})
	cfg := fabrictest.As(t, f, ada)
	for range 4 {
		topic := claim(t, cfg, 3)
		fabrictest.Log(t, fabrictest.OpenLogger(t, cfg), topic, "first")
		if got := values(fabrictest.ReadAll(t, cfg, topic)); got != "first" {
			t.Fatalf("%s has %q, want the event", topic, got)
		}
	}
}

// TestEventsKeepTheirShape sends what an event can be, and gets it back the same.
func TestEventsKeepTheirShape(t *testing.T) {
	parallel(t)
	f := start(t, fabric.Config{})
	cfg := fabrictest.As(t, f, ada)
	topic := claim(t, cfg, 1)
	logger := fabrictest.OpenLogger(t, cfg)
	long := time.Date(1999, 12, 31, 23, 59, 59, 999_000_000, time.UTC)
	events := []diaspora.Event{
		{Topic: topic, Value: []byte("plain")},
		{Topic: topic, Key: []byte("key"), Value: []byte{}, ID: "mine"},
		{Topic: topic, Value: bytes.Repeat([]byte{0, 255, '\n'}, 1000), Time: long},
		{Topic: topic, Value: []byte("x"), Headers: []diaspora.Header{{Key: "unit", Value: []byte("mA")}, {Key: "unit", Value: nil}}},
	}
	before := time.Now().Add(-time.Minute)
	testkit.Must(t, logger.Log(testkit.Within(t), events...))
	got := fabrictest.ReadAll(t, cfg, topic)
	if len(got) != len(events) {
		t.Fatalf("%d records, want %d", len(got), len(events))
	}
	for i, r := range got {
		want := events[i]
		if !bytes.Equal(r.Key, want.Key) || !bytes.Equal(r.Value, want.Value) || len(r.Headers) != len(want.Headers) || r.Offset != int64(i) {
			t.Errorf("record %d is %.200v, want %.200v", i, r.Event, want)
		}
		if r.ID == "" || want.ID != "" && r.ID != want.ID {
			t.Errorf("record %d has ID %q, want %q", i, r.ID, want.ID)
		}
		if !want.Time.IsZero() && !r.Time.Equal(want.Time) {
			t.Errorf("record %d is of %v, want %v", i, r.Time, want.Time)
		}
		if r.Stored.Before(before) {
			t.Errorf("record %d was stored at %v, want the time of arrival: retention would delete late events", i, r.Stored)
		}
	}
}

// TestOrderPerKey sends the events of many keys over several partitions.
func TestOrderPerKey(t *testing.T) {
	parallel(t)
	f := start(t, fabric.Config{})
	cfg := fabrictest.As(t, f, ada)
	topic := claim(t, cfg, 4)
	logger := fabrictest.OpenLogger(t, cfg)
	const keys, each = 20, 200
	var failed atomic.Pointer[error]
	for i := range each {
		for k := range keys {
			logger.Send(diaspora.Event{Topic: topic, Key: fmt.Append(nil, k), Value: fmt.Append(nil, i)}, func(_ diaspora.Record, err error) {
				if err != nil {
					failed.Store(&err)
				}
			})
		}
	}
	testkit.Must(t, logger.Close(testkit.Within(t)))
	if err := failed.Load(); err != nil {
		t.Fatal(*err)
	}
	next, partition := map[string]int{}, map[string]int32{}
	for _, r := range fabrictest.ReadAll(t, cfg, topic) {
		key := string(r.Key)
		if string(r.Value) != fmt.Sprint(next[key]) {
			t.Fatalf("key %s: %s, want %d", key, r.Value, next[key])
		}
		if p, ok := partition[key]; ok && p != r.Partition {
			t.Fatalf("key %s is in partitions %d and %d", key, p, r.Partition)
		}
		partition[key] = r.Partition
		next[key]++
	}
	for k := range keys {
		if n := next[fmt.Sprint(k)]; n != each {
			t.Errorf("key %d has %d events, want %d", k, n, each)
		}
	}
}

// TestLargeEvents sends the largest event that the fabric says it takes, and one
// that is larger.
func TestLargeEvents(t *testing.T) {
	parallel(t)
	f := start(t, fabric.Config{})
	cfg := fabrictest.As(t, f, ada)
	topic := claim(t, cfg, 1)
	discovery := f.Discovery()
	cfg.Discovery = &discovery
	logger := fabrictest.OpenLogger(t, cfg)
	const headers = 100 // room for the headers that every event has
	largest := make([]byte, discovery.MaxEventBytes-headers)
	rand.Read(largest) // nothing that compresses
	if err := logger.Log(testkit.Within(t), diaspora.Event{Topic: topic, Value: largest}); err != nil {
		t.Errorf("Log of %d bytes: %v", len(largest), err)
	}
	err := logger.Log(testkit.Within(t), diaspora.Event{Topic: topic, Value: make([]byte, discovery.MaxEventBytes)})
	wantError(t, "Log of more than there is room for", err, diaspora.ErrInvalid, topic)
	got := fabrictest.ReadAll(t, cfg, topic)
	if len(got) != 1 || !bytes.Equal(got[0].Value, largest) {
		t.Errorf("%d records, want the one event whole", len(got))
	}
}

// TestEventsSurviveRestarts logs while brokers die and come back. Nothing that
// was acknowledged is lost, and nothing changes its order.
func TestEventsSurviveRestarts(t *testing.T) {
	cfg := fabric.Config{Dir: t.TempDir()}
	f := start(t, cfg)
	me := fabrictest.As(t, f, ada)
	topic := claim(t, me, 1)
	logger := fabrictest.OpenLogger(t, me)

	bound := testkit.Within(t)
	ctx, stop := context.WithCancel(bound)
	defer stop()
	acknowledged := make(chan int, 1)
	go func() {
		n := 0
		for ctx.Err() == nil {
			// Not ctx: an event that was given up may be there, or not.
			if err := logger.Log(bound, diaspora.Event{Topic: topic, Value: fmt.Append(nil, n)}); err != nil {
				t.Errorf("Log of event %d: %v", n, err)
				break
			}
			n++
		}
		acknowledged <- n
	}()
	f = stopBroker(t, f, cfg)()
	me = fabrictest.As(t, f, ada)
	fabrictest.Log(t, fabrictest.OpenLogger(t, me), topic, "back") // it serves
	stop()
	n := <-acknowledged
	t.Logf("%d events were acknowledged meanwhile", n)

	next, seen := 0, map[string]bool{}
	for _, r := range fabrictest.ReadAll(t, me, topic) {
		switch {
		case seen[r.ID]: // a repeat, known by its ID
		case string(r.Value) == "back":
		case string(r.Value) != fmt.Sprint(next):
			t.Fatalf("offset %d is event %s, want %d", r.Offset, r.Value, next)
		default:
			next++
		}
		seen[r.ID] = true
	}
	if next != n {
		t.Errorf("%d events are there, and %d were acknowledged", next, n)
	}
	topics, err := fabrictest.Client(t, me).Topics(testkit.Within(t))
	if err != nil || len(topics.Topics) == 0 {
		t.Errorf("Topics() = %v, %v, want the claim", topics, err)
	}
}

func restartGateway(t *testing.T, f *fabric.Fabric, n int) {
	t.Helper()
	gateway := inside.Of(f).Gateways[n]
	err := gateway.Stop()
	if err == nil {
		_, err = gateway.Start()
	}
	testkit.Must(t, err)
}

// TestGatewaysRestart logs while each gateway goes away and comes back.
func TestGatewaysRestart(t *testing.T) {
	parallel(t)
	f := start(t, fabric.Config{})
	cfg := fabrictest.As(t, f, ada)
	topic := claim(t, cfg, 3)
	logger := fabrictest.OpenLogger(t, cfg)
	n := 0
	for round := range 2 * len(f.Brokers()) {
		logged := make(chan error, 1)
		var events []diaspora.Event
		for range 500 {
			events = append(events, diaspora.Event{Topic: topic, Key: fmt.Append(nil, n), Value: []byte("x")})
			n++
		}
		go func() { logged <- logger.Log(testkit.Within(t), events...) }()
		restartGateway(t, f, round%len(f.Brokers()))
		if err := <-logged; err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
	}
	seen := map[string]bool{}
	for _, r := range fabrictest.ReadAll(t, cfg, topic) {
		seen[string(r.Key)] = true
	}
	if len(seen) != n {
		t.Errorf("%d events are there, and %d were acknowledged", len(seen), n)
	}
}
