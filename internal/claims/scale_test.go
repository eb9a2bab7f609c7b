package claims

import (
	"encoding/json"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestClaimWaitsOnce checks that a claim makes its requests at the same time where it can: the one
// for the topic and the one for its ACLs, each of which waits for a majority of the controllers of
// an Apache Kafka; and the ones that ask every broker whether it knows them.
func TestClaimWaitsOnce(t *testing.T) {
	c := newCluster(t, numBrokers(3))
	s := c.open()
	writes := newMeeting(t, "the creation of the topic and that of its ACLs", 2)
	asked := newMeeting(t, "the questions to three brokers", 3)
	attend := func(key kmsg.Key, m *meeting, counts func(kmsg.Request) bool) {
		c.fake.ControlKey(int16(key), func(req kmsg.Request) (kmsg.Response, error, bool) {
			c.fake.KeepControl()
			if counts(req) {
				c.fake.SleepControl(m.attend)
			}
			return nil, nil, false
		})
	}
	attend(kmsg.CreateTopics, writes, func(req kmsg.Request) bool { return !req.(*kmsg.CreateTopicsRequest).ValidateOnly })
	attend(kmsg.CreateACLs, writes, func(kmsg.Request) bool { return true })
	attend(kmsg.DescribeACLs, asked, func(kmsg.Request) bool { return true })
	if _, err := s.Claim(t.Context(), ada, diaspora.ClaimRequest{Name: "weather"}); err != nil {
		t.Fatal(err)
	}
	c.check()
}

// meeting is a point where requests wait for each other, the first time that enough of them arrive.
type meeting struct {
	t     *testing.T
	what  string
	mu    sync.Mutex // guards the field below
	await int
	full  chan struct{}
}

func newMeeting(t *testing.T, what string, n int) *meeting {
	return &meeting{t: t, what: what, await: n, full: make(chan struct{})}
}

func (m *meeting) attend() {
	m.mu.Lock()
	if m.await--; m.await == 0 {
		close(m.full)
	}
	m.mu.Unlock()
	select {
	case <-m.full:
	case <-time.After(5 * time.Second):
		m.t.Errorf("%s do not come together", m.what)
	}
}

// manyTopics writes n claims of Ada's directly to the ledger and waits until s has read them. So s
// knows the topics, but does not create them in the cluster.
func manyTopics(t testing.TB, c *testCluster, s *Service, n int) {
	t.Helper()
	client := c.client("admin")
	var records []*kgo.Record
	for i := range n {
		r := newRecord(opClaim, ada)
		r.Topic, r.Description = fmt.Sprintf("run_%05d", i), "what the detector saw"
		r.Partitions, r.RetentionMS, r.Limit = 1, -1, n
		value, err := encode(r)
		testkit.Must(t, err)
		records = append(records, &kgo.Record{Topic: LedgerTopic, Key: []byte(r.key()), Value: value})
	}
	testkit.Must(t, client.ProduceSync(t.Context(), records...).FirstErr())
	testkit.Must(t, s.ledger.sync(t.Context()))
}

// TestListingAsksOnce: listing topics takes one request to the cluster, however many there are, and
// a small answer.
func TestListingAsksOnce(t *testing.T) {
	const n, room = 10_000, 16 << 20
	c := newCluster(t)
	var asked requests
	s := c.open(func(cfg *Config) { cfg.Admin = append(cfg.Admin, kgo.WithHooks(&asked)) })
	manyTopics(t, c, s, n)
	asked.forget()
	began := time.Now()
	topics, err := s.Topics(t.Context(), ada)
	if err != nil || len(topics.Topics) != n {
		t.Fatalf("Topics() = %d topics, %v, want %d", len(topics.Topics), err, n)
	}
	answer, err := json.Marshal(topics)
	if err != nil || len(answer) > room {
		t.Errorf("the answer has %d bytes, %v, want at most %d", len(answer), err, room)
	}
	t.Logf("%d topics, %d bytes, in %v", n, len(answer), time.Since(began))
	if got := asked.others(); got != 1 {
		t.Errorf("listing took %d requests to the cluster, want 1", got)
	}
}

// requests counts a client's requests.
type requests struct {
	mu   sync.Mutex // guards the field below
	seen map[kmsg.Key]int
}

func (r *requests) OnBrokerE2E(_ kgo.BrokerMetadata, key int16, _ kgo.BrokerE2E) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen == nil {
		r.seen = map[kmsg.Key]int{}
	}
	r.seen[kmsg.Key(key)]++
}

func (r *requests) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.seen)
}

// others counts the requests that do not serve to follow the ledger, which happens all the time.
func (r *requests) others() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, times := range r.seen {
		if key != kmsg.Fetch && key != kmsg.Metadata {
			n += times
		}
	}
	return n
}

// BenchmarkTopics lists 10,000 topics, with the ledger on an embedded broker.
func BenchmarkTopics(b *testing.B) {
	const n = 10_000
	c := newCluster(b)
	s := c.open()
	manyTopics(b, c, s, n)
	for b.Loop() {
		topics, err := s.Topics(b.Context(), ada)
		if err != nil || len(topics.Topics) != n {
			b.Fatal(len(topics.Topics), err)
		}
		if _, err := json.Marshal(topics); err != nil {
			b.Fatal(err)
		}
	}
}

// people returns n subjects.
func people(n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("%08x-0000-4000-8000-000000000000", i)
	}
	return all
}
