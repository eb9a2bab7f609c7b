package interop

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// spooling logs numbers through a spool, each with one of three keys.
type spooling struct {
	t      *testing.T
	cfg    diaspora.Config
	topic  string
	logger *diaspora.Logger
	next   int
}

// padding makes a backlog of some thousand events several rounds of the drain.
var padding = strings.Repeat("x", 500)

func (s *spooling) log(n int) {
	s.t.Helper()
	const batch = 100
	for range n / batch {
		var events []diaspora.Event
		for range batch {
			events = append(events, diaspora.Event{Topic: s.topic, Key: fmt.Append(nil, s.next%3), Value: fmt.Append(nil, s.next, " ", padding)})
			s.next++
		}
		testkit.Must(s.t, s.logger.Log(testkit.Within(s.t), events...))
	}
}

// until waits for what the spool's statistics say.
func (s *spooling) until(what string, holds func(diaspora.LoggerStats) bool) {
	s.t.Helper()
	testkit.Eventually(s.t, what, func() bool { return holds(s.logger.Stats()) })
}

func (s *spooling) drained() {
	s.t.Helper()
	s.until("the spool to be empty", func(st diaspora.LoggerStats) bool { return st.Spool.Events == 0 })
}

// TestSpoolSurvivesOutages has a backlog gather while the cluster is dead, ends the program
// meanwhile, and, on one engine, kills the cluster again while what waits is sent. Nothing is lost or
// changes its order, and no more is repeated than what was on its way.
func TestSpoolSurvivesOutages(t *testing.T) {
	parallel(t)
	const backlog = 10_000
	config := fabric.Config{Dir: t.TempDir()}
	f := start(t, config)
	me := fabrictest.As(t, f, ada)
	me.SpoolDir = filepath.Join(t.TempDir(), "spool")
	s := &spooling{t: t, cfg: me, topic: claim(t, me, 3)}
	s.logger = fabrictest.OpenLogger(t, me)
	s.log(100)
	s.drained()

	bring := stopAll(t, f, config)
	s.log(backlog)
	s.until("the reason", func(st diaspora.LoggerStats) bool {
		return st.Spool.Events == backlog && errors.Is(st.Spool.Why, diaspora.ErrUnavailable)
	})
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	testkit.Must(t, s.logger.Close(ended))
	s.logger = fabrictest.OpenLogger(t, me)
	s.log(100)
	f = bring()
	s.until("some to be sent", func(st diaspora.LoggerStats) bool { return st.Acknowledged > 2000 })
	left := s.logger.Stats().Spool.Events
	if left == 0 {
		t.Error("all is sent already")
	}
	if secondOutage {
		bring = stopAll(t, f, config)
		s.log(100)
		f = bring()
	}
	s.drained()

	me = fabrictest.As(t, f, ada)
	last, seen, repeats := map[string]int{}, map[string]string{}, 0
	for _, r := range fabrictest.ReadAll(t, me, s.topic) {
		number, _, _ := strings.Cut(string(r.Value), " ")
		if was, ok := seen[r.ID]; ok {
			if was != number {
				t.Fatalf("id %s is of the events %s and %s", r.ID, was, number)
			}
			repeats++
			continue
		}
		seen[r.ID] = number
		var n int
		if _, err := fmt.Sscan(number, &n); err != nil {
			t.Fatal(err)
		}
		if was, ok := last[string(r.Key)]; ok && n != was+3 || !ok && n > 2 {
			t.Fatalf("key %s: event %d comes after %d", r.Key, n, was)
		}
		last[string(r.Key)] = n
	}
	t.Logf("%d events, %d repeats; %d waited when some were sent", len(seen), repeats, left)
	if len(seen) != s.next {
		t.Errorf("%d events arrived of %d", len(seen), s.next)
	}
	if round := 800_000/len(padding) + 1; repeats > 2*round {
		t.Errorf("%d events were repeated, want at most the round of %d for each outage", repeats, round)
	}
}
