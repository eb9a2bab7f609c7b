package claims

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// mustClaim claims topics for ada.
func mustClaim(t *testing.T, s *Service, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := s.Claim(t.Context(), ada, diaspora.ClaimRequest{Name: name}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDrift changes topics and ACLs behind the service's back. Two replicas repair them at the same
// time. The operator's own ACLs must stay.
func TestDrift(t *testing.T) {
	c := newCluster(t)
	one, two := c.open(), c.open()
	topicACL := func(name, principal string, ops ...kmsg.ACLOperation) []kafka.ACL {
		return kafka.Allow(kafka.TopicResource(name), principal, ops...)
	}
	const read, write, all = kmsg.ACLOperationRead, kmsg.ACLOperationWrite, kmsg.ACLOperationAll
	mustClaim(t, one, "whole", "without_acls", "fewer_acls", "more_acls", "lost", "lost_too", "handed_over", "released", "released_too")
	for _, name := range []string{"released", "released_too"} {
		testkit.Must(t, one.Release(t.Context(), ada, name))
	}
	c.createTopic("foreign")
	for name, acls := range map[string][]kafka.ACL{
		"without_acls": nil,
		"fewer_acls":   topicACL("fewer_acls", "User:"+ada, read, write),
		"more_acls":    slices.Concat(topicACL("more_acls", "User:"+ben, read), ownerACLs("more_acls", ada)),
		"handed_over":  topicACL("handed_over", "User:"+ben, read, write),
		"lost_too":     nil,
		"released":     topicACL("released", "User:"+ada, read),
		"never_heard":  topicACL("never_heard", "User:"+cleo, read),
		"foreign":      topicACL("foreign", "User:operator", all),
		"not-ours":     topicACL("not-ours", "User:operator", all),
		"_system":      topicACL("_system", "User:operator", all),
	} {
		c.setACLs(kafka.TopicResource(name), acls...)
	}
	for _, name := range []string{"lost", "lost_too"} {
		testkit.Must(t, c.fake.DeleteTopic(name))
	}

	var wg sync.WaitGroup
	for _, s := range []*Service{one, two} {
		wg.Go(func() {
			if err := s.Reconcile(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, name := range []string{"never_heard", "foreign", "not-ours", "_system"} {
		if got := c.acls(kafka.TopicResource(name)); len(got) != 1 {
			t.Errorf("the operator's ACLs on %s = %q, want the one that was there", name, got)
		}
		c.setACLs(kafka.TopicResource(name))
	}
	c.fake.DeleteTopic("foreign")
	c.check()
	for _, name := range []string{"without_acls", "fewer_acls", "lost", "lost_too", "handed_over"} {
		if err := c.produce(ada, name, "back"); err != nil {
			t.Errorf("the owner's produce to %s = %v", name, err)
		}
	}
	if err := c.produce(ben, "handed_over", "mine"); !errors.Is(err, kerr.TopicAuthorizationFailed) {
		t.Errorf("somebody else's produce = %v, want TOPIC_AUTHORIZATION_FAILED", err)
	}
}

// TestEarlierTopics: topics that were claimed before owners had the right to delete records get it at
// the next reconciliation. Keys with fewer rights than their owner do not.
func TestEarlierTopics(t *testing.T) {
	c := newCluster(t)
	s := c.open()
	mustClaim(t, s, "weather")
	if _, err := s.IssueKey(t.Context(), ada, diaspora.AccessKeyRequest{Name: "desk", Topics: []string{"weather"}, Read: true, Write: true}); err != nil {
		t.Fatal(err)
	}
	want := c.acls(kafka.TopicResource("weather"))
	var before []kafka.ACL
	for _, acl := range must(c.admin().ResourceACLs(t.Context(), kafka.TopicResource("weather"))) {
		if acl.Operation != kmsg.ACLOperationDelete {
			before = append(before, acl)
		}
	}
	c.setACLs(kafka.TopicResource("weather"), before...)
	testkit.Must(t, s.Reconcile(t.Context()))
	if got := c.acls(kafka.TopicResource("weather")); !slices.Equal(got, want) {
		t.Errorf("the ACLs are %q, want %q", got, want)
	}
	owners := slices.DeleteFunc(want, func(acl string) bool { return !strings.Contains(acl, "DELETE") })
	if len(owners) != 1 || len(want) != len(before)+1 {
		t.Errorf("the right to delete: %q, want one, the owner's", owners)
	}
}

// TestOperatorsACLs has an operator restrict and extend rights on claimed topics. Nothing that the
// service does may undo that, even if the subject that was denied asks for it.
func TestOperatorsACLs(t *testing.T) {
	c := newCluster(t)
	s := c.open()
	mustClaim(t, s, "weather", "quiet")
	const read, all = kmsg.ACLOperationRead, kmsg.ACLOperationAll
	operators := func(resource kafka.Resource) []kafka.ACL {
		deny := kafka.Allow(resource, "User:"+ada, read, kmsg.ACLOperationDescribe, all)
		for i := range deny {
			deny[i].Permission = kmsg.ACLPermissionTypeDeny
		}
		elsewhere := kafka.Allow(resource, "User:"+ben, read)
		elsewhere[0].Host = "192.0.2.7"
		return slices.Concat(deny, elsewhere,
			kafka.Allow(resource, "User:"+ben, all, kmsg.ACLOperationAlterConfigs),
			kafka.Allow(resource, "User:mirror", read),
			kafka.Allow(resource, "Group:"+ada, read))
	}
	topic, quiet := kafka.TopicResource("weather"), kafka.TopicResource("quiet")
	group, any, users := groupResource("analysis"), groupResource("*"), kafka.GroupPrefix(kafka.UserGroups)
	want := make(map[kafka.Resource][]string)
	for _, resource := range []kafka.Resource{topic, quiet, group, any, users} {
		own := must(c.admin().ResourceACLs(t.Context(), resource))
		acls := operators(resource)
		if resource == any {
			acls = append(acls, kafka.Allow(resource, "User:*", kmsg.ACLOperationDelete)...)
		}
		c.setACLs(resource, slices.Concat(own, acls)...)
		want[resource] = aclLines(acls)
	}
	still := func(after string) {
		t.Helper()
		for resource, want := range want {
			have := c.acls(resource)
			if rest := slices.DeleteFunc(slices.Clone(want), func(acl string) bool { return slices.Contains(have, acl) }); len(rest) > 0 {
				t.Errorf("after %s, the operator's ACLs %q are gone", after, rest)
			}
		}
	}

	claim := func(subject string) error {
		_, err := s.Claim(t.Context(), subject, diaspora.ClaimRequest{Name: "weather"})
		return err
	}
	var key diaspora.NewAccessKey
	for _, step := range []struct {
		after string
		do    func() error
	}{
		{"a reconciliation", func() error { return s.Reconcile(t.Context()) }},
		{"claiming again", func() error { return claim(ada) }},
		{"issuing a key", func() (err error) {
			key, err = s.IssueKey(t.Context(), ada, reader("reads", "weather"))
			return err
		}},
		{"revoking the key", func() error { return s.RevokeKey(t.Context(), ada, key.ID) }},
		{"taking away its owner's ACLs", func() error {
			acls := must(c.admin().ResourceACLs(t.Context(), topic))
			c.setACLs(topic, slices.DeleteFunc(acls, func(acl kafka.ACL) bool { return slices.Contains(ownerACLs("weather", ada), acl) })...)
			return s.Reconcile(t.Context())
		}},
		{"releasing", func() error { return s.Release(t.Context(), ada, "weather") }},
		{"reconciling a free name", func() error { return s.Reconcile(t.Context()) }},
		{"somebody else's claim", func() error { return claim(ben) }},
	} {
		if err := step.do(); err != nil {
			t.Errorf("%s: %v", step.after, err)
		}
		still(step.after)
	}
	if err := c.produce(ada, "quiet", "no"); !errors.Is(err, kerr.TopicAuthorizationFailed) {
		t.Errorf("produce to a topic of one's own that the operator denies = %v, want TOPIC_AUTHORIZATION_FAILED", err)
	}
	if got, want := c.acls(topic), slices.Sorted(slices.Values(slices.Concat(want[topic], aclLines(ownerACLs("weather", ben))))); !slices.Equal(got, want) {
		t.Errorf("the topic has the ACLs\n%s\nwant the operator's and its owner's\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestSubjectsThatAreNoUUIDs checks that the rights of such subjects end with their claims.
func TestSubjectsThatAreNoUUIDs(t *testing.T) {
	c := newCluster(t)
	s := c.open()
	for range 2 {
		if _, err := s.Claim(t.Context(), "eve", diaspora.ClaimRequest{Name: "weather"}); err != nil {
			t.Fatal(err)
		}
		if got, want := c.acls(kafka.TopicResource("weather")), aclLines(ownerACLs("weather", "eve")); !slices.Equal(got, want) {
			t.Errorf("the topic has the ACLs %q, want its owner's, %q", got, want)
		}
		testkit.Must(t, s.Release(t.Context(), "eve", "weather"))
		c.check()
		s = c.open() // it knows eve from the ledger
	}
}

// TestClaimingAgainRepairs checks what users can do themselves without waiting for the service.
func TestClaimingAgainRepairs(t *testing.T) {
	c := newCluster(t)
	s := c.open()
	mustClaim(t, s, "lost", "locked")
	testkit.Must(t, c.fake.DeleteTopic("lost"))
	c.setACLs(kafka.TopicResource("locked"))
	for _, name := range []string{"lost", "locked"} {
		got, err := s.Claim(t.Context(), ada, diaspora.ClaimRequest{Name: name})
		if err != nil || got.Created {
			t.Errorf("Claim(%s) again = %+v, %v, want it not created", name, got, err)
		}
		if err := c.produce(ada, name, "back"); err != nil {
			t.Errorf("produce to %s = %v", name, err)
		}
	}
	c.check()
}

// TestLeftover is about a topic that a replica created too late before it died. The service must
// not take it for somebody's topic, or the name could never be claimed again.
func TestLeftover(t *testing.T) {
	c := newCluster(t)
	s := c.open()
	for _, name := range []string{"empty", "written"} {
		mustClaim(t, s, name)
		testkit.Must(t, s.Release(t.Context(), ada, name))
		c.createTopic(name)
	}
	testkit.Must(t, c.produce("admin", "written", "the operator's"))
	testkit.Must(t, s.Reconcile(t.Context()))
	if !c.hasTopic("empty") || !c.hasTopic("written") {
		t.Error("Reconcile deleted a topic that nobody claims")
	}
	got, err := s.Claim(t.Context(), ben, diaspora.ClaimRequest{Name: "empty", Partitions: 7})
	if err != nil || !got.Created {
		t.Fatalf("Claim over an empty leftover = %+v, %v", got, err)
	}
	if info, _, err := c.admin().Topic(t.Context(), "empty"); err != nil || info.Partitions != 7 {
		t.Errorf("the topic is %+v, %v, want a new one with 7 partitions", info, err)
	}
	if _, err := s.Claim(t.Context(), ben, diaspora.ClaimRequest{Name: "written"}); !errors.Is(err, diaspora.ErrConflict) {
		t.Errorf("Claim over events = %v, want ErrConflict", err)
	}
	if !c.hasTopic("written") {
		t.Error("Claim deleted a topic that has events")
	}
	c.fake.DeleteTopic("written")
	c.check()
}

// TestLeftoverWithoutLeader claims a name for which the cluster has a topic with events, while
// nobody can tell whether the topic is empty.
func TestLeftoverWithoutLeader(t *testing.T) {
	for last := range 4 { // how many requests are answered without a leader
		c := newCluster(t)
		s := c.open()
		mustClaim(t, s, "written")
		testkit.Must(t, s.Release(t.Context(), ada, "written"))
		c.createTopic("written")
		testkit.Must(t, c.produce("admin", "written", "the operator's"))
		c.leaderless("written", 1, last)
		_, err := s.Claim(t.Context(), ben, diaspora.ClaimRequest{Name: "written"})
		if !errors.Is(err, diaspora.ErrConflict) && (last == 0 || !errors.Is(err, diaspora.ErrUnavailable)) {
			t.Errorf("%d answers without a leader: Claim over events = %v, want ErrUnavailable, or ErrConflict", last, err)
		}
		if !c.hasTopic("written") {
			t.Errorf("%d answers without a leader: Claim deleted a topic that has events", last)
		}
	}
}

// TestTopicSettings checks that topics have the settings that late events and durability need.
func TestTopicSettings(t *testing.T) {
	for brokers, wantReplicas := range map[int]int{1: 1, 3: 3} {
		t.Run(fmt.Sprint(brokers), func(t *testing.T) {
			c := newCluster(t, numBrokers(brokers))
			s := c.open()
			if _, err := s.Claim(t.Context(), ada, diaspora.ClaimRequest{Name: "kept", RetentionMS: -1}); err != nil {
				t.Fatal(err)
			}
			if got, err := s.Claim(t.Context(), ada, diaspora.ClaimRequest{Name: "short", RetentionMS: 60000}); err != nil || got.RetentionMS != 60000 {
				t.Fatalf("Claim = %+v, %v", got, err)
			}
			minInSync := map[int]string{1: "1", 3: "2"}[wantReplicas]
			for name, retention := range map[string]string{"kept": "-1", "short": "60000", LedgerTopic: "-1"} {
				info := c.fake.TopicInfo(name)
				for setting, want := range map[string]string{
					"message.timestamp.type":         "LogAppendTime",
					"cleanup.policy":                 "delete",
					"retention.ms":                   retention,
					"retention.bytes":                "-1",
					"min.insync.replicas":            minInSync,
					"unclean.leader.election.enable": "false",
				} {
					if got := info.Configs[setting]; got == nil || *got != want {
						t.Errorf("%s of %s is %v, want %s", setting, name, got, want)
					}
				}
				if got, _, err := c.admin().Topic(t.Context(), name); err != nil || got.Replicas != wantReplicas {
					t.Errorf("%s has %d replicas, %v, want %d", name, got.Replicas, err, wantReplicas)
				}
			}
		})
	}
}

// TestReplicationFollowsLedger checks that a topic that is claimed while most of the cluster is
// down does not get too few replicas forever.
func TestReplicationFollowsLedger(t *testing.T) {
	c := newCluster(t, numBrokers(3))
	s := c.open()
	for _, node := range []int32{0, 1} { // 2 is the controller, which stays up
		testkit.Must(t, c.fake.RemoveNode(node))
	}
	_, err := s.Claim(t.Context(), ada, diaspora.ClaimRequest{Name: "weather"})
	if !errors.Is(err, diaspora.ErrUnavailable) || !strings.Contains(err.Error(), "too few brokers") {
		t.Errorf("Claim with one of three brokers = %v, want ErrUnavailable that says too few brokers", err)
	}
	if n := s.Stats().Topics; n != 0 {
		t.Errorf("the ledger says %d topics, want none", n)
	}
}
