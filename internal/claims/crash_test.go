package claims

import (
	"cmp"
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
	"github.com/diaspora-streams/diaspora/globus"
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

// killed reports whether the wire has stopped the service for good.
func (w *wire) killed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.dead
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

// changing are the requests that change the cluster or the ledger.
var changing = []kmsg.Key{
	kmsg.Produce, kmsg.CreateTopics, kmsg.DeleteTopics, kmsg.CreateACLs, kmsg.DeleteACLs, kmsg.IncrementalAlterConfigs, kmsg.CreatePartitions,
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
	case !slices.Contains(changing, key):
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
	steps   int  // how many changes of the cluster and of the ledger it makes at least
	ready   func(context.Context, *testCluster, *Service, string) error
	do      func(context.Context, *testCluster, *Service, string) error
	// undo is what another replica does while this one is slow. It takes away what the operation
	// gives, or gives it again in another form. It returns what must be true in the end.
	undo func(context.Context, *testCluster, *Service, string) (after func(*state) error)
}

var operations = []operation{
	{name: "claim", steps: 4, do: func(ctx context.Context, _ *testCluster, s *Service, name string) error {
		_, err := s.Claim(ctx, ada, diaspora.ClaimRequest{Name: name})
		return err
	}},
	{name: "release", claimed: true, steps: 4, do: func(ctx context.Context, _ *testCluster, s *Service, name string) error {
		return s.Release(ctx, ada, name)
	}},
	{name: "share", claimed: true, steps: 2, do: shareWithBen, undo: func(ctx context.Context, c *testCluster, s *Service, name string) func(*state) error {
		shared := s.Unshare(ctx, ada, name, ben) == nil
		return func(st *state) error {
			if _, again := st.grants[name][ben]; shared && again {
				return errors.New("the share that was ended is back")
			}
			return nil
		}
	}},
	{name: "unshare", claimed: true, steps: 2, ready: shareWithBen, do: func(ctx context.Context, _ *testCluster, s *Service, name string) error {
		return s.Unshare(ctx, ada, name, ben)
	}, undo: func(ctx context.Context, _ *testCluster, s *Service, name string) func(*state) error {
		_, err := s.Share(ctx, ada, name, diaspora.GrantRequest{Subject: ben, Read: true})
		return func(*state) error { return err }
	}},
	{name: "share that expires", claimed: true, steps: 2, ready: func(ctx context.Context, _ *testCluster, s *Service, name string) error {
		r := changeOf(s, opShare, name)
		r.Grantee, r.Write, r.Limit, r.Expires = ben, true, 1000, r.Time.Add(-time.Minute)
		return errors.Join(s.ledger.append(ctx, r), reconciled(ctx, s, name))
	}, do: reconcile, undo: func(ctx context.Context, _ *testCluster, s *Service, name string) func(*state) error {
		_, err := s.Share(ctx, ada, name, diaspora.GrantRequest{Subject: ben, Read: true}) // for ever
		return func(st *state) error {
			if _, shared := st.grants[name][ben]; !shared {
				err = errors.Join(err, errors.New("the share that was renewed has ended"))
			}
			return err
		}
	}},
	{name: "more partitions", claimed: true, steps: 2, do: func(ctx context.Context, _ *testCluster, s *Service, name string) error {
		_, err := s.SetTopic(ctx, ada, name, diaspora.TopicSettings{Partitions: 3})
		return err
	}},
	{name: "set", claimed: true, steps: 2, do: func(ctx context.Context, _ *testCluster, s *Service, name string) error {
		_, err := s.SetTopic(ctx, ada, name, diaspora.TopicSettings{RetentionMS: 60_000})
		return err
	}, undo: func(ctx context.Context, _ *testCluster, s *Service, name string) func(*state) error {
		_, err := s.SetTopic(ctx, ada, name, diaspora.TopicSettings{RetentionMS: 120_000})
		return func(*state) error { return err }
	}},
	{name: "accept", claimed: true, steps: 3, ready: func(ctx context.Context, _ *testCluster, s *Service, name string) error {
		return s.Offer(ctx, ada, name, ben)
	}, do: func(ctx context.Context, _ *testCluster, s *Service, name string) error {
		_, err := s.Accept(ctx, ben, name)
		return err
	}, undo: func(ctx context.Context, _ *testCluster, s *Service, name string) func(*state) error {
		if s.Offer(ctx, ada, name, ada) != nil { // it is too late to withdraw it
			offered := s.Offer(ctx, ben, name, ada)
			_, err := s.Accept(ctx, ada, name)
			if err = errors.Join(offered, err); err != nil {
				return func(*state) error { return err }
			}
		}
		return func(st *state) error {
			if owner := st.topics[name].owner; owner != ada {
				return fmt.Errorf("the owner is %s, and the offer was withdrawn, or the topic given back", owner)
			}
			return nil
		}
	}},
	{name: "retire", claimed: true, steps: 2, ready: shareWithBen, do: retire, undo: func(ctx context.Context, _ *testCluster, s *Service, name string) func(*state) error {
		_, err := s.Restore(ctx, ada, name)
		return func(st *state) error {
			if p := st.topics[name].phase; err == nil && p != claimed {
				return fmt.Errorf("the topic that was restored is %v", p)
			}
			return nil
		}
	}},
	{name: "restore", claimed: true, steps: 2, ready: func(ctx context.Context, c *testCluster, s *Service, name string) error {
		return errors.Join(shareWithBen(ctx, c, s, name), retire(ctx, c, s, name))
	}, do: func(ctx context.Context, _ *testCluster, s *Service, name string) error {
		_, err := s.Restore(ctx, ada, name)
		return err
	}, undo: func(ctx context.Context, c *testCluster, s *Service, name string) func(*state) error {
		restored := s.ledger.sync(ctx) == nil && s.ledger.topic(name).phase == claimed
		err := retire(ctx, c, s, name)
		return func(st *state) error {
			if p := st.topics[name].phase; restored && p != retired {
				err = errors.Join(err, fmt.Errorf("the topic that was released again is %v", p))
			}
			return err
		}
	}},
	{name: "deletion of a released topic", claimed: true, steps: 3, ready: func(ctx context.Context, _ *testCluster, s *Service, name string) error {
		r := changeOf(s, opRetire, name)
		r.Expires = r.Time.Add(-time.Minute)
		return errors.Join(s.ledger.append(ctx, r), reconciled(ctx, s, name))
	}, do: reconcile, undo: func(ctx context.Context, c *testCluster, s *Service, name string) func(*state) error {
		_, err := s.Restore(ctx, ada, name)
		return func(st *state) error {
			if p := st.topics[name].phase; err == nil && (p != claimed || !c.hasTopic(name)) {
				return fmt.Errorf("the topic that was restored in time is %v", p)
			}
			return nil
		}
	}},
	{name: "members", claimed: true, steps: 3, ready: func(ctx context.Context, c *testCluster, s *Service, name string) error {
		c.groups.set(numbered('d', name), ben)
		_, err := s.Share(ctx, ada, name, diaspora.GrantRequest{Group: numbered('d', name), Read: true})
		c.groups.set(numbered('d', name), cleo)
		return err
	}, do: func(ctx context.Context, _ *testCluster, s *Service, name string) error {
		return s.updateMembers(ctx, groupGrantee+numbered('d', name), s.groupMembers)
	}, undo: func(ctx context.Context, c *testCluster, s *Service, name string) func(*state) error {
		group := numbered('d', name)
		err := s.updateMembers(ctx, groupGrantee+group, s.groupMembers)
		c.groups.set(group, ben)
		err = errors.Join(err, s.updateMembers(ctx, groupGrantee+group, s.groupMembers))
		return func(st *state) error {
			if members := st.membersOf(groupGrantee + group); !slices.Equal(members, []diaspora.GroupMember{{Subject: ben}}) {
				err = errors.Join(err, fmt.Errorf("the group has the members %v, and one of them had left", members))
			}
			return err
		}
	}},
	{name: "link", claimed: true, steps: 2, ready: shareWithIdentity, do: func(ctx context.Context, _ *testCluster, s *Service, name string) error {
		return s.Linked(ctx, linkedFor(name, true))
	}, undo: func(ctx context.Context, _ *testCluster, s *Service, name string) func(*state) error {
		err := errors.Join(s.ledger.sync(ctx), s.Linked(ctx, linkedFor(name, true)), s.Linked(ctx, linkedFor(name, false)))
		return func(st *state) error {
			if subject := st.links[numbered('e', name)]; subject != "" {
				err = errors.Join(err, errors.New("the link that was removed is back"))
			}
			return err
		}
	}},
	{name: "unlink", claimed: true, steps: 2, ready: func(ctx context.Context, c *testCluster, s *Service, name string) error {
		return errors.Join(shareWithIdentity(ctx, c, s, name), s.Linked(ctx, linkedFor(name, true)))
	}, do: func(ctx context.Context, _ *testCluster, s *Service, name string) error {
		return s.Linked(ctx, linkedFor(name, false))
	}, undo: func(ctx context.Context, _ *testCluster, s *Service, name string) func(*state) error {
		err := errors.Join(s.ledger.sync(ctx), s.Linked(ctx, linkedFor(name, false)), s.Linked(ctx, linkedFor(name, true)))
		return func(st *state) error {
			if st.links[numbered('e', name)] == "" {
				err = errors.Join(err, errors.New("the new link is gone"))
			}
			return err
		}
	}},
}

func shareWithBen(ctx context.Context, _ *testCluster, s *Service, name string) error {
	_, err := s.Share(ctx, ada, name, diaspora.GrantRequest{Subject: ben, Read: true, Write: true})
	return err
}

func shareWithIdentity(ctx context.Context, _ *testCluster, s *Service, name string) error {
	_, err := s.Share(ctx, ada, name, diaspora.GrantRequest{Subject: numbered('e', name), Read: true})
	return err
}

func retire(ctx context.Context, _ *testCluster, s *Service, name string) error {
	_, err := s.Retire(ctx, ada, name)
	return err
}

func reconcile(ctx context.Context, _ *testCluster, s *Service, _ string) error {
	return s.Reconcile(ctx)
}

func reconciled(ctx context.Context, s *Service, name string) error {
	_, err := s.reconcileTopic(ctx, name, false)
	return err
}

// changeOf returns a record about a topic of ada's that is not complete yet.
func changeOf(s *Service, op, name string) record {
	r, t := newRecord(op, ada), s.ledger.topic(name)
	r.Topic, r.Claim = name, &t.claimOffset
	return r
}

// numbered returns an ID for a topic "t1", "t2" and so on, so that each topic has a group, an identity
// and a person of its own.
func numbered(kind rune, name string) string {
	n := 0
	fmt.Sscanf(name, "t%d", &n)
	return fmt.Sprintf("%c0000000-0000-4000-8000-%012d", kind, n)
}

// linkedFor is the person of a topic, who has linked the topic's identity or not.
func linkedFor(name string, linked bool) globus.Identity {
	id := globus.Identity{Subject: numbered('f', name), IdentitySet: []string{numbered('f', name)}}
	if linked {
		id.IdentitySet = append(id.IdentitySet, numbered('e', name))
	}
	return id
}

// globusGroups are the Globus groups of a test and their members.
type globusGroups struct {
	mu      sync.Mutex // guards the field below
	members map[string][]string
}

func (g *globusGroups) set(group string, members ...string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.members == nil {
		g.members = make(map[string][]string)
	}
	g.members[group] = members
}

func (g *globusGroups) list(_ context.Context, group string) ([]string, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.members[group], nil
}

// openWithGroups opens a service that can read the members of groups, and does so only when told to.
func (c *testCluster) openWithGroups(edit ...func(*Config)) *Service {
	c.t.Helper()
	s := c.open(edit...)
	s.cfg.Groups = c.groups.list
	return s
}

// prepare opens a service behind a wire and returns it ready to perform op on the topic.
func (op operation) prepare(c *testCluster, name string) (*Service, *wire) {
	c.t.Helper()
	w := new(wire)
	s := c.openWithGroups(func(cfg *Config) { cfg.Admin = append(cfg.Admin, w.opts()...) })
	if op.claimed {
		if _, err := s.Claim(c.t.Context(), ada, diaspora.ClaimRequest{Name: name}); err != nil {
			c.t.Fatal(err)
		}
		testkit.Must(c.t, c.produce(ada, name, "of the first owner"))
	}
	if op.ready != nil {
		testkit.Must(c.t, op.ready(c.t.Context(), c, s, name))
	}
	return s, w
}

// TestKilledBetweenTwoSteps kills the service before each change that it makes during an operation.
// The next start must repair everything, and so must another replica that is still
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
				var closing sync.WaitGroup
				defer closing.Wait()
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
					err := op.do(ctx, c, s, name)
					cancel()
					<-finished
					closing.Go(func() { s.Close() }) // which takes a second without a cluster
					killed := w.killed()
					if killed == (err == nil) {
						t.Fatalf("killed before change %d: %v, and the error is %v", n, killed, err)
					}
					heal(c, replica)
					c.check()
					if !killed {
						t.Logf("killed before each of %v", strings.Join(w.changes(), ", "))
						if n <= op.steps {
							t.Errorf("only %d changes were seen, want at least %d", n-1, op.steps)
						}
						return
					}
				}
			})
		}
	}
}

// TestSlowReplica stops one replica before each change that it makes during an operation.
// In the meantime another one releases the topic and gives it to another subject. When the first
// one continues, it must neither leave rights behind nor harm the new owner's events.
func TestSlowReplica(t *testing.T) {
	t.Parallel()
	for _, op := range operations {
		for _, next := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, next owner %v", op.name, next), func(t *testing.T) {
				t.Parallel()
				c := newCluster(t)
				fast := c.open()
				for n := 1; ; n++ {
					name := fmt.Sprintf("t%d", n)
					slow, w := op.prepare(c, name)
					w.arm(n, false)
					finished := make(chan error)
					go func() { finished <- op.do(t.Context(), c, slow, name) }()
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
					testkit.Must(t, fast.ledger.sync(t.Context()))
					owner := cmp.Or(fast.ledger.topic(name).owner, ada)
					if err := fast.Release(t.Context(), owner, name); err != nil && !errors.Is(err, diaspora.ErrNotFound) {
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

// TestUndoneWhileSlow stops one replica before each change that it makes during an operation. In the
// meantime another one takes away what the operation gives, or gives something else. When the first
// one continues, nothing that was taken away may come back.
func TestUndoneWhileSlow(t *testing.T) {
	t.Parallel()
	for _, op := range operations {
		if op.undo == nil {
			continue
		}
		t.Run(op.name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			fast := c.openWithGroups()
			for n := 1; ; n++ {
				name := fmt.Sprintf("t%d", n)
				slow, w := op.prepare(c, name)
				w.arm(n, false)
				finished := make(chan error, 1)
				go func() { finished <- op.do(t.Context(), c, slow, name) }()
				select {
				case err := <-finished:
					if err != nil {
						t.Errorf("%s without delay = %v", op.name, err)
					}
					t.Logf("slow before each of %v", strings.Join(w.changes(), ", "))
					return
				case <-w.reached:
				}
				stopped := w.changes()[n-1]
				after := op.undo(t.Context(), c, fast, name)
				close(w.thaw)
				select {
				case err := <-finished:
					t.Logf("%s was slow before change %d, %s, and then returned: %v", op.name, n, stopped, err)
				case <-time.After(20 * time.Second):
					t.Fatalf("%s hangs", op.name)
				}
				slow.Close()
				testkit.Must(t, fast.ledger.sync(t.Context()))
				var st *state
				fast.ledger.read(func(now *state) { st = now.clone() })
				if err := after(st); err != nil {
					t.Errorf("%s was slow before change %d, %s: %v", op.name, n, stopped, err)
				}
				c.check()
			}
		})
	}
}
