package kafka

import (
	"context"
	"errors"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// The prefixes of the IDs of consumer groups at the broker. The gateway adds them, so that each
// subject has groups of its own: the group "analysis" of the subject S is "user.S.analysis" at the
// broker.
const (
	// UserGroups is the prefix for callers that may read. An ACL lets every principal use all
	// groups with this prefix. That is safe because the gateway lets no client name a group of
	// another subject.
	UserGroups = "user."
	// DeniedGroups is the prefix for access keys that may not read. No principal may use a group
	// with it.
	DeniedGroups = "denied."
)

// NoGeneration is the generation of a member that is not in its consumer group.
const NoGeneration = -1

// CheckGroup fails if the caller may not use the consumer group. A group that does not exist is
// fine.
func CheckGroup(ctx context.Context, client *kgo.Client, group string) error {
	req := kmsg.NewPtrOffsetFetchRequest()
	req.Group = group
	g := kmsg.NewOffsetFetchRequestGroup()
	g.Group = group
	req.Groups = append(req.Groups, g)
	// A new cluster creates the topic for its groups' offsets (__consumer_offsets) only when the
	// first group is used, and answers COORDINATOR_NOT_AVAILABLE until the topic is ready.
	return Repeat(ctx, func() error {
		resp, err := req.RequestWith(ctx, client)
		if err != nil {
			return err
		}
		code := resp.ErrorCode
		for _, g := range resp.Groups {
			if code == 0 {
				code = g.ErrorCode
			}
		}
		if err := kerr.ErrorForCode(code); err != kerr.GroupIDNotFound {
			return err
		}
		return nil
	})
}

// Commit commits offsets for the member of a consumer group that client was when it had the given
// ID. It returns a [*TopicError] if the offset of a topic cannot be committed, and otherwise the
// first error of any partition.
func Commit(ctx context.Context, client *kgo.Client, member string, offsets map[Partition]kgo.EpochOffset) (err error) {
	ctx = kgo.PreCommitFnContext(ctx, func(req *kmsg.OffsetCommitRequest) error {
		if req.MemberID != member {
			return kerr.UnknownMemberID // the member has rejoined, and another member may now be ahead on these partitions
		}
		return nil
	})
	client.CommitOffsetsSync(ctx, ByTopic(offsets), func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, failed error) {
		if err = failed; err == nil {
			err = commitError(resp)
		}
	})
	return err
}

func commitError(resp *kmsg.OffsetCommitResponse) error {
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			switch err := kerr.ErrorForCode(p.ErrorCode); {
			case errors.Is(err, kerr.TopicAuthorizationFailed), errors.Is(err, kerr.UnknownTopicOrPartition), errors.Is(err, kerr.UnknownTopicID):
				return &TopicError{t.Topic, err}
			case err != nil:
				return err
			}
		}
	}
	return nil
}

// NeedsRejoin reports whether a commit failed because the member has to rejoin the group first. Such
// a commit must not be retried: if it is for partitions that are being given up, the member rejoins
// only after the commit has returned.
func NeedsRejoin(err error) bool {
	for _, code := range []error{kerr.RebalanceInProgress, kerr.UnknownMemberID, kerr.IllegalGeneration, kerr.FencedMemberEpoch, kerr.StaleMemberEpoch} {
		if errors.Is(err, code) {
			return true
		}
	}
	return false
}

// balancer is the Kafka client's cooperative sticky balancer, fixed for a member that the group has
// removed without the member noticing. When such a member rejoins, it gets a new ID. The client (as
// of v1.22.2) nevertheless keeps the partitions that it had and claims them again, although another
// member may have read them and committed since. With this balancer, the member first gives all of
// them up, and then starts at the group's committed offsets.
//
// Only the client's goroutine for the group calls its methods.
type balancer struct {
	kgo.GroupBalancer
	client *kgo.Client
	stale  bool // the member has a new ID but still holds the partitions of the old one
}

// Balancer returns the options for a client in a consumer group that shares the partitions among the
// members.
func Balancer() []kgo.Opt {
	b := &balancer{GroupBalancer: kgo.CooperativeStickyBalancer()}
	return []kgo.Opt{kgo.Balancers(b), kgo.WithHooks(b)}
}

// OnNewClient implements [kgo.HookNewClient].
func (b *balancer) OnNewClient(client *kgo.Client) { b.client = client }

// JoinGroupMetadata implements [kgo.GroupBalancer]. A member without an ID must not claim
// partitions.
func (b *balancer) JoinGroupMetadata(topics []string, current map[string][]int32, generation int32) []byte {
	id, _ := b.client.GroupMetadata()
	if b.stale = len(current) > 0 && (b.stale || id == ""); b.stale {
		current, generation = nil, NoGeneration
	}
	return b.GroupBalancer.JoinGroupMetadata(topics, current, generation)
}

// ParseSyncAssignment implements [kgo.GroupBalancer]. When the member is stale, it returns no
// partitions. The client then gives up those that it holds and rejoins at once.
func (b *balancer) ParseSyncAssignment(assignment []byte) (map[string][]int32, error) {
	if b.stale {
		return nil, nil
	}
	return b.GroupBalancer.ParseSyncAssignment(assignment)
}
