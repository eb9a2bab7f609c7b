package kafka

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// tokenFunc is a TokenSource.
type tokenFunc func(context.Context) (globus.Token, error)

func (f tokenFunc) Token(ctx context.Context) (globus.Token, error) { return f(ctx) }

func staticToken(token string) globus.TokenSource {
	return tokenFunc(func(context.Context) (globus.Token, error) {
		return globus.Token{AccessToken: globus.Secret(token)}, nil
	})
}

// bearerCluster is a cluster that accepts OAUTHBEARER logins with the token "good" and refuses all
// others with a message.
func bearerCluster(t *testing.T, opts ...kfake.Opt) *kfake.Cluster {
	t.Helper()
	cluster, err := kfake.NewCluster(opts...)
	testkit.Must(t, err)
	t.Cleanup(cluster.Close)
	cluster.ControlKey(int16(kmsg.SASLHandshake), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		resp := req.ResponseKind().(*kmsg.SASLHandshakeResponse)
		resp.SupportedMechanisms = []string{"OAUTHBEARER"}
		return resp, nil, true
	})
	cluster.ControlKey(int16(kmsg.SASLAuthenticate), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		resp := req.ResponseKind().(*kmsg.SASLAuthenticateResponse)
		if got := string(req.(*kmsg.SASLAuthenticateRequest).SASLAuthBytes); got != "n,,\x01auth=Bearer good\x01\x01" {
			resp.ErrorCode = kerr.SaslAuthenticationFailed.Code
			resp.ErrorMessage = kmsg.StringPtr("the access token has expired; run: diaspora login")
		}
		return resp, nil, true
	})
	return cluster
}

// dial returns a client that is signed in.
func dial(t *testing.T, cfg Config) (*kgo.Client, error) { return dialWith(t, cfg, Ping) }

func dialWith(t *testing.T, cfg Config, first func(context.Context, *kgo.Client) error, opts ...kgo.Opt) (*kgo.Client, error) {
	client, err := kgo.NewClient(append(ClientOpts(cfg), opts...)...)
	if err != nil {
		return nil, err
	}
	t.Cleanup(client.Close)
	return client, SignIn(t.Context(), client, cfg, first)
}

// hangUp returns the address of a server that closes each connection, as a gateway does with clients
// that it does not know while Globus Auth is away.
func hangUp(t *testing.T) string {
	server := testkit.Listen(t)
	go func() {
		for {
			conn, err := server.Accept()
			if err != nil {
				return
			}
			conn.Read(make([]byte, 4096)) // what is left unread would reset the connection instead
			conn.Close()
		}
	}()
	return server.Addr().String()
}

func TestSignIn(t *testing.T) {
	cluster := bearerCluster(t, kfake.SeedTopics(1, "weather"))
	client, err := dial(t, Config{Brokers: cluster.ListenAddrs(), TokenSource: staticToken("good")})
	testkit.Must(t, err)
	if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: "weather", Value: []byte("sunny")}).FirstErr(); err != nil {
		t.Errorf("ProduceSync = %v", err)
	}
}

func TestSignInRefused(t *testing.T) {
	cluster := bearerCluster(t)
	nobody := testkit.FreeAddress(t)
	failing := func(err error) globus.TokenSource {
		return tokenFunc(func(context.Context) (globus.Token, error) { return globus.Token{}, err })
	}
	for _, tt := range []struct {
		name      string
		cfg       Config
		condition Condition
		reason    string
	}{
		{"expired token", Config{Brokers: cluster.ListenAddrs(), TokenSource: staticToken("old")},
			Unauthenticated, "the access token has expired; run: diaspora login"},
		{"no login", Config{Brokers: cluster.ListenAddrs(), TokenSource: failing(globus.ErrLoginRequired)},
			Unauthenticated, globus.ErrLoginRequired.Error()},
		{"Globus away", Config{Brokers: cluster.ListenAddrs(), TokenSource: failing(globus.ErrUnavailable)},
			Unavailable, globus.ErrUnavailable.Error()},
		{"no broker", Config{Brokers: []string{nobody}, TokenSource: staticToken("good")},
			Unavailable, "no broker can be reached"},
		{"broker that hangs up", Config{Brokers: []string{hangUp(t)}, TokenSource: staticToken("good")},
			Unavailable, "the broker closed the connection"},
		{"none configured", Config{}, Unknown, "no seed brokers"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			look := NewFirstLook([]string{"weather"}, time.Minute)
			for first, sign := range map[string]func() (*kgo.Client, error){
				"Ping":      func() (*kgo.Client, error) { return dial(t, tt.cfg) },
				"FirstLook": func() (*kgo.Client, error) { return dialWith(t, tt.cfg, look.Ask, look.Opts()...) },
			} {
				start := time.Now()
				_, err := sign()
				if err == nil {
					t.Fatalf("%s: SignIn = nil, want an error", first)
				}
				if took := time.Since(start); took > time.Second {
					t.Errorf("%s: SignIn took %v, want less than a second", first, took)
				}
				condition, reason := Explain(err)
				if condition != tt.condition || !strings.Contains(reason, tt.reason) {
					t.Errorf("%s: Explain(%v) = %v, %q, want %v, %q", first, err, condition, reason, tt.condition, tt.reason)
				}
				if strings.Contains(err.Error(), "good") || strings.Contains(err.Error(), "old") {
					t.Errorf("%s: the error %q shows the token", first, err)
				}
			}
		})
	}
}

// TestFirstLook checks that a client looks for topics at the first of its brokers that answers, and
// that it repeats requests again once it is signed in.
func TestFirstLook(t *testing.T) {
	cluster := bearerCluster(t, kfake.SeedTopics(2, "weather"), kfake.NumBrokers(1))
	for range 5 { // the client begins with any broker
		cfg := Config{
			Brokers:     append(cluster.ListenAddrs(), testkit.FreeAddress(t), hangUp(t)),
			TokenSource: staticToken("good"),
		}
		look := NewFirstLook([]string{"weather"}, time.Minute)
		start := time.Now()
		client, err := dialWith(t, cfg, look.Ask, look.Opts()...)
		testkit.Must(t, err)
		if took := time.Since(start); took > time.Second {
			t.Errorf("SignIn took %v, want less than a second", took)
		}
		places, err := look.Places(t.Context(), client)
		if len(places) != 2 || err != nil {
			t.Errorf("Places = %v, %v, want two partitions", places, err)
		}
		if got := look.retryTimeout(int16(kmsg.Metadata)); got < time.Second {
			t.Errorf("after the login, requests are repeated for %v", got)
		}
	}
}

// TestTokenIsAskedWithDeadline checks that a token source that hangs does not hang the client.
func TestTokenIsAskedWithDeadline(t *testing.T) {
	source := tokenFunc(func(ctx context.Context) (globus.Token, error) {
		if _, ok := ctx.Deadline(); !ok {
			return globus.Token{}, errors.New("no deadline")
		}
		return globus.Token{AccessToken: "good"}, nil
	})
	client, err := kgo.NewClient(ClientOpts(Config{Brokers: bearerCluster(t).ListenAddrs(), TokenSource: source})...)
	testkit.Must(t, err)
	defer client.Close()
	if err := client.Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

// farConn is a connection whose remote address is addr.
type farConn struct {
	net.Conn
	addr net.Addr
}

func (c farConn) RemoteAddr() net.Addr { return c.addr }

func TestTokensStayHomeWithoutTLS(t *testing.T) {
	var (
		far    = &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)}
		source = staticToken("good")
		key    = Key{ID: "key-abcdefghij234567", Secret: "dks_secret"}
		own    = func(context.Context, string, string) (net.Conn, error) {
			near, _ := net.Pipe()
			return farConn{near, far}, nil
		}
	)
	for _, tt := range []struct {
		name string
		addr net.Addr
		cfg  Config
		want error
	}{
		{"loopback", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}, Config{TokenSource: source}, nil},
		{"loopback 6", &net.TCPAddr{IP: net.IPv6loopback}, Config{TokenSource: source}, nil},
		{"elsewhere", far, Config{TokenSource: source}, ErrInsecure},
		{"who knows where", &net.IPAddr{}, Config{TokenSource: source}, ErrInsecure},
		{"a key, loopback", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}, Config{Key: key}, nil},
		{"a key, elsewhere", far, Config{Key: key}, ErrInsecure},
		{"a key, allowed", far, Config{Key: key, InsecureAllowPlaintext: true}, nil},
		{"no token", far, Config{}, nil},
		{"allowed", far, Config{TokenSource: source, InsecureAllowPlaintext: true}, nil},
		{"own dialer", far, Config{TokenSource: source, Dial: own}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tcp := func(context.Context, string, string) (net.Conn, error) {
				near, _ := net.Pipe()
				return farConn{near, tt.addr}, nil
			}
			conn, err := dialer(tt.cfg, tcp)(t.Context(), "tcp", "broker.example:9092")
			if !errors.Is(err, tt.want) {
				t.Fatalf("dial = %v, want %v", err, tt.want)
			}
			if err == nil {
				conn.Close()
			}
		})
	}
}

// TestConnections shows why Connections exists: ProduceSync does not return an error for a refused
// login, but Connections reports it.
func TestConnections(t *testing.T) {
	var connections Connections
	cluster := bearerCluster(t, kfake.SeedTopics(1, "weather"))
	var good atomic.Bool
	source := tokenFunc(func(context.Context) (globus.Token, error) {
		if good.Load() {
			return globus.Token{AccessToken: "good"}, nil
		}
		return globus.Token{AccessToken: "old"}, nil
	})
	client, err := kgo.NewClient(append(ClientOpts(Config{Brokers: cluster.ListenAddrs(), TokenSource: source}), kgo.WithHooks(&connections))...)
	testkit.Must(t, err)
	defer client.Close()
	if err := connections.Err(); err != nil {
		t.Errorf("Err before the first connection = %v, want nil", err)
	}
	if err := client.Ping(t.Context()); err == nil {
		t.Error("Ping = nil, want an error")
	}
	if condition, _ := Explain(connections.Err()); condition != Unauthenticated {
		t.Errorf("Explain(Err()) = %v (%v), want Unauthenticated", condition, connections.Err())
	}
	good.Store(true)
	if err := client.Ping(t.Context()); err != nil {
		t.Errorf("Ping = %v", err)
	}
	if err := connections.Err(); err != nil {
		t.Errorf("Err after a good connection = %v, want nil", err)
	}
}

// TestOutageIsSatOut closes the first connections without an answer, as the gateway does while
// Globus Auth cannot be reached. The event must arrive all the same.
func TestOutageIsSatOut(t *testing.T) {
	cluster := bearerCluster(t, kfake.SeedTopics(1, "weather"))
	var dials atomic.Int32
	cfg := Config{
		Brokers:     cluster.ListenAddrs(),
		TokenSource: staticToken("good"),
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if dials.Add(1) <= 3 {
				near, far := net.Pipe()
				go func() {
					far.Read(make([]byte, 1024))
					far.Close()
				}()
				return near, nil
			}
			return new(net.Dialer).DialContext(ctx, network, address)
		},
	}
	client, err := kgo.NewClient(ClientOpts(cfg)...)
	testkit.Must(t, err)
	defer client.Close()
	if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: "weather", Value: []byte("sunny")}).FirstErr(); err != nil {
		t.Errorf("ProduceSync after closed connections = %v, want nil", err)
	}
}

func TestExplain(t *testing.T) {
	wrapped := func(err error, detail string) error { return fmt.Errorf("%w: %s", err, detail) }
	for _, tt := range []struct {
		err       error
		condition Condition
		reason    string
	}{
		{nil, Unknown, ""},
		{kerr.TopicAuthorizationFailed, Permission, "not authorized to access the topic"},
		{kerr.GroupAuthorizationFailed, Permission, "not authorized to access the consumer group"},
		{wrapped(kerr.InvalidPartitions, "at most 7"), Invalid, "the cluster does not take this number of partitions: at most 7"},
		{wrapped(kerr.SaslAuthenticationFailed, "log in again"), Unauthenticated, "log in again"},
		{wrapped(kerr.SaslAuthenticationFailed, "the access token has expired"+LoginHint), Unauthenticated, "the access token has expired"},
		{wrapped(kerr.SaslAuthenticationFailed, "the access key was revoked"+KeyHint), Unauthenticated, "the access key was revoked"},
		{kerr.SaslAuthenticationFailed, Unauthenticated, "the login was refused"},
		{wrapped(kerr.SaslAuthenticationFailed, CannotTell+" whose token this is"), Unavailable, CannotTell + " whose token this is"},
		{wrapped(globus.ErrMisconfigured, "status 501"), Unavailable, "unexpected answer: status 501"},
		{kerr.NotLeaderForPartition, Unavailable, kerr.NotLeaderForPartition.Error()},
		{kerr.InvalidTxnState, Unknown, kerr.InvalidTxnState.Error()},
		{fmt.Errorf("read: %w", io.EOF), Unavailable, "the broker closed the connection; it may be stopping, unable to reach its cluster or to check logins, or expect TLS"},
		{context.DeadlineExceeded, Unavailable, "the cluster did not answer in time"},
		{context.Canceled, Unknown, "context canceled"},
		{kgo.ErrRecordTimeout, Unavailable, "the cluster did not acknowledge the events in time"},
		{errors.New("odd"), Unknown, "odd"},
	} {
		condition, reason := Explain(tt.err)
		if condition != tt.condition || reason != tt.reason {
			t.Errorf("Explain(%v) = %v, %q, want %v, %q", tt.err, condition, reason, tt.condition, tt.reason)
		}
	}
}

func TestIsTopic(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		"weather": true, "A_1": true, "_reserved": true, "a-b.c": true, "...": true, strings.Repeat("x", MaxTopicBytes): true,
		"": false, ".": false, "..": false, "a b": false, "a/b": false, "ü": false, "a\n": false, "a\xff": false, strings.Repeat("x", MaxTopicBytes+1): false,
	} {
		if got := IsTopic(name); got != want {
			t.Errorf("IsTopic(%.20q) = %v, want %v", name, got, want)
		}
	}
}
