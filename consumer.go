package diaspora

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora/internal/kafka"
)

// ConsumerOptions says what a [Consumer] reads.
type ConsumerOptions struct {
	// Topics are the topics to read. Required.
	Topics []string

	// Partitions are the partitions to read of each topic. Default: all, including those that are
	// added later. A group assigns partitions itself, so Partitions and Group exclude each other.
	Partitions []int32

	// Group is the ID of the consumer group to join. Its members share the partitions, and the
	// cluster stores how far they have read. If it is empty, the Consumer reads all partitions
	// alone, and nothing is stored.
	Group string

	// From is where to start reading. In a group, it applies only to partitions without a committed
	// offset. Default: [Start].
	From Position

	// Until makes [Consumer.Records] end when every partition is read up to that position. The
	// position is resolved when the Consumer is opened: with [End], the Consumer reads all records
	// that exist then. In a group, each member ends when it has read its own partitions. Default:
	// never.
	Until Position

	// CommitEvery is how often offsets are committed to the group in the background. They are also
	// committed at Close, and before a partition goes to another member. If it is negative, only
	// [Consumer.Commit] commits. Default: 5 s.
	CommitEvery time.Duration

	// SessionTimeout is how long the group waits for a silent member before it gives the member's
	// partitions to others. Default: 45 s.
	SessionTimeout time.Duration
}

// Consumer reads records. Open one with [OpenConsumer] and close it at the end. Only one
// [Consumer.Records] loop may run at a time; the other methods may be called concurrently.
//
// Delivery is at least once. A record is handled when the loop's body returns for it, and only
// handled records are committed. If the program dies before the commit, the record is delivered
// again.
type Consumer struct {
	fabric  *fabric
	options ConsumerOptions
	lookups *kgo.Client // for offsets and probes; signs in first, so that opening fails if the login is rejected
	fetches *kgo.Client
	conns   *kafka.Connections

	committing chan struct{} // holds a value while a commit is running

	mu         sync.Mutex                     // guards the fields below
	known      map[kafka.Partition]kafka.Span // where partitions began and ended when the Consumer was opened
	from       map[kafka.Partition]int64      // where to start
	until      map[kafka.Partition]int64      // where to stop
	renewed    map[string]bool                // topics that were deleted, and may have been created again
	begun      map[kafka.Partition]bool       // of those topics: partitions that the group has assigned since
	cursors    map[kafka.Partition]*cursor
	assigned   bool   // the cursors are all partitions that this member is to read
	member     string // the member ID of this Consumer, and the
	generation int32  // generation of the group, at the last assignment of partitions
	gaveUp     int32  // the last generation in which partitions were given up
	stopPoll   context.CancelCauseFunc

	// Only the loop uses these.
	busy  atomic.Bool
	queue []fetched
	errs  []error
	reads map[string]kafka.TopicID // the ID of the topic that is read under a name; missing if it is not known

	stop     context.CancelFunc // stops the background work
	wg       sync.WaitGroup
	closer   sync.Once
	closed   chan struct{}
	closeErr error
}

// cursor is how far a partition has been read.
type cursor struct {
	id    kafka.Partition
	start int64 // the offset at which reading began
	from  int64 // records before it are skipped
	until int64 // reading ends here; -1 for never

	next      atomic.Int64 // the next offset to yield; not updated while a batch is being yielded
	done      atomic.Int64 // all records before it are handled
	epoch     atomic.Int32 // leader epoch of the last handled record
	committed atomic.Int64 // all records before it are committed
	lost      atomic.Bool  // the partition was given up: its remaining records must not be yielded
}

func (c *cursor) finished() bool { return c.until >= 0 && c.next.Load() >= c.until }

// OpenConsumer returns a Consumer that is signed in. It has checked that its topics exist and may
// be read, and has looked up where they begin and end. Consumer groups are private to their owner:
// a group of the same ID of somebody else is another group. ctx bounds only the opening. The caller
// closes the Consumer.
//
// It returns [ErrInvalid], [ErrUnauthenticated], [ErrPermission], [ErrNotFound], [ErrUnavailable],
// or ctx's error.
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
		fabric:     f,
		options:    options,
		lookups:    asking,
		conns:      new(kafka.Connections),
		committing: make(chan struct{}, 1),
		cursors:    map[kafka.Partition]*cursor{},
		renewed:    map[string]bool{},
		begun:      map[kafka.Partition]bool{},
		reads:      map[string]kafka.TopicID{},
		gaveUp:     kafka.NoGeneration,
		closed:     make(chan struct{}),
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
			return invalid("%q is not a valid topic name", clip(t))
		}
	}
	o.Topics = slices.Clone(o.Topics)
	slices.Sort(o.Topics)
	o.Topics = slices.Compact(o.Topics)
	if len(o.Group) > 255 || strings.ContainsRune(o.Group, 0) {
		return invalid("consumer group: a name has at most 255 bytes")
	}
	if len(o.Partitions) > 0 && o.Group != "" {
		return invalid("a consumer group assigns its members the partitions; Partitions and Group exclude each other")
	}
	for _, p := range o.Partitions {
		if p < 0 {
			return invalid("partition %d is negative", p)
		}
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

// wants reports whether a partition is to be read.
func (o *ConsumerOptions) wants(partition int32) bool {
	return len(o.Partitions) == 0 || slices.Contains(o.Partitions, partition)
}

// choose removes from places all partitions but those in o.Partitions. It fails if one of the topics
// does not have one of these.
func (o *ConsumerOptions) choose(places map[kafka.Partition]kafka.Place) error {
	if len(o.Partitions) == 0 {
		return nil
	}
	for _, topic := range o.Topics {
		for _, p := range o.Partitions {
			if _, ok := places[kafka.Partition{Topic: topic, Partition: p}]; ok {
				continue
			}
			n := 0
			for id := range places {
				if id.Topic == topic {
					n++
				}
			}
			return &TopicError{"consume", clip(topic), &Error{
				Condition: ErrNotFound,
				Reason:    fmt.Sprintf("it has no partition %d; it has %d, numbered from 0", p, n),
			}}
		}
	}
	maps.DeleteFunc(places, func(id kafka.Partition, _ kafka.Place) bool { return !o.wants(id.Partition) })
	return nil
}

func (c *Consumer) open(ctx context.Context) error {
	f, o := c.fabric, c.options
	places, err := kafka.Places(ctx, c.lookups, o.Topics)
	if err != nil {
		return f.lookupError("look up topics", err)
	}
	if err := o.choose(places); err != nil {
		return err
	}
	ids := make([]kafka.Partition, 0, len(places))
	for id, at := range places {
		ids = append(ids, id)
		c.reads[id.Topic] = at.Topic
	}
	if c.known, err = kafka.Spans(ctx, c.lookups, ids); err != nil {
		return f.lookupError("look up offsets", err)
	}
	if err := c.mayRead(ctx, ids); err != nil {
		return err
	}
	if c.from, err = o.From.resolve(ctx, c.lookups, c.known); err == nil && o.Until.kind != positionNone {
		c.until, err = o.Until.resolve(ctx, c.lookups, c.known)
	}
	if err != nil {
		return f.lookupError("look up offsets", err)
	}
	opts := []kgo.Opt{
		kgo.WithHooks(c.conns),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), // their offsets count towards how far a transactional topic was read
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
	}
	c.conns.OnRefused = c.refused
	if o.Group == "" {
		at := map[kafka.Partition]kgo.Offset{}
		for id, offset := range c.from {
			at[id] = kgo.NewOffset().At(c.add(id, min(offset, c.known[id].End), offset).start)
		}
		c.assigned = true
		opts = append(opts, kgo.ConsumePartitions(kafka.ByTopic(at)))
	} else {
		if err := kafka.CheckGroup(ctx, c.lookups, o.Group); err != nil {
			return c.groupError(err)
		}
		opts = append(opts, c.groupOpts()...)
	}
	if c.fetches, err = f.dial(ctx, opts...); err != nil {
		return fmt.Errorf("open consumer: %w", err)
	}
	run, stop := context.WithCancel(context.Background()) // ends with Close, not with ctx
	c.stop = stop
	c.wg.Go(func() { c.runBackground(run) })
	return nil
}

// mayRead fails if the caller may not read one of the topics. Looking up offsets does not show
// this, because it needs fewer rights, so mayRead fetches from one partition of each topic.
func (c *Consumer) mayRead(ctx context.Context, ids []kafka.Partition) error {
	asked := map[string]bool{}
	for _, id := range ids {
		if asked[id.Topic] {
			continue
		}
		asked[id.Topic] = true
		err := kafka.Repeat(ctx, func() error {
			_, _, err := kafka.Probe(ctx, c.lookups, id, c.known[id].End)
			return err
		})
		if err != nil && !errors.Is(err, kerr.OffsetOutOfRange) {
			return c.fabric.lookupError(fmt.Sprintf("consume topic %q", id.Topic), err)
		}
	}
	return nil
}

// lookupError explains the error of a request that looks something up.
func (f *fabric) lookupError(what string, err error) error {
	if t := (*kafka.TopicError)(nil); errors.As(err, &t) {
		return f.topicError("consume", "read", t.Topic, t.Err)
	}
	return fmt.Errorf("%s: %w", what, f.loginError(err))
}

// add starts reading a partition. The caller holds mu, unless the Consumer is still being opened.
func (c *Consumer) add(id kafka.Partition, start, from int64) *cursor {
	cur := &cursor{id: id, start: start, from: from, until: -1}
	if c.options.Until.kind != positionNone {
		cur.until = c.until[id] // 0 for a partition that did not exist at opening, so that it counts as read
	}
	cur.next.Store(start)
	cur.done.Store(start)
	cur.committed.Store(start)
	cur.epoch.Store(-1)
	c.cursors[id] = cur
	return cur
}

// Progress says how far a Consumer has read one partition.
type Progress struct {
	Topic     string
	Partition int32
	Start     int64 // the offset at which reading began
	Next      int64 // the offset to read next
	End       int64 // the current end of the partition; End - Next is the lag
	Until     int64 // the offset at which reading ends; -1 for never
}

// Progress returns how far the Consumer has read each of its partitions. It asks the cluster for the
// current ends; ctx bounds that.
func (c *Consumer) Progress(ctx context.Context) ([]Progress, error) {
	c.mu.Lock()
	var ids []kafka.Partition
	for id := range c.cursors {
		ids = append(ids, id)
	}
	c.mu.Unlock()
	if len(ids) == 0 {
		return nil, nil
	}
	spans, err := kafka.Spans(ctx, c.lookups, ids)
	if err != nil {
		return nil, c.fabric.lookupError("look up offsets", err)
	}
	var all []Progress
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, s := range spans {
		if cur := c.cursors[id]; cur != nil {
			all = append(all, Progress{id.Topic, id.Partition, cur.start, max(cur.next.Load(), cur.done.Load()), s.End, cur.until})
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

// Close commits the handled records, leaves the group and disconnects. A loop that is running ends
// with [ErrClosed]. If the login is being renewed, Close waits for that, too. ctx bounds all of
// this: when it ends, connections to a cluster that does not answer are closed in the background.
// Calling Close again does nothing and returns the same error.
func (c *Consumer) Close(ctx context.Context) error {
	c.closer.Do(func() {
		defer settle(ctx, c.fabric.TokenSource)
		c.stop()
		c.wg.Wait()
		if c.options.CommitEvery > 0 {
			c.closeErr = c.commit(ctx)
		}
		close(c.closed)
		if err := c.fetches.LeaveGroupContext(ctx); err != nil {
			c.closeErr = errors.Join(c.closeErr, fmt.Errorf("leave group: %w", c.groupError(err)))
		}
		disconnected := make(chan struct{})
		go func() {
			defer close(disconnected)
			c.fetches.Close()
			c.lookups.Close()
		}()
		select {
		case <-disconnected:
		case <-ctx.Done(): // closing the client's fetch session takes up to 20 s if the cluster does not answer
		}
	})
	return c.closeErr
}

// runBackground commits in the background and looks for new partitions, until ctx ends.
func (c *Consumer) runBackground(ctx context.Context) {
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

// findPartitions starts reading partitions that were added, from their start.
func (c *Consumer) findPartitions(ctx context.Context) error {
	places, err := kafka.Places(ctx, c.lookups, c.options.Topics)
	if err != nil {
		return c.fabric.lookupError("look up topics", err)
	}
	added := map[kafka.Partition]kgo.Offset{}
	c.mu.Lock()
	for id := range places {
		if c.cursors[id] != nil || c.renewed[id.Topic] || !c.options.wants(id.Partition) {
			continue
		}
		c.add(id, 0, 0)
		added[id] = kgo.NewOffset().At(0)
	}
	c.mu.Unlock()
	if len(added) > 0 {
		c.fetches.AddConsumePartitions(kafka.ByTopic(added))
	}
	return nil
}
