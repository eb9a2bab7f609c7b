package diaspora

import (
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
)

func TestLogThenConsume(t *testing.T) {
	_, cfg := newCluster(t, kfake.SeedTopics(3, "beamline"))
	l := openLogger(t, cfg)
	at := time.Date(2026, 11, 23, 17, 4, 5, 678_000_000, time.UTC)
	want := Event{Topic: "beamline", Key: []byte("k"), Value: []byte("v"), Headers: []Header{{"unit", []byte("mA")}}, Time: at, ID: "mine"}
	if err := l.Log(within(t), want); err != nil {
		t.Fatalf("Log() = %v, want nil", err)
	}
	got := readAll(t, cfg, "beamline")
	if len(got) != 1 {
		t.Fatalf("consumed %d records, want 1", len(got))
	}
	if g, w := fmt.Sprintf("%+v", got[0].Event), fmt.Sprintf("%+v", want); g != w {
		t.Errorf("consumed %s, want %s", g, w)
	}
}

func TestSend(t *testing.T) {
	_, cfg := newCluster(t, kfake.SeedTopics(1, "beamline"))
	l := openLogger(t, cfg)
	const n = 1000
	offsets := make(chan int64, n)
	for i := range n {
		l.Send(Event{Topic: "beamline", Value: fmt.Appendf(nil, "%d", i)}, func(r Record, err error) {
			if err != nil {
				t.Error(err)
			}
			offsets <- r.Offset
		})
	}
	if err := l.Close(within(t)); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if got := <-offsets; got != int64(i) {
			t.Fatalf("callback %d has offset %d, want %d", i, got, i)
		}
	}
	for i, r := range readAll(t, cfg, "beamline") {
		if string(r.Value) != fmt.Sprint(i) {
			t.Fatalf("record %d has value %q", i, r.Value)
		}
	}
}

// TestLogDoesNotLinger fails when Log waits for others to share its request with.
func TestLogDoesNotLinger(t *testing.T) {
	_, cfg := newCluster(t, kfake.SeedTopics(1, "weather"))
	cfg.Linger = time.Minute
	l := openLogger(t, cfg)
	sent := make(chan error, 1)
	l.Send(Event{Topic: "weather", Value: []byte("first")}, func(Record, error) {})
	if err := l.Flush(within(t)); err != nil {
		t.Fatal(err)
	}
	l.Send(Event{Topic: "weather", Value: []byte("lingers")}, func(_ Record, err error) { sent <- err })
	if err := l.Log(within(t), Event{Topic: "weather", Value: []byte("does not")}); err != nil {
		t.Errorf("Log beside an event that lingers = %v", err)
	}
	if err := <-sent; err != nil {
		t.Errorf("the event before it: %v", err)
	}
}
