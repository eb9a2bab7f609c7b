package claims

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// wire is a service's network. It can stop the service just before a request that would change the
// cluster: for good, as kill -9 does, or until it is told to continue, as on a slow machine.
type wire struct {
	mu    sync.Mutex // guards the fields below
	stop  int        // the number of the change before which to stop; 0 means never
	seen  []string   // the changes that were requested since arm
	kill  bool
	dead  bool
	conns []net.Conn

	reached chan struct{} // closed when the service has been stopped
	thaw    chan struct{} // closed to let the service continue
}

var errDead = &net.OpError{Op: "dial", Err: errors.New("the service is dead")}

// arm makes the wire stop the service before its nth change from now on.
func (w *wire) arm(n int, kill bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stop, w.kill, w.seen = n, kill, nil
	w.reached, w.thaw = make(chan struct{}), make(chan struct{})
}

// changes returns the requests since arm that would change the cluster.
func (w *wire) changes() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.seen)
}

// opts are for the service's client.
func (w *wire) opts() []kgo.Opt { return []kgo.Opt{kgo.Dialer(w.dial)} }

func (w *wire) dial(ctx context.Context, network, address string) (net.Conn, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dead {
		return nil, errDead
	}
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	w.conns = append(w.conns, conn)
	return &wireConn{conn, w}, nil
}

// pass waits until the request may be sent. An error means that it must not be sent.
func (w *wire) pass(request []byte) error {
	key := kmsg.Key(-1)
	if len(request) >= 6 {
		key = kmsg.Key(binary.BigEndian.Uint16(request[4:]))
	}
	w.mu.Lock()
	switch {
	case w.dead:
		w.mu.Unlock()
		return errDead
	case key != kmsg.Produce && key != kmsg.CreateTopics && key != kmsg.DeleteTopics && key != kmsg.CreateACLs && key != kmsg.DeleteACLs:
		w.mu.Unlock()
		return nil
	}
	w.seen = append(w.seen, key.Name())
	stop := len(w.seen) == w.stop
	thaw := w.thaw
	if stop {
		close(w.reached)
		if w.kill {
			w.dead = true
			for _, conn := range w.conns {
				conn.Close()
			}
		}
	}
	w.mu.Unlock()
	if stop && !w.kill {
		<-thaw
	}
	return nil
}

type wireConn struct {
	net.Conn
	wire *wire
}

func (c *wireConn) Write(p []byte) (int, error) {
	if err := c.wire.pass(p); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// operation is something that a service does to a topic of ada's.
type operation struct {
	name    string
	claimed bool // whether the topic is claimed when it begins
	do      func(context.Context, *Service, string) error
}

var operations = []operation{
	{"claim", false, func(ctx context.Context, s *Service, name string) error {
		_, err := s.Claim(ctx, ada, diaspora.ClaimRequest{Name: name})
		return err
	}},
	{"release", true, func(ctx context.Context, s *Service, name string) error {
		return s.Release(ctx, ada, name)
	}},
}

// prepare opens a service behind a wire and returns it ready to perform op on the topic.
func (op operation) prepare(c *testCluster, name string) (*Service, *wire) {
	c.t.Helper()
	w := new(wire)
	s := c.open(func(cfg *Config) { cfg.Admin = append(cfg.Admin, w.opts()...) })
	if op.claimed {
		if _, err := s.Claim(c.t.Context(), ada, diaspora.ClaimRequest{Name: name}); err != nil {
			c.t.Fatal(err)
		}
		testkit.Must(c.t, c.produce(ada, name, "of the first owner"))
	}
	return s, w
}

// TestKilledBetweenTwoSteps kills the service before each change that it makes during a claim or a
// release. The next start must repair everything, and so must another replica that is still
// running.
func TestKilledBetweenTwoSteps(t *testing.T) {
	t.Parallel()
	for _, op := range operations {
		for healer, heal := range map[string]func(*testCluster, *Service){
			"next start": func(c *testCluster, _ *Service) { c.open().Close() },
			"replica": func(c *testCluster, replica *Service) {
				if err := replica.Reconcile(c.t.Context()); err != nil {
					c.t.Error(err)
				}
			},
		} {
			t.Run(op.name+" healed by "+healer, func(t *testing.T) {
				t.Parallel()
				c := newCluster(t)
				replica := c.open()
				for n := 1; ; n++ {
					name := fmt.Sprintf("t%d", n)
					s, w := op.prepare(c, name)
					w.arm(n, true)
					ctx, cancel := context.WithCancel(t.Context())
					finished := make(chan struct{})
					go func() {
						defer close(finished)
						select {
						case <-w.reached:
							cancel()
						case <-ctx.Done():
						}
					}()
					err := op.do(ctx, s, name)
					cancel()
					<-finished
					s.Close()
					killed := w.dead
					if killed == (err == nil) {
						t.Fatalf("killed before change %d: %v, and the error is %v", n, killed, err)
					}
					heal(c, replica)
					c.check()
					if !killed {
						t.Logf("killed before each of %v", strings.Join(w.changes(), ", "))
						if n < 5 {
							t.Errorf("only %d changes were seen, want at least 4", n-1)
						}
						return
					}
				}
			})
		}
	}
}

// TestSlowReplica stops one replica before each change that it makes during a claim or a release.
// In the meantime another one releases the topic and gives it to another subject. When the first
// one continues, it must neither leave rights behind nor harm the new owner's events.
func TestSlowReplica(t *testing.T) {
	for _, op := range operations {
		for _, next := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, next owner %v", op.name, next), func(t *testing.T) {
				c := newCluster(t)
				fast := c.open()
				for n := 1; ; n++ {
					name := fmt.Sprintf("t%d", n)
					slow, w := op.prepare(c, name)
					w.arm(n, false)
					finished := make(chan error)
					go func() { finished <- op.do(t.Context(), slow, name) }()
					var err error
					select {
					case err = <-finished:
						if err != nil {
							t.Errorf("%s without delay = %v", op.name, err)
						}
						t.Logf("slow before each of %v", strings.Join(w.changes(), ", "))
						return
					case <-w.reached:
					}
					if err := fast.Release(t.Context(), ada, name); err != nil && !errors.Is(err, diaspora.ErrNotFound) {
						t.Errorf("Release by the fast replica = %v", err)
					}
					if next {
						if _, err := fast.Claim(t.Context(), ben, diaspora.ClaimRequest{Name: name}); err != nil {
							t.Errorf("Claim by the fast replica before %s = %v", w.changes()[n-1], err)
						} else if err := c.produce(ben, name, "of the next owner"); err != nil {
							t.Errorf("produce of the next owner = %v", err)
						}
					}
					close(w.thaw)
					select {
					case err = <-finished:
						t.Logf("%s was slow before change %d, %s, and then returned: %v", op.name, n, w.changes()[n-1], err)
					case <-time.After(20 * time.Second):
						t.Fatalf("%s hangs", op.name)
					}
					c.check()
					if next {
						if value, err := c.consume(ben, name); value != "of the next owner" {
							t.Errorf("slow before %s: consume of the next owner = %q, %v", w.changes()[n-1], value, err)
						}
					}
					slow.Close()
				}
			})
		}
	}
}
