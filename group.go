package diaspora

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/kafka"
)

// openGroup fails if the caller may not use the group.
func (c *Consumer) openGroup(ctx context.Context) error {
	// A cluster makes the place for its groups' offsets when the first group comes,
	// and says that it is not available until it is there.
	return persist(ctx, retriable, func() error { return c.askForGroup(ctx) })
}

// askForGroup fails if the caller may not use the group.
func (c *Consumer) askForGroup(ctx context.Context) error {
	group := c.options.Group
	req := kmsg.NewPtrOffsetFetchRequest()
	req.Group = group
	g := kmsg.NewOffsetFetchRequestGroup()
	g.Group = group
	req.Groups = append(req.Groups, g)
	resp, err := req.RequestWith(ctx, c.asking)
	if err != nil {
		return c.groupError(err)
	}
	code := resp.ErrorCode
	for _, g := range resp.Groups {
		if code == 0 {
			code = g.ErrorCode
		}
	}
	if err := kerr.ErrorForCode(code); err != nil && err != kerr.GroupIDNotFound { // it is new
		return c.groupError(err)
	}
	return nil
}

func (c *Consumer) groupError(err error) error {
	f, ok := explain(err).(*Error)
	if ok && f.Condition == ErrPermission && !kafka.NotAdmitted(err) {
		f = &Error{
			Condition: ErrPermission,
			Reason:    c.fabric.who() + " may not use it",
			Hint:      "choose another group, one that is yours",
			cause:     err,
		}
		return fmt.Errorf("consumer group %q: %w", c.options.Group, f)
	}
	return fmt.Errorf("consumer group %q: %w", c.options.Group, c.fabric.signedOut(err))
}

// rebalanceTimeout is how long the group waits for its members to rejoin, which they do
// whatever the loop's body does. A member waits at least that long for the answer, even if its
// connection is dead.
const rebalanceTimeout = 20 * time.Second

func (c *Consumer) groupOpts() []kgo.Opt {
	balancer := newBalancer()
	return []kgo.Opt{
		kgo.ConsumerGroup(c.options.Group),
		kgo.Balancers(balancer),
		kgo.WithHooks(balancer),
		kgo.ConsumeTopics(c.options.Topics...),
		kgo.SessionTimeout(c.options.SessionTimeout),
		kgo.RebalanceTimeout(rebalanceTimeout),
		kgo.HeartbeatInterval(min(3*time.Second, c.options.SessionTimeout/3)),
		kgo.DisableAutoCommit(),
		kgo.OnPartitionsAssigned(func(_ context.Context, client *kgo.Client, added map[string][]int32) {
			member, generation := client.GroupMetadata()
			c.gain(member, generation, added)
		}),
		kgo.AdjustFetchOffsetsFn(func(_ context.Context, offsets map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
			return c.take(offsets), nil
		}),
		kgo.OnPartitionsRevoked(func(ctx context.Context, client *kgo.Client, lost map[string][]int32) {
			if len(lost) == 0 {
				return
			}
			if c.options.CommitEvery > 0 {
				if err := c.commit(ctx); err != nil {
					c.fabric.diagnostics().Warn("commit before partitions go to another member", "group", c.options.Group, "err", err)
				}
			}
			_, generation := client.GroupMetadata()
			c.drop(generation, lost)
		}),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, lost map[string][]int32) { c.drop(noGeneration, lost) }),
	}
}

// noGeneration is that of a member which is out of the group.
const noGeneration = -1

// gain hears what a generation of the group adds to the member's partitions. If there
// are any, take follows, when it is known where they begin.
func (c *Consumer) gain(member string, generation int32, added map[string][]int32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.member, c.generation = member, generation
	c.assigned = len(added) == 0 && c.settled()
}

// settled reports whether the member has the partitions that its generation of the group
// gives it. One that has given some up in this generation joins again at once, and only
// then gets others for them (KIP-429). It is called with mu held.
func (c *Consumer) settled() bool { return c.generation != c.gaveUp }

// take begins with the partitions that the group assigned: where the group
// left off, or at From where it never was. A partition that is newer than
// the Consumer begins at its start, so that nothing of it is missed.
func (c *Consumer) take(offsets map[string]map[int32]kgo.Offset) map[string]map[int32]kgo.Offset {
	c.mu.Lock()
	defer c.mu.Unlock()
	for topic, partitions := range offsets {
		for partition, offset := range partitions {
			id := kafka.Partition{Topic: topic, Partition: partition}
			at := offset.EpochOffset().Offset
			// What the group has committed of a topic that was made again may
			// be about the one before: once, it is read from its start.
			first := c.renewed[topic] && !c.begun[id]
			c.begun[id] = true
			if at >= 0 && !first {
				c.add(id, at, at).committed.Store(at)
				continue
			}
			wanted := c.from[id]
			cur := c.add(id, min(wanted, c.known[id].end), wanted)
			partitions[partition] = kgo.NewOffset().At(cur.start)
		}
	}
	c.assigned = c.settled()
	return offsets
}

// drop gives partitions up, in a generation of the group. Records of theirs that wait are
// another member's now. What is left is not all that the member is to read: the group
// has yet to say what that is.
func (c *Consumer) drop(generation int32, lost map[string][]int32) {
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

// rejoins reports whether a member whose session ended so is back by itself as
// soon as there is a coordinator: that one died, or has not heard of the member
// for too long.
func rejoins(err error) bool { return retriable(explain(err)) }

// Commit tells the group that the records handled so far need not come again. The
// records given count as handled too, and with each all before it in its partition:
// so a body can commit the record at hand. It does nothing without a group.
func (c *Consumer) Commit(ctx context.Context, records ...Record) error {
	c.mu.Lock()
	for _, r := range records {
		if cur := c.cursors[kafka.Partition{Topic: r.Topic, Partition: r.Partition}]; cur != nil {
			cur.handled(r.Offset+1, -1)
		}
	}
	c.mu.Unlock()
	return c.commit(ctx)
}

func (c *Consumer) commit(ctx context.Context) error {
	if c.options.Group == "" {
		return nil
	}
	passes := func(err error) bool { return retriable(err) && !sharedAnew(err) }
	return persist(ctx, passes, func() error { return c.commitOnce(ctx) })
}

// commitOnce commits what is handled by now. Two at once could arrive in the other order.
func (c *Consumer) commitOnce(ctx context.Context) error {
	select {
	case c.committing <- struct{}{}:
		defer func() { <-c.committing }()
	case <-ctx.Done():
		return fmt.Errorf("commit: %w", ctx.Err())
	}
	offsets := map[string]map[int32]kgo.EpochOffset{}
	handled := map[*cursor]int64{}
	c.mu.Lock()
	member := c.member
	for id, cur := range c.cursors {
		done := cur.done.Load()
		if done <= cur.committed.Load() {
			continue
		}
		if offsets[id.Topic] == nil {
			offsets[id.Topic] = map[int32]kgo.EpochOffset{}
		}
		offsets[id.Topic][id.Partition] = kgo.EpochOffset{Epoch: cur.epoch.Load(), Offset: done}
		handled[cur] = done
	}
	c.mu.Unlock()
	if len(offsets) == 0 {
		return nil
	}
	var failed error
	ctx = kgo.PreCommitFnContext(ctx, func(req *kmsg.OffsetCommitRequest) error {
		if req.MemberID != member {
			return kerr.UnknownMemberID // by now: these partitions may be another's, who is further on
		}
		return nil
	})
	c.reading.CommitOffsetsSync(ctx, offsets, func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, err error) {
		failed = c.commitError(resp, err)
	})
	if failed != nil {
		return fmt.Errorf("commit: %w", failed)
	}
	for cur, done := range handled {
		cur.committed.Store(done)
	}
	return nil
}

// sharedAnew reports whether a commit failed since the member has to join the group again
// first: not before the commit has returned, if it is for partitions that go away.
func sharedAnew(err error) bool {
	for _, code := range []error{kerr.RebalanceInProgress, kerr.UnknownMemberID, kerr.IllegalGeneration, kerr.FencedMemberEpoch, kerr.StaleMemberEpoch} {
		if errors.Is(err, code) {
			return true
		}
	}
	return false
}

// commitError returns why a commit failed, in words: because of the group, or the first topic.
func (c *Consumer) commitError(resp *kmsg.OffsetCommitResponse, err error) error {
	if err != nil {
		return c.groupError(err)
	}
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			switch err := kerr.ErrorForCode(p.ErrorCode); {
			case errors.Is(err, kerr.TopicAuthorizationFailed), errors.Is(err, kerr.UnknownTopicOrPartition), errors.Is(err, kerr.UnknownTopicID):
				return c.fabric.topicError("consume", "read", t.Topic, err)
			case err != nil:
				return c.groupError(err)
			}
		}
	}
	return nil
}

// balancer is the Kafka client's cooperative sticky balancer, mended for a member that the
// group has removed without the member noticing. When such a member rejoins, it gets a new
// ID; but the client (as of v1.22.2) keeps the partitions that it had and claims them again,
// although another member may have read them and committed since. With this balancer it
// gives all of them up first, and then starts at the group's committed offsets.
//
// The group's goroutine of the client alone calls its methods.
type balancer struct {
	kgo.GroupBalancer
	client *kgo.Client
	stale  bool // the member has a new ID, and still the partitions of the old one
}

func newBalancer() *balancer {
	return &balancer{GroupBalancer: kgo.CooperativeStickyBalancer()}
}

// OnNewClient implements [kgo.HookNewClient].
func (b *balancer) OnNewClient(client *kgo.Client) { b.client = client }

// JoinGroupMetadata implements [kgo.GroupBalancer]. A member that has no ID has no partitions.
func (b *balancer) JoinGroupMetadata(topics []string, current map[string][]int32, generation int32) []byte {
	id, _ := b.client.GroupMetadata()
	if b.stale = len(current) > 0 && (b.stale || id == ""); b.stale {
		current, generation = nil, noGeneration
	}
	return b.GroupBalancer.JoinGroupMetadata(topics, current, generation)
}

// ParseSyncAssignment implements [kgo.GroupBalancer]. Assigned nothing, the client gives up
// what it has, and joins once more at once.
func (b *balancer) ParseSyncAssignment(assignment []byte) (map[string][]int32, error) {
	if b.stale {
		return nil, nil
	}
	return b.GroupBalancer.ParseSyncAssignment(assignment)
}
