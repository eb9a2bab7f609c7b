package claims

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestNonsenseInLedger puts records into the ledger that no service wrote. They must be skipped and
// logged, before and after the service starts.
func TestNonsenseInLedger(t *testing.T) {
	c := newCluster(t)
	first := c.open()
	mustClaim(t, first, "weather")
	nonsense := []string{
		"", "null", "{}", "hello", "\x00\xff", `{"v":1}`, `{"v":1,"op":"seize","id":"x","by":"` + ben + `","topic":"weather"}`,
		strings.Repeat("x", 100<<10),
		strings.Replace(claimJSON, ada, "*", 1),
		strings.Replace(claimJSON, `"weather"`, `"_diaspora_ledger"`, 1),
		strings.Replace(claimJSON, ada, ben, 1), // well-formed, and refused because of its position
	}
	for _, value := range nonsense {
		c.append(value)
	}
	var told strings.Builder
	second := c.open(func(cfg *Config) { cfg.Diagnostics = slog.New(slog.NewTextHandler(&told, nil)) })
	for _, s := range []*Service{first, second} {
		if got, err := s.Topic(t.Context(), ada, "weather"); err != nil || got.Owner != ada {
			t.Errorf("Topic = %+v, %v", got, err)
		}
		if got := s.Stats(); got != (Stats{Topics: 1, Records: int64(len(nonsense)) + 1, Skipped: len(nonsense) - 1}) {
			t.Errorf("Stats = %+v, want %d records skipped", got, len(nonsense)-1)
		}
	}
	if got := strings.Count(told.String(), "skipped a malformed record"); got != len(nonsense)-1 {
		t.Errorf("%d records were told of, want %d:\n%s", got, len(nonsense)-1, told.String())
	}
	mustClaim(t, first, "more")
	c.check()
}

// TestLedgerIsNotTrusted checks that a service that cannot know who owns what decides nothing and
// changes nothing.
func TestLedgerIsNotTrusted(t *testing.T) {
	for name, damage := range map[string]func(*testing.T, *testCluster){
		"later version": func(t *testing.T, c *testCluster) { c.append(`{"v":9,"op":"give","topic":"weather"}`) },
		"beginning deleted": func(t *testing.T, c *testCluster) {
			testkit.Must(t, c.fake.DeleteRecords(LedgerTopic, 0, 1))
		},
		"deleted and created again": func(t *testing.T, c *testCluster) {
			testkit.Must(t, c.fake.DeleteTopic(LedgerTopic))
			c.createTopic(LedgerTopic)
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t)
			s := c.open()
			mustClaim(t, s, "weather", "other")
			before := aclLines(must(c.admin().ACLs(t.Context(), kmsg.ACLResourceTypeTopic)))
			damage(t, c)
			if name == "beginning deleted" {
				// A service that has read everything still knows. One that starts now does not.
				cfg := c.config()
				if s, err := Open(t.Context(), cfg); err == nil {
					s.Close()
					t.Error("Open without the beginning of the ledger = nil, want an error")
				}
				return
			}
			if _, err := s.Claim(t.Context(), ada, diaspora.ClaimRequest{Name: "new"}); !errors.Is(err, diaspora.ErrUnavailable) {
				t.Errorf("Claim = %v, want ErrUnavailable", err)
			}
			if err := s.Release(t.Context(), ada, "weather"); !errors.Is(err, diaspora.ErrUnavailable) {
				t.Errorf("Release = %v, want ErrUnavailable", err)
			}
			if _, err := s.Topics(t.Context(), ada); !errors.Is(err, diaspora.ErrUnavailable) {
				t.Errorf("Topics = %v, want ErrUnavailable", err)
			}
			if err := s.Reconcile(t.Context()); !errors.Is(err, diaspora.ErrUnavailable) {
				t.Errorf("Reconcile = %v, want ErrUnavailable", err)
			}
			if after := aclLines(must(c.admin().ACLs(t.Context(), kmsg.ACLResourceTypeTopic))); fmt.Sprint(after) != fmt.Sprint(before) {
				t.Errorf("ACLs are %q, and were %q", after, before)
			}
		})
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestLedgerSettings opens a ledger whose topic would delete records, or has no order.
func TestLedgerSettings(t *testing.T) {
	c := newCluster(t)
	testkit.Must(t, c.fake.CreateTopic(LedgerTopic, 1, map[string]string{"retention.ms": "1000", "cleanup.policy": "compact"}))
	c.open()
	for setting, want := range map[string]string{"retention.ms": "-1", "cleanup.policy": "delete"} {
		if got := c.fake.TopicInfo(LedgerTopic).Configs[setting]; got == nil || *got != want {
			t.Errorf("%s of the ledger is %v, want %s", setting, got, want)
		}
	}

	c = newCluster(t)
	testkit.Must(t, c.fake.CreateTopic(LedgerTopic, 2, nil))
	if s, err := Open(t.Context(), c.config()); err == nil {
		s.Close()
		t.Error("Open with a ledger of two partitions = nil, want an error")
	}
}

// network is a connection to a cluster that can be interrupted or can drop everything silently.
type network struct {
	mu    sync.Mutex // guards the fields below
	state networkState
	conns []net.Conn
}

type networkState int

const (
	up     networkState = iota
	down                // connections are refused
	silent              // what is sent never arrives
)

func (n *network) dial(ctx context.Context, network, address string) (net.Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.state == down {
		return nil, &net.OpError{Op: "dial", Net: network, Err: errors.New("connection refused")}
	}
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err == nil {
		n.conns = append(n.conns, conn)
	}
	return &networkConn{conn, n}, err
}

func (n *network) set(state networkState) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.state = state
	if state == silent {
		return
	}
	for _, conn := range n.conns {
		conn.Close()
	}
	n.conns = nil
}

type networkConn struct {
	net.Conn
	network *network
}

func (c *networkConn) Write(p []byte) (int, error) {
	c.network.mu.Lock()
	state := c.network.state
	c.network.mu.Unlock()
	if state == silent {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

// TestOutage disconnects the service from the cluster. Each call must return in time and report
// that. Everything must work when the cluster is reachable again.
func TestOutage(t *testing.T) {
	for outage, state := range map[string]networkState{"refused": down, "silent": silent} {
		t.Run(outage, func(t *testing.T) {
			c := newCluster(t)
			var n network
			s := c.open(func(cfg *Config) { cfg.Admin = append(cfg.Admin, kgo.Dialer(n.dial)) })
			mustClaim(t, s, "weather")
			n.set(state)
			var wg sync.WaitGroup
			for name, call := range map[string]func(context.Context) error{
				"Claim": func(ctx context.Context) error {
					_, err := s.Claim(ctx, ada, diaspora.ClaimRequest{Name: "new"})
					return err
				},
				"Claim again": func(ctx context.Context) error {
					_, err := s.Claim(ctx, ada, diaspora.ClaimRequest{Name: "weather"})
					return err
				},
				"Release":   func(ctx context.Context) error { return s.Release(ctx, ada, "weather") },
				"Topics":    func(ctx context.Context) error { _, err := s.Topics(ctx, ada); return err },
				"Topic":     func(ctx context.Context) error { _, err := s.Topic(ctx, ada, "weather"); return err },
				"Reconcile": s.Reconcile,
			} {
				wg.Go(func() {
					ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
					defer cancel()
					start := time.Now()
					err := call(ctx)
					if !errors.Is(err, diaspora.ErrUnavailable) {
						t.Errorf("%s without a cluster = %v, want ErrUnavailable", name, err)
					}
					if took := time.Since(start); took > 3*time.Second {
						t.Errorf("%s without a cluster took %v, and had 500 ms", name, took)
					}
				})
			}
			wg.Wait()
			n.set(up)
			mustClaim(t, s, "weather", "new")
			testkit.Must(t, s.Reconcile(t.Context()))
			c.check()
		})
	}
}

// TestAppendOutage loses the cluster while a record is being written.
func TestAppendOutage(t *testing.T) {
	c := newCluster(t)
	w := new(wire)
	s := c.open(func(cfg *Config) { cfg.Admin = append(cfg.Admin, w.opts()...) })
	w.arm(2, true) // the first change is the question whether the topic can be created
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := s.Claim(ctx, ada, diaspora.ClaimRequest{Name: "weather"}); !errors.Is(err, diaspora.ErrUnavailable) {
		t.Errorf("Claim = %v, want ErrUnavailable", err)
	}
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("Claim took %v, and had 500 ms", took)
	}
	if got := w.changes(); got[1] != "Produce" {
		t.Errorf("the changes were %v, want the second to be Produce", got)
	}
}

// TestBrokerRestart stops the cluster while claims are in flight, and restarts it from its disk. No
// claim that was answered may be lost.
func TestBrokerRestart(t *testing.T) {
	dir := t.TempDir()
	c := newCluster(t, kfake.DataDir(dir))
	s := c.open()
	addr, err := net.ResolveTCPAddr("tcp", c.fake.ListenAddrs()[0])
	testkit.Must(t, err)

	stop := make(chan struct{})
	answered := make(map[string]bool)
	var wg sync.WaitGroup
	works := make(chan struct{}, 1000)
	wg.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			name := fmt.Sprintf("t%d", n)
			if _, err := s.Claim(t.Context(), ada, diaspora.ClaimRequest{Name: name}); err == nil {
				answered[name] = true
				works <- struct{}{}
			} else if !errors.Is(err, diaspora.ErrUnavailable) {
				t.Errorf("Claim during the restart = %v, want nil or ErrUnavailable", err)
			}
		}
	})
	const before, after = 20, 20
	for range before {
		<-works
	}
	c.fake.Close()
	c.restart(dir, addr.Port)
	for range after {
		select {
		case <-works:
		case <-time.After(20 * time.Second):
			t.Fatal("no claim works after the restart")
		}
	}
	close(stop)
	wg.Wait()

	topics, err := s.Topics(t.Context(), ada)
	testkit.Must(t, err)
	for _, topic := range topics.Topics {
		delete(answered, topic.Name)
	}
	if len(answered) > 0 {
		t.Errorf("claims were answered and are lost: %v", answered)
	}
	testkit.Must(t, s.Reconcile(t.Context()))
	c.check()
}

// TestFailedCommandIsCompleted cancels the caller after the ledger has the claim. The service must
// complete the claim by itself.
func TestFailedCommandIsCompleted(t *testing.T) {
	c := newCluster(t)
	w := new(wire)
	s := c.open(func(cfg *Config) { cfg.Admin = append(cfg.Admin, w.opts()...) })
	w.arm(3, false)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-w.reached
		cancel()
		close(w.thaw)
	}()
	if _, err := s.Claim(ctx, ada, diaspora.ClaimRequest{Name: "weather"}); !errors.Is(err, context.Canceled) {
		t.Errorf("Claim = %v, want context.Canceled", err)
	}
	if s.ledger.topic("weather").phase != claimed {
		t.Fatal("the ledger does not have the claim")
	}
	for timeout := time.After(20 * time.Second); len(c.differences()) > 0; {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-timeout:
			c.check()
			t.FailNow()
		}
	}
}

// TestClose checks that callers that still wait return.
func TestClose(t *testing.T) {
	c := newCluster(t)
	s := c.open()
	mustClaim(t, s, "weather")
	s.Close()
	s.Close()
	start := time.Now()
	if _, err := s.Claim(t.Context(), ada, diaspora.ClaimRequest{Name: "new"}); !errors.Is(err, diaspora.ErrUnavailable) {
		t.Errorf("Claim after Close = %v, want ErrUnavailable", err)
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("Claim after Close took %v", took)
	}
}

func TestOpenRefused(t *testing.T) {
	c := newCluster(t)
	for name, edit := range map[string]func(*Config){
		"partitions": func(cfg *Config) { cfg.DefaultPartitions = 101 },
		"nobody":     func(cfg *Config) { cfg.Admin = c.as("nobody") },
		"not admin":  func(cfg *Config) { cfg.Admin = c.as(ada) },
	} {
		cfg := c.config()
		edit(&cfg)
		if s, err := Open(t.Context(), cfg); err == nil {
			s.Close()
			t.Errorf("%s: Open = nil, want an error", name)
		}
	}
	cfg := c.config()
	cfg.Admin = append(cfg.Admin, kgo.Dialer(func(context.Context, string, string) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Err: errors.New("connection refused")}
	}))
	if s, err := Open(t.Context(), cfg); !errors.Is(err, diaspora.ErrUnavailable) {
		if err == nil {
			s.Close()
		}
		t.Errorf("Open without a cluster = %v, want ErrUnavailable", err)
	}
}

// TestManyTopics measures how long a service with a thousand topics takes to open.
func TestManyTopics(t *testing.T) {
	const topics = 1000
	c := newCluster(t)
	s := c.open()
	var wg sync.WaitGroup
	start := time.Now()
	for worker := range 8 {
		wg.Go(func() {
			for n := worker; n < topics; n += 8 {
				if _, err := s.Claim(t.Context(), ada, diaspora.ClaimRequest{Name: fmt.Sprintf("t%d", n)}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d claims, 8 at a time: %v each", topics, time.Since(start)/topics)
	start = time.Now()
	second := c.open()
	took := time.Since(start)
	t.Logf("opening with %d topics: %v", topics, took)
	if took > 2*time.Second {
		t.Errorf("opening with %d topics took %v, want less than 2s", topics, took)
	}
	if got, err := second.Topics(t.Context(), ada); len(got.Topics) != topics {
		t.Errorf("Topics = %d of them, %v, want %d", len(got.Topics), err, topics)
	}
}

// TestOpenWhenTheLeaderIsNew: a leader that was just elected does not know the partition's offsets
// yet, as after a start of the whole cluster.
func TestOpenWhenTheLeaderIsNew(t *testing.T) {
	c := newCluster(t)
	c.open().Close()
	asked := 0
	c.fake.ControlKey(int16(kmsg.ListOffsets), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.fake.KeepControl()
		if asked++; asked%2 == 0 { // fails the first request for the start offset, and the first for the end offset
			return nil, nil, false
		}
		resp := req.ResponseKind().(*kmsg.ListOffsetsResponse)
		topic, partition := kmsg.NewListOffsetsResponseTopic(), kmsg.NewListOffsetsResponseTopicPartition()
		topic.Topic, partition.ErrorCode = LedgerTopic, kerr.OffsetNotAvailable.Code
		topic.Partitions = append(topic.Partitions, partition)
		resp.Topics = append(resp.Topics, topic)
		return resp, nil, true
	})
	c.open()
	if asked < 4 {
		t.Errorf("%d questions about offsets, want 4", asked)
	}
}

// TestOpenWhenThereIsNoLeader: the ledger's leader may fail at any of the requests that a start
// makes.
func TestOpenWhenThereIsNoLeader(t *testing.T) {
	c := newCluster(t)
	c.open().Close()
	first := 1
	for asked := first; asked >= first; first++ { // until a start makes no more requests
		n := c.leaderless(LedgerTopic, first, first+2)
		c.open().Close()
		asked = n()
	}
	if first < 4 {
		t.Errorf("a start asked for the ledger's topic %d times, want 2 or more", first-2)
	}
}
