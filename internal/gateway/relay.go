package gateway

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// relay relays requests to the broker and responses back until either side closes the connection.
func (c *conn) relay(ctx context.Context) error {
	c.relayDone = make(chan struct{})
	go c.relayResponses(ctx)
	err := c.relayRequests(ctx)
	c.close()
	<-c.relayDone
	return err
}

func (c *conn) relayRequests(ctx context.Context) error {
	for c.markIdle() {
		size, err := c.fromClient.size()
		if err != nil && c.draining() {
			break // drain has ended the read; a request that has arrived in part is dropped
		}
		if err != nil {
			return err
		}
		if err := c.relayRequest(ctx, size); err != nil {
			return err
		}
	}
	c.finish(ctx)
	return nil
}

// relayRequest relays one request. size is the size from its frame.
func (c *conn) relayRequest(ctx context.Context, size int) error {
	if size < headerBytes || size > c.g.cfg.MaxRequestBytes {
		return frameError("size %d", size)
	}
	defer c.beginRequest(c.fromClient.buffered() >= 4+size)()
	b, err := c.fromClient.peek(4 + headerBytes)
	if err != nil {
		return unexpected(err)
	}
	h := parseHeader(b[4:])
	if err := c.signInAgain(ctx); err != nil {
		return err
	}
	switch {
	case h.key == keySaslHandshake:
		return c.loginAgain(ctx)
	case !c.expiry.After(time.Now()):
		return errExpired
	case h.key == keyApiVersions:
		return c.answerApiVersionsAgain(ctx)
	case h.key == keySaslAuthenticate || !c.versions.allow(h):
		return frameError("%v", h)
	case h.key != keyProduce && size > maxSmallRequestBytes:
		return frameError("%v of %d bytes", h, size)
	}
	frame, free, err := c.holdRequest(ctx, size)
	if err != nil {
		return err
	}
	defer free()
	if err := c.signInAgain(ctx); err != nil { // time has passed while the request arrived
		return err
	}
	if !c.expiry.After(time.Now()) {
		return errExpired
	}
	return c.sendRequest(ctx, h, frame)
}

// sendRequest sends a request to the broker. frame is the whole request, its size included.
func (c *conn) sendRequest(ctx context.Context, h header, frame []byte) error {
	unanswered, err := checkRequest(frame[4:], h, c.g.fetchLimit())
	if err != nil {
		return err
	}
	if h.key == keyFetch && !c.canRead {
		return c.refuseFetch(ctx, h, frame)
	}
	if changesTopics(h.key) {
		if answered, err := c.refuseTopics(ctx, h, frame); answered || err != nil {
			return err
		}
	}
	if namesGroups().requests[h.key] {
		if frame, err = c.prefixGroups(h, frame); err != nil {
			return err
		}
	}
	if !unanswered && !c.flight.add(pending{header: h}) {
		return errBrokerGone
	}
	c.lastKey = h.key
	_, err = c.upstream.Write(frame)
	return err
}

// answerApiVersionsAgain answers an ApiVersions request after the login, which some clients make.
func (c *conn) answerApiVersionsAgain(ctx context.Context) error {
	_, frame, free, err := c.readOwnRequest(maxSmallRequestBytes)
	if err != nil {
		return err
	}
	defer free()
	return c.answerApiVersions(ctx, relayRequestor{c}, frame)
}

// loginAgain handles a client that logs in again on the same connection (KIP-368), beginning with a
// handshake. Answers must come in the order of the requests. So it first waits until the broker has
// answered all earlier requests, and reads no further request before the login is over.
func (c *conn) loginAgain(ctx context.Context) error {
	if _, err := (relayRequestor{c}).Request(ctx, kmsg.NewPtrApiVersionsRequest()); err != nil {
		return err
	}
	_, frame, free, err := c.readOwnRequest(maxLoginBytes)
	if err != nil {
		return err
	}
	defer free()
	m, raw, err := c.answerHandshake(frame)
	if err != nil {
		return err
	}
	if m == nil || raw {
		return frameError("repeated login with an unknown mechanism or with SaslHandshake version 0")
	}
	defer c.beginRequest(false)()
	ctx, cancel := context.WithTimeout(ctx, c.g.cfg.LoginTimeout)
	defer cancel()
	return c.loginFramed(ctx, m)
}

// signInAgain signs in to the broker again if that is due. Since the broker answers in order, the
// client has the answers to all its earlier requests by then.
func (c *conn) signInAgain(ctx context.Context) (err error) {
	if c.signInAt.IsZero() {
		return nil
	}
	// A rebalance can take minutes. Until the broker has answered such a request, it reads no
	// other. If the session ended in the meantime, it would close the connection on reading the
	// next request. So wait for the rebalance first, then check the time.
	c.flight.awaitGroup()
	if time.Now().Before(c.signInAt) {
		return nil
	}
	if c.signInAt, err = c.g.cfg.Upstream.SignIn(ctx, c.upstream, relayRequestor{c}, c.principal); err != nil {
		return brokerError("sign in again", err)
	}
	return nil
}

// shortDrain is how long finish waits if the last request is one that waits for an event: for
// records, or for other members of a group. Such a request can be cut off, because the client
// repeats it. Earlier requests of other types finish within this time.
const shortDrain = 500 * time.Millisecond

// finish waits, when the gateway stops, until the broker has answered all requests.
func (c *conn) finish(ctx context.Context) {
	c.mu.Lock()
	limit := c.drainDeadline
	c.mu.Unlock()
	switch c.lastKey {
	case keyFetch, keyShareFetch, keyJoinGroup:
		if short := time.Now().Add(shortDrain); short.Before(limit) {
			limit = short
		}
	}
	ctx, cancel := context.WithDeadline(ctx, limit)
	defer cancel()
	c.upstream.SetWriteDeadline(limit)
	if _, err := (relayRequestor{c}).Request(ctx, kmsg.NewPtrApiVersionsRequest()); err == nil {
		c.hangUp()
	}
}

// relayResponses relays the broker's answers to the client.
func (c *conn) relayResponses(ctx context.Context) {
	defer close(c.relayDone)
	defer c.flight.close()
	defer c.close()
	for {
		b, err := c.fromBroker.peek(8)
		if err != nil {
			return
		}
		if err := c.relayResponse(ctx, int(binary.BigEndian.Uint32(b)), int32(binary.BigEndian.Uint32(b[4:]))); err != nil {
			return
		}
	}
}

// relayResponse relays one answer. size is the size from its frame.
func (c *conn) relayResponse(ctx context.Context, size int, correlation int32) error {
	p, ok := c.flight.next(correlation)
	switch {
	case !ok:
		err := fmt.Errorf("%w: unexpected response", errBroker)
		c.g.logBroker.Do(func() { c.g.cfg.Diagnostics.Warn("connection closed", "err", err) })
		return err
	case p.answer != nil:
		answer, err := readResponse(c.fromBroker)
		if err != nil {
			return err
		}
		p.answer <- answer
		return nil
	case namesGroups().answers[p.key]:
		return c.relayGroupResponse(ctx, size, p)
	}
	return c.relayFrame(4 + size)
}

// chunkBytes is how much of an answer is copied at a time.
const chunkBytes = 64 << 10

var chunks = sync.Pool{New: func() any { return new([chunkBytes]byte) }}

// relayFrame relays an answer without looking at it. n is the size of its whole frame.
func (c *conn) relayFrame(n int) error {
	if n <= c.fromBroker.buffered() {
		frame, _ := c.fromBroker.peek(n)
		c.fromBroker.discard(n)
		_, err := c.Write(frame)
		return err
	}
	n, err := c.copyFrame(n, chunkBytes)
	if err != nil || n == 0 {
		return err
	}
	if c.direct != nil && n >= chunkBytes && c.g.splices.TryAcquire(1) {
		n, err = splice(c.direct, c.upstream.(*net.TCPConn), n)
		c.g.splices.Release(1)
	}
	if err == nil {
		_, err = c.copyFrame(n, n)
	}
	return err
}

// copyFrame copies the next most bytes of an answer, of which n bytes are left. It returns how many
// are left then. A client cannot use a part of an answer, so nothing is gained by sending a chunk
// before it is full.
func (c *conn) copyFrame(n, most int) (left int, err error) {
	chunk := chunks.Get().(*[chunkBytes]byte)
	defer chunks.Put(chunk)
	for end := max(0, n-most); n > end; {
		m := min(n, chunkBytes)
		filled := 0
		if c.fromBroker.buffered() > 0 {
			filled, _ = c.fromBroker.Read(chunk[:m])
		}
		// Read past the frameReader, which would read the last bytes into its own buffer first.
		if _, err := io.ReadFull(c.upstream, chunk[filled:m]); err != nil {
			return n, unexpected(err)
		}
		if _, err := c.Write(chunk[:m]); err != nil {
			return n, err
		}
		n -= m
	}
	return n, nil
}

// maxSplices limits the answers that are spliced at the same time. Each needs a pipe of up to 1 MiB,
// and Linux gives an ordinary user 64 MiB before it makes further pipes very small.
const maxSplices = 32
