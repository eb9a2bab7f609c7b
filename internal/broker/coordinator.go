package broker

import (
	"slices"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/groups"
)

// Requests about consumer groups. This file authorizes them; package groups carries them out.

// groupTopics gives package groups access to the topics.
type groupTopics struct{ topics *topics }

func (g groupTopics) ByName(name string) (id [16]byte, partitions int32, ok bool) {
	t := g.topics.named(name)
	if t == nil {
		return id, 0, false
	}
	return t.ID, t.Partitions, true
}

func (g groupTopics) ByID(id [16]byte) (name string, ok bool) {
	t := g.topics.withID(id)
	if t == nil {
		return "", false
	}
	return t.Name, true
}

func (g groupTopics) Names() []string {
	all := g.topics.all()
	names := make([]string, len(all))
	for i, t := range all {
		names[i] = t.Name
	}
	return names
}

// groupCaller returns the caller in the form that package groups needs.
func (b *Broker) groupCaller(r *request) groups.Caller {
	may := func(op kmsg.ACLOperation) func(string) bool {
		who := r.caller
		return func(topic string) bool { return b.acls.allow(who, op, kmsg.ACLResourceTypeTopic, topic) }
	}
	return groups.Caller{
		ClientID:    r.clientID,
		Host:        "127.0.0.1",
		Principal:   r.caller.principal,
		MayDescribe: may(kmsg.ACLOperationDescribe),
		MayRead:     may(kmsg.ACLOperationRead),
	}
}

func (b *Broker) mayGroup(r *request, op kmsg.ACLOperation, group string) bool {
	return b.acls.allow(r.caller, op, kmsg.ACLResourceTypeGroup, group)
}

func (b *Broker) joinGroup(r *request, req *kmsg.JoinGroupRequest) (*kmsg.JoinGroupResponse, error) {
	if !b.mayGroup(r, kmsg.ACLOperationRead, req.Group) {
		response := req.ResponseKind().(*kmsg.JoinGroupResponse)
		response.ErrorCode, response.Generation = kerr.GroupAuthorizationFailed.Code, -1
		return response, nil
	}
	return b.groups.JoinGroup(r.ctx, b.groupCaller(r), req), nil
}

func (b *Broker) syncGroup(r *request, req *kmsg.SyncGroupRequest) (*kmsg.SyncGroupResponse, error) {
	if !b.mayGroup(r, kmsg.ACLOperationRead, req.Group) {
		response := req.ResponseKind().(*kmsg.SyncGroupResponse)
		response.ErrorCode = kerr.GroupAuthorizationFailed.Code
		return response, nil
	}
	return b.groups.SyncGroup(r.ctx, req), nil
}

func (b *Broker) heartbeat(r *request, req *kmsg.HeartbeatRequest) (*kmsg.HeartbeatResponse, error) {
	if !b.mayGroup(r, kmsg.ACLOperationRead, req.Group) {
		response := req.ResponseKind().(*kmsg.HeartbeatResponse)
		response.ErrorCode = kerr.GroupAuthorizationFailed.Code
		return response, nil
	}
	return b.groups.Heartbeat(req), nil
}

func (b *Broker) leaveGroup(r *request, req *kmsg.LeaveGroupRequest) (*kmsg.LeaveGroupResponse, error) {
	if !b.mayGroup(r, kmsg.ACLOperationRead, req.Group) {
		response := req.ResponseKind().(*kmsg.LeaveGroupResponse)
		response.ErrorCode = kerr.GroupAuthorizationFailed.Code
		return response, nil
	}
	return b.groups.LeaveGroup(req), nil
}

func (b *Broker) consumerGroupHeartbeat(r *request, req *kmsg.ConsumerGroupHeartbeatRequest) (*kmsg.ConsumerGroupHeartbeatResponse, error) {
	if !b.mayGroup(r, kmsg.ACLOperationRead, req.Group) {
		response := req.ResponseKind().(*kmsg.ConsumerGroupHeartbeatResponse)
		response.ErrorCode = kerr.GroupAuthorizationFailed.Code
		return response, nil
	}
	return b.groups.ConsumerGroupHeartbeat(b.groupCaller(r), req), nil
}

// offsetCommit stores the committed offsets of a group. If the disk is nearly full, it stores none
// and returns an error that members retry.
func (b *Broker) offsetCommit(r *request, req *kmsg.OffsetCommitRequest) (*kmsg.OffsetCommitResponse, error) {
	switch {
	case !b.mayGroup(r, kmsg.ACLOperationRead, req.Group):
		return refuseCommit(req, kerr.GroupAuthorizationFailed), nil
	case b.space.low():
		return refuseCommit(req, kerr.CoordinatorNotAvailable), nil
	}
	return b.groups.OffsetCommit(b.groupCaller(r), req), nil
}

func refuseCommit(req *kmsg.OffsetCommitRequest, refusal *kerr.Error) *kmsg.OffsetCommitResponse {
	response := req.ResponseKind().(*kmsg.OffsetCommitResponse)
	for _, t := range req.Topics {
		topic := kmsg.NewOffsetCommitResponseTopic()
		topic.Topic, topic.TopicID = t.Topic, t.TopicID
		for _, p := range t.Partitions {
			partition := kmsg.NewOffsetCommitResponseTopicPartition()
			partition.Partition, partition.ErrorCode = p.Partition, refusal.Code
			topic.Partitions = append(topic.Partitions, partition)
		}
		response.Topics = append(response.Topics, topic)
	}
	return response
}

// offsetFetch returns the committed offsets of one group or, since version 8, of several.
func (b *Broker) offsetFetch(r *request, req *kmsg.OffsetFetchRequest) (*kmsg.OffsetFetchResponse, error) {
	response := req.ResponseKind().(*kmsg.OffsetFetchResponse)
	if req.Version < 8 {
		if !b.mayGroup(r, kmsg.ACLOperationDescribe, req.Group) {
			return refuseOffsets(req, kerr.GroupAuthorizationFailed), nil
		}
		return b.groups.OffsetFetch(b.groupCaller(r), req), nil
	}
	for _, group := range req.Groups {
		if !b.mayGroup(r, kmsg.ACLOperationDescribe, group.Group) {
			refused := kmsg.NewOffsetFetchResponseGroup()
			refused.Group, refused.ErrorCode = group.Group, kerr.GroupAuthorizationFailed.Code
			response.Groups = append(response.Groups, refused)
			continue
		}
		one := *req
		one.Groups = []kmsg.OffsetFetchRequestGroup{group}
		response.Groups = append(response.Groups, b.groups.OffsetFetch(b.groupCaller(r), &one).Groups...)
	}
	return response, nil
}

// refuseOffsets returns an error in place of the committed offsets of one group. Version 1 can only
// report errors for each partition.
func refuseOffsets(req *kmsg.OffsetFetchRequest, refusal *kerr.Error) *kmsg.OffsetFetchResponse {
	response := req.ResponseKind().(*kmsg.OffsetFetchResponse)
	if req.Version >= 2 {
		response.ErrorCode = refusal.Code
		return response
	}
	for _, t := range req.Topics {
		topic := kmsg.NewOffsetFetchResponseTopic()
		topic.Topic = t.Topic
		for _, n := range t.Partitions {
			p := kmsg.NewOffsetFetchResponseTopicPartition()
			p.Partition, p.Offset, p.LeaderEpoch, p.Metadata, p.ErrorCode = n, -1, -1, new(string), refusal.Code
			topic.Partitions = append(topic.Partitions, p)
		}
		response.Topics = append(response.Topics, topic)
	}
	return response
}

func (b *Broker) offsetDelete(r *request, req *kmsg.OffsetDeleteRequest) (*kmsg.OffsetDeleteResponse, error) {
	if !b.mayGroup(r, kmsg.ACLOperationDelete, req.Group) {
		response := req.ResponseKind().(*kmsg.OffsetDeleteResponse)
		response.ErrorCode = kerr.GroupAuthorizationFailed.Code
		return response, nil
	}
	return b.groups.OffsetDelete(b.groupCaller(r), req), nil
}

// splitAuthorized separates the groups that a request names into those that the caller may do op
// to, and the others.
func (b *Broker) splitAuthorized(r *request, op kmsg.ACLOperation, names []string) (allowed, refused []string) {
	for _, name := range names {
		if b.mayGroup(r, op, name) {
			allowed = append(allowed, name)
		} else {
			refused = append(refused, name)
		}
	}
	return allowed, refused
}

func (b *Broker) describeGroups(r *request, req *kmsg.DescribeGroupsRequest) (*kmsg.DescribeGroupsResponse, error) {
	allowed, refused := b.splitAuthorized(r, kmsg.ACLOperationDescribe, req.Groups)
	response := req.ResponseKind().(*kmsg.DescribeGroupsResponse)
	for _, name := range refused { // refused groups come first, as in Apache Kafka
		g := kmsg.NewDescribeGroupsResponseGroup()
		g.Group, g.ErrorCode = name, kerr.GroupAuthorizationFailed.Code
		response.Groups = append(response.Groups, g)
	}
	one := *req
	one.Groups = allowed
	for _, g := range b.groups.DescribeGroups(&one).Groups {
		if req.IncludeAuthorizedOperations && g.ErrorCode == 0 {
			g.AuthorizedOperations = b.acls.operations(r.caller, kmsg.ACLResourceTypeGroup, g.Group)
		}
		response.Groups = append(response.Groups, g)
	}
	return response, nil
}

// listGroups lists the groups that the caller may describe.
func (b *Broker) listGroups(r *request, req *kmsg.ListGroupsRequest) (*kmsg.ListGroupsResponse, error) {
	response := b.groups.ListGroups(req)
	if b.acls.allow(r.caller, kmsg.ACLOperationDescribe, kmsg.ACLResourceTypeCluster, clusterName) {
		return response, nil
	}
	response.Groups = slices.DeleteFunc(response.Groups, func(g kmsg.ListGroupsResponseGroup) bool {
		return !b.mayGroup(r, kmsg.ACLOperationDescribe, g.Group)
	})
	return response, nil
}

func (b *Broker) deleteGroups(r *request, req *kmsg.DeleteGroupsRequest) (*kmsg.DeleteGroupsResponse, error) {
	allowed, refused := b.splitAuthorized(r, kmsg.ACLOperationDelete, req.Groups)
	one := *req
	one.Groups = allowed
	response := b.groups.DeleteGroups(&one)
	for _, name := range refused {
		g := kmsg.NewDeleteGroupsResponseGroup()
		g.Group, g.ErrorCode = name, kerr.GroupAuthorizationFailed.Code
		response.Groups = append(response.Groups, g)
	}
	return response, nil
}

// consumerGroupDescribe describes consumer groups of the KIP-848 protocol.
func (b *Broker) consumerGroupDescribe(r *request, req *kmsg.ConsumerGroupDescribeRequest) (*kmsg.ConsumerGroupDescribeResponse, error) {
	allowed, refused := b.splitAuthorized(r, kmsg.ACLOperationDescribe, req.Groups)
	one := *req
	one.Groups = allowed
	response := b.groups.ConsumerGroupDescribe(b.groupCaller(r), &one)
	for i := range response.Groups {
		if g := &response.Groups[i]; req.IncludeAuthorizedOperations && g.ErrorCode == 0 {
			g.AuthorizedOperations = b.acls.operations(r.caller, kmsg.ACLResourceTypeGroup, g.Group)
		}
	}
	for _, name := range refused {
		g := kmsg.NewConsumerGroupDescribeResponseGroup()
		g.Group, g.ErrorCode = name, kerr.GroupAuthorizationFailed.Code
		response.Groups = append(response.Groups, g)
	}
	return response, nil
}

// findCoordinator returns this broker as the coordinator of every group. There is no coordinator
// for transactions and share groups.
func (b *Broker) findCoordinator(r *request, req *kmsg.FindCoordinatorRequest) (*kmsg.FindCoordinatorResponse, error) {
	response := req.ResponseKind().(*kmsg.FindCoordinatorResponse)
	if req.Version < 4 {
		found := b.coordinatorOf(r, req.CoordinatorType, req.CoordinatorKey)
		response.ErrorCode, response.ErrorMessage = found.ErrorCode, found.ErrorMessage
		response.NodeID, response.Host, response.Port = found.NodeID, found.Host, found.Port
		return response, nil
	}
	for _, key := range req.CoordinatorKeys {
		response.Coordinators = append(response.Coordinators, b.coordinatorOf(r, req.CoordinatorType, key))
	}
	return response, nil
}

// The coordinator types of FindCoordinator.
const (
	groupCoordinator       = 0
	transactionCoordinator = 1
	shareCoordinator       = 2 // since version 6

	firstWithShare = 6
)

func (b *Broker) coordinatorOf(r *request, kind int8, key string) kmsg.FindCoordinatorResponseCoordinator {
	found := kmsg.NewFindCoordinatorResponseCoordinator()
	found.Key, found.NodeID, found.Port = key, -1, -1
	switch {
	case kind == transactionCoordinator:
		found.ErrorCode = kerr.TransactionalIDAuthorizationFailed.Code
	case kind == shareCoordinator && r.GetVersion() >= firstWithShare && b.mayCluster(r, kmsg.ACLOperationClusterAction) != nil:
		found.ErrorCode = kerr.ClusterAuthorizationFailed.Code
	case kind != groupCoordinator:
		found.ErrorCode = kerr.InvalidRequest.Code
	case !b.mayGroup(r, kmsg.ACLOperationDescribe, key):
		found.ErrorCode = kerr.GroupAuthorizationFailed.Code
	default:
		found.NodeID, found.Host, found.Port = nodeID, b.host, b.port
	}
	return found
}
