package diaspora

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

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

// spooled is what a Logger with a spool has besides.
type spooled struct {
	*spool.Spool
	drain *drain
	stop  context.CancelFunc // ends the drain
	work  sync.WaitGroup     // of the drain
	known atomic.Pointer[SpoolStats]
}

// maxSpoolingBytes bounds the events that are on their way to disk. It is what the
// spool takes without waiting.
const maxSpoolingBytes = 8 << 20

func openSpooled(ctx context.Context, cfg Config) (*Logger, error) {
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
	s, err := spool.Open(ctx, spool.Options{
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
	l := newLogger(f, newConnections())
	l.room.max = maxSpoolingBytes
	run, stop := context.WithCancel(context.Background()) // ends with Close, not with ctx
	l.spooled = &spooled{Spool: s, stop: stop, drain: &drain{
		spool:  s,
		conns:  l.conns,
		cfg:    cfg,
		began:  time.Now(),
		report: func(n int) { l.acknowledged.Add(int64(n)) },
		words:  l.explain,
		known:  map[string]bool{},
		held:   map[string]*heldTopic{},
		noted:  unknownNote,
	}}
	if left := s.Stats(); left.Events > 0 { // of an outage, or of a process that died
		l.spooled.drain.pace.begin(time.Now(), left.Next)
	}
	l.spooled.work.Go(func() { l.spooled.drain.run(run) })
	return l, nil
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

// entry is an event as the spool keeps it: with the ID and the time that it has for good.
func (l *Logger) entry(ev *Event) spool.Entry {
	e := spool.Entry{Topic: ev.Topic, Key: ev.Key, Value: ev.Value, ID: ev.ID, Time: ev.Time}
	if e.Time.IsZero() {
		e.Time = time.Now().Truncate(time.Millisecond)
	}
	e.Time = e.Time.UTC()
	if e.ID == "" {
		var buf [idPrefixBytes + maxCounterBytes]byte
		copy(buf[:], l.ids.prefix)
		e.ID = string(buf[:idPrefixBytes+l.ids.put(buf[idPrefixBytes:])])
	}
	if len(ev.Headers) > 0 {
		e.Headers = make([]spool.Header, len(ev.Headers))
		for i, h := range ev.Headers {
			e.Headers[i] = spool.Header(h)
		}
	}
	return e
}

// spool is Log with a spool.
func (l *Logger) spool(ctx context.Context, events []Event) error {
	size := 0
	for i := range events {
		size += eventBytes(&events[i]) + pendingOverhead
	}
	room := min(int64(size), l.room.max/4)
	if err := l.enter(ctx, room); err != nil {
		return l.allFailed(events, -1, err)
	}
	defer l.room.leave(room)
	var one [1]spool.Entry
	entries := one[:0]
	for i := range events {
		entries = append(entries, l.entry(&events[i]))
	}
	if err := l.spooled.Append(ctx, entries...); err != nil {
		return l.allFailed(events, -1, explainSpool(err))
	}
	return nil
}

// enter takes room, unless the Logger is closed.
func (l *Logger) enter(ctx context.Context, n int64) error {
	if err := l.room.enter(ctx, l.closing, n); err != nil {
		return err
	}
	if l.closed.Load() { // after entering, so that Close waits for us or we see it
		l.room.leave(n)
		return ErrClosed
	}
	return nil
}

// spoolAsync is Send with a spool, after it got room.
func (l *Logger) spoolAsync(ev *Event, done func(Record, error), room int64) {
	e := l.entry(ev)
	event := *ev
	event.ID, event.Time = e.ID, e.Time
	l.spooled.AppendAsync(e, func(err error) {
		if err != nil {
			l.failed.Add(1)
			err = l.explain(event.Topic, explainSpool(err))
		}
		if done != nil {
			l.calling.Lock()
			done(Record{Event: event, Partition: -1, Offset: -1}, err)
			l.calling.Unlock()
		}
		l.room.leave(room)
	})
}

// flushSpool waits until all that was logged before is acknowledged or set aside.
func (l *Logger) flushSpool(ctx context.Context) error {
	s := l.spooled
	if err := l.room.wait(ctx, nil, 0); err != nil { // on their way to disk
		return fmt.Errorf("events are not on disk yet: %w", err)
	}
	end := s.Stats().Next
	for s.Stats().First < end {
		look, cancel := context.WithTimeout(ctx, time.Second) // the spool may drop events by itself
		err := s.drain.waitForChange(look)
		cancel()
		if err != nil && l.closed.Load() && s.known.Load() != nil {
			return fmt.Errorf("%d events wait in the spool: %w", s.Stats().Events, ErrClosed)
		}
		if taken := s.drain.taken(); taken != nil {
			return fmt.Errorf("%d events wait in the spool: %w", s.Stats().Events, taken)
		}
		if err != nil && ctx.Err() != nil {
			st := l.spoolStats().Spool
			if st.Why != nil {
				err = fmt.Errorf("%w (%w)", err, st.Why)
			}
			return fmt.Errorf("%d events wait in the spool: %w", st.Events, err)
		}
	}
	return nil
}

// closeSpool is Close with a spool.
func (l *Logger) closeSpool(ctx context.Context) error {
	s := l.spooled
	s.drain.finish(ctx, func() bool { return l.room.used() > 0 })
	s.stop()
	s.work.Wait()
	last := l.spoolStats().Spool
	s.drain.noteWhy(last.Why)                 // the drain may have ended before it could
	err := s.Close()                          // commits or fails what is still on its way to disk
	l.room.wait(context.Background(), nil, 0) // for the callbacks
	st := s.Stats()
	last.fill(st)
	s.known.Store(&last)
	if err != nil {
		return fmt.Errorf("close logger: %w", explainSpool(err))
	}
	return nil
}

func (l *Logger) spoolStats() LoggerStats {
	s := l.spooled
	st := LoggerStats{
		Acknowledged: l.acknowledged.Load(),
		Failed:       l.failed.Load(),
		PendingBytes: l.room.used(),
		Err:          advise(explain(l.conns.Err()), ErrUnauthenticated, l.fabric.login),
	}
	if st.Err == nil && !l.conns.reached.Load() {
		st.Err = errUnreached
	}
	if known := s.known.Load(); known != nil {
		st.Spool = *known
		return st
	}
	now := s.Stats()
	st.Spool.fill(now)
	st.Spool.Full = l.spoolFull(now)
	st.Spool.Held, _ = s.drain.why()
	if st.Spool.Events > 0 {
		st.Spool.Why = s.drain.reason()
	}
	return st
}

// spoolFull says why the spool takes no more events, or returns nil.
func (l *Logger) spoolFull(s spool.Stats) error {
	dir := l.spooled.drain.cfg.SpoolDir
	switch s.Full {
	case "":
		return nil
	case spool.DiskFull:
		return &Error{Condition: ErrSpoolFull, Reason: fmt.Sprintf("no space is left on the disk of %s", dir), Hint: "free some space there"}
	}
	return &Error{Condition: ErrSpoolFull, Reason: fmt.Sprintf("%s: %s", dir, s.Full), Hint: "see why the events are not sent with \"diaspora doctor\""}
}

func (st *SpoolStats) fill(s spool.Stats) {
	st.Events, st.Bytes, st.Oldest = int64(s.Events), s.Bytes, s.Oldest
	st.Dropped, st.Discarded = int64(s.Dropped), int64(s.Discarded)
	st.Quarantined, st.Damaged = int64(s.Quarantined), int64(s.Damaged)
}

// why returns the topics that are held, and why events wait.
func (d *drain) why() (held map[string]error, why error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.held) > 0 {
		held = make(map[string]error, len(d.held))
		for topic, h := range d.held {
			held[topic] = h.err
		}
		why = held[slices.Min(slices.Collect(maps.Keys(held)))]
	}
	if d.all != nil {
		why = d.all
	}
	return held, why
}
