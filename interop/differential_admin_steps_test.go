//go:build kafka

package interop

import (
	"maps"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kmsg"
	"pgregory.net/rapid"
)

// The steps in this file create, change, describe and delete topics, configs and ACLs.

// topicNames are odd topic names, which are selected by negative numbers. @ stands for the run.
var topicNames = []string{"", ".", "..", "@ b", "@ü", "@-t0/", "@.x", "@_x", "@" + strings.Repeat("n", 249-8), "@" + strings.Repeat("n", 250-8)}

// name returns the name of topic number i or, if i is negative, one of topicNames.
func (w *world) name(i int) string {
	switch {
	case i == offsetsTopic:
		return "__consumer_offsets"
	case i < 0:
		return w.named(topicNames[-i-1])
	}
	return w.topic(i)
}

// offsetsTopic selects the topic in which Kafka stores committed offsets.
const offsetsTopic = -100

func drawName(t *rapid.T) int {
	return often(t, "name", rapid.IntRange(0, 4).Draw(t, "topic"), rapid.IntRange(-len(topicNames), -1).Draw(t, "odd name"), noTopic)
}

// config is a setting. The value nullValue stands for null.
type config struct{ Name, Value string }

const nullValue = "(null)"

func (c config) value() *string {
	if c.Value == nullValue {
		return nil
	}
	return &c.Value
}

// configValues are valid and invalid values of topic configs. Values that Kafka accepts and the
// embedded engine does not are in notOffered. A retention of 0 is missing, because the engines
// delete expired records at different times.
var configValues = map[string][]string{
	"cleanup.policy":                          {"delete", "", "nonsense", "delete,delete", nullValue},
	"compression.gzip.level":                  {"9", "-1", "0", "10"},
	"compression.lz4.level":                   {"17", "0", "18"},
	"compression.type":                        {"producer", "nonsense", nullValue},
	"compression.zstd.level":                  {"22", "23", "-131072", "-131073"},
	"delete.retention.ms":                     {"5", "-1", " 7 ", nullValue},
	"file.delete.delay.ms":                    {"60000", "-1"},
	"flush.messages":                          {"9223372036854775807", "0"},
	"flush.ms":                                {"9223372036854775807", "-1"},
	"follower.replication.throttled.replicas": {"", "*", "0:1", "0:1,1:1", "x", "0"},
	"index.interval.bytes":                    {"4096", "-1"},
	"leader.replication.throttled.replicas":   {"", "*", "0:1", "x"},
	"local.retention.bytes":                   {"-2", "-3"},
	"local.retention.ms":                      {"-2", "-3"},
	"max.compaction.lag.ms":                   {"5", "0", nullValue},
	"max.message.bytes":                       {"2000", "0", "-1", "1048588", "2147483647", "2147483648", nullValue},
	"message.timestamp.after.max.ms":          {"5", "-1"},
	"message.timestamp.before.max.ms":         {"5", "-1"},
	"message.timestamp.type":                  {"LogAppendTime", "logappendtime", "", nullValue},
	"min.cleanable.dirty.ratio":               {"0.1", "1", "0", "1e-5", "1.5", "-1", "x"},
	"min.compaction.lag.ms":                   {"4", "6", "-1"},
	"min.insync.replicas":                     {"1", "0", "2", "-1", nullValue},
	"no.such.config":                          {"1", nullValue},
	"preallocate":                             {"false", "FALSE", "yes"},
	"remote.log.copy.disable":                 {"false", "true", "x"},
	"remote.log.delete.on.disable":            {"false", "true"},
	"remote.storage.enable":                   {"false", "true"},
	"retention.bytes":                         {"1000000", "-1", "-2", "1.5", nullValue},
	"retention.ms":                            {"1000000", "-1", "-2", "x", "", "9223372036854775807", "9223372036854775808", nullValue},
	"segment.bytes":                           {"1048576", "14", "13", "0", "-1", "2147483648", nullValue},
	"segment.index.bytes":                     {"1048576", "3"},
	"segment.jitter.ms":                       {"0", "-1"},
	"segment.ms":                              {"1000000", "0", nullValue},
	"unclean.leader.election.enable":          {"false", "nonsense"},
}

// configNames are the topic configs that are compared.
var configNames = slices.Sorted(maps.Keys(configValues))

func drawConfig(t *rapid.T) config {
	name := rapid.SampledFrom(configNames).Draw(t, "config")
	return config{name, rapid.SampledFrom(configValues[name]).Draw(t, "value")}
}

// createTopicsStep creates topics.
type createTopicsStep struct {
	Version      int16
	ValidateOnly bool
	Topics       []newTopic
}

type newTopic struct {
	Topic      int
	Partitions int32
	Replicas   int16
	Assignment string // "", or partitions with replicas: "0=self 1=self"; also "none", "other", "twice"
	Configs    []config
}

func drawCreateTopics(t *rapid.T) step {
	s := createTopicsStep{Version: version(t, kmsg.NewPtrCreateTopicsRequest()), ValidateOnly: often(t, "validate only", false, true)}
	for range often(t, "topics", 1, 2, 0) {
		n := newTopic{Topic: drawName(t), Partitions: often[int32](t, "partitions", 2, 1, 3, -1, 0, -2, 20_000), Replicas: often[int16](t, "replicas", 1, -1, 0, 2, -2)}
		n.Assignment = often(t, "assignment", "", "0=self", "0=self 1=self", "1=self", "0=other", "0=twice", "0=none", "0=self 0=self")
		if n.Assignment != "" {
			n.Partitions, n.Replicas = often[int32](t, "partitions too", -1, 1), often[int16](t, "replicas too", -1, 1)
		}
		for range pick(t, "configs", 0, 1, 2) {
			n.Configs = append(n.Configs, drawConfig(t))
		}
		s.Topics = append(s.Topics, n)
	}
	return s
}

func (s createTopicsStep) changesMetadata() {}

func (s createTopicsStep) request(w *world) kmsg.Request {
	r := at(w, s.Version, kmsg.NewPtrCreateTopicsRequest())
	r.TimeoutMillis, r.ValidateOnly = 10_000, s.ValidateOnly
	for _, n := range s.Topics {
		topic := kmsg.NewCreateTopicsRequestTopic()
		topic.Topic, topic.NumPartitions, topic.ReplicationFactor = w.name(n.Topic), n.Partitions, n.Replicas
		for part := range strings.FieldsSeq(n.Assignment) {
			number, replicas, _ := strings.Cut(part, "=")
			a := kmsg.NewCreateTopicsRequestTopicReplicaAssignment()
			a.Partition, a.Replicas = int32(number[0]-'0'), w.replicas(replicas)
			topic.ReplicaAssignment = append(topic.ReplicaAssignment, a)
		}
		for _, c := range n.Configs {
			config := kmsg.NewCreateTopicsRequestTopicConfig()
			config.Name, config.Value = c.Name, c.value()
			topic.Configs = append(topic.Configs, config)
		}
		r.Topics = append(r.Topics, topic)
	}
	return r
}

func (w *world) replicas(which string) []int32 {
	switch which {
	case "self":
		return []int32{w.node()}
	case "other":
		return []int32{w.node() + 5}
	case "twice":
		return []int32{w.node(), w.node()}
	}
	return []int32{}
}

func (s createTopicsStep) learn(w *world, request kmsg.Request, response kmsg.Response) {
	sent := request.(*kmsg.CreateTopicsRequest)
	wanted := map[string]int32{}
	for _, topic := range sent.Topics {
		wanted[topic.Topic] = max(topic.NumPartitions, int32(len(topic.ReplicaAssignment)), 1)
	}
	for _, topic := range response.(*kmsg.CreateTopicsResponse).Topics {
		if topic.ErrorCode == 0 && !sent.ValidateOnly {
			w.topicIDs[topic.Topic], w.partitions[topic.Topic] = topic.TopicID, wanted[topic.Topic]
			w.grew()
		}
	}
}

// deleteTopicsStep deletes topics, by name or by ID.
type deleteTopicsStep struct {
	Version int16
	Topics  []int
	ByID    bool
	Both    bool // both name and ID, which is invalid
}

func drawDeleteTopics(t *rapid.T) step {
	s := deleteTopicsStep{Version: version(t, kmsg.NewPtrDeleteTopicsRequest()), ByID: rapid.Bool().Draw(t, "by ID"), Both: often(t, "both", false, true)}
	for range often(t, "topics", 1, 2) {
		s.Topics = append(s.Topics, often(t, "topic", rapid.IntRange(0, 4).Draw(t, "one"), noTopic, -1, -4))
	}
	return s
}

func (s deleteTopicsStep) changesMetadata() {}

func (s deleteTopicsStep) request(w *world) kmsg.Request {
	r := at(w, s.Version, kmsg.NewPtrDeleteTopicsRequest())
	r.TimeoutMillis = 10_000
	for _, i := range s.Topics {
		name := w.name(i)
		r.TopicNames = append(r.TopicNames, name)
		topic := kmsg.NewDeleteTopicsRequestTopic()
		if s.ByID || s.Both {
			topic.TopicID = w.topicID(name)
		}
		if !s.ByID || s.Both {
			topic.Topic = &name
		}
		r.Topics = append(r.Topics, topic)
	}
	return r
}

// createPartitionsStep adds partitions. It does not request very many: Apache Kafka 4.3 answers
// such a request with an error, but creates the first 10,000 partitions, which takes minutes.
type createPartitionsStep struct {
	Version      int16
	ValidateOnly bool
	Topic        int
	Count        int32
	Assignment   string // "", or the replicas of the new partitions: "self self"
}

func drawCreatePartitions(t *rapid.T) step {
	return createPartitionsStep{version(t, kmsg.NewPtrCreatePartitionsRequest()), often(t, "validate only", false, true),
		drawName(t), pick[int32](t, "count", 3, 4, 1, 2, 0, -1), often(t, "assignment", "", "self", "self self", "other", "none", "twice")}
}

func (s createPartitionsStep) changesMetadata() {}

func (s createPartitionsStep) request(w *world) kmsg.Request {
	r := at(w, s.Version, kmsg.NewPtrCreatePartitionsRequest())
	r.TimeoutMillis, r.ValidateOnly = 10_000, s.ValidateOnly
	topic := kmsg.NewCreatePartitionsRequestTopic()
	topic.Topic, topic.Count = w.name(s.Topic), s.Count
	for part := range strings.FieldsSeq(s.Assignment) {
		a := kmsg.NewCreatePartitionsRequestTopicAssignment()
		a.Replicas = w.replicas(part)
		topic.Assignment = append(topic.Assignment, a)
	}
	r.Topics = append(r.Topics, topic)
	return r
}

func (s createPartitionsStep) learn(w *world, request kmsg.Request, response kmsg.Response) {
	for _, topic := range response.(*kmsg.CreatePartitionsResponse).Topics {
		if topic.ErrorCode == 0 && !s.ValidateOnly {
			w.partitions[topic.Topic] = s.Count
			w.grew()
		}
	}
}

// describeConfigsStep reads configs.
type describeConfigsStep struct {
	Version  int16
	Topic    int
	Type     int8
	Names    []string
	Synonyms bool
}

func drawDescribeConfigs(t *rapid.T) step {
	s := describeConfigsStep{Version: version(t, kmsg.NewPtrDescribeConfigsRequest()), Topic: drawName(t), Type: often[int8](t, "type", 2, 0, 99), Synonyms: rapid.Bool().Draw(t, "synonyms")}
	for range pick(t, "names", 1, 2, 8, 0) {
		s.Names = append(s.Names, rapid.SampledFrom(configNames).Draw(t, "config"))
	}
	return s
}

func (s describeConfigsStep) request(w *world) kmsg.Request {
	r := at(w, s.Version, kmsg.NewPtrDescribeConfigsRequest())
	r.IncludeSynonyms = s.Synonyms
	resource := kmsg.NewDescribeConfigsRequestResource()
	resource.ResourceType, resource.ResourceName, resource.ConfigNames = kmsg.ConfigResourceType(s.Type), w.name(s.Topic), s.Names
	r.Resources = append(r.Resources, resource)
	return r
}

// alterConfigsStep changes individual configs.
type alterConfigsStep struct {
	Version      int16
	ValidateOnly bool
	Topic        int
	Changes      []configChange
}

type configChange struct {
	config
	Op int8
}

func drawAlterConfigs(t *rapid.T) step {
	s := alterConfigsStep{Version: version(t, kmsg.NewPtrIncrementalAlterConfigsRequest()), ValidateOnly: often(t, "validate only", false, true), Topic: drawName(t)}
	for range often(t, "changes", 1, 2, 0) {
		s.Changes = append(s.Changes, configChange{drawConfig(t), often[int8](t, "op", 0, 1, 2, 3)})
	}
	if rapid.IntRange(0, 9).Draw(t, "unknown op") == 0 { // only one, because Kafka checks several in the order of a hash table
		s.Changes = []configChange{{drawConfig(t), 9}}
	}
	return s
}

func (s alterConfigsStep) changesMetadata() {}

func (s alterConfigsStep) request(w *world) kmsg.Request {
	r := at(w, s.Version, kmsg.NewPtrIncrementalAlterConfigsRequest())
	r.ValidateOnly = s.ValidateOnly
	resource := kmsg.NewIncrementalAlterConfigsRequestResource()
	resource.ResourceType, resource.ResourceName = kmsg.ConfigResourceTypeTopic, w.name(s.Topic)
	for _, c := range s.Changes {
		change := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
		change.Name, change.Op, change.Value = c.Name, kmsg.IncrementalAlterConfigOp(c.Op), c.value()
		if c.Op == 1 {
			change.Value = nil
		}
		resource.Configs = append(resource.Configs, change)
	}
	r.Resources = append(r.Resources, resource)
	return r
}

// replaceConfigsStep replaces all configs of a topic, as AlterConfigs does.
type replaceConfigsStep struct {
	Version      int16
	ValidateOnly bool
	Topic        int
	Configs      []config
}

func drawReplaceConfigs(t *rapid.T) step {
	s := replaceConfigsStep{Version: version(t, kmsg.NewPtrAlterConfigsRequest()), ValidateOnly: often(t, "validate only", false, true), Topic: drawName(t)}
	s.Configs = several(t, pick(t, "configs", 1, 2, 0), drawConfig)
	return s
}

func (s replaceConfigsStep) changesMetadata() {}

func (s replaceConfigsStep) request(w *world) kmsg.Request {
	r := at(w, s.Version, kmsg.NewPtrAlterConfigsRequest())
	r.ValidateOnly = s.ValidateOnly
	resource := kmsg.NewAlterConfigsRequestResource()
	resource.ResourceType, resource.ResourceName = kmsg.ConfigResourceTypeTopic, w.name(s.Topic)
	for _, c := range s.Configs {
		config := kmsg.NewAlterConfigsRequestResourceConfig()
		config.Name, config.Value = c.Name, c.value()
		resource.Configs = append(resource.Configs, config)
	}
	r.Resources = append(r.Resources, resource)
	return r
}

// configResourcesStep lists the resources that have configs.
type configResourcesStep struct {
	Version int16
	Types   []int8
}

func drawConfigResources(t *rapid.T) step {
	s := configResourcesStep{Version: version(t, kmsg.NewPtrListConfigResourcesRequest())}
	for range pick(t, "types", 0, 1, 2) {
		s.Types = append(s.Types, pick[int8](t, "type", 2, 4, 16, 32, 0, 99))
	}
	return s
}

func (s configResourcesStep) request(w *world) kmsg.Request {
	r := at(w, s.Version, kmsg.NewPtrListConfigResourcesRequest())
	r.ResourceTypes = s.Types
	return r
}

// reassignmentsStep lists the partitions that are being moved. There are none.
type reassignmentsStep struct{ Topics []int }

func drawReassignments(t *rapid.T) step {
	s := reassignmentsStep{}
	s.Topics = several(t, pick(t, "topics", 0, 1, 2), drawName)
	return s
}

func (s reassignmentsStep) request(w *world) kmsg.Request {
	r := at(w, 0, kmsg.NewPtrListPartitionReassignmentsRequest())
	r.TimeoutMillis = 5000
	for _, i := range s.Topics {
		topic := kmsg.NewListPartitionReassignmentsRequestTopic()
		topic.Topic, topic.Partitions = w.name(i), []int32{0, 1}
		r.Topics = append(r.Topics, topic)
	}
	return r
}

// apiVersionsStep requests the supported API versions. TestDifferentialVersions compares the list.
type apiVersionsStep struct {
	Version        int16
	Name, Software string
}

func drawAPIVersions(t *rapid.T) step {
	return apiVersionsStep{version(t, kmsg.NewPtrApiVersionsRequest()), often(t, "name", "differential", "", "-", "a b"), often(t, "software", "1.0", "", "1 0")}
}

func (s apiVersionsStep) request(w *world) kmsg.Request {
	r := at(w, s.Version, kmsg.NewPtrApiVersionsRequest())
	r.ClientSoftwareName, r.ClientSoftwareVersion = s.Name, s.Software
	return r
}

// metadataStep requests topics: by name, by ID, all, or none.
type metadataStep struct {
	Version int16
	Which   string // all, none, names, IDs
	Topics  []int
	Ops     bool
}

func drawMetadata(t *rapid.T) step {
	s := metadataStep{Version: version(t, kmsg.NewPtrMetadataRequest()), Which: pick(t, "which", "names", "IDs", "none", "all"), Ops: rapid.Bool().Draw(t, "operations")}
	s.Topics = several(t, pick(t, "topics", 1, 2, 3), drawName)
	return s
}

func (s metadataStep) request(w *world) kmsg.Request {
	r := at(w, s.Version, kmsg.NewPtrMetadataRequest())
	r.IncludeTopicAuthorizedOperations, r.IncludeClusterAuthorizedOperations = s.Ops, s.Ops
	switch {
	case s.Which == "all":
		if r.Version == 0 {
			r.Topics = []kmsg.MetadataRequestTopic{} // means all topics in this version
		}
		return r
	case s.Which == "none":
		if r.Version == 0 {
			return nil
		}
		r.Topics = []kmsg.MetadataRequestTopic{}
		return r
	}
	for _, i := range s.Topics {
		topic := kmsg.NewMetadataRequestTopic()
		name := w.name(i)
		topic.Topic = &name
		if s.Which == "IDs" && r.Version >= 12 {
			topic.Topic, topic.TopicID = nil, w.topicID(name)
		}
		r.Topics = append(r.Topics, topic)
	}
	return r
}

// topicPartitionsStep describes topics in pages.
type topicPartitionsStep struct {
	Topics []int
	Limit  int32
	Cursor int // the topic to start at, or noCursor
	From   int32
}

const noCursor = 100

func drawTopicPartitions(t *rapid.T) step {
	s := topicPartitionsStep{Limit: often[int32](t, "limit", 2000, 1, 2, 0, -1), Cursor: often(t, "cursor", noCursor, 0, 1, 2, noTopic), From: pick[int32](t, "from", 0, 1, 5)}
	s.Topics = several(t, pick(t, "topics", 1, 2, 3), drawName)
	return s
}

func (s topicPartitionsStep) request(w *world) kmsg.Request {
	r := at(w, 0, kmsg.NewPtrDescribeTopicPartitionsRequest())
	r.ResponsePartitionLimit = s.Limit
	for _, i := range s.Topics {
		topic := kmsg.NewDescribeTopicPartitionsRequestTopic()
		topic.Topic = w.name(i)
		r.Topics = append(r.Topics, topic)
	}
	if s.Cursor != noCursor {
		cursor := kmsg.NewDescribeTopicPartitionsRequestCursor()
		cursor.Topic, cursor.Partition = w.name(s.Cursor), s.From
		r.Cursor = &cursor
	}
	return r
}

// clusterStep describes the cluster.
type clusterStep struct {
	Version  int16
	Ops      bool
	Endpoint int8
}

func drawCluster(t *rapid.T) step {
	return clusterStep{version(t, kmsg.NewPtrDescribeClusterRequest()), rapid.Bool().Draw(t, "operations"), often[int8](t, "endpoint", 1, 2, 0)}
}

func (s clusterStep) request(w *world) kmsg.Request {
	r := at(w, s.Version, kmsg.NewPtrDescribeClusterRequest())
	r.IncludeClusterAuthorizedOperations, r.EndpointType = s.Ops, s.Endpoint
	return r
}

// coordinatorStep finds a coordinator.
type coordinatorStep struct {
	Version int16
	Type    int8
	Groups  []int // -1 for the empty name
}

func drawCoordinator(t *rapid.T) step {
	s := coordinatorStep{version(t, kmsg.NewPtrFindCoordinatorRequest()), often[int8](t, "type", 0, 2, 5), nil}
	for range pick(t, "groups", 1, 2) {
		s.Groups = append(s.Groups, often(t, "group", 0, 1, -1))
	}
	return s
}

func (s coordinatorStep) request(w *world) kmsg.Request {
	r := at(w, s.Version, kmsg.NewPtrFindCoordinatorRequest())
	r.CoordinatorType = s.Type
	for _, i := range s.Groups {
		name := ""
		if i >= 0 {
			name = w.group(i)
		}
		r.CoordinatorKey = name
		r.CoordinatorKeys = append(r.CoordinatorKeys, name)
	}
	return r
}

// acl is an ACL or a filter for ACLs. Its names contain the run, so that runs are independent.
type acl struct {
	Resource   int8
	Name       string // @ stands for the run; in filters, "(null)" stands for any name
	Pattern    int8
	Principal  string
	Host       string
	Operation  int8
	Permission int8
}

func drawACL(t *rapid.T, filter bool) acl {
	null := func(label, first string, others ...string) string {
		if filter {
			others = append(others, nullValue)
		}
		return often(t, label, first, others...)
	}
	a := acl{
		Resource:   often[int8](t, "resource", 2, 3, 4, 5, 0, 99),
		Name:       null("resource name", "@-t0", "@-t1", "@-", "@", ""),
		Pattern:    often[int8](t, "pattern", 3, 4, 0, 77),
		Principal:  null("principal", "User:@", "User:@2", "User:*", "@", ""),
		Host:       null("host", "*", "127.0.0.1", ""),
		Operation:  often[int8](t, "operation", 3, 4, 8, 2, 7, 0, 99),
		Permission: often[int8](t, "permission", 3, 2, 0, 99),
	}
	if filter {
		a.Resource, a.Pattern = often(t, "any resource", a.Resource, 1), often(t, "any pattern", a.Pattern, 1, 2)
		a.Operation, a.Permission = often(t, "any operation", a.Operation, 1), often(t, "any permission", a.Permission, 1)
	}
	return a
}

func (a acl) name(w *world) *string { return w.orNull(a.Name) }

func (w *world) orNull(text string) *string {
	if text == nullValue {
		return nil
	}
	return pointer(w.named(text))
}

// createACLsStep creates ACLs.
type createACLsStep struct {
	Version int16
	ACLs    []acl
}

func drawCreateACLs(t *rapid.T) step {
	s := createACLsStep{Version: version(t, kmsg.NewPtrCreateACLsRequest())}
	for range pick(t, "ACLs", 1, 2) {
		s.ACLs = append(s.ACLs, drawACL(t, false))
	}
	return s
}

func (s createACLsStep) changesMetadata() {}

func (s createACLsStep) request(w *world) kmsg.Request {
	r := at(w, s.Version, kmsg.NewPtrCreateACLsRequest())
	w.hasACLs = true
	for _, a := range s.ACLs {
		c := kmsg.NewCreateACLsRequestCreation()
		c.ResourceType, c.ResourceName, c.ResourcePatternType = kmsg.ACLResourceType(a.Resource), *w.orNull(a.Name), kmsg.ACLResourcePatternType(a.Pattern)
		c.Principal, c.Host = *w.orNull(a.Principal), a.Host
		c.Operation, c.PermissionType = kmsg.ACLOperation(a.Operation), kmsg.ACLPermissionType(a.Permission)
		r.Creations = append(r.Creations, c)
	}
	return r
}

// describeACLsStep lists ACLs.
type describeACLsStep struct {
	Version int16
	Filter  acl
}

func drawDescribeACLs(t *rapid.T) step {
	return describeACLsStep{version(t, kmsg.NewPtrDescribeACLsRequest()), drawACL(t, true)}
}

func (s describeACLsStep) request(w *world) kmsg.Request {
	r := at(w, s.Version, kmsg.NewPtrDescribeACLsRequest())
	a := s.Filter
	r.ResourceType, r.ResourceName, r.ResourcePatternType = kmsg.ACLResourceType(a.Resource), a.name(w), kmsg.ACLResourcePatternType(a.Pattern)
	r.Principal, r.Host = w.orNull(a.Principal), w.orNull(a.Host)
	r.Operation, r.PermissionType = kmsg.ACLOperation(a.Operation), kmsg.ACLPermissionType(a.Permission)
	return r
}

// deleteACLsStep deletes ACLs. The filter always contains the run, in the resource name or in the
// principal.
type deleteACLsStep struct {
	Version int16
	Filters []acl
}

func drawDeleteACLs(t *rapid.T) step {
	s := deleteACLsStep{Version: version(t, kmsg.NewPtrDeleteACLsRequest())}
	for range pick(t, "filters", 1, 2) {
		a := drawACL(t, true)
		if a.Name == nullValue || a.Name == "" {
			a.Name = "@-t0"
		}
		s.Filters = append(s.Filters, a)
	}
	return s
}

func (s deleteACLsStep) changesMetadata() {}

func (s deleteACLsStep) request(w *world) kmsg.Request {
	r := at(w, s.Version, kmsg.NewPtrDeleteACLsRequest())
	for _, a := range s.Filters {
		r.Filters = append(r.Filters, a.filter(w))
	}
	return r
}

func (a acl) filter(w *world) kmsg.DeleteACLsRequestFilter {
	f := kmsg.NewDeleteACLsRequestFilter()
	f.ResourceType, f.ResourceName, f.ResourcePatternType = kmsg.ACLResourceType(a.Resource), a.name(w), kmsg.ACLResourcePatternType(a.Pattern)
	f.Principal, f.Host = w.orNull(a.Principal), w.orNull(a.Host)
	f.Operation, f.PermissionType = kmsg.ACLOperation(a.Operation), kmsg.ACLPermissionType(a.Permission)
	return f
}

// drawGrant allows or denies the stranger an operation.
func drawGrant(t *rapid.T) step {
	a := acl{
		Resource:   pick[int8](t, "resource", 2, 2, 2, 3, 3, 4),
		Pattern:    often[int8](t, "pattern", 3, 4),
		Principal:  "User:" + stranger,
		Host:       "*",
		Operation:  pick[int8](t, "operation", 2, 3, 3, 4, 4, 5, 6, 7, 8, 8, 10, 11, 12),
		Permission: often[int8](t, "permission", 3, 2),
	}
	switch a.Resource {
	case 2:
		a.Name = often(t, "topic name", "@-t0", "@-t1", "@-t2", "@-", "*")
	case 3:
		a.Name = often(t, "group name", "@-g0", "@-g1", "@-", "*")
	default:
		a.Name, a.Pattern = "kafka-cluster", 3
	}
	return createACLsStep{Version: 3, ACLs: []acl{a}}
}

// drawRevoke removes all ACLs of the stranger on one resource, or on all resources.
func drawRevoke(t *rapid.T) step {
	return deleteACLsStep{Version: 3, Filters: []acl{{Resource: 1, Name: pick(t, "name", "@-t0", "@-g0", nullValue), Pattern: 1,
		Principal: "User:" + stranger, Host: nullValue, Operation: 1, Permission: 1}}}
}
