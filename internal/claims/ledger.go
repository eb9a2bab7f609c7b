package claims

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/kafka"
)

// ledgerTopic holds the ledger. Its name cannot be claimed.
const ledgerTopic = "_diaspora_ledger"

// appendTimeout bounds how long after the fact an append may still take effect.
const appendTimeout = 15 * time.Second

// ledger is the history of claims, and the state that it amounts to. It follows
// its topic, so that what other replicas append is seen here too.
type ledger struct {
	client      *kgo.Client
	cluster     cluster
	diagnostics *slog.Logger

	mu      sync.Mutex // guards the fields below
	state   *state
	next    int64                   // the offset of the next record to apply
	skipped int                     // records that made no sense
	broken  error                   // why the state cannot be trusted any more
	waiting map[string]chan<- error // by record ID: who wants to know the effect
	moved   chan struct{}           // closed, and replaced, when next or broken changes
}

// ledgerOpts are what a client needs to follow and to append to the ledger.
func ledgerOpts() []kgo.Opt {
	return []kgo.Opt{
		kgo.ConsumeResetOffset(kgo.NoResetOffset()), // a ledger that goes back is broken, not to be read anew
		kgo.KeepControlRecords(),                    // they have offsets too
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerLinger(0),
		// After this time an append is given up, and its caller was told so.
		// Without the second option the client would go on for ever.
		kgo.RecordDeliveryTimeout(appendTimeout),
		kgo.AllowIdempotentProduceCancellation(),
		kgo.AlwaysRetryEOF(),
		kgo.MetadataMinAge(250 * time.Millisecond),
	}
}

// ledgerSpec is the topic that holds the ledger.
func ledgerSpec(replicas int) kafka.TopicSpec {
	return kafka.TopicSpec{Name: ledgerTopic, Partitions: 1, Replicas: replicas, Retention: -1}
}

// openLedger makes sure that there is a ledger and that it is whole. The caller
// runs follow.
func openLedger(ctx context.Context, client *kgo.Client, cluster cluster, replicas int, diagnostics *slog.Logger) (*ledger, error) {
	spec := ledgerSpec(replicas)
	created, err := cluster.CreateTopic(ctx, spec)
	if err != nil {
		return nil, err
	}
	if created {
		diagnostics.Info("ledger created", "topic", ledgerTopic)
	}
	info, _, err := cluster.Topic(ctx, ledgerTopic)
	if err != nil {
		return nil, err
	}
	if info.Partitions != 1 {
		return nil, fmt.Errorf("topic %s has %d partitions, so its records have no order", ledgerTopic, info.Partitions)
	}
	mended, err := cluster.MendTopicConfigs(ctx, spec)
	if err != nil {
		return nil, err
	}
	if len(mended) > 0 {
		diagnostics.Warn("the ledger's settings were mended", "topic", ledgerTopic, "settings", mended)
	}
	start, _, err := cluster.Offsets(ctx, ledgerTopic, 0)
	if err != nil {
		return nil, err
	}
	if start != 0 {
		return nil, fmt.Errorf("topic %s begins at offset %d: its first records were deleted, so nobody knows who owns what", ledgerTopic, start)
	}
	client.AddConsumePartitions(map[string]map[int32]kgo.Offset{ledgerTopic: {0: kgo.NewOffset().At(0)}})
	return &ledger{
		client:      client,
		cluster:     cluster,
		diagnostics: diagnostics,
		state:       newState(),
		waiting:     make(map[string]chan<- error),
		moved:       make(chan struct{}),
	}, nil
}

// follow applies the ledger's records until ctx ends.
func (l *ledger) follow(ctx context.Context) {
	for {
		fetches := l.client.PollFetches(ctx)
		if ctx.Err() != nil || fetches.IsClientClosed() {
			return
		}
		fetches.EachError(func(_ string, _ int32, err error) { l.fetchFailed(err) })
		fetches.EachRecord(l.take)
	}
}

// fetchFailed tells a ledger that is damaged from one that cannot be read now.
func (l *ledger) fetchFailed(err error) {
	loss := (*kgo.ErrDataLoss)(nil)
	if !errors.As(err, &loss) && !errors.Is(err, kerr.OffsetOutOfRange) {
		l.diagnostics.Warn("the ledger cannot be read now", "err", err)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.breakOff(fmt.Errorf("records that were read are gone from it: %w", err))
}

// breakOff stops the service from deciding anything. l.mu is held.
func (l *ledger) breakOff(err error) {
	if l.broken != nil {
		return
	}
	l.broken = err
	l.diagnostics.Error("the ledger cannot be trusted; claims are refused until this is mended", "err", err)
	l.move()
}

// move wakes those who wait for the ledger to get on. l.mu is held.
func (l *ledger) move() {
	close(l.moved)
	l.moved = make(chan struct{})
}

// take applies one record. One that makes no sense is skipped, by every replica
// alike. One of a later version cannot be skipped: what follows may hang on it.
func (l *ledger) take(fetched *kgo.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken != nil || fetched.Offset < l.next {
		return
	}
	r, err := decode(fetched.Value)
	later := laterVersionError(0)
	switch {
	case fetched.Attrs.IsControl():
	case errors.As(err, &later):
		l.breakOff(fmt.Errorf("offset %d: %w; upgrade this service", fetched.Offset, err))
		return
	case err != nil:
		l.skipped++
		l.diagnostics.Warn("a record of the ledger makes no sense and was skipped", "offset", fetched.Offset, "err", err)
	default:
		l.effect(r, l.state.apply(fetched.Offset, r))
	}
	l.next = fetched.Offset + 1
	l.move()
}

// effect tells who appended the record, if it was here, what came of it.
func (l *ledger) effect(r record, err error) {
	if ch, ok := l.waiting[r.ID]; ok {
		delete(l.waiting, r.ID)
		ch <- err // it has room for one
	}
}

// append adds a record and waits for its effect, which is that of its place in
// the ledger: nil, or why it has none. If there is no telling, append fails with
// [diaspora.ErrUnavailable], and the record may still take effect afterwards.
func (l *ledger) append(ctx context.Context, r record) error {
	value, err := encode(r)
	if err != nil {
		return err
	}
	effect, failed := make(chan error, 1), make(chan error, 1)
	l.mu.Lock()
	l.waiting[r.ID] = effect
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.waiting, r.ID)
		l.mu.Unlock()
	}()
	// Not with ctx: giving up one record would fail those behind it as well.
	l.client.TryProduce(context.WithoutCancel(ctx), &kgo.Record{Topic: ledgerTopic, Key: []byte(r.key()), Value: value}, func(_ *kgo.Record, err error) {
		if err != nil {
			failed <- err
		}
	})
	for {
		l.mu.Lock()
		broken, moved := l.broken, l.moved
		l.mu.Unlock()
		if broken != nil {
			return l.unusable(broken)
		}
		select {
		case err := <-effect:
			return err
		case err := <-failed:
			return clusterError(err)
		case <-ctx.Done():
			return clusterError(ctx.Err())
		case <-moved:
		}
	}
}

// sync waits until everything that was in the ledger when it was called has been
// applied.
func (l *ledger) sync(ctx context.Context) error {
	l.mu.Lock()
	read := l.next
	l.mu.Unlock()
	end, err := l.cluster.EndOffset(ctx, ledgerTopic, 0)
	if err != nil {
		return clusterError(err)
	}
	for {
		l.mu.Lock()
		if end < read {
			l.breakOff(fmt.Errorf("it ends at offset %d, and %d records were read from it", end, read))
		}
		next, broken, moved := l.next, l.broken, l.moved
		l.mu.Unlock()
		if broken != nil {
			return l.unusable(broken)
		}
		if next >= end {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return clusterError(ctx.Err())
		}
	}
}

func (l *ledger) unusable(broken error) error {
	return fmt.Errorf("%w: the ledger cannot be trusted: %w", diaspora.ErrUnavailable, broken)
}

// topic returns what the ledger says about a name, as far as it has been read.
func (l *ledger) topic(name string) topic {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state.topics[name]
}

// group returns what the ledger says about a consumer group, or false if nothing.
func (l *ledger) group(name string) (group, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	g, ok := l.state.groups[name]
	return g, ok
}

// read calls f with the state, which f must neither keep nor change.
func (l *ledger) read(f func(*state)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f(l.state)
}
