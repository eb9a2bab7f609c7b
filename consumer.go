package diaspora

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora/internal/consume"
	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/trust"
)

// ConsumerOptions says what a [Consumer] reads.
type ConsumerOptions struct {
	// Topics are the topics to read. Required.
	Topics []string

	// Partitions are the partitions to read of each topic. Default: all, including those that are
	// added later. Partitions and Group are mutually exclusive, because a group assigns partitions
	// itself.
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
// Delivery is at least once. A record is handled when an iteration of the loop over it completes,
// and only handled records are committed. If the program dies before the commit, the record is
// delivered again.
type Consumer struct {
	fabric *fabric
	reader *consume.Reader
	conns  *kafka.Connections

	closer   sync.Once
	closeErr error
}

// OpenConsumer returns a Consumer that is signed in. It has checked that its topics exist and may
// be read, and has looked up where they begin and end. Consumer groups are private to their owner:
// two owners who use the same group ID have two separate groups. ctx bounds only the opening. The
// caller closes the Consumer.
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
	c := &Consumer{fabric: f, conns: new(kafka.Connections)}
	c.reader, err = consume.Open(ctx, consume.Options{
		Topics:         options.Topics,
		Partitions:     options.Partitions,
		Group:          options.Group,
		From:           options.From.at,
		Until:          options.Until.at,
		CommitEvery:    options.CommitEvery,
		SessionTimeout: options.SessionTimeout,
		Dial:           f.dial,
		Connections:    c.conns,
		Explain:        readErrors{f, options.Group},
		Diagnostics:    f.diagnostics(),
	})
	if missing := (*consume.NoPartitionError)(nil); errors.As(err, &missing) {
		err = &TopicError{"consume", clip(missing.Topic), &Error{Condition: ErrNotFound, Reason: missing.Error()}}
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (o *ConsumerOptions) validate() error {
	if len(o.Topics) == 0 {
		return invalid("there are no topics to consume")
	}
	for _, t := range o.Topics {
		if !kafka.IsTopic(t) {
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
	if o.From == (Position{}) {
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

// GapError says that the cluster deleted records before they were read, because their topic keeps
// records only for a limited time or up to a limited size. Reading continues after the gap.
type GapError struct {
	Topic     string
	Partition int32
	From, To  int64 // the lost offsets: from From up to but not including To
}

func (e *GapError) Error() string {
	return fmt.Sprintf("consume topic %q: %d records were deleted before they were read: offsets %d to %d of partition %d", e.Topic, e.To-e.From, e.From, e.To-1, e.Partition)
}

// Records returns the records as they arrive, in order within each partition.
//
// An error comes with a zero Record. Most errors do not end the loop:
//
//   - A [*GapError] says that records are lost.
//   - After [ErrPermission] and [ErrUnauthenticated], the loop keeps trying to read.
//   - [ErrNotFound] says that a topic was deleted. If the topic is created again, it is read from
//     its start.
//
// While the cluster is unreachable, the loop waits for it. The loop ends by itself when it has
// reached [ConsumerOptions.Until], after ctx's error, and after [ErrClosed].
//
// A record is handled when the iteration over it completes. If the body of the loop ends it by break
// or return, the current record is not handled: it is not committed, and the next loop starts with
// it. To prevent that, the body can pass the record to [Consumer.Commit] first.
func (c *Consumer) Records(ctx context.Context) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		for r, err := range c.reader.Records(ctx) {
			var next Record
			var gap *consume.GapError
			switch {
			case err == nil:
				next = record(r)
			case errors.As(err, &gap):
				err = (*GapError)(gap)
			case err == consume.ErrBusy:
				err = invalid("the consumer's records are being read by another loop")
			case err == consume.ErrClosed:
				err = fmt.Errorf("consume: %w", &Error{Condition: ErrClosed, Reason: "the consumer was closed"})
			case err == ctx.Err():
				err = fmt.Errorf("consume: %w", withConnError(err, c.conns))
			}
			if !yield(next, err) {
				return
			}
		}
	}
}

// record converts a Kafka record to a Record.
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

// Commit commits the records that have been handled so far, so that the group does not deliver them
// again. It also counts the given records, and all before them in their partitions, as handled: the
// body of a loop can thus commit its current record. Without a group, it does nothing.
func (c *Consumer) Commit(ctx context.Context, records ...Record) error {
	for _, r := range records {
		c.reader.Handled(kafka.Partition{Topic: r.Topic, Partition: r.Partition}, r.Offset+1)
	}
	return c.reader.Commit(ctx)
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
	found, err := c.reader.Progress(ctx)
	var all []Progress
	for _, p := range found {
		all = append(all, Progress(p))
	}
	return all, err
}

// Close commits the handled records, leaves the group and disconnects. A loop that is running ends
// with [ErrClosed]. If the login is being renewed, Close waits for that, too. ctx bounds all of
// this: when it ends, connections to a cluster that does not answer are closed in the background.
// Calling Close again does nothing and returns the same error.
func (c *Consumer) Close(ctx context.Context) error {
	c.closer.Do(func() {
		defer trust.Settle(ctx, c.fabric.TokenSource)
		c.closeErr = c.reader.Close(ctx)
	})
	return c.closeErr
}

// readErrors puts the errors of a Consumer into words for people.
type readErrors struct {
	fabric *fabric
	group  string
}

// Request implements [consume.Explainer].
func (e readErrors) Request(what string, err error) error {
	if t := (*kafka.TopicError)(nil); errors.As(err, &t) {
		return e.fabric.topicError("consume", "read", t.Topic, t.Err)
	}
	return fmt.Errorf("%s: %w", what, e.fabric.loginError(err))
}

// Login implements [consume.Explainer].
func (e readErrors) Login(err error) error {
	return fmt.Errorf("consume%s: %w", e.fabric.signedInAs(), e.fabric.loginError(err))
}

// Group implements [consume.Explainer].
func (e readErrors) Group(err error) error {
	if t := (*kafka.TopicError)(nil); errors.As(err, &t) {
		return e.Request("", err)
	}
	why := e.fabric.loginError(err)
	if f, ok := why.(*Error); ok && f.Condition == ErrPermission && !kafka.NotAdmitted(err) {
		why = &Error{
			Condition: ErrPermission,
			Reason:    e.fabric.identityName() + " may not use it",
			Hint:      "choose another group, one that is yours",
			cause:     err,
		}
	}
	return fmt.Errorf("consumer group %q: %w", e.group, why)
}

// Position is a place in each partition of a topic: [Start], [End], [At], [Offset] or [Last]. The
// zero Position means that none is set.
type Position struct{ at consume.Position }

var (
	// Start is the position of the oldest record that the cluster still has.
	Start = Position{consume.Position{Kind: consume.Start}}
	// End is the position after the newest record at the time when the Consumer is opened.
	End = Position{consume.Position{Kind: consume.End}}
)

// At returns the position of the first record that was stored at t or later; see [Record.Stored].
// If there is none, it is the end.
func At(t time.Time) Position { return Position{consume.Position{Kind: consume.At, Time: t}} }

// Offset returns the position of offset n, or of the first record after it.
func Offset(n int64) Position { return Position{consume.Position{Kind: consume.Offset, Offset: n}} }

// Last returns the position n offsets before the end of each partition. That is n records, except
// in compacted or transactional topics, in which some offsets hold no record.
func Last(n int64) Position { return Position{consume.Position{Kind: consume.Last, Offset: n}} }

// String returns the position in words.
func (p Position) String() string { return p.at.String() }

func (p Position) validate(name string) error {
	if err := p.at.Validate(); err != nil {
		return invalid("%s: %v", name, err)
	}
	return nil
}
