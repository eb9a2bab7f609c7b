package gateway

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/oauth"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/broker"
	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

const (
	ada  = "ada00000-0000-4000-8000-000000000001"
	bert = "be270000-0000-4000-8000-000000000002"
)

// tokens is an Authenticator that looks tokens and keys up in a map.
type tokens struct {
	mu    sync.Mutex // guards the fields below
	infos map[Credentials]Identity
	known map[Credentials]bool // authenticated before, and so known during an outage
	down  bool
	fault error         // the error during an outage; nil means that Globus Auth cannot be reached
	n     int           // how often it was asked
	held  chan struct{} // if not nil, answers wait until it is closed
}

func (t *tokens) Authenticate(_ context.Context, c Credentials) (Identity, error) {
	t.mu.Lock()
	t.n++
	held := t.held
	t.mu.Unlock()
	if held != nil {
		<-held
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	id, ok := t.infos[c]
	switch {
	case t.down && t.known[c]:
	case t.down:
		return Identity{}, cmp.Or(t.fault, globus.ErrUnavailable)
	case !ok:
		return Identity{}, &globus.RefusedError{Reason: "the " + c.kind() + " was revoked"}
	case !id.Expiry.After(time.Now()):
		return Identity{}, &globus.RefusedError{Reason: "the " + c.kind() + " has expired"}
	}
	t.known[c] = true
	return id, nil
}

func (t *tokens) Recheck(ctx context.Context, c Credentials) error {
	_, err := t.Authenticate(ctx, c)
	return err
}

// issue makes a token of the subject that does not expire during the test.
func (t *tokens) issue(token globus.Secret, subject string, life time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.infos[Credentials{Secret: token}] = Identity{subject, subject, true, time.Now().Add(life)}
}

// issueKey makes a key of the subject that signs in as the principal.
func (t *tokens) issueKey(id string, secret globus.Secret, subject, principal string, life time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.infos[Credentials{id, secret}] = Identity{subject, principal, true, time.Now().Add(life)}
}

// revokeKey removes the key.
func (t *tokens) revokeKey(id string, secret globus.Secret) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.infos, Credentials{id, secret})
}

// revoke removes the token.
func (t *tokens) revoke(token globus.Secret) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.infos, Credentials{Secret: token})
}

// hold makes answers wait, or releases them.
func (t *tokens) hold(on bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !on {
		close(t.held)
		t.held = nil
		return
	}
	t.held = make(chan struct{})
}

// asked returns how often it was asked.
func (t *tokens) asked() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n
}

// setDown begins or ends an outage.
func (t *tokens) setDown(down bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.down = down
}

// setFault begins an outage with a reason, or ends it.
func (t *tokens) setFault(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.down, t.fault = err != nil, err
}

// forget forgets which credentials were authenticated before.
func (t *tokens) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.known)
}

// front is a broker behind a gateway.
type front struct {
	address string
	dir     string // empty: in memory
	connect func(ctx context.Context) (net.Conn, error)
	memory  *memoryListener // nil on the network
	broker  *broker.Broker
	cfg     Config
	gateway *Gateway
	tokens  *tokens
	admin   *kadm.Client

	stopGateway func(t testing.TB)
	stop        func(t testing.TB) // stops everything; the end of the test does that as well
}

// start serves on a port of the loopback, over a directory.
func start(t testing.TB, configure ...func(*Config)) *front {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	f := &front{address: ln.Addr().String(), dir: t.TempDir()}
	f.connect = func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", f.address)
	}
	f.start(t, ln, configure...)
	return f
}

// startInMemory serves without the network and the disk, for synctest.
func startInMemory(t testing.TB, configure ...func(*Config)) *front {
	t.Helper()
	ln := &memoryListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	f := &front{address: ln.Addr().String(), connect: ln.dial, memory: ln}
	f.start(t, ln, configure...)
	return f
}

type memoryListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *memoryListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9092} }

func (l *memoryListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *memoryListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *memoryListener) dial(ctx context.Context) (net.Conn, error) {
	return l.dialFrom(ctx, "127.0.0.1:1")
}

func (l *memoryListener) dialFrom(ctx context.Context, address string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	remote := net.TCPAddrFromAddrPort(netip.MustParseAddrPort(address))
	select {
	case l.conns <- memoryConn{theirs, remote}:
		return ours, nil
	case <-l.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

type memoryConn struct {
	net.Conn
	remote net.Addr
}

func (c memoryConn) RemoteAddr() net.Addr { return c.remote }

func (f *front) start(t testing.TB, ln net.Listener, configure ...func(*Config)) {
	t.Helper()
	f.tokens = &tokens{infos: make(map[Credentials]Identity), known: make(map[Credentials]bool)}
	var err error
	f.broker, err = broker.Open(broker.Config{Dir: f.dir, Advertise: f.address})
	testkit.Must(t, err)
	f.cfg = Config{Upstream: f.broker, Authenticator: f.tokens, FailureDelay: time.Millisecond}
	for _, configure := range configure {
		configure(&f.cfg)
	}
	f.serve(t, ln)
	admin, err := kgo.NewClient(f.broker.AdminOpts()...)
	testkit.Must(t, err)
	f.admin = kadm.NewClient(admin)
	var once sync.Once
	f.stop = func(t testing.TB) {
		once.Do(func() {
			f.admin.Close()
			f.stopGateway(t)
			if err := f.broker.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() { f.stop(t) })
}

func (f *front) serve(t testing.TB, ln net.Listener) {
	t.Helper()
	g, err := New(f.cfg)
	testkit.Must(t, err)
	f.gateway = g
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- g.Serve(ctx, ln) }()
	f.stopGateway = func(t testing.TB) {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve = %v, want nil after a clean stop", err)
		}
	}
}

// restartGateway stops the gateway and serves again on the same port.
func (f *front) restartGateway(t testing.TB) {
	t.Helper()
	f.stopGateway(t)
	ln, err := net.Listen("tcp", f.address)
	testkit.Must(t, err)
	f.serve(t, ln)
}

func (f *front) topicID(t testing.TB, topic string) [16]byte {
	t.Helper()
	topics, err := f.admin.ListTopics(t.Context(), topic)
	testkit.Must(t, err)
	return topics[topic].ID
}

// count consumes a topic from its start to its end.
func (f *front) count(t testing.TB, token, topic string) int {
	t.Helper()
	ends, err := f.admin.ListEndOffsets(t.Context(), topic)
	testkit.Must(t, err)
	end, _ := ends.Lookup(topic, 0)
	client := f.client(t, token, kgo.ConsumeTopics(topic))
	defer client.Close()
	n := 0
	for offset := int64(0); offset < end.Offset; {
		fetches := client.PollFetches(t.Context())
		testkit.Must(t, fetches.Err())
		fetches.EachRecord(func(r *kgo.Record) { n++; offset = r.Offset + 1 })
	}
	return n
}

// claim creates a topic that belongs to the subject.
func (f *front) claim(t testing.TB, topic, subject string) {
	t.Helper()
	testkit.Must(t, f.prepare(t.Context(), topic, subject))
}

// prepare creates a topic, unless it exists, and gives it to the subject.
func (f *front) prepare(ctx context.Context, topic, subject string) error {
	client, err := kgo.NewClient(f.broker.AdminOpts()...)
	if err != nil {
		return err
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	if _, err := admin.CreateTopic(ctx, 1, 1, nil, topic); err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
		return err
	}
	return grant(ctx, admin, topic, subject)
}

// grant gives the subject the rights of a topic's owner, and everyone the right to use groups.
func grant(ctx context.Context, admin *kadm.Client, topic, subject string) error {
	for _, acls := range []*kadm.ACLBuilder{
		kadm.NewACLs().Topics(topic).ResourcePatternType(kadm.ACLPatternLiteral).Operations(kadm.OpRead, kadm.OpWrite, kadm.OpDescribe, kadm.OpDescribeConfigs).Allow("User:" + subject),
		kadm.NewACLs().Groups(kafka.UserGroups).ResourcePatternType(kadm.ACLPatternPrefixed).Operations(kadm.OpRead, kadm.OpDelete).Allow("User:*"),
		kadm.NewACLs().TransactionalIDs("*").ResourcePatternType(kadm.ACLPatternLiteral).Operations(kadm.OpWrite).Allow("User:*"),
	} {
		results, err := admin.CreateACLs(ctx, acls.AllowHosts("*"))
		if err != nil {
			return err
		}
		for _, r := range results {
			if r.Err != nil {
				return r.Err
			}
		}
	}
	return nil
}

// opts are those of a client with a token, or with a mechanism of its own.
func (f *front) opts(token string) []kgo.Opt {
	opts := []kgo.Opt{
		kgo.SeedBrokers(f.address),
		kgo.Dialer(func(ctx context.Context, _, _ string) (net.Conn, error) { return f.connect(ctx) }),
	}
	if token != "" {
		opts = append(opts, kgo.SASL(oauth.Auth{Token: token}.AsMechanism()))
	}
	return opts
}

func (f *front) client(t testing.TB, token string, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	client, err := kgo.NewClient(append(f.opts(token), opts...)...)
	testkit.Must(t, err)
	t.Cleanup(client.Close)
	return client
}

func TestProduceAndConsume(t *testing.T) {
	f := start(t)
	f.claim(t, "weather", ada)
	f.tokens.issue("ada-token", ada, time.Hour)
	f.tokens.issue("bert-token", bert, time.Hour)

	client := f.client(t, "ada-token", kgo.ConsumeTopics("weather"))
	testkit.Must(t, client.ProduceSync(t.Context(), &kgo.Record{Topic: "weather", Value: []byte("rain")}).FirstErr())
	fetches := client.PollFetches(t.Context())
	testkit.Must(t, fetches.Err())
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
