//go:build kafka

package interop

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/oauth"

	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/apache"
	"github.com/diaspora-streams/diaspora/internal/gateway"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// description is what these tests need of cluster.json.
type description struct {
	Issuer, Audience string
	JWKSFile         string `json:"jwks_file"`
	Admin            struct {
		Brokers      []string
		Username     string
		PasswordFile string `json:"password_file"`
	}
	Nodes []struct{ Gateway, Listener string }
}

func describe(t testing.TB) (d description) {
	t.Helper()
	data := testkit.ReadFile(t, clusterFile(t))
	testkit.Must(t, json.Unmarshal(data, &d))
	return d
}

// anybody lets one subject in with any token, for an hour.
type anybody struct{ subject string }

func (a anybody) Recheck(context.Context, gateway.Credentials) error { return nil }

func (a anybody) Authenticate(context.Context, gateway.Credentials) (gateway.Identity, error) {
	return gateway.Identity{Subject: a.subject, Principal: a.subject, Read: true, Expiry: time.Now().Add(time.Hour)}, nil
}

// startGateways starts gateways of the test's own, and returns a dialer that
// leads to them.
func startGateways(t *testing.T, d description, keys *apache.Keys, subject string, lifetime time.Duration) func(ctx context.Context, network, addr string) (net.Conn, error) {
	t.Helper()
	at := map[string]string{}
	for _, node := range d.Nodes {
		upstream, err := apache.New(apache.Config{Address: node.Listener, Issuer: d.Issuer, Audience: d.Audience, Keys: keys, TokenLifetime: lifetime})
		testkit.Must(t, err)
		g, err := gateway.New(gateway.Config{Upstream: upstream, Authenticator: anybody{subject}})
		testkit.Must(t, err)
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		testkit.Must(t, err)
		at[node.Gateway] = ln.Addr().String()
		ctx, stop := context.WithCancel(context.Background())
		served := make(chan error, 1)
		go func() { served <- g.Serve(ctx, ln) }()
		t.Cleanup(func() {
			stop()
			if err := <-served; err != nil {
				t.Error(err)
			}
		})
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, at[addr])
	}
}

// TestSessionsAndKeysTakeTurns has a client at work while Apache Kafka's sessions
// end every few seconds and the keys change under it. The client itself never
// logs in again, as old ones do: it thinks that its session lasts for an hour.
func TestSessionsAndKeysTakeTurns(t *testing.T) {
	const lifetime = 4 * time.Second
	f := start(t, fabric.Config{})
	cfg := fabrictest.As(t, f, ada)
	topic := claim(t, cfg, 1)
	testkit.Must(t, f.Close())
	d := describe(t)
	keys, err := apache.OpenKeys(apache.KeysConfig{
		File:     filepath.Join(filepath.Dir(d.JWKSFile), "signing-keys.json"),
		JWKSFile: d.JWKSFile,
		Settle:   time.Second,
	})
	testkit.Must(t, err)
	var connected, broken atomic.Int64
	var logins atomic.Int64
	c, err := kgo.NewClient(
		kgo.SeedBrokers(d.Nodes[0].Gateway),
		kgo.Dialer(startGateways(t, d, keys, cfg.Identity.Subject, lifetime)),
		kgo.SASL(oauth.Oauth(func(context.Context) (oauth.Auth, error) {
			logins.Add(1)
			return oauth.Auth{Token: "anything"}, nil
		})),
		kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.WithHooks(connections{&connected, &broken}),
	)
	testkit.Must(t, err)
	defer c.Close()

	ctx, stop := context.WithCancel(testkit.Within(t))
	defer stop()
	var producing sync.WaitGroup
	producing.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			if err := c.ProduceSync(context.WithoutCancel(ctx), &kgo.Record{Topic: topic, Value: fmt.Append(nil, n)}).FirstErr(); err != nil {
				t.Errorf("produce: %v", err)
				return
			}
		}
	})
	rotated := false
	next := 0
	for began := time.Now(); time.Since(began) < 4*lifetime; {
		fetches := c.PollFetches(ctx)
		testkit.Must(t, fetches.Err())
		for _, r := range fetches.Records() {
			if string(r.Value) != fmt.Sprint(next) {
				t.Fatalf("record %s, want %d", r.Value, next)
			}
			next++
		}
		if !rotated && time.Since(began) > lifetime {
			rotated = true
			testkit.Must(t, keys.Rotate())
		}
	}
	stop()
	producing.Wait()
	if broken.Load() != 0 || logins.Load() > connected.Load() {
		t.Errorf("of %d connections %d broke, and the client logged in %d times", connected.Load(), broken.Load(), logins.Load())
	}
	t.Logf("%d events over %d connections", next, connected.Load())
}

// connections counts what becomes of a client's connections.
type connections struct{ connected, broken *atomic.Int64 }

func (c connections) OnBrokerConnect(kgo.BrokerMetadata, time.Duration, net.Conn, error) {
	c.connected.Add(1)
}

func (c connections) OnBrokerDisconnect(kgo.BrokerMetadata, net.Conn) { c.broken.Add(1) }

// TestSessionEndsWhileJoining: a member waits for its group to rebalance for longer than the
// broker's session lasts, and has another request in flight behind that.
func TestSessionEndsWhileJoining(t *testing.T) {
	const lifetime = 4 * time.Second
	f := start(t, fabric.Config{})
	cfg := fabrictest.As(t, f, ada)
	if err := f.Close(); err != nil { // its gateways
		t.Fatal(err)
	}
	d := describe(t)
	keys, err := apache.OpenKeys(apache.KeysConfig{File: filepath.Join(filepath.Dir(d.JWKSFile), "signing-keys.json"), JWKSFile: d.JWKSFile})
	testkit.Must(t, err)
	dial := startGateways(t, d, keys, cfg.Identity.Subject, lifetime)
	member := func(gateway string) rawConn {
		conn, err := dial(testkit.Within(t), "tcp", gateway)
		testkit.Must(t, err)
		t.Cleanup(func() { conn.Close() })
		w := rawConn{t, conn}
		w.signIn("OAUTHBEARER", "n,,\x01auth=Bearer anything\x01\x01")
		return w
	}
	join := kmsg.NewPtrJoinGroupRequest()
	join.Version, join.Group, join.ProtocolType = 3, unique(t), "consumer"
	join.SessionTimeoutMillis, join.RebalanceTimeoutMillis = 30_000, int32((2 * lifetime).Milliseconds())
	join.Protocols = []kmsg.JoinGroupRequestProtocol{{Name: "range"}}
	find := kmsg.NewPtrFindCoordinatorRequest()
	find.Version, find.CoordinatorKey = 3, join.Group
	coordinator := ""
	for ctx, anyone := testkit.Within(t), member(d.Nodes[0].Gateway); ; {
		found := anyone.ask(find).(*kmsg.FindCoordinatorResponse)
		if found.ErrorCode == 0 {
			coordinator = net.JoinHostPort(found.Host, strconv.Itoa(int(found.Port)))
			break
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("find the group's coordinator: %s", errorCodes(found))
		}
	}
	first := member(coordinator)
	for ctx := testkit.Within(t); ; { // until the coordinator is ready
		joined := first.ask(join).(*kmsg.JoinGroupResponse)
		if joined.ErrorCode == 0 {
			sync := kmsg.NewPtrSyncGroupRequest()
			sync.Group, sync.MemberID, sync.Generation = join.Group, joined.MemberID, joined.Generation
			if codes := errorCodes(first.ask(sync)); codes != "ok" {
				t.Fatalf("sync: %s", codes)
			}
			break
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("join: %s", errorCodes(joined))
		}
	}
	second := member(coordinator)
	behind := kmsg.NewPtrMetadataRequest()
	behind.Version, behind.Topics = 9, []kmsg.MetadataRequestTopic{}
	testkit.Must(t, errors.Join(second.send(join), second.send(behind)))
	began := time.Now()
	for _, request := range []kmsg.Request{join, behind} {
		answer, _, err := second.answer(request)
		if err != nil {
			t.Fatalf("%T after %v: %v", request, time.Since(began).Round(time.Second), err)
		}
		if codes := errorCodes(answer); codes != "ok" {
			t.Errorf("%T: %s", request, codes)
		}
	}
	if waited := time.Since(began); waited < lifetime {
		t.Errorf("the member waited for %v, less than a session lasts: this test tests nothing", waited)
	}
}

// TestStrangeKeys: a gateway whose keys the broker does not know closes its
// clients' connections, which they retry, rather than refuse their tokens.
func TestStrangeKeys(t *testing.T) {
	d := describe(t)
	dir := t.TempDir()
	keys, err := apache.OpenKeys(apache.KeysConfig{File: filepath.Join(dir, "keys"), JWKSFile: filepath.Join(dir, "jwks")})
	testkit.Must(t, err)
	dial := startGateways(t, d, keys, "ada00000-0000-4000-8000-000000000001", time.Minute)
	c, err := kgo.NewClient(
		kgo.SeedBrokers(d.Nodes[0].Gateway), kgo.Dialer(dial), kgo.RetryTimeout(time.Second),
		kgo.SASL(oauth.Auth{Token: "anything"}.AsMechanism()),
	)
	testkit.Must(t, err)
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := c.Ping(ctx); err == nil || !kgo.IsRetryableBrokerErr(err) {
		t.Errorf("Ping with keys that the broker does not know: %v, want an error that can be retried", err)
	}
}
