package diaspora

import "github.com/twmb/franz-go/pkg/kgo"

// balancer is the Kafka client's cooperative sticky balancer, for a member that the group
// may have removed without its knowledge. When such a member joins to share the partitions
// anew, it is given another ID; but the client (as of v1.22.2) goes on with the partitions
// that it had, and claims them, although others may have read and committed further since.
// Here it gives all of them up first, and begins where the group is.
//
// The group's goroutine of the client alone calls its methods.
type balancer struct {
	kgo.GroupBalancer
	client *kgo.Client
	anew   bool // what the member has is not its own any more
}

func newBalancer() *balancer {
	return &balancer{GroupBalancer: kgo.CooperativeStickyBalancer()}
}

// OnNewClient implements [kgo.HookNewClient].
func (b *balancer) OnNewClient(client *kgo.Client) { b.client = client }

// JoinGroupMetadata implements [kgo.GroupBalancer]. A member that has no ID has no partitions.
func (b *balancer) JoinGroupMetadata(topics []string, current map[string][]int32, generation int32) []byte {
	id, _ := b.client.GroupMetadata()
	if b.anew = len(current) > 0 && (b.anew || id == ""); b.anew {
		current, generation = nil, noGeneration
	}
	return b.GroupBalancer.JoinGroupMetadata(topics, current, generation)
}

// ParseSyncAssignment implements [kgo.GroupBalancer]. Assigned nothing, the client gives up
// what it has, and joins once more at once.
func (b *balancer) ParseSyncAssignment(assignment []byte) (map[string][]int32, error) {
	if b.anew {
		return nil, nil
	}
	return b.GroupBalancer.ParseSyncAssignment(assignment)
}
