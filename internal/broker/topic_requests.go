package broker

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/commitlog"
	"github.com/diaspora-streams/diaspora/internal/disk"
)

const (
	maxPartitions    = 10_000  // of one topic, and of all topics in one CreateTopics
	maxAllPartitions = 100_000 // of all topics together
	maxTopicName     = 249     // bytes
)

// onlyReplica is the replica list of every partition. It must not be modified.
var onlyReplica = []int32{nodeID}

// checkTopicName returns an error if a topic cannot have this name.
func checkTopicName(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return fmt.Errorf("%q is not a valid topic name", name)
	case len(name) > maxTopicName:
		return fmt.Errorf("a topic name has at most %d characters", maxTopicName)
	}
	for _, c := range []byte(name) {
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !letter && c != '.' && c != '_' && c != '-' {
			return fmt.Errorf("topic name %q contains characters other than ASCII letters, digits, '.', '_' and '-'", name)
		}
	}
	return nil
}

// internalTopic reports whether Apache Kafka itself uses a topic of this name, so that clients
// treat it as internal.
func internalTopic(name string) bool {
	return name == "__consumer_offsets" || name == "__transaction_state" || name == "__share_group_state"
}

// metadata describes the broker and topics.
func (b *Broker) metadata(r *request, req *kmsg.MetadataRequest) (*kmsg.MetadataResponse, error) {
	var names []string
	ids := make(map[topicID]bool)
	nameless := false
	for _, t := range req.Topics {
		id := topicID(t.TopicID)
		if req.Version < 12 && (t.Topic == nil || id != topicID{}) {
			return refuseMetadata(req, kerr.InvalidRequest), nil
		}
		nameless = nameless || t.Topic == nil
		if id != (topicID{}) {
			ids[id] = true
		} else if t.Topic != nil {
			names = append(names, *t.Topic)
		}
	}
	response := req.ResponseKind().(*kmsg.MetadataResponse)
	switch {
	case req.Topics == nil || req.Version == 0 && len(req.Topics) == 0:
		for _, t := range b.topics.all() {
			if b.mayTopic(r, kmsg.ACLOperationDescribe, t.Name) {
				response.Topics = append(response.Topics, b.topicMetadata(r, req, t.Name, t))
			}
		}
	case len(ids) > 0: // names are ignored, as in Apache Kafka
		for id := range ids {
			response.Topics = append(response.Topics, b.topicMetadataByID(r, req, id))
		}
	case nameless:
		return refuseMetadata(req, kerr.UnknownServerError), nil // the answer of Apache Kafka
	default:
		for _, name := range sortedDistinct(names) {
			response.Topics = append(response.Topics, b.topicMetadataByName(r, req, name))
		}
	}
	node := kmsg.NewMetadataResponseBroker()
	node.NodeID, node.Host, node.Port = nodeID, b.host, b.port
	response.Brokers = []kmsg.MetadataResponseBroker{node}
	response.ControllerID = nodeID
	response.ClusterID = kmsg.StringPtr(b.cfg.ClusterID)
	if req.IncludeClusterAuthorizedOperations {
		response.AuthorizedOperations = b.clusterOperations(r)
	}
	return response, nil
}

// sortedDistinct sorts names and removes duplicates.
func sortedDistinct(names []string) []string {
	slices.Sort(names)
	return slices.Compact(names)
}

// clusterOperations returns the operations on the cluster that the caller is
// authorized for, or 0 if it may not describe the cluster.
func (b *Broker) clusterOperations(r *request) int32 {
	if !b.acls.allow(r.caller, kmsg.ACLOperationDescribe, kmsg.ACLResourceTypeCluster, clusterName) {
		return 0
	}
	return b.acls.operations(r.caller, kmsg.ACLResourceTypeCluster, clusterName)
}

// refuseMetadata returns an error for each topic of a request, and for the request as a whole in
// versions that have a field for it.
func refuseMetadata(req *kmsg.MetadataRequest, code *kerr.Error) *kmsg.MetadataResponse {
	response := req.ResponseKind().(*kmsg.MetadataResponse)
	if req.Version >= 13 {
		response.ErrorCode = code.Code
	}
	for _, t := range req.Topics {
		refused := kmsg.NewMetadataResponseTopic()
		refused.ErrorCode, refused.Topic, refused.TopicID = code.Code, t.Topic, t.TopicID
		if refused.Topic == nil {
			refused.Topic = kmsg.StringPtr("")
		}
		response.Topics = append(response.Topics, refused)
	}
	return response
}

// topicMetadataByID describes a topic. If the caller may not describe it, the response does not
// contain its name. As in Apache Kafka, neither a topic's ID nor its existence is a secret.
func (b *Broker) topicMetadataByID(r *request, req *kmsg.MetadataRequest, id topicID) kmsg.MetadataResponseTopic {
	t := b.topics.withID(id)
	if t != nil && b.mayTopic(r, kmsg.ACLOperationDescribe, t.Name) {
		return b.topicMetadata(r, req, t.Name, t)
	}
	refused := kmsg.NewMetadataResponseTopic()
	refused.TopicID = id
	refused.ErrorCode = kerr.UnknownTopicID.Code
	if t != nil {
		refused.ErrorCode = kerr.TopicAuthorizationFailed.Code
	}
	return refused
}

func (b *Broker) topicMetadataByName(r *request, req *kmsg.MetadataRequest, name string) kmsg.MetadataResponseTopic {
	if !b.mayTopic(r, kmsg.ACLOperationDescribe, name) {
		refused := kmsg.NewMetadataResponseTopic()
		refused.ErrorCode, refused.Topic = kerr.TopicAuthorizationFailed.Code, &name
		return refused
	}
	return b.topicMetadata(r, req, name, b.topics.named(name))
}

// topicMetadata describes a topic that the caller may describe. If t is nil, the
// topic does not exist.
func (b *Broker) topicMetadata(r *request, req *kmsg.MetadataRequest, name string, t *topic) kmsg.MetadataResponseTopic {
	described := kmsg.NewMetadataResponseTopic()
	described.Topic, described.IsInternal = &name, internalTopic(name)
	if req.IncludeTopicAuthorizedOperations {
		described.AuthorizedOperations = b.acls.operations(r.caller, kmsg.ACLResourceTypeTopic, name)
	}
	if t == nil {
		described.ErrorCode = missingTopicCode(name)
		return described
	}
	described.TopicID = t.ID
	described.Partitions = make([]kmsg.MetadataResponseTopicPartition, t.Partitions)
	for n := range described.Partitions {
		p := kmsg.NewMetadataResponseTopicPartition()
		p.Partition, p.Leader, p.LeaderEpoch = int32(n), nodeID, b.epoch
		p.Replicas, p.ISR = onlyReplica, onlyReplica
		described.Partitions[n] = p
	}
	return described
}

// missingTopicCode returns the error code for a topic that does not exist.
func missingTopicCode(name string) int16 {
	if checkTopicName(name) != nil {
		return kerr.InvalidTopicException.Code
	}
	return kerr.UnknownTopicOrPartition.Code
}

// describeTopicPartitions describes topics in pages of a limited number of
// partitions (KIP-966).
func (b *Broker) describeTopicPartitions(r *request, req *kmsg.DescribeTopicPartitionsRequest) (*kmsg.DescribeTopicPartitionsResponse, error) {
	var names []string
	for _, t := range req.Topics {
		names = append(names, t.Topic)
	}
	everything := len(names) == 0
	if everything {
		for _, t := range b.topics.all() {
			names = append(names, t.Name)
		}
	}
	var from kmsg.DescribeTopicPartitionsRequestCursor
	if req.Cursor != nil {
		from = *req.Cursor
		if from.Partition < 0 || !everything && !slices.Contains(names, from.Topic) {
			return refuseDescription(req, kerr.InvalidRequest), nil
		}
	}
	response := req.ResponseKind().(*kmsg.DescribeTopicPartitionsResponse)
	var refused []kmsg.DescribeTopicPartitionsResponseTopic
	left := max(min(req.ResponsePartitionLimit, maxListedPartitions), 1)
	for _, name := range sortedDistinct(names) {
		switch allowed := b.mayTopic(r, kmsg.ACLOperationDescribe, name); {
		case name < from.Topic:
			continue
		case !allowed && everything:
			continue
		case !allowed:
			hidden := kmsg.NewDescribeTopicPartitionsResponseTopic()
			hidden.ErrorCode, hidden.Topic = kerr.TopicAuthorizationFailed.Code, &name
			refused = append(refused, hidden)
			continue
		case response.NextCursor != nil:
			continue // the page is full, but the remaining refused topics are still listed
		case left == 0:
			response.NextCursor = &kmsg.DescribeTopicPartitionsResponseNextCursor{Topic: name}
			continue
		}
		start := int32(0)
		if name == from.Topic {
			start = from.Partition
		}
		described, next := b.describePartitions(name, start, left)
		described.AuthorizedOperations = b.acls.operations(r.caller, kmsg.ACLResourceTypeTopic, name)
		left -= int32(len(described.Partitions))
		response.Topics = append(response.Topics, described)
		if next >= 0 {
			response.NextCursor = &kmsg.DescribeTopicPartitionsResponseNextCursor{Topic: name, Partition: next}
		}
	}
	response.Topics = append(response.Topics, refused...)
	return response, nil
}

func refuseDescription(req *kmsg.DescribeTopicPartitionsRequest, code *kerr.Error) *kmsg.DescribeTopicPartitionsResponse {
	response := req.ResponseKind().(*kmsg.DescribeTopicPartitionsResponse)
	for _, t := range req.Topics {
		refused := kmsg.NewDescribeTopicPartitionsResponseTopic()
		refused.ErrorCode, refused.Topic = code.Code, &t.Topic
		response.Topics = append(response.Topics, refused)
	}
	return response
}

// describePartitions describes at most limit partitions of a topic, and returns
// the partition to continue with, or -1.
func (b *Broker) describePartitions(name string, start, limit int32) (described kmsg.DescribeTopicPartitionsResponseTopic, next int32) {
	described = kmsg.NewDescribeTopicPartitionsResponseTopic()
	described.Topic, described.IsInternal = &name, internalTopic(name)
	t := b.topics.named(name)
	if t == nil {
		described.ErrorCode = missingTopicCode(name)
		return described, -1
	}
	described.TopicID = t.ID
	n := start
	for ; n < t.Partitions && n-start < limit; n++ {
		p := kmsg.NewDescribeTopicPartitionsResponseTopicPartition()
		p.Partition, p.LeaderID, p.LeaderEpoch = n, nodeID, b.epoch
		p.Replicas, p.ISR = onlyReplica, onlyReplica
		p.EligibleLeaderReplicas, p.LastKnownELR = []int32{}, []int32{}
		described.Partitions = append(described.Partitions, p)
	}
	if n < t.Partitions {
		return described, n
	}
	return described, -1
}

// createTopics creates each topic independently of the others. It checks all topics before it
// creates the first.
func (b *Broker) createTopics(r *request, req *kmsg.CreateTopicsRequest) (*kmsg.CreateTopicsResponse, error) {
	response := req.ResponseKind().(*kmsg.CreateTopicsResponse)
	named := make(map[string]int)
	for _, t := range req.Topics {
		named[t.Topic]++
	}
	mayAll := b.acls.allow(r.caller, kmsg.ACLOperationCreate, kmsg.ACLResourceTypeCluster, clusterName)
	var plans []*topicPlan
	for _, t := range req.Topics {
		plan := &topicPlan{request: t}
		switch {
		case named[t.Topic] == 0:
			continue // already answered
		case named[t.Topic] > 1:
			named[t.Topic] = 0
			plan.refused = refusef(kerr.InvalidRequest, "duplicate topic name")
		case t.Topic == "__cluster_metadata":
			plan.refused = refusef(kerr.InvalidRequest, "the name %q is reserved for Apache Kafka", t.Topic)
		case !mayAll && !b.mayTopic(r, kmsg.ACLOperationCreate, t.Topic):
			plan.refused = refuse(kerr.TopicAuthorizationFailed)
		}
		plans = append(plans, plan)
	}
	if refused := b.planTopics(plans); refused != nil {
		for _, t := range req.Topics {
			response.Topics = append(response.Topics, b.createdTopic(r, &topicPlan{request: t, refused: refused}))
		}
		return response, nil
	}
	created := false
	for _, plan := range plans {
		if plan.refused == nil && !req.ValidateOnly {
			plan.refused = b.createTopic(plan.record)
			created = created || plan.refused == nil
		}
		response.Topics = append(response.Topics, b.createdTopic(r, plan))
	}
	if created {
		b.groups.TopicsChanged()
	}
	return response, nil
}

// topicPlan is a topic that a request asks to create.
type topicPlan struct {
	request kmsg.CreateTopicsRequestTopic
	record  topicRecord
	refused *refusal // why it cannot be created, or nil
}

// planTopics completes or refuses each plan that is not refused yet. If the request is too large,
// it returns a refusal for the whole request.
func (b *Broker) planTopics(plans []*topicPlan) *refusal {
	sum := int64(0) // of partitions in the request
	for _, plan := range plans {
		if plan.refused == nil {
			sum += plan.partitions()
		}
	}
	if sum > maxPartitions {
		return refusef(kerr.PolicyViolation, "a request can create at most %d partitions", maxPartitions)
	}
	sum += b.topics.countPartitions()
	noSpace, similar := b.refuseIfDiskFull(), b.topics.byMetricName()
	for _, plan := range plans {
		if plan.refused == nil {
			plan.check(b.topics, similar)
		}
		if plan.refused != nil {
			continue
		}
		if plan.refused = noSpace; sum > maxAllPartitions {
			plan.refused = refusef(kerr.PolicyViolation, "this broker can have at most %d partitions", maxAllPartitions)
		}
	}
	return nil
}

// partitions returns the requested number of partitions, or 0 if that number is not valid.
func (p *topicPlan) partitions() int64 {
	switch {
	case len(p.request.ReplicaAssignment) > 0:
		return int64(len(p.request.ReplicaAssignment))
	case p.request.NumPartitions == -1:
		return 1
	}
	return int64(max(p.request.NumPartitions, 0))
}

// check completes or refuses the plan. The checks are in the same order as in Apache Kafka.
func (p *topicPlan) check(topics *topics, similar map[string]string) {
	name := p.request.Topic
	configs := make(map[string]string)
	if p.refused = checkNewName(name, topics, similar); p.refused != nil {
		return
	}
	for _, c := range p.request.Configs {
		if c.Value == nil {
			p.refused = refusef(kerr.InvalidConfig, "the setting %q has no value", c.Name)
			return
		}
		configs[c.Name] = *c.Value
	}
	if err := checkConfigs(configs); err != nil {
		p.refused = refusef(kerr.InvalidConfig, "%v", err)
		return
	}
	if p.refused = p.checkReplicas(); p.refused != nil {
		return
	}
	p.record = topicRecord{Name: name, ID: newTopicID(), Partitions: int32(p.partitions()), Configs: configs}
}

// metricName returns a topic's name as it is in the names of Apache Kafka's metrics, which have
// underscores instead of dots. Topics whose names are equal there collide.
func metricName(name string) string { return strings.ReplaceAll(name, ".", "_") }

// byMetricName returns the names of all topics, keyed by their names in metrics.
func (ts *topics) byMetricName() map[string]string {
	ts.mu.RLock()
	defer ts.mu.RUnlock()
	all := make(map[string]string, len(ts.byName))
	for name := range ts.byName {
		all[metricName(name)] = name
	}
	return all
}

// countPartitions counts the partitions of all topics.
func (ts *topics) countPartitions() (n int64) {
	ts.mu.RLock()
	defer ts.mu.RUnlock()
	for _, t := range ts.byName {
		n += int64(t.Partitions)
	}
	return n
}

// checkNewName returns a refusal if a name is in use, is not valid or collides with another name.
func checkNewName(name string, topics *topics, similar map[string]string) *refusal {
	if topics.named(name) != nil {
		return refusef(kerr.TopicAlreadyExists, "topic %q already exists", name)
	}
	if err := checkTopicName(name); err != nil {
		return refusef(kerr.InvalidTopicException, "%v", err)
	}
	if other, ok := similar[metricName(name)]; ok {
		return refusef(kerr.InvalidTopicException, "topic name %q collides with %q: they differ only in . and _", name, other)
	}
	return nil
}

// checkReplicas returns a refusal if the number of partitions, the replication factor or the
// replica assignment is not valid in a cluster of one broker.
func (p *topicPlan) checkReplicas() *refusal {
	t := p.request
	switch {
	case len(t.ReplicaAssignment) > 0 && (t.ReplicationFactor != -1 || t.NumPartitions != -1):
		return refusef(kerr.InvalidRequest, "with a replica assignment, the number of partitions and the replication factor must be -1")
	case len(t.ReplicaAssignment) > 0:
		assigned := make(map[int32]bool)
		for _, a := range t.ReplicaAssignment {
			if assigned[a.Partition] {
				return refusef(kerr.InvalidReplicaAssignment, "partition %d is assigned twice", a.Partition)
			}
			if refused := checkAssignment(a.Replicas); refused != nil {
				return refused
			}
			assigned[a.Partition] = true
		}
		for n := range int32(len(assigned)) {
			if !assigned[n] {
				return refusef(kerr.InvalidReplicaAssignment, "partition %d is not assigned", n)
			}
		}
	case t.ReplicationFactor < -1 || t.ReplicationFactor == 0:
		return refusef(kerr.InvalidReplicationFactor, "the replication factor must be positive or -1")
	case t.NumPartitions < -1 || t.NumPartitions == 0:
		return refusef(kerr.InvalidPartitions, "the number of partitions must be positive or -1")
	case t.ReplicationFactor > 1:
		return refusef(kerr.InvalidReplicationFactor, "the cluster has one broker, so the replication factor must be 1")
	}
	return nil
}

// checkAssignment returns a refusal unless the replicas are this broker alone.
func checkAssignment(replicas []int32) *refusal {
	if slices.Equal(replicas, onlyReplica) {
		return nil
	}
	return refusef(kerr.InvalidReplicaAssignment, "the cluster has one broker, so each partition must be assigned to broker %d only", nodeID)
}

// createTopic creates a topic.
func (b *Broker) createTopic(record topicRecord) *refusal {
	_, err := b.topics.create(record)
	switch {
	case errors.Is(err, errTopicExists):
		return refusef(kerr.TopicAlreadyExists, "topic %q already exists", record.Name)
	case err != nil:
		return b.refuseUnwritten("create a topic", err, "topic", record.Name)
	}
	return nil
}

// createdTopic returns the response for a topic that was created or refused.
func (b *Broker) createdTopic(r *request, plan *topicPlan) kmsg.CreateTopicsResponseTopic {
	created := kmsg.NewCreateTopicsResponseTopic()
	created.Topic = plan.request.Topic
	created.Configs = []kmsg.CreateTopicsResponseTopicConfig{}
	switch {
	case plan.refused != nil:
		created.ErrorCode, created.ErrorMessage = plan.refused.code, plan.refused.reason
		return created
	case !b.mayTopic(r, kmsg.ACLOperationDescribeConfigs, plan.request.Topic):
		created.TopicID, created.ConfigErrorCode = plan.record.ID, kerr.TopicAuthorizationFailed.Code
		return created
	}
	created.TopicID, created.NumPartitions, created.ReplicationFactor = plan.record.ID, plan.record.Partitions, 1
	for _, name := range slices.Sorted(maps.Keys(topicConfigs)) {
		value, own := plan.record.Configs[name]
		c := topicConfigs[name]
		if !own && c.hidden {
			continue
		}
		described := kmsg.NewCreateTopicsResponseTopicConfig()
		described.Name, described.Value, described.Source = name, &c.value, int8(c.source)
		if own {
			described.Value, described.Source = &value, int8(kmsg.ConfigSourceDynamicTopicConfig)
		}
		created.Configs = append(created.Configs, described)
	}
	return created
}

// deleteTopics deletes topics by name or ID, each independently of the others. It also works when
// the disk is nearly full.
func (b *Broker) deleteTopics(r *request, req *kmsg.DeleteTopicsRequest) (*kmsg.DeleteTopicsResponse, error) {
	response := req.ResponseKind().(*kmsg.DeleteTopicsResponse)
	respond := func(name *string, id topicID, refused *refusal) {
		deleted := kmsg.NewDeleteTopicsResponseTopic()
		deleted.Topic, deleted.TopicID = name, id
		refused.set(&deleted.ErrorCode, &deleted.ErrorMessage)
		response.Topics = append(response.Topics, deleted)
	}
	names, ids := make(map[string]int), make(map[topicID]int)
	for _, name := range req.TopicNames {
		names[name]++
	}
	for _, t := range req.Topics {
		switch id := topicID(t.TopicID); {
		case t.Topic == nil && id == topicID{}:
			respond(nil, id, refusef(kerr.InvalidRequest, "the topic has neither a name nor an ID"))
		case t.Topic == nil:
			ids[id]++
		case id == topicID{}:
			names[*t.Topic]++
		default:
			respond(t.Topic, id, refusef(kerr.InvalidRequest, "the topic has both a name and an ID"))
		}
	}
	mayAll := b.acls.allow(r.caller, kmsg.ACLOperationDelete, kmsg.ACLResourceTypeCluster, clusterName)
	may := func(op kmsg.ACLOperation, name string) bool { return mayAll || b.mayTopic(r, op, name) }
	chosen := make(map[topicID]string)
	for id, times := range ids {
		t := b.topics.withID(id)
		switch {
		case times > 1:
			respond(nil, id, refusef(kerr.InvalidRequest, "duplicate topic ID"))
		case t == nil:
			respond(nil, id, refuse(kerr.UnknownTopicID))
		case may(kmsg.ACLOperationDelete, t.Name):
			chosen[id] = t.Name
		case may(kmsg.ACLOperationDescribe, t.Name):
			respond(&t.Name, id, refuse(kerr.TopicAuthorizationFailed))
		default:
			respond(nil, id, refuse(kerr.TopicAuthorizationFailed))
		}
	}
	for name, times := range names {
		t := b.topics.named(name)
		switch {
		case times > 1:
			respond(&name, topicID{}, refusef(kerr.InvalidRequest, "duplicate topic name"))
		case !may(kmsg.ACLOperationDescribe, name):
			respond(&name, topicID{}, refuse(kerr.TopicAuthorizationFailed))
		case t == nil:
			respond(&name, topicID{}, refuse(kerr.UnknownTopicOrPartition))
		case !may(kmsg.ACLOperationDelete, name):
			respond(&name, topicID{}, refuse(kerr.TopicAuthorizationFailed))
		case ids[t.ID] > 0:
			delete(chosen, t.ID)
			respond(&name, t.ID, refusef(kerr.InvalidRequest, "the request also contains the ID of the topic"))
		default:
			chosen[t.ID] = name
		}
	}
	for id, name := range chosen {
		respond(&name, id, b.deleteTopic(id, name))
	}
	return response, nil
}

// deleteTopic deletes a topic. If removing its files fails, the topic is deleted nevertheless, and
// the next start removes the files.
func (b *Broker) deleteTopic(id topicID, name string) *refusal {
	err := b.topics.delete(id)
	switch {
	case errors.Is(err, errTopicUnknown):
		return refuse(kerr.UnknownTopicID)
	case err != nil && b.topics.withID(id) != nil:
		return b.refuseUnwritten("delete a topic", err, "topic", name)
	case err != nil:
		b.logError("remove all files of a deleted topic", err, "topic", name)
	}
	b.groups.TopicDeleted(name, id)
	return nil
}

// createPartitions adds partitions to topics, each independently of the others.
func (b *Broker) createPartitions(r *request, req *kmsg.CreatePartitionsRequest) (*kmsg.CreatePartitionsResponse, error) {
	response := req.ResponseKind().(*kmsg.CreatePartitionsResponse)
	named := make(map[string]int)
	for _, t := range req.Topics {
		named[t.Topic]++
	}
	grown := false
	for _, t := range req.Topics {
		var refused *refusal
		switch {
		case named[t.Topic] == 0:
			continue // already answered
		case named[t.Topic] > 1:
			named[t.Topic] = 0
			refused = refusef(kerr.InvalidRequest, "duplicate topic name")
		case !b.mayTopic(r, kmsg.ACLOperationAlter, t.Topic):
			refused = refuseWithoutMessage(kerr.TopicAuthorizationFailed)
		default:
			refused = b.addPartitions(&t, req.ValidateOnly)
			grown = grown || refused == nil && !req.ValidateOnly
		}
		result := kmsg.NewCreatePartitionsResponseTopic()
		result.Topic = t.Topic
		refused.set(&result.ErrorCode, &result.ErrorMessage)
		response.Topics = append(response.Topics, result)
	}
	if grown {
		b.groups.TopicsChanged()
	}
	return response, nil
}

func (b *Broker) addPartitions(to *kmsg.CreatePartitionsRequestTopic, validateOnly bool) *refusal {
	t := b.topics.named(to.Topic)
	if t == nil {
		return refuseWithoutMessage(kerr.UnknownTopicOrPartition)
	}
	if refused := b.checkAddPartitions(t, to); refused != nil || validateOnly {
		return refused
	}
	if refused := b.refuseIfDiskFull(); refused != nil {
		return refused
	}
	_, err := b.topics.change(t.ID, func(record *topicRecord) error {
		if record.Partitions >= to.Count { // another request has added partitions since
			return refusef(kerr.InvalidPartitions, "the topic has %d partitions", record.Partitions)
		}
		record.Partitions = to.Count
		return nil
	})
	if errors.Is(err, errTopicUnknown) {
		return refuseWithoutMessage(kerr.UnknownTopicOrPartition)
	}
	return b.changeRefusal("create partitions", err, "topic", to.Topic)
}

func (b *Broker) checkAddPartitions(t *topic, to *kmsg.CreatePartitionsRequestTopic) *refusal {
	more := to.Count - t.Partitions
	switch {
	case to.Count <= t.Partitions:
		return refusef(kerr.InvalidPartitions, "the topic has %d partitions; the new number %d must be larger", t.Partitions, to.Count)
	case to.Assignment != nil && len(to.Assignment) != int(more):
		return refusef(kerr.InvalidReplicaAssignment, "%d partitions would be added, but %d are assigned", more, len(to.Assignment))
	case to.Count > maxPartitions:
		return refusef(kerr.PolicyViolation, "a topic can have at most %d partitions", maxPartitions)
	}
	for _, a := range to.Assignment {
		if refused := checkAssignment(a.Replicas); refused != nil {
			return refused
		}
	}
	if b.topics.countPartitions()+int64(more) > maxAllPartitions {
		return refusef(kerr.PolicyViolation, "this broker can have at most %d partitions", maxAllPartitions)
	}
	return nil
}

// Types of endpoints in DescribeCluster (KIP-919).
const (
	brokerEndpoint     = 1
	controllerEndpoint = 2
)

// describeCluster describes the cluster and its only broker.
func (b *Broker) describeCluster(r *request, req *kmsg.DescribeClusterRequest) (*kmsg.DescribeClusterResponse, error) {
	response := req.ResponseKind().(*kmsg.DescribeClusterResponse)
	if kind := req.EndpointType; kind != brokerEndpoint {
		code := kerr.UnsupportedEndpointType
		if kind == controllerEndpoint {
			code = kerr.MismatchedEndpointType
		}
		response.ErrorCode = code.Code
		response.ErrorMessage = kmsg.StringPtr("this endpoint is a broker")
		return response, nil
	}
	node := kmsg.NewDescribeClusterResponseBroker()
	node.NodeID, node.Host, node.Port = nodeID, b.host, b.port
	response.Brokers = []kmsg.DescribeClusterResponseBroker{node}
	response.ClusterID, response.ControllerID = b.cfg.ClusterID, nodeID
	if req.IncludeClusterAuthorizedOperations {
		response.ClusterAuthorizedOperations = b.clusterOperations(r)
	}
	return response, nil
}

// describeLogDirs returns the sizes of partitions on disk.
func (b *Broker) describeLogDirs(r *request, req *kmsg.DescribeLogDirsRequest) (*kmsg.DescribeLogDirsResponse, error) {
	response := req.ResponseKind().(*kmsg.DescribeLogDirsResponse)
	if refused := b.mayCluster(r, kmsg.ACLOperationDescribe); refused != nil {
		response.ErrorCode = refused.code
		return response, nil
	}
	dir := kmsg.NewDescribeLogDirsResponseDir()
	dir.Dir = b.logDir()
	if b.cfg.Dir != "" {
		if free, total, err := disk.Space(b.cfg.Dir); err == nil {
			dir.UsableBytes, dir.TotalBytes = free, total
		}
	}
	wanted := make(map[topicPartition]bool)
	for _, t := range req.Topics {
		for _, n := range t.Partitions {
			wanted[topicPartition{t.Topic, n}] = true
		}
	}
	for _, t := range b.topics.all() {
		described := kmsg.NewDescribeLogDirsResponseDirTopic()
		described.Topic = t.Name
		for n, log := range t.partitions {
			if req.Topics != nil && !wanted[topicPartition{t.Name, int32(n)}] {
				continue
			}
			p := kmsg.NewDescribeLogDirsResponseDirTopicPartition()
			p.Partition, p.Size = int32(n), log.Bytes()
			described.Partitions = append(described.Partitions, p)
		}
		if len(described.Partitions) > 0 {
			dir.Topics = append(dir.Topics, described)
		}
	}
	response.Dirs = []kmsg.DescribeLogDirsResponseDir{dir}
	return response, nil
}

// describeProducers describes the idempotent producers of partitions.
func (b *Broker) describeProducers(r *request, req *kmsg.DescribeProducersRequest) (*kmsg.DescribeProducersResponse, error) {
	response := req.ResponseKind().(*kmsg.DescribeProducersResponse)
	left := maxListedProducers
	for _, t := range req.Topics {
		known, refused := b.producersTopic(r, t.Topic)
		described := kmsg.NewDescribeProducersResponseTopic()
		described.Topic = t.Topic
		for _, n := range t.Partitions {
			p := kmsg.NewDescribeProducersResponseTopicPartition()
			p.Partition = n
			log, ok := known.partition(n)
			switch {
			case refused != nil:
				p.ErrorCode, p.ErrorMessage = refused.code, refused.reason
			case !ok:
				p.ErrorCode = kerr.UnknownTopicOrPartition.Code
			case left <= 0:
				p.ErrorCode = kerr.PolicyViolation.Code
				p.ErrorMessage = kmsg.StringPtr("too many producers for one response; request fewer partitions")
			default:
				p.ActiveProducers = activeProducers(log)
				left -= len(p.ActiveProducers)
			}
			described.Partitions = append(described.Partitions, p)
		}
		response.Topics = append(response.Topics, described)
	}
	return response, nil
}

// producersTopic returns the topic of this name if the caller may read it.
func (b *Broker) producersTopic(r *request, name string) (*topic, *refusal) {
	if err := checkTopicName(name); err != nil {
		return nil, refusef(kerr.InvalidTopicException, "%v", err)
	}
	if !b.mayTopic(r, kmsg.ACLOperationRead, name) {
		return nil, refuse(kerr.TopicAuthorizationFailed)
	}
	t := b.topics.named(name)
	if t == nil {
		return nil, refuse(kerr.UnknownTopicOrPartition)
	}
	return t, nil
}

func activeProducers(log *commitlog.Log) (all []kmsg.DescribeProducersResponseTopicPartitionActiveProducer) {
	for _, p := range log.Producers() {
		active := kmsg.NewDescribeProducersResponseTopicPartitionActiveProducer()
		active.ProducerID, active.ProducerEpoch = p.ID, int32(p.Epoch)
		active.LastSequence, active.LastTimestamp = p.LastSequence, p.LastTimestamp
		active.CoordinatorEpoch, active.CurrentTxnStartOffset = -1, -1 // no transactions
		all = append(all, active)
	}
	return all
}

// listPartitionReassignments returns an empty list: partitions cannot move.
func (b *Broker) listPartitionReassignments(r *request, req *kmsg.ListPartitionReassignmentsRequest) (*kmsg.ListPartitionReassignmentsResponse, error) {
	response := req.ResponseKind().(*kmsg.ListPartitionReassignmentsResponse)
	if refused := b.mayCluster(r, kmsg.ACLOperationDescribe); refused != nil {
		response.ErrorCode, response.ErrorMessage = refused.code, refused.reason
		response.Topics = unknownReassignments(req) // as in Apache Kafka
	}
	return response, nil
}

// unknownReassignments returns the partitions of a request, without any information about them.
func unknownReassignments(req *kmsg.ListPartitionReassignmentsRequest) (all []kmsg.ListPartitionReassignmentsResponseTopic) {
	for _, t := range req.Topics {
		topic := kmsg.NewListPartitionReassignmentsResponseTopic()
		topic.Topic = t.Topic
		for _, n := range t.Partitions {
			p := kmsg.NewListPartitionReassignmentsResponseTopicPartition()
			p.Partition = n
			topic.Partitions = append(topic.Partitions, p)
		}
		all = append(all, topic)
	}
	return all
}
