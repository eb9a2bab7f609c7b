package fabric_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
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
		// Some tests leave events behind that can never be sent, so Close must not wait for long.
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		logger.Close(ctx)
	})
	return logger
}

// TestLoginSurvivesARestart checks that a token is still valid after the fabric was restarted.
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

// withToken returns the configuration of a client that uses the access token of a login.
func withToken(f *fabric.Fabric, login *globus.Login) diaspora.Config {
	token, _ := login.Token(f.Discovery().Globus.ResourceServer)
	return diaspora.Config{URL: f.URL(), Brokers: f.Brokers(), Identity: login.Identity, TokenSource: fixed(token)}
}

type fixed globus.Token

func (f fixed) Token(context.Context) (globus.Token, error) { return globus.Token(f), nil }

// TestKafkaFile checks the errors for a KafkaFile that is missing or invalid. Package interop tests a
// fabric in front of a real Apache Kafka cluster.
func TestKafkaFile(t *testing.T) {
	damaged := filepath.Join(t.TempDir(), "cluster.json")
	if err := os.WriteFile(damaged, []byte(`{"nodes": []}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, cfg := range []fabric.Config{
		{KafkaFile: filepath.Join(t.TempDir(), "cluster.json")},
		{KafkaFile: damaged},
		{KafkaFile: damaged, KafkaAddr: "127.0.0.1:0"},
	} {
		if f, err := fabric.Start(t.Context(), cfg); err == nil {
			t.Errorf("Start(%+v) = nil, want an error", cfg)
			f.Close()
		}
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
