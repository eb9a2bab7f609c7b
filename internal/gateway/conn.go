package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/admission"
)

const (
	keyProduce          = 0
	keyFetch            = 1
	keyJoinGroup        = 11
	keySyncGroup        = 14
	keySaslHandshake    = 17
	keyApiVersions      = 18
	keySaslAuthenticate = 36
	keyShareFetch       = 78
)

const (
	// frameTimeout is how long a client that has begun a request may be silent. It is also how
	// long the client may be slower than minBytesPerSecond, all in all, before the request has arrived.
	frameTimeout      = 2 * time.Minute
	minBytesPerSecond = 1000
	// writeTimeout bounds how long a client may leave a chunk unread.
	writeTimeout = 2 * time.Minute
	// lingerTimeout is how long a client has to hang up after the last answer.
	lingerTimeout = 250 * time.Millisecond
	// recheckTimeout bounds one question whether a token is still good.
	recheckTimeout = 15 * time.Second
)

var (
	errExpired  = errors.New("session expired")
	errStopping = errors.New("the gateway stops")

	errBrokerGone = fmt.Errorf("%w: it closed the connection", errBroker)
)

// conn is one client's connection. The goroutine that serves it reads the
// client; once signed in, a second one reads the broker.
type conn struct {
	g       *Gateway
	client  net.Conn
	address netip.Addr
	cancel  context.CancelFunc // ends what serve does
	in      frameReader        // of client, see Read

	stranger *admission.Stranger // until it is signed in

	// Set by the login, and not changed later.
	subject   string
	principal string // whom the broker sees
	reads     bool   // may read topics and use groups
	groups    ownGroups
	account   *account
	versions  versions
	upstream  net.Conn
	out       *frameReader  // of upstream
	ended     chan struct{} // closed when relayResponses has returned

	flight  inFlight
	again   time.Time // when to sign in to the broker again; zero is never
	lastKey int16     // of the last request relayed

	// allowance is how long the gateway still waits for the rest of the request that the client
	// has begun; 0 if it has begun none. Only the goroutine that reads the client uses it.
	allowance time.Duration

	mu      sync.Mutex  // guards the fields below
	shown   Credentials // at the last login; none before the first
	expiry  time.Time   // of what was shown
	checkAt time.Time   // when to look again whether that is still good
	inCheck bool        // somebody looks
	closed  bool
	idle    bool      // waits for a request
	drainBy time.Time // not zero: no more requests, and this is the limit
}

func newConn(g *Gateway, client net.Conn, address netip.Addr, cancel context.CancelFunc) *conn {
	c := &conn{g: g, client: client, address: address, cancel: cancel}
	if g.cfg.TLS != nil {
		c.client = tls.Server(client, g.cfg.TLS)
	}
	c.in.r = c
	c.flight.init()
	return c
}

// serve is the whole life of a connection; it returns why it ended. ctx ends
// with c.cancel.
func (c *conn) serve(ctx context.Context) error {
	login, cancel := context.WithTimeout(ctx, c.g.cfg.LoginTimeout)
	defer cancel()
	deadline, _ := login.Deadline()
	c.client.SetDeadline(deadline)
	if err := c.login(login); err != nil {
		return err
	}
	c.client.SetDeadline(time.Time{})
	return c.relay(ctx)
}

// close ends the connection on both sides. It may be called at any time.
func (c *conn) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.closed = true
	c.cancel()
	c.client.Close()
	if c.upstream != nil {
		c.upstream.Close()
	}
}

// dial connects to the broker, if that has not been done.
func (c *conn) dial(ctx context.Context) error {
	if c.upstream != nil {
		return nil
	}
	upstream, err := c.g.cfg.Upstream.Dial(ctx)
	if err != nil {
		return brokerError("connect", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.upstream = upstream
	c.out = &frameReader{r: upstream}
	if c.closed {
		upstream.Close()
	}
	return nil
}

// signedIn notes whose the connection is, and until when. It reports false if
// the gateway is about to stop.
func (c *conn) signedIn(shown Credentials, id Identity) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shown, c.expiry = shown, id.Expiry
	c.checkAt = time.Now().Add(rand.N(c.g.cfg.RevocationInterval)) // those that log in together are not checked together
	return c.drainBy.IsZero()
}

// recheckDue returns what the client has shown if it is time to look whether that is still
// good. The caller does so with recheck.
func (c *conn) recheckDue() (shown Credentials, due bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.shown == (Credentials{}) || c.inCheck || time.Now().Before(c.checkAt) {
		return Credentials{}, false
	}
	c.inCheck = true
	return c.shown, true
}

// shownBy returns what the client has shown if it is signed in as the principal, and else none.
func (c *conn) shownBy(principal string) Credentials {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.shown == (Credentials{}) || c.principal != principal {
		return Credentials{}
	}
	return c.shown
}

// recheck closes the connection if the token or key that the client has shown is no longer good. Its
// error says that nobody could tell.
func (c *conn) recheck(ctx context.Context, shown Credentials) error {
	ctx, cancel := context.WithTimeout(globus.WithCaller(ctx, c.subject), recheckTimeout)
	defer cancel()
	err := c.g.cfg.Authenticator.Recheck(ctx, shown)
	c.mu.Lock()
	c.inCheck = false
	replaced, expired := c.shown != shown, !c.expiry.After(time.Now())
	if err == nil && !replaced {
		c.checkAt = time.Now().Add(c.g.cfg.RevocationInterval)
	}
	c.mu.Unlock()
	if !errors.Is(err, globus.ErrRefused) {
		return err
	}
	switch {
	case replaced: // the client has logged in again meanwhile
		return nil
	case expired:
		c.g.counters.expired.Add(1)
	default:
		c.g.counters.revoked.Add(1)
		c.g.cfg.Diagnostics.Info("connection closed, its credentials are no longer good",
			"client", c.client.RemoteAddr().String(), "principal", "User:"+c.principal, "err", err)
	}
	c.close()
	return nil
}

// awaitRequest notes that the connection waits for a request. It reports false
// if no more requests are to be taken.
func (c *conn) awaitRequest() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idle = c.drainBy.IsZero()
	return c.idle
}

func (c *conn) draining() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.drainBy.IsZero()
}

// beginRequest notes that a request has begun. If it is not all here yet, the
// rest has to come in time, see Read.
func (c *conn) beginRequest(whole bool) (end func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idle = false
	if !c.drainBy.IsZero() {
		c.client.SetReadDeadline(c.drainBy)
		return func() {}
	}
	if whole {
		return func() {}
	}
	c.allowance = frameTimeout
	return c.endRequest
}

func (c *conn) endRequest() {
	c.allowance = 0
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.drainBy.IsZero() {
		c.client.SetReadDeadline(time.Time{})
	}
}

// drain makes the connection end once the request that is being read, and
// those before it, are answered.
func (c *conn) drain(limit time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drainBy = limit
	switch {
	case c.shown == Credentials{}: // not signed in
		c.cancel()
		c.client.SetDeadline(time.Unix(1, 0))
	case c.idle:
		c.client.SetReadDeadline(time.Unix(1, 0))
	default:
		c.client.SetReadDeadline(limit)
	}
}

// hangUp lets the client read the last answers before the connection closes:
// to close it with requests unread would take them back.
func (c *conn) hangUp() {
	if w, ok := c.client.(interface{ CloseWrite() error }); ok && w.CloseWrite() == nil {
		c.client.SetReadDeadline(time.Now().Add(lingerTimeout))
		io.Copy(io.Discard, c.client)
	}
}

// Read reads what the client sends. The allowance shrinks while the client is silent and grows
// with what arrives, so that a slow link has the time that it needs and a client that sends byte by
// byte does not. Time that passes between two reads is not the client's: the gateway waits for the
// broker then, or for memory.
func (c *conn) Read(p []byte) (int, error) {
	if c.allowance == 0 {
		return c.client.Read(p)
	}
	began := time.Now()
	c.allow(began.Add(c.allowance))
	n, err := c.client.Read(p)
	earned := time.Duration(n) * time.Second / minBytesPerSecond
	c.allowance = max(1, min(frameTimeout, c.allowance-time.Since(began)+earned))
	return n, err
}

// allow sets the client's deadline, unless the gateway is about to stop and has set another.
func (c *conn) allow(deadline time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.drainBy.IsZero() {
		c.client.SetReadDeadline(deadline)
	}
}

// Write sends the client what the broker answers.
func (c *conn) Write(p []byte) (int, error) {
	c.client.SetWriteDeadline(time.Now().Add(writeTimeout))
	return c.client.Write(p)
}
