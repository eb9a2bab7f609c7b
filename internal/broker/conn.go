package broker

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// caller is the principal that a connection is signed in as. The zero value means that nobody is
// signed in.
type caller struct {
	principal string // User:<subject>
	super     bool   // no ACL restricts it
}

// address is the advertised address as a [net.Addr].
type address string

func (address) Network() string  { return "tcp" }
func (a address) String() string { return string(a) }

// conn is the broker's end of a connection. One goroutine serves it.
type conn struct {
	b        *Broker
	net.Conn                 // a pipe
	ctx      context.Context // ends with the connection
	cancel   context.CancelFunc
	caller   atomic.Pointer[caller] // nil until the connection is signed in
	sessions fetchSessions
}

// clientConn is the client's end of a connection. Closing it also cancels the request that the
// broker is carrying out for it.
type clientConn struct {
	net.Conn
	peer *conn
}

func (c *clientConn) Close() error {
	c.peer.cancel()
	return c.Conn.Close()
}

func (c *clientConn) RemoteAddr() net.Addr { return address(c.peer.b.cfg.Advertise) }

// connect creates a connection and starts the goroutine that serves it.
func (b *Broker) connect(as caller) (net.Conn, error) {
	ours, theirs := net.Pipe()
	c := &conn{b: b, Conn: ours}
	c.ctx, c.cancel = context.WithCancel(b.ctx)
	if as != (caller{}) {
		c.caller.Store(&as)
	}
	b.connsMu.Lock()
	defer b.connsMu.Unlock()
	if b.closed {
		return nil, &net.OpError{Op: "dial", Net: "memory", Addr: address(b.cfg.Advertise), Err: net.ErrClosed}
	}
	b.conns[c] = struct{}{}
	b.working.Go(func() {
		if err := c.serve(); err != nil {
			b.cfg.Diagnostics.Debug("connection ended", "err", err)
		}
		c.close()
		c.sessions.end(b)
		b.connsMu.Lock()
		delete(b.conns, c)
		b.connsMu.Unlock()
	})
	return &clientConn{theirs, c}, nil
}

func (c *conn) close() {
	c.cancel()
	c.Conn.Close()
}

// closeConns closes all connections and prevents new ones.
func (b *Broker) closeConns() {
	b.connsMu.Lock()
	defer b.connsMu.Unlock()
	b.closed = true
	for c := range b.conns {
		c.close()
	}
}

// subjectPattern excludes subjects that have a special meaning in ACLs, such as "*" in "User:*".
var subjectPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,127}$`)

// SignIn signs a connection from [Broker.Dial] in as User:<subject>. It fails if the connection is
// already signed in. signInAt is the time by which to sign in again; it is always zero, because the
// session does not expire.
func (b *Broker) SignIn(_ context.Context, nc net.Conn, _ kmsg.Requestor, subject string) (signInAt time.Time, err error) {
	if !subjectPattern.MatchString(subject) {
		return signInAt, fmt.Errorf("sign in to broker: %q is not a valid subject", subject)
	}
	client, ok := nc.(*clientConn)
	if !ok || client.peer.b != b {
		return signInAt, errors.New("sign in to broker: not a connection to this broker")
	}
	if err := client.peer.ctx.Err(); err != nil {
		return signInAt, fmt.Errorf("sign in to broker: %w", net.ErrClosed)
	}
	if !client.peer.caller.CompareAndSwap(nil, &caller{principal: "User:" + subject}) {
		return signInAt, errors.New("sign in to broker: the connection is already signed in")
	}
	return signInAt, nil
}

var errNotSignedIn = errors.New("request before signing in")

// serve carries out requests, one after another, until the connection ends.
func (c *conn) serve() error {
	for {
		in, err := readFrame(c.Conn)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrClosedPipe) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := c.serveRequest(in); err != nil {
			return err
		}
	}
}

// serveRequest carries out a request and sends its response, if it has one.
func (c *conn) serveRequest(in frame) error {
	done, err := c.admit(in.bytes)
	if err != nil {
		return err
	}
	response, used, err := c.respond(in)
	done()
	if err == nil && len(response) > 0 {
		_, err = c.Conn.Write(response)
	}
	for _, f := range used {
		f.free()
	}
	return err
}

// A request can need far more memory than it has bytes: an element of one or two bytes may take
// hundreds of bytes while the request is carried out. Every connection may send such a request. So
// the large requests that are carried out at the same time may have at most largeRequestBudget in
// total.
const (
	largeRequestBudget    = 256 << 10 // total size of the large requests that are carried out at the same time
	smallRequestBytes     = 1 << 10   // smaller requests are not counted
	maxClientRequestBytes = 1 << 20   // largest request of a client, unless it is Produce; the gateway has the same limit
)

// admit waits until a request may be carried out within largeRequestBudget. It returns an error if the
// request is larger than its sender may send. The caller must call done afterwards. Small requests and Produce are not counted. Neither are requests that may block
// for long (Fetch, JoinGroup and SyncGroup), because they would keep their share while they wait.
func (c *conn) admit(request []byte) (done func(), err error) {
	size := int64(min(len(request), largeRequestBudget))
	if size < smallRequestBytes {
		return func() {}, nil
	}
	key := kmsg.Key(binary.BigEndian.Uint16(request))
	if who := c.caller.Load(); len(request) > maxClientRequestBytes && key != kmsg.Produce && (who == nil || !who.super) {
		return nil, fmt.Errorf("request %d of %d bytes", key, len(request))
	}
	switch key {
	case kmsg.Produce, kmsg.Fetch, kmsg.JoinGroup, kmsg.SyncGroup:
		return func() {}, nil
	}
	if err := c.b.largeRequests.Acquire(c.ctx, size); err != nil {
		return nil, err
	}
	return func() { c.b.largeRequests.Release(size) }, nil
}

// respond carries out a request and returns the bytes to send, which are empty if there is no
// response. The caller frees the used frames after it has sent the response.
func (c *conn) respond(in frame) (sent []byte, used []frame, err error) {
	r, correlation, err := c.parse(in.bytes)
	if err != nil {
		return nil, nil, err
	}
	var response kmsg.Response
	if r.Request == nil {
		response = apiVersionsUnsupported()
	} else if response, err = apis()[r.Key()].handle(c.b, r); err != nil {
		return nil, nil, err
	}
	used = r.frames
	if response != nil {
		out := takeFrame(r.sizeHint)
		sent = appendResponse(out.bytes[:0], correlation, response)
		used = append(used, out)
	}
	if _, ok := r.Request.(*kmsg.ProduceRequest); ok {
		used = append(used, in) // nothing keeps a reference into a Produce request; package groups may keep one into others
	}
	return sent, used, nil
}

// parse parses a request. Its byte slices refer to the frame. For an ApiVersions request of an
// unknown version, r.Request is nil, because only its header can be parsed.
//
// The gateway has checked the layout of the request. Without that check a client could keep the
// broker busy: kmsg loops over whatever number of tags a request claims to have.
func (c *conn) parse(frame []byte) (r *request, correlation int32, err error) {
	in := kbin.Reader{Src: frame}
	key, version, correlation := in.Int16(), in.Int16(), in.Int32()
	clientID := in.NullableString()
	known, ok := apis()[key]
	r = &request{ctx: c.ctx, conn: c}
	if who := c.caller.Load(); who != nil {
		r.caller = *who
	}
	if clientID != nil {
		r.clientID = *clientID
	}
	switch {
	case !in.Ok():
		return nil, 0, errors.New("request without a header")
	case key == kmsg.ApiVersions.Int16() && version > known.max:
		return r, correlation, nil
	case !ok || version < known.min || version > known.max:
		return nil, 0, fmt.Errorf("request %d version %d is not supported", key, version)
	case r.caller == caller{} && key != kmsg.ApiVersions.Int16():
		return nil, 0, errNotSignedIn
	}
	r.Request = kmsg.RequestForKey(key)
	r.SetVersion(version)
	if r.IsFlexible() {
		kmsg.SkipTags(&in)
	}
	if err := errors.Join(in.Complete(), r.ReadFrom(in.Src)); err != nil {
		return nil, 0, fmt.Errorf("request %d version %d: %w", key, version, err)
	}
	return r, correlation, nil
}

// appendResponse appends a response to out, with its size and header.
func appendResponse(out []byte, correlation int32, response kmsg.Response) []byte {
	at := len(out)
	out = append(out, 0, 0, 0, 0)
	out = binary.BigEndian.AppendUint32(out, uint32(correlation))
	if response.IsFlexible() && response.Key() != kmsg.ApiVersions.Int16() {
		out = append(out, 0) // no tagged fields
	}
	out = response.AppendTo(out)
	binary.BigEndian.PutUint32(out[at:], uint32(len(out)-at-4))
	return out
}
