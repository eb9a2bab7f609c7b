package kafka

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/diaspora-streams/diaspora/globus"
)

// Trial decides whether to retry after a service has refused an access token that has not expired.
// This happens if the token was revoked and the user has logged in again, or if a clock is wrong.
// Trial then tells the token source, which gets another token. If that one is refused too, the
// refusal is final. A Trial is for one service. Its methods may be called concurrently.
type Trial struct {
	source globus.TokenSource
	turn   chan struct{} // a semaphore: holds a value while a goroutine is asking for another token
	// Until then no token is replaced, unless one was accepted in the meantime; owned by the holder
	// of turn.
	until time.Time

	accepted atomic.Bool // a token was accepted since the last one was replaced
}

// trialPause is the minimum time between two replacements of tokens if the service has accepted none in
// between. Without it, a client of a service that refuses every token would ask Globus Auth for a token
// at every attempt to connect.
const trialPause = time.Minute

// NewTrial returns a Trial of the source's tokens.
func NewTrial(source globus.TokenSource) *Trial {
	return &Trial{source: source, turn: make(chan struct{}, 1)}
}

// Accepted records that the service accepted a token.
func (t *Trial) Accepted() { t.accepted.Store(true) }

// Refused records that the service refused a token. It reports whether to retry: either the source
// has another token, or it now returns an error that says why it has none.
func (t *Trial) Refused(ctx context.Context, token globus.Secret) bool {
	source, ok := t.source.(interface{ Refused(globus.Secret) })
	if !ok {
		return false
	}
	select {
	case t.turn <- struct{}{}:
		defer func() { <-t.turn }()
	case <-ctx.Done():
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, tokenTimeout)
	defer cancel()
	another := func() bool {
		now, err := t.source.Token(ctx)
		return err != nil || now.AccessToken != token
	}
	if another() {
		return true
	}
	if !t.accepted.Swap(false) && time.Now().Before(t.until) {
		return false
	}
	t.until = time.Now().Add(trialPause)
	source.Refused(token)
	return another()
}

// trials are the Trials of a client, by broker address.
type trials struct {
	source globus.TokenSource
	mu     sync.Mutex // guards the field below
	by     map[string]*Trial
}

func (t *trials) of(address string) *Trial {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.by == nil {
		t.by = map[string]*Trial{}
	}
	if t.by[address] == nil {
		t.by[address] = NewTrial(t.source)
	}
	return t.by[address]
}

// A trialConn turns a refused login into a temporary error if it is worth retrying. The Kafka
// client itself treats a refusal as final: it fails pending requests in many places, and does not
// tell the mechanism. So trialConn reads the answer to a login before the client sees it. That is
// safe because the client has no other request in flight during a login.
type trialConn struct {
	net.Conn
	trial *Trial
	login atomic.Pointer[loginFrame] // the login whose answer is pending
	ahead []byte                     // bytes that were read and not yet returned
}

// loginFrame is what trialConn needs to know of a login request.
type loginFrame struct {
	id       []byte // correlation ID of the request
	flexible bool   // the answer's header has tagged fields
	token    func() globus.Secret
}

const (
	saslAuthenticate = 36
	maxLoginAnswer   = 64 << 10
)

func (c *trialConn) Write(b []byte) (int, error) {
	// A frame begins with size (4 bytes), API key (2), version (2) and correlation ID (4).
	if len(b) > 12 && binary.BigEndian.Uint16(b[4:]) == saslAuthenticate {
		_, rest, _ := bytes.Cut(b[12:], []byte("auth=Bearer "))
		token, _, ok := bytes.Cut(rest, []byte{1})
		if secret := globus.Secret(token); ok {
			c.login.Store(&loginFrame{
				id: bytes.Clone(b[8:12]), flexible: binary.BigEndian.Uint16(b[6:]) >= 2,
				token: func() globus.Secret { return secret },
			})
		}
	}
	return c.Conn.Write(b)
}

func (c *trialConn) Read(b []byte) (int, error) {
	if login := c.login.Swap(nil); login != nil {
		if err := c.readAnswer(login); err != nil {
			return 0, err
		}
	}
	if len(c.ahead) > 0 {
		n := copy(b, c.ahead)
		c.ahead = c.ahead[n:]
		return n, nil
	}
	return c.Conn.Read(b)
}

// readAnswer reads the answer to a login. If the login was refused and is worth retrying, it
// returns a temporary error. Otherwise Read returns the answer to the client.
func (c *trialConn) readAnswer(login *loginFrame) error {
	head := make([]byte, 4)
	if _, err := io.ReadFull(c.Conn, head); err != nil {
		return err
	}
	c.ahead = head
	size := binary.BigEndian.Uint32(head)
	if size > maxLoginAnswer {
		return nil
	}
	answer := make([]byte, size)
	n, err := io.ReadFull(c.Conn, answer)
	c.ahead = append(head, answer[:n]...)
	if err != nil {
		return err
	}
	rest, ok := bytes.CutPrefix(answer, login.id)
	if ok && login.flexible {
		rest, ok = bytes.CutPrefix(rest, []byte{0})
	}
	switch {
	case !ok || len(rest) < 2:
	case binary.BigEndian.Uint16(rest) == 0:
		c.trial.Accepted()
	case bytes.Contains(rest, []byte(CannotTell)): // another token does not help
	case int16(binary.BigEndian.Uint16(rest)) == kerr.SaslAuthenticationFailed.Code:
		if c.trial.Refused(context.Background(), login.token()) {
			return errAnotherToken
		}
	}
	return nil
}

// errAnotherToken makes the client connect again.
var errAnotherToken error = anotherToken{}

type anotherToken struct{}

func (anotherToken) Error() string {
	return "the access token was refused before its time; trying another"
}
func (anotherToken) Temporary() bool { return true } // makes the Kafka client retry
