package diaspora

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// dawdler delays the Kafka client after each of the first events of a round, so that the client has
// time to send those before it has the others.
type dawdler struct{ rounds atomic.Int64 }

func (*dawdler) OnProduceRecordPartitioned(r *kgo.Record, _ int32) {
	if len(r.Value) == 1 { // "0" to "9"
		time.Sleep(5 * time.Millisecond)
	}
}

func (*dawdler) Level() kgo.LogLevel { return kgo.LogLevelInfo }

func (d *dawdler) Log(_ kgo.LogLevel, message string, _ ...any) {
	if message == "flushing" { // the client has all of a round
		d.rounds.Add(1)
	}
}

// TestSpooledRoundIsOneBatch fails when events of a round overtake an earlier one that was
// rejected. That happens if the round is more than one batch: because the client starts sending
// before it has the whole round, or does not know yet where the topic's partitions are.
func TestSpooledRoundIsOneBatch(t *testing.T) {
	t.Parallel()
	for name, first := range map[string]int{"topic that is known": 1, "new topic": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const events = 3000 // a round
			c, cfg := newCluster(t, kfake.SeedTopics(1, "other", "beamline"))
			var slow dawdler
			cfg.opts = []kgo.Opt{kgo.WithHooks(&slow), kgo.WithLogger(&slow)}
			l := openLogger(t, withSpool(t, cfg))
			numbers(t, l, "other", 0, 1) // so that the client is connected and can send at once
			numbers(t, l, "beamline", 0, first)
			drained(t, l)
			// Events that are logged now gather behind one event in flight.
			var busy *gate
			if first == 0 {
				busy = hold(t, c, kmsg.Metadata)
			} else {
				busy = hold(t, c, kmsg.Produce)
				numbers(t, l, "beamline", first, first+1)
				first++
			}
			all := make([]Event, 0, events)
			for i := first; i < events; i++ {
				all = append(all, Event{Topic: "beamline", Key: []byte("k"), Value: fmt.Append(nil, i)})
			}
			all[0].Headers = []Header{{"mark", []byte("the first that waits")}}
			if err := l.Log(within(t), all...); err != nil {
				t.Fatal(err)
			}
			refused := c.Fault(kfake.Fault{
				Keys: []kmsg.Key{kmsg.Produce}, Topic: "beamline", Err: kerr.TopicAuthorizationFailed,
				When: func(req kmsg.Request) bool { return carries(req, "the first that waits") },
			})
			eventually(t, "the client to have a round after that of the other topic", func() bool { return slow.rounds.Load() >= 2 })
			busy.release()
			drained(t, l)
			if refused.Hits() != 1 {
				t.Errorf("%d requests were refused, want 1", refused.Hits())
			}
			if n := wantNumbers(t, readAll(t, cfg, "beamline"), events); n > 0 {
				t.Errorf("%d events came twice", n)
			}
		})
	}
}
