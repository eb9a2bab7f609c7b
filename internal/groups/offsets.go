package groups

import (
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// OffsetCommit stores offsets of a group: for one of its members, or for a
// client outside of it as long as the group has no members. They are durable
// when it returns.
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

// validTopic returns the topic with its name, its ID and those of its
// partitions that there are. The rest is answered.
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

// commitResponse collects the results. As in Kafka, partitions that are refused
// beforehand come first, and a topic comes once then.
type commitResponse struct {
	resp *kmsg.OffsetCommitResponse
	byID bool           // topics have IDs instead of names
	at   map[string]int // the index of each topic that was refused, by name or ID
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
	rp.Partition = partition
	if err != nil {
		rp.ErrorCode = err.Code
	}
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

// commit stores offsets of partitions that there are.
func (c *Coordinator) commit(req *kmsg.OffsetCommitRequest, topics []kmsg.OffsetCommitRequestTopic, b *commitResponse) {
	all := func(err *kerr.Error) {
		b.results(topics, func(int, int) *kerr.Error { return err })
	}
	if !c.enter() {
		all(kerr.CoordinatorNotAvailable)
		return
	}
	defer c.life.RUnlock()
	g, made := c.find(req.Group), false
	if g == nil {
		switch {
		case req.Generation >= 0 && req.Version >= 9:
			all(kerr.GroupIDNotFound)
			return
		case req.Generation >= 0:
			all(kerr.IllegalGeneration)
			return
		}
		if g, made = c.findOrMake(req.Group); g == nil {
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
	s := newCommits(g, req, time.Now())
	for _, t := range topics {
		for _, p := range t.Partitions {
			if check != nil && !tooLong(p.Metadata) {
				if err := check(t.TopicID, p.Partition); err != nil {
					s.abandon()
					all(err) // as in Kafka, one that is refused refuses all
					return
				}
			}
			s.add(t, p)
		}
	}
	if err := s.store(); err != nil {
		if made {
			g.drop()
		}
		all(storeError(err))
		return
	}
	n := 0
	b.results(topics, func(int, int) *kerr.Error { n++; return s.refused[n-1] })
}

// checkCommit says whether the member may commit. If check is not nil it says
// so for each partition.
func (g *group) checkCommit(req *kmsg.OffsetCommitRequest) (check func([16]byte, int32) *kerr.Error, err *kerr.Error) {
	if g.consumer != nil {
		if req.Generation < 0 && g.consumer.empty() {
			return nil, nil
		}
		return g.consumer.checkCommit(req.MemberID, req.InstanceID, req.Generation, req.Version)
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
	g.extend(m, time.Now().Add(m.sessionTimeout))
	return nil, nil
}

// commits is what one request commits.
type commits struct {
	g       *group
	now     int64 // ms
	expires int64 // ms

	refused []*kerr.Error // by the number of the partition in the request; nil: stored
	topics  []string      // of offsets
	offsets []committed
	entries []entry
	buf     []byte // keys and values
}

func newCommits(g *group, req *kmsg.OffsetCommitRequest, now time.Time) *commits {
	s := &commits{g: g, now: now.UnixMilli(), expires: -1}
	if req.Version >= 2 && req.Version <= 4 && req.RetentionTimeMillis != -1 {
		s.expires = s.now + req.RetentionTimeMillis
	}
	return s
}

func (s *commits) add(t kmsg.OffsetCommitRequestTopic, p kmsg.OffsetCommitRequestTopicPartition) {
	o := committed{
		partition: p.Partition, offset: p.Offset, epoch: p.LeaderEpoch,
		at: s.now, expires: s.expires, topicID: t.TopicID,
	}
	if p.Metadata != nil {
		o.metadata = *p.Metadata
	}
	switch {
	case tooLong(p.Metadata):
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

// tooLong reports whether the metadata is longer than Kafka allows. Java counts
// characters beyond the basic plane twice.
func tooLong(metadata *string) bool {
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

// store writes the offsets, and sets them once they are durable.
func (s *commits) store() error {
	if len(s.entries) == 0 {
		return nil
	}
	if err := s.g.c.append(s.entries...); err != nil {
		s.abandon()
		return err
	}
	for i, o := range s.offsets {
		s.g.remember(s.topics[i], o, len(s.offsets)-i)
	}
	return nil
}

// abandon gives back what was reserved.
func (s *commits) abandon() {
	for i := range s.offsets {
		s.g.c.reserve(-s.offsets[i].bytes())
	}
}

// OffsetFetch returns committed offsets. A partition without one, or a group
// that is not known, has the offset -1 and no error.
func (c *Coordinator) OffsetFetch(who Caller, req *kmsg.OffsetFetchRequest) *kmsg.OffsetFetchResponse {
	resp := req.ResponseKind().(*kmsg.OffsetFetchResponse)
	if req.Version >= 8 {
		for _, g := range req.Groups {
			resp.Groups = append(resp.Groups, c.fetch(who, g, req.Version))
		}
		return resp
	}
	// Older versions ask for one group, in another layout.
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

// fetch returns the offsets of one group: of the topics asked for, or of all.
func (c *Coordinator) fetch(who Caller, req kmsg.OffsetFetchRequestGroup, version int16) kmsg.OffsetFetchResponseGroup {
	resp := kmsg.NewOffsetFetchResponseGroup()
	resp.Group = req.Group
	if !c.enter() {
		return fetchError(req, kerr.CoordinatorNotAvailable, version)
	}
	defer c.life.RUnlock()
	g := c.find(req.Group)
	if g == nil {
		g = &group{id: req.Group, c: c} // without offsets
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
			var o *committed
			if err == nil && exists {
				o = g.offset(name, partition)
			}
			rt.Partitions = append(rt.Partitions, fetched(partition, o, id, err))
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

// fetched is the answer for one partition of the topic with that ID. o: its
// committed offset, or nil.
func fetched(partition int32, o *committed, topic [16]byte, err *kerr.Error) kmsg.OffsetFetchResponseGroupTopicPartition {
	p := kmsg.NewOffsetFetchResponseGroupTopicPartition()
	p.Partition, p.Offset, p.LeaderEpoch, p.Metadata = partition, -1, -1, new(string)
	switch {
	case err != nil:
		p.ErrorCode = err.Code
	case o != nil && o.of(topic):
		p.Offset, p.LeaderEpoch, p.Metadata = o.offset, o.epoch, &o.metadata
	}
	return p
}

// of reports whether the offset is one of the topic with that ID, and not of
// one that had the same name and was deleted.
func (o *committed) of(topic [16]byte) bool {
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
				t.Partitions = append(t.Partitions, fetched(o.partition, o, id, nil))
			}
		}
		if len(t.Partitions) > 0 {
			topics = append(topics, t)
		}
	}
	slices.SortFunc(topics, func(a, b kmsg.OffsetFetchResponseGroupTopic) int { return strings.Compare(a.Topic, b.Topic) })
	return topics
}

// fetchError answers for a group whose offsets cannot be had. The oldest
// version has no place for that but the partitions.
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
			rt.Partitions = append(rt.Partitions, fetched(partition, nil, [16]byte{}, err))
		}
		resp.Topics = append(resp.Topics, rt)
	}
	return resp
}

// OffsetDelete deletes committed offsets of topics to which no member is subscribed.
func (c *Coordinator) OffsetDelete(who Caller, req *kmsg.OffsetDeleteRequest) *kmsg.OffsetDeleteResponse {
	resp := req.ResponseKind().(*kmsg.OffsetDeleteResponse)
	if err := c.deleteOffsets(who, req, resp); err != nil {
		resp.ErrorCode, resp.Topics = err.Code, nil
	}
	return resp
}

func (c *Coordinator) deleteOffsets(who Caller, req *kmsg.OffsetDeleteRequest, resp *kmsg.OffsetDeleteResponse) *kerr.Error {
	if req.Group == "" {
		return kerr.InvalidGroupID
	}
	if !c.enter() {
		return kerr.CoordinatorNotAvailable
	}
	defer c.life.RUnlock()
	g := c.find(req.Group)
	if g == nil {
		return kerr.GroupIDNotFound
	}
	defer g.mu.Unlock()
	if g.classic != nil && g.classic.state != empty && g.classic.protocolType != topicProtocol {
		return kerr.NonEmptyGroup
	}
	// As in Kafka, what is refused for the topic's sake comes first.
	d := deletions{g: g, at: map[string]int{}}
	for _, t := range req.Topics {
		_, partitions, exists := c.cfg.Topics.ByName(t.Topic)
		mayRead := who.mayRead(t.Topic)
		for _, p := range t.Partitions {
			switch {
			case !mayRead:
				d.result(t.Topic, p.Partition, kerr.TopicAuthorizationFailed)
			case !exists || p.Partition < 0 || p.Partition >= partitions:
				d.result(t.Topic, p.Partition, kerr.UnknownTopicOrPartition)
			default:
				d.valid = append(d.valid, place{t.Topic, p.Partition})
			}
		}
	}
	if err := d.delete(); err != nil {
		return storeError(err)
	}
	resp.Topics = d.results
	return nil
}

type place struct {
	topic     string
	partition int32
}

// deletions is an OffsetDelete.
type deletions struct {
	g       *group
	valid   []place // partitions that there are and that the client may read
	results []kmsg.OffsetDeleteResponseTopic
	at      map[string]int // the index of each topic in results
}

func (d *deletions) result(topic string, partition int32, err *kerr.Error) {
	i, ok := d.at[topic]
	if !ok {
		i = len(d.results)
		d.at[topic] = i
		d.results = append(d.results, kmsg.OffsetDeleteResponseTopic{Topic: topic})
	}
	rp := kmsg.NewOffsetDeleteResponseTopicPartition()
	rp.Partition = partition
	if err != nil {
		rp.ErrorCode = err.Code
	}
	d.results[i].Partitions = append(d.results[i].Partitions, rp)
}

// delete deletes the offsets of the valid partitions.
func (d *deletions) delete() error {
	var gone []place
	var entries []entry
	for _, p := range d.valid {
		if d.g.offset(p.topic, p.partition) != nil && !d.g.subscribed(p.topic) {
			gone = append(gone, p)
			entries = append(entries, entry{Key: appendOffsetKey(nil, d.g.id, p.topic, p.partition)})
		}
	}
	if len(entries) > 0 {
		if err := d.g.c.append(entries...); err != nil {
			return err
		}
	}
	for _, p := range d.valid {
		var err *kerr.Error
		if d.g.subscribed(p.topic) {
			err = kerr.GroupSubscribedToTopic
		}
		d.result(p.topic, p.partition, err)
	}
	for _, p := range gone {
		d.g.forget(p.topic, func(o *committed) bool { return o.partition == p.partition })
	}
	return nil
}

// subscribed reports whether a member of the group may need the topic's offsets.
func (g *group) subscribed(topic string) bool {
	if g.consumer != nil {
		return g.consumer.subscribed(g.c.cfg.Topics, topic)
	}
	return g.classic.subscribed(topic)
}

// TopicDeleted deletes the committed offsets of a topic, and tells the members
// of KIP-848 groups.
func (c *Coordinator) TopicDeleted(name string, id [16]byte) {
	c.TopicsChanged()
	if !c.enter() {
		return
	}
	defer c.life.RUnlock()
	for _, g := range c.all() {
		g.mu.Lock()
		// If this cannot be written, a restart brings the offsets back. They are
		// not found even then, because the topic's ID does not come back.
		_ = g.expireOffsets(func(topic string, o *committed) bool { return topic == name && o.of(id) }, true)
		g.mu.Unlock()
	}
}

// TopicsChanged tells the members of KIP-848 groups that there are other topics
// or partitions than before.
func (c *Coordinator) TopicsChanged() {
	for _, g := range c.all() {
		g.mu.Lock()
		if g.consumer != nil {
			g.consumer.topicsChanged()
		}
		g.mu.Unlock()
	}
}

// expireOffsets deletes the offsets that are chosen. If they cannot be deleted
// from the journal they stay, unless they must go.
func (g *group) expireOffsets(chosen func(topic string, o *committed) bool, must bool) error {
	var entries []entry
	topics := map[string]bool{}
	for topic, offsets := range g.offsets {
		for i := range offsets {
			if chosen(topic, &offsets[i]) {
				entries = append(entries, entry{Key: appendOffsetKey(nil, g.id, topic, offsets[i].partition)})
				topics[topic] = true
			}
		}
	}
	if len(entries) == 0 {
		return nil
	}
	err := g.c.append(entries...)
	if err == nil || must {
		for topic := range topics {
			g.forget(topic, func(o *committed) bool { return chosen(topic, o) })
		}
	}
	return err
}

// Sweep deletes offsets that have expired, and groups that have neither members
// nor offsets. The broker calls it from time to time; Kafka does so every 10 minutes.
func (c *Coordinator) Sweep() error {
	now := time.Now()
	for _, g := range c.all() {
		if !c.enter() {
			return nil
		}
		g.mu.Lock()
		err := g.sweep(now)
		g.mu.Unlock()
		c.life.RUnlock()
		if err != nil {
			return err
		}
	}
	return nil
}

func (g *group) sweep(now time.Time) error {
	if g.dead {
		return nil
	}
	var from time.Time
	expire := true
	if g.classic != nil {
		from, expire = g.classic.offsetsExpire()
	}
	if expire {
		retention := g.c.cfg.OffsetsRetention.Milliseconds()
		err := g.expireOffsets(func(topic string, o *committed) bool {
			if g.subscribed(topic) {
				return false
			}
			if o.expires >= 0 {
				return now.UnixMilli() >= o.expires
			}
			at := o.at
			if !from.IsZero() {
				at = from.UnixMilli()
			}
			return now.UnixMilli()-at >= retention
		}, false)
		if err != nil {
			return err
		}
	}
	if len(g.offsets) == 0 && g.empty() {
		return g.erase()
	}
	return nil
}
