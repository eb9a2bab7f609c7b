package broker

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/journal"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// ask makes a request in the newest version that the broker supports, or in another, as the super
// user or as a given subject.
func ask[R kmsg.Response](t testing.TB, b *Broker, as caller, request kmsg.Request, version ...int16) R {
	t.Helper()
	request.SetVersion(apis()[request.Key()].max)
	if len(version) > 0 {
		request.SetVersion(version[0])
	}
	conn, err := b.connect(as)
	testkit.Must(t, err)
	defer conn.Close()
	response, err := requestor{conn}.Request(t.Context(), request)
	if err != nil {
		t.Fatalf("request %d: %v", request.Key(), err)
	}
	return response.(R)
}

var (
	superUser = caller{principal: "User:(super user)", super: true}
	asAda     = caller{principal: "User:" + ada}
)

// fill makes the disk look full, or empty again.
func (b *Broker) fill(full bool) {
	free := int64(math.MaxInt64)
	if full {
		free = 0
	}
	b.space.free = func() (int64, error) { return free, nil }
	b.space.measured.Store(0)
}

func newTopic(name string, partitions int32, configs ...string) kmsg.CreateTopicsRequestTopic {
	topic := kmsg.NewCreateTopicsRequestTopic()
	topic.Topic, topic.NumPartitions, topic.ReplicationFactor = name, partitions, 1
	for i := 0; i < len(configs); i += 2 {
		config := kmsg.NewCreateTopicsRequestTopicConfig()
		config.Name, config.Value = configs[i], &configs[i+1]
		topic.Configs = append(topic.Configs, config)
	}
	return topic
}

func createTopics(topics ...kmsg.CreateTopicsRequestTopic) *kmsg.CreateTopicsRequest {
	request := kmsg.NewPtrCreateTopicsRequest()
	request.Topics = topics
	return request
}

// create creates topics, and returns the error codes by name.
func create(t testing.TB, b *Broker, as caller, topics ...kmsg.CreateTopicsRequestTopic) map[string]int16 {
	t.Helper()
	codes := make(map[string]int16)
	for _, topic := range ask[*kmsg.CreateTopicsResponse](t, b, as, createTopics(topics...)).Topics {
		codes[topic.Topic] = topic.ErrorCode
		if (topic.ErrorCode != 0) != (topic.ErrorMessage != nil) {
			t.Errorf("topic %q: code %d with the message %v", topic.Topic, topic.ErrorCode, topic.ErrorMessage)
		}
	}
	return codes
}

func names(b *Broker) (names []string) {
	for _, t := range b.topics.all() {
		names = append(names, t.Name)
	}
	return names
}

func grant(t testing.TB, b *Broker, resource kmsg.ACLResourceType, name string, ops ...kmsg.ACLOperation) {
	t.Helper()
	request := kmsg.NewPtrCreateACLsRequest()
	for _, op := range ops {
		c := kmsg.NewCreateACLsRequestCreation()
		c.ResourceType, c.ResourcePatternType, c.ResourceName = resource, kmsg.ACLResourcePatternTypeLiteral, name
		c.Principal, c.Host, c.Operation, c.PermissionType = asAda.principal, "*", op, kmsg.ACLPermissionTypeAllow
		request.Creations = append(request.Creations, c)
	}
	for _, result := range ask[*kmsg.CreateACLsResponse](t, b, superUser, request).Results {
		if result.ErrorCode != 0 {
			t.Fatalf("create ACLs: code %d, %s", result.ErrorCode, *result.ErrorMessage)
		}
	}
}

func TestCreateTopics(t *testing.T) {
	b := open(t, Config{})
	create(t, b, superUser, newTopic("old.one", 1))
	assigned := newTopic("assigned", -1)
	assigned.ReplicationFactor = -1
	assigned.ReplicaAssignment = []kmsg.CreateTopicsRequestTopicReplicaAssignment{{Partition: 1, Replicas: []int32{0}}, {Partition: 0, Replicas: []int32{0}}}
	gap, elsewhere, both := assigned, assigned, assigned
	gap.Topic, elsewhere.Topic, both.Topic, both.NumPartitions = "gap", "elsewhere", "both", 2
	gap.ReplicaAssignment = []kmsg.CreateTopicsRequestTopicReplicaAssignment{{Partition: 0, Replicas: []int32{0}}, {Partition: 2, Replicas: []int32{0}}}
	elsewhere.ReplicaAssignment = []kmsg.CreateTopicsRequestTopicReplicaAssignment{{Partition: 0, Replicas: []int32{1}}}
	replicated, noValue := newTopic("replicated", 1), newTopic("no-value", 1, "retention.ms", "")
	replicated.ReplicationFactor = 3
	noValue.Configs[0].Value = nil
	standard := newTopic("standard", -1)
	standard.ReplicationFactor = -1
	got := create(t, b, superUser,
		newTopic("new", 3, "retention.ms", "1000"), standard, assigned, gap, elsewhere, both, replicated, noValue,
		newTopic("old.one", 0), newTopic("old_one", 1), newTopic("a b", 1), newTopic("none", 0, "retention.ms", "5"), newTopic("odd", 0, "retention", "5"),
		newTopic("twice", 1), newTopic("twice", 2), newTopic("compacted", 1, "cleanup.policy", "compact"), newTopic("__cluster_metadata", 1))
	want := map[string]int16{
		"new": 0, "standard": 0, "assigned": 0,
		"gap":                kerr.InvalidReplicaAssignment.Code,
		"elsewhere":          kerr.InvalidReplicaAssignment.Code,
		"both":               kerr.InvalidRequest.Code,
		"replicated":         kerr.InvalidReplicationFactor.Code,
		"no-value":           kerr.InvalidConfig.Code,
		"old.one":            kerr.TopicAlreadyExists.Code,
		"old_one":            kerr.InvalidTopicException.Code,
		"a b":                kerr.InvalidTopicException.Code,
		"none":               kerr.InvalidPartitions.Code,
		"odd":                kerr.InvalidConfig.Code,
		"twice":              kerr.InvalidRequest.Code,
		"compacted":          kerr.InvalidConfig.Code,
		"__cluster_metadata": kerr.InvalidRequest.Code,
	}
	if !maps.Equal(got, want) {
		t.Errorf("codes = %v, want %v", got, want)
	}
	if got, want := names(b), []string{"assigned", "new", "old.one", "standard"}; !slices.Equal(got, want) {
		t.Errorf("topics = %q, want %q", got, want)
	}
	if made := b.topics.named("new"); made.Partitions != 3 || made.settings.retention != 1e9 {
		t.Errorf("topic new is %+v with %+v", made.topicRecord, made.settings)
	}
}

func TestCreateTopicsValidateOnly(t *testing.T) {
	b := open(t, Config{})
	request := createTopics(newTopic("new", 3))
	request.ValidateOnly = true
	made := ask[*kmsg.CreateTopicsResponse](t, b, superUser, request).Topics[0]
	if made.ErrorCode != 0 || made.NumPartitions != 3 || made.ReplicationFactor != 1 || len(made.Configs) == 0 || len(names(b)) != 0 {
		t.Errorf("answer %+v, topics %q; want success, and no topic", made, names(b))
	}
}

// TestBounds: numbers that would exhaust memory or file descriptors are refused.
func TestBounds(t *testing.T) {
	b := open(t, Config{})
	if got := create(t, b, superUser, newTopic("large", maxPartitions+1), newTopic("small", 1)); got["large"] != kerr.PolicyViolation.Code || got["small"] != kerr.PolicyViolation.Code {
		t.Errorf("create more than %d partitions = %v, want code %d for the whole request", maxPartitions, got, kerr.PolicyViolation.Code)
	}
	if got := create(t, b, superUser, newTopic("small", math.MaxInt32), newTopic("other", math.MaxInt32)); got["small"] != kerr.PolicyViolation.Code {
		t.Errorf("create twice 2^31-1 partitions = %v", got)
	}
	create(t, b, superUser, newTopic("small", 1))
	if got := grow(t, b, superUser, "small", math.MaxInt32); got != kerr.PolicyViolation.Code {
		t.Errorf("grow to 2^31-1 partitions = %d, want code %d", got, kerr.PolicyViolation.Code)
	}
	configs := kmsg.NewPtrDescribeConfigsRequest()
	for range maxDescribedConfigs + 1 {
		configs.Resources = append(configs.Resources, kmsg.DescribeConfigsRequestResource{ResourceType: kmsg.ConfigResourceTypeTopic, ResourceName: "small"})
	}
	if got := ask[*kmsg.DescribeConfigsResponse](t, b, superUser, configs).Resources[0]; got.ErrorCode != kerr.PolicyViolation.Code || len(got.Configs) != 0 {
		t.Errorf("%d resources = %+v, want code %d", len(configs.Resources), got, kerr.PolicyViolation.Code)
	}
}

// TestAdministrationSurvives: topics, settings, partitions and ACLs survive a restart, and what was
// deleted stays deleted.
func TestAdministrationSurvives(t *testing.T) {
	dir := t.TempDir()
	b := open(t, Config{Dir: dir})
	create(t, b, superUser, newTopic("kept", 1, "retention.bytes", "7"), newTopic("gone", 2))
	if code := grow(t, b, superUser, "kept", 4); code != 0 {
		t.Fatalf("grow = %d", code)
	}
	if code := alter(t, b, superUser, "kept", kmsg.IncrementalAlterConfigOpSet, "retention.ms", "5000"); code != 0 {
		t.Fatalf("alter = %d", code)
	}
	grant(t, b, kmsg.ACLResourceTypeTopic, "kept", kmsg.ACLOperationRead, kmsg.ACLOperationWrite)
	remove := kmsg.NewPtrDeleteACLsRequest()
	filter := kmsg.NewDeleteACLsRequestFilter()
	filter.ResourceType, filter.ResourcePatternType = kmsg.ACLResourceTypeAny, kmsg.ACLResourcePatternTypeAny
	filter.Operation, filter.PermissionType = kmsg.ACLOperationWrite, kmsg.ACLPermissionTypeAny
	remove.Filters = append(remove.Filters, filter)
	if got := ask[*kmsg.DeleteACLsResponse](t, b, superUser, remove).Results[0]; len(got.MatchingACLs) != 1 {
		t.Fatalf("deleted ACLs: %+v, want one", got)
	}
	gone := kmsg.NewPtrDeleteTopicsRequest()
	gone.Topics = []kmsg.DeleteTopicsRequestTopic{{Topic: kmsg.StringPtr("gone")}}
	if got := ask[*kmsg.DeleteTopicsResponse](t, b, superUser, gone).Topics[0]; got.ErrorCode != 0 {
		t.Fatalf("delete: %+v", got)
	}
	id := b.topics.named("kept").ID
	testkit.Must(t, b.Close())
	b = open(t, Config{Dir: dir})
	if got := names(b); !slices.Equal(got, []string{"kept"}) {
		t.Fatalf("topics = %q, want kept alone", got)
	}
	kept := b.topics.named("kept")
	want := map[string]string{"retention.bytes": "7", "retention.ms": "5000"}
	if kept.ID != id || kept.Partitions != 4 || len(kept.partitions) != 4 || !maps.Equal(kept.Configs, want) || kept.settings != settingsOf(want) {
		t.Errorf("the topic is %+v with %+v", kept.topicRecord, kept.settings)
	}
	if !b.mayTopic(&request{caller: asAda}, kmsg.ACLOperationRead, "kept") || b.mayTopic(&request{caller: asAda}, kmsg.ACLOperationWrite, "kept") {
		t.Error("the ACLs are not those from before the restart")
	}
}

func grow(t testing.TB, b *Broker, as caller, topic string, count int32) int16 {
	t.Helper()
	request := kmsg.NewPtrCreatePartitionsRequest()
	request.Topics = []kmsg.CreatePartitionsRequestTopic{{Topic: topic, Count: count}}
	return ask[*kmsg.CreatePartitionsResponse](t, b, as, request).Topics[0].ErrorCode
}

func alter(t testing.TB, b *Broker, as caller, topic string, op kmsg.IncrementalAlterConfigOp, name, value string) int16 {
	t.Helper()
	request := kmsg.NewPtrIncrementalAlterConfigsRequest()
	resource := kmsg.NewIncrementalAlterConfigsRequestResource()
	resource.ResourceType, resource.ResourceName = kmsg.ConfigResourceTypeTopic, topic
	resource.Configs = []kmsg.IncrementalAlterConfigsRequestResourceConfig{{Name: name, Op: op, Value: &value}}
	request.Resources = append(request.Resources, resource)
	return ask[*kmsg.IncrementalAlterConfigsResponse](t, b, as, request).Resources[0].ErrorCode
}

func TestAlterConfigs(t *testing.T) {
	b := open(t, Config{})
	create(t, b, superUser, newTopic("t", 1))
	const throttled = "leader.replication.throttled.replicas"
	for _, step := range []struct {
		op          kmsg.IncrementalAlterConfigOp
		name, value string
		code        int16
		want        map[string]string
	}{
		{kmsg.IncrementalAlterConfigOpSet, "retention.ms", "5", 0, map[string]string{"retention.ms": "5"}},
		{kmsg.IncrementalAlterConfigOpSet, "retention.ms", "x", kerr.InvalidConfig.Code, map[string]string{"retention.ms": "5"}},
		{kmsg.IncrementalAlterConfigOpSet, "cleanup.policy", "compact", kerr.InvalidConfig.Code, map[string]string{"retention.ms": "5"}},
		{kmsg.IncrementalAlterConfigOpAppend, "retention.ms", "5", kerr.InvalidConfig.Code, map[string]string{"retention.ms": "5"}},
		{kmsg.IncrementalAlterConfigOpDelete, "retention.ms", "", 0, map[string]string{}},
		{kmsg.IncrementalAlterConfigOpDelete, "nonsense", "", 0, map[string]string{}},
		{kmsg.IncrementalAlterConfigOpAppend, throttled, "0:0,1:0", 0, map[string]string{throttled: "0:0,1:0"}},
		{kmsg.IncrementalAlterConfigOpAppend, throttled, "1:0,2:0", 0, map[string]string{throttled: "0:0,1:0,2:0"}},
		{kmsg.IncrementalAlterConfigOpSubtract, throttled, "0:0,2:0", 0, map[string]string{throttled: "1:0"}},
		{kmsg.IncrementalAlterConfigOpAppend, "cleanup.policy", "compact", kerr.InvalidConfig.Code, map[string]string{throttled: "1:0"}},
	} {
		if code := alter(t, b, superUser, "t", step.op, step.name, step.value); code != step.code {
			t.Errorf("%v %s %s = %d, want %d", step.op, step.name, step.value, code, step.code)
		}
		if got := b.topics.named("t").Configs; !maps.Equal(got, step.want) {
			t.Errorf("after %v %s %s the settings are %v, want %v", step.op, step.name, step.value, got, step.want)
		}
	}
	if code := alter(t, b, superUser, "nope", kmsg.IncrementalAlterConfigOpSet, "retention.ms", "5"); code != kerr.UnknownTopicOrPartition.Code {
		t.Errorf("no such topic = %d", code)
	}
	all := kmsg.NewPtrAlterConfigsRequest()
	all.Resources = []kmsg.AlterConfigsRequestResource{
		{ResourceType: kmsg.ConfigResourceTypeTopic, ResourceName: "t", Configs: []kmsg.AlterConfigsRequestResourceConfig{{Name: "retention.bytes", Value: kmsg.StringPtr("9")}}},
		{ResourceType: kmsg.ConfigResourceTypeGroupConfig, ResourceName: "g"},
		{ResourceType: kmsg.ConfigResourceTypeBroker, ResourceName: "0", Configs: []kmsg.AlterConfigsRequestResourceConfig{{Name: "num.partitions", Value: kmsg.StringPtr("9")}}},
	}
	got := ask[*kmsg.AlterConfigsResponse](t, b, superUser, all).Resources
	if got[0].ErrorCode != 0 || got[1].ErrorCode != kerr.InvalidRequest.Code || got[2].ErrorCode != kerr.InvalidRequest.Code {
		t.Errorf("AlterConfigs = %+v", got)
	}
	if got := b.topics.named("t"); !maps.Equal(got.Configs, map[string]string{"retention.bytes": "9"}) || got.settings.retentionBytes != 9 {
		t.Errorf("the settings are %v, want the new one alone", got.Configs)
	}
}

func TestDescribeConfigs(t *testing.T) {
	b := open(t, Config{})
	create(t, b, superUser, newTopic("t", 1, "retention.ms", " 5 "))
	request := kmsg.NewPtrDescribeConfigsRequest()
	request.IncludeSynonyms = true
	request.Resources = []kmsg.DescribeConfigsRequestResource{
		{ResourceType: kmsg.ConfigResourceTypeTopic, ResourceName: "t"},
		{ResourceType: kmsg.ConfigResourceTypeTopic, ResourceName: "t", ConfigNames: []string{"retention.ms"}},
		{ResourceType: kmsg.ConfigResourceTypeTopic, ResourceName: "nope"},
		{ResourceType: kmsg.ConfigResourceTypeBroker, ResourceName: "0"},
		{ResourceType: kmsg.ConfigResourceTypeBroker, ResourceName: "1"},
		{ResourceType: kmsg.ConfigResourceTypeGroupConfig, ResourceName: "g"},
	}
	got := ask[*kmsg.DescribeConfigsResponse](t, b, superUser, request).Resources
	for i, want := range []struct {
		code    int16
		configs int
	}{{0, len(topicConfigs) - 1}, {0, 1}, {kerr.UnknownTopicOrPartition.Code, 0}, {0, len(brokerConfigs)}, {kerr.InvalidRequest.Code, 0}, {kerr.InvalidRequest.Code, 0}} {
		if got[i].ErrorCode != want.code || len(got[i].Configs) != want.configs || got[i].ErrorMessage == nil {
			t.Errorf("%v %q: code %d, %d settings; want %+v", got[i].ResourceType, got[i].ResourceName, got[i].ErrorCode, len(got[i].Configs), want)
		}
	}
	retention := got[1].Configs[0]
	if *retention.Value != "5" || retention.Source != kmsg.ConfigSourceDynamicTopicConfig || retention.ConfigType != kmsg.ConfigTypeLong || len(retention.ConfigSynonyms) != 1 {
		t.Errorf("retention.ms is %+v", retention)
	}
	request.Resources[0].ResourceType = 3
	for _, resource := range ask[*kmsg.DescribeConfigsResponse](t, b, superUser, request).Resources {
		if resource.ErrorCode != kerr.InvalidRequest.Code {
			t.Errorf("with a resource of a type that nobody knows, %q = %d, want %d as in Apache Kafka", resource.ResourceName, resource.ErrorCode, kerr.InvalidRequest.Code)
		}
	}
}

// TestAdministrationOfAFullDisk: requests that would make files grow are refused with a retriable
// code; requests that free space are not.
func TestAdministrationOfAFullDisk(t *testing.T) {
	b := open(t, Config{})
	create(t, b, superUser, newTopic("old", 1))
	grant(t, b, kmsg.ACLResourceTypeTopic, "old", kmsg.ACLOperationRead)
	b.fill(true)
	full := kerr.KafkaStorageError.Code
	if got := create(t, b, superUser, newTopic("new", 1))["new"]; got != full {
		t.Errorf("create a topic = %d, want %d", got, full)
	}
	if got := grow(t, b, superUser, "old", 2); got != full {
		t.Errorf("grow a topic = %d, want %d", got, full)
	}
	if got := alter(t, b, superUser, "old", kmsg.IncrementalAlterConfigOpSet, "retention.ms", "5"); got != full {
		t.Errorf("alter a setting = %d, want %d", got, full)
	}
	more := kmsg.NewPtrCreateACLsRequest()
	c := kmsg.NewCreateACLsRequestCreation()
	c.ResourceType, c.ResourcePatternType, c.ResourceName = kmsg.ACLResourceTypeTopic, kmsg.ACLResourcePatternTypeLiteral, "old"
	c.Principal, c.Host, c.Operation, c.PermissionType = asAda.principal, "*", kmsg.ACLOperationWrite, kmsg.ACLPermissionTypeAllow
	more.Creations = append(more.Creations, c)
	if got := ask[*kmsg.CreateACLsResponse](t, b, superUser, more).Results[0]; got.ErrorCode != full || got.ErrorMessage == nil {
		t.Errorf("create an ACL = %+v, want code %d", got, full)
	}
	gone := kmsg.NewPtrDeleteTopicsRequest()
	gone.Topics = []kmsg.DeleteTopicsRequestTopic{{Topic: kmsg.StringPtr("old")}}
	if got := ask[*kmsg.DeleteTopicsResponse](t, b, superUser, gone).Topics[0]; got.ErrorCode != 0 {
		t.Errorf("delete a topic = %+v, want success", got)
	}
	b.fill(false)
	if got := create(t, b, superUser, newTopic("new", 1))["new"]; got != 0 {
		t.Errorf("create a topic when there is room again = %d", got)
	}
}

// TestNamesAreNotTold requests a topic that the caller may not describe in every way. No response
// reveals its name, or differs from the response for a topic that does not exist. The exception is
// a request with the topic's ID, which the caller must have learned in another way.
func TestNamesAreNotTold(t *testing.T) {
	b := open(t, Config{})
	create(t, b, superUser, newTopic("secret", 1), newTopic("mine", 1))
	grant(t, b, kmsg.ACLResourceTypeTopic, "mine", kmsg.ACLOperationRead)
	id := b.topics.named("secret").ID
	refused := kerr.TopicAuthorizationFailed.Code

	all := kmsg.NewPtrMetadataRequest()
	all.Topics = nil
	if got := ask[*kmsg.MetadataResponse](t, b, asAda, all).Topics; len(got) != 1 || *got[0].Topic != "mine" {
		t.Errorf("metadata of all topics: %+v, want mine alone", got)
	}
	byName := kmsg.NewPtrMetadataRequest()
	byName.IncludeTopicAuthorizedOperations = true
	for _, name := range []string{"secret", "nope"} {
		byName.Topics = append(byName.Topics, kmsg.MetadataRequestTopic{Topic: &name})
	}
	for _, got := range ask[*kmsg.MetadataResponse](t, b, asAda, byName).Topics {
		if got.ErrorCode != refused || got.TopicID != [16]byte{} || len(got.Partitions) != 0 || got.AuthorizedOperations != math.MinInt32 {
			t.Errorf("metadata of %q: %+v", *got.Topic, got)
		}
	}
	byID := kmsg.NewPtrMetadataRequest()
	byID.Topics = []kmsg.MetadataRequestTopic{{TopicID: id}}
	if got := ask[*kmsg.MetadataResponse](t, b, asAda, byID).Topics; len(got) != 1 || got[0].Topic != nil || got[0].ErrorCode != refused {
		t.Errorf("metadata by ID: %+v, want code %d without a name", got, refused)
	}
	remove := kmsg.NewPtrDeleteTopicsRequest()
	remove.Topics = []kmsg.DeleteTopicsRequestTopic{{TopicID: id}, {Topic: kmsg.StringPtr("secret")}, {Topic: kmsg.StringPtr("nope")}}
	for _, got := range ask[*kmsg.DeleteTopicsResponse](t, b, asAda, remove).Topics {
		if got.ErrorCode != refused || (got.Topic == nil) == (got.TopicID == [16]byte{}) {
			t.Errorf("delete: %+v, want code %d, and only what was in the request", got, refused)
		}
	}
	described := ask[*kmsg.DescribeTopicPartitionsResponse](t, b, asAda, kmsg.NewPtrDescribeTopicPartitionsRequest())
	if len(described.Topics) != 1 || *described.Topics[0].Topic != "mine" {
		t.Errorf("partitions of all topics: %+v, want those of mine alone", described.Topics)
	}
	for _, name := range []string{"secret", "nope"} {
		if got := grow(t, b, asAda, name, 5); got != refused {
			t.Errorf("grow %q = %d, want %d", name, got, refused)
		}
		if got := alter(t, b, asAda, name, kmsg.IncrementalAlterConfigOpSet, "retention.ms", "5"); got != refused {
			t.Errorf("alter %q = %d, want %d", name, got, refused)
		}
		configs := kmsg.NewPtrDescribeConfigsRequest()
		configs.Resources = []kmsg.DescribeConfigsRequestResource{{ResourceType: kmsg.ConfigResourceTypeTopic, ResourceName: name}}
		if got := ask[*kmsg.DescribeConfigsResponse](t, b, asAda, configs).Resources[0]; got.ErrorCode != refused {
			t.Errorf("settings of %q: %+v, want code %d", name, got, refused)
		}
		producers := kmsg.NewPtrDescribeProducersRequest()
		producers.Topics = []kmsg.DescribeProducersRequestTopic{{Topic: name, Partitions: []int32{0}}}
		if got := ask[*kmsg.DescribeProducersResponse](t, b, asAda, producers).Topics[0].Partitions[0]; got.ErrorCode != refused {
			t.Errorf("producers of %q: %+v, want code %d", name, got, refused)
		}
		if got := create(t, b, asAda, newTopic(name, 1))[name]; got != refused {
			t.Errorf("create %q = %d, want %d", name, got, refused)
		}
	}
}

// TestClusterRequests: a caller that may not describe or alter the cluster gets no information.
func TestClusterRequests(t *testing.T) {
	b := open(t, Config{})
	create(t, b, superUser, newTopic("t", 1))
	refused := kerr.ClusterAuthorizationFailed.Code
	any := kmsg.NewPtrDescribeACLsRequest()
	any.ResourceType, any.ResourcePatternType = kmsg.ACLResourceTypeAny, kmsg.ACLResourcePatternTypeAny
	any.Operation, any.PermissionType = kmsg.ACLOperationAny, kmsg.ACLPermissionTypeAny
	if got := ask[*kmsg.DescribeACLsResponse](t, b, asAda, any); got.ErrorCode != refused || len(got.Resources) != 0 {
		t.Errorf("ACLs: %+v", got)
	}
	if got := ask[*kmsg.DescribeLogDirsResponse](t, b, asAda, kmsg.NewPtrDescribeLogDirsRequest()); got.ErrorCode != refused || len(got.Dirs) != 0 {
		t.Errorf("directories: %+v", got)
	}
	if got := ask[*kmsg.ListConfigResourcesResponse](t, b, asAda, kmsg.NewPtrListConfigResourcesRequest()); got.ErrorCode != refused || len(got.ConfigResources) != 0 {
		t.Errorf("resources: %+v", got)
	}
	if got := ask[*kmsg.ListPartitionReassignmentsResponse](t, b, asAda, kmsg.NewPtrListPartitionReassignmentsRequest()); got.ErrorCode != refused {
		t.Errorf("reassignments: %+v", got)
	}
	cluster := kmsg.NewPtrDescribeClusterRequest()
	cluster.EndpointType, cluster.IncludeClusterAuthorizedOperations = brokerEndpoint, true
	if got := ask[*kmsg.DescribeClusterResponse](t, b, asAda, cluster); got.ClusterAuthorizedOperations != 0 || len(got.Brokers) != 1 {
		t.Errorf("cluster: %+v", got)
	}
	everything := kmsg.NewPtrDescribeLogDirsRequest()
	everything.Topics = nil
	dirs := ask[*kmsg.DescribeLogDirsResponse](t, b, superUser, everything)
	if len(dirs.Dirs) != 1 || len(dirs.Dirs[0].Topics) != 1 || dirs.Dirs[0].Topics[0].Topic != "t" {
		t.Errorf("directories: %+v", dirs)
	}
}

func TestDescribeTopicPartitions(t *testing.T) {
	b := open(t, Config{})
	create(t, b, superUser, newTopic("a", 3), newTopic("b", 1), newTopic("c", 4))
	for _, test := range []struct {
		name   string
		limit  int32
		cursor *kmsg.DescribeTopicPartitionsRequestCursor
		topics []string
		want   string
	}{
		{"all", 2000, nil, nil, "a[0 1 2] b[0] c[0 1 2 3]"},
		{"ends within a topic", 2, nil, nil, "a[0 1] next a 2"},
		{"ends with a topic", 4, nil, nil, "a[0 1 2] b[0] next c 0"},
		{"goes on", 3, &kmsg.DescribeTopicPartitionsRequestCursor{Topic: "a", Partition: 2}, nil, "a[2] b[0] c[0] next c 1"},
		{"goes on behind a deleted topic", 2, &kmsg.DescribeTopicPartitionsRequestCursor{Topic: "aa", Partition: 2}, nil, "b[0] c[0] next c 1"},
		{"no limit", 0, nil, nil, "a[0] next a 1"},
		{"named", 2000, nil, []string{"c", "nope", "a", "c"}, "a[0 1 2] c[0 1 2 3] nope[] 3"},
		{"the cursor is not named", 2000, &kmsg.DescribeTopicPartitionsRequestCursor{Topic: "b"}, []string{"a"}, "a[] 42"},
		{"a negative cursor", 2000, &kmsg.DescribeTopicPartitionsRequestCursor{Topic: "a", Partition: -1}, []string{"a"}, "a[] 42"},
	} {
		request := kmsg.NewPtrDescribeTopicPartitionsRequest()
		request.ResponsePartitionLimit, request.Cursor = test.limit, test.cursor
		for _, name := range test.topics {
			request.Topics = append(request.Topics, kmsg.DescribeTopicPartitionsRequestTopic{Topic: name})
		}
		response := ask[*kmsg.DescribeTopicPartitionsResponse](t, b, superUser, request)
		got := ""
		for _, topic := range response.Topics {
			var partitions []int32
			for _, p := range topic.Partitions {
				partitions = append(partitions, p.Partition)
			}
			got += fmt.Sprintf(" %s%v", *topic.Topic, partitions)
			if topic.ErrorCode != 0 {
				got += fmt.Sprint(" ", topic.ErrorCode)
			}
		}
		if next := response.NextCursor; next != nil {
			got += fmt.Sprintf(" next %s %d", next.Topic, next.Partition)
		}
		if got != " "+test.want {
			t.Errorf("%s: %q, want %q", test.name, got[1:], test.want)
		}
	}
}

func TestDeleteTopics(t *testing.T) {
	b := open(t, Config{})
	create(t, b, superUser, newTopic("a", 1), newTopic("b", 1), newTopic("c", 1), newTopic("d", 1))
	id := func(name string) [16]byte { return b.topics.named(name).ID }
	unknown := [16]byte{1}
	request := kmsg.NewPtrDeleteTopicsRequest()
	request.Topics = []kmsg.DeleteTopicsRequestTopic{
		{Topic: kmsg.StringPtr("a")}, {TopicID: id("b")}, // valid
		{Topic: kmsg.StringPtr("c")}, {TopicID: id("c")}, // the same topic
		{Topic: kmsg.StringPtr("d"), TopicID: id("d")}, {}, // both name and ID, and neither
		{Topic: kmsg.StringPtr("nope")}, {TopicID: unknown},
	}
	codes := make(map[string]int16)
	for _, topic := range ask[*kmsg.DeleteTopicsResponse](t, b, superUser, request).Topics {
		name := fmt.Sprintf("%x", topic.TopicID[:1])
		if topic.Topic != nil {
			name = *topic.Topic
		}
		codes[name] = topic.ErrorCode
	}
	want := map[string]int16{"a": 0, "b": 0, "c": kerr.InvalidRequest.Code, "d": kerr.InvalidRequest.Code, "00": kerr.InvalidRequest.Code,
		"nope": kerr.UnknownTopicOrPartition.Code, "01": kerr.UnknownTopicID.Code}
	if !maps.Equal(codes, want) {
		t.Errorf("codes = %v, want %v", codes, want)
	}
	if got := names(b); !slices.Equal(got, []string{"c", "d"}) {
		t.Errorf("topics = %q, want c and d", got)
	}
	if got := create(t, b, superUser, newTopic("a", 2))["a"]; got != 0 {
		t.Errorf("create a deleted topic again = %d", got)
	}
}

// TestBrokenACLRequests: as in Apache Kafka, broken requests close the connection or fail as a
// whole.
func TestBrokenACLRequests(t *testing.T) {
	b := open(t, Config{})
	broken := kmsg.NewPtrDescribeACLsRequest() // all zeros
	broken.SetVersion(3)
	conn, err := b.connect(superUser)
	testkit.Must(t, err)
	defer conn.Close()
	if response, err := (requestor{conn}).Request(t.Context(), broken); err == nil {
		t.Errorf("ACLs of resource type 0 = %+v, want an end of the connection", response)
	}
	valid := kmsg.NewCreateACLsRequestCreation()
	valid.ResourceType, valid.ResourcePatternType, valid.ResourceName = kmsg.ACLResourceTypeTopic, kmsg.ACLResourcePatternTypeLiteral, "t"
	valid.Principal, valid.Host, valid.Operation, valid.PermissionType = "User:x", "*", kmsg.ACLOperationRead, kmsg.ACLPermissionTypeAllow
	nameless, untyped, filter, cluster := valid, valid, valid, valid
	nameless.ResourceName, untyped.Principal, filter.Operation, cluster.ResourceType = "", "x", kmsg.ACLOperationAny, kmsg.ACLResourceTypeCluster
	request := kmsg.NewPtrCreateACLsRequest()
	request.Creations = []kmsg.CreateACLsRequestCreation{valid, nameless, untyped, cluster}
	for i, got := range ask[*kmsg.CreateACLsResponse](t, b, superUser, request).Results {
		if want := kerr.InvalidRequest.Code; (got.ErrorCode == want) != (i > 0) {
			t.Errorf("create %+v: %d", request.Creations[i], got.ErrorCode)
		}
	}
	request.Creations = append(request.Creations, filter)
	for _, got := range ask[*kmsg.CreateACLsResponse](t, b, superUser, request).Results {
		if got.ErrorCode != kerr.UnknownServerError.Code {
			t.Errorf("create ACLs and a filter: %+v", got)
		}
	}
}

func TestDescribeACLs(t *testing.T) {
	b := open(t, Config{})
	grant(t, b, kmsg.ACLResourceTypeTopic, "t", kmsg.ACLOperationRead, kmsg.ACLOperationWrite)
	grant(t, b, kmsg.ACLResourceTypeGroup, "g", kmsg.ACLOperationRead)
	request := kmsg.NewPtrDescribeACLsRequest()
	request.ResourceType, request.ResourcePatternType = kmsg.ACLResourceTypeAny, kmsg.ACLResourcePatternTypeAny
	request.Operation, request.PermissionType = kmsg.ACLOperationAny, kmsg.ACLPermissionTypeAny
	got := ask[*kmsg.DescribeACLsResponse](t, b, superUser, request)
	if len(got.Resources) != 2 || got.Resources[0].ResourceName != "t" || len(got.Resources[0].ACLs) != 2 || len(got.Resources[1].ACLs) != 1 {
		t.Errorf("all ACLs: %+v", got.Resources)
	}
	request.ResourcePatternType, request.ResourceName = 77, kmsg.StringPtr("t")
	if got := ask[*kmsg.DescribeACLsResponse](t, b, superUser, request); got.ErrorCode != 0 || len(got.Resources) != 0 {
		t.Errorf("ACLs of a pattern type that nobody knows: %+v, want none", got)
	}
	remove := kmsg.NewPtrDeleteACLsRequest()
	remove.Filters = make([]kmsg.DeleteACLsRequestFilter, 2)
	for i := range remove.Filters {
		f := &remove.Filters[i]
		f.ResourceType, f.ResourcePatternType, f.ResourceName = kmsg.ACLResourceTypeTopic, kmsg.ACLResourcePatternTypeMatch, kmsg.StringPtr("t")
		f.Operation, f.PermissionType = kmsg.ACLOperationAny, kmsg.ACLPermissionTypeAny
	}
	remove.Filters[0].Operation = 99
	results := ask[*kmsg.DeleteACLsResponse](t, b, superUser, remove).Results
	if results[0].ErrorCode != kerr.InvalidRequest.Code || len(results[0].MatchingACLs) != 0 || results[1].ErrorCode != 0 || len(results[1].MatchingACLs) != 2 {
		t.Errorf("delete ACLs: %+v", results)
	}
}

// TestMetadataVersions sends, in each version, what a client of that version sends.
func TestMetadataVersions(t *testing.T) {
	b := open(t, Config{})
	create(t, b, superUser, newTopic("t", 2))
	id := b.topics.named("t").ID
	for version := int16(0); version <= apis()[3].max; version++ {
		all := kmsg.NewPtrMetadataRequest()
		all.Topics = nil
		if got := ask[*kmsg.MetadataResponse](t, b, superUser, all, version); len(got.Topics) != 1 || len(got.Topics[0].Partitions) != 2 || len(got.Brokers) != 1 {
			t.Errorf("version %d, all topics: %+v", version, got)
		}
		none := kmsg.NewPtrMetadataRequest()
		none.Topics = []kmsg.MetadataRequestTopic{}
		if got := ask[*kmsg.MetadataResponse](t, b, superUser, none, version); (len(got.Topics) == 0) != (version > 0) || len(got.Brokers) != 1 {
			t.Errorf("version %d, no topics: %+v", version, got)
		}
		if version < 10 {
			continue
		}
		byID := kmsg.NewPtrMetadataRequest()
		byID.Topics = []kmsg.MetadataRequestTopic{{TopicID: id}, {TopicID: [16]byte{1}}}
		codes := make(map[int16]int)
		for _, topic := range ask[*kmsg.MetadataResponse](t, b, superUser, byID, version).Topics {
			codes[topic.ErrorCode]++
		}
		want := map[int16]int{0: 1, kerr.UnknownTopicID.Code: 1}
		if version < 12 {
			want = map[int16]int{kerr.InvalidRequest.Code: 2}
		}
		if !maps.Equal(codes, want) {
			t.Errorf("version %d, by ID: codes %v, want %v", version, codes, want)
		}
	}
}

func TestDescribeProducers(t *testing.T) {
	b := open(t, Config{})
	client := b.admin(t)
	makeTopic(t, client, "t")
	produce(t, client, "t", "x", "y")
	request := kmsg.NewPtrDescribeProducersRequest()
	request.Topics = []kmsg.DescribeProducersRequestTopic{{Topic: "t", Partitions: []int32{0, 1}}, {Topic: "nope", Partitions: []int32{0}}, {Topic: "a b", Partitions: []int32{0}}}
	got := ask[*kmsg.DescribeProducersResponse](t, b, superUser, request).Topics
	if active := got[0].Partitions[0].ActiveProducers; len(active) != 1 || active[0].LastSequence != 1 || active[0].CoordinatorEpoch != -1 {
		t.Errorf("producers: %+v, want one that has written two records", active)
	}
	for i, want := range []int16{kerr.UnknownTopicOrPartition.Code, kerr.UnknownTopicOrPartition.Code, kerr.InvalidTopicException.Code} {
		p := [...]kmsg.DescribeProducersResponseTopicPartition{got[0].Partitions[1], got[1].Partitions[0], got[2].Partitions[0]}[i]
		if p.ErrorCode != want {
			t.Errorf("partition %d: code %d, want %d", i, p.ErrorCode, want)
		}
	}
}

func TestDescribeCluster(t *testing.T) {
	b := open(t, Config{ClusterID: "test"})
	for endpoint, want := range map[int8]int16{brokerEndpoint: 0, controllerEndpoint: kerr.MismatchedEndpointType.Code, 9: kerr.UnsupportedEndpointType.Code} {
		request := kmsg.NewPtrDescribeClusterRequest()
		request.EndpointType = endpoint
		got := ask[*kmsg.DescribeClusterResponse](t, b, superUser, request)
		if got.ErrorCode != want || (len(got.Brokers) == 1) != (want == 0) || (got.ClusterID == "test") != (want == 0) {
			t.Errorf("endpoint type %d: %+v, want code %d", endpoint, got, want)
		}
	}
}

func TestListConfigResources(t *testing.T) {
	b := open(t, Config{})
	create(t, b, superUser, newTopic("t", 1))
	for _, test := range []struct {
		types []int8
		code  int16
		want  int
	}{{nil, 0, 2}, {[]int8{2}, 0, 1}, {[]int8{4, 4}, 0, 1}, {[]int8{16, 32}, 0, 0}, {[]int8{2, 3}, kerr.UnsupportedVersion.Code, 0}} {
		request := kmsg.NewPtrListConfigResourcesRequest()
		request.ResourceTypes = test.types
		if got := ask[*kmsg.ListConfigResourcesResponse](t, b, superUser, request); got.ErrorCode != test.code || len(got.ConfigResources) != test.want {
			t.Errorf("types %v: %+v, want code %d and %d resources", test.types, got, test.code, test.want)
		}
	}
	if got := ask[*kmsg.ListConfigResourcesResponse](t, b, superUser, kmsg.NewPtrListConfigResourcesRequest(), 0); got.ErrorCode != 0 || len(got.ConfigResources) != 0 {
		t.Errorf("version 0, which is about client metrics: %+v", got)
	}
}

// TestFailedChanges: a change that the journal could not store has no effect, and the client gets
// an error.
func TestFailedChanges(t *testing.T) {
	b := open(t, Config{Dir: t.TempDir()})
	create(t, b, superUser, newTopic("old", 1))
	save := b.topics.save
	b.topics.save = func(...journal.Entry) error { return errors.New("disk") }
	b.acls.save = b.topics.save
	want := kerr.KafkaStorageError.Code
	if got := create(t, b, superUser, newTopic("new", 1))["new"]; got != want {
		t.Errorf("create a topic = %d, want %d", got, want)
	}
	if got := grow(t, b, superUser, "old", 2); got != want {
		t.Errorf("grow a topic = %d, want %d", got, want)
	}
	if got := alter(t, b, superUser, "old", kmsg.IncrementalAlterConfigOpSet, "retention.ms", "5"); got != want {
		t.Errorf("alter a setting = %d, want %d", got, want)
	}
	gone := kmsg.NewPtrDeleteTopicsRequest()
	gone.Topics = []kmsg.DeleteTopicsRequestTopic{{Topic: kmsg.StringPtr("old")}}
	if got := ask[*kmsg.DeleteTopicsResponse](t, b, superUser, gone).Topics[0].ErrorCode; got != want {
		t.Errorf("delete a topic = %d, want %d", got, want)
	}
	remove := kmsg.NewPtrDeleteACLsRequest()
	b.acls.add(acl{pattern{kmsg.ACLResourceTypeTopic, kmsg.ACLResourcePatternTypeLiteral, "t"}, "User:x", "*", kmsg.ACLOperationRead, kmsg.ACLPermissionTypeAllow})
	filter := kmsg.NewDeleteACLsRequestFilter()
	filter.ResourceType, filter.ResourcePatternType, filter.Operation, filter.PermissionType = 1, 1, 1, 1
	remove.Filters = append(remove.Filters, filter)
	if got := ask[*kmsg.DeleteACLsResponse](t, b, superUser, remove).Results[0].ErrorCode; got != want {
		t.Errorf("delete ACLs = %d, want %d", got, want)
	}
	b.topics.save = save
	if old := b.topics.named("old"); !slices.Equal(names(b), []string{"old"}) || old.Partitions != 1 || len(old.Configs) != 0 {
		t.Errorf("topics %q, %+v; want the old one as it was", names(b), old.topicRecord)
	}
	if got := grow(t, b, superUser, "old", 2); got != 0 {
		t.Errorf("grow a topic when the disk works again = %d", got)
	}
}

func TestMalformedConfigChanges(t *testing.T) {
	b := open(t, Config{})
	create(t, b, superUser, newTopic("t", 1))
	set := func(name string, value *string) kmsg.IncrementalAlterConfigsRequestResourceConfig {
		return kmsg.IncrementalAlterConfigsRequestResourceConfig{Name: name, Value: value}
	}
	five := kmsg.StringPtr("5")
	for _, test := range []struct {
		name    string
		kind    kmsg.ConfigResourceType
		of      string
		configs []kmsg.IncrementalAlterConfigsRequestResourceConfig
		code    *kerr.Error
		ada     *kerr.Error // the code for a subject without ACLs
	}{
		{"nothing", kmsg.ConfigResourceTypeTopic, "t", nil, nil, kerr.TopicAuthorizationFailed},
		{"no value", kmsg.ConfigResourceTypeTopic, "t", []kmsg.IncrementalAlterConfigsRequestResourceConfig{set("retention.ms", nil)}, kerr.InvalidRequest, kerr.InvalidRequest},
		{"twice", kmsg.ConfigResourceTypeTopic, "t", []kmsg.IncrementalAlterConfigsRequestResourceConfig{set("retention.ms", five), set("retention.ms", five)}, kerr.InvalidRequest, kerr.InvalidRequest},
		{"no operation", kmsg.ConfigResourceTypeTopic, "t", []kmsg.IncrementalAlterConfigsRequestResourceConfig{{Name: "retention.ms", Op: 9, Value: five}}, kerr.UnknownServerError, kerr.TopicAuthorizationFailed},
		{"no name", kmsg.ConfigResourceTypeTopic, "", nil, kerr.InvalidRequest, kerr.TopicAuthorizationFailed},
		{"no topic's name", kmsg.ConfigResourceTypeTopic, "a b", nil, kerr.InvalidTopicException, kerr.TopicAuthorizationFailed},
		{"nothing of the broker", kmsg.ConfigResourceTypeBroker, "0", nil, nil, kerr.ClusterAuthorizationFailed},
		{"all brokers", kmsg.ConfigResourceTypeBroker, "", []kmsg.IncrementalAlterConfigsRequestResourceConfig{set("log.retention.ms", five)}, kerr.InvalidRequest, kerr.ClusterAuthorizationFailed},
		{"another broker", kmsg.ConfigResourceTypeBroker, "1", nil, kerr.InvalidRequest, kerr.InvalidRequest},
		{"no broker's name", kmsg.ConfigResourceTypeBroker, "x", nil, kerr.InvalidRequest, kerr.InvalidRequest},
		{"a logger", kmsg.ConfigResourceTypeBrokerLogger, "0", nil, kerr.InvalidRequest, kerr.ClusterAuthorizationFailed},
		{"a group", kmsg.ConfigResourceTypeGroupConfig, "g", nil, kerr.InvalidRequest, kerr.GroupAuthorizationFailed},
		{"client metrics", kmsg.ConfigResourceTypeClientMetrics, "m", nil, kerr.InvalidRequest, kerr.ClusterAuthorizationFailed},
		{"something else", 3, "x", nil, kerr.InvalidRequest, kerr.InvalidRequest},
	} {
		request := kmsg.NewPtrIncrementalAlterConfigsRequest()
		request.Resources = []kmsg.IncrementalAlterConfigsRequestResource{{ResourceType: test.kind, ResourceName: test.of, Configs: test.configs}}
		for who, want := range map[caller]*kerr.Error{superUser: test.code, asAda: test.ada} {
			code := int16(0)
			if want != nil {
				code = want.Code
			}
			if got := ask[*kmsg.IncrementalAlterConfigsResponse](t, b, who, request).Resources[0].ErrorCode; got != code {
				t.Errorf("%s, %s: %d, want %d", test.name, who.principal, got, code)
			}
		}
		request.Resources = append(request.Resources, request.Resources[0])
		for _, got := range ask[*kmsg.IncrementalAlterConfigsResponse](t, b, superUser, request).Resources {
			if got.ErrorCode != kerr.InvalidRequest.Code {
				t.Errorf("%s, twice: %d, want %d", test.name, got.ErrorCode, kerr.InvalidRequest.Code)
			}
		}
	}
}
