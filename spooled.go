package diaspora

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/ship"
	"github.com/diaspora-streams/diaspora/internal/spool"
	"github.com/diaspora-streams/diaspora/internal/trust"
)

// SpoolPolicy says what happens to an event when the spool is full: it has reached
// [Config.SpoolBytes], or the disk is full.
type SpoolPolicy int

const (
	// SpoolBlock makes Log and Send wait until there is room.
	SpoolBlock SpoolPolicy = iota
	// SpoolReject makes Log and Send fail with [ErrSpoolFull].
	SpoolReject
	// SpoolDropOldest makes room by dropping the oldest pending events, one file of the spool at a
	// time: up to a sixteenth of SpoolBytes, and up to 8 MiB. [SpoolStats] counts the events.
	SpoolDropOldest
)

// SpoolStats describes the spool of a Logger.
type SpoolStats struct {
	Events int64     // events that the cluster has not acknowledged
	Bytes  int64     // size on disk
	Oldest time.Time // when the oldest of Events was logged, or earlier; zero if there are none

	// Why says why events are pending: for instance, the login is rejected, the cluster is
	// unreachable, or a topic is held; of the topics in Held, it takes the one with the latest
	// reason. It is nil if no events are pending, or if they are being sent.
	Why error

	// Full says why the spool takes no more events: it has reached [Config.SpoolBytes], or its disk
	// is full. Log and Send then wait or fail, as [Config.SpoolPolicy] says. It wraps
	// [ErrSpoolFull], and is nil if there is room.
	Full error

	// Held maps each topic that is held to the reason. The events of such a topic stay pending
	// while those of other topics are sent. Most often, the signed-in identity may not write to it.
	Held map[string]error

	// Totals since the spool was created:
	Dropped     int64 // events dropped by [SpoolDropOldest]
	Discarded   int64 // events removed by "diaspora spool discard"
	Quarantined int64 // events set aside because the cluster will never accept them
	Damaged     int64 // events lost because the disk damaged them
}

// spooled is the [sink] of a Logger with a spool. It writes events to disk, and a [ship.Shipper]
// sends them to the cluster from there.
type spooled struct {
	fabric  atomic.Pointer[fabric] // checks events and explains errors; may be undiscovered
	counts  *counts
	ids     *ids
	spool   *spool.Spool
	entries sync.Pool // of *[]spool.Entry, for sendAll
	conns   *kafka.Connections
	shipper *ship.Shipper
	cluster *shipCluster

	stop context.CancelFunc         // stops the shipper
	work sync.WaitGroup             // for the goroutine of the shipper
	last atomic.Pointer[SpoolStats] // set by close, after which the spool cannot be asked
}

// shipCluster makes the Kafka client of a shipper. Only the shipper's goroutine uses it.
type shipCluster struct {
	cfg    Config // after complete
	conns  *kafka.Connections
	fabric *fabric  // nil until the discovery document is known
	keys   *keyFile // nil if the key is not from a key file
	had    Key      // the key in use when the client was made
}

func openSpooled(ctx context.Context, cfg Config, counts *counts) (*spooled, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	subject, refused, err := cfg.spoolSubject(ctx)
	if err != nil {
		return nil, err
	}
	f, err := cfg.fabric()
	if err != nil {
		return nil, err
	}
	sp, err := spool.Open(ctx, spool.Options{
		Dir:         cfg.SpoolDir,
		Subject:     subject,
		MaxBytes:    cfg.SpoolBytes,
		Policy:      spool.Policy(cfg.SpoolPolicy),
		Same:        func(unbound string) bool { return cfg.owns(ctx, subject, unbound) },
		Diagnostics: cfg.Diagnostics,
	})
	if errors.Is(err, spool.ErrSubject) && refused != nil {
		// The events may well belong to the credential's owner, but a rejected credential cannot
		// prove that. Report the rejection, because that is what a person can fix.
		condition := ErrUnauthenticated
		if errors.Is(refused, ErrPermission) {
			condition = ErrPermission
		}
		return nil, &Error{
			Condition: condition,
			Reason:    fmt.Sprintf("the events in %s wait: %s", cfg.SpoolDir, strings.TrimPrefix(strings.TrimSuffix(refused.Error(), "; "+Hint(refused)), condition.Error()+": ")),
			Hint:      Hint(refused), cause: errors.Join(err, refused),
		}
	}
	if errors.Is(err, spool.ErrSubject) && spool.IsUnbound(subject) && !ofUnbound(err, spool.Unbound) && !ofUnbound(err, spool.UnboundKey) {
		// The spool may well be of the credential's owner, but who that is can only be found out later.
		return nil, &Error{
			Condition: ErrUnavailable,
			Reason:    fmt.Sprintf("the fabric cannot be reached; the events in %s wait, because it is not known yet whether %s belongs to the person who logged them", cfg.SpoolDir, cfg.identityName()),
			Hint:      "try again when the fabric can be reached",
			cause:     err,
		}
	}
	if err != nil {
		return nil, explainSpool(err)
	}
	conns := new(kafka.Connections)
	s := &spooled{
		counts:  counts,
		ids:     newIDs(),
		spool:   sp,
		conns:   conns,
		cluster: &shipCluster{cfg: cfg, conns: conns},
	}
	s.fabric.Store(f)
	if cfg.again != nil {
		s.cluster.keys = &keyFile{cfg: cfg, subject: subject, renewed: s.fabric.Store}
	}
	config := ship.Config{
		Spool:          sp,
		Client:         s.cluster.client,
		Connections:    conns,
		Record:         new(recordFiller).fill,
		RecordOverhead: 40 + systemHeaderBytes,
		Explain:        s.explain,
		NeedsLogin:     func(err error) bool { return errors.Is(err, ErrUnauthenticated) || kafka.NotAdmitted(err) },
		ClosePatience:  cfg.ClosePatience,
		DiskPatience:   defaultClosePatience,
		Acknowledged:   func(n int) { counts.acknowledged.Add(int64(n)) },
		Diagnostics:    cfg.diagnostics(),
	}
	if s.cluster.keys != nil {
		config.Renewed = s.cluster.renewed
	}
	if cfg.Key != (Key{}) {
		config.SignIn = func(ctx context.Context) error { return s.cluster.fabric.trySignIn(ctx) }
	}
	s.shipper = ship.New(config)
	run, stop := context.WithCancel(context.Background()) // ends with close, not with ctx
	s.stop = stop
	s.work.Go(func() { s.shipper.Run(run) })
	return s, nil
}

func (c *shipCluster) client(ctx context.Context) (*kgo.Client, error) {
	if c.fabric == nil {
		f, err := c.cfg.resolve(ctx)
		if err != nil {
			c.cfg.diagnostics().Warn("waiting for the fabric", "url", c.cfg.URL, "err", err)
			return nil, err
		}
		if c.keys != nil {
			f.kafka.CurrentKey = c.keys.current
		}
		c.fabric = f
	}
	if c.cfg.memory.Name != "" {
		// Remember the owner of the credential for the next start. Sending does not need it, so a
		// failure is ignored.
		timed, cancel := context.WithTimeout(ctx, c.cfg.DialTimeout)
		_ = c.cfg.learnIdentity(timed)
		cancel()
	}
	cfg := c.fabric.kafka
	cfg.Progress = c.conns.Progress
	if c.keys != nil {
		c.had = c.keys.inUse()
	}
	client, err := kgo.NewClient(slices.Concat(kafka.ClientOpts(cfg), c.fabric.tuning(), ship.ClientOpts(), []kgo.Opt{kgo.WithHooks(c.conns)})...)
	if err != nil {
		return nil, invalid("configuration: %v", err)
	}
	return client, nil
}

// renewed reports whether the key file has provided another key since the client was made.
func (c *shipCluster) renewed() bool { return c.keys.inUse() != c.had }

// explain converts an error of the shipper into one of this package.
func (s *spooled) explain(topic string, err error) error {
	switch {
	case errors.Is(err, ship.ErrUnreached), errors.Is(err, ship.ErrStuck):
		err = &Error{Condition: ErrUnavailable, Reason: err.Error(), cause: err}
	case errors.Is(err, spool.ErrInUse):
		return explainSpool(err)
	}
	if topic != "" {
		err = s.fabric.Load().logError(topic, err)
	} else {
		err = withHint(explain(err), ErrUnauthenticated, s.fabric.Load().login)
	}
	if keys := s.cluster.keys; keys != nil {
		err = keys.explain(err)
	}
	return err
}

func (s *spooled) log(ctx context.Context, events []Event) error {
	var one [1]spool.Entry
	entries := one[:0]
	for i := range events {
		entries = append(entries, s.entry(&events[i]))
	}
	if err := s.spool.Append(ctx, entries...); err != nil {
		return s.counts.allFailed(events, -1, explainSpool(err))
	}
	return nil
}

func (s *spooled) send(ctx context.Context, event Event, done func(Record, error)) error {
	e := s.entry(&event)
	event.ID, event.Time = e.ID, e.Time
	err := s.spool.AppendAsync(ctx, e, func(err error) {
		if err != nil {
			s.counts.failed.Add(1)
			err = s.fabric.Load().logError(event.Topic, explainSpool(err))
		}
		if done != nil {
			s.counts.call(done, Record{Event: event, Partition: -1, Offset: -1}, err)
		}
	})
	if err != nil && err != ctx.Err() {
		err = explainSpool(err)
	}
	return err
}

func (s *spooled) sendAll(ctx context.Context, events []Event, r results) (int, error) {
	entries, _ := s.entries.Get().(*[]spool.Entry)
	if entries == nil {
		entries = new([]spool.Entry)
	}
	now := time.Now()
	var ids strings.Builder // all IDs share its memory
	ids.Grow(len(events) * maxMadeID)
	var buf [maxMadeID]byte
	for i := range events {
		id := events[i].ID
		if id == "" {
			n, _ := ids.Write(s.makeID(&buf))
			id = ids.String()[ids.Len()-n:]
		}
		*entries = append(*entries, stored(&events[i], id, now))
	}
	n, err := s.spool.AppendAllAsync(ctx, *entries, func(from, to int, err error) {
		if err == nil {
			r.logged(to - from)
			return
		}
		for i := from; i < to; i++ {
			r.failed(i, explainSpool(err))
		}
	})
	clear(*entries)
	*entries = (*entries)[:0]
	s.entries.Put(entries)
	if err != nil && err != ctx.Err() {
		err = explainSpool(err)
	}
	return n, err
}

// entry returns the event as the spool stores it, with its final ID and time.
func (s *spooled) entry(ev *Event) spool.Entry {
	id := ev.ID
	if id == "" {
		var buf [maxMadeID]byte
		id = string(s.makeID(&buf))
	}
	return stored(ev, id, time.Now())
}

// maxMadeID is the size of the longest ID that the library makes.
const maxMadeID = idPrefixBytes + maxCounterBytes

// makeID writes a new ID to buf.
func (s *spooled) makeID(buf *[maxMadeID]byte) []byte {
	copy(buf[:], s.ids.prefix)
	return buf[:idPrefixBytes+s.ids.put(buf[idPrefixBytes:])]
}

// stored returns the event as the spool stores it. It is logged now.
func stored(ev *Event, id string, now time.Time) spool.Entry {
	e := spool.Entry{Topic: ev.Topic, Key: ev.Key, Value: ev.Value, ID: id, Time: ev.Time}
	if e.Time.IsZero() {
		e.Time = now.Truncate(time.Millisecond)
	}
	e.Time = e.Time.UTC()
	if len(ev.Headers) > 0 {
		e.Headers = make([]spool.Header, len(ev.Headers))
		for i, h := range ev.Headers {
			e.Headers[i] = spool.Header(h)
		}
	}
	return e
}

// recordFiller makes the records of events in the spool, in order, with few allocations. Only the
// shipper's goroutine uses it.
type recordFiller struct {
	ids  []byte    // memory for IDs; the capacity is not used yet
	time time.Time // of the last event
	text []byte    // its text; events of the same millisecond share it
}

// fillerBytes is how much memory for IDs is allocated at once.
const fillerBytes = 16 << 10

// fill sets r to the record of e.
func (f *recordFiller) fill(r *kgo.Record, e *spool.Entry) {
	if f.text == nil || e.Time != f.time {
		layout := timeLayout
		if e.Time.Nanosecond()%1e6 != 0 {
			layout = time.RFC3339Nano
		}
		f.time, f.text = e.Time, e.Time.AppendFormat(nil, layout)
	}
	if len(e.ID) > cap(f.ids)-len(f.ids) {
		f.ids = make([]byte, 0, max(fillerBytes, len(e.ID)))
	}
	at := len(f.ids)
	f.ids = append(f.ids, e.ID...)
	r.Topic, r.Key, r.Value = e.Topic, e.Key, e.Value
	r.Headers = append(r.Headers, kgo.RecordHeader{Key: HeaderTime, Value: f.text}, kgo.RecordHeader{Key: HeaderID, Value: f.ids[at:len(f.ids):len(f.ids)]})
	for i := range e.Headers {
		r.Headers = append(r.Headers, kgo.RecordHeader(e.Headers[i]))
	}
}

func (s *spooled) flush(ctx context.Context) error {
	if err := s.spool.Sync(ctx); err != nil {
		return fmt.Errorf("events are not on disk yet: %w", err)
	}
	err := s.shipper.Flush(ctx)
	if err == nil {
		return nil
	}
	st := s.stats().Spool
	switch {
	case errors.Is(err, ship.ErrStopped):
		err = ErrClosed
	case err == ctx.Err() && st.Why != nil:
		err = fmt.Errorf("%w (%w)", err, st.Why)
	}
	return fmt.Errorf("%d events wait in the spool: %w", st.Events, err)
}

func (s *spooled) close(ctx context.Context) error {
	s.spool.Seal()
	s.shipper.Finish(ctx)
	s.stop()
	s.work.Wait()
	last := s.stats().Spool
	err := s.spool.Close() // commits or fails the events that are not on disk yet, and runs their callbacks
	last.fill(s.spool.Stats())
	s.last.Store(&last)
	if err != nil {
		return explainSpool(err)
	}
	return nil
}

func (s *spooled) stats() LoggerStats {
	now := s.spool.Stats()
	st := LoggerStats{
		PendingBytes: int64(now.Held),
		Err:          s.explain("", s.conns.Err()),
	}
	if st.Err == nil && !s.conns.Reached() {
		st.Err = s.explain("", ship.ErrUnreached)
	}
	if last := s.last.Load(); last != nil {
		st.Spool = *last
		return st
	}
	st.Spool.fill(now)
	st.Spool.Full = s.full(now.Full)
	for topic, hold := range s.shipper.Held() {
		if st.Spool.Held == nil {
			st.Spool.Held = make(map[string]error)
		}
		st.Spool.Held[topic] = hold.Err
	}
	if st.Spool.Events > 0 {
		st.Spool.Why = s.shipper.Reason()
	}
	return st
}

// full explains why the spool takes no more events, or returns nil.
func (s *spooled) full(why string) error {
	dir := s.fabric.Load().SpoolDir
	switch why {
	case "":
		return nil
	case spool.DiskFull:
		return &Error{Condition: ErrSpoolFull, Reason: fmt.Sprintf("no space is left on the disk of %s", dir), Hint: "free some space there"}
	}
	return &Error{Condition: ErrSpoolFull, Reason: fmt.Sprintf("%s: %s", dir, why), Hint: "see why the events are not sent with \"diaspora doctor\""}
}

func (st *SpoolStats) fill(s spool.Stats) {
	st.Events, st.Bytes, st.Oldest = int64(s.Events), s.Bytes, s.Oldest
	st.Dropped, st.Discarded = int64(s.Dropped), int64(s.Discarded)
	st.Quarantined, st.Damaged = int64(s.Quarantined), int64(s.Damaged)
}

// spoolSubject returns the subject whose events the spool is to hold.
//
// If the fabric cannot say now who owns an access key or a credential from the environment,
// spoolSubject returns a placeholder that names the credential. The events then stay in the spool
// until the fabric says who the owner is. If the fabric rejects the credential, refused says why; a
// person has to replace the credential.
func (c *Config) spoolSubject(ctx context.Context) (subject string, refused, err error) {
	if c.Identity.Subject != "" || c.anonymous {
		return c.Identity.Subject, nil, nil
	}
	if c.URL == "" {
		return "", nil, invalid("configuration: SpoolDir needs URL or Identity.Subject, to know whose events it holds")
	}
	canWait := c.memory.Name != "" || c.Key != Key{}
	if canWait && c.memory.Unanswered() {
		return c.unbound(), nil, nil
	}
	timed, cancel := context.WithTimeout(ctx, c.DialTimeout)
	defer cancel()
	err = c.learnIdentity(timed)
	if canWait && ctx.Err() == nil && (away(err) || timed.Err() != nil) {
		c.diagnostics().Warn("the fabric cannot be asked whose events these are; they stay in the spool until it can", "url", c.URL, "err", err)
		c.memory.NoAnswer()
		return c.unbound(), nil, nil
	}
	if canWait && refusedCredential(err) { // keep the events nevertheless
		c.diagnostics().Warn("the credential is refused; the events wait in the spool", "url", c.URL, "err", err)
		return c.unbound(), err, nil
	}
	if err != nil {
		return "", nil, fmt.Errorf("ask whose events the spool is to hold: %w", err)
	}
	return c.Identity.Subject, nil, nil
}

// refusedCredential reports whether err says that a credential is invalid or that its owner is not
// admitted. It does not count errors that say that the credential was not sent because it does not
// belong to the fabric.
func refusedCredential(err error) bool {
	return errors.Is(err, ErrPermission) || errors.Is(err, ErrUnauthenticated) && !errors.Is(err, trust.ErrUntrusted)
}

// ofUnbound reports whether a [spool.ErrSubject] says that the spool has events of a credential whose owner was not known.
// kind is the kind of credential.
func ofUnbound(err error, kind string) bool {
	of, _, _ := strings.Cut(err.Error(), ", not ")
	return strings.Contains(of, `"`+kind)
}

// explainSpool converts an error of the spool into one of this package.
func explainSpool(err error) error {
	for _, c := range []struct {
		spool, ours error
		hint        string
	}{
		{spool.ErrClosed, ErrClosed, ""}, // also for events that waited for room when the spool was closed
		{spool.ErrFull, ErrSpoolFull, ""},
		{spool.ErrInUse, ErrConflict, "give each process a directory of its own"},
		{spool.ErrSubject, ErrConflict, `sign in as that identity to send them; or, if they were logged with a wrong login or key, take them out with "diaspora spool discard TOPIC --to FILE"`},
		{spool.ErrInsecure, ErrInvalid, ""},
		{spool.ErrTooLarge, ErrInvalid, ""},
		{spool.ErrVersion, ErrInvalid, "use the version of diaspora that wrote it, or a newer one"},
	} {
		if errors.Is(err, c.spool) {
			switch {
			case c.spool != spool.ErrSubject:
			case ofUnbound(err, spool.Unbound):
				c.hint = "sign in with that credential, as DIASPORA_REFRESH, to send them, or use another directory"
			case ofUnbound(err, spool.UnboundKey):
				c.hint = "sign in with that key, or with another one of the same person once the fabric can be reached, to send them, or use another directory"
			}
			return &Error{Condition: c.ours, Reason: err.Error(), Hint: c.hint, cause: err}
		}
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	f := &Error{Condition: ErrSpoolFailed, Reason: err.Error(), cause: err}
	if errors.Is(err, fs.ErrPermission) {
		f.Hint = "choose a directory where you may write; if this one is yours, but was made with sudo, chown it"
	} else if errors.Is(err, syscall.EROFS) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, fs.ErrNotExist) {
		f.Hint = "choose a directory where you may write"
	}
	return f
}
