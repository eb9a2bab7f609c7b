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
	// Topics to read. Required.
	Topics []string

	// Partitions are those of each topic that are read. Default: all, and those that are
	// added. A group assigns partitions itself, so Partitions and Group exclude each other.
	Partitions []int32

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
	conns   *kafka.Connections

	committing chan struct{} // holds one, of whoever commits

	mu         sync.Mutex                // guards the fields below
	known      map[kafka.Partition]span  // as of opening
	from       map[kafka.Partition]int64 // where to begin
	until      map[kafka.Partition]int64 // where to end
	renewed    map[string]bool           // topics that were made again
	begun      map[kafka.Partition]bool  // partitions of those that were begun with, in a group
	cursors    map[kafka.Partition]*cursor
	assigned   bool   // the cursors are all that the group wants to be read
	member     string // the ID under which the group knows this Consumer, and as
	generation int32  // of which generation, when it was assigned its partitions
	gaveUp     int32  // the generation in which partitions were given up last
	stopPoll   context.CancelCauseFunc

	// The loop alone uses these.
	busy  atomic.Bool
	queue []fetched
	errs  []error
	reads map[string]kafka.TopicID // which of the topics of a name is read; none if that is not known

	stop     context.CancelFunc // ends the background work
	wg       sync.WaitGroup
	closer   sync.Once
	closed   chan struct{}
	closeErr error
}

// cursor is how far a partition was read.
type cursor struct {
	id    kafka.Partition
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

// OpenConsumer returns a Consumer that is signed in, knows that its topics exist
// and may be read, and where they begin and end. A consumer group is private to the
// caller, whatever its ID. ctx bounds the opening only. The caller closes the Consumer.
//
// It returns [ErrInvalid], [ErrUnauthenticated], [ErrPermission], [ErrNotFound],
// [ErrUnavailable], or ctx's error.
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
		asking:     asking,
		conns:      new(kafka.Connections),
		committing: make(chan struct{}, 1),
		cursors:    map[kafka.Partition]*cursor{},
		renewed:    map[string]bool{},
		begun:      map[kafka.Partition]bool{},
		reads:      map[string]kafka.TopicID{},
		gaveUp:     noGeneration,
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
			return invalid("topic %q is no topic's name", clip(t))
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

// choose leaves only the partitions that are to be read, which each of the topics must have.
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
	places, err := f.partitions(ctx, c.asking, o.Topics)
	if err != nil {
		return err
	}
	if err := o.choose(places); err != nil {
		return err
	}
	ids := make([]kafka.Partition, 0, len(places))
	for id, at := range places {
		ids = append(ids, id)
		c.reads[id.Topic] = at.Topic
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
	c.conns.OnRefused = c.refused
	if o.Group == "" {
		at := map[string]map[int32]kgo.Offset{}
		for id, offset := range c.from {
			cur := c.add(id, min(offset, c.known[id].end), offset)
			if at[id.Topic] == nil {
				at[id.Topic] = map[int32]kgo.Offset{}
			}
			at[id.Topic][id.Partition] = kgo.NewOffset().At(cur.start)
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
func (c *Consumer) mayRead(ctx context.Context, ids []kafka.Partition) error {
	asked := map[string]bool{}
	for _, id := range ids {
		if asked[id.Topic] {
			continue
		}
		asked[id.Topic] = true
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

// add begins with a partition. It is called with mu held, once others may call.
func (c *Consumer) add(id kafka.Partition, start, from int64) *cursor {
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

// Progress is how far a Consumer has come in one partition.
type Progress struct {
	Topic     string
	Partition int32
	Start     int64 // the offset at which reading began
	Next      int64 // the offset to be read next
	End       int64 // the end of the partition now; End - Next is the lag
	Until     int64 // the offset at which reading ends; -1 for never
}

// Progress returns how far the Consumer has come in each partition that it reads.
// It asks the cluster for the ends, which ctx bounds.
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
	spans, err := c.fabric.spans(ctx, c.asking, ids)
	if err != nil {
		return nil, err
	}
	var all []Progress
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, s := range spans {
		if cur := c.cursors[id]; cur != nil {
			all = append(all, Progress{id.Topic, id.Partition, cur.start, max(cur.next.Load(), cur.done.Load()), s.end, cur.until})
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
// running ends with [ErrClosed]. ctx bounds all of it, and the wait for a renewal of the
// login that is under way: when it ends, connections to a cluster that does not answer
// are closed in the background. Calling Close again does nothing and returns the same.
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
		disconnected := make(chan struct{})
		go func() {
			defer close(disconnected)
			c.reading.Close()
			c.asking.Close()
		}()
		select {
		case <-disconnected:
		case <-ctx.Done(): // the Kafka client closes its fetch session, which takes up to 20 s without an answer
		}
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
		if c.cursors[id] != nil || c.renewed[id.Topic] || !c.options.wants(id.Partition) {
			continue
		}
		c.add(id, 0, 0)
		if added[id.Topic] == nil {
			added[id.Topic] = map[int32]kgo.Offset{}
		}
		added[id.Topic][id.Partition] = kgo.NewOffset().At(0)
	}
	c.mu.Unlock()
	if len(added) > 0 {
		c.reading.AddConsumePartitions(added)
	}
	return nil
}
