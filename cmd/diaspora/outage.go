package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/accesskey"
)

// outageWatch tells the user why events are pending: once that the cluster is unreachable and once that it is reachable
// again, and each time that there is another reason. For instance, the cluster may be reachable again and reject the login.
type outageWatch struct {
	env   *env
	about func(error) error // adds details and hints to an error that the user can fix, or nil
	seen  int               // number of consecutive failures
	told  *pendingReason    // what the user was told last, or nil
	next  pendingReason     // a reason other than told
	count int               // for how many consecutive checks it has been next
	acked int64             // how many events were acknowledged when the user was told
}

// toldAfter is the number of consecutive failures after which the user is told. A single failed attempt to
// connect is not worth a message.
const toldAfter = 2

// pendingReason is what makes one reason why events are pending differ from another. The zero value means that the
// cluster is unreachable or does not respond. An outage causes many different errors, and the user is told only once.
type pendingReason struct {
	condition, topic string
	keyFile          string // why the key that is now in the key file is not used, or ""
}

func reasonOf(err error) (r pendingReason) {
	if !permanent(err) {
		return r
	}
	if t := (*diaspora.TopicError)(nil); errors.As(err, &t) {
		r.topic = t.Topic
	}
	_, r.keyFile, _ = strings.Cut(err.Error(), accesskey.FaultMark)
	for _, condition := range []error{diaspora.ErrUnauthenticated, diaspora.ErrPermission, diaspora.ErrNotFound, diaspora.ErrInvalid} {
		if errors.Is(err, condition) {
			r.condition = condition.Error()
			break
		}
	}
	return r
}

// see records whether the cluster is reachable: err is nil, or says why it is not. pending and acked are the numbers of
// events that are pending and were acknowledged. detail says what err means for the command.
func (w *outageWatch) see(err error, pending, acked int64, detail func() string) {
	if err == nil {
		if w.told != nil && w.told.condition != "" && pending > 0 && acked == w.acked {
			return // what a person had to do may not be done: another attempt has just begun
		}
		if w.told != nil && w.told.condition == "" {
			w.env.warn("the cluster is back")
		} else if w.told != nil {
			w.env.warn("that is solved: the events are sent")
		}
		w.seen, w.told, w.count = 0, nil, 0
		return
	}
	w.seen++
	reason := reasonOf(err)
	switch {
	case w.told == nil && w.seen < toldAfter && !errors.Is(err, errSilent):
		return
	case w.told != nil && *w.told == reason:
		w.count = 0
		return
	case w.told != nil:
		if w.count == 0 || w.next != reason {
			w.next, w.count = reason, 0
		}
		if w.count++; w.count < toldAfter {
			return
		}
		if w.told.condition == "" {
			w.env.warn("the cluster is back")
		}
	}
	w.told, w.count, w.acked = &reason, 0, acked
	mend := w.about != nil && permanent(err)
	if mend {
		err = w.about(err)
	}
	text, hints := explanation(err)
	w.env.warn("%s; %s", text, detail())
	if mend {
		w.env.hint(hints...)
	}
}

// hasTold reports whether the user was told that events are pending for this reason, and not yet that it is over.
func (w *outageWatch) hasTold(err error) bool { return w.told != nil && *w.told == reasonOf(err) }

// errSilent says that the cluster has not responded. The user is told after a single failure, because a
// response that takes longer than checkTimeout is not a coincidence.
var errSilent = fail(diaspora.ErrUnavailable, "", "the cluster has not answered for %v", checkTimeout)

// withNotice sends a request to the cluster, and tells the user if there is no response within checkTimeout, because
// retries may take minutes.
func (e *env) withNotice(ask func() error) error {
	defer time.AfterFunc(checkTimeout, func() { e.warn("%v; waiting for it", errSilent) }).Stop()
	return ask()
}

// fullWatch tells the user when the spool is full. On a terminal, it repeats the message every 30 s, because the
// program waits and prints nothing else.
type fullWatch struct {
	env  *env
	seen int  // number of consecutive checks in which the spool was full; negative if it was not
	told bool // the user was told that the spool is full
	next int  // number of checks until the message may be repeated
}

// tellAgain is the number of checks in 30 s.
const tellAgain = int(30 * time.Second / watchEvery)

// see records whether the spool is full: err is nil, or says why it is. detail says what that means for the
// command.
func (w *fullWatch) see(err error, detail func() string) {
	w.next--
	if err == nil {
		w.seen = min(w.seen, 0) - 1
		if w.told && w.seen == -toldAfter {
			w.told = false
			w.env.warn("the spool has room again")
		}
		return
	}
	w.seen = max(w.seen, 0) + 1
	if w.seen < toldAfter || w.next > 0 || w.told && !w.env.terminal(w.env.stderr) {
		return
	}
	w.told, w.next = true, tellAgain
	text, hints := explanation(err)
	w.env.warn("%s; %s", text, detail())
	w.env.hint(hints...)
}

// stalledAfter is how long a reachable cluster may acknowledge nothing before the user is told.
const stalledAfter = 15 * time.Second

var errStalled = fail(diaspora.ErrUnavailable, "", "the cluster can be reached, but has acknowledged nothing for 15 s: its disk may be full, or the network slow")

// stallWatch detects a cluster that is reachable but acknowledges nothing. For instance, if the disk of a broker
// is full, clients retry forever without an error.
type stallWatch struct {
	answered int64
	since    time.Time
}

// see returns the reason why events are pending, or nil: err, if it is not nil, or errStalled if the cluster has
// acknowledged nothing for stalledAfter. pending is the number of pending events, answered the number of events
// that were acknowledged or have failed.
func (s *stallWatch) see(now time.Time, err error, pending, answered int64) error {
	if err != nil {
		return err
	}
	if pending == 0 || answered != s.answered || s.since.IsZero() {
		s.answered, s.since = answered, now
		return nil
	}
	if now.Sub(s.since) < stalledAfter {
		return nil
	}
	return errStalled
}

// outageMemory records that a fabric was unreachable a moment ago, so that the next run does not wait for it:
// a shell loop would wait in every iteration. The record is an empty file, whose modification time says when
// the fabric was unreachable. An empty file cannot be damaged, and concurrent processes may write and remove it.
type outageMemory struct {
	path string // "" if there is no folder for the file
	now  func() time.Time
}

const (
	rememberedFor = time.Minute
	// shortDialTimeout is the timeout for connecting to a fabric that was unreachable a moment ago.
	shortDialTimeout = 500 * time.Millisecond
	// leastDialTimeout is enough time for a connection to be refused.
	leastDialTimeout = 100 * time.Millisecond
)

// outages returns the outage record of a fabric.
func (e *env) outages(cfg diaspora.Config) outageMemory {
	m := outageMemory{now: e.now}
	if state, err := e.stateDir(); err == nil {
		sum := sha256.Sum256([]byte(cfg.URL + "\x00" + strings.Join(cfg.Brokers, ",")))
		m.path = filepath.Join(state, "outages", hex.EncodeToString(sum[:8]))
	}
	return m
}

// age returns how long ago the fabric was unreachable, if that was recorded. A time in the future is ignored:
// otherwise a clock that was wrong once would have an effect for a long time.
func (m outageMemory) age() (age time.Duration, remembered bool) {
	info, err := os.Lstat(m.path)
	if m.path == "" || err != nil || !info.Mode().IsRegular() {
		return 0, false
	}
	age = m.now().Sub(info.ModTime())
	return age, age >= 0 && age < rememberedFor
}

// remember records that the fabric is unreachable now. Errors are ignored: without a record, the next run waits
// for the fabric.
func (m outageMemory) remember() {
	if info, err := os.Lstat(m.path); m.path == "" || err == nil && !info.Mode().IsRegular() || os.MkdirAll(filepath.Dir(m.path), 0o700) != nil {
		return
	}
	f, err := os.OpenFile(m.path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	f.Close()
	now := m.now()
	_ = os.Chtimes(m.path, now, now) // fails if another process has just removed the file
}

// forget records that the fabric is reachable again.
func (m outageMemory) forget() {
	if info, err := os.Lstat(m.path); m.path != "" && err == nil && info.Mode().IsRegular() {
		_ = os.Remove(m.path)
	}
}
