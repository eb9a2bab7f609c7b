package fabric_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/globus"
)

const (
	ada   = "ada@example.edu"
	grace = "grace@example.org"
)

func start(t *testing.T, cfg fabric.Config) *fabric.Fabric {
	t.Helper()
	f, err := fabric.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return f
}

func as(t *testing.T, f *fabric.Fabric, username string) diaspora.Config {
	t.Helper()
	cfg, err := f.As(t.Context(), username)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func claim(t *testing.T, cfg diaspora.Config, name string) {
	t.Helper()
	client, err := diaspora.NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Claim(t.Context(), diaspora.ClaimRequest{Name: name}); err != nil {
		t.Fatal(err)
	}
}

func openLogger(t *testing.T, cfg diaspora.Config) *diaspora.Logger {
	t.Helper()
	logger, err := diaspora.OpenLogger(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Some tests leave events behind that nobody will ever take.
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		logger.Close(ctx)
	})
	return logger
}

// values reads all that is in a topic now.
func values(t *testing.T, cfg diaspora.Config, name string) (got []string) {
	t.Helper()
	consumer, err := diaspora.OpenConsumer(t.Context(), cfg, diaspora.ConsumerOptions{Topics: []string{name}, Until: diaspora.End})
	if err != nil {
		t.Fatal(err)
	}
	defer consumer.Close(context.Background())
	for record, err := range consumer.Records(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(record.Value))
	}
	return got
}

func TestEventsSurviveARestart(t *testing.T) {
	dir := t.TempDir()
	f, err := fabric.Start(t.Context(), fabric.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	cfg := as(t, f, ada)
	claim(t, cfg, "weather")
	logger := openLogger(t, cfg)
	if err := logger.Log(t.Context(), diaspora.Event{Topic: "weather", Value: []byte("first")}); err != nil {
		t.Fatal(err)
	}
	sent := make(chan error, 1)
	logger.Send(diaspora.Event{Topic: "weather", Value: []byte("second")}, func(_ diaspora.Record, err error) { sent <- err })
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}

	again := start(t, fabric.Config{Dir: dir})
	cfg = as(t, again, ada)
	if got := fmt.Sprint(values(t, cfg, "weather")); got != "[first second]" {
		t.Errorf("after a restart the topic has %s, want [first second]", got)
	}
	client, err := diaspora.NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	topics, err := client.Topics(t.Context())
	if err != nil || len(topics) != 1 || topics[0].Name != "weather" {
		t.Errorf("after a restart Topics() = %v, %v, want weather", topics, err)
	}
}

// TestLoginSurvivesARestart uses a token that an earlier fabric issued.
func TestLoginSurvivesARestart(t *testing.T) {
	dir := t.TempDir()
	f, err := fabric.Start(t.Context(), fabric.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	claim(t, as(t, f, ada), "weather")
	login, err := f.Login(t.Context(), ada)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	again := start(t, fabric.Config{Dir: dir})
	openLogger(t, withToken(again, login))
}

// withToken is the configuration of a client with a login's access token.
func withToken(f *fabric.Fabric, login *globus.Login) diaspora.Config {
	token, _ := login.Token(f.Discovery().Globus.ResourceServer)
	return diaspora.Config{URL: f.URL(), Brokers: f.Brokers(), Identity: login.Identity, TokenSource: fixed(token)}
}

type fixed globus.Token

func (f fixed) Token(context.Context) (globus.Token, error) { return globus.Token(f), nil }

func TestAnotherIdentityMayNot(t *testing.T) {
	f := start(t, fabric.Config{})
	claim(t, as(t, f, ada), "weather")
	cfg := as(t, f, grace)

	logger := openLogger(t, cfg)
	produce := logger.Log(t.Context(), diaspora.Event{Topic: "weather", Value: []byte("x")})
	_, consume := diaspora.OpenConsumer(t.Context(), cfg, diaspora.ConsumerOptions{Topics: []string{"weather"}})
	client, err := diaspora.NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	_, describe := client.Topic(t.Context(), "weather")
	_, claimed := client.Claim(t.Context(), diaspora.ClaimRequest{Name: "weather"})

	for _, try := range []struct {
		what string
		err  error
		is   error
		says string
	}{
		{"produce", produce, diaspora.ErrPermission, grace},
		{"consume", consume, diaspora.ErrPermission, grace},
		{"describe", describe, diaspora.ErrPermission, "weather"},
		{"claim", claimed, diaspora.ErrConflict, "weather"},
	} {
		if !errors.Is(try.err, try.is) || !strings.Contains(fmt.Sprint(try.err), try.says) {
			t.Errorf("%s as another identity: %v, want %v that says %q", try.what, try.err, try.is, try.says)
		}
	}
}

func TestTokensThatAreNotGood(t *testing.T) {
	f := start(t, fabric.Config{})
	tokens := map[string]func(globus.Token) globus.Token{
		"never issued": func(token globus.Token) globus.Token {
			token.AccessToken = "dev-at-nobody-has-ever-issued-this-one"
			return token
		},
		"expired": func(token globus.Token) globus.Token {
			if err := f.Globus().Expire(token.AccessToken); err != nil {
				t.Fatal(err)
			}
			return token
		},
		"revoked": func(token globus.Token) globus.Token {
			if err := f.Globus().Revoke(token.AccessToken); err != nil {
				t.Fatal(err)
			}
			return token
		},
	}
	for name, spoil := range tokens {
		t.Run(name, func(t *testing.T) {
			login, err := f.Login(t.Context(), ada)
			if err != nil {
				t.Fatal(err)
			}
			token, _ := login.Token(f.Discovery().Globus.ResourceServer)
			cfg := withToken(f, login)
			cfg.TokenSource = fixed(spoil(token))
			began := time.Now()
			_, err = diaspora.OpenLogger(t.Context(), cfg)
			if !errors.Is(err, diaspora.ErrUnauthenticated) {
				t.Fatalf("OpenLogger: %v, want ErrUnauthenticated", err)
			}
			t.Logf("refused after %v: %v", time.Since(began).Round(time.Millisecond), err)
			if said := err.Error() + diaspora.Hint(err); !strings.Contains(said, "diaspora login") {
				t.Errorf("OpenLogger: %q does not name the next command", said)
			}
			if strings.Contains(err.Error(), token.AccessToken.Reveal()) {
				t.Error("the error shows the token")
			}
		})
	}
}

// TestRevocationEndsOpenConnections revokes the token of a connection in use.
func TestRevocationEndsOpenConnections(t *testing.T) {
	const bound = time.Second
	f := start(t, fabric.Config{RevocationInterval: bound})
	claim(t, as(t, f, ada), "weather")
	login, err := f.Login(t.Context(), ada)
	if err != nil {
		t.Fatal(err)
	}
	cfg := withToken(f, login)
	logger := openLogger(t, cfg)
	event := diaspora.Event{Topic: "weather", Value: []byte("x")}
	if err := logger.Log(t.Context(), event); err != nil {
		t.Fatal(err)
	}
	token, _ := login.Token(f.Discovery().Globus.ResourceServer)
	if err := f.Globus().Revoke(token.AccessToken); err != nil {
		t.Fatal(err)
	}
	revoked := time.Now()
	for err == nil {
		err = logger.Log(t.Context(), event)
	}
	if !errors.Is(err, diaspora.ErrUnauthenticated) {
		t.Errorf("Log after the revocation: %v, want ErrUnauthenticated", err)
	}
	t.Logf("an open connection ended %v after the revocation; the bound is %v", time.Since(revoked).Round(time.Millisecond), bound)
}

// TestGlobusOutage stops Globus: who is signed in goes on, who is new waits.
func TestGlobusOutage(t *testing.T) {
	f := start(t, fabric.Config{RevocationInterval: 100 * time.Millisecond})
	cfg := as(t, f, ada)
	claim(t, cfg, "weather")
	known := openLogger(t, cfg)
	event := diaspora.Event{Topic: "weather", Value: []byte("x")}
	if err := known.Log(t.Context(), event); err != nil {
		t.Fatal(err)
	}
	newcomer, err := f.Login(t.Context(), ada) // whose token the gateway has not seen
	if err != nil {
		t.Fatal(err)
	}
	if err := f.StopGlobus(); err != nil {
		t.Fatal(err)
	}

	opened := make(chan error, 1)
	go func() {
		logger, err := diaspora.OpenLogger(t.Context(), withToken(f, newcomer))
		if err == nil {
			err = logger.Close(t.Context())
		}
		opened <- err
	}()
	for range 50 {
		if err := known.Log(t.Context(), event); err != nil {
			t.Fatalf("Log of a known identity while Globus is away: %v", err)
		}
	}
	// A known token opens new connections, too.
	openLogger(t, cfg)
	select {
	case err := <-opened:
		t.Fatalf("OpenLogger of an unknown identity while Globus is away: %v, want it to wait", err)
	default:
	}
	if err := f.StartGlobus(); err != nil {
		t.Fatal(err)
	}
	if err := <-opened; err != nil {
		t.Errorf("OpenLogger after Globus came back: %v", err)
	}
}

func TestOneProcessADirectory(t *testing.T) {
	dir := t.TempDir()
	f := start(t, fabric.Config{Dir: dir})
	_, err := fabric.Start(t.Context(), fabric.Config{Dir: dir})
	var inUse *fabric.InUseError
	if !errors.As(err, &inUse) {
		t.Fatalf("Start on a directory in use: %v, want an InUseError", err)
	}
	if inUse.Info.URL != f.URL() || inUse.Info.PID != os.Getpid() {
		t.Errorf("Start on a directory in use says %+v, want %s of process %d", inUse.Info, f.URL(), os.Getpid())
	}
}

func TestPortTaken(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	addr := taken.Addr().String()
	for _, cfg := range []fabric.Config{{KafkaAddr: addr}, {HTTPAddr: addr}, {GlobusAddr: addr}} {
		_, err := fabric.Start(t.Context(), cfg)
		var listen *fabric.ListenError
		if !errors.As(err, &listen) || listen.Addr != addr {
			t.Errorf("Start(%+v): %v, want a ListenError for %s", cfg, err, addr)
		}
	}
}

func TestLoopbackOnly(t *testing.T) {
	for _, addr := range []string{"0.0.0.0:0", ":0", "192.0.2.1:9092", "example.org:9092", "127.0.0.1"} {
		if f, err := fabric.Start(t.Context(), fabric.Config{KafkaAddr: addr}); !errors.Is(err, diaspora.ErrInvalid) {
			t.Errorf("Start with KafkaAddr %q: %v, want ErrInvalid", addr, err)
			f.Close()
		}
	}
}

func TestHealth(t *testing.T) {
	f := start(t, fabric.Config{})
	response, err := http.Get(f.URL() + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Errorf("GET /healthz answers %s", response.Status)
	}
}

func TestCloseTwice(t *testing.T) {
	f, err := fabric.Start(t.Context(), fabric.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Close(), f.Close()); err != nil {
		t.Errorf("Close twice: %v", err)
	}
}
