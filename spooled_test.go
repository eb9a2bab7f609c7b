package diaspora

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/spool"
	"github.com/diaspora-streams/diaspora/internal/testkit"
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
	testkit.Must(t, l.Log(within(t), Event{Topic: "beamline", Key: []byte("k"), Value: []byte("b")}, Event{Topic: "beamline", Key: []byte("k"), Value: []byte("c")}))
	testkit.Must(t, l.Flush(within(t)))
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

// TestSpooledWhileTheBrokerIsAway fails when opening, Log or Close need a reachable cluster.
func TestSpooledWhileTheBrokerIsAway(t *testing.T) {
	t.Parallel()
	c, cfg := newCluster(t, kfake.SeedTopics(1, "beamline"))
	c.Close()
	cfg = withSpool(t, cfg)
	l := openLogger(t, cfg)
	for i := range 10 {
		testkit.Must(t, l.Log(within(t), Event{Topic: "beamline", Key: []byte("k"), Value: fmt.Append(nil, i)}))
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
	_, again := newCluster(t, kfake.SeedTopics(1, "beamline"))
	again.SpoolDir = cfg.SpoolDir
	l = openLogger(t, again)
	testkit.Must(t, l.Close(within(t)))
	if got := values(readAll(t, again, "beamline")); got != "[0 1 2 3 4 5 6 7 8 9]" {
		t.Errorf("the topic has %s", got)
	}
}

// TestNoteOfThePast checks that the reason for pending events that an earlier process has stored in
// the spool is removed once events are sent.
func TestNoteOfThePast(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(1, "beamline"))
	cfg = withSpool(t, cfg)
	testkit.Must(t, openLogger(t, cfg).Close(within(t)))
	testkit.Must(t, os.WriteFile(filepath.Join(cfg.SpoolDir, "note"), []byte("not authenticated"), 0o600))
	l := openLogger(t, cfg)
	defer l.Close(within(t))
	eventually(t, "the note's end", func() bool {
		info, err := spool.Inspect(cfg.SpoolDir)
		return err == nil && info.Note == ""
	})
}

// TestClosePatience closes Loggers on a network that drops all packets, so that no attempt to
// connect ends. Each must wait as long as configured, say why, and leave all events in the spool.
func TestClosePatience(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(1, "beamline"))
	good := cfg
	cfg.dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	cfg = withSpool(t, cfg)
	n := 0
	for _, patience := range []time.Duration{-1, 300 * time.Millisecond, 3 * time.Second} {
		cfg.ClosePatience = patience
		l := openLogger(t, cfg)
		testkit.Must(t, l.Log(within(t), Event{Topic: "beamline", Value: fmt.Append(nil, n)}))
		n++
		began := time.Now()
		testkit.Must(t, l.Close(within(t)))
		stats := l.Stats().Spool
		if took := time.Since(began); took < patience || took > max(patience, 0)+2*time.Second || stats.Events != int64(n) {
			t.Errorf("with a patience of %v, Close took %v and left %d events, want %d", patience, took, stats.Events, n)
		}
		if !errors.Is(l.Stats().Err, ErrUnavailable) {
			t.Errorf("nobody was let in, and Err is %v", l.Stats().Err)
		}
		if (patience > 2*time.Second) != errors.Is(stats.Why, ErrUnavailable) {
			t.Errorf("with a patience of %v, the events wait because of: %v", patience, stats.Why)
		}
	}
	good.SpoolDir = cfg.SpoolDir
	l := openLogger(t, good)
	if err := l.Close(within(t)); err != nil || l.Stats().Err != nil {
		t.Fatal(err, l.Stats().Err)
	}
	if got := values(readAll(t, good, "beamline")); got != "[0 1 2]" {
		t.Errorf("the topic has %s", got)
	}
}

// drained waits until no events are pending in the spool.
func drained(t testing.TB, l *Logger) {
	t.Helper()
	eventually(t, "the spool to be empty", func() bool { return l.Stats().Spool.Events == 0 })
}

// numbers logs the numbers [from, to) to a topic, with one key.
func numbers(t testing.TB, l *Logger, topic string, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		testkit.Must(t, l.Log(within(t), Event{Topic: topic, Key: []byte("k"), Value: fmt.Append(nil, i)}))
	}
}

// wantNumbers checks that records are the numbers [0, to) in order. Repeats with the same ID are
// allowed, and counted.
func wantNumbers(t testing.TB, records []Record, to int) (repeats int) {
	t.Helper()
	seen := map[string]string{}
	next := 0
	for _, r := range records {
		if was, ok := seen[r.ID]; ok {
			if was != string(r.Value) {
				t.Fatalf("ID %s is of event %s and of event %s", r.ID, was, r.Value)
			}
			repeats++
			continue
		}
		seen[r.ID] = string(r.Value)
		if string(r.Value) != fmt.Sprint(next) {
			t.Fatalf("event %d is %q", next, r.Value)
		}
		next++
	}
	if next != to {
		t.Fatalf("%d events arrived, want %d", next, to)
	}
	return repeats
}

// TestSpooledConfiguration fails when a configuration error is reported only after opening.
func TestSpooledConfiguration(t *testing.T) {
	t.Parallel()
	_, good := newCluster(t)
	good = withSpool(t, good)
	for name, c := range map[string]struct {
		change func(*Config)
		want   error
	}{
		"no brokers":     {func(c *Config) { c.Brokers = nil }, ErrInvalid},
		"bad broker":     {func(c *Config) { c.Brokers = []string{"nowhere"} }, ErrInvalid},
		"no token":       {func(c *Config) { c.anonymous = false }, ErrInvalid},
		"no TLS":         {func(c *Config) { c.Brokers = []string{"example.org:9092"}; c.CA = []byte("x") }, ErrInvalid},
		"small":          {func(c *Config) { c.SpoolBytes = 1 }, ErrInvalid},
		"unknown policy": {func(c *Config) { c.SpoolPolicy = 7 }, ErrInvalid},
		"a file":         {func(c *Config) { c.SpoolDir = "spooled_test.go" }, ErrSpoolFailed},
	} {
		cfg := good
		c.change(&cfg)
		if l, err := OpenLogger(within(t), cfg); !errors.Is(err, c.want) {
			t.Errorf("%s: OpenLogger = %v, want %v", name, err, c.want)
			if err == nil {
				l.Close(within(t))
			}
		}
	}
	openLogger(t, good)
	if _, err := OpenLogger(within(t), good); !errors.Is(err, ErrConflict) {
		t.Errorf("OpenLogger on a spool in use = %v, want ErrConflict", err)
	}
}

// TestSpooledBelongsToASubject fails when events of one identity are sent with the login of
// another.
func TestSpooledBelongsToASubject(t *testing.T) {
	t.Parallel()
	c, cfg := newCluster(t, kfake.SeedTopics(1, "beamline"))
	g := hold(t, c, kmsg.Produce)
	cfg = withSpool(t, cfg)
	cfg.Identity.Subject = "ada"
	l := openLogger(t, cfg)
	numbers(t, l, "beamline", 0, 3)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	testkit.Must(t, l.Close(ended))
	other := cfg
	other.Identity.Subject = "grace"
	if _, err := OpenLogger(within(t), other); !errors.Is(err, ErrConflict) || Hint(err) == "" {
		t.Fatalf("OpenLogger of another identity = %v, want ErrConflict with a hint", err)
	}
	g.release()
	l = openLogger(t, cfg)
	testkit.Must(t, l.Close(within(t)))
	wantNumbers(t, readAll(t, cfg, "beamline"), 3)
	openLogger(t, other) // no events are pending any more
}

// TestSpooledHoldsATopic fails when a topic without permission delays others, when its events are
// lost, or when they are out of order after the permission was granted.
func TestSpooledHoldsATopic(t *testing.T) {
	t.Parallel()
	c, cfg := newCluster(t, kfake.SeedTopics(2, "mine", "yours"))
	f := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "yours", Err: kerr.TopicAuthorizationFailed, Count: -1})
	l := openLogger(t, withSpool(t, cfg))
	for i := range 50 {
		numbers(t, l, "yours", i, i+1)
		numbers(t, l, "mine", i, i+1)
	}
	eventually(t, "the other topic to drain", func() bool { return l.Stats().Acknowledged == 50 })
	s := l.Stats().Spool
	if s.Events != 50 || !errors.Is(s.Held["yours"], ErrPermission) || s.Held["mine"] != nil || !errors.Is(s.Why, ErrPermission) {
		t.Fatalf("Stats().Spool = %+v, want yours held", s)
	}
	f.Remove()
	drained(t, l)
	testkit.Must(t, l.Flush(within(t)))
	wantNumbers(t, readAll(t, cfg, "mine"), 50)
	if n := wantNumbers(t, readAll(t, cfg, "yours"), 50); n != 0 {
		t.Errorf("%d events came twice", n)
	}
	if s := l.Stats().Spool; len(s.Held) > 0 || s.Why != nil {
		t.Errorf("Stats().Spool = %+v, want nothing held", s)
	}
}

// TestSpooledTopicThatComesLater fails when events are lost whose topic does not exist yet, or does
// not exist any more.
func TestSpooledTopicThatComesLater(t *testing.T) {
	t.Parallel()
	c, cfg := newCluster(t, kfake.SeedTopics(1, "other"))
	l := openLogger(t, withSpool(t, cfg))
	numbers(t, l, "late", 0, 5)
	numbers(t, l, "other", 0, 5)
	eventually(t, "the topic to be held", func() bool { return errors.Is(l.Stats().Spool.Held["late"], ErrNotFound) })
	testkit.Must(t, c.CreateTopic("late", 1, nil))
	drained(t, l)
	wantNumbers(t, readAll(t, cfg, "late"), 5)
	wantNumbers(t, readAll(t, cfg, "other"), 5)
	testkit.Must(t, c.DeleteTopic("late"))
	numbers(t, l, "late", 0, 5)
	eventually(t, "the topic to be held again", func() bool { return errors.Is(l.Stats().Spool.Held["late"], ErrNotFound) })
	testkit.Must(t, c.CreateTopic("late", 1, nil))
	drained(t, l)
	wantNumbers(t, readAll(t, cfg, "late"), 5)
}

// TestSpooledWhoseLoginIsGone fails when pending events do not wait for a new login, when the
// reason does not name the command to run, or when it contains the token.
func TestSpooledWhoseLoginIsGone(t *testing.T) {
	t.Parallel()
	c, cfg := newCluster(t, kfake.SeedTopics(1, "beamline"))
	d := newDoor(c, &cfg)
	d.shut.Store(true)
	cfg = withSpool(t, cfg)
	cfg.Identity.Subject = "ada"
	l := openLogger(t, cfg)
	numbers(t, l, "beamline", 0, 20)
	eventually(t, "the refusal", func() bool {
		why := l.Stats().Spool.Why
		return errors.Is(why, ErrUnauthenticated) && Hint(why) == defaultLogin
	})
	if err := l.Close(within(t)); err != nil { // returns although nobody has logged in again
		t.Fatal(err)
	}
	if s := l.Stats().Spool; s.Events != 20 || !errors.Is(s.Why, ErrUnauthenticated) {
		t.Errorf("Stats().Spool = %+v, want 20 events and the refusal", s)
	}
	l = openLogger(t, cfg)
	numbers(t, l, "beamline", 20, 30)
	eventually(t, "the refusal", func() bool { return errors.Is(l.Stats().Spool.Why, ErrUnauthenticated) })
	noCanary(t, cfg.SpoolDir)
	d.shut.Store(false)
	drained(t, l)
	wantNumbers(t, readAll(t, cfg, "beamline"), 30)
}

// noCanary fails if the token is in a file below dir.
func noCanary(t testing.TB, dir string) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		files++
		content, err := os.ReadFile(name)
		if bytes.Contains(content, []byte(canary)) {
			t.Errorf("%s holds the token", name)
		}
		return err
	})
	if err != nil || files == 0 {
		t.Errorf("looked at %d files: %v", files, err)
	}
}

// carries reports whether a produce request has an event that contains the text.
func carries(req kmsg.Request, text string) bool {
	for _, topic := range req.(*kmsg.ProduceRequest).Topics {
		for _, p := range topic.Partitions {
			var b kmsg.RecordBatch
			if b.ReadFrom(p.Records) != nil {
				continue
			}
			raw, err := kgo.DefaultDecompressor().Decompress(b.Records, kgo.CompressionCodecType(b.Attributes&7))
			if err == nil && bytes.Contains(raw, []byte(text)) {
				return true
			}
		}
	}
	return false
}

// TestSpooledPoison fails when an event that the cluster never accepts delays others, makes others
// fail, or is not quarantined together with the reason.
func TestSpooledPoison(t *testing.T) {
	t.Parallel()
	for _, code := range []*kerr.Error{kerr.InvalidRecord, kerr.MessageTooLarge, kerr.CorruptMessage} {
		t.Run(code.Message, func(t *testing.T) {
			t.Parallel()
			c, cfg := newCluster(t, kfake.SeedTopics(1, "beamline"))
			c.Fault(kfake.Fault{
				Keys: []kmsg.Key{kmsg.Produce}, Topic: "beamline", Err: code, Count: -1,
				When: func(req kmsg.Request) bool { return carries(req, "poison") },
			})
			g := hold(t, c, kmsg.Metadata) // so that all events are sent together
			cfg = withSpool(t, cfg)
			l := openLogger(t, cfg)
			for i := range 40 {
				if i%13 == 5 {
					logValues(t, l, "beamline", "poison")
				}
				numbers(t, l, "beamline", i, i+1)
			}
			g.release()
			drained(t, l)
			wantNumbers(t, readAll(t, cfg, "beamline"), 40)
			if s := l.Stats(); s.Spool.Quarantined != 3 || s.Acknowledged != 40 || s.Spool.Why != nil {
				t.Errorf("Stats() = %+v, want 3 set aside", s)
			}
			n := 0
			for p, err := range spool.Quarantined(cfg.SpoolDir) {
				if err != nil || string(p.Entry.Value) != "poison" || !strings.Contains(p.Reason, "the ") {
					t.Errorf("set aside: %+v, %v", p, err)
				}
				n++
			}
			if n != 3 {
				t.Errorf("%d events are set aside, want 3", n)
			}
		})
	}
}

// TestSpooledFull fills the spool under each policy.
func TestSpooledFull(t *testing.T) {
	t.Parallel()
	for name, policy := range map[string]SpoolPolicy{"block": SpoolBlock, "reject": SpoolReject, "drop oldest": SpoolDropOldest} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, cfg := newCluster(t, kfake.SeedTopics(1, "beamline"))
			g := hold(t, c, kmsg.Produce)
			cfg = withSpool(t, cfg)
			cfg.SpoolBytes, cfg.SpoolPolicy = 64<<10, policy
			l := openLogger(t, cfg)
			padding := strings.Repeat("x", 1000)
			logged := 0
			var err error
			for err == nil && logged < 200 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				err = l.Log(ctx, Event{Topic: "beamline", Key: []byte("k"), Value: fmt.Append(nil, logged), Headers: []Header{{"padding", []byte(padding)}}})
				cancel()
				logged++
			}
			full := l.Stats().Spool
			switch policy {
			case SpoolBlock:
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Fatalf("Log to a full spool = %v, want it to wait", err)
				}
			case SpoolReject:
				if !errors.Is(err, ErrSpoolFull) {
					t.Fatalf("Log to a full spool = %v, want ErrSpoolFull", err)
				}
				l.Send(Event{Topic: "beamline", Value: []byte(padding)}, func(_ Record, got error) { err = got })
				if err := l.sink.(*spooled).spool.Sync(within(t)); err != nil { // so that the callback has run
					t.Error(err)
				}
				if !errors.Is(err, ErrSpoolFull) {
					t.Errorf("Send to a full spool = %v, want ErrSpoolFull", err)
				}
			case SpoolDropOldest:
				if err != nil || full.Dropped == 0 || full.Dropped+full.Events != int64(logged) {
					t.Fatalf("Log to a full spool = %v, Stats().Spool = %+v; want the oldest of %d dropped", err, full, logged)
				}
			}
			if full.Bytes > cfg.SpoolBytes {
				t.Errorf("the spool takes %d bytes, of at most %d", full.Bytes, cfg.SpoolBytes)
			}
			g.release()
			drained(t, l)
			// The remaining events must be complete and in order.
			last := -1
			got := readAll(t, cfg, "beamline")
			for _, r := range got {
				n, err := strconv.Atoi(string(r.Value))
				if err != nil || n <= last {
					t.Fatalf("event %q after %d", r.Value, last)
				}
				last = n
			}
			if int64(len(got)) < full.Events {
				t.Errorf("%d events arrived of %d", len(got), full.Events)
			}
		})
	}
}

// TestSpooledRestarts fails when restarts in the middle of requests lose or reorder events, or
// repeat more than the round in flight.
func TestSpooledRestarts(t *testing.T) {
	t.Parallel()
	c, cfg := newCluster(t, kfake.SeedTopics(3, "beamline"))
	var requests atomic.Int64
	c.Fault(kfake.Fault{
		Keys: []kmsg.Key{kmsg.Produce}, Topic: "beamline", Err: kerr.NotEnoughReplicasAfterAppend, Count: 10,
		When: func(kmsg.Request) bool { return requests.Add(1)%5 == 2 },
	})
	cfg = withSpool(t, cfg)
	const restarts, each = 12, 60
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for i := range restarts {
		l := openLogger(t, cfg)
		numbers(t, l, "beamline", i*each, (i+1)*each)
		testkit.Must(t, l.Close(ended))
	}
	l := openLogger(t, cfg)
	testkit.Must(t, l.Close(within(t)))
	drainedNow(t, l)
	repeats := wantNumbers(t, readAll(t, cfg, "beamline"), restarts*each)
	t.Logf("%d repeats in %d restarts", repeats, restarts)
}

func drainedNow(t testing.TB, l *Logger) {
	t.Helper()
	if s := l.Stats().Spool; s.Events != 0 {
		t.Fatalf("Stats().Spool after Close = %+v, want nothing to wait", s)
	}
}

// TestSpooledOutages fails when outages leak goroutines or lose an event.
func TestSpooledOutages(t *testing.T) {
	c, cfg := newCluster(t, kfake.SeedTopics(1, "beamline"))
	l := openLogger(t, withSpool(t, cfg))
	numbers(t, l, "beamline", 0, 1)
	drained(t, l)
	before := 0
	const outages = 50
	for i := 1; i <= outages; i++ {
		c.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
			return nil, errors.New("hang up"), true // closes the connection
		})
		numbers(t, l, "beamline", i, i+1)
		drained(t, l)
		if i == 5 {
			before = runtime.NumGoroutine()
		}
	}
	eventually(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= before+3 })
	wantNumbers(t, readAll(t, cfg, "beamline"), outages+1)
}

// TestSpooledHandler fails when a Handler or a Writer waits for the network.
func TestSpooledHandler(t *testing.T) {
	t.Parallel()
	c, cfg := newCluster(t, kfake.SeedTopics(1, "beamline"))
	g := hold(t, c, kmsg.Produce)
	l := openLogger(t, withSpool(t, cfg))
	h := NewHandler(l, &HandlerOptions{Topic: "beamline"})
	w := NewWriter(l, &WriterOptions{Topic: "beamline"})
	for i := range 20_000 { // far more than the memory budget holds
		slog.New(h).Info("measured", "n", i)
	}
	fmt.Fprintln(w, "a line")
	if h.Lost() != 0 || w.Lost() != 0 {
		t.Errorf("%d records and %d lines are lost", h.Lost(), w.Lost())
	}
	g.release()
	testkit.Must(t, l.Close(within(t)))
	got := readAll(t, cfg, "beamline")
	if len(got) != 20_001 || string(got[20_000].Value) != "a line" {
		t.Errorf("%d records are there, the last %q", len(got), got[len(got)-1].Value)
	}
}

// TestSpooledTaken takes the spool away from a Logger. The Logger must report this and stop, and
// the new owner must send each pending event once.
func TestSpooledTaken(t *testing.T) {
	t.Parallel()
	c, cfg := newCluster(t, kfake.SeedTopics(1, "beamline"))
	f := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "beamline", Err: kerr.TopicAuthorizationFailed, Count: -1})
	cfg = withSpool(t, cfg)
	first := openLogger(t, cfg)
	numbers(t, first, "beamline", 0, 10)
	eventually(t, "the topic to be held", func() bool { return first.Stats().Spool.Held["beamline"] != nil })
	if err := os.Remove(filepath.Join(cfg.SpoolDir, "lock")); err != nil {
		t.Skipf("the lock file of a running process cannot be removed on this system: %v", err)
	}
	second := openLogger(t, cfg)
	if err := first.Log(within(t), Event{Topic: "beamline", Value: []byte("10")}); !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), "took it over") {
		t.Errorf("Log after the spool was taken = %v, want ErrConflict", err)
	}
	eventually(t, "the reason", func() bool { return errors.Is(first.Stats().Spool.Why, ErrConflict) })
	if err := first.Flush(within(t)); !errors.Is(err, ErrConflict) {
		t.Errorf("Flush = %v, want ErrConflict", err)
	}
	if err := first.Close(within(t)); !errors.Is(err, ErrConflict) {
		t.Errorf("Close = %v, want ErrConflict", err)
	}
	f.Remove()
	numbers(t, second, "beamline", 10, 20)
	drained(t, second)
	if n := wantNumbers(t, readAll(t, cfg, "beamline"), 20); n > 0 {
		t.Errorf("%d events came twice", n)
	}
}

// dawdler delays the Kafka client after each of the first events of a round, so that the client has
// time to send those before it has the others.
type dawdler struct{ rounds atomic.Int64 }

func (*dawdler) OnProduceRecordPartitioned(r *kgo.Record, _ int32) {
	if len(r.Value) == 1 { // "0" to "9"
		time.Sleep(5 * time.Millisecond)
	}
}

func (*dawdler) Level() kgo.LogLevel { return kgo.LogLevelInfo }

func (d *dawdler) Log(_ kgo.LogLevel, message string, _ ...any) {
	if message == "flushing" { // the client has all of a round
		d.rounds.Add(1)
	}
}

// TestSpooledRoundIsOneBatch fails when events of a round overtake an earlier one that was
// rejected. That happens if the round is more than one batch: because the client starts sending
// before it has the whole round, or does not know yet where the topic's partitions are.
func TestSpooledRoundIsOneBatch(t *testing.T) {
	t.Parallel()
	for name, first := range map[string]int{"topic that is known": 1, "new topic": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const events = 3000 // a round
			c, cfg := newCluster(t, kfake.SeedTopics(1, "other", "beamline"))
			var slow dawdler
			cfg.opts = []kgo.Opt{kgo.WithHooks(&slow), kgo.WithLogger(&slow)}
			l := openLogger(t, withSpool(t, cfg))
			numbers(t, l, "other", 0, 1) // so that the client is connected and can send at once
			numbers(t, l, "beamline", 0, first)
			drained(t, l)
			// Events that are logged now gather behind one event in flight.
			var busy *gate
			if first == 0 {
				busy = hold(t, c, kmsg.Metadata)
			} else {
				busy = hold(t, c, kmsg.Produce)
				numbers(t, l, "beamline", first, first+1)
				first++
			}
			all := make([]Event, 0, events)
			for i := first; i < events; i++ {
				all = append(all, Event{Topic: "beamline", Key: []byte("k"), Value: fmt.Append(nil, i)})
			}
			all[0].Headers = []Header{{"mark", []byte("the first that waits")}}
			testkit.Must(t, l.Log(within(t), all...))
			refused := c.Fault(kfake.Fault{
				Keys: []kmsg.Key{kmsg.Produce}, Topic: "beamline", Err: kerr.TopicAuthorizationFailed,
				When: func(req kmsg.Request) bool { return carries(req, "the first that waits") },
			})
			eventually(t, "the client to have a round after that of the other topic", func() bool { return slow.rounds.Load() >= 2 })
			busy.release()
			drained(t, l)
			if refused.Hits() != 1 {
				t.Errorf("%d requests were refused, want 1", refused.Hits())
			}
			if n := wantNumbers(t, readAll(t, cfg, "beamline"), events); n > 0 {
				t.Errorf("%d events came twice", n)
			}
		})
	}
}
