package groups

import (
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

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
	defer c.closeMu.RUnlock()
	g := c.find(req.Group)
	if g == nil {
		return kerr.GroupIDNotFound
	}
	defer g.mu.Unlock()
	if g.classic != nil && g.classic.state != empty && g.classic.protocolType != topicProtocol {
		return kerr.NonEmptyGroup
	}
	// As in Kafka, partitions that are refused because of their topic come first.
	d := offsetDeletion{g: g, at: map[string]int{}}
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
				d.valid = append(d.valid, topicPartition{t.Topic, p.Partition})
			}
		}
	}
	if err := d.delete(); err != nil {
		return storeError(err)
	}
	resp.Topics = d.results
	return nil
}

type topicPartition struct {
	topic     string
	partition int32
}

// offsetDeletion is an OffsetDelete request in progress.
type offsetDeletion struct {
	g       *group
	valid   []topicPartition // existing partitions that the client may read
	results []kmsg.OffsetDeleteResponseTopic
	at      map[string]int // the index of each topic in results
}

func (d *offsetDeletion) result(topic string, partition int32, err *kerr.Error) {
	i, ok := d.at[topic]
	if !ok {
		i = len(d.results)
		d.at[topic] = i
		d.results = append(d.results, kmsg.OffsetDeleteResponseTopic{Topic: topic})
	}
	rp := kmsg.NewOffsetDeleteResponseTopicPartition()
	rp.Partition, rp.ErrorCode = partition, codeOf(err)
	d.results[i].Partitions = append(d.results[i].Partitions, rp)
}

// delete deletes the offsets of the valid partitions.
func (d *offsetDeletion) delete() error {
	var gone []topicPartition
	var entries []entry
	subscribed := map[string]bool{}
	for _, p := range d.valid {
		if _, ok := subscribed[p.topic]; !ok {
			subscribed[p.topic] = d.g.subscribed(p.topic)
		}
		if d.g.offset(p.topic, p.partition) != nil && !subscribed[p.topic] {
			gone = append(gone, p)
			entries = append(entries, entry{Key: appendOffsetKey(nil, d.g.id, p.topic, p.partition)})
		}
	}
	if len(entries) > 0 {
		if err := d.g.deleteOffsets(entries); err != nil {
			return err
		}
	}
	for _, p := range d.valid {
		var err *kerr.Error
		if subscribed[p.topic] {
			err = kerr.GroupSubscribedToTopic
		}
		d.result(p.topic, p.partition, err)
	}
	for _, p := range gone {
		d.g.removeOffset(p.topic, p.partition)
	}
	return nil
}

// deleteOffsets deletes committed offsets from the journal. If the group exists only through its
// offsets and these are the last ones, it also writes the group itself. Then the group still exists
// after a restart, until DeleteExpired removes it.
func (g *group) deleteOffsets(deletions []entry) error {
	left := -len(deletions)
	for _, offsets := range g.offsets {
		left += len(offsets)
	}
	if left <= 0 && g.classic != nil && !g.written {
		return g.writeClassic(nil, deletions...)
	}
	return g.c.append(deletions...)
}

// subscribed reports whether a member of the group may need the topic's offsets.
func (g *group) subscribed(topic string) bool {
	if g.consumer != nil {
		return g.consumer.subscribed(g.c.cfg.Topics, topic)
	}
	return g.classic.subscribed(topic)
}

// TopicDeleted deletes the committed offsets of a topic, and makes KIP-848 groups update their
// assignments. The caller must not hold a lock that [Topics] needs.
func (c *Coordinator) TopicDeleted(name string, id [16]byte) {
	c.TopicsChanged()
	if !c.enter() {
		return
	}
	defer c.closeMu.RUnlock()
	for _, g := range c.all() {
		g.mu.Lock()
		// If this write fails, a restart restores the offsets. They are not returned even then,
		// because no new topic gets the deleted topic's ID.
		_ = g.expireOffsets(func(topic string, o *storedOffset) bool { return topic == name && o.of(id) }, true)
		g.mu.Unlock()
	}
}

// TopicsChanged makes KIP-848 groups update their assignments after topics or partitions have
// changed. The caller must not hold a lock that [Topics] needs.
func (c *Coordinator) TopicsChanged() {
	for _, g := range c.all() {
		g.mu.Lock()
		if g.consumer != nil {
			g.consumer.topicsChanged()
		}
		g.mu.Unlock()
	}
}

// expireOffsets deletes the offsets for which chosen returns true. If the journal cannot be
// written, it keeps them in memory too, unless must is set.
func (g *group) expireOffsets(chosen func(topic string, o *storedOffset) bool, must bool) error {
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
	err := g.deleteOffsets(entries)
	if err == nil || must {
		for topic := range topics {
			g.removeOffsets(topic, func(o *storedOffset) bool { return chosen(topic, o) })
		}
	}
	return err
}

// DeleteExpired deletes offsets that have expired, and groups that have neither members nor
// offsets. The broker calls it periodically; Kafka does the same every 10 minutes.
func (c *Coordinator) DeleteExpired() error {
	now := time.Now()
	for _, g := range c.all() {
		if !c.enter() {
			return nil
		}
		g.mu.Lock()
		err := g.deleteExpired(now)
		g.mu.Unlock()
		c.closeMu.RUnlock()
		if err != nil {
			return err
		}
	}
	return nil
}

func (g *group) deleteExpired(now time.Time) error {
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
		err := g.expireOffsets(func(topic string, o *storedOffset) bool {
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
		return g.delete()
	}
	return nil
}
