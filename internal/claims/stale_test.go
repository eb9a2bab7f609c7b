package claims

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// stopped opens a service behind a wire, which stops it before its first change while it does
// something. It returns a function that lets it continue and returns the result.
func (c *testCluster) stopped(do func(context.Context, *Service) error) (proceed func() error) {
	c.t.Helper()
	w := new(wire)
	s := c.openWithGroups(withWire(w))
	return stopBefore(c.t, w, func() error { return do(c.t.Context(), s) })
}

func withWire(w *wire) func(*Config) {
	return func(cfg *Config) { cfg.Admin = append(cfg.Admin, w.opts()...) }
}

// stopBefore calls do and waits until the wire has stopped it before its first change.
func stopBefore(t testing.TB, w *wire, do func() error) (proceed func() error) {
	t.Helper()
	w.arm(1, false)
	finished := make(chan error, 1)
	go func() { finished <- do() }()
	select {
	case <-w.reached:
	case err := <-finished:
		t.Fatalf("it has finished without a change: %v", err)
	}
	return func() error {
		close(w.thaw)
		select {
		case err := <-finished:
			return err
		case <-time.After(20 * time.Second):
			return errors.New("it hangs")
		}
	}
}

// TestSharedMeanwhile shares a topic while another replica adds what the share depends on: the members
// of its group, or the link of its grantee. When both have returned, the cluster has all the ACLs.
func TestSharedMeanwhile(t *testing.T) {
	t.Run("with a group", func(t *testing.T) {
		c := newCluster(t)
		fast := c.openWithGroups()
		mustClaim(t, fast, "one", "two")
		c.groups.set(lab, ben)
		mustShare(t, fast, "one", diaspora.GrantRequest{Group: lab, Read: true})
		c.groups.set(lab, ben, cleo)
		proceed := c.stopped(func(ctx context.Context, s *Service) error {
			return s.updateMembers(ctx, groupGrantee+lab, s.groupMembers)
		})
		asked := 0
		fast.cfg.Groups = func(ctx context.Context, group string) ([]string, error) {
			if asked++; asked == 2 { // the topic is shared, and its members are not known yet
				testkit.Must(t, proceed())
			}
			return c.groups.list(ctx, group)
		}
		mustShare(t, fast, "two", diaspora.GrantRequest{Group: lab, Read: true})
		c.check()
		if lines := strings.Join(c.acls(kafka.TopicResource("two")), "\n"); !strings.Contains(lines, cleo) {
			t.Errorf("the ACLs are %s, want those of the new member", lines)
		}
	})
	t.Run("with a linked identity", func(t *testing.T) {
		c := newCluster(t)
		fast := c.open()
		mustClaim(t, fast, "t1", "t2")
		testkit.Must(t, shareWithIdentity(t.Context(), c, fast, "t1"))
		proceed := c.stopped(func(ctx context.Context, s *Service) error { return s.Linked(ctx, linkedFor("t1", true)) })
		mustShare(t, fast, "t2", diaspora.GrantRequest{Subject: numbered('e', "t1"), Read: true})
		testkit.Must(t, proceed())
		c.check()
	})
}

// TestLastShareEnds ends the last share with a group while another replica updates its members, and
// perhaps shares the topic with the group again, which has other members then.
func TestLastShareEnds(t *testing.T) {
	for _, again := range []bool{false, true} {
		c := newCluster(t)
		fast := c.openWithGroups()
		mustClaim(t, fast, "weather")
		c.groups.set(lab, ben)
		mustShare(t, fast, "weather", diaspora.GrantRequest{Group: lab, Read: true})
		c.groups.set(lab, ben, cleo)
		proceed := c.stopped(func(ctx context.Context, s *Service) error {
			return s.updateMembers(ctx, groupGrantee+lab, s.groupMembers)
		})
		c.groups.set(lab) // nobody is in it any more
		testkit.Must(t, fast.Unshare(t.Context(), ada, "weather", groupGrantee+lab))
		if again {
			mustShare(t, fast, "weather", diaspora.GrantRequest{Group: lab, Read: true})
		}
		testkit.Must(t, proceed())
		testkit.Must(t, fast.ledger.sync(t.Context()))
		fast.ledger.read(func(st *state) {
			if len(st.members) > 0 || len(st.memberOf) > 0 {
				t.Errorf("shared again %v: the members are %v", again, st.members)
			}
		})
		c.check()
	}
}

// TestTransferMeanwhile hands a topic over while a manager shares it, with the new owner among others.
func TestTransferMeanwhile(t *testing.T) {
	for _, with := range []string{numbered('e', "t1"), cleo} {
		c := newCluster(t)
		fast := c.open()
		mustClaim(t, fast, "weather")
		mustShare(t, fast, "weather", diaspora.GrantRequest{Subject: ben, Manage: true})
		testkit.Must(t, fast.Offer(t.Context(), ada, "weather", cleo))
		proceed := c.stopped(func(ctx context.Context, s *Service) error {
			_, err := s.Share(ctx, ben, "weather", diaspora.GrantRequest{Subject: with, Read: true})
			return err
		})
		_, err := fast.Accept(t.Context(), cleo, "weather")
		testkit.Must(t, err)
		switch err := proceed(); {
		case with == cleo && !errors.Is(err, diaspora.ErrConflict):
			t.Errorf("a share with the new owner = %v, want ErrConflict", err)
		case with != cleo && err != nil:
			t.Errorf("a share with somebody else = %v", err)
		}
		c.may(cleo, "weather", true, true)
		c.may(ada, "weather", false, false)
		c.check()
	}
}

// TestManagerNoMore takes the right to manage away while the manager shares the topic.
func TestManagerNoMore(t *testing.T) {
	c := newCluster(t)
	fast := c.open()
	mustClaim(t, fast, "weather")
	mustShare(t, fast, "weather", diaspora.GrantRequest{Subject: ben, Manage: true})
	proceed := c.stopped(func(ctx context.Context, s *Service) error {
		_, err := s.Share(ctx, ben, "weather", diaspora.GrantRequest{Subject: ben, Read: true, Write: true})
		return err
	})
	testkit.Must(t, fast.Unshare(t.Context(), ada, "weather", ben))
	if err := proceed(); !errors.Is(err, diaspora.ErrPermission) {
		t.Errorf("a share by somebody who may not manage the topic any more = %v, want ErrPermission", err)
	}
	c.may(ben, "weather", false, false)
	c.check()
}

// TestRetiredToStrangers checks that nobody but the owner learns about a topic that is released.
func TestRetiredToStrangers(t *testing.T) {
	c := newCluster(t)
	s := c.open()
	mustClaim(t, s, "weather")
	mustShare(t, s, "weather", diaspora.GrantRequest{Subject: ben, Read: true})
	testkit.Must(t, retire(t.Context(), c, s, "weather"))
	for _, subject := range []string{ben, cleo} {
		_, again := s.Retire(t.Context(), subject, "weather")
		_, restore := s.Restore(t.Context(), subject, "weather")
		_, show := s.Topic(t.Context(), subject, "weather")
		_, grants := s.Grants(t.Context(), subject, "weather")
		for what, err := range map[string]error{
			"Retire": again, "Restore": restore, "Topic": show, "Grants": grants, "Offer": s.Offer(t.Context(), subject, "weather", cleo),
		} {
			if !errors.Is(err, diaspora.ErrPermission) {
				t.Errorf("%s of another's released topic = %v, want ErrPermission", what, err)
			}
		}
	}
	testkit.Must(t, retire(t.Context(), c, s, "weather")) // once more is no error
	if grants, err := s.Grants(t.Context(), ada, "weather"); err != nil || len(grants) != 1 || grants[0].Subject != ben {
		t.Errorf("the owner sees the grants %+v, %v, want that of ben, who has it again after a restore", grants, err)
	}
}

// TestAnswerLost checks that the cluster soon agrees with a record that took effect although its writer
// gave up.
func TestAnswerLost(t *testing.T) {
	t.Parallel()
	for name, do := range map[string]func(context.Context, *Service) error{
		"share": func(ctx context.Context, s *Service) error {
			_, err := s.Share(ctx, ada, "weather", diaspora.GrantRequest{Subject: cleo, Read: true})
			return err
		},
		"unshare": func(ctx context.Context, s *Service) error { return s.Unshare(ctx, ada, "weather", ben) },
		"release": func(ctx context.Context, s *Service) error { return s.Release(ctx, ada, "weather") },
		"revoke": func(ctx context.Context, s *Service) error {
			keys, err := s.Keys(ctx, ada)
			return errors.Join(err, s.RevokeKey(ctx, ada, keys[0].ID))
		},
		"members": func(ctx context.Context, s *Service) error {
			return s.updateMembers(ctx, groupGrantee+lab, s.groupMembers)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			w := new(wire)
			s := c.openWithGroups(withWire(w))
			mustClaim(t, s, "weather")
			mustShare(t, s, "weather", diaspora.GrantRequest{Subject: ben, Read: true})
			c.groups.set(lab, ben)
			mustShare(t, s, "weather", diaspora.GrantRequest{Group: lab, Write: true})
			mustIssue(t, s, ada, diaspora.AccessKeyRequest{Name: "k", Read: true})
			c.groups.set(lab, cleo)
			records := s.Stats().Records
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			proceed := stopBefore(t, w, func() error {
				err := do(ctx, s)
				<-w.thaw // its record may still be written
				return err
			})
			cancel()
			if err := proceed(); !errors.Is(err, context.Canceled) {
				t.Errorf("the caller who gave up got %v, want context.Canceled", err)
			}
			testkit.Eventually(t, "the record", func() bool { return s.Stats().Records > records })
			slowly := time.NewTicker(200 * time.Millisecond) // each look opens connections
			defer slowly.Stop()
			testkit.Eventually(t, "agreement of the cluster with the ledger", func() bool {
				<-slowly.C
				return len(c.differences()) == 0
			})
		})
	}
}

// TestLargeChangesAreCut shares a topic with a large group. The controller of a Kafka cluster refuses
// requests that change more than 10,000 ACLs, and each broker lacks the same ones.
func TestLargeChangesAreCut(t *testing.T) {
	const members, most = 5000, 2500
	c := newCluster(t, numBrokers(3))
	var largest, total int
	count := func(n int) { largest, total = max(largest, n), total+n }
	c.fake.ControlKey(int16(kmsg.CreateACLs), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.fake.KeepControl()
		count(len(req.(*kmsg.CreateACLsRequest).Creations))
		return nil, nil, false
	})
	c.fake.ControlKey(int16(kmsg.DeleteACLs), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.fake.KeepControl()
		count(len(req.(*kmsg.DeleteACLsRequest).Filters))
		return nil, nil, false
	})
	s := c.openWithGroups()
	mustClaim(t, s, "weather")
	c.groups.set(lab, people(members)...)
	began := time.Now()
	mustShare(t, s, "weather", diaspora.GrantRequest{Group: lab, Read: true, Write: true})
	t.Logf("shared with a group of %d members in %v", members, time.Since(began))
	if got := len(c.acls(kafka.TopicResource("weather"))); got != 2*members+len(topicOperations) {
		t.Errorf("the topic has %d ACLs", got)
	}
	began = time.Now()
	testkit.Must(t, s.Unshare(t.Context(), ada, "weather", groupGrantee+lab))
	t.Logf("unshared in %v", time.Since(began))
	if largest > most || total > 5*members {
		t.Errorf("the largest request was for %d ACLs, and all of them for %d; want at most %d and %d", largest, total, most, 5*members)
	}
	if got := c.acls(kafka.TopicResource("weather")); len(got) != len(topicOperations) || slices.ContainsFunc(got, func(line string) bool { return !strings.Contains(line, ada) }) {
		t.Errorf("the topic has %d ACLs, want those of its owner", len(got))
	}
}
