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

// API keys say what type of request a request is. They are unrelated to access keys.
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
	// frameTimeout limits how long a client may take to send a request, in addition to a second for
	// each minBytesPerSecond bytes that have arrived. It also limits how long the client may be
	// silent in the middle of a request.
	frameTimeout      = 2 * time.Minute
	minBytesPerSecond = 1000
	// writeTimeout limits how long a client may leave a chunk of an answer unread.
	writeTimeout = 2 * time.Minute
	// lingerTimeout is how long the gateway waits after its last answer for the client to close the
	// connection.
	lingerTimeout = 250 * time.Millisecond
	// recheckTimeout limits one check whether credentials are still valid.
	recheckTimeout = 15 * time.Second
)

var (
	errExpired  = errors.New("session expired")
	errStopping = errors.New("the gateway is stopping")

	errBrokerGone = fmt.Errorf("%w: it closed the connection", errBroker)
)

// conn is the connection of one client. One goroutine at a time serves it and reads from the client.
// After the login a second goroutine reads from the broker.
type conn struct {
	g          *Gateway
	client     net.Conn
	wire       *wire        // below client; nil without TLS
	direct     *net.TCPConn // client, if answers can be spliced from upstream to it; else nil
	address    netip.Addr
	cancel     context.CancelFunc // ends the context of begin and relay
	fromClient frameReader        // reads with conn.Read, which limits the time

	anonymous *admission.AnonymousConn // counts the connection until it is signed in

	// Set by the first login, and not changed later.
	subject    string
	principal  string      // as the broker sees it
	canRead    bool        // may read topics and use groups
	groups     groupPrefix // of the subject's groups at the broker
	usage      *subjectUsage
	versions   versions
	upstream   net.Conn
	fromBroker *frameReader  // reads from upstream
	relayDone  chan struct{} // closed when relayResponses has returned

	flight   inFlight
	signInAt time.Time // when to sign in to the broker again; zero means never
	lastKey  int16     // of the last request relayed

	// allowance is how much longer the gateway waits for the rest of a request, see Read. It is 0 if
	// no request has begun. It also stays 0 for a request of which nothing is missing, or which began
	// when the gateway was already stopping: then drainDeadline is the limit. Only the goroutine that
	// reads from the client uses it.
	allowance time.Duration

	mu          sync.Mutex  // guards the fields below, and setting upstream while close may run
	credentials Credentials // at the last login; zero before the first
	expiry      time.Time   // of these credentials
	nextCheck   time.Time   // when to check next whether they are still valid
	checking    bool        // a check is running
	closed      bool
	idle        bool // the connection waits for a request
	// If not zero, the gateway is stopping: no more requests, and this is the time limit.
	drainDeadline time.Time
}

func newConn(g *Gateway, client net.Conn, address netip.Addr, cancel context.CancelFunc) *conn {
	c := &conn{g: g, client: client, address: address, cancel: cancel}
	if g.cfg.TLS != nil {
		c.wire = &wire{Conn: client}
		c.client = tls.Server(c.wire, g.cfg.TLS)
	}
	c.fromClient.r = c
	c.flight.init()
	return c
}

// begin handles the client's login, within LoginTimeout. ctx is the context that c.cancel ends.
func (c *conn) begin(ctx context.Context) error {
	login, cancel := context.WithTimeout(ctx, c.g.cfg.LoginTimeout)
	defer cancel()
	deadline, _ := login.Deadline()
	c.client.SetDeadline(deadline)
	if err := c.login(login); err != nil {
		return err
	}
	c.client.SetDeadline(time.Time{})
	return nil
}

// close closes the connection on both sides. It may be called at any time, and more than once.
func (c *conn) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.closed = true
	c.cancel()
	if c.wire != nil {
		c.wire.interrupt()
	}
	c.client.Close()
	if c.upstream != nil {
		c.upstream.Close()
	}
}

// dial connects to the broker, unless that has been done.
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
	c.fromBroker = &frameReader{r: upstream}
	if _, ok := upstream.(*net.TCPConn); ok && canSplice {
		c.direct, _ = c.client.(*net.TCPConn)
	}
	if c.closed {
		upstream.Close()
	}
	return nil
}

// recordLogin records the credentials of a login and when they expire. It reports false if the gateway
// is stopping.
func (c *conn) recordLogin(credentials Credentials, id Identity) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.credentials, c.expiry = credentials, id.Expiry
	// Random, to spread the checks of connections that log in together.
	c.nextCheck = time.Now().Add(rand.N(c.g.cfg.RevocationInterval))
	return c.drainDeadline.IsZero()
}

// recheckDue returns the client's credentials if it is time to check whether they are still valid.
// The caller must then call recheck.
func (c *conn) recheckDue() (credentials Credentials, due bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.credentials == (Credentials{}) || c.checking || time.Now().Before(c.nextCheck) {
		return Credentials{}, false
	}
	c.checking = true
	return c.credentials, true
}

// credentialsOf returns the client's credentials if it is signed in as the principal, else zero
// ones.
func (c *conn) credentialsOf(principal string) Credentials {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.credentials == (Credentials{}) || c.principal != principal {
		return Credentials{}
	}
	return c.credentials
}

// recheck closes the connection if the client's token or key is no longer valid. An error means
// that this could not be checked.
func (c *conn) recheck(ctx context.Context, credentials Credentials) error {
	ctx, cancel := context.WithTimeout(globus.WithCaller(ctx, c.subject), recheckTimeout)
	defer cancel()
	err := c.g.cfg.Authenticator.Recheck(ctx, credentials)
	c.mu.Lock()
	c.checking = false
	replaced, expired := c.credentials != credentials, !c.expiry.After(time.Now())
	if err == nil && !replaced {
		c.nextCheck = time.Now().Add(c.g.cfg.RevocationInterval)
	}
	c.mu.Unlock()
	if !errors.Is(err, globus.ErrRefused) {
		return err
	}
	switch {
	case replaced: // the client has logged in again in the meantime
		return nil
	case expired:
		c.g.counters.expired.Add(1)
	default:
		c.g.counters.revoked.Add(1)
		c.g.cfg.Diagnostics.Info("connection closed: its credentials are no longer valid",
			"client", c.client.RemoteAddr().String(), "principal", "User:"+c.principal, "err", err)
	}
	c.close()
	return nil
}

// markIdle marks the connection as idle, before the next request is read. It reports false if the
// gateway is stopping, so that no more requests may be read.
func (c *conn) markIdle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idle = c.drainDeadline.IsZero()
	return c.idle
}

func (c *conn) draining() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.drainDeadline.IsZero()
}

// beginRequest says that a request has begun to arrive, so the connection is no longer idle. whole says
// that nothing of the request is missing. Otherwise Read limits the time for the rest, until the caller
// has handled the request and calls end.
func (c *conn) beginRequest(whole bool) (end func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idle = false
	if !c.drainDeadline.IsZero() {
		c.client.SetReadDeadline(c.drainDeadline)
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
	if c.drainDeadline.IsZero() {
		c.client.SetReadDeadline(time.Time{})
	}
}

// drain makes the connection end once the request that is being read and all earlier ones are
// answered, or at the limit.
func (c *conn) drain(limit time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drainDeadline = limit
	switch {
	case c.credentials == Credentials{}: // not signed in, so no request is in flight
		c.cancel()
		c.client.SetDeadline(time.Unix(1, 0))
	case c.idle:
		c.client.SetReadDeadline(time.Unix(1, 0))
	default:
		c.client.SetReadDeadline(limit)
	}
}

// hangUp tells the client that no more answers follow. Then it waits up to lingerTimeout for the client
// to read the last answers and close the connection. If the gateway closed it while requests are
// unread, the kernel would send a reset, and the client could lose the answers.
func (c *conn) hangUp() {
	if w, ok := c.client.(interface{ CloseWrite() error }); ok && w.CloseWrite() == nil {
		c.client.SetReadDeadline(time.Now().Add(lingerTimeout))
		io.Copy(io.Discard, c.client)
	}
}

// Read reads from the client. While a request is arriving, allowance limits how long Read waits.
// allowance shrinks by the time that Read waits, and grows with the bytes that arrive. So a slow link
// gets the time that it needs, but a client that sends one byte at a time does not. The time between
// two calls of Read does not count, because then the gateway itself is waiting, for the broker or for
// memory.
func (c *conn) Read(p []byte) (int, error) {
	if c.allowance == 0 {
		return c.client.Read(p)
	}
	began := time.Now()
	c.setReadDeadline(began.Add(c.allowance))
	n, err := c.client.Read(p)
	earned := time.Duration(n) * time.Second / minBytesPerSecond
	c.allowance = max(1, min(frameTimeout, c.allowance-time.Since(began)+earned))
	return n, err
}

// setReadDeadline sets the client's read deadline, unless the gateway is stopping and has set another one.
func (c *conn) setReadDeadline(deadline time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.drainDeadline.IsZero() {
		c.client.SetReadDeadline(deadline)
	}
}

// Write sends bytes to the client. It sets a new write deadline each time.
func (c *conn) Write(p []byte) (int, error) {
	c.client.SetWriteDeadline(time.Now().Add(writeTimeout))
	if c.wire != nil {
		return c.wire.writeAtOnce(c.client, p)
	}
	return c.client.Write(p)
}
