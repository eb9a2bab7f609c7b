package groups

import (
	"time"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// OffsetCommit stores offsets of a group. The client must be a member of the group, unless the
// group has no members. The offsets are durable when it returns.
func (c *Coordinator) OffsetCommit(who Caller, req *kmsg.OffsetCommitRequest) *kmsg.OffsetCommitResponse {
	b := commitResponse{resp: req.ResponseKind().(*kmsg.OffsetCommitResponse), byID: req.Version >= 10}
	var valid []kmsg.OffsetCommitRequestTopic
	for _, t := range req.Topics {
		if t := c.validTopic(who, t, &b); len(t.Partitions) > 0 {
			valid = append(valid, t)
		}
	}
	if len(valid) > 0 {
		c.commit(req, valid, &b)
	}
	return b.resp
}

// validTopic returns the topic with its name, its ID and those of its partitions that exist. For
// the others, it adds errors to the response.
func (c *Coordinator) validTopic(who Caller, t kmsg.OffsetCommitRequestTopic, b *commitResponse) kmsg.OffsetCommitRequestTopic {
	var refused *kerr.Error
	if b.byID {
		t.Topic, _ = c.cfg.Topics.ByID(t.TopicID)
	}
	id, partitions, exists := c.cfg.Topics.ByName(t.Topic)
	switch {
	case b.byID && t.Topic == "":
		refused = kerr.UnknownTopicID
	case !who.mayRead(t.Topic):
		refused = kerr.TopicAuthorizationFailed
	case !exists:
		refused = kerr.UnknownTopicOrPartition
	}
	if !b.byID {
		t.TopicID = id
	}
	valid := make([]kmsg.OffsetCommitRequestTopicPartition, 0, len(t.Partitions))
	for _, p := range t.Partitions {
		switch {
		case refused != nil:
			b.set(t, p.Partition, refused)
		case p.Partition < 0 || p.Partition >= partitions:
			b.set(t, p.Partition, kerr.UnknownTopicOrPartition)
		default:
			valid = append(valid, p)
		}
	}
	if refused != nil && len(t.Partitions) == 0 {
		b.topic(t)
	}
	t.Partitions = valid
	return t
}

// commitResponse collects the results. As in Kafka, partitions that are refused before anything is
// stored come first. If there are any, each topic is listed only once.
type commitResponse struct {
	resp *kmsg.OffsetCommitResponse
	byID bool           // topics are identified by ID, not by name
	at   map[string]int // index of each topic in the response, by name or ID
}

func (b *commitResponse) topic(t kmsg.OffsetCommitRequestTopic) *kmsg.OffsetCommitResponseTopic {
	name := t.Topic
	if b.byID {
		name = string(t.TopicID[:])
	}
	if i, ok := b.at[name]; ok {
		return &b.resp.Topics[i]
	}
	if b.at == nil {
		b.at = map[string]int{}
	}
	b.at[name] = len(b.resp.Topics)
	return b.add(t)
}

func (b *commitResponse) add(t kmsg.OffsetCommitRequestTopic) *kmsg.OffsetCommitResponseTopic {
	rt := kmsg.NewOffsetCommitResponseTopic()
	rt.Topic, rt.TopicID = t.Topic, t.TopicID
	b.resp.Topics = append(b.resp.Topics, rt)
	return &b.resp.Topics[len(b.resp.Topics)-1]
}

func (b *commitResponse) set(t kmsg.OffsetCommitRequestTopic, partition int32, err *kerr.Error) {
	setPartition(b.topic(t), partition, err)
}

func setPartition(rt *kmsg.OffsetCommitResponseTopic, partition int32, err *kerr.Error) {
	rp := kmsg.NewOffsetCommitResponseTopicPartition()
	rp.Partition, rp.ErrorCode = partition, codeOf(err)
	rt.Partitions = append(rt.Partitions, rp)
}

// results adds a result for every partition of the topics.
func (b *commitResponse) results(topics []kmsg.OffsetCommitRequestTopic, result func(topic, partition int) *kerr.Error) {
	find := b.add
	if len(b.resp.Topics) > 0 {
		find = b.topic
	}
	for i, t := range topics {
		rt := find(t)
		for j, p := range t.Partitions {
			setPartition(rt, p.Partition, result(i, j))
		}
	}
}

// commit stores offsets of partitions that exist.
func (c *Coordinator) commit(req *kmsg.OffsetCommitRequest, topics []kmsg.OffsetCommitRequestTopic, b *commitResponse) {
	all := func(err *kerr.Error) {
		b.results(topics, func(int, int) *kerr.Error { return err })
	}
	if !c.enter() {
		all(kerr.CoordinatorNotAvailable)
		return
	}
	defer c.closeMu.RUnlock()
	g, created := c.find(req.Group), false
	if g == nil {
		switch {
		case req.Generation >= 0 && req.Version >= 9:
			all(kerr.GroupIDNotFound)
			return
		case req.Generation >= 0:
			all(kerr.IllegalGeneration)
			return
		}
		if g, created = c.findOrCreate(req.Group); g == nil {
			all(kerr.PolicyViolation)
			return
		}
	}
	defer g.mu.Unlock()
	check, err := g.checkCommit(req)
	if err != nil {
		all(err)
		return
	}
	s := newOffsetCommit(g, req, time.Now())
	for _, t := range topics {
		for _, p := range t.Partitions {
			if check != nil && !metadataTooLong(p.Metadata) {
				if err := check(t.TopicID, p.Partition); err != nil {
					s.abandon()
					all(err) // as in Kafka, one refused partition refuses all
					return
				}
			}
			s.add(t, p)
		}
	}
	failed := s.store()
	if created && len(g.offsets) == 0 {
		g.drop() // nothing was stored, so the group would not exist after a restart
	}
	if failed != nil {
		all(storeError(failed))
		return
	}
	n := 0
	b.results(topics, func(int, int) *kerr.Error { n++; return s.refused[n-1] })
}

// checkCommit returns an error if the member may not commit. If check is not nil, the caller must
// also call it for each partition.
func (g *group) checkCommit(req *kmsg.OffsetCommitRequest) (check func([16]byte, int32) *kerr.Error, err *kerr.Error) {
	if g.consumer != nil {
		if req.Generation < 0 && g.consumer.empty() {
			return nil, nil
		}
		return g.consumer.checkCommit(req.MemberID, req.Generation, req.Version)
	}
	cg := g.classic
	if req.Generation < 0 && cg.state == empty {
		return nil, nil // a client that assigns partitions to itself, or an administrator
	}
	if req.Generation < 0 && req.MemberID == "" && req.InstanceID == nil {
		return nil, kerr.UnknownMemberID
	}
	if err := cg.check(req.MemberID, req.InstanceID); err != nil {
		return nil, err
	}
	switch {
	case req.Generation != cg.generation:
		return nil, kerr.IllegalGeneration
	case cg.state == completing:
		return nil, kerr.RebalanceInProgress
	}
	m := cg.members[req.MemberID]
	g.extendSession(m, time.Now().Add(m.sessionTimeout))
	return nil, nil
}

// offsetCommit are the offsets that one request commits.
type offsetCommit struct {
	g       *group
	now     int64 // ms
	expires int64 // ms

	refused []*kerr.Error // in the order of the partitions in the request; nil: accepted
	topics  []string      // topic of each of offsets
	offsets []storedOffset
	entries []entry
	buf     []byte // keys and values
}

func newOffsetCommit(g *group, req *kmsg.OffsetCommitRequest, now time.Time) *offsetCommit {
	s := &offsetCommit{g: g, now: now.UnixMilli(), expires: -1}
	if req.Version >= 2 && req.Version <= 4 && req.RetentionTimeMillis != -1 {
		s.expires = s.now + req.RetentionTimeMillis
	}
	return s
}

func (s *offsetCommit) add(t kmsg.OffsetCommitRequestTopic, p kmsg.OffsetCommitRequestTopicPartition) {
	o := storedOffset{
		partition: p.Partition, offset: p.Offset, epoch: p.LeaderEpoch,
		at: s.now, expires: s.expires, topicID: t.TopicID,
	}
	if p.Metadata != nil {
		o.metadata = *p.Metadata
	}
	switch {
	case metadataTooLong(p.Metadata):
		s.refused = append(s.refused, kerr.OffsetMetadataTooLarge)
		return
	case !s.g.c.reserve(o.bytes()):
		s.refused = append(s.refused, kerr.InvalidCommitOffsetSize)
		return
	}
	s.refused = append(s.refused, nil)
	s.topics = append(s.topics, t.Topic)
	s.offsets = append(s.offsets, o)
	start := len(s.buf)
	s.buf = appendOffsetKey(s.buf, s.g.id, t.Topic, p.Partition)
	middle := len(s.buf)
	s.buf = appendOffset(s.buf, &o)
	s.entries = append(s.entries, entry{Key: s.buf[start:middle:middle], Value: s.buf[middle:len(s.buf):len(s.buf)]})
}

// metadataTooLong reports whether the metadata is longer than Kafka allows. Java counts each
// character outside the basic multilingual plane as two.
func metadataTooLong(metadata *string) bool {
	if metadata == nil || len(*metadata) <= maxMetadata {
		return false
	}
	n := utf8.RuneCountInString(*metadata)
	for _, r := range *metadata {
		if r > 0xffff {
			n++
		}
	}
	return n > maxMetadata
}

// store writes the offsets to the journal. When they are durable, it stores them in memory.
func (s *offsetCommit) store() error {
	if len(s.entries) == 0 {
		return nil
	}
	if err := s.g.c.append(s.entries...); err != nil {
		s.abandon()
		return err
	}
	for i, o := range s.offsets {
		s.g.setOffset(s.topics[i], o, len(s.offsets)-i)
	}
	return nil
}

// abandon gives back the reserved bytes.
func (s *offsetCommit) abandon() {
	for i := range s.offsets {
		s.g.c.reserve(-s.offsets[i].bytes())
	}
}
