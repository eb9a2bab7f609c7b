package diaspora

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
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

// SpoolPolicy says what happens to an event for which the spool has no room, since
// it has reached [Config.SpoolBytes] or the disk is full.
type SpoolPolicy int

const (
	// SpoolBlock has Log and Send wait for room.
	SpoolBlock SpoolPolicy = iota
	// SpoolReject has them fail with [ErrSpoolFull].
	SpoolReject
	// SpoolDropOldest makes room by dropping the oldest events that wait, some
	// hundred at once. [SpoolStats] counts them.
	SpoolDropOldest
)

// SpoolStats is what a Logger's spool has.
type SpoolStats struct {
	Events int64     // that wait for the cluster's acknowledgement
	Bytes  int64     // on disk
	Oldest time.Time // when the oldest of Events was logged, or earlier; zero without any

	// Why says why events wait: nobody is let in, the cluster cannot be reached,
	// the topic that Held names first. Nil if none do, or they are on their way.
	Why error

	// Full says why the spool takes no more events: it has reached [Config.SpoolBytes], or its disk
	// is full. Log and Send wait or fail then, as [Config.SpoolPolicy] says. It is around
	// [ErrSpoolFull], and nil if there is room.
	Full error

	// Held are the topics whose events wait although others are sent, with the
	// Reason: most often, that who is signed in may not write to it.
	Held map[string]error

	// Since the spool was made:
	Dropped     int64 // events, by [SpoolDropOldest]
	Discarded   int64 // events, by "diaspora spool discard"
	Quarantined int64 // events set aside, as the cluster will never take them
	Damaged     int64 // events lost to a damaged disk
}

// spooled is the [sink] of a Logger with a spool. It writes events to disk, from where a
// [ship.Shipper] sends them to the cluster.
type spooled struct {
	fabric  *fabric // to check and explain; the cluster need not be known
	counts  *counts
	ids     *ids
	spool   *spool.Spool
	conns   *kafka.Connections
	shipper *ship.Shipper
	cluster *shipCluster

	stop context.CancelFunc         // ends the shipper
	work sync.WaitGroup             // of the shipper
	last atomic.Pointer[SpoolStats] // after close, when the spool can no longer be asked
}

// shipCluster makes the Kafka client of a shipper. It belongs to the shipper's goroutine.
type shipCluster struct {
	cfg    Config // complete
	conns  *kafka.Connections
	fabric *fabric // nil until the fabric could be asked where the cluster is
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
		// The events may well be its owner's, but a refused credential cannot tell whose it is.
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
	if err != nil {
		return nil, explainSpool(err)
	}
	conns := new(kafka.Connections)
	s := &spooled{
		fabric:  f,
		counts:  counts,
		ids:     newIDs(),
		spool:   sp,
		conns:   conns,
		cluster: &shipCluster{cfg: cfg, conns: conns},
	}
	config := ship.Config{
		Spool:          sp,
		Client:         s.cluster.client,
		Connections:    conns,
		Record:         fillRecord,
		RecordOverhead: 40 + systemHeaderBytes,
		Explain:        s.explain,
		NeedsLogin:     func(err error) bool { return errors.Is(err, ErrUnauthenticated) || kafka.NotAdmitted(err) },
		ClosePatience:  cfg.ClosePatience,
		DiskPatience:   defaultClosePatience,
		Acknowledged:   func(n int) { counts.acknowledged.Add(int64(n)) },
		Diagnostics:    cfg.diagnostics(),
	}
	if cfg.Key != (Key{}) {
		config.SignIn = func(ctx context.Context) error { return s.cluster.fabric.signsInAnew(ctx) }
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
		c.fabric = f
	}
	if c.cfg.memory.name != "" {
		// So that the owner of the credential is known next time. Sending does not depend on it.
		timed, cancel := context.WithTimeout(ctx, c.cfg.DialTimeout)
		_ = c.cfg.learnIdentity(timed)
		cancel()
	}
	cfg := c.fabric.kafka
	cfg.Progress = c.conns.Progress
	client, err := kgo.NewClient(slices.Concat(kafka.ClientOpts(cfg), c.fabric.tuning(), []kgo.Opt{
		kgo.WithHooks(c.conns),
		// A round is sent when all of it is there, so that it is one batch per partition.
		kgo.ManualFlushing(),
		kgo.ProducerLinger(0),
		kgo.MaxBufferedRecords(math.MaxInt32),
		kgo.RetryBackoffFn(ship.RetryIn),
	})...)
	if err != nil {
		return nil, invalid("configuration: %v", err)
	}
	return client, nil
}

// explain puts an error of the shipper into words.
func (s *spooled) explain(topic string, err error) error {
	switch {
	case errors.Is(err, ship.ErrUnreached), errors.Is(err, ship.ErrStuck):
		err = &Error{Condition: ErrUnavailable, Reason: err.Error(), cause: err}
	case errors.Is(err, spool.ErrInUse):
		return explainSpool(err)
	}
	if topic != "" {
		return s.fabric.logError(topic, err)
	}
	return advise(explain(err), ErrUnauthenticated, s.fabric.login)
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

func (s *spooled) send(ctx context.Context, ev *Event, done func(Record, error)) error {
	e := s.entry(ev)
	event := *ev
	event.ID, event.Time = e.ID, e.Time
	err := s.spool.AppendAsync(ctx, e, func(err error) {
		if err != nil {
			s.counts.failed.Add(1)
			err = s.fabric.logError(event.Topic, explainSpool(err))
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

// entry is an event as the spool keeps it: with the ID and the time that it has for good.
func (s *spooled) entry(ev *Event) spool.Entry {
	e := spool.Entry{Topic: ev.Topic, Key: ev.Key, Value: ev.Value, ID: ev.ID, Time: ev.Time}
	if e.Time.IsZero() {
		e.Time = time.Now().Truncate(time.Millisecond)
	}
	e.Time = e.Time.UTC()
	if e.ID == "" {
		var buf [idPrefixBytes + maxCounterBytes]byte
		copy(buf[:], s.ids.prefix)
		e.ID = string(buf[:idPrefixBytes+s.ids.put(buf[idPrefixBytes:])])
	}
	if len(ev.Headers) > 0 {
		e.Headers = make([]spool.Header, len(ev.Headers))
		for i, h := range ev.Headers {
			e.Headers[i] = spool.Header(h)
		}
	}
	return e
}

// fillRecord makes the record of an event in the spool.
func fillRecord(r *kgo.Record, e *spool.Entry) {
	layout := timeLayout
	if e.Time.Nanosecond()%1e6 != 0 {
		layout = time.RFC3339Nano
	}
	r.Topic, r.Key, r.Value = e.Topic, e.Key, e.Value
	r.Headers = make([]kgo.RecordHeader, 2, 2+len(e.Headers))
	r.Headers[0] = kgo.RecordHeader{Key: HeaderTime, Value: e.Time.AppendFormat(nil, layout)}
	r.Headers[1] = kgo.RecordHeader{Key: HeaderID, Value: []byte(e.ID)}
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
	err := s.spool.Close() // commits or fails what is still on its way to disk, and calls back
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
		PendingBytes: int64(now.Queued),
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

// full says why the spool takes no more events, or returns nil.
func (s *spooled) full(why string) error {
	dir := s.fabric.SpoolDir
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

// spoolSubject returns whose events the spool is to hold. While the owner of an access key, or of a
// credential from the environment, cannot be found out, it returns a name for the credential itself, and
// the events wait until the fabric says whose it is. If the fabric refuses the credential, refused says why:
// a person has to replace it.
func (c *Config) spoolSubject(ctx context.Context) (subject string, refused, err error) {
	if c.Identity.Subject != "" || c.anonymous {
		return c.Identity.Subject, nil, nil
	}
	if c.URL == "" {
		return "", nil, invalid("configuration: SpoolDir needs URL or Identity.Subject, to know whose events it holds")
	}
	canWait := c.memory.name != "" || c.Key != Key{}
	if canWait && c.memory.unanswered() {
		return c.unbound(), nil, nil
	}
	timed, cancel := context.WithTimeout(ctx, c.DialTimeout)
	defer cancel()
	err = c.learnIdentity(timed)
	if canWait && ctx.Err() == nil && (away(err) || timed.Err() != nil) {
		c.diagnostics().Warn("the fabric cannot be asked whose events these are; they wait for whoever signs in with this credential", "url", c.URL, "err", err)
		c.memory.noAnswer()
		return c.unbound(), nil, nil
	}
	if canWait && refusedCredential(err) { // the events are not lost for that
		c.diagnostics().Warn("the credential is refused; the events wait in the spool", "url", c.URL, "err", err)
		return c.unbound(), err, nil
	}
	if err != nil {
		return "", nil, fmt.Errorf("ask whose events the spool is to hold: %w", err)
	}
	return c.Identity.Subject, nil, nil
}

// refusedCredential reports whether err says that a credential is not good or its owner not admitted, and not
// that it was not sent, as to a fabric that it does not belong to.
func refusedCredential(err error) bool {
	return errors.Is(err, ErrPermission) || errors.Is(err, ErrUnauthenticated) && !errors.Is(err, trust.ErrUntrusted)
}

// explainSpool puts an error of the spool into the words of this package.
func explainSpool(err error) error {
	for _, c := range []struct {
		spool, ours error
		hint        string
	}{
		{spool.ErrClosed, ErrClosed, ""}, // also of an event that waited for room until then
		{spool.ErrFull, ErrSpoolFull, ""},
		{spool.ErrInUse, ErrConflict, "give each process a directory of its own"},
		{spool.ErrSubject, ErrConflict, "sign in as that identity to send them, or use another directory"},
		{spool.ErrInsecure, ErrInvalid, ""},
		{spool.ErrTooLarge, ErrInvalid, ""},
		{spool.ErrVersion, ErrInvalid, "use the version of diaspora that wrote it, or a newer one"},
	} {
		if errors.Is(err, c.spool) {
			switch {
			case c.spool != spool.ErrSubject:
			case strings.Contains(err.Error(), `"`+spool.Unbound):
				c.hint = "sign in with that credential, as DIASPORA_REFRESH, to send them, or use another directory"
			case strings.Contains(err.Error(), `"`+spool.UnboundKey):
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
