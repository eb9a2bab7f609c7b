package claims

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/kafka"
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

// manyShares writes to the ledger that topics of Ada's, which the ledger has already, are each shared
// with ten others, Ben among them, and the first one also with a group.
func manyShares(t testing.TB, c *testCluster, s *Service, topics int, members []string) {
	t.Helper()
	client := c.client("admin")
	var records []*kgo.Record
	add := func(op, by string, edit func(*record)) (id string) {
		r := newRecord(op, by)
		edit(&r)
		value, err := encode(r)
		testkit.Must(t, err)
		records = append(records, &kgo.Record{Topic: LedgerTopic, Key: []byte(r.key()), Value: value})
		return r.ID
	}
	share := func(name, with string) string {
		claim := s.ledger.topic(name).claimOffset
		return add(opShare, ada, func(r *record) { r.Topic, r.Claim, r.Grantee, r.Read, r.Limit = name, &claim, with, true, 1000 })
	}
	others := people(10 * topics)
	for i := range topics {
		name := fmt.Sprintf("run_%05d", i)
		share(name, ben)
		for _, other := range others[9*i : 9*i+9] {
			share(name, other)
		}
	}
	after := share("run_00000", groupGrantee+lab)
	for joined := range slices.Chunk(members, maxMembersAtOnce) {
		after = add(opMembers, serviceSubject, func(r *record) { r.Grantee, r.Joined, r.After = groupGrantee+lab, joined, after })
	}
	testkit.Must(t, client.ProduceSync(t.Context(), records...).FirstErr())
	testkit.Must(t, s.ledger.sync(t.Context()))
}

// TestManyShares checks what takes longer the more is shared: the list of topics, the comparison with
// the cluster, and the checkpoint. The bounds are generous, because the machine may be busy.
func TestManyShares(t *testing.T) {
	const topics, members = 1000, 5000
	c := newCluster(t)
	s := c.open()
	manyTopics(t, c, s, topics)
	group := append(people(members-1), ben)
	manyShares(t, c, s, topics, group)
	took := func(what string, bound time.Duration, do func()) {
		t.Helper()
		began := time.Now()
		do()
		took := time.Since(began)
		t.Logf("%s: %v", what, took)
		if took > bound {
			t.Errorf("%s took %v, want at most %v", what, took, bound)
		}
	}
	took("the list of what is shared with one of them", time.Second, func() {
		if list, err := s.Topics(t.Context(), ben); err != nil || len(list.Shared) != topics {
			t.Errorf("%d topics are shared with ben, %v, want %d", len(list.Shared), err, topics)
		}
	})
	took("the grants of the topic that is shared with the group", time.Second, func() {
		if grants, err := s.Grants(t.Context(), ada, "run_00000"); err != nil || len(grants) != 11 {
			t.Errorf("the topic has %d grants, %v", len(grants), err)
		}
	})
	acls, infos := make(map[string][]kafka.ACL), make(map[string]kafka.TopicInfo)
	s.ledger.read(func(st *state) {
		for name, topic := range st.topics {
			acls[name], infos[name] = st.topicACLs(name, topic), kafka.TopicInfo{Partitions: 1, Led: true}
		}
	})
	if got := len(acls["run_00000"]); got != len(topicOperations)+members { // the nine others are members too
		t.Errorf("the topic that is shared with the group has %d ACLs", got)
	}
	took("the comparison with the cluster", 2*time.Second, func() {
		if names := s.topicsToReconcile(infos, acls, nil); len(names) > 0 {
			t.Errorf("%d topics differ", len(names))
		}
	})
	files := someCheckpoints(t, disk.Memory())
	var want *state
	s.ledger.read(func(st *state) { want = st.clone() })
	took("the checkpoint", 10*time.Second, func() {
		testkit.Must(t, files.write(checkpoint{state: want, topic: aLedger, next: 1}))
		if got, err := files.read(aLedger); err != nil || !reflect.DeepEqual(got.state.clone(), want) {
			t.Errorf("the checkpoint is read as another state, %v", err)
		}
	})
}

// TestReconcileManyShares applies shares to a cluster that has none of them. SHARED_TOPICS is the number
// of topics.
func TestReconcileManyShares(t *testing.T) {
	topics := testkit.Scaled(t, "SHARED_TOPICS", 50)
	c := newCluster(t)
	s := c.open()
	manyTopics(t, c, s, topics)
	manyShares(t, c, s, topics, people(5*topics))
	for _, what := range []string{"the first time", "once more"} {
		began := time.Now()
		testkit.Must(t, s.Reconcile(t.Context()))
		t.Logf("%d topics, %d grants, reconciled %s in %v", topics, 10*topics+1, what, time.Since(began))
	}
	c.check()
}

// BenchmarkShare shares and unshares a topic by turns, with the cluster in this process. floor-ms are the
// two requests that a share cannot do without: a record for the ledger, and one for the ACL.
func BenchmarkShare(b *testing.B) {
	c := newCluster(b, numBrokers(3))
	s := c.open()
	for _, name := range []string{"weather", "floor"} {
		if _, err := s.Claim(b.Context(), ada, diaspora.ClaimRequest{Name: name}); err != nil {
			b.Fatal(err)
		}
	}
	client, admin := c.client("admin", kgo.ProducerLinger(0)), c.admin()
	other := kafka.Allow(kafka.TopicResource("floor"), principal(cleo), kmsg.ACLOperationRead)
	var took, floor []time.Duration
	for b.Loop() {
		began := time.Now()
		_, err := s.Share(b.Context(), ada, "weather", diaspora.GrantRequest{Subject: ben, Read: true})
		took = append(took, time.Since(began))
		testkit.Must(b, err)
		began = time.Now()
		testkit.Must(b, client.ProduceSync(b.Context(), &kgo.Record{Topic: "floor", Value: []byte("x")}).FirstErr())
		testkit.Must(b, admin.DeleteACLs(b.Context(), other)) // as large a request as one that creates it
		floor = append(floor, time.Since(began))
		b.StopTimer()
		testkit.Must(b, s.Unshare(b.Context(), ada, "weather", ben))
		b.StartTimer()
	}
	for what, d := range map[string][]time.Duration{"": took, "floor-": floor} {
		slices.Sort(d)
		b.ReportMetric(float64(d[len(d)/2].Microseconds())/1000, what+"p50-ms")
		b.ReportMetric(float64(d[len(d)*99/100].Microseconds())/1000, what+"p99-ms")
	}
}
