package diaspora

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/testkit"
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
	testkit.Must(t, l.Log(within(t), events...))
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
	testkit.Must(t, client.ProduceSync(context.Background(), &kgo.Record{Topic: "weather", Value: []byte("v"), Headers: headers, Timestamp: epoch}).FirstErr())
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

func TestHint(t *testing.T) {
	t.Parallel()
	hinted := &Error{Condition: ErrNotFound, Reason: "why", Hint: "do this"}
	for _, try := range []struct {
		err  error
		want string
	}{
		{nil, ""}, {errors.New("x"), ""}, {hinted, "do this"}, {&Error{Condition: ErrNotFound, Reason: "why"}, ""},
		{fmt.Errorf("a: %w", fmt.Errorf("b: %w", hinted)), "do this"},
		{&EventError{Failed: []int{1}, Total: 3, Err: &TopicError{"log", "weather", hinted}}, "do this"},
		{fmt.Errorf("%w, and more", hinted), ""}, // the hint is not at the end
	} {
		if got := Hint(try.err); got != try.want {
			t.Errorf("Hint(%v) = %q, want %q", try.err, got, try.want)
		}
	}
	if got := hinted.Error(); got != "not found: why; do this" {
		t.Errorf("the error is %q", got)
	}
}

func TestExplain(t *testing.T) {
	t.Parallel()
	for _, try := range []struct{ err, want error }{
		{kerr.TopicAuthorizationFailed, ErrPermission}, {kerr.GroupAuthorizationFailed, ErrPermission},
		{kerr.SaslAuthenticationFailed, ErrUnauthenticated}, {kerr.UnknownTopicOrPartition, ErrNotFound}, {kerr.UnknownTopicID, ErrNotFound},
		{kerr.TopicAlreadyExists, ErrConflict}, {kerr.MessageTooLarge, ErrInvalid}, {kerr.InvalidTopicException, ErrInvalid},
		{kerr.NotEnoughReplicas, ErrUnavailable}, {kerr.CoordinatorNotAvailable, ErrUnavailable}, {kerr.UnknownServerError, ErrUnavailable},
		{kgo.ErrRecordTimeout, ErrUnavailable}, {io.EOF, ErrUnavailable}, {&net.OpError{Op: "dial", Err: errors.New("refused")}, ErrUnavailable},
		{globus.ErrUnavailable, ErrUnavailable}, {globus.ErrLoginRequired, ErrUnauthenticated},
		{context.Canceled, context.Canceled}, {context.DeadlineExceeded, context.DeadlineExceeded}, {invalid("x"), ErrInvalid},
	} {
		got := explain(fmt.Errorf("inside: %w", try.err))
		if !errors.Is(got, try.want) || !errors.Is(got, try.err) {
			t.Errorf("explain(%v) = %v, want %v and the cause", try.err, got, try.want)
		}
		if again := explain(got); again != got {
			t.Errorf("explain of what was explained = %v, want the same", again)
		}
	}
	if explain(nil) != nil {
		t.Error("explain(nil) is an error")
	}
}

func TestAdviseOnlyOnce(t *testing.T) {
	t.Parallel()
	f := &Error{Condition: ErrUnauthenticated, Reason: "why"}
	advised := withHint(f, ErrUnauthenticated, "first")
	if got := Hint(withHint(advised, ErrUnauthenticated, "second")); got != "first" {
		t.Errorf("the hint is %q, want the first", got)
	}
	if f.Hint != "" {
		t.Error("the error itself was changed")
	}
	for _, err := range []error{withHint(f, ErrNotFound, "x"), withHint(f, ErrUnauthenticated, ""), withHint(io.EOF, ErrUnauthenticated, "x")} {
		if Hint(err) != "" {
			t.Errorf("%v has a hint", err)
		}
	}
}

func TestEventErrorInWords(t *testing.T) {
	t.Parallel()
	cause := errors.New("why")
	for want, e := range map[string]*EventError{
		"why": {Failed: []int{0}, Total: 1, Err: cause},
		"2 of 5 events failed, the first at index 3: why": {Failed: []int{3, 4}, Total: 5, Err: cause},
	} {
		if got := e.Error(); got != want || !errors.Is(e, cause) {
			t.Errorf("Error() = %q, want %q", got, want)
		}
	}
}

// TestClip fails when untrusted text is not shortened, or is cut within a character.
func TestClip(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", "short", strings.Repeat("x", 200), strings.Repeat("x", 201), strings.Repeat("ü€😀", 100), "x" + strings.Repeat("😀", 100)} {
		got := clip(s)
		if len(got) > 203 || !utf8.ValidString(got) || len(s) <= 200 && got != s {
			t.Errorf("clip of %d bytes = %q", len(s), got)
		}
	}
}
