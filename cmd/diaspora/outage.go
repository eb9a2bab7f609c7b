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
)

// outageWatch tells the person once that the cluster is away, and once that it is back.
type outageWatch struct {
	env   *env
	about func(error) error // says more of an error that a person can mend, or nil
	seen  int               // how often in a row it was away
	told  bool
}

// toldAfter keeps a single failed attempt to connect from being news.
const toldAfter = 2

// see takes note of how the cluster is: err is why it cannot be reached, or nil.
// detail says what that means.
func (w *outageWatch) see(err error, detail func() string) {
	if err == nil {
		if w.told {
			w.env.warn("the cluster is back")
		}
		w.seen, w.told = 0, false
		return
	}
	if w.seen++; !w.told && (w.seen >= toldAfter || errors.Is(err, errSilent)) {
		w.told = true
		mend := w.about != nil && refusal(err)
		if mend {
			err = w.about(err)
		}
		text, hints := explanation(err)
		w.env.warn("%s; %s", text, detail())
		if mend {
			w.env.hint(hints)
		}
	}
}

// errSilent says that a look at the cluster got no answer. It is news by itself: what takes
// lookTimeout is no accident.
var errSilent = &failure{
	condition: diaspora.ErrUnavailable,
	text:      "the cluster has not answered for " + lookTimeout.String(),
}

// aloud asks the cluster something, and tells a person if there is no answer for lookTimeout: what is tried again
// may take minutes.
func (e *env) aloud(ask func() error) error {
	defer time.AfterFunc(lookTimeout, func() { e.warn("%s; waiting for it", errSilent.text) }).Stop()
	return ask()
}

// fullWatch tells the person when the spool is full: once and, on a terminal, every 30 s, since
// nothing else is seen of a program that stands still.
type fullWatch struct {
	env  *env
	seen int  // how often in a row the spool was full or, below zero, was not
	told bool // that it is full
	next int  // how many looks it takes until it may be told again
}

// tellAgain is 30 s in looks.
const tellAgain = int(30 * time.Second / watchEvery)

// see takes note of why the spool is full: err, or nil. detail says what that means.
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
	w.env.hint(hints)
}

// stillAfter is for how long a cluster that can be reached may answer nothing before a
// person is told.
const stillAfter = 15 * time.Second

var errStill = &failure{
	condition: diaspora.ErrUnavailable,
	text:      "the cluster can be reached, but has acknowledged nothing for 15 s: its disk may be full, or the way to it slow",
}

// stillness notices a cluster that is there and takes nothing: one whose disk is full, for
// instance, has clients try again for ever.
type stillness struct {
	answered int64
	since    time.Time
}

// see returns why events wait, or nil: err, if the cluster cannot be reached, or that it has
// answered nothing for a while. pending is the number of events that wait, and answered of
// those whose fate is known.
func (s *stillness) see(now time.Time, err error, pending, answered int64) error {
	if err != nil {
		return err
	}
	if pending == 0 || answered != s.answered || s.since.IsZero() {
		s.answered, s.since = answered, now
		return nil
	}
	if now.Sub(s.since) < stillAfter {
		return nil
	}
	return errStill
}

// outageMemory remembers, from one run to the next, that a fabric could not be reached a moment ago: so that
// a shell loop does not wait for it each time. It is an empty file, whose time of change says when; there is
// nothing in it that could be damaged, and processes that write and remove it at once do each other no harm.
type outageMemory struct {
	path string // "" if there is no place for one
	now  func() time.Time
}

const (
	rememberedFor = time.Minute
	// glance is for how long a fabric is given the chance to be back that was away a moment ago.
	glance = 500 * time.Millisecond
	// leastGlance is what it takes for a connection to be refused.
	leastGlance = 100 * time.Millisecond
)

// outages returns the memory of the outages of a fabric.
func (e *env) outages(cfg diaspora.Config) outageMemory {
	m := outageMemory{now: e.now}
	if state, err := e.stateDir(); err == nil {
		sum := sha256.Sum256([]byte(cfg.URL + "\x00" + strings.Join(cfg.Brokers, ",")))
		m.path = filepath.Join(state, "outages", hex.EncodeToString(sum[:8]))
	}
	return m
}

// age returns how long ago the fabric could not be reached, if that is remembered. A time in the future is not
// believed, or a clock that was wrong once would count for long.
func (m outageMemory) age() (age time.Duration, remembered bool) {
	info, err := os.Lstat(m.path)
	if m.path == "" || err != nil || !info.Mode().IsRegular() {
		return 0, false
	}
	age = m.now().Sub(info.ModTime())
	return age, age >= 0 && age < rememberedFor
}

// remember takes note that the fabric cannot be reached now. To be unable to is no reason to fail: the next run waits.
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
	_ = os.Chtimes(m.path, now, now) // or another process has just removed it
}

// forget takes note that the fabric is back.
func (m outageMemory) forget() {
	if info, err := os.Lstat(m.path); m.path != "" && err == nil && info.Mode().IsRegular() {
		_ = os.Remove(m.path)
	}
}
