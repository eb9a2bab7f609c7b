package diaspora

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/kafka"
)

// Position is a place in each partition of a topic: [Start], [End], [At], [Offset] or [Last]. The
// zero Position means that none is set.
type Position struct {
	kind positionKind
	n    int64     // the offset, or how many offsets before the end
	t    time.Time // for At
}

type positionKind int

const (
	positionNone positionKind = iota
	positionStart
	positionEnd
	positionAt
	positionOffset
	positionLast
)

var (
	// Start is the position of the oldest record that the cluster still has.
	Start = Position{kind: positionStart}
	// End is the position after the newest record at the time when the Consumer is opened.
	End = Position{kind: positionEnd}
)

// At returns the position of the first record that was stored at t or later; see [Record.Stored].
// If there is none, it is the end.
func At(t time.Time) Position { return Position{kind: positionAt, t: t} }

// Offset returns the position of offset n, or of the first record after it.
func Offset(n int64) Position { return Position{kind: positionOffset, n: n} }

// Last returns the position n offsets before the end of each partition. That is n records, except
// in compacted or transactional topics, in which some offsets hold no record.
func Last(n int64) Position { return Position{kind: positionLast, n: n} }

// String returns the position in words.
func (p Position) String() string {
	switch p.kind {
	case positionStart:
		return "start"
	case positionEnd:
		return "end"
	case positionAt:
		return "at " + p.t.UTC().Format(time.RFC3339Nano)
	case positionOffset:
		return fmt.Sprintf("offset %d", p.n)
	case positionLast:
		return fmt.Sprintf("last %d", p.n)
	}
	return "none"
}

func (p Position) validate(name string) error {
	if p.n < 0 {
		return invalid("%s: %d is negative", name, p.n)
	}
	if p.kind == positionAt && p.t.UnixMilli() < 0 {
		return invalid("%s: a time before 1970", name)
	}
	return nil
}

// span is where a partition began and ended at one moment. The end is that for a reader of
// committed records (the last stable offset).
type span struct{ start, end int64 }

// retry calls do, and retries with backoff, at most 8 times, while worth reports that the error
// may pass.
func retry(ctx context.Context, worth func(error) bool, do func() error) error {
	for attempt := 0; ; attempt++ {
		err := do()
		if err == nil || !worth(err) || attempt == 8 || !sleep(ctx, backoff(attempt), farFuture(ctx)) {
			return err
		}
	}
}

// partitions looks up the partitions of the topics.
func (f *fabric) partitions(ctx context.Context, client *kgo.Client, topics []string) (found map[kafka.Partition]kafka.Place, err error) {
	err = retry(ctx, retriable, func() error {
		found, err = kafka.Places(ctx, client, topics)
		return f.askError("look up topics", err)
	})
	return found, err
}

// spans looks up where the partitions begin and end now.
func (f *fabric) spans(ctx context.Context, client *kgo.Client, partitions []kafka.Partition) (map[kafka.Partition]span, error) {
	// Look up the ends first, so that all records between start and end still existed at the
	// second lookup. If records are deleted between the two, a start can be past its end; the
	// maximum below corrects that.
	ends, err := f.listOffsets(ctx, client, partitions, kafka.Latest)
	if err != nil {
		return nil, err
	}
	starts, err := f.listOffsets(ctx, client, partitions, kafka.Earliest)
	if err != nil {
		return nil, err
	}
	spans := make(map[kafka.Partition]span, len(partitions))
	for _, id := range partitions {
		spans[id] = span{starts[id], max(starts[id], ends[id])}
	}
	return spans, nil
}

// resolvePosition returns the offset of a position in each of the partitions.
func (f *fabric) resolvePosition(ctx context.Context, client *kgo.Client, p Position, spans map[kafka.Partition]span) (map[kafka.Partition]int64, error) {
	var at map[kafka.Partition]int64
	if p.kind == positionAt {
		ids := make([]kafka.Partition, 0, len(spans))
		for id := range spans {
			ids = append(ids, id)
		}
		var err error
		if at, err = f.listOffsets(ctx, client, ids, p.t.UnixMilli()); err != nil {
			return nil, err
		}
	}
	offsets := make(map[kafka.Partition]int64, len(spans))
	for id, s := range spans {
		o := s.start
		switch p.kind {
		case positionEnd:
			o = s.end
		case positionAt:
			if o = at[id]; o < 0 {
				o = s.end
			}
		case positionOffset:
			o = p.n
		case positionLast:
			o = s.end - p.n
		}
		offsets[id] = max(o, s.start)
	}
	return offsets, nil
}

// listOffsets returns the offset for a timestamp in each partition, or -1 if it has none.
func (f *fabric) listOffsets(ctx context.Context, client *kgo.Client, partitions []kafka.Partition, timestamp int64) (offsets map[kafka.Partition]int64, err error) {
	err = retry(ctx, retriable, func() error {
		offsets, err = kafka.ListOffsets(ctx, client, partitions, timestamp)
		return f.askError("look up offsets", err)
	})
	return offsets, err
}

// probe fetches once from offset next of a partition; see [kafka.Probe].
func (f *fabric) probe(ctx context.Context, client *kgo.Client, id kafka.Partition, next int64) (past int64, found bool, err error) {
	places, err := f.partitions(ctx, client, []string{id.Topic})
	if err != nil {
		return next, false, err
	}
	at, ok := places[id]
	if !ok {
		return next, false, f.topicError("consume", "read", id.Topic, kerr.UnknownTopicOrPartition)
	}
	past, found, err = kafka.Probe(ctx, client, id, at, next)
	return past, found, f.askError(fmt.Sprintf("consume topic %q", id.Topic), err)
}

// askError explains the error of a request that looks something up for a Consumer.
func (f *fabric) askError(what string, err error) error {
	var t *kafka.TopicError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &t):
		return f.topicError("consume", "read", t.Topic, t.Err)
	}
	return fmt.Errorf("%s: %w", what, f.loginError(err))
}

// loginError explains the error of a request, and adds a hint if the login was rejected.
func (f *fabric) loginError(err error) error {
	return withHint(explain(err), ErrUnauthenticated, f.login)
}

// retriable reports whether the same request may succeed later. err has been explained. The end of
// a context does not count, because it is the caller's decision.
func retriable(err error) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	return errors.Is(err, ErrUnavailable) || errors.Is(err, globus.ErrUnavailable)
}

// farFuture is the deadline for [sleep] where only ctx bounds the retries.
func farFuture(context.Context) time.Time { return time.Now().Add(time.Hour) }
