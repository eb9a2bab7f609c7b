package gateway

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/diaspora-streams/diaspora/globus"
)

const (
	keyProduce          = 0
	keySaslHandshake    = 17
	keyApiVersions      = 18
	keySaslAuthenticate = 36
)

// conn is one client's connection. Its own goroutine reads the client; once
// signed in, a second one reads the broker.
type conn struct {
	g        *Gateway
	client   net.Conn
	upstream net.Conn // nil until first needed
	in       frameReader
	out      frameReader // reads the upstream

	token    globus.Secret
	info     globus.TokenInfo
	versions versions
	ended    chan struct{} // closed when relayResponses returns

	mu       sync.Mutex // guards the fields below
	closed   bool
	exchange *exchange
}

func newConn(g *Gateway, client net.Conn) *conn {
	c := &conn{g: g, client: client}
	c.in.r = client
	return c
}

func (c *conn) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.closed = true
	c.client.Close()
	if c.upstream != nil {
		c.upstream.Close()
	}
}

func (c *conn) run(ctx context.Context) error {
	login, cancel := context.WithTimeout(ctx, c.g.cfg.LoginTimeout)
	defer cancel()
	deadline, _ := login.Deadline()
	c.client.SetDeadline(deadline)
	if err := c.login(login); err != nil {
		return err
	}
	cancel()
	c.client.SetDeadline(time.Time{})
	return c.relay(ctx)
}
