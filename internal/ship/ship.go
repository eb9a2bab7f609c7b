package ship

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora/internal/backoff"
	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/spool"
)

// Config says what a [Shipper] sends, and how. All fields but SignIn and Renewed are required.
type Config struct {
	Spool *spool.Spool

	// Client makes the Kafka client with [ClientOpts], without connecting. The Shipper calls it
	// until it succeeds: it returns an error while it cannot find out where the cluster is.
	// The Shipper closes the client. Connections watches the client's connections.
	Client      func(context.Context) (*kgo.Client, error)
	Connections *kafka.Connections

	// Record makes the record of an event. It adds headers to those of the record, of which there
	// are none, but which may have memory.
	Record func(*kgo.Record, *spool.Entry)
	// RecordOverhead is the maximum number of bytes that the headers of a record take in
	// addition to those of its event.
	RecordOverhead int

	// SignIn signs in with a new connection and returns the error, if any, such as why the
	// access key is refused. The field is nil if no access key is used.
	SignIn func(context.Context) error
	// Renewed reports whether the credential that the client was made with has been replaced. The
	// client's connections then still have the rights of the old one. The field is nil if it cannot be
	// replaced.
	Renewed func() bool

	// Explain puts an error into words for people. topic is the topic that it is about, or
	// "".
	Explain func(topic string, err error) error
	// NeedsLogin reports whether an error lasts until somebody signs in.
	NeedsLogin func(error) bool

	// ClosePatience is how long [Shipper.Finish] waits while the cluster acknowledges
	// nothing.
	ClosePatience time.Duration
	// DiskPatience is how long it waits, if that is longer, while events that were logged are
	// not on disk yet.
	DiskPatience time.Duration

	// Acknowledged is told how many more events the cluster has stored.
	Acknowledged func(n int)
	// Diagnostics receives the Shipper's own messages.
	Diagnostics *slog.Logger
}

// ClientOpts returns the options that the Kafka client of a Shipper must have.
func ClientOpts() []kgo.Opt {
	return []kgo.Opt{
		// The Shipper flushes when a whole round is buffered. If the client began to send before
		// that, a batch might be refused when later events of its partition were not buffered
		// yet. The client would then send these although the events before them had failed.
		kgo.ManualFlushing(),
		kgo.ProducerLinger(0),
		kgo.MaxBufferedRecords(math.MaxInt32),
		kgo.RetryBackoffFn(func(tries int) time.Duration { return reconnectIn(tries - 1) }),
	}
}

const (
	// The size of a round is chosen so that the round takes about roundLatencies times the latency
	// of the link, but stays within these limits. With Kafka's default settings, minRoundBytes fit
	// into one batch.
	minRoundBytes  = 800_000
	maxRoundBytes  = 32 * minRoundBytes
	roundLatencies = 16
	// nearLatency is a latency at which small rounds are fast enough.
	nearLatency = 5 * time.Millisecond
	// A round has at most one event for each eventBytes of its size. This is a limit only if the
	// events are smaller than that.
	eventBytes = 200

	// The first retry comes within retryFirst, or within personFirst if a person has to fix the
	// cause. This limit doubles with each failure, up to retryMost.
	retryFirst  = 250 * time.Millisecond
	personFirst = time.Second
	retryMost   = 30 * time.Second
	// While the cluster is unreachable, the limit is reconnectMost. It is less than the time for which
	// closing waits by default: a program that ends just after an outage still sends its events.
	reconnectMost = 4 * time.Second

	// revokedWithin is a little longer than a gateway may accept an access key that was
	// revoked.
	revokedWithin = 1500 * time.Millisecond

	// forgottenAfter is much less than the time after which brokers forget a producer, by default
	// a day.
	forgottenAfter = time.Hour

	// If the cluster can be reached, but does not answer for a topic for this time, the topic's
	// events fail with ErrStuck, so that they do not hold up those of other topics.
	stuckAfter = 30 * time.Second

	// A cluster that was never reached is reported after this time.
	silentAfter = 2 * time.Second
)

var (
	// ErrUnreached says that no attempt to connect has ended yet, as in a network that drops
	// all packets.
	ErrUnreached = errors.New("the cluster has not answered yet")
	// ErrStuck says that the cluster can be reached and does not answer for a topic.
	ErrStuck = errors.New("the cluster does not answer for this topic")
	// ErrStopped says that the Shipper no longer runs.
	ErrStopped = errors.New("the events are no longer being sent")
)

// Shipper sends the events of one spool. Make one with [New]. Its methods may be called
// concurrently, but Run only once.
type Shipper struct {
	cfg     Config
	stopped chan struct{} // closed when Run returns

	// Only the goroutine of Run uses the fields up to the next blank line.
	client  *kgo.Client          // nil before the first round
	known   map[string]time.Time // when an event of a topic was last stored, see fits
	ramp    rampUp
	size    int            // of a round, in bytes
	ahead   []spool.Record // the records that follow those in flight, see readAhead
	flights []flight       // memory for a round; nil while one is in flight
	refused int            // logins that failed in a row
	rewinds int            // how often Run went back to the oldest event
	noted   string         // what the spool's note says; noteUnknown at first

	acknowledgedOrSetAside atomic.Int64
	stored                 atomic.Int64 // events that the cluster has stored, also those of the round in flight
	reading                atomic.Int64 // when Run began to wait for an event that it may send, in Unix nanoseconds; 0 if it is not waiting

	mu      sync.Mutex // guards the fields below
	began   time.Time  // when the client was made, or should have been
	held    map[string]*heldTopic
	all     error         // why nothing at all is sent, or nil
	changed chan struct{} // closed by the next call of change; nil if nobody waits for that
}

// noteUnknown differs from every note, so that the first one replaces that of an earlier process.
const noteUnknown = "\x00"

// New returns a Shipper, which does nothing until Run is called.
func New(cfg Config) *Shipper {
	s := &Shipper{
		cfg:     cfg,
		began:   time.Now(),
		stopped: make(chan struct{}),
		known:   make(map[string]time.Time),
		held:    make(map[string]*heldTopic),
		size:    minRoundBytes,
		noted:   noteUnknown,
	}
	if left := cfg.Spool.Stats(); left.Events > 0 { // left by an outage, or by a process that died
		s.ramp.begin(time.Now(), left.Next)
	}
	return s
}

// Run sends the events of the spool until ctx ends, or until the spool is closed or taken
// by another process.
func (s *Shipper) Run(ctx context.Context) {
	defer close(s.stopped)
	defer func() {
		if s.cfg.Spool.Stats().Events == 0 {
			s.note(nil)
		} else if why := s.Reason(); why != nil {
			s.noted = noteUnknown // write it again, with the time at which it was still so
			s.note(why)
		} else if s.cfg.Connections.Reached() {
			s.note(nil)
		}
	}()
	if !s.connect(ctx) {
		return
	}
	defer func() {
		if s.client != nil {
			s.client.Close()
		}
	}()
	for ctx.Err() == nil {
		if s.tryHeld(ctx) {
			continue
		}
		records, err := s.next(ctx)
		switch {
		case len(records) > 0:
			n, bytes := s.fits(records)
			s.ahead = slices.Clone(records[n:])
			began := time.Now()
			s.round(ctx, records[:n])
			s.adapt(bytes, time.Since(began))
		case errors.Is(err, spool.ErrClosed):
			return
		case errors.Is(err, spool.ErrInUse):
			err = s.cfg.Explain("", err)
			s.cfg.Diagnostics.Error("another process has taken the spool, and sends its events", "err", err)
			s.change(func() { s.all = err })
			return
		case err != nil && !errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
			s.cfg.Diagnostics.Error("the spool cannot be read", "err", err)
			backoff.Sleep(ctx, retryIn(0, retryFirst))
		}
	}
}

// connect makes the client. It reports false if ctx ended first.
func (s *Shipper) connect(ctx context.Context) bool {
	began := time.Now()
	for attempt := 0; ; attempt++ {
		client, err := s.cfg.Client(ctx)
		s.change(func() { s.all, s.began = err, time.Now() })
		if err == nil {
			s.client = client
			if attempt > 0 {
				s.ramp.afterOutage(time.Since(began), s.cfg.Spool.Stats().Next)
			}
			return true
		}
		s.note(s.Reason())
		if !backoff.Sleep(ctx, reconnectIn(attempt)) {
			return false
		}
	}
}

// next returns the records that follow, without those of held topics. It waits for at least one in
// the spool, or until it is time to try a held topic. It may return no records and no error.
func (s *Shipper) next(ctx context.Context) ([]spool.Record, error) {
	s.note(s.Reason())
	s.readAhead()
	records := s.unheld(s.ahead)
	s.ahead = nil
	if len(records) > 0 {
		return records, nil
	}
	if at := s.nextTry(); !at.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, at)
		defer cancel()
	}
	s.reading.Store(time.Now().UnixNano())
	defer s.reading.Store(0)
	records, err := s.cfg.Spool.Next(ctx, s.size/eventBytes, s.size)
	return s.unheld(records), err
}

// ended is a context that has ended. With it, [spool.Spool.Next] returns the entries that it has, and
// does not wait for more.
var ended = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// readAhead reads the next round, as far as its events are in the spool already. It is called while
// the answers to a round are awaited, so that the link is not idle while the next one is read. If it
// cannot read, neither can [Shipper.next], which reports the error once nothing is left to send.
func (s *Shipper) readAhead() {
	events, bytes := s.size/eventBytes-len(s.ahead), s.size
	for i := range s.ahead {
		bytes -= len(s.ahead[i].Key) + len(s.ahead[i].Value)
	}
	if events > 0 && bytes > 0 {
		more, _ := s.cfg.Spool.Next(ended, events, bytes)
		s.ahead = append(s.ahead, more...)
	}
}

// adapt sets the size of the next rounds, given the size of the last one and how long it took. A
// round begins only when all events of the one before are answered, so a link with a high latency
// would be idle most of the time if rounds were small.
func (s *Shipper) adapt(bytes int, took time.Duration) {
	if bytes < s.size/2 {
		return // it says little about the link
	}
	latency := max(0, s.cfg.Connections.Latency()-nearLatency)
	fitting := float64(bytes) / took.Seconds() * latency.Seconds() * roundLatencies
	s.size = max(minRoundBytes, int(min(fitting, 2*float64(s.size), maxRoundBytes)))
}

// fits returns how many of the records make up the next round, and about how many bytes they have.
// The package comment explains why some events make up a round alone.
func (s *Shipper) fits(records []spool.Record) (n, bytes int) {
	now := time.Now()
	for i := range records {
		e := &records[i].Entry
		if same := i > 0 && e.Topic == records[i-1].Topic; !same && now.Sub(s.known[e.Topic]) > forgottenAfter {
			return max(i, 1), bytes
		}
		size := s.cfg.RecordOverhead + len(e.ID) + len(e.Key) + len(e.Value)
		for h := range e.Headers {
			size += 10 + len(e.Headers[h].Key) + len(e.Headers[h].Value)
		}
		if bytes+size > s.size && i > 0 {
			return i, bytes
		}
		bytes += size
	}
	return len(records), bytes
}

// round sends records together and settles each of them: it is acknowledged in the spool,
// quarantined, or held with its topic. After a refused login nothing is settled, and the Shipper goes
// back to the oldest event.
func (s *Shipper) round(ctx context.Context, records []spool.Record) {
	if !s.ramp.wait(ctx, records[0].Position, len(records)) {
		return
	}
	began := time.Now()
	errs, outage := s.roundTrip(ctx, records)
	if outage {
		s.ramp.afterOutage(time.Since(began), s.cfg.Spool.Stats().Next)
	}

	stored, last := make([]uint64, 0, len(records)), "" // last is the topic of the last one
	var failed []string                                 // topics, in the order of their first failure
	failures := map[string][]spool.Record{}
	causes := map[string]error{}
	for i, err := range errs {
		topic := records[i].Topic
		if err == nil {
			if len(stored) == 0 || topic != last {
				s.known[topic], last = began, topic
			}
			stored = append(stored, records[i].Position)
			continue
		}
		if causes[topic] == nil {
			failed, causes[topic] = append(failed, topic), err
		}
		failures[topic] = append(failures[topic], records[i])
	}
	if len(stored) > 0 {
		if err := s.cfg.Spool.Ack(stored...); err != nil {
			s.cfg.Diagnostics.Error("cannot record acknowledgements in the spool", "err", err)
		}
		s.cfg.Acknowledged(len(stored))
		s.settled(len(stored))
	}
	s.cfg.Spool.Yield(ctx, time.Since(began)) // logging goes before sending

	was := s.rewinds
	for _, topic := range failed {
		if ctx.Err() != nil || s.rewinds != was {
			return
		}
		s.failed(ctx, failures[topic], causes[topic])
	}
}

// failed handles records of one topic that were not stored, as [kafka.Judge] decides about err, the
// reason why the first of them was not.
func (s *Shipper) failed(ctx context.Context, records []spool.Record, err error) {
	verdict := kafka.Judge(err)
	if verdict == kafka.Quarantine && len(records) > 1 {
		// The cluster has refused a batch because of one of its events. Find it.
		half, was := len(records)/2, s.rewinds
		s.round(ctx, records[:half])
		if rest := s.unheld(records[half:]); len(rest) > 0 && s.rewinds == was && ctx.Err() == nil {
			s.round(ctx, rest)
		}
		return
	}
	if verdict == kafka.Quarantine {
		why := s.cfg.Explain(records[0].Topic, err)
		failure := s.cfg.Spool.Quarantine(records[0], why.Error())
		if failure == nil {
			s.cfg.Diagnostics.Error("the cluster will never accept an event, so it was set aside", "topic", records[0].Topic, "id", records[0].ID, "err", why)
			s.settled(1)
			return
		}
		err, verdict = fmt.Errorf("%w (and it could not be set aside: %w)", err, failure), kafka.HoldTopic
	}
	if verdict != kafka.HoldAll {
		refused := s.keyRefused(ctx, records[0].Topic, err)
		if refused == nil && s.cfg.Renewed != nil && s.cfg.Renewed() {
			s.reconnect(ctx)
			return
		}
		if refused == nil {
			s.hold(records[0], err, verdict == kafka.HoldTopic)
			return
		}
		err = refused
	}

	// The cause is not this topic: nothing can be sent until a login succeeds.
	err = s.cfg.Explain("", err)
	if s.refused == 0 {
		s.cfg.Diagnostics.Error("all events wait in the spool", "err", err)
	}
	s.change(func() { s.all = err })
	s.note(s.Reason())
	backoff.Sleep(ctx, retryIn(s.refused, personFirst))
	s.refused++
	s.rewind()
}

// reconnect makes another client, and goes back to the oldest event.
func (s *Shipper) reconnect(ctx context.Context) {
	s.client.Close()
	s.client = nil
	clear(s.known) // the next client is another producer
	s.rewind()
	s.connect(ctx)
}

// keyRefused returns why the access key is no longer valid, if that is the reason for a
// permission error. A revoked key loses its rights before its connections are closed, so only
// a new login shows whether it was revoked. A gateway may accept a revoked key for one more
// second. So if the topic accepted events with this key until now, keyRefused signs in
// repeatedly, for a little longer than that.
func (s *Shipper) keyRefused(ctx context.Context, topic string, err error) error {
	if condition, _ := kafka.Explain(err); s.cfg.SignIn == nil || condition != kafka.Permission {
		return nil
	}
	s.mu.Lock()
	sudden := !s.known[topic].IsZero() && s.held[topic] == nil
	s.mu.Unlock()
	for end := time.Now().Add(revokedWithin); ; {
		if refused := s.cfg.SignIn(ctx); refused != nil && s.cfg.NeedsLogin(refused) {
			return refused
		}
		if !sudden || time.Now().After(end) || !backoff.Sleep(ctx, retryIn(0, retryFirst)) {
			return nil
		}
	}
}

// settled notes that events were acknowledged or set aside, which shows that the login is
// accepted.
func (s *Shipper) settled(n int) {
	s.acknowledgedOrSetAside.Add(int64(n))
	s.accepted()
}

// accepted notes that the cluster accepts the login.
func (s *Shipper) accepted() {
	s.refused = 0
	s.change(func() { s.all = nil })
}

// rewind goes back to the oldest event. No event is in flight when it is called.
func (s *Shipper) rewind() {
	s.rewinds++
	s.ahead = nil
	s.cfg.Spool.Rewind()
}

// forget makes the client look the topic up again before it sends to it.
func (s *Shipper) forget(topic string) {
	s.client.PurgeTopicsFromProducing(topic)
	delete(s.known, topic)
}

// note writes into the spool why events wait, for other processes to read.
func (s *Shipper) note(why error) {
	text := ""
	if why != nil {
		text = why.Error() + s.otherHolds(why)
	}
	if text == s.noted {
		return
	}
	if text == "" && s.noted == noteUnknown && !s.cfg.Connections.Reached() && s.cfg.Spool.Stats().Events > 0 {
		return // what an earlier process said is all that is known until the cluster is reached
	}
	if err := s.cfg.Spool.Note(text); err != nil {
		s.cfg.Diagnostics.Warn("cannot write the note of the spool", "err", err)
		return
	}
	s.noted = text
}

// change calls do, which may change the fields that mu guards, and wakes the callers of
// [Shipper.wait].
func (s *Shipper) change(do func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	do()
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}
