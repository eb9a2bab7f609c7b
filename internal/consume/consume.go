// Package consume reads the records of topics. It hides how the Kafka client is used for that: which
// record comes next in each partition, which records are handled and committed, and what happens if
// records are deleted, a topic is deleted and created again, or a consumer group moves partitions.
//
// Start reading at [Reader.Records], then read group.go.
package consume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/errgroup"

	"github.com/diaspora-streams/diaspora/internal/kafka"
)

// Options says what a [Reader] reads, and how. All fields are required unless they say otherwise.
type Options struct {
	// Topics are the topics to read. Partitions are the partitions to read of each; nil means all,
	// including those that are added later.
	Topics     []string
	Partitions []int32

	// Group is the consumer group to join. Optional.
	Group string

	// From is where to start reading; in a group, only in partitions without a committed offset.
	// Until is where to stop. Optional.
	From, Until Position

	// CommitEvery is how often offsets are committed in the background. If it is negative, only
	// [Reader.Commit] commits. SessionTimeout is how long the group waits for a silent member.
	CommitEvery, SessionTimeout time.Duration

	// Dial returns a client that is signed in. first sends its first request. Connections watches
	// the client.
	Dial        func(ctx context.Context, first func(context.Context, *kgo.Client) error, opts ...kgo.Opt) (*kgo.Client, error)
	Connections *kafka.Connections

	// Explain puts errors into words for people.
	Explain Explainer
	// Diagnostics receives the Reader's own messages.
	Diagnostics *slog.Logger
}

// Explainer puts the errors of requests into words for people.
type Explainer interface {
	// Request explains an error of a request. what is the operation. The error may be a
	// [*kafka.TopicError].
	Request(what string, err error) error
	// Group explains an error of a request for the consumer group. The error may be a
	// [*kafka.TopicError], too.
	Group(err error) error
	// Login explains why the login was refused.
	Login(err error) error
}

var (
	// ErrClosed says that the Reader was closed.
	ErrClosed = errors.New("the reader is closed")
	// ErrBusy says that another loop is reading.
	ErrBusy = errors.New("the records are being read by another loop")
)

// NoPartitionError says that a topic does not have a partition.
type NoPartitionError struct {
	Topic     string
	Partition int32
	Has       int32 // how many partitions it has
}

func (e *NoPartitionError) Error() string {
	return fmt.Sprintf("it has no partition %d; it has %d, numbered from 0", e.Partition, e.Has)
}

// Reader reads records. Only one loop over its Records may run at a time; the other methods may be
// called concurrently.
type Reader struct {
	options Options
	client  *kgo.Client
	looking *sent // a request for offsets

	committing chan struct{} // holds a value while a commit is running

	mu         sync.Mutex                     // guards the fields below
	known      map[kafka.Partition]kafka.Span // where partitions began and ended when the Reader was opened
	from       map[kafka.Partition]int64      // where to start
	until      map[kafka.Partition]int64      // where to stop
	renewed    map[string]bool                // topics that were deleted, and may have been created again
	begun      map[kafka.Partition]bool       // of those topics: partitions that the group has assigned since
	cursors    map[kafka.Partition]*cursor
	assigned   bool   // the cursors are all partitions that this member is to read
	member     string // the member ID of this Reader, and the
	generation int32  // generation of the group, at the last assignment of partitions
	gaveUp     int32  // the last generation in which partitions were given up
	stopPoll   context.CancelCauseFunc

	// Only the loop uses these.
	busy  atomic.Bool
	queue []fetched
	errs  []error
	reads map[string]kafka.TopicID // the ID of the topic that is read under a name; missing if it is not known

	stop   context.CancelFunc // stops the background work
	wg     sync.WaitGroup
	closed chan struct{}
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

// Open returns a Reader. It has checked that the topics exist and may be read, and has looked up where
// they begin and end. ctx bounds only the opening. The caller closes the Reader.
func Open(ctx context.Context, options Options) (*Reader, error) {
	c := &Reader{
		options:    options,
		committing: make(chan struct{}, 1),
		cursors:    map[kafka.Partition]*cursor{},
		renewed:    map[string]bool{},
		begun:      map[kafka.Partition]bool{},
		reads:      map[string]kafka.TopicID{},
		gaveUp:     kafka.NoGeneration,
		closed:     make(chan struct{}),
		looking:    &sent{key: kmsg.ListOffsets, done: make(chan struct{})},
	}
	options.Connections.OnRefused = c.refused
	look := kafka.NewFirstLook(options.Topics, options.SessionTimeout)
	var err error
	if c.client, err = options.Dial(ctx, look.Ask, append(c.clientOpts(), look.Opts()...)...); err != nil {
		return nil, fmt.Errorf("open consumer: %w", err)
	}
	if err := c.open(ctx, look); err != nil {
		c.client.Close()
		return nil, err
	}
	return c, nil
}

// clientOpts returns the options of the client. It reads no topics yet: they are added when they
// have been checked.
func (c *Reader) clientOpts() []kgo.Opt {
	opts := []kgo.Opt{
		kgo.WithHooks(c.options.Connections, c.looking),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), // their offsets count towards how far a transactional topic was read
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
	}
	if c.options.Until.Kind != None {
		opts = append(opts, kgo.FetchMaxWait(pollIdle)) // lookAhead's requests wait for one that is waiting for records
	}
	if c.options.Group != "" {
		opts = append(opts, c.groupOpts()...)
	}
	return opts
}

// wants reports whether a partition is to be read.
func (o *Options) wants(partition int32) bool {
	return len(o.Partitions) == 0 || slices.Contains(o.Partitions, partition)
}

// choose removes from places all partitions but those in o.Partitions. It fails if one of the topics
// does not have one of these.
func (o *Options) choose(places map[kafka.Partition]kafka.Place) error {
	has := map[string]int32{} // how many partitions each topic has
	for id := range places {
		has[id.Topic]++
		if !o.wants(id.Partition) {
			delete(places, id)
		}
	}
	for _, topic := range o.Topics {
		for _, p := range o.Partitions {
			if p >= has[topic] {
				return &NoPartitionError{topic, p, has[topic]}
			}
		}
	}
	return nil
}

// open checks what is to be read, and begins to read it. Checks do not wait for each other: over a
// long link, each round trip takes time.
func (c *Reader) open(ctx context.Context, look *kafka.FirstLook) error {
	o := c.options
	places, err := look.Places(ctx, c.client)
	if err != nil {
		return o.Explain.Request("look up topics", err)
	}
	if err := o.choose(places); err != nil {
		return err
	}
	for id, at := range places {
		c.reads[id.Topic] = at.Topic
	}
	c.client.PauseFetchTopics(o.Topics...) // until it is certain that they may be read
	checks, checking := errgroup.WithContext(ctx)
	checks.Go(func() error {
		defer c.looking.now() // if there was nothing to ask
		if err := c.lookUp(checking, slices.Collect(maps.Keys(places))); err != nil {
			return o.Explain.Request("look up offsets", err)
		}
		if o.Group == "" {
			c.readAlone()
		}
		return nil
	})
	checks.Go(func() error {
		// To fetch, the client opens another connection to the same broker, and sends nothing else to
		// the broker meanwhile. Let it ask for offsets first, because these are needed sooner.
		if !c.looking.wait(checking) {
			return nil // another check has failed
		}
		return c.mayRead(checking, places)
	})
	if o.Group != "" {
		checks.Go(func() error {
			if err := kafka.CheckGroup(checking, c.client, o.Group); err != nil {
				return o.Explain.Group(err)
			}
			return nil
		})
	}
	if err := checks.Wait(); err != nil {
		return err
	}
	if o.Group != "" {
		c.client.AddConsumeTopics(o.Topics...)
	}
	c.client.ResumeFetchTopics(o.Topics...)
	run, stop := context.WithCancel(context.Background()) // ends with Close, not with ctx
	c.stop = stop
	c.wg.Go(func() { c.runBackground(run) })
	return nil
}

// readAlone begins to read all partitions, without a group.
func (c *Reader) readAlone() {
	at := map[kafka.Partition]kgo.Offset{}
	for id, offset := range c.from {
		at[id] = kgo.NewOffset().At(c.add(id, min(offset, c.known[id].End), offset).start)
	}
	c.assigned = true
	c.client.AddConsumePartitions(kafka.ByTopic(at))
}

// lookUp finds out where the partitions begin and end, and where to start and to stop.
func (c *Reader) lookUp(ctx context.Context, ids []kafka.Partition) (err error) {
	if c.known, err = kafka.Spans(ctx, c.client, ids); err != nil {
		return err
	}
	if c.from, err = c.options.From.Resolve(ctx, c.client, c.known); err == nil && c.options.Until.Kind != None {
		c.until, err = c.options.Until.Resolve(ctx, c.client, c.known)
	}
	return err
}

// mayRead fails if the caller may not read one of the topics. Looking up offsets does not show
// this, because it needs fewer rights, so mayRead fetches from one partition of each topic. It does
// so from an offset that no record has, so that nothing is transferred.
func (c *Reader) mayRead(ctx context.Context, places map[kafka.Partition]kafka.Place) error {
	some := map[string]int32{}
	for id := range places {
		if p, ok := some[id.Topic]; !ok || id.Partition < p {
			some[id.Topic] = id.Partition
		}
	}
	from := map[kafka.Partition]int64{}
	for topic, p := range some {
		from[kafka.Partition{Topic: topic, Partition: p}] = math.MaxInt64
	}
	what, stale := "look up topics", false
	err := kafka.Repeat(ctx, func() (err error) {
		if stale {
			if places, err = kafka.Places(ctx, c.client, c.options.Topics); err != nil {
				return err
			}
		}
		stale = true // if an attempt fails, the leader may be another one
		for id, found := range kafka.Probe(ctx, c.client, places, from) {
			if found.Err != nil && !errors.Is(found.Err, kerr.OffsetOutOfRange) {
				what = fmt.Sprintf("consume topic %q", id.Topic)
				return found.Err
			}
		}
		return nil
	})
	if err != nil {
		return c.options.Explain.Request(what, err)
	}
	return nil
}

// sent is a hook of the client. It waits until the first request of a kind is sent.
type sent struct {
	key  kmsg.Key
	once sync.Once
	done chan struct{}
}

// OnBrokerWrite implements [kgo.HookBrokerWrite].
func (s *sent) OnBrokerWrite(_ kgo.BrokerMetadata, key int16, _ int, _, _ time.Duration, _ error) {
	if kmsg.Key(key) == s.key {
		s.now()
	}
}

// now ends the wait.
func (s *sent) now() { s.once.Do(func() { close(s.done) }) }

// wait reports false if ctx ends first.
func (s *sent) wait(ctx context.Context) bool {
	select {
	case <-s.done:
		return true
	case <-ctx.Done():
		return false
	}
}

// add starts reading a partition. The caller holds mu, unless the Reader is still being opened.
func (c *Reader) add(id kafka.Partition, start, from int64) *cursor {
	cur := &cursor{id: id, start: start, from: from, until: -1}
	if c.options.Until.Kind != None {
		cur.until = c.until[id] // 0 for a partition that did not exist at opening, so that it counts as read
	}
	cur.next.Store(start)
	cur.done.Store(start)
	cur.committed.Store(start)
	cur.epoch.Store(-1)
	c.cursors[id] = cur
	return cur
}

// Progress says how far one partition has been read.
type Progress struct {
	Topic     string
	Partition int32
	Start     int64 // the offset at which reading began
	Next      int64 // the offset to read next
	End       int64 // the current end of the partition
	Until     int64 // the offset at which reading ends; -1 for never
}

// Progress returns how far each partition has been read. It asks the cluster for the current ends.
func (c *Reader) Progress(ctx context.Context) ([]Progress, error) {
	c.mu.Lock()
	var ids []kafka.Partition
	for id := range c.cursors {
		ids = append(ids, id)
	}
	c.mu.Unlock()
	if len(ids) == 0 {
		// A member of a group loses its partitions if the cluster is unreachable, and there is no other request that
		// would fail.
		if err := c.options.Connections.Err(); err != nil {
			return nil, c.options.Explain.Request("look up offsets", err)
		}
		return nil, nil
	}
	spans, err := kafka.Spans(ctx, c.client, ids)
	if err != nil {
		return nil, c.options.Explain.Request("look up offsets", err)
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
// with [ErrClosed]. When ctx ends, connections to a cluster that does not answer are closed in the
// background. Close must be called only once.
func (c *Reader) Close(ctx context.Context) (err error) {
	c.stop()
	c.wg.Wait()
	if c.options.CommitEvery > 0 {
		err = c.Commit(ctx)
	}
	close(c.closed)
	if left := c.client.LeaveGroupContext(ctx); left != nil {
		err = errors.Join(err, fmt.Errorf("leave group: %w", c.options.Explain.Group(left)))
	}
	disconnected := make(chan struct{})
	go func() {
		defer close(disconnected)
		c.client.Close()
	}()
	select {
	case <-disconnected:
	case <-ctx.Done(): // closing the client's fetch session takes up to 20 s if the cluster does not answer
	}
	return err
}

// runBackground commits in the background and looks for new partitions, until ctx ends.
func (c *Reader) runBackground(ctx context.Context) {
	var commits, look <-chan time.Time
	if c.options.Group != "" && c.options.CommitEvery > 0 {
		commits = time.Tick(c.options.CommitEvery)
	}
	if c.options.Group == "" && c.options.Until.Kind == None {
		look = time.Tick(kafka.NewPartitionsEvery)
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-commits:
			if err := c.Commit(ctx); err != nil && ctx.Err() == nil {
				c.options.Diagnostics.Warn("commit in the background", "group", c.options.Group, "err", err)
			}
		case <-look:
			if err := c.findPartitions(ctx); err != nil && ctx.Err() == nil {
				c.options.Diagnostics.Warn("look for new partitions", "err", err)
			}
		}
	}
}

// findPartitions starts reading partitions that were added, from their start.
func (c *Reader) findPartitions(ctx context.Context) error {
	places, err := kafka.Places(ctx, c.client, c.options.Topics)
	if err != nil {
		return c.options.Explain.Request("look up topics", err)
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
		c.client.AddConsumePartitions(kafka.ByTopic(added))
	}
	return nil
}
