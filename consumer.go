package diaspora

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/kafka"
)

// ConsumerOptions says what a [Consumer] reads.
type ConsumerOptions struct {
	// Topics to read. Required.
	Topics []string

	// Group is the consumer group to share the partitions with. It remembers
	// how far its members have come. Empty reads all partitions alone and
	// remembers nothing.
	Group string

	// From is where to begin; in a group, only in those partitions of which
	// the group has committed nothing yet. Default: [Start].
	From Position

	// Until ends [Consumer.Records] once every partition was read up to there,
	// as of when the Consumer was opened: [End] for all that is there now.
	// In a group each member ends when it has read its own partitions.
	// Default: never.
	Until Position

	// CommitEvery is how often a group's progress is committed in the
	// background. It is committed at Close and before a partition goes to
	// another member, too. Negative leaves all commits to [Consumer.Commit].
	// Default: 5 s.
	CommitEvery time.Duration

	// SessionTimeout is how long the group waits for a member that is silent
	// before its partitions go to others. Default: 45 s.
	SessionTimeout time.Duration
}

// Consumer reads records. Open one with [OpenConsumer] and close it at the end.
// One [Consumer.Records] loop runs at a time; the other methods may be called
// concurrently.
//
// Delivery is at least once: a record counts as handled when the loop's body has
// returned for it, and only then is it committed. If the program dies in between,
// the record comes again.
type Consumer struct {
	fabric  *fabric
	options ConsumerOptions
	asking  *kgo.Client // for offsets and probes; signed in first, so that errors appear
	reading *kgo.Client
	conns   *connections

	mu       sync.Mutex            // guards the fields below
	known    map[partitionID]span  // as of opening
	from     map[partitionID]int64 // where to begin
	until    map[partitionID]int64 // where to end
	renewed  map[string]bool       // topics that were made again
	begun    map[partitionID]bool  // partitions of those that were begun with, in a group
	cursors  map[partitionID]*cursor
	assigned bool // the group has told what is ours
	stopPoll context.CancelCauseFunc

	// The loop alone uses these.
	busy  atomic.Bool
	queue []fetched
	errs  []error
	reads map[string][16]byte // which of the topics of a name is read; none if that is not known

	stop     context.CancelFunc // ends the background work
	wg       sync.WaitGroup
	closer   sync.Once
	closed   chan struct{}
	closeErr error
}

// cursor is how far a partition was read.
type cursor struct {
	id    partitionID
	start int64 // where reading began
	from  int64 // records before it are not handed out
	until int64 // reading ends here; -1 for never

	next      atomic.Int64 // the next offset to be handed out, while none are being handed out
	done      atomic.Int64 // all before were handled
	epoch     atomic.Int32 // of the last record handled
	committed atomic.Int64 // all before were committed
	lost      atomic.Bool  // another member has the partition now
}

func (c *cursor) finished() bool { return c.until >= 0 && c.next.Load() >= c.until }

// fetched are records that wait to be handed out.
type fetched struct {
	cursor  *cursor
	records []*kgo.Record
}

// GapError says that the cluster deleted records before they were read, because
// their topic keeps them for a limited time or size. Reading goes on behind them.
type GapError struct {
	Topic     string
	Partition int32
	From, To  int64 // the offsets lost are From up to but not including To
}

func (e *GapError) Error() string {
	return fmt.Sprintf("consume topic %q: %d records were deleted before they were read: offsets %d to %d of partition %d", e.Topic, e.To-e.From, e.From, e.To-1, e.Partition)
}

// OpenConsumer returns a Consumer that is signed in, knows that its topics exist
// and may be read, and where they begin and end. Where the fabric wants consumer
// groups claimed, the group is claimed for the caller. ctx bounds the opening only.
// The caller closes the Consumer.
//
// It returns [ErrInvalid], [ErrUnauthenticated], [ErrPermission], [ErrNotFound],
// [ErrConflict] for a group of somebody else, [ErrUnavailable], or ctx's error.
func OpenConsumer(ctx context.Context, cfg Config, options ConsumerOptions) (*Consumer, error) {
	if err := options.validate(); err != nil {
		return nil, fmt.Errorf("open consumer: %w", err)
	}
	f, err := cfg.resolve(ctx)
	if err != nil {
		return nil, fmt.Errorf("open consumer: %w", err)
	}
	asking, err := f.dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("open consumer: %w", err)
	}
	c := &Consumer{
		fabric:  f,
		options: options,
		asking:  asking,
		conns:   newConnections(),
		cursors: map[partitionID]*cursor{},
		renewed: map[string]bool{},
		begun:   map[partitionID]bool{},
		reads:   map[string][16]byte{},
		closed:  make(chan struct{}),
	}
	if err := c.open(ctx); err != nil {
		asking.Close()
		return nil, err
	}
	return c, nil
}

func (o *ConsumerOptions) validate() error {
	if len(o.Topics) == 0 {
		return invalid("there are no topics to consume")
	}
	for _, t := range o.Topics {
		if !kafkaTopic(t) {
			return invalid("topic %q is no topic's name", clip(t))
		}
	}
	o.Topics = slices.Clone(o.Topics)
	slices.Sort(o.Topics)
	o.Topics = slices.Compact(o.Topics)
	if len(o.Group) > 255 || strings.ContainsRune(o.Group, 0) {
		return invalid("consumer group: a name has at most 255 bytes")
	}
	if o.From.kind == positionNone {
		o.From = Start
	}
	if o.CommitEvery == 0 {
		o.CommitEvery = 5 * time.Second
	}
	if o.SessionTimeout == 0 {
		o.SessionTimeout = 45 * time.Second
	}
	return errors.Join(o.From.validate("From"), o.Until.validate("Until"))
}

func (c *Consumer) open(ctx context.Context) error {
	f, o := c.fabric, c.options
	places, err := f.partitions(ctx, c.asking, o.Topics)
	if err != nil {
		return err
	}
	ids := make([]partitionID, 0, len(places))
	for id, at := range places {
		ids = append(ids, id)
		c.reads[id.topic] = at.topic
	}
	if c.known, err = f.spans(ctx, c.asking, ids); err != nil {
		return err
	}
	if err := c.mayRead(ctx, ids); err != nil {
		return err
	}
	if c.from, err = f.resolvePosition(ctx, c.asking, o.From, c.known); err != nil {
		return err
	}
	if o.Until.kind != positionNone {
		if c.until, err = f.resolvePosition(ctx, c.asking, o.Until, c.known); err != nil {
			return err
		}
	}
	opts := []kgo.Opt{
		kgo.WithHooks(c.conns),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), // they show how far a transactional topic was read
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
	}
	c.conns.onRefused = c.refused
	if o.Group == "" {
		at := map[string]map[int32]kgo.Offset{}
		for id, offset := range c.from {
			cur := c.add(id, min(offset, c.known[id].end), offset)
			if at[id.topic] == nil {
				at[id.topic] = map[int32]kgo.Offset{}
			}
			at[id.topic][id.partition] = kgo.NewOffset().At(cur.start)
		}
		c.assigned = true
		opts = append(opts, kgo.ConsumePartitions(at))
	} else {
		if err := c.openGroup(ctx); err != nil {
			return err
		}
		opts = append(opts, c.groupOpts()...)
	}
	if c.reading, err = f.dial(ctx, opts...); err != nil {
		return fmt.Errorf("open consumer: %w", err)
	}
	run, stop := context.WithCancel(context.Background()) // ends with Close, not with ctx
	c.stop = stop
	c.wg.Go(func() { c.tend(run) })
	return nil
}

// mayRead fails if the caller may not read a topic; to look up its offsets needs less.
func (c *Consumer) mayRead(ctx context.Context, ids []partitionID) error {
	asked := map[string]bool{}
	for _, id := range ids {
		if asked[id.topic] {
			continue
		}
		asked[id.topic] = true
		err := persist(ctx, retriable, func() error {
			_, _, err := c.fabric.probe(ctx, c.asking, id, c.known[id].end)
			return err
		})
		if err != nil && !errors.Is(err, kerr.OffsetOutOfRange) {
			return err
		}
	}
	return nil
}

// openGroup claims the group where the fabric wants that, and fails if the caller
// may not use it.
func (c *Consumer) openGroup(ctx context.Context) error {
	f, group := c.fabric, c.options.Group
	if f.groups == "claimed" {
		client, err := NewClient(f.Config)
		if err != nil {
			return err
		}
		if err := client.ClaimGroup(ctx, group); err != nil {
			return err
		}
	}
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
	f, ok := explain(err).(*fault)
	if ok && f.condition == ErrPermission {
		f = &fault{
			condition: ErrPermission,
			reason:    c.fabric.who() + " may not use it",
			hint:      "choose another group, one that is yours",
			cause:     err,
		}
		return fmt.Errorf("consumer group %q: %w", c.options.Group, f)
	}
	return fmt.Errorf("consumer group %q: %w", c.options.Group, c.fabric.signedOut(err))
}

func (c *Consumer) groupOpts() []kgo.Opt {
	return []kgo.Opt{
		kgo.ConsumerGroup(c.options.Group),
		kgo.ConsumeTopics(c.options.Topics...),
		kgo.SessionTimeout(c.options.SessionTimeout),
		kgo.HeartbeatInterval(min(3*time.Second, c.options.SessionTimeout/3)),
		kgo.DisableAutoCommit(),
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, assigned map[string][]int32) {
			if len(assigned) == 0 {
				c.mu.Lock()
				c.assigned = true
				c.mu.Unlock()
			}
		}),
		kgo.AdjustFetchOffsetsFn(func(_ context.Context, offsets map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
			return c.take(offsets), nil
		}),
		kgo.OnPartitionsRevoked(func(ctx context.Context, _ *kgo.Client, lost map[string][]int32) {
			if len(lost) == 0 {
				return
			}
			if c.options.CommitEvery > 0 {
				if err := c.commit(ctx); err != nil {
					c.fabric.diagnostics().Warn("commit before partitions go to another member", "group", c.options.Group, "err", err)
				}
			}
			c.drop(lost)
		}),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, lost map[string][]int32) { c.drop(lost) }),
	}
}

// take begins with the partitions that the group assigned: where the group
// left off, or at From where it never was. A partition that is newer than
// the Consumer begins at its start, so that nothing of it is missed.
func (c *Consumer) take(offsets map[string]map[int32]kgo.Offset) map[string]map[int32]kgo.Offset {
	c.mu.Lock()
	defer c.mu.Unlock()
	for topic, partitions := range offsets {
		for partition, offset := range partitions {
			id := partitionID{topic, partition}
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
	c.assigned = true
	return offsets
}

// add begins with a partition. It is called with mu held, once others may call.
func (c *Consumer) add(id partitionID, start, from int64) *cursor {
	cur := &cursor{id: id, start: start, from: from, until: -1}
	if c.options.Until.kind != positionNone {
		cur.until = c.until[id] // 0 for a partition that was not there at opening
	}
	cur.next.Store(start)
	cur.done.Store(start)
	cur.committed.Store(start)
	cur.epoch.Store(-1)
	c.cursors[id] = cur
	return cur
}

// drop gives partitions up. Records of theirs that wait are another member's now.
func (c *Consumer) drop(lost map[string][]int32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for topic, partitions := range lost {
		for _, partition := range partitions {
			if cur := c.cursors[partitionID{topic, partition}]; cur != nil {
				cur.lost.Store(true)
				delete(c.cursors, cur.id)
			}
		}
	}
}

// Records returns the records in the order of each partition, as they come.
//
// An error comes with a zero Record. The loop may go on after it: a [*GapError]
// says that records are lost, [ErrPermission] and [ErrUnauthenticated] are asked
// about again, [ErrNotFound] says that a topic was deleted, which is read from its
// start if it is made again, and while the cluster is away the loop waits for it.
// The loop ends by itself when it has reached [ConsumerOptions.Until], after ctx's
// error, and after [ErrClosed].
//
// A record is handled when the body returns for it. If the body leaves the loop by
// break or return, its record is not handled, unless it was given to
// [Consumer.Commit]: it is not committed, and the next loop begins with it.
func (c *Consumer) Records(ctx context.Context) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		if !c.busy.CompareAndSwap(false, true) {
			yield(Record{}, invalid("the consumer's records are being read by another loop"))
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
				yield(Record{}, err)
				return
			}
		}
	}
}

// handOut yields what was fetched, and reports whether the loop goes on.
func (c *Consumer) handOut(yield func(Record, error) bool) bool {
	for len(c.errs) > 0 {
		err := c.errs[0]
		c.errs = c.errs[1:]
		if !yield(Record{}, err) {
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
			if show && !yield(record(r), nil) {
				next = r.Offset
				if cur.done.Load() > r.Offset { // committed by the body
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

func (c *Consumer) isClosed() bool {
	select {
	case <-c.closed:
		return true
	default:
		return false
	}
}

// handled moves what is handled forward, never back.
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

// record is the library's view of a Kafka record.
func record(r *kgo.Record) Record {
	out := Record{
		Event:     Event{Topic: r.Topic, Key: r.Key, Value: r.Value, Time: r.Timestamp},
		Partition: r.Partition,
		Offset:    r.Offset,
		Stored:    r.Timestamp,
	}
	for i, h := range r.Headers {
		switch h.Key {
		case HeaderID:
			out.ID = string(h.Value)
		case HeaderTime:
			if t, err := time.Parse(time.RFC3339Nano, string(h.Value)); err == nil {
				out.Time = t
			}
		default:
			if out.Headers == nil {
				out.Headers = make([]Header, 0, len(r.Headers)-i)
			}
			out.Headers = append(out.Headers, Header(h))
		}
	}
	return out
}

// finished reports whether everything was read that was asked for.
func (c *Consumer) finished() bool {
	if c.options.Until.kind == positionNone {
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

// pollIdle is after how long one who reads until the end looks where it is.
const pollIdle = 250 * time.Millisecond

var errIdle = errors.New("nothing came")

// poll fetches, into c.queue and c.errs. Its own error ends the loop.
func (c *Consumer) poll(ctx context.Context) error {
	poll, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if c.options.Until.kind != positionNone {
		timer := time.AfterFunc(pollIdle, func() { cancel(errIdle) })
		defer timer.Stop()
	}
	c.mu.Lock()
	c.stopPoll = cancel
	c.mu.Unlock()
	fetches := c.reading.PollFetches(poll) // all there is, so that the client fetches more meanwhile
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
		return fmt.Errorf("consume: %w", &fault{condition: ErrClosed, reason: "the consumer was closed"})
	}
	switch cause := context.Cause(poll); {
	case ctx.Err() != nil:
		return fmt.Errorf("consume: %w", c.conns.because(ctx.Err()))
	case cause == errIdle:
		c.lookAhead(ctx)
	case cause != nil:
		c.errs = append(c.errs, fmt.Errorf("consume%s: %w", c.fabric.signedInAs(), c.fabric.signedOut(cause)))
	}
	return nil
}

// refused interrupts a poll, which else would wait in silence for a better token.
func (c *Consumer) refused(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopPoll != nil {
		c.stopPoll(err)
	}
}

// arrived queues what came of one partition.
func (c *Consumer) arrived(topic string, p kgo.FetchPartition) {
	if p.Err != nil {
		if err := c.fetchError(topic, p); err != nil {
			c.errs = append(c.errs, err)
		}
		// The embedded broker, which has forgotten whose a topic was that is
		// gone, says that nobody may read it.
		denied := errors.Is(p.Err, kerr.TopicAuthorizationFailed) && p.Partition >= 0
		if errors.Is(p.Err, kerr.UnknownTopicID) {
			delete(c.reads, topic)
			c.renew(topic)
		} else if denied && c.remade(topic) {
			c.renew(topic)
		}
	}
	if _, known := c.reads[topic]; !known && len(p.Records) > 0 {
		c.remade(topic)
	}
	id := partitionID{topic, p.Partition}
	c.mu.Lock()
	cur := c.cursors[id]
	if cur == nil && c.renewed[topic] && c.options.Group == "" {
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
	case first < next:
		cur = c.rewind(cur, first)
	}
	c.queue = append(c.queue, fetched{cur, p.Records})
}

// rejoins reports whether a member whose session ended so is back by itself as
// soon as there is a coordinator: that one died, or has not heard of the member
// for too long.
func rejoins(err error) bool { return retriable(explain(err)) }

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

// remadeTimeout bounds the look at a topic that may be another one by now.
const remadeTimeout = 5 * time.Second

// remade reports whether the topic is another one than is being read.
func (c *Consumer) remade(topic string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), remadeTimeout)
	defer cancel()
	places, err := c.fabric.partitions(ctx, c.asking, []string{topic})
	if err != nil {
		return false
	}
	was := c.reads[topic]
	for _, at := range places {
		c.reads[topic] = at.topic
	}
	return c.reads[topic] != was
}

// renew begins anew with a topic that was deleted. The Kafka client holds on to the
// one that it knew, and would never read from another one of the same name.
func (c *Consumer) renew(topic string) {
	c.reading.PurgeTopicsFromConsuming(topic)
	gone := func(id partitionID) bool { return id.topic == topic }
	c.mu.Lock()
	maps.DeleteFunc(c.known, func(id partitionID, _ span) bool { return gone(id) })
	maps.DeleteFunc(c.from, func(id partitionID, _ int64) bool { return gone(id) })
	maps.DeleteFunc(c.until, func(id partitionID, _ int64) bool { return gone(id) })
	maps.DeleteFunc(c.begun, func(id partitionID, _ bool) bool { return gone(id) })
	for id, cur := range c.cursors {
		if gone(id) {
			cur.lost.Store(true)
			delete(c.cursors, id)
		}
	}
	c.renewed[topic] = true
	c.mu.Unlock()
	c.reading.AddConsumeTopics(topic)
}

// rewind begins anew with a partition that ends before the offset at which it was
// to be read: its log was cut, or is that of another topic. What was to be read
// until the end is not there any more.
func (c *Consumer) rewind(old *cursor, first int64) *cursor {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.until != nil {
		c.until[old.id] = first
	}
	return c.add(old.id, first, first)
}

func (c *Consumer) fetchError(topic string, p kgo.FetchPartition) error {
	loss := (*kgo.ErrDataLoss)(nil)
	switch {
	case errors.Is(p.Err, kgo.ErrClientClosed), errors.Is(p.Err, context.Canceled), errors.Is(p.Err, context.DeadlineExceeded):
		return nil // poll knows
	case errors.As(p.Err, &loss):
		return &GapError{topic, p.Partition, min(loss.ConsumedTo, loss.ResetTo), max(loss.ConsumedTo, loss.ResetTo)}
	case topic == "" && rejoins(p.Err):
		c.fabric.diagnostics().Info("joining the consumer group again", "group", c.options.Group, "err", p.Err)
		return nil
	case topic == "":
		return c.groupError(p.Err)
	}
	return c.fabric.topicError("consume", "read", topic, p.Err)
}

// lookAhead moves the cursors past what holds no records, so that one who reads
// until the end gets there even if the last offsets are empty.
func (c *Consumer) lookAhead(ctx context.Context) {
	c.mu.Lock()
	var open []*cursor
	for _, cur := range c.cursors {
		if !cur.finished() {
			open = append(open, cur)
		}
	}
	c.mu.Unlock()
	for _, cur := range open {
		next := cur.next.Load()
		past, found, err := c.fabric.probe(ctx, c.asking, cur.id, next)
		switch {
		case errors.Is(err, kerr.OffsetOutOfRange):
			c.skipDeleted(ctx, cur)
		case err != nil:
			c.errs = append(c.errs, err)
		case !found && past > next:
			cur.next.Store(past)
			cur.handled(past, cur.epoch.Load())
		}
	}
}

// skipDeleted moves a cursor to the start of its partition, if that has overtaken it.
func (c *Consumer) skipDeleted(ctx context.Context, cur *cursor) {
	spans, err := c.fabric.spans(ctx, c.asking, []partitionID{cur.id})
	if err != nil {
		c.errs = append(c.errs, err)
		return
	}
	next, start := cur.next.Load(), spans[cur.id].start
	if start <= next {
		return
	}
	c.errs = append(c.errs, &GapError{cur.id.topic, cur.id.partition, next, start})
	cur.next.Store(start)
	cur.handled(start, -1)
}

// Commit tells the group that the records handled so far need not come again. The
// records given count as handled too, and with each all before it in its partition:
// so a body can commit the record at hand. It does nothing without a group.
func (c *Consumer) Commit(ctx context.Context, records ...Record) error {
	c.mu.Lock()
	for _, r := range records {
		if cur := c.cursors[partitionID{r.Topic, r.Partition}]; cur != nil {
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

func (c *Consumer) commitOnce(ctx context.Context) error {
	offsets := map[string]map[int32]kgo.EpochOffset{}
	handled := map[*cursor]int64{}
	c.mu.Lock()
	for id, cur := range c.cursors {
		done := cur.done.Load()
		if done <= cur.committed.Load() {
			continue
		}
		if offsets[id.topic] == nil {
			offsets[id.topic] = map[int32]kgo.EpochOffset{}
		}
		offsets[id.topic][id.partition] = kgo.EpochOffset{Epoch: cur.epoch.Load(), Offset: done}
		handled[cur] = done
	}
	c.mu.Unlock()
	if len(offsets) == 0 {
		return nil
	}
	var failed error
	c.reading.CommitOffsetsSync(ctx, offsets, func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, err error) {
		failed = c.commitError(resp, err)
	})
	if failed != nil {
		return fmt.Errorf("commit: %w", failed)
	}
	for cur, done := range handled {
		cur.committed.Store(max(done, cur.committed.Load()))
	}
	return nil
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

// Progress is how far a Consumer has come in one partition.
type Progress struct {
	Topic     string
	Partition int32
	Start     int64 // the offset at which reading began
	Next      int64 // the offset to be read next
	End       int64 // the end of the partition now; End - Next is the lag
}

// Progress returns how far the Consumer has come in each partition that it reads.
// It asks the cluster for the ends, which ctx bounds.
func (c *Consumer) Progress(ctx context.Context) ([]Progress, error) {
	c.mu.Lock()
	var ids []partitionID
	for id := range c.cursors {
		ids = append(ids, id)
	}
	c.mu.Unlock()
	if len(ids) == 0 {
		return nil, nil
	}
	spans, err := c.fabric.spans(ctx, c.asking, ids)
	if err != nil {
		return nil, err
	}
	var all []Progress
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, s := range spans {
		if cur := c.cursors[id]; cur != nil {
			all = append(all, Progress{id.topic, id.partition, cur.start, max(cur.next.Load(), cur.done.Load()), s.end})
		}
	}
	slices.SortFunc(all, func(a, b Progress) int {
		if a.Topic != b.Topic {
			return strings.Compare(a.Topic, b.Topic)
		}
		return int(a.Partition - b.Partition)
	})
	return all, nil
}

// Close commits what was handled, leaves the group and disconnects. A loop that is
// running ends with [ErrClosed]. ctx bounds the commit, the goodbye and the wait for a
// renewal of the login that is under way. Calling Close again does nothing and
// returns the same.
func (c *Consumer) Close(ctx context.Context) error {
	c.closer.Do(func() {
		defer settle(ctx, c.fabric.TokenSource)
		c.stop()
		c.wg.Wait()
		if c.options.CommitEvery > 0 {
			c.closeErr = c.commit(ctx)
		}
		close(c.closed)
		if err := c.reading.LeaveGroupContext(ctx); err != nil {
			c.closeErr = errors.Join(c.closeErr, fmt.Errorf("leave group: %w", c.groupError(err)))
		}
		c.reading.Close()
		c.asking.Close()
	})
	return c.closeErr
}

// tend commits in the background, and finds new partitions.
func (c *Consumer) tend(ctx context.Context) {
	commits := make(<-chan time.Time)
	if c.options.Group != "" && c.options.CommitEvery > 0 {
		ticker := time.NewTicker(c.options.CommitEvery)
		defer ticker.Stop()
		commits = ticker.C
	}
	look := make(<-chan time.Time)
	if c.options.Group == "" && c.options.Until.kind == positionNone {
		ticker := time.NewTicker(kafka.NewPartitionsEvery)
		defer ticker.Stop()
		look = ticker.C
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-commits:
			if err := c.commit(ctx); err != nil && ctx.Err() == nil {
				c.fabric.diagnostics().Warn("commit in the background", "group", c.options.Group, "err", err)
			}
		case <-look:
			if err := c.findPartitions(ctx); err != nil && ctx.Err() == nil {
				c.fabric.diagnostics().Warn("look for new partitions", "err", err)
			}
		}
	}
}

// findPartitions reads partitions that were added, from their start.
func (c *Consumer) findPartitions(ctx context.Context) error {
	places, err := c.fabric.partitions(ctx, c.asking, c.options.Topics)
	if err != nil {
		return err
	}
	added := map[string]map[int32]kgo.Offset{}
	c.mu.Lock()
	for id := range places {
		if c.cursors[id] != nil || c.renewed[id.topic] {
			continue
		}
		c.add(id, 0, 0)
		if added[id.topic] == nil {
			added[id.topic] = map[int32]kgo.Offset{}
		}
		added[id.topic][id.partition] = kgo.NewOffset().At(0)
	}
	c.mu.Unlock()
	if len(added) > 0 {
		c.reading.AddConsumePartitions(added)
	}
	return nil
}
