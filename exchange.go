package diaspora

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora/internal/spool"
)

var (
	errUnanswered = errors.New("not answered yet")
	errStuck      = &Error{Condition: ErrUnavailable, Reason: "the cluster does not answer for this topic"}
)

// exchange is a round on its way: it gathers the answers.
type exchange struct {
	mu   sync.Mutex // guards the fields below
	errs []error    // errUnanswered as long as there is no answer
	left int
	done chan struct{} // closed when there is none left
}

// exchange sends records and returns, for each, why it was not taken, or nil. away
// tells that the cluster could not be reached for a while. Should ctx end before, the
// rest is unanswered.
func (d *drain) exchange(ctx context.Context, records []spool.Record) (errs []error, away bool) {
	x := &exchange{errs: make([]error, len(records)), left: len(records), done: make(chan struct{})}
	for i := range x.errs {
		x.errs[i] = errUnanswered
	}
	kafka := make([]kgo.Record, len(records))
	for i := range records {
		fillRecord(&kafka[i], &records[i].Entry)
		d.client.Produce(context.Background(), &kafka[i], func(_ *kgo.Record, err error) { x.answer(i, err) })
	}
	// As long as a flush goes on, the client sends what it has.
	flush, stop := context.WithCancel(ctx)
	var flushing sync.WaitGroup
	flushing.Go(func() { _ = d.client.Flush(flush) })
	defer flushing.Wait()
	defer stop()

	watch := time.NewTicker(time.Second)
	defer watch.Stop()
	tried := d.conns.tried.Load()
	for began := time.Now(); ; {
		select {
		case <-x.done:
			return x.errs, away
		case <-ctx.Done():
			return x.soFar(), away
		case <-watch.C:
		}
		d.note()
		if d.conns.Err() != nil {
			away, began = true, time.Now()
			continue
		}
		slow := d.conns.tried.Load() == tried && time.Since(time.Unix(0, d.conns.moved.Load())) < stuckAfter
		if time.Since(began) > stuckAfter && !slow {
			for _, topic := range x.stuck(records) {
				d.cfg.diagnostics().Warn("the cluster does not answer for a topic", "topic", topic)
				d.client.PurgeTopicsFromProducing(topic)
				delete(d.known, topic)
			}
			began = time.Now()
		}
	}
}

func (x *exchange) answer(i int, err error) {
	if err != nil && err.Error() == forgotten {
		err = errStuck
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.errs[i] = err
	if x.left--; x.left == 0 {
		close(x.done)
	}
}

// soFar returns the answers that there are.
func (x *exchange) soFar() []error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return append([]error(nil), x.errs...)
}

// stuck returns the topics without an answer.
func (x *exchange) stuck(records []spool.Record) []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	var topics []string
	seen := map[string]bool{}
	for i, err := range x.errs {
		if topic := records[i].Topic; err == errUnanswered && !seen[topic] {
			seen[topic] = true
			topics = append(topics, topic)
		}
	}
	return topics
}

// fillRecord makes the record of an event in the spool.
func fillRecord(r *kgo.Record, e *spool.Entry) {
	layout := timeLayout
	if e.Time.Nanosecond()%1e6 != 0 {
		layout = time.RFC3339Nano
	}
	r.Topic, r.Key, r.Value = e.Topic, e.Key, e.Value
	r.Headers = make([]kgo.RecordHeader, 2, 2+len(e.Headers))
	r.Headers[0] = kgo.RecordHeader{Key: HeaderTime, Value: e.Time.AppendFormat(nil, layout)}
	r.Headers[1] = kgo.RecordHeader{Key: HeaderID, Value: []byte(e.ID)}
	for i := range e.Headers {
		r.Headers = append(r.Headers, kgo.RecordHeader(e.Headers[i]))
	}
}
