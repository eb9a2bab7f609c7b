package gateway

import (
	"slices"
	"sync"
)

// maxInFlight limits the requests of one connection that the broker has not answered. The Java
// client has 5 in flight, librdkafka a few hundred at most.
const maxInFlight = 1000

// pending is a request that the broker has not answered yet.
type pending struct {
	header
	answer chan<- []byte // for a request of the gateway's own; nil for a client's
}

// inFlight is the queue of a connection's requests that the broker has not answered, oldest first.
// A broker answers requests in order, so the gateway knows which request an answer belongs to. It
// need not trust correlation IDs, which the client chooses.
type inFlight struct {
	mu      sync.Mutex // guards the fields below
	queue   []pending
	changed sync.Cond // signaled when the broker has answered a request
	closed  bool      // no more answers will arrive
}

func (f *inFlight) init() { f.changed.L = &f.mu }

// add adds a request that is about to be sent. It waits while maxInFlight requests are in flight.
// It reports false if no more answers will arrive.
func (f *inFlight) add(p pending) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(f.queue) >= maxInFlight && !f.closed {
		f.changed.Wait()
	}
	if f.closed {
		return false
	}
	f.queue = append(f.queue, p)
	return true
}

// next removes and returns the request that the broker's next answer belongs to. It reports false
// if no request is in flight, or if the oldest one has another correlation ID.
func (f *inFlight) next(correlation int32) (pending, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.queue) == 0 || f.queue[0].correlation != correlation {
		return pending{}, false
	}
	p := f.queue[0]
	f.queue = slices.Delete(f.queue, 0, 1)
	f.changed.Signal()
	return p, true
}

// awaitGroup waits until no request is in flight whose answer depends on other members of a
// consumer group, or until no more answers will arrive.
func (f *inFlight) awaitGroup() {
	f.mu.Lock()
	defer f.mu.Unlock()
	waits := func(p pending) bool { return p.key == keyJoinGroup || p.key == keySyncGroup }
	for !f.closed && slices.ContainsFunc(f.queue, waits) {
		f.changed.Wait()
	}
}

// close ends add and awaitGroup.
func (f *inFlight) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	f.changed.Broadcast()
}
