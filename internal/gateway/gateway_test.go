package gateway

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/oauth"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/broker"
)

const (
	ada  = "ada00000-0000-4000-8000-000000000001"
	bert = "be270000-0000-4000-8000-000000000002"
)

// tokens is an Authenticator over a map.
type tokens struct {
	mu    sync.Mutex // guards the fields below
	infos map[globus.Secret]globus.TokenInfo
	down  bool
}

func (t *tokens) Authenticate(_ context.Context, token globus.Secret) (globus.TokenInfo, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	info, ok := t.infos[token]
	switch {
	case t.down:
		return globus.TokenInfo{}, globus.ErrUnavailable
	case !ok:
		return globus.TokenInfo{}, globus.ErrRefused
	}
	return info, nil
}

// issue makes a token of the subject that is good for life.
func (t *tokens) issue(token globus.Secret, subject string, life time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.infos == nil {
		t.infos = make(map[globus.Secret]globus.TokenInfo)
	}
	t.infos[token] = globus.TokenInfo{Identity: globus.Identity{Subject: subject}, Expiry: time.Now().Add(life)}
}

// front is a broker with a gateway before it.
type front struct {
	address string
	dir     string
	broker  *broker.Broker
	gateway *Gateway
	tokens  *tokens
	admin   *kadm.Client
	stop    func(t testing.TB) // stops all of it; the test's end does that as well
}

func start(t testing.TB, configure ...func(*Config)) *front {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &front{address: ln.Addr().String(), dir: t.TempDir(), tokens: &tokens{}}
	f.broker, err = broker.Open(broker.Config{Dir: f.dir, Advertise: f.address})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Upstream: f.broker, Authenticator: f.tokens, FailureDelay: time.Millisecond}
	for _, configure := range configure {
		configure(&cfg)
	}
	f.gateway, err = New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- f.gateway.Serve(ctx, ln) }()
	admin, err := kgo.NewClient(f.broker.AdminOpts()...)
	if err != nil {
		t.Fatal(err)
	}
	f.admin = kadm.NewClient(admin)
	var once sync.Once
	f.stop = func(t testing.TB) {
		once.Do(func() {
			f.admin.Close()
			cancel()
			if err := <-served; err != nil {
				t.Errorf("Serve = %v, want nil after a clean stop", err)
			}
			if err := f.broker.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() { f.stop(t) })
	return f
}

func (f *front) topicID(t testing.TB, topic string) [16]byte {
	t.Helper()
	topics, err := f.admin.ListTopics(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	return topics[topic].ID
}

// count consumes a topic from its start to its end.
func (f *front) count(t testing.TB, token, topic string) int {
	t.Helper()
	ends, err := f.admin.ListEndOffsets(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	end, _ := ends.Lookup(topic, 0)
	client := f.client(t, token, kgo.ConsumeTopics(topic))
	defer client.Close()
	n := 0
	for offset := int64(0); offset < end.Offset; {
		fetches := client.PollFetches(t.Context())
		if err := fetches.Err(); err != nil {
			t.Fatal(err)
		}
		fetches.EachRecord(func(r *kgo.Record) { n++; offset = r.Offset + 1 })
	}
	return n
}

// claim makes a topic that belongs to the subject.
func (f *front) claim(t testing.TB, topic, subject string) {
	t.Helper()
	if _, err := f.admin.CreateTopic(t.Context(), 1, 1, nil, topic); err != nil {
		t.Fatal(err)
	}
	for _, acls := range []*kadm.ACLBuilder{
		kadm.NewACLs().Topics(topic).Operations(kadm.OpRead, kadm.OpWrite, kadm.OpDescribe, kadm.OpDescribeConfigs).Allow("User:" + subject),
		kadm.NewACLs().Groups("*").Operations(kadm.OpRead).Allow("User:*"),
		kadm.NewACLs().TransactionalIDs("*").Operations(kadm.OpWrite).Allow("User:*"),
	} {
		acls = acls.AllowHosts("*").ResourcePatternType(kadm.ACLPatternLiteral)
		results, err := f.admin.CreateACLs(t.Context(), acls)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range results {
			if r.Err != nil {
				t.Fatal(r.Err)
			}
		}
	}
}

func (f *front) opts(token string) []kgo.Opt {
	return []kgo.Opt{
		kgo.SeedBrokers(f.address),
		kgo.SASL(oauth.Auth{Token: token}.AsMechanism()),
	}
}

func (f *front) client(t testing.TB, token string, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	client, err := kgo.NewClient(append(f.opts(token), opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

func TestProduceAndConsume(t *testing.T) {
	f := start(t)
	f.claim(t, "weather", ada)
	f.tokens.issue("ada-token", ada, time.Hour)
	f.tokens.issue("bert-token", bert, time.Hour)

	client := f.client(t, "ada-token", kgo.ConsumeTopics("weather"))
	if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: "weather", Value: []byte("rain")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	fetches := client.PollFetches(t.Context())
	if err := fetches.Err(); err != nil {
		t.Fatal(err)
	}
	records := fetches.Records()
	if len(records) != 1 || string(records[0].Value) != "rain" {
		t.Errorf("consumed %v, want one record %q", records, "rain")
	}

	other := f.client(t, "bert-token")
	err := other.ProduceSync(t.Context(), &kgo.Record{Topic: "weather", Value: []byte("snow")}).FirstErr()
	if !errors.Is(err, kerr.TopicAuthorizationFailed) {
		t.Errorf("produce by another subject = %v, want %v", err, kerr.TopicAuthorizationFailed)
	}
	nobody := f.client(t, "no-token")
	if err := nobody.Ping(t.Context()); !errors.Is(err, kerr.SaslAuthenticationFailed) {
		t.Errorf("ping with an unknown token = %v, want %v", err, kerr.SaslAuthenticationFailed)
	}
}
