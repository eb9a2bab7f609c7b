package fabric_test

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

const ada, grace = fabrictest.Ada, fabrictest.Grace

// TestLoginSurvivesARestart checks that a token is still valid after the fabric was restarted.
func TestLoginSurvivesARestart(t *testing.T) {
	dir := t.TempDir()
	f := fabrictest.Start(t, fabric.Config{Dir: dir})
	fabrictest.Claim(t, fabrictest.As(t, f, ada), "weather")
	login := fabrictest.Login(t, f, ada)
	testkit.Must(t, f.Close())
	again := fabrictest.Start(t, fabric.Config{Dir: dir})
	fabrictest.OpenLogger(t, fabrictest.WithToken(again, login))
}

// TestKafkaFile checks the errors for a KafkaFile that is missing or invalid. Package interop tests a
// fabric in front of a real Apache Kafka cluster.
func TestKafkaFile(t *testing.T) {
	damaged := filepath.Join(t.TempDir(), "cluster.json")
	testkit.Must(t, os.WriteFile(damaged, []byte(`{"nodes": []}`), 0o600))
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
	f := fabrictest.Start(t, fabric.Config{Dir: dir})
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
	taken := testkit.Listen(t)
	addr := taken.Addr().String()
	for _, cfg := range []fabric.Config{{KafkaAddr: addr}, {HTTPAddr: addr}, {GlobusAddr: addr}} {
		_, err := fabric.Start(t.Context(), cfg)
		var listen *fabric.ListenError
		if !errors.As(err, &listen) || listen.Addr != addr {
			t.Errorf("Start(%+v): %v, want a ListenError for %s", cfg, err, addr)
		}
	}
}

// TestPortsTaken requires that the error names all ports that are not free.
func TestPortsTaken(t *testing.T) {
	globus, kafka, acl := testkit.Listen(t).Addr().String(), testkit.Listen(t).Addr().String(), testkit.Listen(t).Addr().String()
	_, err := fabric.Start(t.Context(), fabric.Config{GlobusAddr: globus, KafkaAddr: kafka, HTTPAddr: acl})
	for _, addr := range []string{globus, kafka, acl} {
		if err == nil || !strings.Contains(err.Error(), addr) {
			t.Errorf("Start with three ports that are taken: %v, want one that names %s", err, addr)
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
	f := fabrictest.Start(t, fabric.Config{})
	response, err := http.Get(f.URL() + "/healthz")
	testkit.Must(t, err)
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Errorf("GET /healthz answers %s", response.Status)
	}
}

func TestCloseTwice(t *testing.T) {
	f := fabrictest.Start(t, fabric.Config{})
	if err := errors.Join(f.Close(), f.Close()); err != nil {
		t.Errorf("Close twice: %v", err)
	}
}
