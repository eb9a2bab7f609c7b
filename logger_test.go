package diaspora

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/bulk"
	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

func TestLogThenConsume(t *testing.T) {
	t.Parallel()
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
	t.Parallel()
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
	testkit.Must(t, l.Close(within(t)))
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
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(1, "weather"))
	cfg.Linger = time.Minute
	l := openLogger(t, cfg)
	sent := make(chan error, 1)
	l.Send(Event{Topic: "weather", Value: []byte("first")}, func(Record, error) {})
	testkit.Must(t, l.Flush(within(t)))
	l.Send(Event{Topic: "weather", Value: []byte("lingers")}, func(_ Record, err error) { sent <- err })
	if err := l.Log(within(t), Event{Topic: "weather", Value: []byte("does not")}); err != nil {
		t.Errorf("Log beside an event that lingers = %v", err)
	}
	if err := <-sent; err != nil {
		t.Errorf("the event before it: %v", err)
	}
}

func TestLogSeveral(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(1, "beamline", "weather"))
	l := openLogger(t, cfg)
	if err := l.Log(within(t)); err != nil {
		t.Errorf("Log of no events = %v, want nil", err)
	}
	err := l.Log(within(t),
		Event{Topic: "beamline", Value: []byte("a")},
		Event{Topic: "weather", Value: []byte("b")},
		Event{Topic: "beamline", Value: []byte("c")})
	if err != nil {
		t.Fatalf("Log of three events = %v", err)
	}
	if got := values(readAll(t, cfg, "beamline")); got != "[a c]" {
		t.Errorf("beamline has %s, want [a c]", got)
	}
	if got := values(readAll(t, cfg, "weather")); got != "[b]" {
		t.Errorf("weather has %s, want [b]", got)
	}
	if s := l.Stats(); s.Acknowledged != 3 || s.Failed != 0 || s.Pending != 0 || s.PendingBytes != 0 || s.Err != nil {
		t.Errorf("Stats() = %+v, want three acknowledged", s)
	}
}

func values(records []Record) string {
	got := []string{}
	for _, r := range records {
		got = append(got, string(r.Value))
	}
	return fmt.Sprint(got)
}

func TestLogSaysWhichEventsFailed(t *testing.T) {
	t.Parallel()
	c, cfg := newCluster(t, kfake.SeedTopics(1, "mine", "yours"))
	c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "yours", Err: kerr.TopicAuthorizationFailed, Count: -1})
	cfg.Identity.Username = "ada@example.edu"
	l := openLogger(t, cfg)
	err := l.Log(within(t),
		Event{Topic: "mine", Value: []byte("a")}, Event{Topic: "yours", Value: []byte("secret value")},
		Event{Topic: "mine", Value: []byte("b")}, Event{Topic: "yours", Value: []byte("secret value")})
	var e *EventError
	if !errors.As(err, &e) {
		t.Fatalf("Log = %v, want an EventError", err)
	}
	if !slices.Equal(e.Failed, []int{1, 3}) || e.Total != 4 {
		t.Errorf("failed are %v of %d, want [1 3] of 4", e.Failed, e.Total)
	}
	var topic *TopicError
	if !errors.Is(err, ErrPermission) || !errors.As(err, &topic) || topic.Topic != "yours" || topic.Op != "log" {
		t.Errorf("Log = %v, want ErrPermission about yours", err)
	}
	want := `2 of 4 events failed, the first at index 1: log topic "yours": permission denied: ada@example.edu may not write to it; ` +
		`it may be mistyped, not claimed, or not shared with you: "diaspora doctor --topic yours" says why`
	if err.Error() != want {
		t.Errorf("Log = %q\nwant  %q", err, want)
	}
	if got := values(readAll(t, cfg, "mine")); got != "[a b]" {
		t.Errorf("mine has %s, want [a b]", got)
	}
	if s := l.Stats(); s.Acknowledged != 2 || s.Failed != 2 {
		t.Errorf("Stats() = %+v, want 2 acknowledged and 2 failed", s)
	}
}

func badEvents() map[string]Event {
	return map[string]Event{
		"no topic":        {Value: []byte("x")},
		"long topic":      {Topic: strings.Repeat("x", MaxTopicLength+1)},
		"long ID":         {Topic: "weather", ID: strings.Repeat("x", maxIDBytes+1)},
		"year 10000":      {Topic: "weather", Time: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)},
		"before year 0":   {Topic: "weather", Time: time.Date(-1, 1, 1, 0, 0, 0, 0, time.UTC)},
		"system's header": {Topic: "weather", Headers: []Header{{"unit", nil}, {"diaspora-id", nil}}},
		"large value":     {Topic: "weather", Value: make([]byte, defaultMaxEventBytes)},
		"large key":       {Topic: "weather", Key: make([]byte, defaultMaxEventBytes)},
		"large header":    {Topic: "weather", Headers: []Header{{"x", make([]byte, defaultMaxEventBytes)}}},
		"many headers":    {Topic: "weather", Headers: slices.Repeat([]Header{{"0123456789", nil}}, 100_000)},
		"no JSON":         JSON("weather", math.NaN()),
	}
}

func TestLogRefusesBeforeItSends(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(1, "weather"))
	l := openLogger(t, cfg)
	var failed int64
	for name, bad := range badEvents() {
		good := Event{Topic: "weather", Value: []byte("good")}
		err := l.Log(within(t), good, bad, good)
		var e *EventError
		if !errors.Is(err, ErrInvalid) || !errors.As(err, &e) || !slices.Equal(e.Failed, []int{0, 1, 2}) || e.Total != 3 {
			t.Errorf("%s: Log = %v, want ErrInvalid for all three", name, err)
		} else if !strings.Contains(err.Error(), "event 1: ") {
			t.Errorf("%s: Log = %v, which does not say that it is event 1", name, err)
		}
		failed += 3

		calls := 0
		l.Send(bad, func(r Record, err error) {
			calls++
			var topic *TopicError
			if !errors.Is(err, ErrInvalid) || !errors.As(err, &topic) || topic.Topic != bad.Topic && len(bad.Topic) < 200 {
				t.Errorf("%s: Send = %v, want a TopicError with ErrInvalid", name, err)
			}
			if r.Partition != -1 || r.Offset != -1 || r.Topic != bad.Topic {
				t.Errorf("%s: Send called back with partition %d, offset %d, topic %q", name, r.Partition, r.Offset, r.Topic)
			}
		})
		if calls != 1 {
			t.Errorf("%s: Send called back %d times, want 1", name, calls)
		}
		failed++
	}
	l.Send(Event{}, nil)
	failed++
	if s := l.Stats(); s.Failed != failed || s.Acknowledged != 0 {
		t.Errorf("Stats() = %+v, want %d failed", s, failed)
	}
	if got := readAll(t, cfg, "weather"); len(got) != 0 {
		t.Errorf("%d events were sent all the same", len(got))
	}
}

// TestLogOfTopicsThatAreNot fails when Log waits for a topic that does not exist.
func TestLogOfTopicsThatAreNot(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t)
	l := openLogger(t, cfg)
	err := l.Log(within(t), Event{Topic: "nowhere"})
	if !errors.Is(err, ErrNotFound) || Hint(err) != `claim it with "diaspora topic claim nowhere"` {
		t.Errorf("Log to a topic that is not there = %v, want ErrNotFound with a hint", err)
	}
	for _, name := range []string{"a b", "x/y", "..", "ünïcode", "a\x00b"} {
		if err := l.Log(within(t), Event{Topic: name}); !errors.Is(err, ErrInvalid) {
			t.Errorf("Log to topic %q = %v, want ErrInvalid", name, err)
		}
	}
}

func TestLogWhoseContextEnds(t *testing.T) {
	t.Parallel()
	c, cfg := newCluster(t, kfake.SeedTopics(1, "weather"))
	l := openLogger(t, cfg)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := l.Log(ctx, Event{Topic: "weather", Value: []byte("never")}, Event{Topic: "weather"})
	var e *EventError
	if !errors.Is(err, context.Canceled) || !errors.As(err, &e) || len(e.Failed) != 2 {
		t.Errorf("Log with a context that has ended = %v, want context.Canceled for both", err)
	}

	g := hold(t, c, kmsg.Produce)
	ctx, cancel = context.WithCancel(t.Context())
	value := []byte("on its way")
	logged := make(chan error, 1)
	go func() { logged <- l.Log(ctx, Event{Topic: "weather", Value: value}) }()
	eventually(t, "an event on its way", func() bool { return l.Stats().Pending == 1 })
	cancel()
	if err := <-logged; !errors.Is(err, context.Canceled) || !errors.As(err, &e) || len(e.Failed) != 1 {
		t.Errorf("Log whose context ends = %v, want context.Canceled", err)
	}
	copy(value, "overwritten") // the slice is the caller's again
	if s := l.Stats(); s.Pending != 1 || s.PendingBytes == 0 {
		t.Errorf("Stats() = %+v, want one pending", s)
	}
	g.release()
	logValues(t, l, "weather", "later")
	if got := values(readAll(t, cfg, "weather")); got != "[on its way later]" {
		t.Errorf("the topic has %s, want what was on its way and what came later", got)
	}
}

// TestLogWhileTheTokenIsRefused fails when Log waits instead of returning the rejection.
func TestLogWhileTheTokenIsRefused(t *testing.T) {
	t.Parallel()
	c, cfg := newCluster(t, kfake.SeedTopics(1, "weather"))
	d := newDoor(c, &cfg)
	cfg.Identity.Username = "ada@example.edu"
	l := openLogger(t, cfg)
	logValues(t, l, "weather", "first")
	d.shut.Store(true)
	c.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		return nil, errors.New("hang up"), true
	})
	err := l.Log(within(t), Event{Topic: "weather", Value: []byte("second")})
	if !errors.Is(err, ErrUnauthenticated) || !strings.Contains(err.Error(), refusal) || Hint(err) != defaultLogin {
		t.Errorf("Log with a token that is refused = %v, want ErrUnauthenticated, the refusal and what to do", err)
	}
	if strings.Contains(fmt.Sprintf("%+v", err), canary) {
		t.Errorf("the error holds the token")
	}
	if s := l.Stats(); !errors.Is(s.Err, ErrUnauthenticated) {
		t.Errorf("Stats().Err = %v, want ErrUnauthenticated", s.Err)
	}
	d.shut.Store(false)
	logValues(t, l, "weather", "third")
	if s := l.Stats(); s.Err != nil {
		t.Errorf("Stats().Err = %v after the token was taken, want nil", s.Err)
	}
}

// TestOrderPerKey fails when events of one key are reordered, lost or duplicated while requests
// fail and are retried.
func TestOrderPerKey(t *testing.T) {
	t.Parallel()
	c, cfg := newCluster(t, kfake.SeedTopics(4, "weather"))
	var requests atomic.Int64
	c.Fault(kfake.Fault{
		Keys: []kmsg.Key{kmsg.Produce}, Topic: "weather", Err: kerr.NotLeaderForPartition, Count: 2,
		When: func(kmsg.Request) bool { return requests.Add(1)%7 == 3 },
	})
	c.Fault(kfake.Fault{
		Keys: []kmsg.Key{kmsg.Produce}, Topic: "weather", Err: kerr.NotEnoughReplicasAfterAppend, Count: 2,
		When: func(kmsg.Request) bool { return requests.Load()%5 == 1 },
	})
	l := openLogger(t, cfg)
	const writers, each = 8, 150
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				ev := Event{Topic: "weather", Key: fmt.Append(nil, "k", w), Value: fmt.Append(nil, i)}
				if i%10 == 0 {
					if err := l.Log(within(t), ev); err != nil {
						t.Error(err)
					}
					continue
				}
				l.Send(ev, func(_ Record, err error) {
					if err != nil {
						t.Error(err)
					}
				})
			}
		})
	}
	wg.Wait()
	testkit.Must(t, l.Flush(within(t)))
	next := map[string]int{}
	seen := map[string]bool{}
	for _, r := range readAll(t, cfg, "weather") {
		if got, want := string(r.Value), fmt.Sprint(next[string(r.Key)]); got != want {
			t.Fatalf("key %s: got event %s, want %s", r.Key, got, want)
		}
		next[string(r.Key)]++
		if seen[r.ID] {
			t.Fatalf("ID %s came twice", r.ID)
		}
		seen[r.ID] = true
	}
	if len(seen) != writers*each {
		t.Errorf("%d events are there, want %d", len(seen), writers*each)
	}
}

func TestSendGivesTheEventBack(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(1, "weather"))
	l := openLogger(t, cfg)
	at := time.Date(2026, 11, 23, 17, 4, 5, 678_901_234, time.FixedZone("", 3600))
	for _, ev := range []Event{
		{Topic: "weather", Key: []byte("key"), Value: []byte("value")},
		{Topic: "weather", Key: []byte("key"), Value: []byte("value"), Headers: []Header{{"unit", []byte("K")}}, Time: at, ID: "mine"},
	} {
		before := time.Now().Add(-time.Millisecond)
		var got Record
		l.Send(ev, func(r Record, err error) {
			if err != nil {
				t.Error(err)
			}
			got = r
		})
		testkit.Must(t, l.Flush(within(t)))
		if &got.Key[0] != &ev.Key[0] || &got.Value[0] != &ev.Value[0] {
			t.Error("the callback's Record has other slices than the event")
		}
		if !got.Stored.IsZero() || got.Partition != 0 {
			t.Errorf("the callback's Record has Stored %v, Partition %d; want none, 0", got.Stored, got.Partition)
		}
		if ev.ID == "" {
			if len(got.ID) < idPrefixBytes || got.Time.Before(before) || got.Time.After(time.Now()) {
				t.Errorf("the Logger made ID %q and time %v", got.ID, got.Time)
			}
		} else if got.ID != ev.ID || !got.Time.Equal(at) || len(got.Headers) != 1 {
			t.Errorf("the callback's Record is %+v, want the event's own ID, time and header", got)
		}
		stored := readAll(t, cfg, "weather")
		last := stored[len(stored)-1]
		if last.ID != got.ID || last.Offset != got.Offset || last.Time.UnixMilli() != got.Time.UnixMilli() {
			t.Errorf("consumed %+v, called back with %+v", last, got)
		}
		if ev.ID != "" && !last.Time.Equal(at) {
			t.Errorf("consumed the time %v, want %v", last.Time, at)
		}
	}
}

// TestFirstLogDoesNotLinger fails when Log lingers because the Kafka client does not know yet where
// the topic's partitions are.
func TestFirstLogDoesNotLinger(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(1, "weather"))
	cfg.Linger = time.Minute
	l := openLogger(t, cfg)
	if err := l.Log(within(t), Event{Topic: "weather", Value: []byte("21.5")}); err != nil {
		t.Error(err)
	}
}

// TestSendDoesNotWaitForWhatLingers fails when Send waits for room while the events that take the
// room linger.
func TestSendDoesNotWaitForWhatLingers(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(1, "weather"))
	cfg.Linger = time.Minute
	l := openLogger(t, cfg)
	l.sink.(*direct).budget.max = 64 << 10
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for range 1000 {
			l.Send(Event{Topic: "weather", Value: []byte("21.5")}, nil)
		}
	}()
	select {
	case <-sent:
	case <-within(t).Done():
		t.Error("Send waits for memory while events linger")
	}
}

// TestSendWaitsForRoom fails when the memory of events is not limited, or when Send waits although
// there is room.
func TestSendWaitsForRoom(t *testing.T) {
	t.Parallel()
	c, cfg := newCluster(t, kfake.SeedTopics(1, "weather"))
	l := openLogger(t, cfg)
	l.sink.(*direct).budget.max = 64 << 10
	g := hold(t, c, kmsg.Produce)
	ev := Event{Topic: "weather", Value: make([]byte, 1<<10)}
	size := int64(eventBytes(&ev) + pendingOverhead)
	fits := l.sink.(*direct).budget.max / size
	acked := make(chan error, 1000)
	done := func(_ Record, err error) { acked <- err }
	for range fits {
		l.Send(ev, done) // none of these waits
	}
	if got := l.Stats().PendingBytes; got != fits*size {
		t.Errorf("Stats().PendingBytes = %d, want %d", got, fits*size)
	}
	returned := make(chan struct{})
	go func() { l.Send(ev, done); close(returned) }()
	eventually(t, "Send to wait", func() bool { return l.sink.(*direct).budget.waiting.Load() == 1 })

	ctx, cancel := context.WithCancel(t.Context())
	logged := make(chan error, 1)
	go func() { logged <- l.Log(ctx, ev) }()
	eventually(t, "Log to wait", func() bool { return l.sink.(*direct).budget.waiting.Load() == 2 })
	cancel()
	if err := <-logged; !errors.Is(err, context.Canceled) {
		t.Errorf("Log that waits for memory, and whose context ends = %v", err)
	}
	if used := l.sink.(*direct).budget.used(); used > l.sink.(*direct).budget.max {
		t.Errorf("%d bytes are in a budget of %d", used, l.sink.(*direct).budget.max)
	}
	select {
	case <-returned:
		t.Error("Send did not wait for room")
	default:
	}
	g.release()
	<-returned
	for range fits + 1 {
		if err := <-acked; err != nil {
			t.Error(err)
		}
	}
}

func TestFlush(t *testing.T) {
	t.Parallel()
	c, cfg := newCluster(t, kfake.SeedTopics(1, "weather"))
	l := openLogger(t, cfg)
	logValues(t, l, "weather", "first")
	g := hold(t, c, kmsg.Produce)
	var calls atomic.Int32
	for range 3 {
		l.Send(Event{Topic: "weather"}, func(_ Record, err error) {
			if err != nil {
				t.Error(err)
			}
			calls.Add(1)
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Flush(ctx); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "3 events") {
		t.Errorf("Flush whose context has ended = %v, want context.Canceled and 3 events", err)
	}
	g.release()
	testkit.Must(t, l.Flush(within(t)))
	if got := calls.Load(); got != 3 {
		t.Errorf("%d callbacks had returned when Flush did, want 3", got)
	}
}

func TestCloseLogger(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(1, "weather"))
	l := openLogger(t, cfg)
	var acknowledged atomic.Int32
	for range 10 {
		l.Send(Event{Topic: "weather"}, func(_ Record, err error) {
			if err == nil {
				acknowledged.Add(1)
			}
		})
	}
	testkit.Must(t, l.Close(within(t)))
	if got := acknowledged.Load(); got != 10 {
		t.Errorf("%d events were acknowledged when Close returned, want 10", got)
	}
	if err := l.Close(within(t)); err != nil {
		t.Errorf("Close again = %v", err)
	}
	if err := l.Log(within(t), Event{Topic: "weather"}); !errors.Is(err, ErrClosed) {
		t.Errorf("Log after Close = %v, want ErrClosed", err)
	}
	called := false
	l.Send(Event{Topic: "weather"}, func(_ Record, err error) {
		called = true
		if !errors.Is(err, ErrClosed) {
			t.Errorf("Send after Close = %v, want ErrClosed", err)
		}
	})
	if !called {
		t.Error("Send after Close did not call back")
	}
	if err := l.Flush(within(t)); err != nil {
		t.Errorf("Flush after Close = %v", err)
	}
	if s := l.Stats(); s.Acknowledged != 10 || s.Failed != 2 || s.Pending != 0 {
		t.Errorf("Stats() after Close = %+v", s)
	}
}

// TestCloseDoesNotWaitForEver fails when Close outlasts its context, leaves a Send waiting, or
// loses a callback.
func TestCloseDoesNotWaitForEver(t *testing.T) {
	t.Parallel()
	c, cfg := newCluster(t, kfake.SeedTopics(1, "weather"))
	l := openLogger(t, cfg)
	logValues(t, l, "weather", "first")
	l.sink.(*direct).budget.max = 8 << 10
	hold(t, c, kmsg.Produce)
	ev := Event{Topic: "weather", Value: make([]byte, 1<<10)}
	sends := int(l.sink.(*direct).budget.max/int64(eventBytes(&ev)+pendingOverhead)) + 1 // the last one waits
	var mu sync.Mutex
	var told []error
	var wg sync.WaitGroup
	for range sends {
		wg.Go(func() {
			l.Send(ev, func(_ Record, err error) {
				mu.Lock()
				told = append(told, err)
				mu.Unlock()
			})
		})
	}
	eventually(t, "a Send to wait", func() bool { return l.sink.(*direct).budget.waiting.Load() == 1 })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := l.Close(ctx)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Close whose context has ended = %v, want context.Canceled", err)
	}
	wg.Wait()
	if again := l.Close(within(t)); again != err {
		t.Errorf("Close again = %v, want the same error", again)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(told) != sends {
		t.Errorf("%d callbacks, want %d", len(told), sends)
	}
	for _, err := range told {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("a callback was told %v, want ErrClosed", err)
		}
	}
}

// TestSendCallsBackOneByOne fails when two callbacks run at once, including those of events that
// are never sent.
func TestSendCallsBackOneByOne(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(2, "weather"))
	l := openLogger(t, cfg)
	calls, inside := 0, atomic.Int32{} // calls is not locked, so the race detector finds concurrent callbacks
	done := func(Record, error) {
		if inside.Add(1) != 1 {
			t.Error("two callbacks at once")
		}
		calls++
		inside.Add(-1)
	}
	const writers, each = 8, 200
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for i := range each {
				ev := Event{Topic: "weather"}
				if i%2 == 0 {
					ev.Topic = ""
				}
				l.Send(ev, done)
			}
		})
	}
	wg.Wait()
	testkit.Must(t, l.Close(within(t)))
	if calls != writers*each {
		t.Errorf("%d callbacks, want %d", calls, writers*each)
	}
}

// TestLogToATopicThatWasMadeAgain fails when a Logger cannot log to a topic that was released and
// claimed again.
func TestLogToATopicThatWasMadeAgain(t *testing.T) {
	t.Parallel()
	c, cfg := newCluster(t, kfake.SeedTopics(1, "weather"))
	l := openLogger(t, cfg)
	logValues(t, l, "weather", "old")
	testkit.Must(t, c.DeleteTopic("weather"))
	if err := l.Log(within(t), Event{Topic: "weather"}); !errors.Is(err, ErrNotFound) {
		t.Errorf("Log to a topic that was deleted = %v, want ErrNotFound", err)
	}
	testkit.Must(t, c.CreateTopic("weather", 1, nil))
	var err error
	eventually(t, "Log to work again", func() bool {
		err = l.Log(within(t), Event{Topic: "weather", Value: []byte("new")})
		return err == nil || !errors.Is(err, ErrNotFound)
	})
	testkit.Must(t, err)
	if got := values(readAll(t, cfg, "weather")); got != "[new]" {
		t.Errorf("the topic has %s, want [new]", got)
	}
}

// TestEventsOfATopicThatIsForgotten fails when the error text for purged events has changed in the
// Kafka client.
func TestEventsOfATopicThatIsForgotten(t *testing.T) {
	t.Parallel()
	c, cfg := newCluster(t, kfake.SeedTopics(1, "weather"))
	l := openLogger(t, cfg)
	hold(t, c, kmsg.Produce)
	told := make(chan error, 1)
	l.Send(Event{Topic: "weather"}, func(_ Record, err error) { told <- err })
	eventually(t, "the event to be on its way", func() bool { return l.Stats().Pending == 1 })
	l.sink.(*direct).forget("weather")
	if err := <-told; !errors.Is(err, ErrNotFound) {
		t.Errorf("the event of a topic that is forgotten = %v, want ErrNotFound", err)
	}
}

// TestCompression checks how the batches are stored that a Logger has written, directly and through
// its spool.
func TestCompression(t *testing.T) {
	t.Parallel()
	var events []Event
	for range 100 {
		events = append(events, Event{Topic: "weather", Value: bytes.Repeat([]byte("21.5 degrees Celsius "), 50)}) // large enough that a batch of one event gets smaller, too
	}
	for compression, want := range map[string]uint8{"": 0, "none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4} {
		for _, spooled := range []bool{false, true} {
			_, cfg := newCluster(t, kfake.SeedTopics(1, "weather"))
			cfg.Compression = compression
			if spooled {
				cfg = withSpool(t, cfg)
			}
			l := openLogger(t, cfg)
			testkit.Must(t, errors.Join(l.Log(within(t), events...), l.Flush(within(t))))
			reader, err := kgo.NewClient(kgo.SeedBrokers(cfg.Brokers...), kgo.ConsumeTopics("weather"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
			testkit.Must(t, err)
			fetches := reader.PollRecords(within(t), 1)
			reader.Close()
			testkit.Must(t, fetches.Err())
			if got := fetches.Records()[0].Attrs.CompressionType(); got != want {
				t.Errorf("with Compression %q, spooled %v, batches are stored with type %d, want %d", compression, spooled, got, want)
			}
		}
	}
	_, cfg := newCluster(t)
	cfg.Compression = "brotli"
	if _, err := OpenLogger(within(t), cfg); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "gzip") {
		t.Errorf("OpenLogger with an unknown Compression = %v, want ErrInvalid and what there is", err)
	}
}

// These tests have the broker answer with an error for as long as it takes to see how the library
// reacts, and then stop, to check that nothing is lost. The tables of docs/errors.md describe the
// same reactions.

// codeTopics creates a topic for each of the codes, all in one cluster.
func codeTopics(t *testing.T, codes []*kerr.Error) (*kfake.Cluster, Config) {
	names := []string{"other"}
	for _, code := range codes {
		names = append(names, codeTopic(code))
	}
	return newCluster(t, kfake.SeedTopics(1, names...))
}

func codeTopic(code *kerr.Error) string { return strings.ToLower(code.Message) }

// allAtOnce runs the tests of all codes at the same time, because they mostly wait.
func allAtOnce(t *testing.T, codes []*kerr.Error, do func(t *testing.T, code *kerr.Error)) {
	var all sync.WaitGroup
	for _, code := range codes {
		all.Go(func() { t.Run(code.Message, func(t *testing.T) { do(t, code) }) })
	}
	all.Wait()
}

var producing = map[kafka.Verdict][]*kerr.Error{
	kafka.Retry: {
		kerr.UnknownServerError, kerr.LeaderNotAvailable, kerr.NotLeaderForPartition, kerr.RequestTimedOut,
		kerr.BrokerNotAvailable, kerr.ReplicaNotAvailable, kerr.NetworkException, kerr.CoordinatorLoadInProgress,
		kerr.CoordinatorNotAvailable, kerr.NotCoordinator, kerr.NotEnoughReplicas, kerr.NotEnoughReplicasAfterAppend,
		kerr.OutOfOrderSequenceNumber, kerr.InvalidProducerEpoch, kerr.InvalidTxnState, kerr.InvalidProducerIDMapping,
		kerr.ConcurrentTransactions, kerr.KafkaStorageError, kerr.LogDirNotFound, kerr.UnknownProducerID,
		kerr.FencedLeaderEpoch, kerr.UnknownLeaderEpoch, kerr.StaleBrokerEpoch, kerr.ThrottlingQuotaExceeded,
		kerr.ProducerFenced, kerr.NewLeaderElected, kerr.TransactionAbortable, kerr.InconsistentTopicID,
	},
	kafka.HoldTopic: {
		kerr.UnknownTopicOrPartition, kerr.UnknownTopicID, kerr.InvalidTopicException,
		kerr.TopicAuthorizationFailed, kerr.ClusterAuthorizationFailed, kerr.InvalidRequiredAcks, kerr.InvalidConfig, kerr.InvalidRequest,
		kerr.UnsupportedForMessageFormat, kerr.UnsupportedCompressionType,
	},
	kafka.HoldAll: {
		kerr.TransactionalIDAuthorizationFailed, kerr.SaslAuthenticationFailed,
		kerr.UnsupportedSaslMechanism, kerr.IllegalSaslState, kerr.SecurityDisabled, kerr.UnsupportedVersion,
	},
	kafka.Quarantine: {
		kerr.CorruptMessage, kerr.MessageTooLarge, kerr.RecordListTooLarge, kerr.InvalidTimestamp, kerr.InvalidRecord,
		kerr.PolicyViolation,
	},
}

// TestProduceErrors fails when one of the 50 errors in the response to a produce request is not
// retried, held or quarantined as the table says.
func TestProduceErrors(t *testing.T) {
	t.Parallel()
	testSending(t, kmsg.Produce, producing)
}

// TestMetadataErrors does the same with the response to a metadata request.
func TestMetadataErrors(t *testing.T) {
	t.Parallel()
	testSending(t, kmsg.Metadata, map[kafka.Verdict][]*kerr.Error{
		kafka.Retry: {
			kerr.UnknownServerError, kerr.LeaderNotAvailable, kerr.RequestTimedOut, kerr.BrokerNotAvailable,
			kerr.ReplicaNotAvailable, kerr.NetworkException, kerr.KafkaStorageError, kerr.ListenerNotFound,
		},
		kafka.HoldTopic: {
			kerr.UnknownTopicOrPartition, kerr.InvalidTopicException, kerr.TopicAuthorizationFailed, kerr.ClusterAuthorizationFailed,
			kerr.InvalidRequest,
		},
		kafka.HoldAll: {kerr.SaslAuthenticationFailed},
	})
}

func testSending(t *testing.T, request kmsg.Key, table map[kafka.Verdict][]*kerr.Error) {
	var codes []*kerr.Error
	want := map[*kerr.Error]kafka.Verdict{}
	for verdict, some := range table {
		codes = append(codes, some...)
		for _, code := range some {
			want[code] = verdict
		}
	}
	c, cfg := codeTopics(t, codes)
	allAtOnce(t, codes, func(t *testing.T, code *kerr.Error) {
		topic := codeTopic(code)
		fault := c.Fault(kfake.Fault{Keys: []kmsg.Key{request}, Topic: topic, Err: code, Count: -1})
		l := openLogger(t, withSpool(t, cfg))
		numbers(t, l, topic, 0, 10)
		eventually(t, "the verdict "+want[code].String(), func() bool { return verdictSeen(l, topic, want[code], fault.Hits()) })
		if want[code] == kafka.HoldTopic {
			logValues(t, l, "other", topic)
			eventually(t, "the event of another topic to pass", func() bool { return l.Stats().Spool.Events == 10 })
		}
		numbers(t, l, topic, 10, 20)
		fault.Remove()
		drained(t, l)
		got := readAll(t, cfg, topic)
		aside := l.Stats().Spool.Quarantined
		if want[code] == kafka.Quarantine {
			if aside == 0 || int(aside)+len(got) != 20 {
				t.Errorf("%d events were set aside and %d arrived, want 20 together", aside, len(got))
			}
			return
		}
		wantNumbers(t, got, 20)
		if aside != 0 {
			t.Errorf("%d events were set aside", aside)
		}
	})
}

// verdictSeen reports whether the Logger has acted on a topic's events as the verdict says, after
// some responses.
func verdictSeen(l *Logger, topic string, v kafka.Verdict, answers int) bool {
	stats := l.Stats().Spool
	held, isHeld := l.sink.(*spooled).shipper.Held()[topic]
	all := stats.Why != nil && (!isHeld || stats.Why.Error() != held.Err.Error()) // events of all topics are held
	switch v {
	case kafka.Quarantine:
		return stats.Quarantined > 0
	case kafka.HoldAll:
		return all && !isHeld
	case kafka.HoldTopic:
		return held.NeedsPerson && !all && stats.Held[topic] != nil
	}
	return answers >= 2 && !held.NeedsPerson && !all && stats.Quarantined == 0
}

// told maps errors to what a Consumer reports for them: nil if it retries silently.
type told map[*kerr.Error]error

func (w told) codes() []*kerr.Error { return slices.Collect(maps.Keys(w)) }

// errWords stands for an error that matches none of the conditions.
var errWords = errors.New("some words")

// TestFetchErrors fails when an error in the response to a fetch request loses a record, when a
// temporary error is reported, or when a lasting one is not reported in words.
func TestFetchErrors(t *testing.T) {
	t.Parallel()
	want := told{
		kerr.NotLeaderForPartition: nil, kerr.ReplicaNotAvailable: nil, kerr.KafkaStorageError: nil,
		kerr.FencedLeaderEpoch: nil, kerr.UnknownLeaderEpoch: nil, kerr.OffsetNotAvailable: nil,
		kerr.LeaderNotAvailable: nil, kerr.RequestTimedOut: nil, kerr.CorruptMessage: nil,
		kerr.UnknownTopicOrPartition: nil, kerr.ThrottlingQuotaExceeded: nil, kerr.NotEnoughReplicas: nil,
		kerr.UnknownServerError:         ErrUnavailable,
		kerr.TopicAuthorizationFailed:   ErrPermission,
		kerr.ClusterAuthorizationFailed: ErrPermission,
		kerr.InvalidRequest:             ErrInvalid,
		kerr.UnsupportedCompressionType: errWords,
		kerr.OffsetMovedToTieredStorage: errWords,
	}
	c, cfg := codeTopics(t, want.codes())
	allAtOnce(t, want.codes(), func(t *testing.T, code *kerr.Error) {
		topic := codeTopic(code)
		number(t, cfg, topic, 0, 3)
		consumer := openConsumer(t, cfg, ConsumerOptions{Topics: []string{topic}})
		fault := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Topic: topic, Err: code, Count: -1})
		if want[code] == nil {
			go func() {
				fault.Wait(t.Context(), 2)
				fault.Remove()
			}()
		}
		errs, logged := 0, 3
		var got []Record
		for r, err := range consumer.Records(within(t)) {
			if err == nil {
				if got = append(got, r); len(got) < logged {
					continue
				}
				if fault.Hits() >= 2 {
					break
				}
				number(t, cfg, topic, logged, logged+1) // these were fetched before the fault
				logged++
				continue
			}
			wantTold(t, err, want[code], topic)
			if errs++; errs == 2 { // it has retried
				fault.Remove()
			}
		}
		for i, r := range got {
			if string(r.Value) != fmt.Sprint(i) {
				t.Fatalf("got %s after %d errors, of %d in order", values(got), fault.Hits(), logged)
			}
		}
		if (errs > 0) != (want[code] != nil) {
			t.Errorf("told of %d errors, want %v", errs, want[code])
		}
	})
}

// wantTold checks that an error says what went wrong, and with which object.
func wantTold(t *testing.T, err, want error, on string) {
	t.Helper()
	if want != nil && want != errWords && !errors.Is(err, want) || want == errWords && hasCondition(err) {
		t.Errorf("told %v, want %v", err, want)
	}
	if !strings.Contains(err.Error(), fmt.Sprintf("%q", on)) {
		t.Errorf("told %v, which does not name %q", err, on)
	}
}

// TestCommitErrors does the same with the response to a commit of offsets. If an error is reported,
// the offsets must not count as committed.
func TestCommitErrors(t *testing.T) {
	t.Parallel()
	want := told{
		kerr.CoordinatorLoadInProgress: nil, kerr.CoordinatorNotAvailable: nil, kerr.NotCoordinator: nil,
		kerr.RequestTimedOut: nil, kerr.LeaderNotAvailable: nil, kerr.NotLeaderForPartition: nil,
		kerr.KafkaStorageError: nil, kerr.UnknownServerError: nil, kerr.UnstableOffsetCommit: nil,
		kerr.RebalanceInProgress:      ErrUnavailable, // the member rejoins first
		kerr.UnknownMemberID:          ErrUnavailable,
		kerr.IllegalGeneration:        ErrUnavailable,
		kerr.StaleMemberEpoch:         ErrUnavailable,
		kerr.FencedMemberEpoch:        ErrUnavailable,
		kerr.TopicAuthorizationFailed: ErrPermission,
		kerr.GroupAuthorizationFailed: ErrPermission,
		kerr.UnknownTopicOrPartition:  ErrNotFound,
		kerr.OffsetMetadataTooLarge:   errWords,
		kerr.InvalidCommitOffsetSize:  errWords,
		kerr.InvalidGroupID:           errWords,
		kerr.FencedInstanceID:         errWords,
		kerr.UnsupportedVersion:       errWords,
	}
	c, cfg := codeTopics(t, want.codes())
	allAtOnce(t, want.codes(), func(t *testing.T, code *kerr.Error) {
		topic, group := codeTopic(code), "group of "+codeTopic(code)
		number(t, cfg, topic, 0, 3)
		consumer := openConsumer(t, cfg, ConsumerOptions{Topics: []string{topic}, Group: group, CommitEvery: -1})
		for r, err := range consumer.Records(within(t)) {
			testkit.Must(t, err)
			if r.Offset == 2 {
				break
			}
		}
		fault := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Group: group, Err: code, Count: -1})
		if want[code] == nil {
			go func() {
				fault.Wait(t.Context(), 2)
				fault.Remove()
			}()
		} else {
			err := consumer.Commit(within(t))
			on := group
			if code == kerr.TopicAuthorizationFailed || code == kerr.UnknownTopicOrPartition {
				on = topic
			}
			if err == nil {
				t.Fatal("Commit = nil, want an error")
			}
			wantTold(t, err, want[code], on)
			if n := fault.Hits(); n != 1 { // a rebalance waits for the commit, so it is not retried
				t.Errorf("it was told after %d attempts, want at once", n)
			}
			if got := committed(t, cfg, group, topic); got != -1 {
				t.Errorf("%d is committed, want nothing", got)
			}
			fault.Remove()
		}
		if err := consumer.Commit(within(t)); err != nil {
			t.Errorf("Commit without a fault = %v", err)
		}
		if got := committed(t, cfg, group, topic); got != 2 {
			t.Errorf("%d is committed, want 2", got)
		}
	})
}

// hasCondition reports whether a program could act on err.
func hasCondition(err error) bool {
	return slices.ContainsFunc([]error{
		ErrInvalid, ErrUnauthenticated, ErrPermission, ErrNotFound, ErrConflict, ErrUnavailable, ErrSpoolFull, ErrSpoolFailed, ErrNoProfile,
		context.Canceled, context.DeadlineExceeded,
	}, func(condition error) bool { return errors.Is(err, condition) })
}

// The benchmarks come in pairs that use the same kind of broker: one for this package, and one for
// the plain Kafka client as the floor to compare with.

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

// benchmark runs a benchmark with values of two sizes, and a broker of its own for each.
func benchmark(b *testing.B, run func(b *testing.B, cfg Config, next func() []byte)) {
	for _, size := range []int{100, 1024} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			values, i := payloads(size), 0
			b.SetBytes(int64(size))
			b.ReportAllocs()
			run(b, benchCluster(b), func() []byte { i++; return values[i%len(values)] })
		})
	}
}

func BenchmarkSend(b *testing.B) {
	benchmark(b, func(b *testing.B, cfg Config, next func() []byte) {
		l := openLogger(b, cfg)
		for b.Loop() {
			l.Send(Event{Topic: "bench", Value: next()}, func(_ Record, err error) {
				if err != nil {
					b.Error(err)
				}
			})
		}
		testkit.Must(b, l.Flush(context.Background()))
	})
}

func BenchmarkPlainProduce(b *testing.B) {
	benchmark(b, func(b *testing.B, cfg Config, next func() []byte) {
		client := plain(b, cfg)
		for b.Loop() {
			client.Produce(context.Background(), &kgo.Record{Topic: "bench", Value: next()}, func(_ *kgo.Record, err error) {
				if err != nil {
					b.Error(err)
				}
			})
		}
		testkit.Must(b, client.Flush(context.Background()))
	})
}

func BenchmarkLog(b *testing.B) {
	benchmark(b, func(b *testing.B, cfg Config, next func() []byte) {
		l := openLogger(b, cfg)
		for b.Loop() {
			testkit.Must(b, l.Log(context.Background(), Event{Topic: "bench", Value: next()}))
		}
	})
}

func BenchmarkPlainProduceSync(b *testing.B) {
	benchmark(b, func(b *testing.B, cfg Config, next func() []byte) {
		client := plain(b, cfg)
		for b.Loop() {
			testkit.Must(b, client.ProduceSync(context.Background(), &kgo.Record{Topic: "bench", Value: next()}).FirstErr())
		}
	})
}

// outcomes collects the results of one call of bulk.Send.
type outcomes struct {
	mu     sync.Mutex // guards the fields below
	logged int
	failed map[int]error
}

func (o *outcomes) Logged(n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.logged += n
}

func (o *outcomes) Failed(index int, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.failed == nil {
		o.failed = map[int]error{}
	}
	if _, twice := o.failed[index]; twice {
		err = fmt.Errorf("a second result: %w", err)
	}
	o.failed[index] = err
}

// TestSendBulk hands over many events at once, with and without a spool. Those that can be logged must
// arrive in order, as if each had been given to Send, and the others must be named.
func TestSendBulk(t *testing.T) {
	t.Parallel()
	for name, spooled := range map[string]bool{"direct": false, "spooled": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, cfg := newCluster(t, kfake.SeedTopics(3, "beamline"))
			plain := cfg
			if spooled {
				cfg = withSpool(t, cfg)
			}
			l := openLogger(t, cfg)
			const calls, each = 4, 700
			var all [calls]outcomes
			var want []string
			shared := []Header{{Key: "unit", Value: []byte("C")}}
			for c := range calls {
				var events []Event
				for i := range each {
					e := Event{Topic: "beamline", Key: []byte("k"), Value: fmt.Append(nil, c*each+i)}
					switch {
					case i == 100 || i == 101 || i == each-1:
						e.Headers = []Header{{Key: "diaspora-id", Value: []byte("forged")}}
					case i == 200:
						e.ID, e.Headers = "own", shared
						fallthrough
					default:
						want = append(want, string(e.Value))
					}
					events = append(events, e)
				}
				bulk.Send(l, events, &all[c])
				clear(events) // the caller's again
			}
			testkit.Must(t, l.Flush(within(t)))
			for c := range calls {
				o := &all[c]
				if o.logged != each-3 || len(o.failed) != 3 {
					t.Errorf("call %d: %d logged and %d failed, want %d and 3", c, o.logged, len(o.failed), each-3)
				}
				for _, i := range []int{100, 101, each - 1} {
					if err := o.failed[i]; !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), `"beamline"`) || strings.Contains(err.Error(), "second") {
						t.Errorf("call %d: event %d: %v, want ErrInvalid, once, and the topic", c, i, err)
					}
				}
			}
			ids := map[string]int{}
			var got []string
			for _, r := range readAll(t, plain, "beamline") {
				got = append(got, string(r.Value))
				ids[r.ID]++
				if r.Time.IsZero() || (r.ID == "own") != (len(r.Headers) == 1) {
					t.Errorf("%s has the time %v, the ID %q and the headers %v", r.Value, r.Time, r.ID, r.Headers)
				}
			}
			if strings.Join(got, " ") != strings.Join(want, " ") {
				t.Errorf("%d events are there, or not in order, want %d", len(got), len(want))
			}
			if ids["own"] != calls || len(ids) != len(want)-calls+1 {
				t.Errorf("%d IDs, and %d events have the one that was given, want %d and %d", len(ids), ids["own"], len(want)-calls+1, calls)
			}
			if s := l.Stats(); s.Acknowledged != int64(len(want)) || s.Failed != 3*calls || s.Pending != 0 || s.PendingBytes != 0 {
				t.Errorf("Stats() = %+v", s)
			}
			testkit.Must(t, l.Close(within(t)))
			var late outcomes
			bulk.Send(l, []Event{{Topic: "beamline"}, {Topic: "beamline"}}, &late)
			if late.logged != 0 || !errors.Is(late.failed[0], ErrClosed) || !errors.Is(late.failed[1], ErrClosed) {
				t.Errorf("after Close: %d logged, %v, want ErrClosed for both", late.logged, late.failed)
			}
		})
	}
}

// TestSendBulkRefused checks the results when the cluster refuses the events, or the spool has no room.
func TestSendBulkRefused(t *testing.T) {
	t.Parallel()
	events := make([]Event, 300)
	for i := range events {
		events[i] = Event{Topic: "nobodys", Value: make([]byte, 1000)}
	}
	t.Run("direct", func(t *testing.T) {
		t.Parallel()
		_, cfg := newCluster(t)
		l := openLogger(t, cfg)
		var o outcomes
		bulk.Send(l, events, &o)
		testkit.Must(t, l.Flush(within(t)))
		if o.logged != 0 || len(o.failed) != len(events) || !errors.Is(o.failed[len(events)-1], ErrNotFound) {
			t.Errorf("%d logged and %d failed, the last with %v; want ErrNotFound for all", o.logged, len(o.failed), o.failed[len(events)-1])
		}
		if s := l.Stats(); s.Failed != int64(len(events)) || s.PendingBytes != 0 {
			t.Errorf("Stats() = %+v", s)
		}
	})
	t.Run("spooled", func(t *testing.T) {
		t.Parallel()
		_, cfg := newCluster(t)
		cfg = withSpool(t, cfg)
		cfg.SpoolBytes, cfg.SpoolPolicy = 128<<10, SpoolReject
		l := openLogger(t, cfg)
		var o outcomes
		bulk.Send(l, events, &o)
		eventually(t, "all results", func() bool {
			o.mu.Lock()
			defer o.mu.Unlock()
			return o.logged+len(o.failed) == len(events)
		})
		if n := l.Stats().Spool.Events; o.logged < 50 || n != int64(o.logged) || !errors.Is(o.failed[len(events)-1], ErrSpoolFull) {
			t.Errorf("%d logged, %d in the spool, the last event: %v; want ErrSpoolFull for those that do not fit", o.logged, n, o.failed[len(events)-1])
		}
	})
}
