package diaspora

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/diaspora-streams/diaspora/internal/bulk"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// outcomes collects the results of one call of bulk.Send.
type outcomes struct {
	mu     sync.Mutex // guards the fields below
	logged int
	failed map[int]error
}

func (o *outcomes) Logged(n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.logged += n
}

func (o *outcomes) Failed(index int, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.failed == nil {
		o.failed = map[int]error{}
	}
	if _, twice := o.failed[index]; twice {
		err = fmt.Errorf("a second result: %w", err)
	}
	o.failed[index] = err
}

// TestSendBulk hands over many events at once, with and without a spool. Those that can be logged must
// arrive in order, as if each had been given to Send, and the others must be named.
func TestSendBulk(t *testing.T) {
	t.Parallel()
	for name, spooled := range map[string]bool{"direct": false, "spooled": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, cfg := newCluster(t, kfake.SeedTopics(3, "beamline"))
			plain := cfg
			if spooled {
				cfg = withSpool(t, cfg)
			}
			l := openLogger(t, cfg)
			const calls, each = 4, 700
			var all [calls]outcomes
			var want []string
			shared := []Header{{Key: "unit", Value: []byte("C")}}
			for c := range calls {
				var events []Event
				for i := range each {
					e := Event{Topic: "beamline", Key: []byte("k"), Value: fmt.Append(nil, c*each+i)}
					switch {
					case i == 100 || i == 101 || i == each-1:
						e.Headers = []Header{{Key: "diaspora-id", Value: []byte("forged")}}
					case i == 200:
						e.ID, e.Headers = "own", shared
						fallthrough
					default:
						want = append(want, string(e.Value))
					}
					events = append(events, e)
				}
				bulk.Send(l, events, &all[c])
				clear(events) // the caller's again
			}
			testkit.Must(t, l.Flush(within(t)))
			for c := range calls {
				o := &all[c]
				if o.logged != each-3 || len(o.failed) != 3 {
					t.Errorf("call %d: %d logged and %d failed, want %d and 3", c, o.logged, len(o.failed), each-3)
				}
				for _, i := range []int{100, 101, each - 1} {
					if err := o.failed[i]; !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), `"beamline"`) || strings.Contains(err.Error(), "second") {
						t.Errorf("call %d: event %d: %v, want ErrInvalid, once, and the topic", c, i, err)
					}
				}
			}
			ids := map[string]int{}
			var got []string
			for _, r := range readAll(t, plain, "beamline") {
				got = append(got, string(r.Value))
				ids[r.ID]++
				if r.Time.IsZero() || (r.ID == "own") != (len(r.Headers) == 1) {
					t.Errorf("%s has the time %v, the ID %q and the headers %v", r.Value, r.Time, r.ID, r.Headers)
				}
			}
			if strings.Join(got, " ") != strings.Join(want, " ") {
				t.Errorf("%d events are there, or not in order, want %d", len(got), len(want))
			}
			if ids["own"] != calls || len(ids) != len(want)-calls+1 {
				t.Errorf("%d IDs, and %d events have the one that was given, want %d and %d", len(ids), ids["own"], len(want)-calls+1, calls)
			}
			if s := l.Stats(); s.Acknowledged != int64(len(want)) || s.Failed != 3*calls || s.Pending != 0 || s.PendingBytes != 0 {
				t.Errorf("Stats() = %+v", s)
			}
			testkit.Must(t, l.Close(within(t)))
			var late outcomes
			bulk.Send(l, []Event{{Topic: "beamline"}, {Topic: "beamline"}}, &late)
			if late.logged != 0 || !errors.Is(late.failed[0], ErrClosed) || !errors.Is(late.failed[1], ErrClosed) {
				t.Errorf("after Close: %d logged, %v, want ErrClosed for both", late.logged, late.failed)
			}
		})
	}
}

// TestSendBulkRefused checks the results when the cluster refuses the events, or the spool has no room.
func TestSendBulkRefused(t *testing.T) {
	t.Parallel()
	events := make([]Event, 300)
	for i := range events {
		events[i] = Event{Topic: "nobodys", Value: make([]byte, 1000)}
	}
	t.Run("direct", func(t *testing.T) {
		t.Parallel()
		_, cfg := newCluster(t)
		l := openLogger(t, cfg)
		var o outcomes
		bulk.Send(l, events, &o)
		testkit.Must(t, l.Flush(within(t)))
		if o.logged != 0 || len(o.failed) != len(events) || !errors.Is(o.failed[len(events)-1], ErrNotFound) {
			t.Errorf("%d logged and %d failed, the last with %v; want ErrNotFound for all", o.logged, len(o.failed), o.failed[len(events)-1])
		}
		if s := l.Stats(); s.Failed != int64(len(events)) || s.PendingBytes != 0 {
			t.Errorf("Stats() = %+v", s)
		}
	})
	t.Run("spooled", func(t *testing.T) {
		t.Parallel()
		_, cfg := newCluster(t)
		cfg = withSpool(t, cfg)
		cfg.SpoolBytes, cfg.SpoolPolicy = 128<<10, SpoolReject
		l := openLogger(t, cfg)
		var o outcomes
		bulk.Send(l, events, &o)
		eventually(t, "all results", func() bool {
			o.mu.Lock()
			defer o.mu.Unlock()
			return o.logged+len(o.failed) == len(events)
		})
		if n := l.Stats().Spool.Events; o.logged < 50 || n != int64(o.logged) || !errors.Is(o.failed[len(events)-1], ErrSpoolFull) {
			t.Errorf("%d logged, %d in the spool, the last event: %v; want ErrSpoolFull for those that do not fit", o.logged, n, o.failed[len(events)-1])
		}
	})
}
