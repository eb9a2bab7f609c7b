package ship

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/spool"
)

// errPending stands for an answer that has not come yet.
var errPending = errors.New("not answered yet")

// answers collects the answers to the events of one round.
type answers struct {
	mu   sync.Mutex // guards the fields below
	errs []error    // errPending until the answer is there
	left int
	done chan struct{} // closed when all answers are there
}

// flight is an event that is being sent: its record, and where its answer goes. It is the context of its
// record, so that all records can share one callback.
type flight struct {
	record  kgo.Record
	headers [2]kgo.RecordHeader // most events have no others
	index   int
	answers *answers
}

// As a context, a flight never ends. The client may ask it for Done even after the answer.
func (*flight) Deadline() (time.Time, bool) { return time.Time{}, false }
func (*flight) Done() <-chan struct{}       { return nil }
func (*flight) Err() error                  { return nil }
func (*flight) Value(any) any               { return nil }

// landed is the client's callback.
func (s *Shipper) landed(r *kgo.Record, err error) {
	f := r.Context.(*flight)
	if err == nil {
		s.stored.Add(1)
	}
	f.answers.put(f.index, err)
}

// roundTrip sends records and returns for each of them why it was not stored, or nil.
// outage reports whether the cluster was unreachable for a while. If ctx ends first, the
// answers that are missing are errPending.
func (s *Shipper) roundTrip(ctx context.Context, records []spool.Record) (errs []error, outage bool) {
	a := &answers{errs: make([]error, len(records)), left: len(records), done: make(chan struct{})}
	for i := range a.errs {
		a.errs[i] = errPending
	}
	flights := s.flights
	if s.flights = nil; len(flights) < len(records) {
		flights = make([]flight, len(records))
	}
	landed, now := s.landed, time.Now()
	for i := range records {
		f := &flights[i]
		f.index, f.answers = i, a
		f.record.Context, f.record.Timestamp, f.record.Headers = f, now, f.headers[:0]
		s.cfg.Record(&f.record, &records[i].Entry)
		s.client.Produce(context.Background(), &f.record, landed)
	}
	// The client sends what it has while somebody flushes.
	flush, stop := context.WithCancel(ctx)
	var flushing sync.WaitGroup
	flushing.Go(func() { _ = s.client.Flush(flush) })
	defer flushing.Wait()
	defer stop()
	s.readAhead()

	watch := time.NewTicker(time.Second)
	defer watch.Stop()
	answered := s.cfg.Connections.Answered()
	left := len(records)
	for began := time.Now(); ; {
		select {
		case <-a.done:
			if clear(flights[:len(records)]); len(flights) <= minRoundBytes/eventBytes { // do not keep the memory of a large round
				s.flights = flights // the client no longer uses them
			}
			return a.errs, outage
		case <-ctx.Done():
			return a.soFar(), outage
		case <-watch.C:
		}
		s.note(s.Reason())
		if s.cfg.Connections.Err() != nil {
			outage, began = true, time.Now()
			continue
		}
		if now := a.missingCount(); now < left {
			left, began = now, time.Now()
			continue
		}
		// The cluster can be reached. If it has answered nothing for long, and no request is
		// still being sent over a slow link, it may be that only some topics have no
		// leader: they must not hold up the others.
		slow := s.cfg.Connections.Answered() == answered && time.Since(s.cfg.Connections.LastProgress()) < stuckAfter
		if time.Since(began) > stuckAfter && !slow {
			for topic := range a.missing(records) {
				s.cfg.Diagnostics.Warn("the cluster does not answer for a topic", "topic", topic)
				s.forget(topic) // its events fail with ErrStuck, and are retried
			}
			began = time.Now()
		}
	}
}

func (a *answers) put(i int, err error) {
	if kafka.Purged(err) {
		err = ErrStuck
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.errs[i] = err
	if a.left--; a.left == 0 {
		close(a.done)
	}
}

// missingCount returns how many records have no answer yet.
func (a *answers) missingCount() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.left
}

// soFar returns a copy of the answers.
func (a *answers) soFar() []error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]error(nil), a.errs...)
}

// missing returns the topics of the records that have no answer yet.
func (a *answers) missing(records []spool.Record) map[string]bool {
	topics := map[string]bool{}
	for i, err := range a.soFar() {
		if err == errPending {
			topics[records[i].Topic] = true
		}
	}
	return topics
}
