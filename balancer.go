package diaspora

import "github.com/twmb/franz-go/pkg/kgo"

// balancer is the Kafka client's cooperative sticky balancer, mended for a member that the
// group has removed without the member noticing. When such a member rejoins, it gets a new
// ID; but the client (as of v1.22.2) keeps the partitions that it had and claims them again,
// although another member may have read them and committed since. With this balancer it
// gives all of them up first, and then starts at the group's committed offsets.
//
// The group's goroutine of the client alone calls its methods.
type balancer struct {
	kgo.GroupBalancer
	client *kgo.Client
	stale  bool // the member has a new ID, and still the partitions of the old one
}

func newBalancer() *balancer {
	return &balancer{GroupBalancer: kgo.CooperativeStickyBalancer()}
}

// OnNewClient implements [kgo.HookNewClient].
func (b *balancer) OnNewClient(client *kgo.Client) { b.client = client }

// JoinGroupMetadata implements [kgo.GroupBalancer]. A member that has no ID has no partitions.
func (b *balancer) JoinGroupMetadata(topics []string, current map[string][]int32, generation int32) []byte {
	id, _ := b.client.GroupMetadata()
	if b.stale = len(current) > 0 && (b.stale || id == ""); b.stale {
		current, generation = nil, noGeneration
	}
	return b.GroupBalancer.JoinGroupMetadata(topics, current, generation)
}

// ParseSyncAssignment implements [kgo.GroupBalancer]. Assigned nothing, the client gives up
// what it has, and joins once more at once.
func (b *balancer) ParseSyncAssignment(assignment []byte) (map[string][]int32, error) {
	if b.stale {
		return nil, nil
	}
	return b.GroupBalancer.ParseSyncAssignment(assignment)
}
