package claims

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/kafka"
)

// LedgerTopic holds the ledger. Its name cannot be claimed.
const LedgerTopic = "_diaspora_ledger"

// appendTimeout bounds how long after the fact an append may still take effect.
const appendTimeout = 15 * time.Second

// ledger is the history of claims, and the state that it amounts to. It follows
// its topic, so that what other replicas append is seen here too.
type ledger struct {
	client      *kgo.Client
	cluster     *kafka.Admin
	diagnostics *slog.Logger
	replicas    int // of its topic
	limits      Limits
	topicID     kafka.TopicID
	checkpoints *checkpoints  // nil if none are kept
	syncing     chan struct{} // whoever refreshes holds the place in it

	mu      sync.Mutex // guards the fields below
	state   *state
	next    int64                   // the offset of the next record to apply
	skipped int                     // records that made no sense
	last    []byte                  // the value of the record before next
	saved   int64                   // the next of the last checkpoint
	broken  error                   // why the state cannot be trusted any more
	waiting map[string]chan<- error // by record ID: who wants to know the effect
	writing map[string]writing      // by what they are about: the records that are on their way
	moved   chan struct{}           // closed, and replaced, when next or broken changes
	synced  time.Time               // what was in the ledger then is applied
	failed  time.Time               // when that could not be found out last
	failure error                   // why
}

// writing is a record on its way into the ledger. There is one at a time about a topic, a key
// or a subject: of many requests to end the same thing one is written, and none of the others,
// since it would have no effect.
type writing struct {
	id, by                    string
	records, partitions, keys int // what it adds to that of by
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

// ledgerConfig says how to read the ledger.
type ledgerConfig struct {
	client      []kgo.Opt // of who reads
	limits      Limits    // for what is appended
	dir         string    // of checkpoints; empty: none are kept
	diagnostics *slog.Logger
}

// openLedger reads the ledger, once find has found its topic and that it is whole.
// It calls find again while the cluster cannot tell, as when brokers stop and start.
// The caller runs follow.
func openLedger(ctx context.Context, client *kgo.Client, cfg ledgerConfig, find func(context.Context) (kafka.TopicInfo, error)) (*ledger, error) {
	var found kafka.TopicInfo
	err := again(ctx, func() (bool, error) {
		info, err := find(ctx)
		found = info
		return info.Led, clusterError(err)
	})
	if err != nil {
		return nil, err
	}
	l := &ledger{
		client:      client,
		cluster:     kafka.NewAdmin(client),
		diagnostics: cfg.diagnostics,
		replicas:    found.Replicas,
		limits:      cfg.limits,
		topicID:     found.ID,
		state:       newState(),
		waiting:     make(map[string]chan<- error),
		writing:     make(map[string]writing),
		moved:       make(chan struct{}),
		syncing:     make(chan struct{}, 1),
	}
	if cfg.dir != "" {
		if l.checkpoints, err = openCheckpoints(cfg.dir); err != nil {
			cfg.diagnostics.Warn("checkpoints of the ledger cannot be kept; each start reads it whole", "err", err)
		} else {
			l.startFrom(ctx, cfg.client)
		}
	}
	client.AddConsumePartitions(map[string]map[int32]kgo.Offset{LedgerTopic: {0: kgo.NewOffset().At(l.next)}})
	return l, nil
}

// prepareLedger creates the ledger's topic if there is none, mends its settings,
// and returns what it is like. If that is not Led, or the error is of the cluster,
// it is to be called again.
func prepareLedger(ctx context.Context, cluster *kafka.Admin, spec kafka.TopicSpec, diagnostics *slog.Logger) (info kafka.TopicInfo, err error) {
	created, ready, err := cluster.CreateTopic(ctx, spec)
	if created {
		diagnostics.Info("ledger created", "topic", LedgerTopic)
	}
	if err != nil || !ready {
		return info, err
	}
	if info, err = findLedger(ctx, cluster); err != nil || !info.Led {
		return info, err
	}
	mended, err := cluster.MendTopicConfigs(ctx, spec)
	if err != nil {
		return info, err
	}
	if len(mended) > 0 {
		diagnostics.Warn("the ledger's settings were mended", "topic", LedgerTopic, "settings", mended)
	}
	return info, nil
}

// findLedger returns what the ledger's topic is like, and an error if it cannot be a ledger
// that is whole. Without a topic it is not Led.
func findLedger(ctx context.Context, cluster *kafka.Admin) (kafka.TopicInfo, error) {
	info, _, err := cluster.Topic(ctx, LedgerTopic)
	if err != nil || !info.Led {
		return info, err
	}
	if info.Partitions != 1 {
		return info, fmt.Errorf("topic %s has %d partitions, so its records have no order", LedgerTopic, info.Partitions)
	}
	start, err := cluster.StartOffset(ctx, LedgerTopic, 0)
	if err != nil {
		return info, err
	}
	if start != 0 {
		return info, fmt.Errorf("topic %s begins at offset %d: its first records were deleted, so nobody knows who owns what", LedgerTopic, start)
	}
	return info, nil
}

// follow applies the ledger's records until ctx ends.
func (l *ledger) follow(ctx context.Context) {
	failing := false
	for {
		fetches := l.client.PollFetches(ctx)
		if ctx.Err() != nil || fetches.IsClientClosed() {
			l.breakOff(errStopped)
			return
		}
		err := fetches.Err()
		if err != nil && !failing {
			l.diagnostics.Warn("the ledger cannot be read now", "err", err)
		}
		failing = err != nil
		if gone := (*kgo.ErrDataLoss)(nil); errors.As(err, &gone) || errors.Is(err, kerr.OffsetOutOfRange) {
			l.breakOff(fmt.Errorf("records that were read are gone from it: %w", err))
		}
		l.take(fetches.Records())
	}
}

// errStopped says that nobody follows the ledger any more.
var errStopped = errors.New("the service is stopping")

// breakOff stops the service from deciding anything.
func (l *ledger) breakOff(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.breakOffLocked(err)
}

func (l *ledger) breakOffLocked(err error) {
	if l.broken != nil {
		return
	}
	l.broken = err
	if !errors.Is(err, errStopped) {
		l.diagnostics.Error("the ledger cannot be trusted; nothing is decided until this is mended", "err", err)
	}
	l.move()
}

// move wakes those who wait for the ledger to get on. l.mu is held.
func (l *ledger) move() {
	close(l.moved)
	l.moved = make(chan struct{})
}

// take applies records. To read them takes far longer than to apply them, and so is done on all
// processors: a ledger may have millions.
func (l *ledger) take(fetched []*kgo.Record) {
	const share = 256 // of records, for one goroutine at a time
	entries := make([]entry, len(fetched))
	var work errgroup.Group
	work.SetLimit(runtime.GOMAXPROCS(0))
	for from := 0; from < len(fetched); from += share {
		to := min(from+share, len(fetched))
		work.Go(func() error {
			for i, f := range fetched[from:to] {
				entries[from+i].record, entries[from+i].err = decode(f.Value)
			}
			return nil
		})
	}
	work.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, f := range fetched {
		l.apply(f, entries[i])
	}
	l.move()
}

// entry is a record of the ledger, or why there is none.
type entry struct {
	record record
	err    error
}

// apply applies one record. One that makes no sense is skipped, by every replica
// alike. One of a later version cannot be skipped: what follows may hang on it. l.mu is held.
func (l *ledger) apply(fetched *kgo.Record, e entry) {
	if l.broken != nil || fetched.Offset < l.next {
		return
	}
	later := laterVersionError(0)
	switch {
	case fetched.Attrs.IsControl():
	case errors.As(e.err, &later):
		l.breakOffLocked(fmt.Errorf("offset %d: %w; upgrade this service", fetched.Offset, e.err))
		return
	case e.err != nil:
		l.skipped++
		l.diagnostics.Warn("a record of the ledger makes no sense and was skipped", "offset", fetched.Offset, "err", e.err)
	default:
		l.effect(e.record, l.state.take(fetched.Offset, e.record))
	}
	l.next, l.last = fetched.Offset+1, fetched.Value
}

// effect tells who appended the record, if it was here, what came of it.
func (l *ledger) effect(r record, err error) {
	l.written(r)
	if ch, ok := l.waiting[r.ID]; ok {
		delete(l.waiting, r.ID)
		ch <- err // it has room for one
	}
}

// append adds a record and waits for its effect, which is that of its place in
// the ledger: nil, or why it has none. If there is no telling, append fails with
// [diaspora.ErrUnavailable], and the record may still take effect afterwards.
//
// A record that would have no effect, or would go over a limit, is not written. The caller has
// called sync.
func (l *ledger) append(ctx context.Context, r record) error {
	value, err := encode(r)
	if err != nil {
		return err
	}
	effect, failed := make(chan error, 1), make(chan error, 1)
	if err := l.begin(ctx, r, effect); err != nil {
		return err
	}
	defer func() {
		l.mu.Lock()
		delete(l.waiting, r.ID)
		l.mu.Unlock()
	}()
	// Not with ctx: giving up one record would fail those behind it as well.
	l.client.TryProduce(context.WithoutCancel(ctx), &kgo.Record{Topic: LedgerTopic, Key: []byte(r.key()), Value: value}, func(_ *kgo.Record, err error) {
		if err != nil {
			l.mu.Lock()
			l.written(r)
			l.move()
			l.mu.Unlock()
			failed <- err
		}
	})
	for {
		l.mu.Lock()
		broken, moved := l.broken, l.moved
		l.mu.Unlock()
		if broken != nil {
			return &brokenError{broken}
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

// begin waits until no other record about the same is on its way, and makes sure that this
// one has an effect, as far as anybody can tell now.
func (l *ledger) begin(ctx context.Context, r record, effect chan<- error) error {
	for {
		l.mu.Lock()
		broken, moved := l.broken, l.moved
		if _, busy := l.writing[r.key()]; broken == nil && !busy {
			defer l.mu.Unlock()
			if err := l.mayWrite(r); err != nil {
				return err
			}
			l.writing[r.key()] = newWriting(r)
			l.waiting[r.ID] = effect
			return nil
		}
		l.mu.Unlock()
		if broken != nil {
			return &brokenError{broken}
		}
		select {
		case <-ctx.Done():
			return clusterError(ctx.Err())
		case <-moved:
		}
	}
}

// written notes that a record is not on its way any more. l.mu is held.
func (l *ledger) written(r record) {
	if w, ok := l.writing[r.key()]; ok && w.id == r.ID {
		delete(l.writing, r.key())
	}
}

// sync waits until everything that was in the ledger when it was called has been
// applied.
func (l *ledger) sync(ctx context.Context) error {
	began := time.Now()
	l.mu.Lock()
	read := l.next
	l.mu.Unlock()
	end, err := l.cluster.EndOffset(ctx, LedgerTopic, 0)
	if err != nil {
		return clusterError(err)
	}
	for {
		l.mu.Lock()
		if end < read {
			l.breakOffLocked(fmt.Errorf("it ends at offset %d, and %d records were read from it", end, read))
		}
		next, broken, moved := l.next, l.broken, l.moved
		if broken == nil && next >= end && began.After(l.synced) {
			l.synced = began
		}
		l.mu.Unlock()
		if broken != nil {
			return &brokenError{broken}
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

// syncPause is how long nobody asks again who needs not, once the cluster did not
// answer.
const syncPause = time.Second

// freshSince waits until everything that was in the ledger at that time has been
// applied. However many callers wait, one at a time asks the cluster, and in an
// outage one a second.
func (l *ledger) freshSince(ctx context.Context, since time.Time) error {
	select {
	case l.syncing <- struct{}{}:
		defer func() { <-l.syncing }()
	case <-ctx.Done():
		return clusterError(ctx.Err())
	}
	l.mu.Lock()
	fresh := l.broken == nil && !l.synced.Before(since)
	failed, failure := l.failed, l.failure
	l.mu.Unlock()
	switch {
	case fresh:
		return nil
	case time.Since(failed) < syncPause:
		return failure
	}
	err := l.sync(ctx)
	if err != nil && !errors.Is(ctx.Err(), context.Canceled) { // or it says nothing about the cluster
		l.mu.Lock()
		l.failed, l.failure = time.Now(), err
		l.mu.Unlock()
	}
	return err
}

// syncedWithin reports whether the ledger was read to its end that recently.
func (l *ledger) syncedWithin(d time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Since(l.synced) <= d
}

// brokenError says that the ledger cannot be trusted. Trying again does not help
// before somebody has seen to it, or another replica is asked.
type brokenError struct{ err error }

func (e *brokenError) Error() string {
	return fmt.Sprintf("%v: the ledger cannot be trusted: %v", diaspora.ErrUnavailable, e.err)
}
func (e *brokenError) Unwrap() []error { return []error{diaspora.ErrUnavailable, e.err} }

// mayApply returns why the record would have no effect if it were the ledger's
// next, or nil.
func (l *ledger) mayApply(ctx context.Context, r record) error {
	if err := l.sync(ctx); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mayWrite(r)
}

// topic returns what the ledger says about a name, as far as it has been read.
func (l *ledger) topic(name string) topic {
	t, _ := l.lookup(name)
	return t
}

// view returns what the ledger says about a name and the ACLs that it is to have.
func (l *ledger) view(name string) (topic, []kafka.ACL) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.state.topics[name]
	return t, l.state.topicACLs(name, t)
}

// key returns what the ledger says about an access key, or false if nothing.
func (l *ledger) key(id string) (accessKey, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k, ok := l.state.keys[id]
	if !ok {
		return accessKey{}, false
	}
	return *k, true
}

// lookup returns what the ledger says about a name, or false if it was never
// claimed.
func (l *ledger) lookup(name string) (topic, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t, ok := l.state.topics[name]
	return t, ok
}

// read calls f with the state, which f must neither keep nor change.
func (l *ledger) read(f func(*state)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f(l.state)
}
