package broker

import (
	"context"
	"net"
	"sync"
)

// listener is what the broker listens on: connections made by dial, in memory.
// Its address is the advertised one, so that Metadata names the gateway.
type listener struct {
	address   address
	conns     chan net.Conn
	closed    chan struct{}
	closeOnce sync.Once
}

type address string

func (address) Network() string  { return "tcp" }
func (a address) String() string { return string(a) }

func newListener(advertise string) *listener {
	return &listener{address: address(advertise), conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *listener) Addr() net.Addr { return l.address }

func (l *listener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.closeOnce.Do(func() { close(l.closed) })
	return nil
}

func (l *listener) dial(ctx context.Context) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case l.conns <- theirs:
		return ours, nil
	case <-l.closed:
		return nil, &net.OpError{Op: "dial", Net: "memory", Addr: l.address, Err: net.ErrClosed}
	case <-ctx.Done():
		return nil, &net.OpError{Op: "dial", Net: "memory", Addr: l.address, Err: context.Cause(ctx)}
	}
}
