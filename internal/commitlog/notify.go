package commitlog

// Notify sends a value on ready, once, when End is greater than after, or when the log is closed.
// If End is greater already, it sends at once. ready must have a buffer for one value. If the
// buffer is full, the value is dropped, because the receiver has not yet handled an earlier one.
// The same channel may be passed to many logs, as for a fetch of many partitions, and to one log
// several times. Forget cancels the notification.
//
// A waiter takes one map entry and no goroutine.
func (l *Log) Notify(after int64, ready chan<- struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.end > after || l.closed {
		notify(ready)
		return
	}
	if l.waiters == nil {
		l.waiters = map[chan<- struct{}]struct{}{}
	}
	l.waiters[ready] = struct{}{}
}

// Forget cancels a notification that was requested with Notify.
func (l *Log) Forget(ready chan<- struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.waiters, ready)
}

// Up to maxInlineNotifies waiters are notified by the Append that they have waited for. More are
// notified in the background, so that Append does not have to wait.
const maxInlineNotifies = 64

// wake notifies all waiters. The caller holds mu.
func (l *Log) wake() {
	if len(l.waiters) == 0 {
		return
	}
	if len(l.waiters) > maxInlineNotifies {
		waiters := l.waiters
		l.waiters = nil
		l.tasks.Go(func() { notifyAll(waiters) })
		return
	}
	notifyAll(l.waiters)
	clear(l.waiters)
}

func notifyAll(waiters map[chan<- struct{}]struct{}) {
	for ready := range waiters {
		notify(ready)
	}
}

func notify(ready chan<- struct{}) {
	select {
	case ready <- struct{}{}:
	default:
	}
}
