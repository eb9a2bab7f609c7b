package diaspora

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
)

func TestJSON(t *testing.T) {
	t.Parallel()
	for _, try := range []struct {
		v    any
		want string
	}{
		{map[string]any{"b": 1, "a": "<x & y>"}, `{"a":"<x & y>","b":1}`},
		{nil, "null"}, {"ü\n", `"ü\n"`}, {json.RawMessage(`{"a": 1}`), `{"a":1}`}, {[]int{}, "[]"},
	} {
		if ev := JSON("weather", try.v); string(ev.Value) != try.want || ev.Topic != "weather" {
			t.Errorf("JSON(%v) = %+v, want %s", try.v, ev, try.want)
		}
	}
	for _, v := range []any{math.Inf(1), make(chan int), func() {}, map[bool]int{true: 1}, json.RawMessage("{")} {
		if err := checkEvent(&[]Event{JSON("weather", v)}[0], 1000); !errors.Is(err, ErrInvalid) {
			t.Errorf("JSON(%T) is logged with %v, want ErrInvalid", v, err)
		}
	}
}

func TestDecode(t *testing.T) {
	t.Parallel()
	var v struct{ A int8 }
	if err := (Record{Event: Event{Value: []byte(`{"a": 7}`)}}).Decode(&v); err != nil || v.A != 7 {
		t.Errorf("Decode = %v, %+v", err, v)
	}
	var at time.Time
	for value, into := range map[string]any{
		"": &v, "secret": &v, `{"a":`: &v, `{"a": 31415}`: &v, `{"a": "secret"}`: &v, `{} secret`: &v, `"secret 2026"`: &at, "null": nil,
	} {
		err := Record{Event: Event{Topic: "weather", Value: []byte(value)}, Partition: 3, Offset: 17}.Decode(into)
		var topic *TopicError
		if !errors.Is(err, ErrInvalid) || !errors.As(err, &topic) || topic.Op != "decode" || !strings.Contains(err.Error(), "partition 3 offset 17") {
			t.Errorf("Decode of %q = %v, want a TopicError with ErrInvalid and the place", value, err)
		} else if strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "31415") {
			t.Errorf("Decode of %q = %v, which shows the value", value, err)
		}
	}
}

// TestEventsComeBackAsTheyWere logs events whose details are easily lost: nil and empty values,
// repeated and empty headers, arbitrary bytes, and times in other time zones.
func TestEventsComeBackAsTheyWere(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(1, "weather"))
	l := openLogger(t, cfg)
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	events := []Event{
		{Key: nil, Value: nil},
		{Key: []byte{}, Value: []byte{}},
		{Key: every, Value: every, Headers: []Header{{"x", every}, {"x", []byte{}}, {"x", nil}, {"", nil}}},
		{Time: time.Unix(0, 1).In(time.FixedZone("", -3600))},
		{Time: time.Date(9999, 12, 31, 23, 59, 59, 999_999_999, time.UTC)},
		{ID: strings.Repeat("x", maxIDBytes)},
		{Value: make([]byte, defaultMaxEventBytes-systemHeaderBytes)},
	}
	for i := range events {
		events[i].Topic = "weather"
	}
	if err := l.Log(within(t), events...); err != nil {
		t.Fatal(err)
	}
	got := readAll(t, cfg, "weather")
	if len(got) != len(events) {
		t.Fatalf("%d events came back, want %d", len(got), len(events))
	}
	for i, want := range events {
		g := got[i]
		if (g.Key == nil) != (want.Key == nil) || (g.Value == nil) != (want.Value == nil) || string(g.Key) != string(want.Key) || string(g.Value) != string(want.Value) {
			t.Errorf("event %d: key or value is another", i)
		}
		if fmt.Sprintf("%#v", g.Headers) != fmt.Sprintf("%#v", want.Headers) {
			t.Errorf("event %d: headers %#v, want %#v", i, g.Headers, want.Headers)
		}
		if !want.Time.IsZero() && !g.Time.Equal(want.Time) || g.Time.Location() != time.UTC && !want.Time.IsZero() {
			t.Errorf("event %d: time %v, want %v", i, g.Time, want.Time)
		}
		if want.ID != "" && g.ID != want.ID || g.ID == "" {
			t.Errorf("event %d: ID %q, want %q", i, g.ID, want.ID)
		}
	}
}

// TestRecordsOfOthers reads records that were not written by a Logger.
func TestRecordsOfOthers(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(1, "weather"))
	client := plain(t, cfg)
	headers := []kgo.RecordHeader{{Key: "diaspora-time", Value: []byte("yesterday")}, {Key: "diaspora-key", Value: []byte("x")}, {Key: "Diaspora-ID", Value: []byte("y")}}
	if err := client.ProduceSync(context.Background(), &kgo.Record{Topic: "weather", Value: []byte("v"), Headers: headers, Timestamp: epoch}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	got := readAll(t, cfg, "weather")[0]
	if !got.Time.Equal(epoch) || !got.Stored.Equal(epoch) || got.ID != "" || len(got.Headers) != 2 {
		t.Errorf("consumed %+v, want the cluster's time, no ID and the other headers", got)
	}
}

func TestIDsAreUnique(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	seen := map[string]bool{}
	var wg sync.WaitGroup
	for range 4 {
		own := newIDs()
		for range 2 {
			wg.Go(func() {
				for range 2000 {
					buf := make([]byte, maxCounterBytes)
					id := own.prefix + string(buf[:own.put(buf)])
					mu.Lock()
					if seen[id] || len(own.prefix) != idPrefixBytes {
						t.Errorf("ID %q came twice, or is of another length", id)
					}
					seen[id] = true
					mu.Unlock()
				}
			})
		}
	}
	wg.Wait()
	last := newIDs()
	last.last.Store(math.MaxUint64 - 1)
	buf := make([]byte, maxCounterBytes)
	if n := last.put(buf); n != maxCounterBytes || strings.Trim(string(buf), idDigits) != "" {
		t.Errorf("the last ID ends with %q", buf[:n])
	}
}

func TestValidTopic(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		"weather": true, "A_1": true, "9": true, strings.Repeat("x", MaxTopicLength): true,
		"": false, "_weather": false, "a-b": false, "a.b": false, "a b": false, "ü": false, "a\n": false, "a\x00": false, strings.Repeat("x", MaxTopicLength+1): false,
	} {
		err := ValidTopic(name)
		var topic *TopicError
		if (err == nil) != want || err != nil && (!errors.Is(err, ErrInvalid) || !errors.As(err, &topic) || len(err.Error()) > 200) {
			t.Errorf("ValidTopic(%.20q) = %v, want valid: %v", name, err, want)
		}
	}
}
