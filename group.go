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
	// A new cluster creates the topic for its groups' offsets (__consumer_offsets) only when the
	// first group is used, and answers COORDINATOR_NOT_AVAILABLE until the topic is ready.
	return retry(ctx, retriable, func() error { return c.askForGroup(ctx) })
}

// askForGroup asks once for the group's offsets, and fails if the caller may not use the group.
func (c *Consumer) askForGroup(ctx context.Context) error {
	group := c.options.Group
	req := kmsg.NewPtrOffsetFetchRequest()
	req.Group = group
	g := kmsg.NewOffsetFetchRequestGroup()
	g.Group = group
	req.Groups = append(req.Groups, g)
	resp, err := req.RequestWith(ctx, c.lookups)
	if err != nil {
		return c.groupError(err)
	}
	code := resp.ErrorCode
	for _, g := range resp.Groups {
		if code == 0 {
			code = g.ErrorCode
		}
	}
	if err := kerr.ErrorForCode(code); err != nil && err != kerr.GroupIDNotFound { // a new group is fine
		return c.groupError(err)
	}
	return nil
}

func (c *Consumer) groupError(err error) error {
	f, ok := explain(err).(*Error)
	if ok && f.Condition == ErrPermission && !kafka.NotAdmitted(err) {
		f = &Error{
			Condition: ErrPermission,
			Reason:    c.fabric.identityName() + " may not use it",
			Hint:      "choose another group, one that is yours",
			cause:     err,
		}
		return fmt.Errorf("consumer group %q: %w", c.options.Group, f)
	}
	return fmt.Errorf("consumer group %q: %w", c.options.Group, c.fabric.loginError(err))
}

// rebalanceTimeout is how long the group waits for its members to rejoin during a rebalance.
// Members rejoin in the background, however long the loop's body takes. A member also waits at
// least this long for the response, even if its connection is dead.
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
				if err := c.commit(ctx); err != nil {
					c.fabric.diagnostics().Warn("commit before partitions go to another member", "group", c.options.Group, "err", err)
				}
			}
			_, generation := client.GroupMetadata()
			c.onRevoked(generation, lost)
		}),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, lost map[string][]int32) { c.onRevoked(noGeneration, lost) }),
	}
}

// noGeneration is the generation of a member that is not in the group.
const noGeneration = -1

// onAssigned is called with the partitions that a generation of the group adds to this member's. If there
// are any, take is called later, when their offsets are known.
func (c *Consumer) onAssigned(member string, generation int32, added map[string][]int32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.member, c.generation = member, generation
	c.assigned = len(added) == 0 && c.settled()
}

// settled reports whether the member has all partitions that the current generation assigns to it.
// A member that gave up partitions in this generation rejoins at once, and may be assigned others
// only then (KIP-429). The caller holds mu.
func (c *Consumer) settled() bool { return c.generation != c.gaveUp }

// startPartitions starts reading the partitions that the group assigned: at the committed offset or, without
// one, at From. A partition that was added after the Consumer was opened is read from its start, so
// that no record of it is missed.
func (c *Consumer) startPartitions(offsets map[string]map[int32]kgo.Offset) map[string]map[int32]kgo.Offset {
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
			cur := c.add(id, min(wanted, c.known[id].end), wanted)
			partitions[partition] = kgo.NewOffset().At(cur.start)
		}
	}
	c.assigned = c.settled()
	return offsets
}

// onRevoked gives partitions up in the given generation of the group. Their queued records must not be
// yielded, because another member may read them now. The remaining partitions are not known to be
// all that this member is to read, until the group assigns partitions again.
func (c *Consumer) onRevoked(generation int32, lost map[string][]int32) {
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

// rejoins reports whether a member rejoins by itself after this error ended its session. It does,
// once there is a coordinator, if the coordinator died or did not hear from the member for too
// long.
func rejoins(err error) bool { return retriable(explain(err)) }

// Commit commits the records that are handled so far, so that the group does not deliver them
// again. It also counts the given records, and all before them in their partitions, as handled: the
// body of a loop can thus commit its current record. Without a group, it does nothing.
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
	passes := func(err error) bool { return retriable(err) && !needsRejoin(err) }
	return retry(ctx, passes, func() error { return c.commitOnce(ctx) })
}

// commitOnce commits what is handled now. It runs once at a time: of two concurrent commits, the
// older one could reach the cluster last and move the offset back.
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
			return kerr.UnknownMemberID // the member has rejoined, and another member may now be ahead on these partitions
		}
		return nil
	})
	c.fetches.CommitOffsetsSync(ctx, offsets, func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, err error) {
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

// needsRejoin reports whether a commit failed because the member has to rejoin the group first. Such
// a commit must not be retried: if it is for partitions that are being given up, the member rejoins
// only after the commit has returned.
func needsRejoin(err error) bool {
	for _, code := range []error{kerr.RebalanceInProgress, kerr.UnknownMemberID, kerr.IllegalGeneration, kerr.FencedMemberEpoch, kerr.StaleMemberEpoch} {
		if errors.Is(err, code) {
			return true
		}
	}
	return false
}

// commitError returns why a commit failed: the group's error, or that of the first partition that
// has one.
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

// balancer is the Kafka client's cooperative sticky balancer, fixed for a member that the group has
// removed without the member noticing. When such a member rejoins, it gets a new ID. The client (as
// of v1.22.2) nevertheless keeps the partitions that it had and claims them again, although another
// member may have read them and committed since. With this balancer, the member first gives all of
// them up, and then starts at the group's committed offsets.
//
// Only the client's goroutine for the group calls its methods.
type balancer struct {
	kgo.GroupBalancer
	client *kgo.Client
	stale  bool // the member has a new ID but still holds the partitions of the old one
}

func newBalancer() *balancer {
	return &balancer{GroupBalancer: kgo.CooperativeStickyBalancer()}
}

// OnNewClient implements [kgo.HookNewClient].
func (b *balancer) OnNewClient(client *kgo.Client) { b.client = client }

// JoinGroupMetadata implements [kgo.GroupBalancer]. A member without an ID must not claim
// partitions.
func (b *balancer) JoinGroupMetadata(topics []string, current map[string][]int32, generation int32) []byte {
	id, _ := b.client.GroupMetadata()
	if b.stale = len(current) > 0 && (b.stale || id == ""); b.stale {
		current, generation = nil, noGeneration
	}
	return b.GroupBalancer.JoinGroupMetadata(topics, current, generation)
}

// ParseSyncAssignment implements [kgo.GroupBalancer]. When the member is stale, it returns no
// partitions. The client then gives up those that it holds and rejoins at once.
func (b *balancer) ParseSyncAssignment(assignment []byte) (map[string][]int32, error) {
	if b.stale {
		return nil, nil
	}
	return b.GroupBalancer.ParseSyncAssignment(assignment)
}
