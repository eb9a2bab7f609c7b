// Package faultnet is a TCP proxy for tests. It simulates a network between a client and a server
// that can be slow, distant, unresponsive or cut off. The link can be changed while connections are
// open.
//
//	proxy, err := faultnet.Start(server)
//	defer proxy.Close()
//	conn, err := proxy.Dial(ctx, "tcp", server) // goes through the proxy
//	proxy.Set(faultnet.Link{Delay: 300 * time.Millisecond})
//	proxy.Set(faultnet.Link{Cut: true})
//	proxy.Set(faultnet.Link{})
//
// Start reading at [Link] and [Proxy].
package faultnet

import (
	"context"
	"net"
	"sync"
	"time"
)

// Link describes the condition of the network. The zero value is a network without faults.
type Link struct {
	// Delay is the latency in each direction.
	Delay time.Duration

	// BytesPerSecond is the bandwidth in each direction, shared by all connections. Zero means
	// unlimited.
	BytesPerSecond int

	// Silent drops all bytes in both directions without closing connections. Connections that are
	// open, and those that are opened in the meantime, never recover, like connections that a
	// firewall has forgotten.
	Silent bool

	// Cut closes all connections, and refuses new ones.
	Cut bool
}

// Proxy is a running proxy. Its methods may be called concurrently.
type Proxy struct {
	listener net.Listener
	target   string
	up, down pipeRate
	work     sync.WaitGroup
	closed   chan struct{}
	closer   sync.Once

	mu    sync.Mutex // guards the fields below
	link  Link
	pairs map[*pair]bool
}

// Start starts a proxy to target, a host:port. It listens on a free port of this machine.
func Start(target string) (*Proxy, error) {
	listener, err := smallBuffers.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{listener: listener, target: target, closed: make(chan struct{}), pairs: map[*pair]bool{}}
	p.work.Go(p.accept)
	return p, nil
}

// Addr returns the address on which the proxy listens.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Dial connects to the proxy, whatever address is given. It is meant for clients that learn the
// server's address from the server itself.
func (p *Proxy) Dial(ctx context.Context, network, _ string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, network, p.Addr())
}

// Set changes the condition of the network.
func (p *Proxy) Set(link Link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.link = link
	for c := range p.pairs {
		if link.Silent {
			c.lose()
		}
		if link.Cut {
			c.close()
		}
	}
}

// Close stops the proxy and closes all connections through it. It may be called more than once.
func (p *Proxy) Close() error {
	p.closer.Do(func() {
		close(p.closed)
		p.listener.Close()
		p.Set(Link{Cut: true})
		p.work.Wait()
	})
	return nil
}

func (p *Proxy) now() Link {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.link
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return // the proxy was closed
		}
		if p.now().Cut {
			client.(*net.TCPConn).SetLinger(0) // with a reset, like a refused connection, and not an orderly end
			client.Close()
			continue
		}
		p.work.Go(func() { p.serve(client) })
	}
}

// serve forwards one connection in both directions.
func (p *Proxy) serve(client net.Conn) {
	server, err := (&net.Dialer{Control: smallBuffers.Control}).Dial("tcp", p.target)
	if err != nil {
		client.Close()
		return
	}
	c := &pair{client: client, server: server, lost: make(chan struct{}), closed: make(chan struct{})}
	p.mu.Lock()
	p.pairs[c] = true
	link := p.link
	p.mu.Unlock()
	if link.Silent {
		c.lose()
	}
	if link.Cut {
		c.close()
	}
	var both sync.WaitGroup
	both.Go(func() { p.forward(c, client, server, &p.up) })
	both.Go(func() { p.forward(c, server, client, &p.down) })
	both.Wait()
	c.close()
	p.mu.Lock()
	delete(p.pairs, c)
	p.mu.Unlock()
}

// pair is a connection through the proxy.
type pair struct {
	client, server net.Conn
	lostOnce       sync.Once
	lost           chan struct{} // closed when the connection has become silent
	closeOnce      sync.Once
	closed         chan struct{}
}

func (c *pair) lose() { c.lostOnce.Do(func() { close(c.lost) }) }

func (c *pair) close() {
	c.closeOnce.Do(func() {
		close(c.closed)
		c.client.Close()
		c.server.Close()
	})
}

func (c *pair) isLost() bool {
	select {
	case <-c.lost:
		return true
	default:
		return false
	}
}
