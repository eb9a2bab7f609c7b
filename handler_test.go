package diaspora

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/slogtest"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"pgregory.net/rapid"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/diagnostics"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

const logTopic = "logs"

// logged returns the values of the topic's events, in order.
func logged(t testing.TB, l *Logger, cfg Config) []string {
	t.Helper()
	testkit.Must(t, l.Flush(within(t)))
	var values []string
	for _, r := range readAll(t, cfg, logTopic) {
		values = append(values, string(r.Value))
	}
	return values
}

func decoded(t testing.TB, value string) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(value), &m); err != nil {
		t.Fatalf("the event %.200q is not JSON: %v", value, err)
	}
	return m
}

func TestHandlerPassesSlogtest(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(1, logTopic))
	l := openLogger(t, cfg)
	err := slogtest.TestHandler(NewHandler(l, &HandlerOptions{Topic: logTopic}), func() []map[string]any {
		var all []map[string]any
		for _, value := range logged(t, l, cfg) {
			all = append(all, decoded(t, value))
		}
		return all
	})
	if err != nil {
		t.Error(err)
	}
}

type point struct {
	X, Y int
	Tag  string `json:"tag,omitempty"`
}

type panicking struct{}

func (panicking) MarshalJSON() ([]byte, error) { panic("no") }

type valuer struct{ to slog.Value }

func (v valuer) LogValue() slog.Value { return v.to }

// endless is a group that contains itself.
type endless struct{}

func (endless) LogValue() slog.Value { return slog.GroupValue(slog.Any("in", endless{})) }

// TestHandlerShape checks the JSON format that docs/handler.md describes.
func TestHandlerShape(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 24, 18, 2, 11, 123456789, time.UTC)
	const head = `{"time":"2026-11-24T18:02:11.123456789Z","level":"INFO","msg":"m"`
	var nobody *json.SyntaxError
	type row struct {
		name string
		log  func(*slog.Logger) *slog.Logger // adds With and WithGroup
		args []any
		want string // after head
	}
	rows := []row{
		{"nothing", nil, nil, `}`},
		{"kinds", nil, []any{"s", "a\"b\\<é>\n\x01", "i", -3, "u", uint64(math.MaxUint64), "b", true, "n", nil},
			`,"s":"a\"b\\<é>\n\u0001","i":-3,"u":18446744073709551615,"b":true,"n":null}`},
		{"floats", nil, []any{"a", 1.5, "b", 1e21, "c", 1e-7, "d", 0.0, "e", 100.0}, `,"a":1.5,"b":1e+21,"c":1e-07,"d":0,"e":100}`},
		{"no numbers", nil, []any{"a", math.NaN(), "b", math.Inf(1), "c", math.Inf(-1)}, `,"a":"NaN","b":"+Inf","c":"-Inf"}`},
		{"duration, time", nil, []any{"d", 1500 * time.Millisecond, "t", at.In(time.FixedZone("", 3600))},
			`,"d":1500000000,"t":"2026-11-24T19:02:11.123456789+01:00"}`},
		{"bytes", nil, []any{"b", []byte("abc")}, `,"b":"YWJj"}`},
		{"errors", nil, []any{"e", errors.New("no <luck>"), "w", fmt.Errorf("x: %w", os.ErrNotExist), "p", nobody},
			`,"e":"no <luck>","w":"x: file does not exist","p":"<nil>"}`},
		{"anything", nil, []any{"p", point{1, 2, "<"}, "m", map[string]int{"b": 2, "a": 1}, "l", []string{"x"}},
			`,"p":{"X":1,"Y":2,"tag":"<"},"m":{"a":1,"b":2},"l":["x"]}`},
		{"not JSON", nil, []any{"c", make(chan int), "p", panicking{}, "f", []float64{math.NaN()}},
			`,"c":"!ERROR: json: unsupported type: chan int","p":"!PANIC: no","f":"!ERROR: json: unsupported value: NaN"}`},
		{"not UTF-8", nil, []any{"a\xff", "b\xc3"}, `,"a�":"b�"}`},
		{"LogValuer", nil, []any{"v", valuer{slog.IntValue(7)}, "g", valuer{slog.GroupValue(slog.Int("a", 1))}}, `,"v":7,"g":{"a":1}}`},
		{"secrets", nil, []any{"s", globus.Secret("hidden"), "in", struct{ S globus.Secret }{"hidden"}}, `,"s":"[redacted]","in":{"S":"[redacted]"}}`},
		{"groups", nil, []any{slog.Group("g", "a", 1, slog.Group("h", "b", 2)), "c", 3}, `,"g":{"a":1,"h":{"b":2}},"c":3}`},
		{"empty groups", nil, []any{slog.Group("g"), slog.Group("h", slog.Group("i")), slog.Group("", "a", 1), slog.Attr{}}, `,"a":1}`},
		{"duplicates", nil, []any{"a", 1, "a", 2, "a", 3, slog.Group("g", "a", 4, "a", 5), slog.Group("g", "b", 6)},
			`,"a":1,"a#2":2,"a#3":3,"g":{"a":4,"a#2":5},"g#2":{"b":6}}`},
		{"taken names", nil, []any{"time", 1, "level", 2, "msg", 3, "lost", 4, "cut", 5, "source", 6, slog.Group("g", "msg", 7)},
			`,"time#2":1,"level#2":2,"msg#2":3,"lost#2":4,"cut#2":5,"source":6,"g":{"msg":7}}`},
		{"With", func(l *slog.Logger) *slog.Logger { return l.With("a", 1, "b", 2).With("c", 3) }, []any{"a", 4},
			`,"a":1,"b":2,"c":3,"a#2":4}`},
		{"WithGroup", func(l *slog.Logger) *slog.Logger {
			return l.With("g", 0).WithGroup("g").With("a", 1).WithGroup("h").With("b", 2)
		}, []any{"b", 3}, `,"g":0,"g#2":{"a":1,"h":{"b":2,"b#2":3}}}`},
		{"WithGroup without attributes", func(l *slog.Logger) *slog.Logger {
			return l.With("a", 1).WithGroup("g").WithGroup("h").With(slog.Group("i")).WithGroup("")
		}, nil, `,"a":1}`},
		{"late group", func(l *slog.Logger) *slog.Logger { return l.WithGroup("g").WithGroup("h") }, []any{"a", 1}, `,"g":{"h":{"a":1}}}`},
	}
	_, cfg := newCluster(t, kfake.SeedTopics(1, logTopic))
	l := openLogger(t, cfg)
	h := NewHandler(l, &HandlerOptions{Topic: logTopic})
	for _, row := range rows {
		logger := slog.New(h)
		if row.log != nil {
			logger = row.log(logger)
		}
		r := slog.NewRecord(at, slog.LevelInfo, "m", 0)
		r.Add(row.args...)
		if err := logger.Handler().Handle(t.Context(), r); err != nil {
			t.Fatalf("%s: %v", row.name, err)
		}
	}
	got := logged(t, l, cfg)
	if len(got) != len(rows) {
		t.Fatalf("%d events arrived, want %d", len(got), len(rows))
	}
	for _, r := range readAll(t, cfg, logTopic) {
		if !r.Time.Equal(at) {
			t.Errorf("the event's time is %v, want %v", r.Time, at)
		}
	}
	for i, row := range rows {
		if want := head + row.want; got[i] != want {
			t.Errorf("%s:\n got %s\nwant %s", row.name, got[i], want)
		}
		decoded(t, got[i])
	}
	if h.Lost() != 0 {
		t.Errorf("Lost() = %d, want 0", h.Lost())
	}
}

func TestHandlerOptions(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(1, logTopic))
	l := openLogger(t, cfg)
	type traceKey struct{}
	h := NewHandler(l, &HandlerOptions{
		Topic:     logTopic,
		Key:       []byte("host-7"),
		Level:     slog.LevelDebug,
		AddSource: true,
		Trace: func(ctx context.Context) (string, string) {
			ids, _ := ctx.Value(traceKey{}).([2]string)
			return ids[0], ids[1]
		},
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			switch {
			case a.Key == "password":
				a.Value = slog.StringValue("[redacted]")
			case a.Key == "gone":
				return slog.Attr{}
			case a.Key == "where":
				a.Value = slog.StringValue(strings.Join(groups, "/"))
			}
			return a
		},
	})
	logger := slog.New(h).With("password", "hunter2", "where", "").WithGroup("g").With("where", "")
	ctx := context.WithValue(t.Context(), traceKey{}, [2]string{"trace", "span"})
	began := time.Now()
	logger.DebugContext(ctx, "m", "password", "hunter2", "where", "", slog.Group("h", "where", "", "gone", 1), slog.Group("i", "gone", 1), "trace_id", "own")
	if h.Enabled(ctx, slog.LevelDebug-1) {
		t.Error("a record below the level is enabled")
	}
	testkit.Must(t, l.Flush(within(t)))
	r := readAll(t, cfg, logTopic)[0]
	if string(r.Key) != "host-7" {
		t.Errorf("the event's key is %q", r.Key)
	}
	m := decoded(t, string(r.Value))
	if at, err := time.Parse(time.RFC3339Nano, m["time"].(string)); err != nil || r.Time.Sub(at).Abs() >= 2*time.Millisecond || at.Before(began.Truncate(0)) {
		t.Errorf("the event's time is %v, and %v in its value, logged after %v", r.Time, m["time"], began)
	}
	source := m["source"].(map[string]any)
	if !strings.HasSuffix(source["file"].(string), "handler_test.go") || source["line"].(float64) == 0 ||
		!strings.HasSuffix(source["function"].(string), "TestHandlerOptions") {
		t.Errorf("the source is %v", source)
	}
	delete(m, "time")
	delete(m, "source")
	got, _ := json.Marshal(m)
	want := `{"g":{"h":{"where":"g/h"},"password":"[redacted]","trace_id":"own","where":"g","where#2":"g"},` +
		`"level":"DEBUG","msg":"m","password":"[redacted]","span_id":"span","trace_id":"trace","where":""}`
	if string(got) != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
}

// TestHandlerNeedsATopic fails when NewHandler does not panic without a topic.
func TestHandlerNeedsATopic(t *testing.T) {
	t.Parallel()
	for _, options := range []*HandlerOptions{nil, {}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("NewHandler(logger, %v) returned, want a panic", options)
				}
			}()
			NewHandler(new(Logger), options)
		}()
	}
}

// TestHandlerCutsWhatIsTooLarge logs, in each place, values that are too large for any cluster.
func TestHandlerCutsWhatIsTooLarge(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(1, logTopic))
	l := openLogger(t, cfg)
	h := NewHandler(l, &HandlerOptions{Topic: logTopic, Key: []byte("k"), Trace: func(context.Context) (string, string) {
		return "t", strings.Repeat("s", 300)
	}})
	big := strings.Repeat("x", 2*defaultMaxEventBytes)
	nasty := strings.Repeat("\x01", defaultMaxEventBytes)
	half := strings.Repeat("h", defaultMaxEventBytes/2)
	rows := []struct {
		name string
		log  func(*slog.Logger)
		cut  int // number of values that are cut, not counting the span
	}{
		{"attribute", func(l *slog.Logger) { l.Info("m", "a", big, "kept", 1) }, 1},
		{"one of several", func(l *slog.Logger) { l.Info("m", "a", half, "b", half, "kept", 1) }, 1},
		{"name", func(l *slog.Logger) { l.Info("m", big, 1, "kept", 1) }, 1},
		{"value of any kind", func(l *slog.Logger) { l.Info("m", "a", []string{big}, "kept", 1) }, 1},
		{"message", func(l *slog.Logger) { l.Info(big, "kept", 1) }, 1},
		{"message of escapes", func(l *slog.Logger) { l.Info(nasty, "kept", 1) }, 1},
		{"message that is not UTF-8", func(l *slog.Logger) { l.Info(strings.Repeat("\x80", len(big)), "kept", 1) }, 1},
		{"in a group", func(l *slog.Logger) { l.Info("m", slog.Group("g", "a", big), "kept", 1) }, 1},
		{"With", func(l *slog.Logger) { l.With("a", big).Info("m", "kept", 1) }, 1},
		{"With, and a message", func(l *slog.Logger) { l.With("a", big[:defaultMaxEventBytes*9/10]).Info(big, "kept", 1) }, 2},
		{"all of it", func(l *slog.Logger) { l.With("a", half[1000:]).Info(nasty, "b", half, "kept", 1) }, 2},
		{"group's name", func(l *slog.Logger) { l.WithGroup(big).With("a", 1).Info("m", "b", 1) }, 2},
		{"endless group", func(l *slog.Logger) { l.Info("m", "a", endless{}, "kept", 1) }, 1},
	}
	for _, row := range rows {
		row.log(slog.New(h))
	}
	got := logged(t, l, cfg)
	if len(got) != len(rows) {
		t.Fatalf("%d events arrived, want %d; Stats() = %+v", len(got), len(rows), l.Stats())
	}
	for i, row := range rows {
		m := decoded(t, got[i])
		if m["cut"] != float64(row.cut+1) {
			t.Errorf("%s: the event says cut: %v, want %d", row.name, m["cut"], row.cut+1)
		}
		if m["kept"] != 1.0 && row.name != "group's name" {
			t.Errorf("%s: the attribute that fits is missing", row.name)
		}
		if msg := m["msg"].(string); msg != "m" && !strings.HasSuffix(msg, "…") {
			t.Errorf("%s: the message ends in %q, want …", row.name, msg[len(msg)-5:])
		}
	}
	if h.Lost() != 0 {
		t.Errorf("Lost() = %d, want 0", h.Lost())
	}
}

// heldLogger returns a Logger with room for a few events, none of which is acknowledged.
func heldLogger(t *testing.T) (l *Logger, cfg Config, release func()) {
	t.Helper()
	c, cfg := newCluster(t, kfake.SeedTopics(1, logTopic))
	l = openLogger(t, cfg)
	l.sink.(*direct).budget.max = 4000
	return l, cfg, hold(t, c, kmsg.Produce).release
}

func TestHandlerDropsIfAllowed(t *testing.T) {
	t.Parallel()
	for _, after := range []time.Duration{-1, time.Millisecond} {
		t.Run(after.String(), func(t *testing.T) {
			l, cfg, release := heldLogger(t)
			h := NewHandler(l, &HandlerOptions{Topic: logTopic, DropAfter: after})
			taken, dropped := 0, 0
			for dropped < 3 {
				r := slog.NewRecord(time.Now(), slog.LevelInfo, "m", 0)
				switch err := h.Handle(t.Context(), r); {
				case err == nil:
					taken++
				case errors.Is(err, ErrUnavailable):
					dropped++
				default:
					t.Fatal(err)
				}
			}
			if h.Lost() != 3 || l.Stats().Failed != 3 {
				t.Errorf("Lost() = %d, Stats().Failed = %d, want 3 of each", h.Lost(), l.Stats().Failed)
			}
			release()
			testkit.Must(t, l.Flush(within(t)))
			const more = 50
			for range more {
				slog.New(h).Info("next")
				testkit.Must(t, l.Flush(within(t)))
			}
			got := logged(t, l, cfg)
			if len(got) != taken+more {
				t.Fatalf("%d events arrived, want %d", len(got), taken+more)
			}
			for i, value := range got {
				var want any
				if i == taken {
					want = 3.0
				}
				if m := decoded(t, value); m["lost"] != want {
					t.Errorf("event %d of %d says lost: %v, want %v", i, len(got), m["lost"], want)
				}
			}
		})
	}
}

// TestHandlerTellsOfFailures has an event fail that itself reports lost events.
func TestHandlerTellsOfFailures(t *testing.T) {
	t.Parallel()
	c, cfg := newCluster(t, kfake.SeedTopics(1, logTopic))
	l := openLogger(t, cfg)
	h := NewHandler(l, &HandlerOptions{Topic: logTopic})
	const refusals = 2
	for range refusals {
		c.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
			resp := req.ResponseKind().(*kmsg.ProduceResponse)
			for _, topic := range req.(*kmsg.ProduceRequest).Topics {
				rt := kmsg.NewProduceResponseTopic()
				rt.Topic, rt.TopicID = topic.Topic, topic.TopicID
				rp := kmsg.NewProduceResponseTopicPartition()
				rp.Partition = topic.Partitions[0].Partition
				rp.ErrorCode = 29 // TOPIC_AUTHORIZATION_FAILED
				rt.Partitions = append(rt.Partitions, rp)
				resp.Topics = append(resp.Topics, rt)
			}
			return resp, nil, true
		})
		slog.New(h).Info("refused")
		testkit.Must(t, l.Flush(within(t)))
	}
	slog.New(h).Info("taken")
	got := logged(t, l, cfg)
	if len(got) != 1 {
		t.Fatalf("%d events arrived, want 1", len(got))
	}
	if m := decoded(t, got[0]); m["lost"] != float64(refusals) || h.Lost() != refusals {
		t.Errorf("the event says lost: %v and Lost() = %d, want %d of each", m["lost"], h.Lost(), refusals)
	}
}

// TestHandlerWaitsUnlessAllowedToDrop logs to a full Logger, with a context that has ended.
func TestHandlerWaitsUnlessAllowedToDrop(t *testing.T) {
	t.Parallel()
	l, cfg, release := heldLogger(t)
	h := NewHandler(l, &HandlerOptions{Topic: logTopic})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	const n = 20
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range n {
			slog.New(h).InfoContext(ctx, fmt.Sprint(i))
		}
	}()
	eventually(t, "a record that waits for memory", func() bool { return l.sink.(*direct).budget.waiting.Load() > 0 })
	select {
	case <-done:
		t.Fatal("20 records were taken, though there is room for a few")
	default:
	}
	release()
	<-done
	got := logged(t, l, cfg)
	if len(got) != n || h.Lost() != 0 {
		t.Fatalf("%d events arrived and %d were lost, want %d and 0", len(got), h.Lost(), n)
	}
	for i, value := range got {
		if m := decoded(t, value); m["msg"] != fmt.Sprint(i) {
			t.Errorf("event %d is %v", i, m["msg"])
		}
	}
}

func TestCloseEndsTheWaitForRoom(t *testing.T) {
	t.Parallel()
	l, _, release := heldLogger(t)
	h := NewHandler(l, &HandlerOptions{Topic: logTopic})
	done := make(chan error)
	go func() {
		var err error
		for err == nil {
			err = h.Handle(context.Background(), slog.NewRecord(time.Now(), slog.LevelInfo, "m", 0))
		}
		done <- err
	}()
	eventually(t, "a record that waits for memory", func() bool { return l.sink.(*direct).budget.waiting.Load() > 0 })
	closed := make(chan error)
	go func() { closed <- l.Close(within(t)) }()
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Errorf("Handle() = %v, want ErrClosed", err)
	}
	release()
	if err := <-closed; err != nil {
		t.Errorf("Close() = %v", err)
	}
	if h.Lost() != 1 {
		t.Errorf("Lost() = %d, want 1", h.Lost())
	}
}

// TestCallbacksMayLog logs from inside the Kafka client, where waiting for room would be a
// deadlock.
func TestCallbacksMayLog(t *testing.T) {
	t.Parallel()
	l, cfg, release := heldLogger(t)
	h := NewHandler(l, &HandlerOptions{Topic: logTopic})
	say := func(h *Handler) error {
		return h.Handle(context.Background(), slog.NewRecord(time.Now(), slog.LevelInfo, "m", 0))
	}
	said := make(chan error, 1)
	l.Send(Event{Topic: logTopic, Value: []byte(`{"msg":"first"}`)}, func(Record, error) { said <- say(h) })
	taken := 1
	for dropping := NewHandler(l, &HandlerOptions{Topic: logTopic, DropAfter: -1}); say(dropping) == nil; {
		taken++
	}
	release()
	select {
	case err := <-said:
		if !errors.Is(err, ErrUnavailable) || h.Lost() != 1 {
			t.Errorf("Handle() = %v and Lost() = %d, want ErrUnavailable and 1", err, h.Lost())
		}
	case <-within(t).Done():
		t.Fatal("a callback that logs waits for itself")
	}
	testkit.Must(t, l.Flush(within(t)))
	slog.New(h).Info("next")
	if got := logged(t, l, cfg); len(got) != taken+1 || decoded(t, got[taken])["lost"] != 1.0 {
		t.Errorf("the topic has %q, want %d events, the last of which says lost: 1", got, taken+1)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestTokensMayLog logs from the code that gets the Logger's tokens, as an HTTP transport that
// traces requests may do.
func TestTokensMayLog(t *testing.T) {
	t.Parallel()
	l, _, _ := heldLogger(t)
	say := func(h *Handler) error {
		return h.Handle(context.Background(), slog.NewRecord(time.Now(), slog.LevelInfo, "m", 0))
	}
	for dropping := NewHandler(l, &HandlerOptions{Topic: logTopic, DropAfter: -1}); say(dropping) == nil; {
	}
	waiting := NewHandler(l, &HandlerOptions{Topic: logTopic})
	said := make(chan error, 100)
	client, err := globus.New(globus.Config{Issuer: "http://127.0.0.1:1", ClientID: "c", HTTPClient: &http.Client{
		Transport: roundTripper(func(*http.Request) (*http.Response, error) {
			said <- say(waiting)
			return nil, errors.New("no network")
		}),
	}})
	testkit.Must(t, err)
	go client.RefreshSource("r", "rs", "").Token(within(t))
	select {
	case err := <-said:
		if !errors.Is(err, ErrUnavailable) {
			t.Errorf("Handle() = %v, want ErrUnavailable", err)
		}
	case <-within(t).Done():
		t.Fatal("what gets the tokens waits for memory in the Logger")
	}
}

func TestHandlerConcurrently(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(3, logTopic))
	l := openLogger(t, cfg)
	base := slog.New(NewHandler(l, &HandlerOptions{Topic: logTopic, Key: []byte("k")})).With("common", 1)
	const loops, n = 8, 200
	var wg sync.WaitGroup
	for loop := range loops {
		wg.Go(func() {
			own := base.With("loop", loop).WithGroup("g")
			for i := range n {
				own.Info("m", "i", i, "pad", strings.Repeat("x", i))
			}
		})
	}
	wg.Wait()
	next := map[float64]float64{}
	for _, value := range logged(t, l, cfg) {
		m := decoded(t, value)
		g := m["g"].(map[string]any)
		loop, i := m["loop"].(float64), g["i"].(float64)
		if next[loop] != i || len(g["pad"].(string)) != int(i) || m["common"] != 1.0 {
			t.Fatalf("loop %v: event %v in place of %v: %s", loop, i, next[loop], value)
		}
		next[loop]++
	}
	for loop := range loops {
		if next[float64(loop)] != n {
			t.Errorf("loop %d: %v events arrived, want %d", loop, next[float64(loop)], n)
		}
	}
}

// relay is a handler that looks up its target at each message.
type relay struct {
	to    func() slog.Handler
	attrs []slog.Attr
	async chan<- func()
}

func (r relay) Enabled(ctx context.Context, level slog.Level) bool { return true }
func (r relay) WithGroup(string) slog.Handler                      { return r }
func (r relay) WithAttrs(attrs []slog.Attr) slog.Handler {
	r.attrs = append(r.attrs[:len(r.attrs):len(r.attrs)], attrs...)
	return r
}
func (r relay) Handle(ctx context.Context, record slog.Record) error {
	to := r.to()
	if len(r.attrs) > 0 {
		to = to.WithAttrs(r.attrs)
	}
	if r.async != nil {
		r.async <- func() {
			if to.Enabled(ctx, record.Level) {
				to.Handle(ctx, record)
			}
		}
		return nil
	}
	return to.Handle(ctx, record)
}

// asDefault makes h the default handler of package slog, and thus of package log, until the test
// ends.
func asDefault(t *testing.T, h slog.Handler) {
	before, out, flags, prefix := slog.Default(), log.Writer(), log.Flags(), log.Prefix()
	slog.SetDefault(slog.New(h))
	t.Cleanup(func() {
		slog.SetDefault(before)
		log.SetOutput(out)
		log.SetFlags(flags)
		log.SetPrefix(prefix)
	})
}

// TestDiagnosticsDoNotGoRound sends a Logger's diagnostics back to its own Handler, in each way
// that a program may.
func TestDiagnosticsDoNotGoRound(t *testing.T) {
	async := make(chan func(), 100)
	now := func() slog.Handler { return slog.Default().Handler() }
	for name, diagnostics := range map[string]*slog.Logger{
		"whatever is the default":     slog.New(relay{to: now}),
		"later, in another goroutine": slog.New(relay{to: now, async: async}),
	} {
		t.Run(name, func(t *testing.T) {
			defer slog.SetLogLoggerLevel(slog.SetLogLoggerLevel(slog.LevelDebug))
			_, cfg := newCluster(t, kfake.SeedTopics(1, logTopic))
			cfg.Diagnostics = diagnostics
			l := openLogger(t, cfg)
			asDefault(t, NewHandler(l, &HandlerOptions{Topic: logTopic, Level: slog.LevelDebug}))
			slog.Info("1")
			for range 3 {
				l.fabric.diagnostics().Warn("about itself")
			}
			l.fabric.diagnostics().With("a", 1).WithGroup("g").Warn("about itself", "b", 2)
			for strings.HasPrefix(name, "later") && len(async) > 0 {
				(<-async)()
			}
			slog.Info("2")
			if err := l.Flush(within(t)); err != nil { // before reading, because a Consumer logs diagnostics too
				t.Fatal(err)
			}
			cfg.Diagnostics = nil
			var got []any
			for _, value := range logged(t, l, cfg) {
				got = append(got, decoded(t, value)["msg"])
			}
			if fmt.Sprint(got) != "[1 2]" {
				t.Errorf("the topic has %v, want [1 2]", got)
			}
		})
	}
}

// TestDiagnosticsDoNotStandStill has a program wait for room in the Logger while it holds the lock
// of package log, which the Logger's next message needs.
func TestDiagnosticsDoNotStandStill(t *testing.T) {
	c, cfg := newCluster(t, kfake.SeedTopics(1, logTopic))
	cfg.Diagnostics = slog.Default()
	l := openLogger(t, cfg)
	l.sink.(*direct).budget.max = 4000
	release := hold(t, c, kmsg.Produce).release
	asDefault(t, NewHandler(l, &HandlerOptions{Topic: logTopic}))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 10 {
			log.Print("m")
		}
	}()
	eventually(t, "a line that waits for memory", func() bool { return l.sink.(*direct).budget.waiting.Load() > 0 })
	spoke := make(chan struct{})
	go func() { // in the role of the Kafka client
		defer close(spoke)
		for range 2 * diagnostics.MaxQueued {
			l.fabric.diagnostics().Warn("about itself")
		}
	}()
	select {
	case <-spoke:
	case <-within(t).Done():
		t.Error("the Logger waits for whoever takes its diagnostics")
	}
	release()
	<-done
	lines := 0 // lines of the program; the library's messages also arrive through package log
	for _, value := range logged(t, l, Config{Brokers: cfg.Brokers, anonymous: true}) {
		if decoded(t, value)["msg"] == "m" {
			lines++
		}
	}
	if lines != 10 {
		t.Errorf("%d lines arrived, want 10", lines)
	}
}

var _ io.WriteCloser = (*Writer)(nil)

// TestWriterLines splits a text at every place into two writes.
func TestWriterLines(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(1, logTopic))
	l := openLogger(t, cfg)
	text := "first\n\nthird\r\n\x00\xff\nlast"
	want := []string{"first", "", "third\r", "\x00\xff", "last"}
	for cut := range len(text) + 1 {
		w := NewWriter(l, &WriterOptions{Topic: logTopic, Key: []byte("k")})
		buf := []byte(text[:cut])
		for _, part := range [][]byte{buf, []byte(text[cut:])} {
			if n, err := w.Write(part); n != len(part) || err != nil {
				t.Fatalf("Write() = %d, %v, want %d, nil", n, err, len(part))
			}
		}
		copy(buf, bytes.Repeat([]byte("!"), len(buf))) // the buffer is the caller's again
		testkit.Must(t, errors.Join(w.Close(), w.Close()))
		if n, err := w.Write([]byte("late\n")); n != 0 || !errors.Is(err, ErrClosed) {
			t.Fatalf("Write() after Close = %d, %v, want 0, ErrClosed", n, err)
		}
	}
	got := logged(t, l, cfg)
	for i := range len(text) + 1 {
		if len(got) < len(want) || !slices.Equal(got[:len(want)], want) {
			t.Fatalf("cut at %d: the events are %q, want %q first", i, got, want)
		}
		got = got[len(want):]
	}
	if len(got) > 0 {
		t.Errorf("more events arrived: %q", got)
	}
	records := readAll(t, cfg, logTopic)
	for _, r := range records {
		if string(r.Key) != "k" || r.Value == nil || len(r.Headers) > 0 {
			t.Fatalf("event %q has key %q, value nil: %v, headers %v", r.Value, r.Key, r.Value == nil, r.Headers)
		}
	}
}

// TestWriterLongLines writes lines with lengths around the limit, in random pieces.
func TestWriterLongLines(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(1, logTopic))
	l := openLogger(t, cfg)
	read := 0
	rapid.Check(t, func(rt *rapid.T) {
		max := rapid.IntRange(1, 5).Draw(rt, "max")
		lines := rapid.SliceOfN(rapid.StringMatching(`[a-c]{0,12}`), 1, 8).Draw(rt, "lines")
		w := NewWriter(l, &WriterOptions{Topic: logTopic, MaxLineBytes: max})
		for rest := strings.Join(lines, "\n") + "\n"; rest != ""; {
			n := rapid.IntRange(1, len(rest)).Draw(rt, "piece")
			if _, err := io.WriteString(w, rest[:n]); err != nil {
				rt.Fatal(err)
			}
			rest = rest[n:]
		}
		if err := errors.Join(w.Close(), l.Flush(within(t))); err != nil {
			rt.Fatal(err)
		}
		var got []string
		line := ""
		records := readAll(t, cfg, logTopic)
		for _, r := range records[read:] {
			if len(r.Value) > max {
				rt.Fatalf("an event has %d bytes, more than %d", len(r.Value), max)
			}
			line += string(r.Value)
			if len(r.Headers) == 1 && r.Headers[0].Key == "continues" && string(r.Headers[0].Value) == "true" {
				continue
			}
			got = append(got, line)
			line = ""
		}
		read = len(records)
		if !slices.Equal(got, lines) || line != "" {
			rt.Fatalf("the lines are %q and %q, want %q", got, line, lines)
		}
	})
}

// TestWriterTakesTheLongestLine writes a line that is longer than the largest event.
func TestWriterTakesTheLongestLine(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(1, logTopic))
	l := openLogger(t, cfg)
	w := NewWriter(l, &WriterOptions{Topic: logTopic, Key: []byte("k"), MaxLineBytes: 1 << 30})
	line := strings.Repeat("0123456789", defaultMaxEventBytes/4)
	if _, err := fmt.Fprintln(w, line); err != nil {
		t.Fatal(err)
	}
	if got := logged(t, l, cfg); len(got) != 3 || strings.Join(got, "") != line {
		t.Errorf("the line of %d bytes became %d events with %d bytes in all, want 3", len(line), len(got), len(strings.Join(got, "")))
	}
}

func TestWriterConcurrently(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(1, logTopic))
	l := openLogger(t, cfg)
	w := NewWriter(l, &WriterOptions{Topic: logTopic})
	logger := log.New(w, "", 0)
	const loops, n = 8, 100
	var wg sync.WaitGroup
	for loop := range loops {
		wg.Go(func() {
			for i := range n {
				if loop%2 == 0 {
					logger.Printf("%d %d\nand more", loop, i)
				} else {
					fmt.Fprintf(w, "%d %d\nand more\n", loop, i)
				}
			}
		})
	}
	wg.Wait()
	got := logged(t, l, cfg)
	if len(got) != 2*loops*n {
		t.Fatalf("%d events arrived, want %d", len(got), 2*loops*n)
	}
	next := map[int]int{}
	for k := 0; k < len(got); k += 2 {
		var loop, i int
		if _, err := fmt.Sscanf(got[k], "%d %d", &loop, &i); err != nil || i != next[loop] || got[k+1] != "and more" {
			t.Fatalf("events %d and %d are %q", k, k+1, got[k:k+2])
		}
		next[loop]++
	}
}

func TestWriterSaysWhatItDropped(t *testing.T) {
	t.Parallel()
	l, cfg, release := heldLogger(t)
	w := NewWriter(l, &WriterOptions{Topic: logTopic, DropAfter: -1})
	taken := 0
	for w.Lost() < 2 {
		n, err := io.WriteString(w, "line\n")
		if n != 5 || (err == nil) != (w.Lost() == 0) || err != nil && !errors.Is(err, ErrUnavailable) {
			t.Fatalf("Write() = %d, %v with %d lost", n, err, w.Lost())
		}
		if err == nil {
			taken++
		}
	}
	release()
	testkit.Must(t, l.Flush(within(t)))
	const more = 50
	for range more {
		io.WriteString(w, "next\n")
		testkit.Must(t, l.Flush(within(t)))
	}
	records := readAll(t, cfg, logTopic)
	if len(records) != taken+more {
		t.Fatalf("%d events arrived, want %d", len(records), taken+more)
	}
	for i, r := range records {
		want := "[]"
		if i == taken {
			want = `[{"lost" "2"}]`
		}
		if got := fmt.Sprintf("%q", r.Headers); got != want {
			t.Errorf("event %d of %d has headers %s, want %s", i, len(records), got, want)
		}
	}
}

func TestWriterOnAClosedLogger(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(1, logTopic))
	l := openLogger(t, cfg)
	w := NewWriter(l, &WriterOptions{Topic: logTopic})
	testkit.Must(t, l.Close(within(t)))
	if n, err := io.WriteString(w, "a\nb\n"); n != 4 || !errors.Is(err, ErrClosed) || w.Lost() != 2 {
		t.Errorf("Write() = %d, %v with %d lost, want 4, ErrClosed, 2", n, err, w.Lost())
	}
}

func TestWriterNeedsATopic(t *testing.T) {
	t.Parallel()
	defer func() {
		if recover() == nil {
			t.Error("NewWriter without a topic returned, want a panic")
		}
	}()
	NewWriter(new(Logger), &WriterOptions{})
}

// TestWriterHandsOverAtOnce fails when a line waits for the next one.
func TestWriterHandsOverAtOnce(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(1, logTopic))
	l := openLogger(t, cfg)
	w := NewWriter(l, &WriterOptions{Topic: logTopic})
	io.WriteString(w, "whole\nbegin")
	if got := logged(t, l, cfg); !slices.Equal(got, []string{"whole"}) {
		t.Fatalf("the topic has %q, want the whole line", got)
	}
	io.WriteString(w, "ning\n")
	if got := logged(t, l, cfg); !slices.Equal(got, []string{"whole", "beginning"}) {
		t.Errorf("the topic has %q, want both lines", got)
	}
}

// BenchmarkHandler logs through slog until everything is acknowledged. Its allocations include
// those of the broker; `go run ./bench -only handler` shows them separately.
func BenchmarkHandler(b *testing.B) {
	l := openLogger(b, benchCluster(b))
	benchmarkSlog(b, NewHandler(l, &HandlerOptions{Topic: "bench"}))
	testkit.Must(b, l.Flush(context.Background()))
}

func BenchmarkSlogJSONDiscarded(b *testing.B) {
	benchmarkSlog(b, slog.NewJSONHandler(io.Discard, nil))
}

func benchmarkSlog(b *testing.B, h slog.Handler) {
	log := slog.New(h)
	ctx := context.Background()
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		i++
		log.LogAttrs(ctx, slog.LevelInfo, "shot taken", slog.String("instrument", "L1"), slog.Int("shot", i),
			slog.Float64("energy_keV", 12.4), slog.Duration("took", 1500*time.Microsecond), slog.Bool("beam", true))
	}
}
