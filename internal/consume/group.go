package consume

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora/internal/backoff"
	"github.com/diaspora-streams/diaspora/internal/kafka"
)

// rebalanceTimeout is how long the group waits for its members to rejoin during a rebalance.
// It can be short, because members rejoin in the background, however long the caller takes to
// handle a record. It should be short, because a member waits at least this long for the response
// to its request, even if the connection is dead.
const rebalanceTimeout = 20 * time.Second

func (c *Reader) groupOpts() []kgo.Opt {
	return append(kafka.Balancer(),
		kgo.ConsumerGroup(c.options.Group),
		kgo.SessionTimeout(c.options.SessionTimeout),
		kgo.RebalanceTimeout(rebalanceTimeout),
		kgo.HeartbeatInterval(min(3*time.Second, c.options.SessionTimeout/3)),
		kgo.DisableAutoCommit(),
		kgo.OnPartitionsAssigned(func(_ context.Context, client *kgo.Client, added map[string][]int32) {
			member, generation := client.GroupMetadata()
			c.onAssigned(member, generation, added)
		}),
		kgo.AdjustFetchOffsetsFn(func(_ context.Context, offsets map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
			return c.startPartitions(offsets), nil
		}),
		kgo.OnPartitionsRevoked(func(ctx context.Context, client *kgo.Client, lost map[string][]int32) {
			if len(lost) == 0 {
				return
			}
			if c.options.CommitEvery > 0 {
				if err := c.Commit(ctx); err != nil {
					c.options.Diagnostics.Warn("commit before partitions go to another member", "group", c.options.Group, "err", err)
				}
			}
			_, generation := client.GroupMetadata()
			c.onRevoked(generation, lost)
		}),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, lost map[string][]int32) { c.onRevoked(kafka.NoGeneration, lost) }),
	)
}

// onAssigned is called when the group assigns partitions, with those that this member did not have before.
// If there are any, startPartitions is called later, when their offsets are known.
func (c *Reader) onAssigned(member string, generation int32, added map[string][]int32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.member, c.generation = member, generation
	c.assigned = len(added) == 0 && c.settled()
}

// settled reports whether the member has all partitions that the current generation assigns to it.
// A member that gave up partitions in this generation rejoins at once, and may be assigned others
// only then (KIP-429). The caller holds mu.
func (c *Reader) settled() bool { return c.generation != c.gaveUp }

// startPartitions starts reading the partitions that the group assigned: at the committed offset or, without
// one, at From. A partition that was added after the Reader was opened is read from its start, so
// that no record of it is missed.
func (c *Reader) startPartitions(offsets map[string]map[int32]kgo.Offset) map[string]map[int32]kgo.Offset {
	c.mu.Lock()
	defer c.mu.Unlock()
	for topic, partitions := range offsets {
		for partition, offset := range partitions {
			id := kafka.Partition{Topic: topic, Partition: partition}
			at := offset.EpochOffset().Offset
			// If the topic was created again, the committed offset may belong to the deleted topic.
			// Ignore it the first time, and read the partition from its start.
			first := c.renewed[topic] && !c.begun[id]
			c.begun[id] = true
			if at >= 0 && !first {
				c.add(id, at, at).committed.Store(at)
				continue
			}
			wanted := c.from[id]
			cur := c.add(id, min(wanted, c.known[id].End), wanted)
			partitions[partition] = kgo.NewOffset().At(cur.start)
		}
	}
	c.assigned = c.settled()
	return offsets
}

// onRevoked gives partitions up in the given generation of the group. Their queued records must not be
// yielded, because another member may read them now. Until the group assigns partitions again, it
// is not known whether the remaining partitions are all that this member is to read.
func (c *Reader) onRevoked(generation int32, lost map[string][]int32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.assigned, c.gaveUp = false, generation
	for topic, partitions := range lost {
		for _, partition := range partitions {
			if cur := c.cursors[kafka.Partition{Topic: topic, Partition: partition}]; cur != nil {
				cur.lost.Store(true)
				delete(c.cursors, cur.id)
			}
		}
	}
}

// Handled counts all records of a partition before an offset as handled.
func (c *Reader) Handled(id kafka.Partition, next int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if cur := c.cursors[id]; cur != nil {
		cur.handled(next, -1)
	}
}

// Commit commits the records that are handled so far. Without a group, it does nothing.
func (c *Reader) Commit(ctx context.Context) error {
	if c.options.Group == "" {
		return nil
	}
	again := func(err error) bool { return kafka.Temporary(err) && !kafka.NeedsRejoin(err) }
	err := backoff.Retry(ctx, kafka.Repeats, again, func() error { return c.commitOnce(ctx) })
	if err != nil {
		return fmt.Errorf("commit: %w", c.options.Explain.Group(err))
	}
	return nil
}

// commitOnce commits what is handled now. Only one call runs at a time: of two concurrent commits,
// the older one could reach the cluster last and move the offset back.
func (c *Reader) commitOnce(ctx context.Context) error {
	select {
	case c.committing <- struct{}{}:
		defer func() { <-c.committing }()
	case <-ctx.Done():
		return ctx.Err()
	}
	offsets := map[kafka.Partition]kgo.EpochOffset{}
	handled := map[*cursor]int64{}
	c.mu.Lock()
	member := c.member
	for id, cur := range c.cursors {
		if done := cur.done.Load(); done > cur.committed.Load() {
			offsets[id] = kgo.EpochOffset{Epoch: cur.epoch.Load(), Offset: done}
			handled[cur] = done
		}
	}
	c.mu.Unlock()
	if len(offsets) == 0 {
		return nil
	}
	if err := kafka.Commit(ctx, c.client, member, offsets); err != nil {
		return err
	}
	for cur, done := range handled {
		cur.committed.Store(done)
	}
	return nil
}
