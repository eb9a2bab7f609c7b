package kafka

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/backoff"
)

// This file has the requests of somebody who looks at consumer groups, or changes them, without
// being a member.

// The types of groups that read with committed offsets. Other types, such as share groups, keep
// something else.
const (
	ClassicGroup  = "classic"
	ConsumerGroup = "consumer" // of KIP-848
)

// Group is a group, as its coordinator describes it.
type Group struct {
	ID       string
	Type     string
	State    string // in Kafka's words, such as Stable and Empty
	Assignor string // "" if no partitions are assigned
	Members  []GroupMember
	Hidden   bool // the members are not known, because they read a topic that the caller may not describe
}

// Reads reports whether the group is of a type that reads with committed offsets.
func (g *Group) Reads() bool { return g.Type == ClassicGroup || g.Type == ConsumerGroup }

// GroupMember is a member of a [Group].
type GroupMember struct {
	ID       string
	Instance *string // the name of a static member
	ClientID string

	Topics   []string // those to which it is subscribed
	Assigned []Partition
}

// Groups returns the caller's groups in the order of their IDs, without assignors and members.
func Groups(ctx context.Context, client *kgo.Client) (groups []Group, err error) {
	err = Repeat(ctx, func() error {
		resp, err := kmsg.NewPtrListGroupsRequest().RequestWith(ctx, client)
		if err == nil {
			err = kerr.ErrorForCode(resp.ErrorCode)
		}
		if err != nil {
			return err
		}
		groups = groups[:0]
		for _, g := range resp.Groups {
			if g.GroupType == "" { // a broker that knows only one type does not name it
				g.GroupType = ClassicGroup
			}
			groups = append(groups, Group{ID: g.Group, Type: strings.ToLower(g.GroupType), State: g.GroupState})
		}
		return nil
	})
	slices.SortFunc(groups, func(a, b Group) int { return strings.Compare(a.ID, b.ID) })
	return groups, err
}

// DescribeGroups returns the groups with their current states, assignors and members. It leaves out
// groups that have been deleted in the meantime. Groups of other types are returned unchanged.
func DescribeGroups(ctx context.Context, client *kgo.Client, groups []Group) (described []Group, err error) {
	ids := map[string][]string{} // by type
	for _, g := range groups {
		ids[g.Type] = append(ids[g.Type], g.ID)
	}
	found := map[string]Group{}
	err = Repeat(ctx, func() error {
		if err := describeClassic(ctx, client, ids[ClassicGroup], found); err != nil {
			return err
		}
		return describeConsumer(ctx, client, ids[ConsumerGroup], found)
	})
	if err != nil {
		return nil, err
	}
	for _, g := range groups {
		if now, ok := found[g.ID]; ok {
			now.State = cmp.Or(now.State, g.State)
			described = append(described, now)
		} else if !g.Reads() {
			described = append(described, g)
		}
	}
	return described, nil
}

func describeClassic(ctx context.Context, client *kgo.Client, ids []string, found map[string]Group) error {
	if len(ids) == 0 {
		return nil
	}
	req := kmsg.NewPtrDescribeGroupsRequest()
	req.Groups = ids
	resp, err := req.RequestWith(ctx, client)
	if err != nil {
		return err
	}
	for _, g := range resp.Groups {
		switch err := kerr.ErrorForCode(g.ErrorCode); {
		case err == kerr.GroupIDNotFound || err == nil && g.State == "Dead": // older brokers have no error for it
			continue
		case err != nil:
			return err
		}
		now := Group{ID: g.Group, Type: ClassicGroup, State: g.State, Assignor: g.Protocol}
		for _, m := range g.Members {
			member := GroupMember{ID: m.MemberID, Instance: m.InstanceID, ClientID: m.ClientID}
			if g.ProtocolType == "consumer" {
				member.Topics, member.Assigned = classicMember(m)
			}
			now.Members = append(now.Members, member)
		}
		found[g.Group] = now
	}
	return nil
}

// classicMember returns what a member has sent to its group, and what its leader has assigned to it.
// During a rebalance, the coordinator does not tell. Members can send anything, so what cannot be
// decoded is ignored.
func classicMember(m kmsg.DescribeGroupsResponseGroupMember) (topics []string, assigned []Partition) {
	if joined := kmsg.NewConsumerMemberMetadata(); joined.ReadFrom(m.ProtocolMetadata) == nil {
		topics = joined.Topics
	}
	if a := kmsg.NewConsumerMemberAssignment(); a.ReadFrom(m.MemberAssignment) == nil {
		for _, t := range a.Topics {
			for _, p := range t.Partitions {
				assigned = append(assigned, Partition{t.Topic, p})
			}
		}
	}
	return topics, assigned
}

func describeConsumer(ctx context.Context, client *kgo.Client, ids []string, found map[string]Group) error {
	if len(ids) == 0 {
		return nil
	}
	req := kmsg.NewPtrConsumerGroupDescribeRequest()
	req.Groups = ids
	resp, err := req.RequestWith(ctx, client)
	if err != nil {
		return err
	}
	for _, g := range resp.Groups {
		switch err := kerr.ErrorForCode(g.ErrorCode); {
		case err == kerr.GroupIDNotFound:
			continue
		case err == kerr.TopicAuthorizationFailed:
			found[g.Group] = Group{ID: g.Group, Type: ConsumerGroup, Hidden: true}
			continue
		case err != nil:
			return err
		}
		now := Group{ID: g.Group, Type: ConsumerGroup, State: g.State, Assignor: g.AssignorName}
		for _, m := range g.Members {
			member := GroupMember{ID: m.MemberID, Instance: m.InstanceID, ClientID: m.ClientID, Topics: m.SubscribedTopics}
			for _, t := range m.Assignment.TopicPartitions {
				for _, p := range t.Partitions {
					member.Assigned = append(member.Assigned, Partition{t.Topic, p})
				}
			}
			now.Members = append(now.Members, member)
		}
		found[g.Group] = now
	}
	return nil
}

// Committed returns the committed offsets of groups, by group. Those of topics that the caller may
// not describe are missing.
func Committed(ctx context.Context, client *kgo.Client, ids ...string) (all map[string]map[Partition]int64, err error) {
	if len(ids) == 0 {
		return nil, nil
	}
	req := kmsg.NewPtrOffsetFetchRequest()
	for _, id := range ids {
		g := kmsg.NewOffsetFetchRequestGroup()
		g.Group = id
		req.Groups = append(req.Groups, g)
	}
	err = Repeat(ctx, func() error {
		resp, err := req.RequestWith(ctx, client)
		if err != nil {
			return err
		}
		all = map[string]map[Partition]int64{}
		for _, g := range resp.Groups {
			if err := kerr.ErrorForCode(g.ErrorCode); err != nil && err != kerr.GroupIDNotFound {
				return err
			}
			all[g.Group] = map[Partition]int64{}
			for _, t := range g.Topics {
				for _, p := range t.Partitions {
					if p.ErrorCode == 0 && p.Offset >= 0 {
						all[g.Group][Partition{t.Topic, p.Partition}] = p.Offset
					}
				}
			}
		}
		return nil
	})
	return all, err
}

// VisibleSpans returns where all partitions of topics begin and end now. It leaves out topics that
// do not exist or that the caller may not describe, and partitions that have no leader.
func VisibleSpans(ctx context.Context, client *kgo.Client, topics []string) (spans map[Partition]Span, err error) {
	if len(topics) == 0 { // a request without topics means all of them
		return nil, nil
	}
	err = Repeat(ctx, func() error {
		resp, err := metadata(ctx, client, topics)
		if err != nil {
			return err
		}
		var visible []Partition
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				if t.ErrorCode == 0 && t.Topic != nil && p.Leader >= 0 {
					visible = append(visible, Partition{*t.Topic, p.Partition})
				}
			}
		}
		spans, err = Spans(ctx, client, visible)
		return err
	})
	return spans, err
}

// SetOffsets commits offsets of a group that has no members; places are those of at least these
// partitions. If the group has members, it returns an error for which [NeedsRejoin] is true, and
// nothing is committed. It returns a [*TopicError] if the offset of a topic cannot be committed.
func SetOffsets(ctx context.Context, client *kgo.Client, group string, places map[Partition]Place, offsets map[Partition]int64) error {
	req := kmsg.NewPtrOffsetCommitRequest()
	req.Group, req.Generation = group, NoGeneration
	names := map[TopicID]string{}
	for topic, partitions := range ByTopic(offsets) {
		t := kmsg.NewOffsetCommitRequestTopic()
		t.Topic = topic
		for partition, offset := range partitions {
			t.TopicID = places[Partition{topic, partition}].Topic
			p := kmsg.NewOffsetCommitRequestTopicPartition()
			p.Partition, p.Offset, p.LeaderEpoch = partition, offset, -1
			t.Partitions = append(t.Partitions, p)
		}
		names[t.TopicID] = topic
		req.Topics = append(req.Topics, t)
	}
	worth := func(err error) bool { return Temporary(err) && !NeedsRejoin(err) }
	return backoff.Retry(ctx, Repeats, worth, func() error {
		resp, err := req.RequestWith(ctx, client)
		if err != nil {
			return err
		}
		for i := range resp.Topics {
			if t := &resp.Topics[i]; t.Topic == "" { // newer versions have only the ID
				t.Topic = names[t.TopicID]
			}
		}
		return commitError(resp)
	})
}

// RemoveMembers removes members from a group. A member whose program still runs notices that, and
// joins the group again. Members that are gone already are not an error.
func RemoveMembers(ctx context.Context, client *kgo.Client, group string, members []GroupMember) error {
	req := kmsg.NewPtrLeaveGroupRequest()
	req.Group = group
	for _, m := range members {
		leaving := kmsg.NewLeaveGroupRequestMember()
		leaving.Reason = kmsg.StringPtr("removed with diaspora group reset")
		if m.Instance != nil { // the ID of a static member changes when its program restarts
			leaving.InstanceID = m.Instance
		} else {
			leaving.MemberID = m.ID
		}
		req.Members = append(req.Members, leaving)
	}
	worth := func(err error) bool { return Temporary(err) && !NeedsRejoin(err) }
	return backoff.Retry(ctx, Repeats, worth, func() error {
		resp, err := req.RequestWith(ctx, client)
		if err != nil {
			return err
		}
		err = kerr.ErrorForCode(resp.ErrorCode)
		for _, m := range resp.Members {
			if code := kerr.ErrorForCode(m.ErrorCode); err == nil && code != kerr.UnknownMemberID {
				err = code
			}
		}
		return err
	})
}

// DeleteGroup deletes a group and its committed offsets. It returns [kerr.GroupIDNotFound], or
// [kerr.NonEmptyGroup] if the group has members.
func DeleteGroup(ctx context.Context, client *kgo.Client, group string) error {
	req := kmsg.NewPtrDeleteGroupsRequest()
	req.Groups = []string{group}
	return Repeat(ctx, func() error {
		resp, err := req.RequestWith(ctx, client)
		for i := 0; err == nil && i < len(resp.Groups); i++ {
			err = kerr.ErrorForCode(resp.Groups[i].ErrorCode)
		}
		return err
	})
}
