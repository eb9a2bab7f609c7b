package ship

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/diaspora-streams/diaspora/internal/backoff"
	"github.com/diaspora-streams/diaspora/internal/spool"
)

// heldTopic is a topic whose events stay in the spool for now.
type heldTopic struct {
	Hold
	first spool.Record // the event with which the topic is tried
	since time.Time    // when Err was first given as the reason
	tries int          // failed ones
	until time.Time    // when to try it next
}

// newest returns the hold with the latest reason. An older one, for instance of a topic whose name was mistyped long
// ago, must not hide it. The caller holds s.mu, and at least one topic is held.
func (s *Shipper) newest() *heldTopic {
	return slices.MaxFunc(slices.Collect(maps.Values(s.held)), func(a, b *heldTopic) int {
		return cmp.Or(a.since.Compare(b.since), cmp.Compare(b.first.Topic, a.first.Topic))
	})
}

// otherHolds returns what a note says about held topics other than the one that why is about.
func (s *Shipper) otherHolds(why error) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch n := len(s.held) - 1; {
	case n < 1 || s.newest().Err.Error() != why.Error(): // otherwise why is about all topics
		return ""
	case n == 1:
		return "; the events of another topic wait too"
	default:
		return fmt.Sprintf("; the events of %d other topics wait too", n)
	}
}

// maxHeld limits the number of held topics, because one event of each is kept in memory. When it is
// reached, the Shipper only tries the held topics, and sends nothing else.
const maxHeld = 64

// hold keeps the events of r's topic, from r on, until r is stored.
func (s *Shipper) hold(r spool.Record, err error, person bool) {
	if errors.Is(err, kerr.UnknownTopicID) || errors.Is(err, kerr.UnknownTopicOrPartition) {
		// There may be a topic of this name again later. The client would go on to fail
		// what is sent to it, because it is not the topic that the client has known.
		s.forget(r.Topic)
	}
	first := retryFirst
	if person {
		first = personFirst
	}
	why := s.cfg.Explain(r.Topic, err)
	s.accepted()
	fresh := false
	s.change(func() {
		h := s.held[r.Topic]
		if h == nil || h.first.Position != r.Position {
			h = &heldTopic{first: r}
			s.held[r.Topic] = h
			fresh = true
		}
		if h.Err == nil || h.Err.Error() != why.Error() {
			h.since = time.Now()
		}
		h.Hold = Hold{why, person}
		h.until = time.Now().Add(retryIn(h.tries, first))
		h.tries++
	})
	if fresh {
		s.cfg.Diagnostics.Warn("the events of a topic wait in the spool", "topic", r.Topic, "err", why)
	}
}

// unheld returns the records whose topics are not held.
func (s *Shipper) unheld(records []spool.Record) []spool.Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.held) == 0 {
		return records
	}
	return slices.DeleteFunc(records, func(r spool.Record) bool { return s.held[r.Topic] != nil })
}

// nextTry returns when to try a held topic next, or the zero time if none is held.
func (s *Shipper) nextTry() (at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.held {
		if at.IsZero() || h.until.Before(at) {
			at = h.until
		}
	}
	return at
}

// tryHeld tries the held topics for which it is time, with one event each. It reports
// whether it did anything.
func (s *Shipper) tryHeld(ctx context.Context) bool {
	var due []spool.Record
	s.mu.Lock()
	now := time.Now()
	for _, h := range s.held {
		if !h.until.After(now) {
			due = append(due, h.first)
		}
	}
	full := len(s.held) >= maxHeld
	s.mu.Unlock()
	for _, r := range due {
		was := s.acknowledgedOrSetAside.Load()
		s.round(ctx, []spool.Record{r})
		if s.acknowledgedOrSetAside.Load() == was {
			continue
		}
		s.change(func() { delete(s.held, r.Topic) })
		s.cfg.Diagnostics.Info("the events of a topic are sent again", "topic", r.Topic)
		s.rewind()
	}
	if full && len(due) == 0 {
		backoff.Sleep(ctx, time.Until(s.nextTry()))
		return true
	}
	return len(due) > 0
}
