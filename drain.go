package diaspora

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/spool"
)

// A drain sends what is in a spool to the cluster. One goroutine does it, round by
// round: it reads some events, sends them, waits for every answer, and acknowledges in
// the spool what the cluster has. A round fits into one batch for each partition, so that
// when a batch fails nothing behind it has arrived: that is what keeps events with
// the same key in order, whatever goes wrong. When the process dies, at most the
// events of a round are sent again, under their old IDs.
//
// A topic whose events are not taken is held: its events are passed over, and one of
// them is tried now and then. When that one is taken, the drain goes back to the first
// event that waits. While nobody is let in, all topics are held.
type drain struct {
	spool  *spool.Spool
	conns  *connections
	cfg    Config // complete
	began  time.Time
	report func(acknowledged int)
	words  func(topic string, err error) error // puts a failure into words

	// Owned by the goroutine of run.
	fabric *fabric     // nil as long as nobody could be asked where the cluster is
	client *kgo.Client // nil before the first round
	known  map[string]bool
	pace   pace
	tries  int // in vain, in a row, since nobody is let in

	noted   string // what the spool's note says
	rewinds int

	mu    sync.Mutex // guards the fields below
	held  map[string]*heldTopic
	all   error         // why nothing is sent; nil if something is
	moved chan struct{} // closed when something was acknowledged, held or released; nil if nobody waits

	settled atomic.Int64 // events acknowledged or set aside
	reading atomic.Int64 // since when, in Unix nanoseconds, run waits for an event that it can send; or 0
}

// heldTopic is a topic whose events are not sent.
type heldTopic struct {
	first  spool.Record // the one that is tried
	err    error        // why, in words
	person bool         // somebody has to mend it: time alone will not
	tries  int          // in vain
	until  time.Time    // not before
}

const (
	roundBytes  = 800_000 // of a round: fits into a batch of a Kafka as it comes
	roundEvents = 4096
	// maxHeld bounds the topics that are held, of each of which an event is in
	// memory. Beyond it all wait.
	maxHeld = 64

	// What is retried waits at first so long, and what only a person can mend.
	retryFirst  = 250 * time.Millisecond
	personFirst = time.Second
	retryMost   = 30 * time.Second

	// revokedWithin is how long a gateway may go on to let in a key that was revoked, and a little more.
	revokedWithin = 1500 * time.Millisecond

	// A topic whose events got no answer for so long, although the cluster can be
	// reached and they are not still on their way over a slow link, lets others pass.
	stuckAfter = 30 * time.Second
)

// run drains until ctx ends.
func (d *drain) run(ctx context.Context) {
	defer func() {
		if d.client != nil {
			d.client.Close()
		}
	}()
	for ctx.Err() == nil {
		if !d.connect(ctx) {
			return
		}
		if d.tryHeld(ctx) {
			continue
		}
		records, err := d.next(ctx)
		switch {
		case len(records) > 0:
			d.deliver(ctx, d.passable(records))
		case errors.Is(err, spool.ErrClosed):
			return
		case errors.Is(err, spool.ErrInUse):
			err = explainSpool(err)
			d.cfg.diagnostics().Error("another process has taken the spool, and sends its events", "err", err)
			d.holdAll(err)
			return
		case err != nil && !errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
			d.cfg.diagnostics().Error("the spool cannot be read", "err", err)
			d.rest(ctx, retryFirst)
		}
	}
}

// connect makes the client. It does not connect by itself. It reports false if ctx ended.
func (d *drain) connect(ctx context.Context) bool {
	began := time.Now()
	for attempt := 0; d.client == nil; attempt++ {
		err := d.open(ctx)
		if err == nil {
			d.holdAll(nil)
			if attempt > 0 {
				d.pace.afterOutage(time.Since(began), d.spool.Stats().Next)
			}
			break
		}
		d.holdAll(err)
		d.note()
		d.cfg.diagnostics().Warn("waiting for the fabric", "url", d.cfg.URL, "err", err)
		if !d.rest(ctx, retryIn(attempt, retryFirst)) {
			return false
		}
	}
	return ctx.Err() == nil
}

func (d *drain) open(ctx context.Context) error {
	if d.fabric == nil {
		f, err := d.cfg.resolve(ctx)
		if err != nil {
			return err
		}
		d.fabric = f
	}
	if d.cfg.memory.name != "" {
		// So that it is known the next time: the events wait for nobody else.
		timed, cancel := context.WithTimeout(ctx, d.cfg.DialTimeout)
		_ = d.cfg.learnIdentity(timed)
		cancel()
	}
	client, err := kgo.NewClient(d.fabric.spoolOpts(d.conns)...)
	if err != nil {
		return invalid("configuration: %v", err)
	}
	d.client = client
	return nil
}

// spoolOpts are the options of a drain's client.
func (f *fabric) spoolOpts(conns *connections) []kgo.Opt {
	cfg := f.kafka
	cfg.Progress = conns.progress
	return slices.Concat(kafka.ClientOpts(cfg), f.tuning(), []kgo.Opt{
		kgo.WithHooks(conns),
		// A round is sent when all of it is there, so that it is one batch.
		kgo.ManualFlushing(),
		kgo.ProducerLinger(0),
		kgo.MaxBufferedRecords(math.MaxInt32),
		kgo.RetryBackoffFn(func(tries int) time.Duration { return retryIn(tries-1, retryFirst) }),
	})
}

// next reads on in the spool until it is time to try a topic that is held.
func (d *drain) next(ctx context.Context) ([]spool.Record, error) {
	if at := d.nextTry(); !at.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, at)
		defer cancel()
	}
	d.note()
	d.reading.Store(time.Now().UnixNano())
	defer d.reading.Store(0)
	return d.spool.Next(ctx, roundEvents, roundBytes)
}

// unknownNote differs from every reason, so that the first note overwrites what an earlier process has left.
const unknownNote = "\x00"

// note leaves word in the spool of why events wait.
func (d *drain) note() { d.noteWhy(d.reason()) }

// noteWhy is note for a reason, or nil.
func (d *drain) noteWhy(why error) {
	text := ""
	if why != nil {
		text = why.Error()
	}
	if text == d.noted {
		return
	}
	if err := d.spool.Note(text); err != nil {
		d.cfg.diagnostics().Warn("the spool took no note", "err", err)
		return
	}
	d.noted = text
}

// reason returns why events wait, or nil.
func (d *drain) reason() error {
	_, why := d.why()
	if taken := d.taken(); taken != nil {
		return taken
	}
	if away := d.conns.Err(); away != nil {
		why = advise(explain(away), ErrUnauthenticated, d.cfg.login)
	}
	if why == nil && !d.conns.reached.Load() && time.Since(d.began) > unansweredAfter {
		why = errUnreached // as where a network swallows everything: there is no error for long
	}
	return why
}

// passable returns the records whose topics are not held.
func (d *drain) passable(records []spool.Record) []spool.Record {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.held) == 0 {
		return records
	}
	return slices.DeleteFunc(records, func(r spool.Record) bool { return d.held[r.Topic] != nil })
}

// deliver sends records, in their order, in rounds.
func (d *drain) deliver(ctx context.Context, records []spool.Record) {
	was := d.rewinds
	for len(records) > 0 && ctx.Err() == nil {
		n := d.roundOf(records)
		d.round(ctx, records[:n])
		if d.rewinds != was {
			return // they come again, after those that failed
		}
		records = d.passable(records[n:])
	}
}

// roundOf returns how many of the records the next round has: those that fit into a
// batch. The first event to a topic goes alone: the client has yet to learn of the topic's
// partitions, and might send more than one batch to one of them.
func (d *drain) roundOf(records []spool.Record) int {
	bytes := 0
	for i := range records {
		r := &records[i]
		if !d.known[r.Topic] {
			return max(i, 1)
		}
		bytes += recordBytes(&r.Entry)
		if bytes > roundBytes && i > 0 {
			return i
		}
	}
	return len(records)
}

func recordBytes(e *spool.Entry) int {
	n := 40 + systemHeaderBytes + len(e.ID) + len(e.Key) + len(e.Value)
	for i := range e.Headers {
		n += 10 + len(e.Headers[i].Key) + len(e.Headers[i].Value)
	}
	return n
}

// round sends records at once, and does what is to be done about those that fail.
func (d *drain) round(ctx context.Context, records []spool.Record) {
	if !d.pace.wait(ctx, records[0].Position, len(records)) {
		return
	}
	began := time.Now()
	errs, away := d.exchange(ctx, records)
	if away {
		d.pace.afterOutage(time.Since(began), d.spool.Stats().Next)
	}
	var acked []uint64
	var failed []int // of records
	for i, err := range errs {
		if err == nil {
			acked = append(acked, records[i].Position)
			d.known[records[i].Topic] = true
		} else {
			failed = append(failed, i)
		}
	}
	d.acknowledge(acked)
	d.spool.Yield(ctx, time.Since(began)) // to the program that logs
	if len(failed) > 0 && ctx.Err() == nil {
		d.judge(ctx, records, failed, errs)
	}
}

// acknowledge says in the spool what the cluster has.
func (d *drain) acknowledge(positions []uint64) {
	if len(positions) == 0 {
		return
	}
	if err := d.spool.Ack(positions...); err != nil {
		d.cfg.diagnostics().Error("the spool took no acknowledgement", "err", err)
	}
	d.settled.Add(int64(len(positions)))
	d.report(len(positions))
	d.letIn()
}

// judge does what is to be done about records that failed, topic by topic.
func (d *drain) judge(ctx context.Context, records []spool.Record, failed []int, errs []error) {
	byTopic := map[string][]spool.Record{}
	cause := map[string]error{}
	var topics []string
	for _, i := range failed {
		topic := records[i].Topic
		if cause[topic] == nil {
			topics, cause[topic] = append(topics, topic), errs[i]
		}
		byTopic[topic] = append(byTopic[topic], records[i])
	}
	was := d.rewinds
	for _, topic := range topics {
		if d.rewinds == was {
			d.topicFailed(ctx, byTopic[topic], cause[topic])
		}
	}
}

// topicFailed does what is to be done about records of one topic.
func (d *drain) topicFailed(ctx context.Context, records []spool.Record, err error) {
	switch verdict := kafka.Judge(err); verdict {
	case kafka.Quarantine:
		d.isolate(ctx, records, err)
	case kafka.HoldAll:
		d.refusedAll(ctx, err)
	default:
		if refused := d.keyRefused(ctx, records[0].Topic, err); refused != nil {
			d.refusedAll(ctx, refused)
			return
		}
		d.holdTopic(records[0], err, verdict == kafka.HoldTopic)
	}
}

// keyRefused returns why an access key is no longer good, if that is behind an error which says that it may
// not write to a topic. A key that is revoked loses its rights before its connections are closed: to sign in
// anew tells. A gateway that has not read of it yet still lets the key in, for a second; so if the topic has
// taken events of this key before, it is asked for a little longer.
func (d *drain) keyRefused(ctx context.Context, topic string, err error) error {
	f, denied := explain(err).(*Error)
	if d.cfg.Key == (Key{}) || !denied || f.Condition != ErrPermission {
		return nil
	}
	d.mu.Lock()
	sudden := d.known[topic] && d.held[topic] == nil
	d.mu.Unlock()
	for end := time.Now().Add(revokedWithin); ; {
		if refused := d.fabric.signsInAnew(ctx); errors.Is(refused, ErrUnauthenticated) {
			return refused
		}
		if !sudden || time.Now().After(end) || !d.rest(ctx, retryFirst) {
			return nil
		}
	}
}

// isolate finds which of the records the cluster does not take, and sets that aside.
func (d *drain) isolate(ctx context.Context, records []spool.Record, err error) {
	if len(records) == 1 {
		d.quarantine(records[0], err)
		return
	}
	half, was := len(records)/2, d.rewinds
	d.round(ctx, records[:half])
	if rest := d.passable(records[half:]); len(rest) > 0 && d.rewinds == was && ctx.Err() == nil {
		d.round(ctx, rest)
	}
}

func (d *drain) quarantine(r spool.Record, cause error) {
	words := d.words(r.Topic, cause)
	if err := d.spool.Quarantine(r, words.Error()); err != nil {
		d.holdTopic(r, fmt.Errorf("%w (and it could not be set aside: %w)", cause, err), true)
		return
	}
	d.cfg.diagnostics().Error("an event will never be taken and was set aside", "topic", r.Topic, "id", r.ID, "err", words)
	d.settled.Add(1)
	d.letIn()
}

// holdTopic keeps a topic's events, from r on, until r is taken.
func (d *drain) holdTopic(r spool.Record, err error, person bool) {
	if errors.Is(err, kerr.UnknownTopicID) || errors.Is(err, kerr.UnknownTopicOrPartition) {
		// It may come again, as another topic of this name; see [Logger.forget].
		d.client.PurgeTopicsFromProducing(r.Topic)
		delete(d.known, r.Topic)
	}
	first := retryFirst
	if person {
		first = personFirst
	}
	words := d.words(r.Topic, err)
	fresh := false
	d.letIn()
	d.change(func() {
		h := d.held[r.Topic]
		if h == nil || h.first.Position != r.Position {
			h = &heldTopic{first: r}
			d.held[r.Topic] = h
			fresh = true
		}
		h.err, h.person = words, person
		h.until = time.Now().Add(retryIn(h.tries, first))
		h.tries++
	})
	if fresh {
		d.cfg.diagnostics().Warn("the events of a topic wait in the spool", "topic", r.Topic, "err", words)
	}
}

// refusedAll waits, since nobody is let in.
func (d *drain) refusedAll(ctx context.Context, err error) {
	err = advise(explain(err), ErrUnauthenticated, d.cfg.login)
	if d.tries == 0 {
		d.cfg.diagnostics().Error("all events wait in the spool", "err", err)
	}
	d.holdAll(err)
	d.note()
	d.rest(ctx, retryIn(d.tries, personFirst))
	d.tries++
	d.rewind()
}

// letIn takes note that the cluster talks to whoever sends.
func (d *drain) letIn() {
	d.tries = 0
	d.change(func() { d.all = nil })
}

func (d *drain) holdAll(err error) { d.change(func() { d.all = err }) }

const (
	heldPatience    = 100 * time.Millisecond
	unansweredAfter = 2 * time.Second // a cluster that was never reached is said not to answer
)

var errUnreached = &Error{Condition: ErrUnavailable, Reason: "the cluster has not answered yet"}

// finish waits until nothing waits any more, on disk or on its way there, as long as there
// is hope: until ctx ends, nobody is let in, another process has taken the spool, nothing waits but
// what only a person can free, or the cluster has acknowledged nothing for [Config.ClosePatience].
func (d *drain) finish(ctx context.Context, coming func() bool) {
	was, since := d.settled.Load(), time.Now()
	for coming() || d.spool.Stats().Events > 0 && d.cfg.ClosePatience > 0 {
		look, cancel := context.WithTimeout(ctx, heldPatience)
		d.waitForChange(look)
		cancel()
		if now := d.settled.Load(); now != was {
			was, since = now, time.Now()
		}
		patience := d.cfg.ClosePatience
		if coming() { // which the disk decides, not the cluster
			patience = max(patience, defaultClosePatience)
		}
		if ctx.Err() != nil || d.stranded() || time.Since(since) > patience {
			return
		}
	}
}

// stranded reports whether only a person can help.
func (d *drain) stranded() bool {
	if d.taken() != nil {
		return true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if errors.Is(d.all, ErrUnauthenticated) || kafka.NotAdmitted(d.all) || kafka.LoginRefused(d.conns.Err()) {
		return true
	}
	for _, h := range d.held {
		if !h.person {
			return false
		}
	}
	since := d.reading.Load()
	return len(d.held) > 0 && since > 0 && time.Since(time.Unix(0, since)) >= heldPatience
}

// taken returns an error if another process has taken the spool: nothing is sent from here any more.
func (d *drain) taken() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if errors.Is(d.all, spool.ErrInUse) {
		return d.all
	}
	return nil
}

// waitForChange returns when something was acknowledged, held or released.
func (d *drain) waitForChange(ctx context.Context) error {
	d.mu.Lock()
	if d.moved == nil {
		d.moved = make(chan struct{})
	}
	moved := d.moved
	d.mu.Unlock()
	select {
	case <-moved:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// rewind goes back to the first event that waits. Nothing is on its way when it is called.
func (d *drain) rewind() {
	d.rewinds++
	d.spool.Rewind()
}

// nextTry returns when a topic is to be tried; zero if none is held.
func (d *drain) nextTry() (at time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, h := range d.held {
		if at.IsZero() || h.until.Before(at) {
			at = h.until
		}
	}
	return at
}

// tryHeld tries the topics that are due, with one event each. It reports whether it
// did anything.
func (d *drain) tryHeld(ctx context.Context) bool {
	var due []spool.Record
	d.mu.Lock()
	now := time.Now()
	for _, h := range d.held {
		if !h.until.After(now) {
			due = append(due, h.first)
		}
	}
	full := len(d.held) >= maxHeld
	d.mu.Unlock()
	for _, r := range due {
		d.tryTopic(ctx, r)
	}
	if full && len(due) == 0 {
		d.rest(ctx, time.Until(d.nextTry()))
		return true
	}
	return len(due) > 0
}

// tryTopic sends the first event of a topic that is held. If it is taken, or set aside, the
// topic is held no longer.
func (d *drain) tryTopic(ctx context.Context, r spool.Record) {
	was := d.settled.Load()
	d.round(ctx, []spool.Record{r})
	if d.settled.Load() == was {
		return
	}
	d.change(func() { delete(d.held, r.Topic) })
	d.cfg.diagnostics().Info("the events of a topic are sent again", "topic", r.Topic)
	d.rewind()
}

// change changes what mu guards and tells those who wait for a change.
func (d *drain) change(do func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	do()
	if d.moved != nil {
		close(d.moved)
		d.moved = nil
	}
}

// rest waits, and reports false if ctx ended.
func (d *drain) rest(ctx context.Context, t time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(t):
		return true
	}
}

// retryIn returns how long to wait after so many attempts in vain: longer and longer,
// and for each program another time, since many may wait for the same cluster.
func retryIn(tries int, first time.Duration) time.Duration {
	limit := min(retryMost, first<<min(max(tries, 0), 16))
	return limit/2 + rand.N(limit/2)
}
