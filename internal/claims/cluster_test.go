package claims

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/plain"

	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// Subjects that can sign in at the test cluster. Their passwords are their names.
const (
	ada  = "a0000000-0000-4000-8000-000000000001"
	ben  = "b0000000-0000-4000-8000-000000000002"
	cleo = "c0000000-0000-4000-8000-000000000003"
)

// testCluster is a Kafka cluster with logins and ACLs.
type testCluster struct {
	t      testing.TB
	fake   *kfake.Cluster
	groups globusGroups
}

func numBrokers(n int) kfake.Opt { return kfake.NumBrokers(n) }

func newCluster(t testing.TB, opts ...kfake.Opt) *testCluster {
	t.Helper()
	c := &testCluster{t: t}
	c.start(opts...)
	return c
}

func (c *testCluster) start(opts ...kfake.Opt) {
	c.t.Helper()
	opts = append([]kfake.Opt{
		kfake.NumBrokers(1),
		kfake.EnableSASL(),
		kfake.EnableACLs(),
		kfake.Superuser("PLAIN", "admin", "admin"),
	}, opts...)
	for _, subject := range []string{ada, ben, cleo, gatewayUser} {
		opts = append(opts, kfake.User("PLAIN", subject, subject))
	}
	fake, err := kfake.NewCluster(opts...)
	testkit.Must(c.t, err)
	c.t.Cleanup(fake.Close)
	c.fake = fake
}

// restart starts a closed cluster again, from its directory and on the same port.
func (c *testCluster) restart(dir string, port int) {
	c.t.Helper()
	c.start(kfake.DataDir(dir), kfake.Ports(port))
}

// as returns the options of a client that is signed in as subject.
func (c *testCluster) as(subject string) []kgo.Opt {
	return []kgo.Opt{
		kgo.SeedBrokers(c.fake.ListenAddrs()...),
		kgo.SASL(plain.Auth{User: subject, Pass: subject}.AsMechanism()),
		kgo.Dialer((&net.Dialer{Timeout: 5 * time.Second}).DialContext),
		kgo.MetadataMinAge(10 * time.Millisecond),
	}
}

func (c *testCluster) client(subject string, opts ...kgo.Opt) *kgo.Client {
	c.t.Helper()
	client, err := kgo.NewClient(append(c.as(subject), opts...)...)
	testkit.Must(c.t, err)
	c.t.Cleanup(client.Close)
	return client
}

func (c *testCluster) admin() *kafka.Admin { return kafka.NewAdmin(c.client("admin")) }

// config is the configuration of a Service that reconciles only when told to.
func (c *testCluster) config() Config {
	return Config{Admin: c.as("admin"), ReconcileInterval: 1000 * time.Hour}
}

func (c *testCluster) open(edit ...func(*Config)) *Service {
	c.t.Helper()
	cfg := c.config()
	for _, e := range edit {
		e(&cfg)
	}
	s, err := Open(c.t.Context(), cfg)
	testkit.Must(c.t, err)
	c.t.Cleanup(func() { s.Close() })
	return s
}

// acls returns the ACLs on a literal resource, in one line each and sorted.
func (c *testCluster) acls(resource kafka.Resource) []string {
	c.t.Helper()
	acls, err := c.admin().ResourceACLs(c.t.Context(), resource)
	testkit.Must(c.t, err)
	return aclLines(acls)
}

func aclLines(acls []kafka.ACL) []string {
	lines := []string{}
	for _, acl := range acls {
		lines = append(lines, fmt.Sprintf("%s %s %s %s %s %s", acl.Type, acl.Name, acl.Principal, acl.Host, acl.Permission, acl.Operation))
	}
	slices.Sort(lines)
	return lines
}

// setACLs changes ACLs behind the service's back.
func (c *testCluster) setACLs(resource kafka.Resource, acls ...kafka.ACL) {
	c.t.Helper()
	if _, err := c.admin().SetACLs(c.t.Context(), resource, acls, func(kafka.ACL) bool { return true }); err != nil {
		c.t.Fatal(err)
	}
}

// createTopic creates a topic behind the service's back.
func (c *testCluster) createTopic(name string) {
	c.t.Helper()
	created, _, err := c.admin().CreateTopic(c.t.Context(), kafka.TopicSpec{Name: name, Partitions: 1, Retention: -1})
	if err != nil || !created {
		c.t.Fatal(created, err)
	}
}

// leaderless makes the brokers answer the requests from a first to a last number as they do while a
// leader is being replaced: alternately without partitions and with a partition that has no leader.
// It returns how many requests there were.
func (c *testCluster) leaderless(name string, first, last int) (asked func() int) {
	var n atomic.Int64
	info := c.fake.TopicInfo(name)
	c.fake.ControlKey(int16(kmsg.Metadata), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		c.fake.KeepControl()
		req := kreq.(*kmsg.MetadataRequest)
		if len(req.Topics) != 1 || req.Topics[0].Topic == nil || *req.Topics[0].Topic != name {
			return nil, nil, false
		}
		now := int(n.Add(1))
		if now < first || now > last {
			return nil, nil, false
		}
		resp := req.ResponseKind().(*kmsg.MetadataResponse)
		for node, addr := range c.fake.ListenAddrs() {
			host, port, _ := net.SplitHostPort(addr)
			broker := kmsg.NewMetadataResponseBroker()
			broker.NodeID, broker.Host = int32(node), host
			fmt.Sscan(port, &broker.Port)
			resp.Brokers = append(resp.Brokers, broker)
		}
		topic, partition := kmsg.NewMetadataResponseTopic(), kmsg.NewMetadataResponseTopicPartition()
		topic.Topic, topic.TopicID = &name, info.TopicID
		if now%2 == 0 {
			topic.ErrorCode = kerr.LeaderNotAvailable.Code
		} else {
			partition.ErrorCode, partition.Leader, partition.Replicas = kerr.LeaderNotAvailable.Code, -1, []int32{0}
			topic.Partitions = append(topic.Partitions, partition)
		}
		resp.Topics = append(resp.Topics, topic)
		return resp, nil, true
	})
	return func() int { return int(n.Load()) }
}

func (c *testCluster) hasTopic(name string) bool {
	c.t.Helper()
	_, ok, err := c.admin().Topic(c.t.Context(), name)
	testkit.Must(c.t, err)
	return ok
}

// produce writes an event as subject.
func (c *testCluster) produce(subject, topic, value string) error {
	ctx := testkit.Within(c.t)
	return c.client(subject).ProduceSync(ctx, &kgo.Record{Topic: topic, Value: []byte(value)}).FirstErr()
}

// consume reads the first event as subject.
func (c *testCluster) consume(subject, topic string, opts ...kgo.Opt) (string, error) {
	ctx := testkit.Within(c.t)
	client := c.client(subject, append(opts, kgo.ConsumeTopics(topic))...)
	for {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return "", err
		}
		for _, r := range fetches.Records() {
			return string(r.Value), nil
		}
	}
}

// append writes a raw record into the ledger.
func (c *testCluster) append(value string) {
	c.t.Helper()
	client := c.client("admin")
	testkit.Must(c.t, client.ProduceSync(c.t.Context(), &kgo.Record{Topic: LedgerTopic, Value: []byte(value)}).FirstErr())
}

// check fails the test unless the cluster has the topics and ACLs that the ledger requires.
func (c *testCluster) check() {
	c.t.Helper()
	for _, difference := range c.differences() {
		c.t.Error(difference)
	}
}

// differences reads the whole ledger again, and returns where the cluster's topics and ACLs differ
// from what the ledger requires.
func (c *testCluster) differences() (found []string) {
	c.t.Helper()
	want := newState()
	for place, value := range c.ledger() {
		if r, err := decode(value); err == nil {
			want.apply(int64(place), r)
		}
	}
	topics, err := c.admin().Topics(c.t.Context())
	testkit.Must(c.t, err)
	var wantTopics, haveTopics []string
	var wantACLs []kafka.ACL
	for name, t := range want.topics {
		switch t.phase {
		case retired:
			wantTopics = append(wantTopics, name)
		case claimed:
			wantTopics = append(wantTopics, name)
			wantACLs = append(wantACLs, want.topicACLs(name, t)...)
		case releasing:
			found = append(found, fmt.Sprintf("%q is still being released", name))
		}
	}
	for name := range topics {
		if !strings.HasPrefix(name, "_") {
			haveTopics = append(haveTopics, name)
		}
	}
	for name, t := range want.topics {
		if _, exists := topics[name]; exists && t.phase == claimed && t.changed {
			found = append(found, c.otherSettings(name, t)...)
		}
	}
	slices.Sort(wantTopics)
	slices.Sort(haveTopics)
	if !slices.Equal(haveTopics, wantTopics) {
		found = append(found, fmt.Sprintf("the cluster has topics %q, and by the ledger it should have %q", haveTopics, wantTopics))
	}
	haveACLs, err := c.admin().ACLs(c.t.Context(), kmsg.ACLResourceTypeTopic)
	testkit.Must(c.t, err)
	if have, want := aclLines(haveACLs), aclLines(wantACLs); !slices.Equal(have, want) {
		found = append(found, fmt.Sprintf("the cluster has ACLs\n%s\nand by the ledger it should have\n%s", strings.Join(have, "\n"), strings.Join(want, "\n")))
	}
	return found
}

// otherSettings returns which settings of a topic differ from those that were set.
func (c *testCluster) otherSettings(name string, t topic) (found []string) {
	c.t.Helper()
	configs, err := c.admin().TopicConfigs(c.t.Context(), name)
	testkit.Must(c.t, err)
	info, _, err := c.admin().Topic(c.t.Context(), name)
	testkit.Must(c.t, err)
	if info.Partitions != t.partitions {
		found = append(found, fmt.Sprintf("%q has %d partitions, and by the ledger it should have %d", name, info.Partitions, t.partitions))
	}
	if retention := fmt.Sprint(t.retentionMS); configs["retention.ms"] != retention {
		found = append(found, fmt.Sprintf("%q has retention.ms %s, and by the ledger it should have %s", name, configs["retention.ms"], retention))
	}
	return found
}

// ledger returns the ledger's records.
func (c *testCluster) ledger() [][]byte {
	c.t.Helper()
	end, err := c.admin().EndOffset(c.t.Context(), LedgerTopic, 0)
	testkit.Must(c.t, err)
	client := c.client("admin", kgo.ConsumeTopics(LedgerTopic))
	var values [][]byte
	for int64(len(values)) < end {
		fetches := client.PollFetches(c.t.Context())
		testkit.Must(c.t, fetches.Err())
		for _, r := range fetches.Records() {
			values = append(values, r.Value)
		}
	}
	return values
}
