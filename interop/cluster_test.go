//go:build kafka

package interop

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/plain"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// superUser signs in to the cluster past the gateway.
func superUser(t testing.TB, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	d := describe(t)
	password := testkit.ReadFile(t, d.Admin.PasswordFile)
	c, err := kgo.NewClient(append(opts, kgo.SeedBrokers(d.Admin.Brokers...),
		kgo.SASL(plain.Auth{User: d.Admin.Username, Pass: string(password)}.AsMechanism()))...)
	testkit.Must(t, err)
	t.Cleanup(c.Close)
	return c
}

// TestClusterKeepsWhatIsAcknowledged looks at the settings that stand between an
// acknowledgement and a loss, for all topics that matter, Kafka's own among them.
func TestClusterKeepsWhatIsAcknowledged(t *testing.T) {
	f := start(t, fabric.Config{})
	cfg := fabrictest.As(t, f, ada)
	topic := claim(t, cfg, 1)
	fabrictest.Log(t, fabrictest.OpenLogger(t, cfg), topic, "x")
	fabrictest.Read(t, fabrictest.OpenConsumer(t, cfg, diaspora.ConsumerOptions{Topics: []string{topic}, Group: unique(t)}), 1)

	replicas, insync := 1, "1"
	if len(describe(t).Nodes) == 3 {
		replicas, insync = 3, "2"
	}
	admin := kadm.NewClient(superUser(t))
	names := []string{topic, "_diaspora_ledger", "__consumer_offsets"}
	topics, err := admin.ListTopics(testkit.Within(t), names...)
	testkit.Must(t, err)
	for _, name := range names {
		if n := topics[name].Partitions.NumReplicas(); n != replicas {
			t.Errorf("%s has %d replicas, want %d", name, n, replicas)
		}
	}
	configs, err := admin.DescribeTopicConfigs(testkit.Within(t), names...)
	testkit.Must(t, err)
	for _, resource := range configs {
		got := map[string]string{}
		for _, config := range resource.Configs {
			got[config.Key] = config.MaybeValue()
		}
		if got["min.insync.replicas"] != insync || got["unclean.leader.election.enable"] != "false" {
			t.Errorf("%s: min.insync.replicas %s, unclean.leader.election.enable %s; want %s, false",
				resource.Name, got["min.insync.replicas"], got["unclean.leader.election.enable"], insync)
		}
	}
}

// TestClaimHoldsOnEveryBroker asks every broker about a topic as soon as its claim is answered. A
// cluster of three brokers has decided on a change before each of them has applied it.
func TestClaimHoldsOnEveryBroker(t *testing.T) {
	f := start(t, fabric.Config{})
	cfg := fabrictest.As(t, f, ada)
	super := superUser(t)
	brokers, err := kadm.NewClient(super).ListBrokers(testkit.Within(t))
	testkit.Must(t, err)
	owner := "User:" + cfg.Identity.Subject
	seenBy := func(id int32, topic string) (partitions, acls int, err error) {
		metadata, describe := kmsg.NewPtrMetadataRequest(), kmsg.NewPtrDescribeACLsRequest()
		metadata.Topics = []kmsg.MetadataRequestTopic{{Topic: &topic}}
		topics, err := metadata.RequestWith(testkit.Within(t), super.Broker(int(id)))
		if err != nil {
			return 0, 0, err
		}
		for _, p := range topics.Topics[0].Partitions {
			if p.Leader >= 0 {
				partitions++
			}
		}
		describe.ResourceType, describe.ResourceName, describe.ResourcePatternType = kmsg.ACLResourceTypeTopic, &topic, kmsg.ACLResourcePatternTypeLiteral
		describe.Principal, describe.Operation, describe.PermissionType = &owner, kmsg.ACLOperationAny, kmsg.ACLPermissionTypeAny
		rights, err := describe.RequestWith(testkit.Within(t), super.Broker(int(id)))
		if err != nil {
			return 0, 0, err
		}
		for _, r := range rights.Resources {
			acls += len(r.ACLs)
		}
		return partitions, acls, nil
	}
	for round := range 30 {
		topic := "no_such_topic" // opens the connections, so that the answers after claims come at once
		if round > 0 {
			topic = claim(t, cfg, 3)
		}
		var asking sync.WaitGroup
		for _, id := range brokers.NodeIDs() {
			asking.Go(func() {
				partitions, acls, err := seenBy(id, topic)
				if err != nil || round > 0 && (partitions != 3 || acls != 5) {
					t.Errorf("claim %d: broker %d has %d partitions with leaders and %d ACLs of its owner, %v; want 3 and 5", round, id, partitions, acls, err)
				}
			})
		}
		asking.Wait()
	}
}

// TestMetadataNamesTheGateways: clients connect where the brokers say.
func TestMetadataNamesTheGateways(t *testing.T) {
	f := start(t, fabric.Config{})
	c, err := diaspora.Dial(testkit.Within(t), fabrictest.As(t, f, ada))
	testkit.Must(t, err)
	defer c.Close()
	brokers, err := kadm.NewClient(c).ListBrokers(testkit.Within(t))
	testkit.Must(t, err)
	at := map[string]bool{}
	for _, b := range brokers {
		at[fmt.Sprintf("%s:%d", b.Host, b.Port)] = true
	}
	for _, node := range describe(t).Nodes {
		if !at[node.Gateway] {
			t.Errorf("the brokers are at %v, and none is at the gateway %s", at, node.Gateway)
		}
	}
}

// TestGatewayKnowsThisKafka: whatever this Apache Kafka offers to clients passes the
// gateway, in the newest version, except what is left out on purpose: see docs/engines.md.
func TestGatewayKnowsThisKafka(t *testing.T) {
	f := start(t, fabric.Config{})
	c, err := diaspora.Dial(testkit.Within(t), fabrictest.As(t, f, ada))
	testkit.Must(t, err)
	defer c.Close()
	through, past := versions(t, c), versions(t, superUser(t))
	left := map[int16]bool{}
	for _, key := range []kmsg.Key{
		// Among brokers and controllers.
		kmsg.WriteTxnMarkers, kmsg.DescribeQuorum, kmsg.UnregisterBroker, kmsg.AddRaftVoter, kmsg.RemoveRaftVoter,
		kmsg.InitializeShareGroupState, kmsg.ReadShareGroupState, kmsg.WriteShareGroupState, kmsg.DeleteShareGroupState, kmsg.ReadShareGroupStateSummary,
		// They would outlive the token that they were made with.
		kmsg.CreateDelegationToken, kmsg.RenewDelegationToken, kmsg.ExpireDelegationToken, kmsg.DescribeDelegationToken,
		// Groups of Kafka Streams.
		kmsg.StreamsGroupHeartbeat, kmsg.StreamsGroupDescribe,
		// No client can have the right that they need.
		kmsg.AddPartitionsToTxn, kmsg.AddOffsetsToTxn, kmsg.EndTxn, kmsg.TxnOffsetCommit, kmsg.DescribeTransactions, kmsg.ListTransactions,
		kmsg.DescribeClientQuotas, kmsg.AlterClientQuotas, kmsg.DescribeUserSCRAMCredentials, kmsg.AlterUserSCRAMCredentials,
		kmsg.AlterReplicaLogDirs, kmsg.ElectLeaders, kmsg.AlterPartitionAssignments, kmsg.ListPartitionReassignments,
		kmsg.UpdateFeatures, kmsg.ListConfigResources,
	} {
		left[int16(key)] = true
	}
	for key, want := range past {
		if got, ok := through[key]; ok == left[key] || ok && got != want {
			t.Errorf("%s: versions %d through the gateway, left out: %t; past it %d", kmsg.NameForKey(key), got, left[key], want)
		}
	}
}

func versions(t *testing.T, c *kgo.Client) map[int16][2]int16 {
	t.Helper()
	response, err := kmsg.NewPtrApiVersionsRequest().RequestWith(testkit.Within(t), c)
	testkit.Must(t, err)
	all := map[int16][2]int16{}
	for _, r := range response.ApiKeys {
		all[r.ApiKey] = [2]int16{r.MinVersion, r.MaxVersion}
	}
	return all
}

// TestLeadersMove moves the leadership of every partition from node to node. On one node
// there is nobody to move to, and the same requests change nothing.
func TestLeadersMove(t *testing.T) {
	f := start(t, fabric.Config{})
	cfg := fabrictest.As(t, f, ada)
	topic := claim(t, cfg, 3)
	s := startTraffic(t, cfg, topic)
	admin := fabrictest.Admin(t, f)
	for range f.Brokers() {
		s.more(50)
		moveLeaders(t, admin, topic, len(f.Brokers()))
	}
	s.more(50)
	s.end()
}

// moveLeaders makes the second replica of each partition the first, and then the leader.
func moveLeaders(t *testing.T, admin *kadm.Client, topic string, nodes int) {
	t.Helper()
	before := describeTopic(t, admin, topic)
	var turned kadm.AlterPartitionAssignmentsReq
	for _, p := range before.Partitions {
		turned.Assign(topic, p.Partition, append(p.Replicas[1:len(p.Replicas):len(p.Replicas)], p.Replicas[0]))
	}
	answers, err := admin.AlterPartitionAssignments(testkit.Within(t), turned)
	if err == nil {
		err = answers.Error()
	}
	testkit.Must(t, err)
	moved := func() bool {
		for id, p := range describeTopic(t, admin, topic).Partitions {
			if nodes > 1 && p.Leader == before.Partitions[id].Leader {
				return false
			}
		}
		return true
	}
	for ctx := testkit.Within(t); ; {
		results, err := admin.ElectLeaders(ctx, kadm.ElectPreferredReplica, only(topic, before))
		testkit.Must(t, err)
		for _, r := range results[topic] {
			if r.Err != nil && !errors.Is(r.Err, kerr.ElectionNotNeeded) && !kerr.IsRetriable(r.Err) {
				t.Fatal(r.Err)
			}
		}
		if moved() {
			return
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal("the leaders do not move")
		}
	}
}

// only is the set of the topic's partitions.
func only(topic string, d kadm.TopicDetail) (set kadm.TopicsSet) {
	set.Add(topic, d.Partitions.Numbers()...)
	return set
}

func describeTopic(t *testing.T, admin *kadm.Client, topic string) kadm.TopicDetail {
	t.Helper()
	topics, err := admin.ListTopics(testkit.Within(t), topic)
	if err == nil {
		err = topics[topic].Err
	}
	testkit.Must(t, err)
	return topics[topic]
}
