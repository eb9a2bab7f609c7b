package assemble

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/broker"
	"github.com/diaspora-streams/diaspora/internal/claims"
	"github.com/diaspora-streams/diaspora/internal/gateway"
	"github.com/diaspora-streams/diaspora/internal/server"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// nobody is a Globus Auth that rejects all tokens.
type nobody struct{}

func (nobody) Introspect(context.Context, globus.Secret) (globus.TokenInfo, error) {
	return globus.TokenInfo{}, globus.ErrRefused
}

// config returns a configuration of a gateway and an ACL endpoint on free ports. The options admin
// connect to the cluster.
func config(t *testing.T, admin []kgo.Opt, upstream func() (gateway.Upstream, error)) Config {
	t.Helper()
	return Config{
		Globus:       globus.AuthenticatorConfig{Introspector: nobody{}, Issuer: "http://127.0.0.1:1", Audience: "service", Scope: "scope"},
		Claims:       claims.Config{Admin: admin},
		PublicURL:    "http://127.0.0.1:1",
		TokenKeyFile: filepath.Join(t.TempDir(), "token-key.pem"),
		Gateways:     []Gateway{{Port: &Port{Name: "the gateway", Address: "127.0.0.1:0"}, Broker: upstream}},
		ACL: &ACL{
			Port:   &Port{Name: "the ACL endpoint", Address: "127.0.0.1:0"},
			Config: server.Config{Discovery: diaspora.Discovery{Version: "devel", Security: "plaintext"}},
		},
		Diagnostics: slog.New(slog.DiscardHandler),
	}
}

// TestOpenOrder checks that no port is opened and Broker is not called before the ledger has been read.
func TestOpenOrder(t *testing.T) {
	t.Parallel()
	b, err := broker.Open(broker.Config{Advertise: "127.0.0.1:1"})
	testkit.Must(t, err)
	defer b.Close()
	client, err := kgo.NewClient(b.AdminOpts()...)
	testkit.Must(t, err)
	defer client.Close()
	var cfg Config
	cfg = config(t, b.AdminOpts(), func() (gateway.Upstream, error) {
		topics, err := kadm.NewClient(client).ListTopicsWithInternal(t.Context(), claims.LedgerTopic)
		if err != nil || topics.Error() != nil {
			t.Errorf("the broker is asked for before there is a ledger: %v, %v", err, topics.Error())
		}
		for _, port := range []*Port{cfg.Gateways[0].Port, cfg.ACL.Port} {
			if port.ln != nil {
				t.Errorf("%s listens before all is ready", port.Name)
			}
		}
		return b, nil
	})
	s, err := Open(t.Context(), cfg)
	testkit.Must(t, err)
	if addrs := s.Addrs(); len(addrs) != 2 || addrs["the gateway"] != cfg.Gateways[0].Port.Address || addrs["the ACL endpoint"] != cfg.ACL.Port.Address {
		t.Errorf("Addrs = %v, want those of the gateway and the ACL endpoint", addrs)
	}
	want := diaspora.Discovery{
		Version: "devel", Security: "plaintext", MaxEventBytes: s.Discovery.MaxEventBytes, TokenURL: "http://127.0.0.1:1/v1/token",
		Globus: diaspora.DiscoveryGlobus{Issuer: "http://127.0.0.1:1", ResourceServer: "service", Scope: "scope"},
		Limits: s.Discovery.Limits,
	}
	if limits := s.Discovery.Limits; limits == nil || limits.Topics != 1000 || limits.DefaultRetentionMS != 7*24*60*60*1000 {
		t.Errorf("the limits are %+v", limits)
	}
	if fmt.Sprint(s.Discovery) != fmt.Sprint(want) || want.MaxEventBytes == 0 {
		t.Errorf("Discovery = %+v, want %+v", s.Discovery, want)
	}
	testkit.Must(t, s.Start())
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Errorf("Close twice: %v", err)
	}
}

// TestOpenWithoutCluster checks that if the ledger cannot be read, no port is opened and Broker is not
// called, for each combination of parts.
func TestOpenWithoutCluster(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Config){
		"both":        func(*Config) {},
		"the gateway": func(cfg *Config) { cfg.ACL = nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := config(t, []kgo.Opt{kgo.SeedBrokers("127.0.0.1:1")}, func() (gateway.Upstream, error) {
				t.Error("the broker is asked for")
				return nil, errors.New("none")
			})
			port := cfg.Gateways[0].Port
			change(&cfg)
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			if s, err := Open(ctx, cfg); err == nil {
				t.Errorf("Open = nil, want an error")
				s.Close()
			}
			if port.Address != "127.0.0.1:0" {
				t.Errorf("the gateway has taken %s", port.Address)
			}
		})
	}
}

// ends is a ledger, and creates ports. It records the order in which these are closed.
type ends struct {
	ledger
	mu    sync.Mutex
	order []string
}

func (e *ends) note(name string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.order = append(e.order, name)
}

func (e *ends) Close() error {
	e.note("ledger")
	return nil
}

func (e *ends) port(name string, serve func(context.Context) error) *Port {
	return &Port{Name: name, Address: "127.0.0.1:0", Serve: func(ctx context.Context, ln net.Listener) error {
		err := serve(ctx)
		e.note(name)
		return errors.Join(err, ln.Close())
	}}
}

func untilDone(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// TestCloseOrder checks that Close waits for the endpoint to drain before it stops the gateways, and for
// these before it closes the ledger.
func TestCloseOrder(t *testing.T) {
	t.Parallel()
	var e ends
	s := &Service{ledger: &e, ports: []*Port{e.port("gateway", untilDone), e.port("endpoint", untilDone)}}
	testkit.Must(t, s.Start())
	if err := errors.Join(s.Close(), (*Service)(nil).Close()); err != nil {
		t.Error(err)
	}
	if want := []string{"endpoint", "gateway", "ledger"}; !slices.Equal(e.order, want) {
		t.Errorf("parts end in the order %v, want %v", e.order, want)
	}
}

// TestRun checks that Run stops all parts if one fails, and that all parts drain at the same time when ctx
// ends.
func TestRun(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	var e ends
	s := &Service{ports: []*Port{e.port("gateway", untilDone), e.port("endpoint", func(context.Context) error { return broken })}}
	if err := s.Run(t.Context()); !errors.Is(err, broken) || !strings.Contains(err.Error(), "serve endpoint: ") {
		t.Errorf("Run = %v, want that the endpoint is broken", err)
	}

	var draining sync.WaitGroup // done when both parts are draining
	draining.Add(2)
	drain := func(ctx context.Context) error {
		<-ctx.Done()
		draining.Done()
		draining.Wait()
		return nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s = &Service{ports: []*Port{e.port("gateway", drain), e.port("endpoint", drain)}}
	if err := errors.Join(s.Run(ctx), s.Close()); err != nil {
		t.Errorf("Run until ctx ends = %v", err)
	}
}

// TestPort stops a port and starts it again.
func TestPort(t *testing.T) {
	t.Parallel()
	var e ends
	p := e.port("a part", untilDone)
	if err := errors.Join(p.Stop(), p.Open(), p.Open()); err != nil { // Stop before Open, and Open twice
		t.Fatal(err)
	}
	address := p.Address
	_, err := (&Port{Name: "another part", Address: address}).Start()
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "listen for another part: another process") || !strings.Contains(err.Error(), address) {
		t.Errorf("Start on a port that is taken = %v, want who has it", err)
	}
	for range 2 {
		ended, err := p.Start()
		testkit.Must(t, err)
		if _, err := p.Start(); err == nil {
			t.Error("Start of a part that serves = nil, want an error")
		}
		if conn, err := net.Dial("tcp", address); err != nil {
			t.Errorf("connect to a part that serves: %v", err)
		} else {
			conn.Close()
		}
		if err := errors.Join(p.Stop(), p.Stop()); err != nil {
			t.Error(err)
		}
		<-ended
		if conn, err := net.Dial("tcp", address); err == nil {
			t.Error("a stopped part takes connections")
			conn.Close()
		}
	}
}
