package gateway

import (
	"slices"
	"sync"
)

// maxInFlight bounds the requests of one connection that the broker has not answered.
// Java's client has 5 in flight, and librdkafka's a few hundred at most.
const maxInFlight = 1000

// pending is a request that the broker has not answered yet.
type pending struct {
	header
	answer chan<- []byte // of the gateway's own request; nil for a client's
}

// inFlight are the requests of one connection that the broker has not answered, the oldest
// first. A broker answers in the order of the requests, so the gateway knows which request
// an answer belongs to without trust in the client's correlation IDs.
type inFlight struct {
	mu     sync.Mutex // guards the fields below
	queue  []pending
	room   sync.Cond // signaled when the broker has answered a request
	closed bool      // no more answers will come
}

func (f *inFlight) init() { f.room.L = &f.mu }

// add notes a request that is about to be sent. It waits while there are too many, and
// reports false if no answers will come any more.
func (f *inFlight) add(p pending) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(f.queue) >= maxInFlight && !f.closed {
		f.room.Wait()
	}
	if f.closed {
		return false
	}
	f.queue = append(f.queue, p)
	return true
}

// next returns the request that the broker's next answer belongs to. It reports false if
// the broker has nothing to answer, or answers another request.
func (f *inFlight) next(correlation int32) (pending, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.queue) == 0 || f.queue[0].correlation != correlation {
		return pending{}, false
	}
	p := f.queue[0]
	f.queue = slices.Delete(f.queue, 0, 1)
	f.room.Signal()
	return p, true
}

// awaitGroup waits while a request is in flight whose answer waits for other members of a
// consumer group, or until no answers will come any more.
func (f *inFlight) awaitGroup() {
	f.mu.Lock()
	defer f.mu.Unlock()
	waits := func(p pending) bool { return p.key == keyJoinGroup || p.key == keySyncGroup }
	for !f.closed && slices.ContainsFunc(f.queue, waits) {
		f.room.Wait()
	}
}

// close ends add and awaitGroup.
func (f *inFlight) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	f.room.Broadcast()
}
