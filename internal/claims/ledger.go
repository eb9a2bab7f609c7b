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

// LedgerTopic is the topic of the ledger. Its name cannot be claimed.
const LedgerTopic = "_diaspora_ledger"

// appendTimeout limits how long after append was called its record may still be written.
const appendTimeout = 15 * time.Second

// ledger holds the state that results from the records of the ledger's topic. It follows the topic,
// so it also sees records that other replicas append.
type ledger struct {
	client      *kgo.Client
	cluster     *kafka.Admin
	diagnostics *slog.Logger
	replicas    int // replicas of its topic
	limits      Limits
	topicID     kafka.TopicID
	checkpoints *checkpoints  // nil if there are none
	syncing     chan struct{} // a semaphore: the caller that is running sync has put a value into it

	mu      sync.Mutex // guards the fields below
	state   *state
	next    int64                    // the offset of the next record to apply
	skipped int                      // records that were malformed
	last    []byte                   // the value of the record before next
	saved   int64                    // the value of next at the last checkpoint
	broken  error                    // if not nil, why the state cannot be trusted any more
	effects map[string]chan<- error  // receivers of a record's effect, by record ID
	pending map[string]pendingRecord // the records that are being written, by record key
	changed chan struct{}            // closed and replaced when next or broken changes
	synced  time.Time                // all records that the ledger had at this time are applied
	failed  time.Time                // when syncSince last failed to ask the cluster
	failure error                    // the error of that
}

// pendingRecord is a record that is being written to the ledger. There is at most one at a time for
// a topic, a key or a subject. So if many requests end the same thing, one record is written. The
// others wait, and then are not written, because they would have no effect.
type pendingRecord struct {
	id, by        string
	records, keys int    // what it adds to the totals of the subject by
	owner         string // whose topics get more partitions
	partitions    int    // how many more
}

// ledgerOpts are the client options for following the ledger and appending to it.
func ledgerOpts() []kgo.Opt {
	return []kgo.Opt{
		// If offsets go back, the ledger is damaged; reading it again would hide that.
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.KeepControlRecords(), // they take up offsets too
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerLinger(0),
		// After this time an append fails, and its caller is told so. Without the second option,
		// the client would not give up a batch that it has sent once.
		kgo.RecordDeliveryTimeout(appendTimeout),
		kgo.AllowIdempotentProduceCancellation(),
		kgo.AlwaysRetryEOF(),
		kgo.MetadataMinAge(250 * time.Millisecond),
	}
}

// ledgerConfig says how to open the ledger.
type ledgerConfig struct {
	client      []kgo.Opt // of the client that reads
	limits      Limits    // for records that are appended
	dir         string    // for checkpoints; empty means none
	diagnostics *slog.Logger
}

// openLedger opens the ledger, once find has found its topic and checked it. It calls find again
// while the cluster cannot answer, for example while brokers start. The caller must then run
// follow, which reads the records.
func openLedger(ctx context.Context, client *kgo.Client, cfg ledgerConfig, find func(context.Context) (kafka.TopicInfo, error)) (*ledger, error) {
	var found kafka.TopicInfo
	err := retry(ctx, func() (bool, error) {
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
		effects:     make(map[string]chan<- error),
		pending:     make(map[string]pendingRecord),
		changed:     make(chan struct{}),
		syncing:     make(chan struct{}, 1),
	}
	if cfg.dir != "" {
		if l.checkpoints, err = openCheckpoints(cfg.dir); err != nil {
			cfg.diagnostics.Warn("cannot keep checkpoints of the ledger; each start reads the whole ledger", "err", err)
		} else {
			l.loadCheckpoint(ctx, cfg.client)
		}
	}
	client.AddConsumePartitions(map[string]map[int32]kgo.Offset{LedgerTopic: {0: kgo.NewOffset().At(l.next)}})
	return l, nil
}

// prepareLedger creates the ledger's topic if it does not exist, corrects its settings, and returns
// its description. It must be called again if the description is not Led, or if the cluster is
// unavailable.
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
	repaired, err := cluster.MendTopicConfigs(ctx, spec)
	if err != nil {
		return info, err
	}
	if len(repaired) > 0 {
		diagnostics.Warn("ledger settings repaired", "topic", LedgerTopic, "settings", repaired)
	}
	return info, nil
}

// findLedger returns the description of the ledger's topic. It fails if the topic cannot be a
// complete ledger. If the topic does not exist, the description is not Led.
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
		return info, fmt.Errorf("topic %s begins at offset %d: its first records were deleted, so the owners of topics are unknown", LedgerTopic, start)
	}
	return info, nil
}

// follow applies the ledger's records until ctx ends.
func (l *ledger) follow(ctx context.Context) {
	failing := false
	for {
		fetches := l.client.PollFetches(ctx)
		if ctx.Err() != nil || fetches.IsClientClosed() {
			l.markBroken(errStopped)
			return
		}
		err := fetches.Err()
		if err != nil && !failing {
			l.diagnostics.Warn("cannot read the ledger; retrying", "err", err)
		}
		failing = err != nil
		if gone := (*kgo.ErrDataLoss)(nil); errors.As(err, &gone) || errors.Is(err, kerr.OffsetOutOfRange) {
			l.markBroken(fmt.Errorf("records that were read before are gone: %w", err))
		}
		l.applyAll(fetches.Records())
	}
}

// errStopped means that follow has ended.
var errStopped = errors.New("the service is stopping")

// markBroken records why the ledger cannot be trusted any more. From then on the service decides
// nothing.
func (l *ledger) markBroken(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.markBrokenLocked(err)
}

func (l *ledger) markBrokenLocked(err error) {
	if l.broken != nil {
		return
	}
	l.broken = err
	if !errors.Is(err, errStopped) {
		l.diagnostics.Error("the ledger cannot be trusted; the service refuses all commands until this is repaired", "err", err)
	}
	l.notify()
}

// notify wakes the goroutines that wait for next or broken to change. l.mu is held.
func (l *ledger) notify() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// applyAll applies records. Decoding takes far longer than applying, so it runs on all processors:
// a ledger may have millions of records.
func (l *ledger) applyAll(fetched []*kgo.Record) {
	const batch = 256 // records that one goroutine decodes at a time
	entries := make([]entry, len(fetched))
	var work errgroup.Group
	work.SetLimit(runtime.GOMAXPROCS(0))
	for from := 0; from < len(fetched); from += batch {
		to := min(from+batch, len(fetched))
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
	l.notify()
}

// entry is a decoded record of the ledger, or the error of decoding it.
type entry struct {
	record record
	err    error
}

// apply applies one record. A malformed record is skipped, by every replica alike. A record of a
// later version cannot be skipped, because later records may depend on it. l.mu is held.
func (l *ledger) apply(fetched *kgo.Record, e entry) {
	if l.broken != nil || fetched.Offset < l.next {
		return
	}
	later := laterVersionError(0)
	switch {
	case fetched.Attrs.IsControl():
	case errors.As(e.err, &later):
		l.markBrokenLocked(fmt.Errorf("offset %d: %w; upgrade this service", fetched.Offset, e.err))
		return
	case e.err != nil:
		l.skipped++
		l.diagnostics.Warn("skipped a malformed record of the ledger", "offset", fetched.Offset, "err", e.err)
	default:
		l.reportEffect(e.record, l.state.add(fetched.Offset, e.record))
	}
	l.next, l.last = fetched.Offset+1, fetched.Value
}

// reportEffect reports the effect of a record to its writer, if that is a goroutine of this
// process. l.mu is held.
func (l *ledger) reportEffect(r record, err error) {
	l.doneWriting(r)
	if ch, ok := l.effects[r.ID]; ok {
		delete(l.effects, r.ID)
		ch <- err // never blocks, because it has room for one
	}
}

// append appends a record and waits for its effect. The effect depends on the record's position in
// the ledger: nil, or the reason why the record has no effect. If the effect cannot be found out,
// append fails with [diaspora.ErrUnavailable], and the record may still take effect later.
//
// A record that would have no effect, or would exceed a limit, is not written. The caller has
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
		delete(l.effects, r.ID)
		l.mu.Unlock()
	}()
	// Not with ctx: the client cannot give up one record without failing all records behind it.
	l.client.TryProduce(context.WithoutCancel(ctx), &kgo.Record{Topic: LedgerTopic, Key: []byte(r.key()), Value: value}, func(_ *kgo.Record, err error) {
		if err != nil {
			l.mu.Lock()
			l.doneWriting(r)
			l.notify()
			l.mu.Unlock()
			failed <- err
		}
	})
	for {
		l.mu.Lock()
		broken, moved := l.broken, l.changed
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

// begin waits until no other record with the same key is being written. It then checks that this
// one would have an effect, as far as that is known.
func (l *ledger) begin(ctx context.Context, r record, effect chan<- error) error {
	for {
		l.mu.Lock()
		broken, moved := l.broken, l.changed
		if _, busy := l.pending[r.key()]; broken == nil && !busy {
			defer l.mu.Unlock()
			if err := l.mayWrite(r); err != nil {
				return err
			}
			l.pending[r.key()] = l.newPendingRecord(r)
			l.effects[r.ID] = effect
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

// doneWriting records that a record is not being written any more. l.mu is held.
func (l *ledger) doneWriting(r record) {
	if w, ok := l.pending[r.key()]; ok && w.id == r.ID {
		delete(l.pending, r.key())
	}
}

// sync waits until all records that the ledger had when sync was called are applied.
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
			l.markBrokenLocked(fmt.Errorf("it ends at offset %d, but %d records were read from it", end, read))
		}
		next, broken, moved := l.next, l.broken, l.changed
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

// catchUp reads the ledger to its end. It retries through outages until ctx ends.
func (l *ledger) catchUp(ctx context.Context) error {
	return retry(ctx, func() (bool, error) {
		err := l.sync(ctx)
		return err == nil, err
	})
}

// syncPause is how long syncSince returns the last error, instead of asking again, after the
// cluster did not answer.
const syncPause = time.Second

// syncSince waits until all records that the ledger had at the time since are applied. Only one
// caller at a time asks the cluster, and during an outage at most one a second.
func (l *ledger) syncSince(ctx context.Context, since time.Time) error {
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
	// If the caller has canceled, the error says nothing about the cluster.
	if err != nil && !errors.Is(ctx.Err(), context.Canceled) {
		l.mu.Lock()
		l.failed, l.failure = time.Now(), err
		l.mu.Unlock()
	}
	return err
}

// syncedWithin reports whether the ledger was read to its end within the last d.
func (l *ledger) syncedWithin(d time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Since(l.synced) <= d
}

// brokenError means that the ledger cannot be trusted. Retrying does not help until an operator has
// fixed the cause. Another replica may still work.
type brokenError struct{ err error }

func (e *brokenError) Error() string {
	return fmt.Sprintf("%v: the ledger cannot be trusted: %v", diaspora.ErrUnavailable, e.err)
}
func (e *brokenError) Unwrap() []error { return []error{diaspora.ErrUnavailable, e.err} }

// mayApply returns why the record would have no effect, or would exceed a limit, if it were the
// next one in the ledger. It returns nil if neither.
func (l *ledger) mayApply(ctx context.Context, r record) error {
	if err := l.sync(ctx); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mayWrite(r)
}

// topic returns what the ledger says about a topic name, as far as it has been read.
func (l *ledger) topic(name string) topic {
	t, _ := l.lookup(name)
	return t
}

// view returns what the ledger says about a topic name, and the ACLs that the topic should have.
func (l *ledger) view(name string) (topic, []kafka.ACL) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.state.topics[name]
	return t, l.state.topicACLs(name, t)
}

// access returns what the ledger says about a topic name, and what a subject may do with the topic
// now.
func (l *ledger) access(name, subject string) (topic, rights) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.state.topics[name]
	if t.phase != free && t.owner == subject {
		return t, mayRead | mayWrite | mayManage
	}
	return t, l.state.rightsOf(subject, name, time.Now())
}

// key returns what the ledger says about an access key. It reports false if the key is unknown.
func (l *ledger) key(id string) (accessKey, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k, ok := l.state.keys[id]
	if !ok {
		return accessKey{}, false
	}
	return *k, true
}

// lookup returns what the ledger says about a topic name. It reports false if the name was never
// claimed, or was freed so long ago that it is forgotten.
func (l *ledger) lookup(name string) (topic, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t, ok := l.state.topics[name]
	return t, ok
}

// read calls f with the state. f must not keep or change it.
func (l *ledger) read(f func(*state)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f(l.state)
}
