package server

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/diaspora-streams/diaspora/internal/admission"
)

// One address may have 1/addressShare of all connections.
const addressShare = 4

// conns are the open connections. There are at most max of them, and at most perAddress of one
// address, except for exempt proxies. When there are too many, it closes idle connections first,
// and then connections whose request is not authenticated yet.
type conns struct {
	max, perAddress int
	exempt          func(netip.Addr) bool
	anonymous       admission.AnonymousConns
	room            chan struct{} // receives a value when there may be room

	mu        sync.Mutex // guards the fields below
	open      map[*limitedConn]bool
	byAddress map[netip.Addr]int
}

func newConns(max int, exempt func(netip.Addr) bool) *conns {
	return &conns{
		max: max, perAddress: (max + addressShare - 1) / addressShare, exempt: exempt, room: make(chan struct{}, 1),
		open: make(map[*limitedConn]bool), byAddress: make(map[netip.Addr]int),
	}
}

// limit returns a listener that accepts connections from l within the limits. A connection for
// which there is no room waits. A connection from an address that has too many is closed.
func (cs *conns) limit(l net.Listener) net.Listener {
	return &limitedListener{Listener: l, conns: cs, closed: make(chan struct{})}
}

type limitedListener struct {
	net.Listener
	conns     *conns
	closeOnce sync.Once
	closed    chan struct{}
}

func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &limitedConn{Conn: conn, conns: l.conns, address: peerOf(conn)}
		if !l.conns.admitFrom(c) {
			_ = conn.Close()
			continue
		}
		if !l.conns.admit(c, l.closed) {
			_ = conn.Close()
			return nil, net.ErrClosed
		}
		return c, nil
	}
}

func (l *limitedListener) Close() error {
	l.closeOnce.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// peerOf returns the address under which a connection is counted, or the zero one if it has none.
func peerOf(conn net.Conn) netip.Addr {
	peer, _ := netip.ParseAddrPort(conn.RemoteAddr().String())
	return peer.Addr()
}

// limitedConn is an open connection.
type limitedConn struct {
	net.Conn
	conns     *conns
	address   netip.Addr
	closeOnce sync.Once

	// Guarded by conns.mu.
	anonymous *admission.AnonymousConn // nil while the connection is idle or its request is authenticated, and for proxies
	idle      time.Time                // since when it is idle; zero if it is not
	silent    bool                     // no byte has arrived yet
}

func (c *limitedConn) Close() error {
	c.closeOnce.Do(func() { c.conns.remove(c) })
	return c.Conn.Close()
}

// proxied reports whether the connection comes from a proxy, which has many clients.
func (c *limitedConn) proxied() bool {
	return !c.address.IsValid() || c.conns.exempt(c.address.Unmap())
}

// admitFrom makes room for c among the connections of its address. It reports false if it cannot.
func (cs *conns) admitFrom(c *limitedConn) bool {
	if c.proxied() {
		return true
	}
	address := admission.AddressOf(c.address)
	for {
		cs.mu.Lock()
		n := cs.byAddress[address]
		cs.mu.Unlock()
		if n < cs.perAddress {
			return true
		}
		if !cs.closeIdle(&address) && !cs.anonymous.EvictFrom(address) {
			return false
		}
	}
}

// admit adds a connection, after waiting for room. It reports false once closed is closed.
func (cs *conns) admit(c *limitedConn, closed <-chan struct{}) bool {
	for {
		if cs.add(c) {
			return true
		}
		if cs.closeIdle(nil) || cs.anonymous.Evict() {
			continue
		}
		select {
		case <-cs.room:
		case <-closed:
			return false
		}
	}
}

// add adds a connection if there is room. It reports whether there was.
func (cs *conns) add(c *limitedConn) bool {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if len(cs.open) >= cs.max {
		return false
	}
	cs.open[c] = true
	if !c.proxied() {
		cs.byAddress[admission.AddressOf(c.address)]++
	}
	cs.markAnonymous(c)
	c.silent = true
	return true
}

func (cs *conns) remove(c *limitedConn) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if !cs.open[c] {
		return
	}
	delete(cs.open, c)
	if !c.proxied() {
		address := admission.AddressOf(c.address)
		if cs.byAddress[address]--; cs.byAddress[address] == 0 {
			delete(cs.byAddress, address)
		}
	}
	cs.unmarkAnonymous(c)
	cs.signalRoom()
}

// signalRoom wakes admit. The caller holds mu.
func (cs *conns) signalRoom() {
	select {
	case cs.room <- struct{}{}:
	default:
	}
}

// markAnonymous marks the connection as having a request that is not authenticated. The caller
// holds mu.
func (cs *conns) markAnonymous(c *limitedConn) {
	c.idle, c.silent = time.Time{}, false
	if c.anonymous == nil && cs.open[c] && !c.proxied() {
		c.anonymous = cs.anonymous.Add(admission.AddressOf(c.address), func() { _ = c.Close() })
	}
}

// unmarkAnonymous takes a connection off the list of anonymous connections, because its request is
// authenticated, or because it is idle or closed. The caller holds mu.
func (cs *conns) unmarkAnonymous(c *limitedConn) {
	if c.anonymous != nil {
		c.anonymous.Remove()
		c.anonymous = nil
	}
}

// observe is the server's [http.Server.ConnState].
func (cs *conns) observe(conn net.Conn, state http.ConnState) {
	c := limitedOf(conn)
	cs.mu.Lock()
	defer cs.mu.Unlock()
	switch state {
	case http.StateActive:
		cs.markAnonymous(c)
	case http.StateIdle:
		cs.unmarkAnonymous(c)
		c.idle = time.Now()
		cs.signalRoom()
	}
}

// limitedOf returns the connection below TLS, or conn itself if it does not use TLS.
func limitedOf(conn net.Conn) *limitedConn {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	return conn.(*limitedConn)
}

type connKey struct{}

// connContext is the server's [http.Server.ConnContext].
func connContext(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, limitedOf(conn))
}

// keepOpen marks a request's connection as authenticated: until the request is answered, the
// connection is not closed to make room for another one.
func keepOpen(r *http.Request) {
	c, ok := r.Context().Value(connKey{}).(*limitedConn)
	if !ok {
		return // called by a test without a connection
	}
	c.conns.mu.Lock()
	defer c.conns.mu.Unlock()
	c.conns.unmarkAnonymous(c)
}

// closeIdle closes the connection that has been idle for the longest time, among those of one
// address or, if address is nil, among all. It reports false if none is idle.
func (cs *conns) closeIdle(address *netip.Addr) bool {
	cs.mu.Lock()
	var longest *limitedConn
	for c := range cs.open {
		if c.idle.IsZero() || address != nil && (c.proxied() || admission.AddressOf(c.address) != *address) {
			continue
		}
		if longest == nil || c.idle.Before(longest.idle) {
			longest = c
		}
	}
	cs.mu.Unlock()
	if longest == nil {
		return false
	}
	_ = longest.Close()
	return true
}

// closeSilent closes the connections on which no byte has arrived. Browsers open some in advance,
// and [http.Server.Shutdown] would wait seconds for them.
func (cs *conns) closeSilent() {
	cs.mu.Lock()
	var silent []*limitedConn
	for c := range cs.open {
		if c.silent {
			silent = append(silent, c)
		}
	}
	cs.mu.Unlock()
	for _, c := range silent {
		_ = c.Close() // the client has sent nothing, so it loses nothing
	}
}
