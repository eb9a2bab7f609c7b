package ship

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/spool"
)

// Hold says why the events of a topic are kept back.
type Hold struct {
	Err         error // in words
	NeedsPerson bool  // somebody has to do something about it; time alone does not help
}

// Held returns the topics whose events are kept back although others are sent.
func (s *Shipper) Held() map[string]Hold {
	s.mu.Lock()
	defer s.mu.Unlock()
	held := make(map[string]Hold, len(s.held))
	for topic, h := range s.held {
		held[topic] = h.Hold
	}
	return held
}

// Reason returns why events wait, or nil if none do or they are being sent. Of several topics that are held, it takes
// the one with the latest reason.
func (s *Shipper) Reason() error {
	if taken := s.Taken(); taken != nil {
		return taken
	}
	if err := s.cfg.Connections.Err(); err != nil {
		return s.cfg.Explain("", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.all != nil:
		return s.all
	case len(s.held) > 0:
		return s.newest().Err
	case !s.cfg.Connections.Reached() && time.Since(s.began) > silentAfter:
		return s.cfg.Explain("", ErrUnreached) // a network that drops everything causes no error for long
	}
	return nil
}

// Taken returns an error if another process has taken the spool: this one sends nothing any
// more.
func (s *Shipper) Taken() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if errors.Is(s.all, spool.ErrInUse) {
		return s.all
	}
	return nil
}

// Flush waits until all events that are in the spool now are acknowledged or set aside. It
// returns ctx's error, the one of [Shipper.Taken], or [ErrStopped].
func (s *Shipper) Flush(ctx context.Context) error {
	end := s.cfg.Spool.Stats().Next
	for s.cfg.Spool.Stats().First < end {
		if taken := s.Taken(); taken != nil {
			return taken
		}
		select {
		case <-s.stopped:
			return cmp.Or(s.Taken(), ErrStopped)
		default:
		}
		// The spool may drop events without telling, so look every second.
		if s.wait(ctx, time.Second); ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// lookEvery is how often Finish looks whether there is still hope.
const lookEvery = 100 * time.Millisecond

// Finish waits until the spool is empty, as long as there is hope of that. It returns when
// ctx ends; when only a person can help; or when nothing was acknowledged for
// [Config.ClosePatience].
func (s *Shipper) Finish(ctx context.Context) {
	done := func() int64 { return s.stored.Load() + s.acknowledgedOrSetAside.Load() }
	was, since := done(), time.Now()
	for {
		st := s.cfg.Spool.Stats()
		unwritten := st.Held > 0 // accepted, and not on disk yet or its callback still runs
		if !unwritten && (st.Events == 0 || s.cfg.ClosePatience <= 0) {
			return
		}
		s.wait(ctx, lookEvery)
		if now := done(); now != was {
			was, since = now, time.Now()
		}
		patience := s.cfg.ClosePatience
		if unwritten { // that depends on the disk, not on the cluster
			patience = max(patience, s.cfg.DiskPatience)
		}
		if ctx.Err() != nil || s.stranded() || time.Since(since) > patience {
			return
		}
	}
}

// stranded reports whether all events wait for a person.
func (s *Shipper) stranded() bool {
	if s.Taken() != nil {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all != nil && s.cfg.NeedsLogin(s.all) || kafka.LoginRefused(s.cfg.Connections.Err()) {
		return true
	}
	for _, h := range s.held {
		if !h.NeedsPerson {
			return false
		}
	}
	// Some topics are held, and the Shipper has found no event of another topic for a while.
	since := s.reading.Load()
	return len(s.held) > 0 && since > 0 && time.Since(time.Unix(0, since)) >= lookEvery
}

// wait returns when the reason why events wait has changed, when an event was acknowledged or
// set aside, after the given time, or when ctx ends.
func (s *Shipper) wait(ctx context.Context, most time.Duration) {
	s.mu.Lock()
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	changed := s.changed
	s.mu.Unlock()
	select {
	case <-changed:
	case <-s.stopped:
	case <-time.After(most):
	case <-ctx.Done():
	}
}
