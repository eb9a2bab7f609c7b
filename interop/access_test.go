package interop

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/inside"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

func TestAnotherIdentityMayNot(t *testing.T) {
	parallel(t)
	f := start(t, fabric.Config{})
	topic := claim(t, fabrictest.As(t, f, ada), 1)
	cfg := fabrictest.As(t, f, grace)

	produce := fabrictest.OpenLogger(t, cfg).Log(testkit.Within(t), diaspora.Event{Topic: topic, Value: []byte("x")})
	_, consume := diaspora.OpenConsumer(testkit.Within(t), cfg, diaspora.ConsumerOptions{Topics: []string{topic}})
	_, describe := fabrictest.Client(t, cfg).Topic(testkit.Within(t), topic)
	_, claimed := fabrictest.Client(t, cfg).Claim(testkit.Within(t), diaspora.ClaimRequest{Name: topic})
	release := fabrictest.Client(t, cfg).Release(testkit.Within(t), topic)

	wantError(t, "produce as another identity", produce, diaspora.ErrPermission, grace, topic)
	wantError(t, "consume as another identity", consume, diaspora.ErrPermission, grace, topic)
	wantError(t, "describe as another identity", describe, diaspora.ErrPermission, topic)
	wantError(t, "claim as another identity", claimed, diaspora.ErrConflict, topic)
	wantError(t, "release as another identity", release, diaspora.ErrPermission, topic)
}

// TestTopicsNobodyHas: a topic that is not there looks the same as one that is
// somebody else's, and is not made by being used.
func TestTopicsNobodyHas(t *testing.T) {
	parallel(t)
	f := start(t, fabric.Config{})
	cfg := fabrictest.As(t, f, ada)
	topic := unique(t)
	produce := fabrictest.OpenLogger(t, cfg).Log(testkit.Within(t), diaspora.Event{Topic: topic, Value: []byte("x")})
	_, consume := diaspora.OpenConsumer(testkit.Within(t), cfg, diaspora.ConsumerOptions{Topics: []string{topic}})
	wantError(t, "produce", produce, diaspora.ErrPermission, topic)
	wantError(t, "consume", consume, diaspora.ErrPermission, topic)
	fabrictest.Claim(t, cfg, topic, 1)
	if n := len(fabrictest.ReadAll(t, cfg, topic)); n != 0 {
		t.Errorf("a new topic has %d records", n)
	}
}

func TestTokensThatAreNotGood(t *testing.T) {
	parallel(t)
	f := start(t, fabric.Config{})
	tokens := map[string]func(*testing.T, globus.Token) globus.Token{
		"never issued": func(_ *testing.T, token globus.Token) globus.Token {
			token.AccessToken = "dev-at-nobody-has-ever-issued-this-one"
			return token
		},
		"expired": func(t *testing.T, token globus.Token) globus.Token {
			testkit.Must(t, inside.Of(f).Globus.Expire(token.AccessToken))
			return token
		},
		"revoked": func(t *testing.T, token globus.Token) globus.Token {
			testkit.Must(t, inside.Of(f).Globus.Revoke(token.AccessToken))
			return token
		},
	}
	for name, spoil := range tokens {
		t.Run(name, func(t *testing.T) {
			login := fabrictest.Login(t, f, ada)
			token, _ := login.Token(f.Discovery().Globus.ResourceServer)
			cfg := fabrictest.WithToken(f, login)
			cfg.TokenSource = fabrictest.Fixed(spoil(t, token))
			_, err := diaspora.OpenLogger(testkit.Within(t), cfg)
			wantError(t, "OpenLogger", err, diaspora.ErrUnauthenticated, "diaspora login")
			if strings.Contains(fmt.Sprint(err), token.AccessToken.Reveal()) {
				t.Error("the error shows the token")
			}
		})
	}
}

// TestRevocationEndsOpenConnections revokes the token of a connection in use.
func TestRevocationEndsOpenConnections(t *testing.T) {
	parallel(t)
	f := start(t, fabric.Config{RevocationInterval: time.Second})
	topic := claim(t, fabrictest.As(t, f, ada), 1)
	login := fabrictest.Login(t, f, ada)
	logger := fabrictest.OpenLogger(t, fabrictest.WithToken(f, login))
	fabrictest.Log(t, logger, topic, "before")
	token, _ := login.Token(f.Discovery().Globus.ResourceServer)
	testkit.Must(t, inside.Of(f).Globus.Revoke(token.AccessToken))
	ctx := testkit.Within(t)
	var err error
	for err == nil {
		err = logger.Log(ctx, diaspora.Event{Topic: topic, Value: []byte("after")})
	}
	wantError(t, "Log after the revocation", err, diaspora.ErrUnauthenticated)
}

// TestGlobusOutage stops Globus: who is signed in goes on, who is new waits.
func TestGlobusOutage(t *testing.T) {
	parallel(t)
	f := start(t, fabric.Config{RevocationInterval: 100 * time.Millisecond})
	cfg := fabrictest.As(t, f, ada)
	topic := claim(t, cfg, 1)
	known := fabrictest.OpenLogger(t, cfg)
	fabrictest.Log(t, known, topic, "before")
	newcomer, err := f.Login(testkit.Within(t), ada) // whose token the gateway has not seen
	testkit.Must(t, err)
	testkit.Must(t, f.StopGlobus())
	opened := make(chan error, 1)
	go func() {
		logger, err := diaspora.OpenLogger(testkit.Within(t), fabrictest.WithToken(f, newcomer))
		if err == nil {
			err = logger.Close(testkit.Within(t))
		}
		opened <- err
	}()
	fabrictest.Log(t, known, topic, fabrictest.Numbers(0, 50)...)
	fabrictest.OpenLogger(t, cfg) // a known token opens new connections, too
	select {
	case err := <-opened:
		t.Fatalf("OpenLogger of an unknown identity while Globus is away: %v, want it to wait", err)
	default:
	}
	testkit.Must(t, f.StartGlobus())
	if err := <-opened; err != nil {
		t.Errorf("OpenLogger after Globus came back: %v", err)
	}
}

// TestExpiryAmidStream: tokens of a few seconds, and a producer and a consumer that
// see nothing of it.
func TestExpiryAmidStream(t *testing.T) {
	parallel(t)
	const lifetime = 8 * time.Second // a busy machine needs some of it
	f := start(t, fabric.Config{AccessTokenLifetime: lifetime})
	cfg := fabrictest.As(t, f, ada)
	topic := claim(t, cfg, 1)
	logger := fabrictest.OpenLogger(t, cfg)
	consumer := fabrictest.OpenConsumer(t, cfg, diaspora.ConsumerOptions{Topics: []string{topic}})
	next, n := 0, 0
	began := time.Now()
	for record, err := range consumer.Records(pulled(t, logger, topic, &n)) {
		testkit.Must(t, err)
		if string(record.Value) != fmt.Sprint(next) {
			t.Fatalf("record %s, want %d", record.Value, next)
		}
		next++
		if time.Since(began) > 2*lifetime {
			break
		}
	}
	t.Logf("%d events in %v with tokens of %v", next, time.Since(began).Round(time.Millisecond), lifetime)
}

// TestReleaseAndReclaim gives a topic to the next owner, who sees nothing of the
// first one's events; the first one keeps no rights.
func TestReleaseAndReclaim(t *testing.T) {
	parallel(t)
	f := start(t, fabric.Config{})
	first, second := fabrictest.As(t, f, ada), fabrictest.As(t, f, grace)
	topic := claim(t, first, 1)
	producing := fabrictest.OpenLogger(t, first)
	fabrictest.Log(t, producing, topic, "secret")
	consuming := fabrictest.OpenConsumer(t, first, diaspora.ConsumerOptions{Topics: []string{topic}})
	if got := values(fabrictest.Read(t, consuming, 1)); got != "secret" {
		t.Fatalf("read %q", got)
	}
	testkit.Must(t, fabrictest.Client(t, first).Release(testkit.Within(t), topic))
	fabrictest.Claim(t, second, topic, 1)

	if got := values(fabrictest.ReadAll(t, second, topic)); got != "" {
		t.Errorf("the next owner reads %q", got)
	}
	fabrictest.Log(t, fabrictest.OpenLogger(t, second), topic, "public")

	// On the connections that the first owner has open.
	err := producing.Log(testkit.Within(t), diaspora.Event{Topic: topic, Value: []byte("late")})
	wantError(t, "Log of the former owner", err, diaspora.ErrPermission, topic)
	_, err = diaspora.OpenConsumer(testkit.Within(t), first, diaspora.ConsumerOptions{Topics: []string{topic}})
	wantError(t, "OpenConsumer of the former owner", err, diaspora.ErrPermission, topic)
	for record, err := range consuming.Records(testkit.Within(t)) {
		if err == nil && string(record.Value) == "secret" {
			continue // their own event, again
		}
		if err == nil {
			t.Errorf("the former owner reads %q", record.Value)
		}
		wantError(t, "Records of the former owner", err, diaspora.ErrPermission, topic)
		break
	}
	if got := values(fabrictest.ReadAll(t, second, topic)); got != "public" {
		t.Errorf("the next owner reads %q, want what they logged", got)
	}
	topics, err := fabrictest.Client(t, first).Topics(testkit.Within(t))
	released := func(other diaspora.Topic) bool { return other.Name == topic }
	if err != nil || slices.ContainsFunc(topics.Topics, released) {
		t.Errorf("Topics() of the former owner = %v, %v", topics, err)
	}
}

// TestTransactionsAreRefused: no claim gives a right to a transactional ID, which
// needs one.
func TestTransactionsAreRefused(t *testing.T) {
	parallel(t)
	f := start(t, fabric.Config{})
	cfg := fabrictest.As(t, f, ada)
	c, err := diaspora.Dial(testkit.Within(t), cfg, kgo.TransactionalID(unique(t)))
	testkit.Must(t, err)
	defer c.Close()
	err = c.BeginTransaction()
	if !strings.Contains(fmt.Sprint(err), kerr.TransactionalIDAuthorizationFailed.Message) {
		t.Errorf("begin a transaction: %v, want %v", err, kerr.TransactionalIDAuthorizationFailed)
	}
}
