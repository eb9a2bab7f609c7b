package server

import (
	"net"
	"net/http"
	"sync"
	"time"
)

// limitConns returns a listener that accepts from l while fewer than n of its
// connections are open. When all are, those on which nothing is asked make room.
func limitConns(l net.Listener, n int, quiet *quietConns) net.Listener {
	return &limitedListener{Listener: l, slots: make(chan struct{}, n), closed: make(chan struct{}), quiet: quiet}
}

type limitedListener struct {
	net.Listener
	slots     chan struct{} // holds one for each open connection
	closeOnce sync.Once
	closed    chan struct{}
	quiet     *quietConns
}

func (l *limitedListener) Accept() (net.Conn, error) {
	if !l.takeSlot() {
		return nil, net.ErrClosed
	}
	conn, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &limitedConn{Conn: conn, release: sync.OnceFunc(func() { <-l.slots })}, nil
}

// takeSlot waits for a slot. It reports false if the listener was closed.
func (l *limitedListener) takeSlot() bool {
	for {
		select {
		case l.slots <- struct{}{}:
			return true
		default:
		}
		l.quiet.closeOne()
		select {
		case l.slots <- struct{}{}:
			return true
		case <-l.quiet.more:
		case <-l.closed:
			return false
		}
	}
}

func (l *limitedListener) Close() error {
	l.closeOnce.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

type limitedConn struct {
	net.Conn
	release func()
}

func (c *limitedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

// quietConns are the connections on which nothing is asked at the moment.
type quietConns struct {
	more chan struct{} // gets a value when one was added to idle

	mu     sync.Mutex // guards the fields below
	silent map[net.Conn]bool
	idle   map[net.Conn]time.Time // since when
}

func newQuietConns() *quietConns {
	return &quietConns{more: make(chan struct{}, 1), silent: map[net.Conn]bool{}, idle: map[net.Conn]time.Time{}}
}

// observe is for [http.Server.ConnState].
func (q *quietConns) observe(conn net.Conn, state http.ConnState) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.silent, conn)
	delete(q.idle, conn)
	switch state {
	case http.StateNew:
		q.silent[conn] = true
	case http.StateIdle:
		q.idle[conn] = time.Now()
		select {
		case q.more <- struct{}{}:
		default:
		}
	}
}

// closeOne closes the connection that has been idle for the longest time, if one is.
func (q *quietConns) closeOne() {
	q.mu.Lock()
	defer q.mu.Unlock()
	var longest net.Conn
	for conn, since := range q.idle {
		if longest == nil || since.Before(q.idle[longest]) {
			longest = conn
		}
	}
	if longest != nil {
		delete(q.idle, longest)
		go longest.Close() // over TLS it says goodbye, which may take a while
	}
}

// closeSilent closes those on which nothing has come yet. Browsers open some in
// advance, and [http.Server.Shutdown] would wait seconds for them.
func (q *quietConns) closeSilent() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for conn := range q.silent {
		_ = conn.Close() // nobody has said anything on it
	}
}
