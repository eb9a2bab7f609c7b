package spool

import (
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestOldestIsThatOfTheEvent: the oldest pending event may be in a segment that was created long
// before it, for events that are acknowledged by now. Inspect, Check and Verify must report the event's own
// time, not the segment's.
func TestOldestIsThatOfTheEvent(t *testing.T) {
	t.Parallel()
	path := dir(t)
	s := mustOpen(t, Options{Dir: path})
	mustAppend(t, s, 0, 1)
	records, err := s.Next(t.Context(), 1, 1<<20)
	testkit.Must(t, err)
	testkit.Must(t, s.Ack(records[0].Position))
	before, err := Inspect(path)
	if err != nil || len(before.Files) != 1 {
		t.Fatalf("Inspect = %+v, %v; want one segment", before, err)
	}
	entry := numbered(1)
	for !entry.Time.After(before.Files[0].Created) { // until the clock of whole milliseconds has moved on
		entry.Time = time.Now().Truncate(time.Millisecond)
	}
	testkit.Must(t, s.Append(t.Context(), entry))
	if info, err := Inspect(path); err != nil || info.Events != 1 || !info.Oldest.Equal(entry.Time) {
		t.Errorf("Inspect = %d events, the oldest of %v, %v; want 1 of %v", info.Events, info.Oldest, err, entry.Time)
	}
	for name, look := range map[string]func(string) (Report, error){"Check": Check, "Verify": Verify} {
		if report, err := look(path); err != nil || report.Events != 1 || !report.Oldest.Equal(entry.Time) {
			t.Errorf("%s = %d events, the oldest of %v, %v; want 1 of %v", name, report.Events, report.Oldest, err, entry.Time)
		}
	}
	// A time set by the caller says nothing about the event's age if it is in the future, or before
	// the spool was created.
	for n, odd := range []time.Time{time.Now().Add(time.Hour), time.Unix(1e9, 0)} {
		other := dir(t)
		s := mustOpen(t, Options{Dir: other})
		entry := numbered(n)
		entry.Time = odd
		before := time.Now().Add(-time.Second)
		testkit.Must(t, s.Append(t.Context(), entry))
		if info, err := Inspect(other); err != nil || info.Oldest.Before(before) || info.Oldest.After(time.Now()) {
			t.Errorf("the oldest of an event of %v is of %v, %v", odd, info.Oldest, err)
		}
	}
}
