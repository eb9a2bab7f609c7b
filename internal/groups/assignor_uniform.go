package groups

import (
	"cmp"
	"slices"
)

// consumerAssignors are the assignors that members can request.
//
// The arguments are the members, at least one, in the order of their IDs, and the partition counts
// of the topics to which they are subscribed. Topics of members that are not in counts have been
// deleted. The result is the new target of each member, sorted. Every partition is in exactly one
// target. The former targets are in consumerMember.target.
var consumerAssignors = map[string]func(members []*consumerMember, counts map[[16]byte]int32) [][]partitionID{
	consumerDefaultAssignor: assignUniform,
	"range":                 assignRange,
}

const consumerDefaultAssignor = "uniform"

// assignUniform is the uniform assignor. It balances the number of partitions
// of the members and moves as few partitions as possible.
func assignUniform(members []*consumerMember, counts map[[16]byte]int32) [][]partitionID {
	for _, m := range members {
		if !slices.Equal(m.topics, members[0].topics) {
			return assignUniformMixed(members, counts)
		}
	}
	return assignUniformSame(members, counts)
}

// assignUniformSame assigns to members with equal subscriptions. The sizes of
// their targets differ by at most one.
func assignUniformSame(members []*consumerMember, counts map[[16]byte]int32) [][]partitionID {
	owners := assignOwners(members, counts)
	var free []partitionID // partitions without an owner
	total := 0
	for _, topic := range members[0].topics {
		for p, owner := range owners[topic] {
			if owner < 0 {
				free = append(free, partitionID{topic, int32(p)})
			}
			total++
		}
	}

	// Members keep their partitions up to a limit. The limit is quota+1 for extra members and quota
	// for the others. The members with the higher limit are the first ones that own quota+1
	// partitions. If there are too few of these, the last members get the higher limit as well.
	quota, extra := total/len(members), total%len(members)
	targets := make([][]partitionID, len(members))
	room := make([]int, len(members))
	for i, m := range members {
		limit := quota
		if extra > 0 {
			limit++
		}
		targets[i] = make([]partitionID, 0, limit)
		for topic, partitions := range byTopic(m.target) {
			of := owners[topic]
			for _, p := range partitions {
				switch {
				case int(p.partition) >= len(of) || of[p.partition] != i:
				case len(targets[i]) < limit:
					targets[i] = append(targets[i], p)
				default:
					free = append(free, p)
				}
			}
		}
		if limit > quota && len(targets[i]) < limit && len(members)-i > extra {
			limit = quota // leave the extra partition to one of the later members
		}
		if limit > quota {
			extra--
		}
		room[i] = limit - len(targets[i])
	}

	for i := range members {
		n := min(room[i], len(free))
		targets[i] = append(targets[i], free[:n]...)
		free = free[n:]
		slices.SortFunc(targets[i], comparePartitions)
	}
	return targets
}

// assignOwners returns the owners of the partitions of each topic, according to the members' former
// targets. Owners are indices into members; -1 means no owner. Members that are no longer
// subscribed to the topic are ignored.
func assignOwners(members []*consumerMember, counts map[[16]byte]int32) map[[16]byte][]int {
	owners := make(map[[16]byte][]int, len(counts))
	for topic, count := range counts {
		owners[topic] = slices.Repeat([]int{-1}, int(count))
	}
	for i, m := range members {
		for topic, partitions := range byTopic(m.target) {
			if !m.subscribed(topic) {
				continue
			}
			of := owners[topic]
			for _, p := range partitions {
				if int(p.partition) < len(of) && of[p.partition] < 0 {
					of[p.partition] = i
				}
			}
		}
	}
	return owners
}

// assignTopic is the state of [assignUniformMixed] for one topic.
type assignTopic struct {
	id          [16]byte
	owners      []int // by partition; -1: none
	subscribers []int
}

// maxBalanceRounds limits how often assignUniformMixed balances all topics. If subscriptions
// overlap in long chains, it would otherwise take many rounds to converge.
const maxBalanceRounds = 16

// assignUniformMixed assigns to members with different subscriptions. It moves
// a partition whenever another subscriber of its topic has at least two
// partitions less than the owner.
func assignUniformMixed(members []*consumerMember, counts map[[16]byte]int32) [][]partitionID {
	topics, load := assignTopics(members, counts)

	// Topics with many partitions per subscriber come first. The others can
	// then even out the differences that remain.
	byDensity := slices.Clone(topics)
	slices.SortFunc(byDensity, func(a, b *assignTopic) int {
		return cmp.Or(
			cmp.Compare(len(b.owners)*len(a.subscribers), len(a.owners)*len(b.subscribers)),
			cmp.Compare(len(a.subscribers), len(b.subscribers)),
			compareTopics(a.id, b.id),
		)
	})
	for _, t := range byDensity {
		for p, owner := range t.owners {
			if owner < 0 {
				to := t.leastLoaded(load)
				t.owners[p] = to
				load[to]++
			}
		}
	}
	for range maxBalanceRounds {
		moved := false
		for _, t := range byDensity {
			moved = t.balance(load) || moved
		}
		if !moved {
			break
		}
	}

	targets := make([][]partitionID, len(members))
	for _, t := range topics {
		for p, owner := range t.owners {
			targets[owner] = append(targets[owner], partitionID{t.id, int32(p)})
		}
	}
	return targets
}

// assignTopics returns the topics in the order of their IDs, with their former
// owners, and the number of partitions of each member.
func assignTopics(members []*consumerMember, counts map[[16]byte]int32) (topics []*assignTopic, load []int) {
	byID := make(map[[16]byte]*assignTopic)
	for id, owners := range assignOwners(members, counts) {
		byID[id] = &assignTopic{id: id, owners: owners}
		topics = append(topics, byID[id])
	}
	slices.SortFunc(topics, func(a, b *assignTopic) int { return compareTopics(a.id, b.id) })

	load = make([]int, len(members))
	for i, m := range members {
		for _, id := range m.topics {
			if t := byID[id]; t != nil {
				t.subscribers = append(t.subscribers, i)
			}
		}
	}
	for _, t := range topics {
		for _, owner := range t.owners {
			if owner >= 0 {
				load[owner]++
			}
		}
	}
	return topics, load
}

func (t *assignTopic) leastLoaded(load []int) int {
	return slices.MinFunc(t.subscribers, func(a, b int) int { return cmp.Compare(load[a], load[b]) })
}

// balance moves partitions of the topic from the subscribers with the most
// partitions to those with the fewest. It reports whether it moved any.
func (t *assignTopic) balance(load []int) (moved bool) {
	if len(t.owners) == 0 {
		return false
	}
	owned := make(map[int][]int) // partitions of the topic by owner
	for p, owner := range t.owners {
		owned[owner] = append(owned[owner], p)
	}
	for {
		from := -1
		for _, s := range t.subscribers {
			if len(owned[s]) > 0 && (from < 0 || load[s] > load[from]) {
				from = s
			}
		}
		to := t.leastLoaded(load)
		if load[from]-load[to] <= 1 {
			return moved
		}
		mine := owned[from]
		p := mine[len(mine)-1]
		owned[from] = mine[:len(mine)-1]
		owned[to] = append(owned[to], p)
		t.owners[p] = to
		load[from]--
		load[to]++
		moved = true
	}
}
