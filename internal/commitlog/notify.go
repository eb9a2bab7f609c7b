package commitlog

// Notify sends a value on ready, once, when End is greater than after: at once if it is already, else
// when a batch has been acknowledged, or when the log is closed. ready must have room for a value; if it
// is full the value is dropped, since its receiver is about to look anyway. One ready may be given to many logs, as
// a fetch of many partitions needs it, and to one log many times. Forget ends it early.
//
// While nothing is appended, a waiter costs an entry of a map and no goroutine.
func (l *Log) Notify(after int64, ready chan<- struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.end > after || l.closed {
		tell(ready)
		return
	}
	if l.waiters == nil {
		l.waiters = map[chan<- struct{}]struct{}{}
	}
	l.waiters[ready] = struct{}{}
}

// Forget ends what Notify began.
func (l *Log) Forget(ready chan<- struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.waiters, ready)
}

// fewWaiters are told by the Append that they have waited for. It does not wait until many are told.
const fewWaiters = 64

// wake tells all who wait. The caller holds mu.
func (l *Log) wake() {
	if len(l.waiters) == 0 {
		return
	}
	if len(l.waiters) > fewWaiters {
		waiters := l.waiters
		l.waiters = nil
		l.tasks.Go(func() { tellAll(waiters) })
		return
	}
	tellAll(l.waiters)
	clear(l.waiters)
}

func tellAll(waiters map[chan<- struct{}]struct{}) {
	for ready := range waiters {
		tell(ready)
	}
}

func tell(ready chan<- struct{}) {
	select {
	case ready <- struct{}{}:
	default:
	}
}
