package spool

import (
	"testing"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestDismiss checks that dismissed losses are not reported again, that later ones are, and that
// losses can be dismissed while a process uses the spool.
func TestDismiss(t *testing.T) {
	t.Parallel()
	path := dir(t)
	s := mustOpen(t, Options{Dir: path})
	mustAppend(t, s, 0, 10)
	aside := func(n int) {
		t.Helper()
		records, err := s.Next(t.Context(), n, 1<<20)
		testkit.Must(t, err)
		for _, r := range records {
			testkit.Must(t, s.Quarantine(r, "too large"))
		}
	}
	losses := func() Losses {
		t.Helper()
		info, err := Inspect(path)
		testkit.Must(t, err)
		return info.Losses()
	}
	if got, err := Dismiss(path); err != nil || got != (Losses{}) {
		t.Errorf("Dismiss without losses = %+v, %v", got, err)
	}
	aside(2)
	if got := losses(); got != (Losses{Quarantined: 2}) {
		t.Errorf("Losses() = %+v, want 2 set aside", got)
	}
	if got, err := Dismiss(path); err != nil || got != (Losses{Quarantined: 2}) {
		t.Errorf("Dismiss = %+v, %v; want 2 set aside", got, err)
	}
	if got := losses(); got != (Losses{}) {
		t.Errorf("after Dismiss Losses() = %+v, want none", got)
	}
	aside(1)
	mustClose(t, s)
	if got := losses(); got != (Losses{Quarantined: 1}) {
		t.Errorf("Losses() = %+v, want what came after Dismiss", got)
	}
	report, err := Verify(path)
	if err != nil || len(report.Problems) > 0 || report.Quarantined != 3 {
		t.Errorf("Verify = %+v, %v; want no problems, and 3 set aside in all", report, err)
	}
}
