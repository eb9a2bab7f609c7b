//go:build kafka

package interop

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/history"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// failoverDuration is how long nodes die and freeze: DIASPORA_FAILOVER, or a
// minute less what it takes to finish.
func failoverDuration(t *testing.T) time.Duration {
	text := os.Getenv("DIASPORA_FAILOVER")
	if text == "" {
		return 30 * time.Second
	}
	d, err := time.ParseDuration(text)
	testkit.Must(t, err)
	return d
}

// TestFailover kills and freezes the nodes in turn, and kills gateways, under eight
// producers and a group of four. No acknowledged event is lost, and none changes its place.
func TestFailover(t *testing.T) {
	const producers, members, partitions = 8, 4, 6
	duration := failoverDuration(t)
	ctx, cancel := context.WithTimeout(t.Context(), duration+4*testkit.Patience)
	defer cancel()
	gates, cfg := serveApart(t)
	topic, group := claim(t, cfg, partitions), unique(t)

	var mu sync.Mutex // guards h
	var h history.History

	consuming, stopConsuming := context.WithCancel(ctx)
	defer stopConsuming()
	progress := make(chan struct{}, 1)
	var consumers sync.WaitGroup
	for member := range members {
		consumer := fabrictest.OpenConsumer(t, cfg, diaspora.ConsumerOptions{
			Topics: []string{topic}, Group: group, CommitEvery: 500 * time.Millisecond, SessionTimeout: 10 * time.Second,
		})
		consumers.Go(func() {
			for r, err := range consumer.Records(consuming) {
				if err != nil {
					if consuming.Err() == nil {
						t.Errorf("member %d: %v", member, err)
					}
					return
				}
				e, err := history.Parse(r.Key, r.Value, r.ID)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				h.Consumed = append(h.Consumed, e)
				mu.Unlock()
				select {
				case progress <- struct{}{}:
				default:
				}
			}
		})
	}

	producing, stopProducing := context.WithCancel(ctx)
	defer stopProducing()
	longest := make([]time.Duration, producers) // that a call of Log has waited
	var logging sync.WaitGroup
	for p := range producers {
		logger := fabrictest.OpenLogger(t, cfg)
		logging.Go(func() {
			key := fmt.Sprint("producer-", p)
			for n := 0; producing.Err() == nil; n++ {
				e := history.Event{Key: key, N: n, ID: fmt.Sprintf("%s-%d", key, n)}
				began := time.Now()
				err := logger.Log(ctx, diaspora.Event{Topic: topic, Key: []byte(key), Value: fmt.Appendf(nil, "%s %d", key, n), ID: e.ID})
				longest[p] = max(longest[p], time.Since(began))
				if err != nil {
					t.Errorf("producer %d: Log of event %d: %v", p, n, err)
					return
				}
				mu.Lock()
				h.Acknowledged = append(h.Acknowledged, e)
				mu.Unlock()
			}
		})
	}

	kills, pauses := disturb(t, gates, duration)
	stopProducing()
	logging.Wait()

	for { // until the group has read everything, or nothing comes any more
		mu.Lock()
		v := history.Check(history.History{Acknowledged: h.Acknowledged, Consumed: h.Consumed})
		mu.Unlock()
		if v.Skipped == 0 {
			break
		}
		select {
		case <-progress:
			continue
		case <-time.After(testkit.Patience):
		case <-ctx.Done():
		}
		break
	}
	stopConsuming()
	consumers.Wait()

	h.Stored = make([][]history.Event, partitions)
	for _, r := range fabrictest.ReadAll(t, cfg, topic) {
		e, err := history.Parse(r.Key, r.Value, r.ID)
		if err != nil {
			t.Error(err)
		}
		h.Stored[r.Partition] = append(h.Stored[r.Partition], e)
	}
	v := history.Check(h)
	t.Logf("%d kills and %d pauses of nodes, and as many kills of gateways, in %v: %d events acknowledged, %d lost, %d out of order, %d stored twice, %d consumed twice; Log waited for up to %v",
		kills, pauses, duration, len(h.Acknowledged), v.Lost, v.Disorder, v.Repeated, v.Again, slowest(longest).Round(time.Millisecond))
	if err := v.Err(); err != nil {
		t.Error(err)
	}
	if len(h.Acknowledged) == 0 {
		t.Error("nothing was acknowledged")
	}

	// The same history with an event taken out must not pass.
	h.Stored[0], h.Stored[1], h.Stored[2] = history.Lose(h.Stored[0]), history.Lose(h.Stored[1]), history.Lose(h.Stored[2])
	if history.Check(h).Lost == 0 {
		t.Error("the checker does not notice a loss")
	}
}

func slowest(all []time.Duration) (d time.Duration) {
	for _, one := range all {
		d = max(d, one)
	}
	return d
}

// gate is the gateway of a node, a process of its own.
type gate struct {
	site     *site
	args     []string
	*process // nil if it could not be started again
}

// restart kills the gateway with SIGKILL and starts it again.
func (g *gate) restart(t *testing.T) {
	t.Helper()
	g.kill(t)
	g.process = nil
	g.process = g.site.launch(t, g.args...)
}

// serveApart runs a gateway for each node, and the ACL endpoint, each as a process of its
// own.
func serveApart(t *testing.T) (gates []*gate, cfg diaspora.Config) {
	t.Helper()
	s := newSite(t)
	url := "http://" + testkit.FreeAddress(t)
	s.settings["public-url"], s.settings["acl-listen"] = url, strings.TrimPrefix(url, "http://")
	s.serve(t, "acl") // makes the ledger that gateways read
	for _, args := range append([][]string{{"gateway"}}, s.others...) {
		g := &gate{site: s, args: args}
		g.process = s.launch(t, args...)
		t.Cleanup(func() {
			if g.process != nil {
				g.stop(t)
			}
		})
		gates = append(gates, g)
	}
	return gates, s.as(t, ada, url)
}

// disturb kills a node with SIGKILL and brings it back, freezes the next one for
// longer than the cluster waits for it, kills the gateway of the one after that,
// and so on for the duration. One node alone has nobody to take over, and is done
// with after the first time.
func disturb(t *testing.T, gates []*gate, duration time.Duration) (kills, pauses int) {
	t.Helper()
	nodes := len(gates)
	const frozen = 12 * time.Second // a broker is given up after 9
	node := 0
	next := func() string {
		node = node%nodes + 1
		return fmt.Sprint(node)
	}
	for began := time.Now(); time.Since(began) < duration; {
		n := next()
		cluster(t, "kill", n)
		cluster(t, "start-node", n)
		kills++
		n = next()
		cluster(t, "pause", n)
		<-time.After(frozen)
		cluster(t, "resume", n)
		pauses++
		gates[node%nodes].restart(t)
		if nodes == 1 {
			break
		}
	}
	return kills, pauses
}
