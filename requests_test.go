package diaspora

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
)

// tally counts the requests that Kafka clients send, by kind.
type tally struct {
	mu   sync.Mutex // guards the field below
	sent map[kmsg.Key]int
}

// OnBrokerWrite implements [kgo.HookBrokerWrite].
func (n *tally) OnBrokerWrite(_ kgo.BrokerMetadata, key int16, _ int, _, _ time.Duration, _ error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sent[kmsg.Key(key)]++
}

func (n *tally) of(key kmsg.Key) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.sent[key]
}

// counting returns a cluster with three topics that requires a login, and a configuration whose
// clients' requests are counted.
func counting(t *testing.T) (Config, *tally) {
	t.Helper()
	cluster, cfg := newCluster(t, kfake.SeedTopics(2, "beamline", "detector", "weather"), kfake.MaxVersions(kversion.V4_3_0()))
	newDoor(cluster, &cfg)
	n := &tally{sent: map[kmsg.Key]int{}}
	cfg.opts = append(cfg.opts, kgo.WithHooks(n))
	return cfg, n
}

// wantRequests fails if more requests were sent than a change may add without a good reason: over a
// long link, each of them costs a user time. It fails, too, if fewer were sent, so that the numbers
// stay true.
func wantRequests(t *testing.T, what string, n *tally, want map[kmsg.Key]int) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.sent, kmsg.Heartbeat) // on a busy machine, a member may have sent one
	if !maps.Equal(n.sent, want) {
		t.Errorf("%s sent %s\nwant %s", what, inWords(n.sent), inWords(want))
	}
}

func inWords(sent map[kmsg.Key]int) string {
	var words []string
	total := 0
	for _, key := range slices.Sorted(maps.Keys(sent)) {
		words = append(words, fmt.Sprintf("%d %s", sent[key], kmsg.NameForKey(int16(key))))
		total += sent[key]
	}
	return fmt.Sprintf("%d requests: %s", total, strings.Join(words, ", "))
}

// TestRequestsOfAConsumer counts the requests from opening a Consumer until it fetches. The topics
// are empty, so that it fetches once and then waits.
func TestRequestsOfAConsumer(t *testing.T) {
	t.Parallel()
	alone := map[kmsg.Key]int{
		// Three connections: to find the brokers, to look things up, and to fetch.
		kmsg.ApiVersions: 3, kmsg.SASLHandshake: 3, kmsg.SASLAuthenticate: 3,
		kmsg.Metadata:    2, // at the login, and when the Kafka client begins to read
		kmsg.ListOffsets: 2, // the ends and the starts
		kmsg.Fetch:       2, // whether the topics may be read, and the first one for records
	}
	member := maps.Clone(alone)
	for _, key := range []kmsg.Key{kmsg.ApiVersions, kmsg.SASLHandshake, kmsg.SASLAuthenticate} {
		member[key]++ // a connection to join the group
	}
	member[kmsg.FindCoordinator] = 1
	member[kmsg.OffsetFetch] = 2 // whether the group may be used, and where to start
	member[kmsg.JoinGroup] = 2   // the first one only gets a member ID
	member[kmsg.SyncGroup] = 1
	for group, want := range map[string]map[kmsg.Key]int{"": alone, "analysis": member} {
		cfg, n := counting(t)
		openConsumer(t, cfg, ConsumerOptions{Topics: []string{"beamline", "detector", "weather"}, Group: group})
		eventually(t, "a fetch", func() bool { return n.of(kmsg.Fetch) >= want[kmsg.Fetch] })
		wantRequests(t, fmt.Sprintf("a Consumer in group %q", group), n, want)
	}
}

// TestRequestsOfALogger counts the requests to open a Logger and to log an event.
func TestRequestsOfALogger(t *testing.T) {
	t.Parallel()
	cfg, n := counting(t)
	logValues(t, openLogger(t, cfg), "weather", "rain")
	wantRequests(t, "a Logger", n, map[kmsg.Key]int{
		// Three connections: to find the brokers, to look things up, and to produce.
		kmsg.ApiVersions: 3, kmsg.SASLHandshake: 3, kmsg.SASLAuthenticate: 3,
		kmsg.Metadata:       2, // at the login, and for the topic
		kmsg.InitProducerID: 1,
		kmsg.Produce:        1,
	})
}
