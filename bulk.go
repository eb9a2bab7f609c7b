package diaspora

import (
	"context"

	"github.com/diaspora-streams/diaspora/internal/bulk"
)

func init() {
	bulk.Send = func(logger, events any, to bulk.Results) {
		logger.(*Logger).sendAll(events.([]Event), to)
	}
}

// sendAll is [bulk.Send].
func (l *Logger) sendAll(events []Event, to bulk.Results) {
	r := results{fabric: l.fabric, counts: l.counts, to: to}
	for len(events) > 0 {
		r.topic = events[0].Topic
		n, err := l.sound(events)
		if n > 0 {
			n, err = l.sink.sendAll(context.Background(), events[:n], r)
		}
		if err != nil {
			r.failed(n, err)
			n++
		}
		events, r.first = events[n:], r.first+n
	}
}

// sound returns how many events can be logged before one that cannot, and why that one cannot.
func (l *Logger) sound(events []Event) (int, error) {
	for i := range events {
		if err := checkEvent(&events[i], l.fabric.maxEventBytes); err != nil {
			return i, err
		}
	}
	return len(events), nil
}

// results says what became of events that were handed over together.
type results struct {
	fabric *fabric
	counts *counts
	to     bulk.Results
	topic  string // of all these events
	first  int    // the index of the first of them in the call of bulk.Send
}

// logged says that n more of the events are logged.
func (r *results) logged(n int) {
	r.counts.calling.Lock()
	defer r.counts.calling.Unlock()
	r.to.Logged(n)
}

// failed counts one of the events as failed, and says why.
func (r *results) failed(index int, err error) {
	r.counts.failed.Add(1)
	err = r.fabric.logError(r.topic, err)
	r.counts.calling.Lock()
	defer r.counts.calling.Unlock()
	r.to.Failed(r.first+index, err)
}
