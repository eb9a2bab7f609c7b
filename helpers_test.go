package diaspora

import (
	"context"
	"flag"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// door stands for the gateway's login: it accepts tokens, or rejects them while it is shut.
type door struct{ shut atomic.Bool }

const refusal = "the access token has been revoked"

// newDoor makes the cluster require tokens, and cfg sign in with one.
func newDoor(c *kfake.Cluster, cfg *Config) *door {
	d := new(door)
	c.ControlKey(int16(kmsg.SASLHandshake), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		resp := req.ResponseKind().(*kmsg.SASLHandshakeResponse)
		resp.SupportedMechanisms = []string{"OAUTHBEARER"}
		return resp, nil, true
	})
	c.ControlKey(int16(kmsg.SASLAuthenticate), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		resp := req.ResponseKind().(*kmsg.SASLAuthenticateResponse)
		if d.shut.Load() {
			resp.ErrorCode = kerr.SaslAuthenticationFailed.Code
			resp.ErrorMessage = kmsg.StringPtr(refusal)
		}
		return resp, nil, true
	})
	cfg.anonymous = false
	cfg.TokenSource = globus.StaticToken(globus.Token{AccessToken: canary, Expiry: time.Now().Add(time.Hour)})
	return d
}

// canary is an access token that must not appear anywhere.
const canary = "canary-access-token-7f3a"

// gate holds back requests of one kind while it is shut.
type gate struct {
	handle *kfake.FaultHandle
	open   chan struct{}
}

// hold keeps the cluster from answering requests of one kind until the gate is opened.
func hold(t testing.TB, c *kfake.Cluster, key kmsg.Key) *gate {
	t.Helper()
	g := &gate{open: make(chan struct{}), handle: c.Fault(kfake.Fault{Keys: []kmsg.Key{key}, Observe: true, Count: -1})}
	c.ControlKey(int16(key), func(kmsg.Request) (kmsg.Response, error, bool) {
		select {
		case <-g.open:
			c.DropControl()
		default:
			c.KeepControl()
			c.SleepControl(func() { <-g.open })
		}
		return nil, nil, false
	})
	t.Cleanup(g.release)
	return g
}

func (g *gate) release() {
	select {
	case <-g.open:
	default:
		close(g.open)
	}
}

func eventually(t testing.TB, what string, met func() bool) {
	t.Helper()
	testkit.Eventually(t, what, met)
}

// plain returns a plain Kafka client, for operations that the library does not offer.
func plain(t testing.TB, cfg Config, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	client, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(cfg.Brokers...)}, opts...)...)
	testkit.Must(t, err)
	t.Cleanup(client.Close)
	return client
}

// log logs values to a topic.
func logValues(t testing.TB, l *Logger, topic string, values ...string) {
	t.Helper()
	for _, v := range values {
		testkit.Must(t, l.Log(within(t), Event{Topic: topic, Value: []byte(v)}))
	}
}

// newCluster starts a Kafka broker without any login and returns how to reach it.
func newCluster(t testing.TB, opts ...kfake.Opt) (*kfake.Cluster, Config) {
	t.Helper()
	c, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1), kfake.DefaultNumPartitions(1)}, opts...)...)
	testkit.Must(t, err)
	t.Cleanup(c.Close)
	return c, Config{Brokers: c.ListenAddrs(), anonymous: true}
}

func within(t testing.TB) context.Context { return testkit.Within(t) }

func openLogger(t testing.TB, cfg Config) *Logger {
	t.Helper()
	l, err := OpenLogger(within(t), cfg)
	testkit.Must(t, err)
	t.Cleanup(func() { l.Close(context.Background()) })
	return l
}

func openConsumer(t testing.TB, cfg Config, options ConsumerOptions) *Consumer {
	t.Helper()
	c, err := OpenConsumer(within(t), cfg, options)
	testkit.Must(t, err)
	t.Cleanup(func() { c.Close(context.Background()) })
	return c
}

// readAll returns all records that are in the topics now.
func readAll(t testing.TB, cfg Config, topics ...string) []Record {
	t.Helper()
	return read(t, openConsumer(t, cfg, ConsumerOptions{Topics: topics, Until: End}))
}

// read returns the records of a Consumer that ends by itself (with Until).
func read(t testing.TB, c *Consumer) []Record {
	t.Helper()
	var records []Record
	for r, err := range c.Records(within(t)) {
		testkit.Must(t, err)
		records = append(records, r)
	}
	return records
}

// Hosts maps host:port names that exist only in tests to the host:port to connect to over HTTP.
var Hosts sync.Map

// TestMain runs more tests in parallel than there are processors, because most of them wait. The
// flag -test.parallel overrides this.
func TestMain(m *testing.M) {
	flag.Parse()
	if n := flag.Lookup("test.parallel"); n.Value.String() == n.DefValue {
		n.Value.Set("6")
	}
	transport := http.DefaultTransport.(*http.Transport)
	dial := transport.DialContext
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		if at, ok := Hosts.Load(address); ok {
			address = at.(string)
		}
		return dial(ctx, network, address)
	}
	os.Exit(m.Run())
}

// Through returns a configuration that connects to brokers with dial. A broker that is silent for
// longer than patience counts as failed; zero keeps the Kafka client's defaults.
func Through(cfg Config, dial kafka.DialFunc, patience time.Duration) Config {
	cfg.dial = dial
	if patience > 0 {
		cfg.opts = []kgo.Opt{kgo.RequestTimeoutOverhead(patience), kgo.ProduceRequestTimeout(patience)}
	}
	return cfg
}
