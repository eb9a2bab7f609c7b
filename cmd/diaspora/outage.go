package main

import (
	"errors"
	"time"

	"github.com/diaspora-streams/diaspora"
)

// outageWatch tells the person once that the cluster is away, and once that it is back.
type outageWatch struct {
	env  *env
	seen int // how often in a row it was away
	told bool
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
		text, _ := explanation(err)
		w.env.warn("%s; %s", text, detail())
	}
}

// errSilent says that a look at the cluster got no answer. It is news by itself: what takes
// lookTimeout is no accident.
var errSilent = &failure{
	condition: diaspora.ErrUnavailable,
	text:      "the cluster has not answered for " + lookTimeout.String(),
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
