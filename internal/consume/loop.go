package consume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora/internal/kafka"
)

// fetched holds records of one partition that were fetched and not yielded yet.
type fetched struct {
	cursor  *cursor
	records []*kgo.Record
}

// GapError says that the cluster deleted records before they were read.
type GapError struct {
	Topic     string
	Partition int32
	From, To  int64 // the lost offsets: from From up to but not including To
}

func (e *GapError) Error() string {
	return fmt.Sprintf("offsets %d to %d of partition %d were deleted", e.From, e.To-1, e.Partition)
}

// Records returns the records as they arrive, in order within each partition. A record is handled
// when the body of the loop returns for it. If the body leaves the loop, its record is not handled.
// An error comes with a nil record; it is a [*GapError], or one that Explain returned.
func (c *Reader) Records(ctx context.Context) iter.Seq2[*kgo.Record, error] {
	return func(yield func(*kgo.Record, error) bool) {
		if !c.busy.CompareAndSwap(false, true) {
			yield(nil, ErrBusy)
			return
		}
		defer c.busy.Store(false)
		for {
			if !c.handOut(yield) {
				return
			}
			if c.finished() {
				return
			}
			if err := c.poll(ctx); err != nil {
				yield(nil, err)
				return
			}
		}
	}
}

// handOut yields the errors and records in c.errs and c.queue. It reports whether the loop goes on.
func (c *Reader) handOut(yield func(*kgo.Record, error) bool) bool {
	for len(c.errs) > 0 {
		err := c.errs[0]
		c.errs = c.errs[1:]
		if !yield(nil, err) {
			return false
		}
	}
	for len(c.queue) > 0 {
		batch := &c.queue[0]
		cur := batch.cursor
		next := cur.next.Load()
		for len(batch.records) > 0 && !cur.lost.Load() && !c.isClosed() {
			r := batch.records[0]
			show := !r.Attrs.IsControl() && r.Offset >= cur.from && r.Offset >= cur.done.Load() && (cur.until < 0 || r.Offset < cur.until)
			if show && !yield(r, nil) {
				next = r.Offset
				if cur.done.Load() > r.Offset { // the body has committed it, so the next loop starts behind it
					next++
				}
				cur.next.Store(next)
				return false
			}
			next = r.Offset + 1
			cur.handled(next, r.LeaderEpoch)
			batch.records[0] = nil
			batch.records = batch.records[1:]
		}
		cur.next.Store(next)
		c.queue = c.queue[1:]
	}
	return true
}

func (c *Reader) isClosed() bool {
	select {
	case <-c.closed:
		return true
	default:
		return false
	}
}

// handled marks all records before next as handled. It never moves backwards.
func (c *cursor) handled(next int64, epoch int32) {
	for {
		done := c.done.Load()
		if next <= done {
			return
		}
		if c.done.CompareAndSwap(done, next) {
			if c.epoch.Load() != epoch {
				c.epoch.Store(epoch)
			}
			return
		}
	}
}

// finished reports whether everything up to Until has been read.
func (c *Reader) finished() bool {
	if c.options.Until.Kind == None {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, cur := range c.cursors {
		if !cur.finished() {
			return false
		}
	}
	return c.assigned
}

// pollIdle is how long a Reader with Until waits for records before it checks whether only
// offsets without records are left.
const pollIdle = 250 * time.Millisecond

var errIdle = errors.New("nothing came")

// poll fetches into c.queue and c.errs. If it returns an error, the loop ends.
func (c *Reader) poll(ctx context.Context) error {
	poll, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if c.options.Until.Kind != None {
		timer := time.AfterFunc(pollIdle, func() { cancel(errIdle) })
		defer timer.Stop()
	}
	answered := c.options.Connections.Fetched()
	c.mu.Lock()
	c.stopPoll = cancel
	c.mu.Unlock()
	fetches := c.client.PollFetches(poll) // all that is buffered, so that the client fetches more in the meantime
	c.mu.Lock()
	c.stopPoll = nil
	c.mu.Unlock()
	for _, fetch := range fetches {
		for _, t := range fetch.Topics {
			for _, p := range t.Partitions {
				c.arrived(t.Topic, p)
			}
		}
	}
	if len(c.queue) > 0 {
		return nil
	}
	if c.isClosed() {
		c.errs = nil
		return ErrClosed
	}
	switch cause := context.Cause(poll); {
	case ctx.Err() != nil:
		return ctx.Err()
	case cause == errIdle:
		if c.options.Connections.Fetched() > answered { // otherwise, records may still be on their way
			c.lookAhead(ctx)
		}
	case cause != nil:
		c.errs = append(c.errs, c.options.Explain.Login(cause))
	}
	return nil
}

// refused interrupts a poll after a rejected login. Without it, the Kafka client would retry
// silently until it gets a better token.
func (c *Reader) refused(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopPoll != nil {
		c.stopPoll(err)
	}
}

// arrived queues the records and the error that a fetch returned for one partition.
func (c *Reader) arrived(topic string, p kgo.FetchPartition) {
	if p.Err != nil {
		if err := c.fetchError(topic, p); err != nil {
			c.errs = append(c.errs, err)
		}
		// Some brokers know only the ID of a deleted topic, not its name, and so answer that the
		// topic may not be read. Therefore look up whether the name has a new ID.
		denied := errors.Is(p.Err, kerr.TopicAuthorizationFailed) && p.Partition >= 0
		if errors.Is(p.Err, kerr.UnknownTopicID) {
			delete(c.reads, topic)
			c.restartTopic(topic)
		} else if denied && c.wasRecreated(topic) {
			c.restartTopic(topic)
		}
	}
	if _, known := c.reads[topic]; !known && len(p.Records) > 0 {
		c.wasRecreated(topic)
	}
	id := kafka.Partition{Topic: topic, Partition: p.Partition}
	c.mu.Lock()
	cur := c.cursors[id]
	if cur == nil && c.renewed[topic] && c.options.Group == "" && c.options.wants(p.Partition) {
		cur = c.add(id, 0, 0)
	}
	c.mu.Unlock()
	if cur == nil || len(p.Records) == 0 {
		return
	}
	next := cur.next.Load()
	if n := len(c.queue); n > 0 && c.queue[n-1].cursor == cur {
		if last := c.queue[n-1].records; len(last) > 0 {
			next = last[len(last)-1].Offset + 1
		}
	}
	switch first := p.Records[0].Offset; {
	case first > next && p.LogStartOffset > next:
		c.errs = append(c.errs, &GapError{topic, p.Partition, next, min(first, p.LogStartOffset)})
	case first < next && p.HighWatermark < next:
		cur = c.rewind(cur, first)
	case first < next: // fetched before retention deleted some of them, and the deletion was already reported as a gap
		i, _ := slices.BinarySearchFunc(p.Records, next, func(r *kgo.Record, next int64) int { return cmp.Compare(r.Offset, next) })
		if p.Records = p.Records[i:]; len(p.Records) == 0 {
			return
		}
	}
	c.queue = append(c.queue, fetched{cur, p.Records})
}

// remadeTimeout bounds the lookup of a topic that may have been deleted and created again.
const remadeTimeout = 5 * time.Second

// wasRecreated reports whether the topic of this name has another ID than the topic that was read so far.
// It records the new ID.
func (c *Reader) wasRecreated(topic string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), remadeTimeout)
	defer cancel()
	places, err := kafka.Places(ctx, c.client, []string{topic})
	if err != nil {
		return false
	}
	was := c.reads[topic]
	for _, at := range places {
		c.reads[topic] = at.Topic
	}
	return c.reads[topic] != was
}

// restartTopic starts over with a topic that was deleted. The Kafka client keeps asking for the deleted
// topic's ID, and would never read another topic of the same name.
func (c *Reader) restartTopic(topic string) {
	c.client.PurgeTopicsFromConsuming(topic)
	gone := func(id kafka.Partition) bool { return id.Topic == topic }
	c.mu.Lock()
	maps.DeleteFunc(c.known, func(id kafka.Partition, _ kafka.Span) bool { return gone(id) })
	maps.DeleteFunc(c.from, func(id kafka.Partition, _ int64) bool { return gone(id) })
	maps.DeleteFunc(c.until, func(id kafka.Partition, _ int64) bool { return gone(id) })
	maps.DeleteFunc(c.begun, func(id kafka.Partition, _ bool) bool { return gone(id) })
	for id, cur := range c.cursors {
		if gone(id) {
			cur.lost.Store(true)
			delete(c.cursors, id)
		}
	}
	c.renewed[topic] = true
	c.mu.Unlock()
	c.client.AddConsumeTopics(topic)
}

// rewind starts over with a partition that ends before the next offset to read: its log was
// truncated, or belongs to another topic of the same name. With Until, reading ends at once,
// because the records up to the old end do not exist any more.
func (c *Reader) rewind(old *cursor, first int64) *cursor {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.until != nil {
		c.until[old.id] = first
	}
	return c.add(old.id, first, first)
}

func (c *Reader) fetchError(topic string, p kgo.FetchPartition) error {
	loss := (*kgo.ErrDataLoss)(nil)
	switch {
	case errors.Is(p.Err, kgo.ErrClientClosed), errors.Is(p.Err, context.Canceled), errors.Is(p.Err, context.DeadlineExceeded):
		return nil // poll reports these
	case errors.As(p.Err, &loss):
		return &GapError{topic, p.Partition, min(loss.ConsumedTo, loss.ResetTo), max(loss.ConsumedTo, loss.ResetTo)}
	case topic == "" && kafka.Temporary(p.Err): // the member rejoins by itself once there is a coordinator
		c.options.Diagnostics.Info("joining the consumer group again", "group", c.options.Group, "err", p.Err)
		return nil
	case topic == "":
		return c.options.Explain.Group(p.Err)
	}
	return c.options.Explain.Request("consume", &kafka.TopicError{Topic: topic, Err: p.Err})
}

// lookAhead moves the cursors past offsets without records, such as transaction markers. Otherwise
// a Reader with Until would never finish if a partition ends with such offsets.
func (c *Reader) lookAhead(ctx context.Context) {
	c.mu.Lock()
	var open []*cursor
	for _, cur := range c.cursors {
		if !cur.finished() {
			open = append(open, cur)
		}
	}
	c.mu.Unlock()
	if len(open) == 0 {
		return
	}
	topics, from := map[string]bool{}, map[kafka.Partition]int64{}
	for _, cur := range open {
		topics[cur.id.Topic] = true
		from[cur.id] = cur.next.Load()
	}
	places, err := kafka.Places(ctx, c.client, slices.Sorted(maps.Keys(topics)))
	if err != nil {
		c.errs = append(c.errs, c.options.Explain.Request("look up topics", err))
		return
	}
	probed := kafka.Probe(ctx, c.client, places, from)
	for _, cur := range open {
		next, found := from[cur.id], probed[cur.id]
		switch {
		case errors.Is(found.Err, kerr.OffsetOutOfRange):
			c.skipDeleted(ctx, cur)
		case found.Err != nil:
			c.errs = append(c.errs, c.options.Explain.Request(fmt.Sprintf("consume topic %q", cur.id.Topic), found.Err))
		case !found.Found && found.Past > next:
			cur.next.Store(found.Past)
			cur.handled(found.Past, cur.epoch.Load())
		}
	}
}

// skipDeleted moves a cursor to the start of its partition if the records at the cursor were
// deleted.
func (c *Reader) skipDeleted(ctx context.Context, cur *cursor) {
	spans, err := kafka.Spans(ctx, c.client, []kafka.Partition{cur.id})
	if err != nil {
		c.errs = append(c.errs, c.options.Explain.Request("look up offsets", err))
		return
	}
	next, start := cur.next.Load(), spans[cur.id].Start
	if start <= next {
		return
	}
	c.errs = append(c.errs, &GapError{cur.id.Topic, cur.id.Partition, next, start})
	cur.next.Store(start)
	cur.handled(start, -1)
}
