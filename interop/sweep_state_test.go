package interop

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/claims"
	"github.com/diaspora-streams/diaspora/internal/inside"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// snapshot is the state of a cluster: what the super user sees, part by part.
type snapshot map[string]string

// changes are the parts that are not the same.
func (s snapshot) changes(after snapshot) (parts []string) {
	for part := range after {
		if s[part] != after[part] {
			parts = append(parts, part)
		}
	}
	for part := range s {
		if _, ok := after[part]; !ok {
			parts = append(parts, part)
		}
	}
	slices.Sort(parts)
	return parts
}

// observer takes snapshots.
type observer struct {
	c       *kgo.Client // the super user's, past the gateway
	offered map[int16]bool
	topics  []string        // of which settings and offsets are looked at
	scratch []string        // prefixes of groups that are left out
	earlier map[string]bool // groups of earlier tests, whose members may still leave
}

func (s *scene) observe(t *testing.T) *observer {
	t.Helper()
	c, err := kgo.NewClient(append(inside.Of(s.f).Admin, kgo.MetadataMinAge(10*time.Millisecond))...)
	testkit.Must(t, err)
	t.Cleanup(c.Close)
	o := &observer{c: c, topics: []string{s.topic, s.other, s.public, s.strangers, claims.LedgerTopic}, offered: map[int16]bool{}, earlier: map[string]bool{},
		scratch: []string{s.prefix + scratchGroup, "user." + s.stranger.Identity.Subject + "."}}
	versions, err := kmsg.NewPtrApiVersionsRequest().RequestWith(testkit.Within(t), c)
	testkit.Must(t, err)
	for _, k := range versions.ApiKeys {
		o.offered[k.ApiKey] = true
	}
	for _, colleague := range s.colleagues {
		o.scratch = append(o.scratch, "user."+colleague.Identity.Subject+".")
	}
	for _, group := range o.ask(t, testkit.Within(t), kmsg.NewPtrListGroupsRequest()).(*kmsg.ListGroupsResponse).Groups {
		o.earlier[group.Group] = !strings.HasPrefix(group.Group, s.prefix)
	}
	return o
}

// settled returns a snapshot when two in a row are the same.
func (o *observer) settled(t *testing.T) snapshot {
	t.Helper()
	last := o.snapshot(t)
	for ctx := testkit.Within(t); ; {
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal("the cluster does not settle")
		}
		next := o.snapshot(t)
		changes := last.changes(next)
		if len(changes) == 0 {
			return next
		}
		last = next
	}
}

// snapshot asks for all that a request of a client might change.
func (o *observer) snapshot(t *testing.T) snapshot {
	t.Helper()
	s := snapshot{}
	ctx := testkit.Within(t)
	o.settings(t, ctx, s, o.topicsOf(t, ctx, s))
	o.groups(t, ctx, s)

	acls := kmsg.NewPtrDescribeACLsRequest()
	acls.ResourceType, acls.ResourcePatternType = kmsg.ACLResourceTypeAny, kmsg.ACLResourcePatternTypeAny
	acls.Operation, acls.PermissionType = kmsg.ACLOperationAny, kmsg.ACLPermissionTypeAny
	for _, r := range o.ask(t, ctx, acls).(*kmsg.DescribeACLsResponse).Resources {
		for _, acl := range r.ACLs {
			s[fmt.Sprintf("ACL %v %q %v %s %s %v %v", r.ResourceType, r.ResourceName, r.ResourcePatternType, acl.Principal, acl.Host, acl.Operation, acl.PermissionType)] = "there"
		}
	}
	// What only Apache Kafka has.
	users := kmsg.NewPtrDescribeUserSCRAMCredentialsRequest()
	users.Users = []kmsg.DescribeUserSCRAMCredentialsRequestUser{} // all; null is more than 4.3.1 can take
	for part, request := range map[string]kmsg.Request{
		"quotas":        kmsg.NewPtrDescribeClientQuotasRequest(),
		"SCRAM users":   users,
		"reassignments": kmsg.NewPtrListPartitionReassignmentsRequest(),
		"transactions":  kmsg.NewPtrListTransactionsRequest(),
		"settings kept": kmsg.NewPtrListConfigResourcesRequest(),
	} {
		if o.offered[request.Key()] {
			s[part] = text(t, o.ask(t, ctx, request))
		}
	}
	return s
}

func (o *observer) topicsOf(t *testing.T, ctx context.Context, s snapshot) (brokers []kmsg.MetadataResponseBroker) {
	metadata := kmsg.NewPtrMetadataRequest() // of all topics
	cluster := o.ask(t, ctx, metadata).(*kmsg.MetadataResponse)
	for _, topic := range cluster.Topics {
		slices.SortFunc(topic.Partitions, func(a, b kmsg.MetadataResponseTopicPartition) int { return cmp.Compare(a.Partition, b.Partition) })
		s["topic "+*topic.Topic] = text(t, topic)
	}
	for part, when := range map[string]int64{"end of ": -1, "start of ": -2} {
		offsets := kmsg.NewPtrListOffsetsRequest()
		producers := kmsg.NewPtrDescribeProducersRequest()
		for _, topic := range o.topics {
			p := kmsg.NewListOffsetsRequestTopicPartition()
			p.Timestamp = when
			offsets.Topics = append(offsets.Topics, kmsg.ListOffsetsRequestTopic{Topic: topic, Partitions: []kmsg.ListOffsetsRequestTopicPartition{p}})
			producers.Topics = append(producers.Topics, kmsg.DescribeProducersRequestTopic{Topic: topic, Partitions: []int32{0}})
		}
		for _, topic := range o.ask(t, ctx, offsets).(*kmsg.ListOffsetsResponse).Topics {
			s[part+topic.Topic] = text(t, topic)
		}
		for _, topic := range o.ask(t, ctx, producers).(*kmsg.DescribeProducersResponse).Topics {
			s["producers of "+topic.Topic] = text(t, topic)
		}
	}
	return cluster.Brokers
}

// settings are those of topics, brokers and the cluster.
func (o *observer) settings(t *testing.T, ctx context.Context, s snapshot, brokers []kmsg.MetadataResponseBroker) {
	configs := kmsg.NewPtrDescribeConfigsRequest()
	for _, topic := range o.topics {
		configs.Resources = append(configs.Resources, kmsg.DescribeConfigsRequestResource{ResourceType: kmsg.ConfigResourceTypeTopic, ResourceName: topic})
	}
	configs.Resources = append(configs.Resources, kmsg.DescribeConfigsRequestResource{ResourceType: kmsg.ConfigResourceTypeBroker})
	for _, broker := range brokers {
		configs.Resources = append(configs.Resources, kmsg.DescribeConfigsRequestResource{ResourceType: kmsg.ConfigResourceTypeBroker, ResourceName: fmt.Sprint(broker.NodeID)})
	}
	for _, r := range o.ask(t, ctx, configs).(*kmsg.DescribeConfigsResponse).Resources {
		for _, config := range r.Configs {
			s[fmt.Sprintf("setting %v %s %s", r.ResourceType, r.ResourceName, config.Name)] = text(t, config)
		}
	}
}

// groups are all groups with their members and offsets, without those that actors may change.
func (o *observer) groups(t *testing.T, ctx context.Context, s snapshot) {
	for _, group := range o.ask(t, ctx, kmsg.NewPtrListGroupsRequest()).(*kmsg.ListGroupsResponse).Groups {
		if o.earlier[group.Group] || slices.ContainsFunc(o.scratch, func(prefix string) bool { return strings.HasPrefix(group.Group, prefix) }) {
			continue
		}
		kinds := map[string][2]kmsg.Request{}
		classic, offsets := kmsg.NewPtrDescribeGroupsRequest(), kmsg.NewPtrOffsetFetchRequest()
		classic.Groups = []string{group.Group}
		of := kmsg.NewOffsetFetchRequestGroup()
		of.Group = group.Group
		offsets.Groups = []kmsg.OffsetFetchRequestGroup{of}
		kinds["classic"] = [2]kmsg.Request{classic, offsets}
		consumer := kmsg.NewPtrConsumerGroupDescribeRequest()
		consumer.Groups = []string{group.Group}
		kinds["consumer"] = [2]kmsg.Request{consumer, offsets}
		share, start := kmsg.NewPtrShareGroupDescribeRequest(), kmsg.NewPtrDescribeShareGroupOffsetsRequest()
		share.GroupIDs = []string{group.Group}
		start.Groups = []kmsg.DescribeShareGroupOffsetsRequestGroup{{GroupID: group.Group}}
		kinds["share"] = [2]kmsg.Request{share, start}
		requests, ok := kinds[strings.ToLower(group.GroupType)]
		if !ok {
			t.Fatalf("group %s is of the unknown type %q", group.Group, group.GroupType)
		}
		s["group "+group.Group] = text(t, o.ask(t, ctx, requests[0]))
		offsetsOf := o.ask(t, ctx, requests[1])
		if of, ok := offsetsOf.(*kmsg.DescribeShareGroupOffsetsResponse); ok {
			for _, topic := range of.Groups[0].Topics {
				for i := range topic.Partitions {
					topic.Partitions[i].Lag = 0 // follows the end of the topic, which is looked at by itself
				}
			}
		}
		s["offsets of group "+group.Group] = text(t, offsetsOf)
	}
}

// ask makes a request as the super user.
func (o *observer) ask(t *testing.T, ctx context.Context, request kmsg.Request) kmsg.Response {
	t.Helper()
	answer, err := o.c.Request(ctx, request)
	if err != nil {
		t.Fatalf("%T: %v", request, err)
	}
	if codes := errorCodes(answer); codes != "ok" {
		t.Fatalf("%T: %s", request, codes)
	}
	return answer
}

// text is all that an answer says.
func text(t *testing.T, answer any) string {
	t.Helper()
	data, err := json.Marshal(answer)
	testkit.Must(t, err)
	return string(data)
}
