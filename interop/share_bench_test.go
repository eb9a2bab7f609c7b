//go:build kafka

package interop

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
	"github.com/diaspora-streams/diaspora/internal/inside"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// BenchmarkShare shares a topic with another person and unshares it, by turns:
//
//   - p50-ms, p99-ms: a share, from the request to the answer, which waits until the ACL holds on
//     every node
//   - p50-ratio, p99-ratio: the same as a ratio to the two requests that a share needs at least, made
//     by a super user in turn with the shares: a record for the ledger, and then the ACL
//
// It does so beside 10,000 other shares on 1,000 topics, and one with a Globus group of 5,000 members, which
// takes it a few minutes to make. Run it on a cluster of its own: -bench Share -benchtime 200x.
func BenchmarkShare(b *testing.B) {
	f, err := fabric.Start(b.Context(), fabric.Config{KafkaFile: clusterFile(b)})
	testkit.Must(b, err)
	defer f.Close()
	cfg, err := f.As(b.Context(), ada)
	testkit.Must(b, err)
	owner := fabrictest.Client(b, cfg)
	const shared, other = "bench_shared", "bench_share_floor"
	for _, name := range []string{shared, other} {
		_, err := owner.Claim(b.Context(), diaspora.ClaimRequest{Name: name})
		testkit.Must(b, err)
	}
	shareWithMany(b, f, owner, other)
	colleague, err := f.As(b.Context(), grace)
	testkit.Must(b, err)
	reader := colleague.Identity.Subject // not by username, since look-ups are limited
	super := superUser(b, kgo.ProducerLinger(0))
	admin := kadm.NewClient(super)
	acl := kadm.NewACLs().Topics(other).Allow("User:bench").AllowHosts("*").Operations(kadm.OpRead).ResourcePatternType(kadm.ACLPatternLiteral)
	atLeast := func() (took time.Duration) {
		began := time.Now()
		testkit.Must(b, super.ProduceSync(b.Context(), &kgo.Record{Topic: other, Value: []byte("x")}).FirstErr())
		created, err := admin.CreateACLs(b.Context(), acl)
		took = time.Since(began)
		for _, result := range created {
			err = errors.Join(err, result.Err)
		}
		testkit.Must(b, err)
		_, err = admin.DeleteACLs(b.Context(), acl)
		testkit.Must(b, err)
		return took
	}
	var took, floor []time.Duration
	for b.Loop() {
		b.StopTimer()
		floor = append(floor, atLeast())
		b.StartTimer()
		began := time.Now()
		g, err := owner.Share(b.Context(), shared, diaspora.GrantRequest{Subject: reader, Read: true})
		took = append(took, time.Since(began))
		testkit.Must(b, err)
		b.StopTimer()
		testkit.Must(b, owner.Unshare(b.Context(), shared, g.Subject))
		b.StartTimer()
	}
	b.ReportMetric(milliseconds(quantile(took, 50)), "p50-ms")
	b.ReportMetric(milliseconds(quantile(took, 99)), "p99-ms")
	b.ReportMetric(milliseconds(quantile(took, 50))/milliseconds(quantile(floor, 50)), "p50-ratio")
	b.ReportMetric(milliseconds(quantile(took, 99))/milliseconds(quantile(floor, 99)), "p99-ratio")
	for _, name := range []string{shared, other} {
		testkit.Must(b, owner.Release(b.Context(), name))
	}
}

// shareWithMany claims 1,000 topics and shares each with ten people. It shares the named topic with a
// Globus group of 5,000 members. There are several owners, because the changes of one person within an
// hour are limited.
func shareWithMany(b *testing.B, f *fabric.Fabric, owner *diaspora.Client, topic string) {
	const owners, topics, readers, members = 8, 125, 10, 5000
	auth := inside.Of(f).Globus
	user := func(kind string, i int) (username, subject string) {
		username = fmt.Sprintf("%s-%d@example.org", kind, i)
		subject, err := auth.AddUser(globusdev.User{Identity: globusdev.Identity{Username: username}})
		testkit.Must(b, err)
		return username, subject
	}
	var with []string
	for i := range readers {
		_, subject := user("reader", i)
		with = append(with, subject)
	}
	var work errgroup.Group
	for i := range owners {
		username, _ := user("owner", i)
		cfg, err := f.As(b.Context(), username)
		testkit.Must(b, err)
		client := fabrictest.Client(b, cfg)
		work.Go(func() error {
			for n := range topics {
				name := fmt.Sprintf("bench_share_%d_%d", i, n)
				if _, err := client.Claim(b.Context(), diaspora.ClaimRequest{Name: name}); err != nil {
					return err
				}
				for _, subject := range with {
					if _, err := client.Share(b.Context(), name, diaspora.GrantRequest{Subject: subject, Read: true}); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	testkit.Must(b, work.Wait())
	lab, err := auth.AddGroup(globusdev.Group{Name: "The laboratory"})
	testkit.Must(b, err)
	testkit.Must(b, auth.SetMember(globusdev.GroupMember{Group: lab, Identity: globusdev.ResourceServerID + "@clients.auth.globus.org", Role: "manager"}))
	for i := range members {
		username, _ := user("member", i)
		testkit.Must(b, auth.SetMember(globusdev.GroupMember{Group: lab, Identity: username}))
	}
	began := time.Now()
	_, err = owner.Share(b.Context(), topic, diaspora.GrantRequest{Group: lab, Read: true})
	testkit.Must(b, err)
	b.Logf("a share with a group of %d: %v", members, time.Since(began).Round(time.Millisecond))
}
