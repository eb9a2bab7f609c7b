package groups

import (
	"cmp"
	"slices"
)

// assignRange is the range assignor. It divides each topic into one range of partitions for each
// subscriber. The order of the subscribers is the same for all topics, so a member gets the same
// partition numbers of topics with equal partition counts (co-partitioning). Static members come
// first, in the order of their instance IDs, because these do not change when a member restarts.
// The former targets are not used.
//
// See [consumerAssignors] for arguments and result.
func assignRange(members []*consumerMember, counts map[[16]byte]int32) [][]partitionID {
	order := make([]int, len(members))
	subscribers := make(map[[16]byte]int32)
	for i, m := range members {
		order[i] = i
		for _, topic := range m.topics {
			subscribers[topic]++
		}
	}
	slices.SortFunc(order, func(a, b int) int { return compareRange(members[a], members[b]) })

	type cut struct{ served, next int32 } // how many subscribers have a range, and the start of the next range
	cuts := make(map[[16]byte]cut)
	targets := make([][]partitionID, len(members))
	for _, i := range order {
		for _, topic := range members[i].topics {
			c, count := cuts[topic], counts[topic]
			size := count / subscribers[topic]
			if c.served < count%subscribers[topic] {
				size++
			}
			for p := c.next; p < c.next+size; p++ {
				targets[i] = append(targets[i], partitionID{topic, p})
			}
			cuts[topic] = cut{c.served + 1, c.next + size}
		}
	}
	return targets
}

func compareRange(a, b *consumerMember) int {
	switch {
	case a.instance != "" && b.instance != "":
		return cmp.Compare(a.instance, b.instance)
	case a.instance != "":
		return -1
	case b.instance != "":
		return 1
	}
	return cmp.Compare(a.id, b.id)
}
