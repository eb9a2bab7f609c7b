package groups

import (
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// OffsetFetch returns committed offsets. For a partition without a committed offset, or an unknown
// group, the offset is -1 and there is no error.
func (c *Coordinator) OffsetFetch(who Caller, req *kmsg.OffsetFetchRequest) *kmsg.OffsetFetchResponse {
	resp := req.ResponseKind().(*kmsg.OffsetFetchResponse)
	if req.Version >= 8 {
		for _, g := range req.Groups {
			resp.Groups = append(resp.Groups, c.fetch(who, g, req.Version))
		}
		return resp
	}
	// Older versions request one group, in another layout.
	one := kmsg.NewOffsetFetchRequestGroup()
	one.Group, one.MemberEpoch = req.Group, -1
	if req.Topics != nil {
		one.Topics = []kmsg.OffsetFetchRequestGroupTopic{}
	}
	for _, t := range req.Topics {
		gt := kmsg.NewOffsetFetchRequestGroupTopic()
		gt.Topic, gt.Partitions = t.Topic, t.Partitions
		one.Topics = append(one.Topics, gt)
	}
	got := c.fetch(who, one, req.Version)
	resp.ErrorCode = got.ErrorCode
	for _, gt := range got.Topics {
		t := kmsg.NewOffsetFetchResponseTopic()
		t.Topic = gt.Topic
		for _, gp := range gt.Partitions {
			p := kmsg.NewOffsetFetchResponseTopicPartition()
			p.Partition, p.Offset, p.LeaderEpoch, p.Metadata, p.ErrorCode = gp.Partition, gp.Offset, gp.LeaderEpoch, gp.Metadata, gp.ErrorCode
			t.Partitions = append(t.Partitions, p)
		}
		resp.Topics = append(resp.Topics, t)
	}
	return resp
}

// fetch returns the offsets of one group, for the requested topics or for all topics.
func (c *Coordinator) fetch(who Caller, req kmsg.OffsetFetchRequestGroup, version int16) kmsg.OffsetFetchResponseGroup {
	resp := kmsg.NewOffsetFetchResponseGroup()
	resp.Group = req.Group
	if !c.enter() {
		return fetchError(req, kerr.CoordinatorNotAvailable, version)
	}
	defer c.closeMu.RUnlock()
	g := c.find(req.Group)
	if g == nil {
		g = &group{id: req.Group, c: c} // an unknown group has no offsets
	} else {
		defer g.mu.Unlock()
	}
	if g.consumer != nil && (req.MemberID != nil || req.MemberEpoch >= 0) {
		if err := g.consumer.checkFetch(req.MemberID, req.MemberEpoch); err != nil {
			return fetchError(req, err, version)
		}
	}
	if req.Topics == nil {
		resp.Topics = g.allOffsets(who)
		return resp
	}
	var refused []kmsg.OffsetFetchResponseGroupTopic
	for _, t := range req.Topics {
		name := t.Topic
		if version >= 10 {
			name, _ = c.cfg.Topics.ByID(t.TopicID)
		}
		rt := kmsg.NewOffsetFetchResponseGroupTopic()
		rt.Topic, rt.TopicID = name, t.TopicID
		var err *kerr.Error
		switch {
		case version >= 10 && name == "":
			err = kerr.UnknownTopicID
		case !who.mayDescribe(name):
			err = kerr.TopicAuthorizationFailed
		}
		id, _, exists := c.cfg.Topics.ByName(name)
		for _, partition := range t.Partitions {
			var o *storedOffset
			if err == nil && exists {
				o = g.offset(name, partition)
			}
			rt.Partitions = append(rt.Partitions, fetchedPartition(partition, o, id, err))
		}
		if err != nil {
			refused = append(refused, rt)
		} else {
			resp.Topics = append(resp.Topics, rt)
		}
	}
	resp.Topics = append(resp.Topics, refused...)
	return resp
}

// fetchedPartition returns the response for one partition of the topic with the given ID. o is the
// committed offset, or nil.
func fetchedPartition(partition int32, o *storedOffset, topic [16]byte, err *kerr.Error) kmsg.OffsetFetchResponseGroupTopicPartition {
	p := kmsg.NewOffsetFetchResponseGroupTopicPartition()
	p.Partition, p.Offset, p.LeaderEpoch, p.Metadata = partition, -1, -1, new(string)
	switch {
	case err != nil:
		p.ErrorCode = err.Code
	case o != nil && o.of(topic):
		p.Offset, p.LeaderEpoch, p.Metadata = o.offset, o.epoch, new(o.metadata) // copy the metadata, because a later commit overwrites *o
	}
	return p
}

// of reports whether the offset belongs to the topic with this ID, and not to a deleted topic of
// the same name.
func (o *storedOffset) of(topic [16]byte) bool {
	return o.topicID == topic || o.topicID == [16]byte{}
}

// allOffsets returns the group's offsets of topics that the caller may describe.
func (g *group) allOffsets(who Caller) (topics []kmsg.OffsetFetchResponseGroupTopic) {
	for name, offsets := range g.offsets {
		id, _, exists := g.c.cfg.Topics.ByName(name)
		if !exists || !who.mayDescribe(name) {
			continue
		}
		t := kmsg.NewOffsetFetchResponseGroupTopic()
		t.Topic, t.TopicID = name, id
		for i := range offsets {
			if o := &offsets[i]; o.of(id) {
				t.Partitions = append(t.Partitions, fetchedPartition(o.partition, o, id, nil))
			}
		}
		if len(t.Partitions) > 0 {
			topics = append(topics, t)
		}
	}
	slices.SortFunc(topics, func(a, b kmsg.OffsetFetchResponseGroupTopic) int { return strings.Compare(a.Topic, b.Topic) })
	return topics
}

// fetchError returns an error for a group. Version 1 can only report it for each partition.
func fetchError(req kmsg.OffsetFetchRequestGroup, err *kerr.Error, version int16) kmsg.OffsetFetchResponseGroup {
	resp := kmsg.NewOffsetFetchResponseGroup()
	resp.Group = req.Group
	if version >= 2 {
		resp.ErrorCode = err.Code
		return resp
	}
	for _, t := range req.Topics {
		rt := kmsg.NewOffsetFetchResponseGroupTopic()
		rt.Topic = t.Topic
		for _, partition := range t.Partitions {
			rt.Partitions = append(rt.Partitions, fetchedPartition(partition, nil, [16]byte{}, err))
		}
		resp.Topics = append(resp.Topics, rt)
	}
	return resp
}
