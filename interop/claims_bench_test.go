//go:build kafka

package interop

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// BenchmarkClaim measures a cluster that has a thousand claimed topics, on each of
// which five access keys have rights of their own besides the owner:
//
//   - p50-ms, p99-ms: a claim, from the request to the answer, which waits until the
//     topic and its nine ACLs hold on every node
//   - p50-ratio, p99-ratio: the same as a ratio to the two requests that a claim needs at least, made by
//     a super user in turn with the claims: a record for the ledger, and then the topic
//   - list-ms: the list of one owner's 500 topics, the slowest of twenty
//   - auth-10, auth-1000: how long an event takes that is produced by an owner, whom
//     the brokers look up, as a ratio to one of a super user, whom they do not, with
//     ten claimed topics and with all
//
// Run it on a cluster of its own: -bench Claim -benchtime 200x.
func BenchmarkClaim(b *testing.B) {
	f, err := fabric.Start(b.Context(), fabric.Config{KafkaFile: clusterFile(b)})
	testkit.Must(b, err)
	defer f.Close()
	var owners []*diaspora.Client
	for _, username := range []string{ada, grace} {
		owners = append(owners, ownerWithKeys(b, f, username))
	}
	claim := func(c *diaspora.Client, name string) error {
		_, err := c.Claim(b.Context(), diaspora.ClaimRequest{Name: name})
		return err
	}
	fill := func(from, to int) {
		var group errgroup.Group
		group.SetLimit(4)
		for i := from; i < to; i++ {
			group.Go(func() error { return claim(owners[i%2], fmt.Sprintf("bench_%03d", i)) })
		}
		testkit.Must(b, group.Wait())
	}
	fill(0, 10)
	few := authorisation(b, f, "bench_000")
	fill(10, 1000)
	many := authorisation(b, f, "bench_000")

	var listing time.Duration
	for range 20 {
		began := time.Now()
		if topics, err := owners[0].Topics(b.Context()); err != nil || len(topics.Topics) != 500 {
			b.Fatalf("%d topics, %v; is the cluster fresh?", len(topics.Topics), err)
		}
		listing = max(listing, time.Since(began))
	}

	super := superUser(b, kgo.ProducerLinger(0))
	admin := kadm.NewClient(super)
	atLeast := func(name string) (took time.Duration) {
		began := time.Now()
		testkit.Must(b, super.ProduceSync(b.Context(), &kgo.Record{Topic: "bench_000", Value: []byte("x")}).FirstErr())
		created, err := admin.CreateTopic(b.Context(), 1, 3, nil, name)
		testkit.Must(b, errors.Join(err, created.Err))
		took = time.Since(began)
		deleted, err := admin.DeleteTopic(b.Context(), name)
		testkit.Must(b, errors.Join(err, deleted.Err))
		return took
	}
	var took, floor []time.Duration
	for b.Loop() {
		name := "bench_one_more"
		b.StopTimer()
		floor = append(floor, atLeast("bench_at_least"))
		b.StartTimer()
		began := time.Now()
		testkit.Must(b, claim(owners[0], name))
		took = append(took, time.Since(began))
		b.StopTimer()
		testkit.Must(b, owners[0].Release(b.Context(), name))
		b.StartTimer()
	}
	b.ReportMetric(milliseconds(quantile(took, 50)), "p50-ms")
	b.ReportMetric(milliseconds(quantile(took, 99)), "p99-ms")
	b.ReportMetric(milliseconds(quantile(took, 50))/milliseconds(quantile(floor, 50)), "p50-ratio")
	b.ReportMetric(milliseconds(quantile(took, 99))/milliseconds(quantile(floor, 99)), "p99-ratio")
	b.ReportMetric(milliseconds(listing), "list-ms")
	b.ReportMetric(few, "auth-10")
	b.ReportMetric(many, "auth-1000")
}

// ownerWithKeys returns a client of somebody who has five keys that may read
// whatever they will claim.
func ownerWithKeys(b *testing.B, f *fabric.Fabric, username string) *diaspora.Client {
	cfg, err := f.As(b.Context(), username)
	testkit.Must(b, err)
	c := fabrictest.Client(b, cfg)
	for i := range 5 {
		if _, err := c.CreateKey(b.Context(), diaspora.AccessKeyRequest{Name: fmt.Sprint("bench-", i), Read: true}); err != nil {
			b.Fatal(err)
		}
	}
	return c
}

// authorisation returns how much longer the events of Ada's take than those of the
// super user, who take turns one by one.
func authorisation(b *testing.B, f *fabric.Fabric, topic string) float64 {
	cfg, err := f.As(b.Context(), ada)
	testkit.Must(b, err)
	owner, err := diaspora.Dial(b.Context(), cfg)
	testkit.Must(b, err)
	defer owner.Close()
	super := superUser(b, kgo.ProducerLinger(0)) // as the other one
	const turns = 1000
	took := map[*kgo.Client][]time.Duration{}
	for i := range 2 * turns {
		for _, c := range []*kgo.Client{owner, super} {
			began := time.Now()
			testkit.Must(b, c.ProduceSync(b.Context(), &kgo.Record{Topic: topic, Value: []byte("x")}).FirstErr())
			if i >= turns { // those before warm up
				took[c] = append(took[c], time.Since(began))
			}
		}
	}
	return milliseconds(quantile(took[owner], 50)) / milliseconds(quantile(took[super], 50))
}

func quantile(took []time.Duration, percent int) time.Duration {
	slices.Sort(took)
	return took[len(took)*percent/100]
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
