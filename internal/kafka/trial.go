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

// Trial decides whether it is worth trying again when a service has refused an access
// token that is not due yet: it was revoked and given again, or a clock is wrong. Then the token
// source is told, and gets another. If that is refused as well, the refusal stands.
// A Trial belongs to one service; its methods may be called concurrently.
type Trial struct {
	source globus.TokenSource
	turn   chan struct{} // holds a value while somebody asks for another token
	until  time.Time     // no token is replaced before, unless one was accepted since; owned by who has the turn

	accepted atomic.Bool // a token was, since the last one was replaced
}

// trialPause is how long a service that refuses each token is not shown a new one: Globus
// Auth is not to be asked at every attempt to connect.
const trialPause = time.Minute

// NewTrial returns a Trial of the source's tokens.
func NewTrial(source globus.TokenSource) *Trial {
	return &Trial{source: source, turn: make(chan struct{}, 1)}
}

// Accepted takes note that the service took a token.
func (t *Trial) Accepted() { t.accepted.Store(true) }

// Refused is told that the service refused a token, and reports whether to try again: there
// is another token, or the source has more to say of why there is none.
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

// trials are the Trials of a client, by the address of the broker.
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

// A trialConn makes a refused login a failure that passes, if it is worth trying again.
// The Kafka client takes a refusal for the last word: it fails what it was about to do, in many
// places, and never tells the mechanism. So its answer is read here, before the client sees it.
// The client sends nothing else while it signs in, and nothing is on its way when it signs in anew.
type trialConn struct {
	net.Conn
	trial *Trial
	login atomic.Pointer[loginFrame] // whose answer is awaited
	ahead []byte                     // what was read and not yet handed on
}

// loginFrame is what matters of a request to sign in.
type loginFrame struct {
	id       []byte // of the request
	flexible bool   // the answer's header has tags
	token    func() globus.Secret
}

const (
	saslAuthenticate = 36
	maxLoginAnswer   = 64 << 10
)

func (c *trialConn) Write(b []byte) (int, error) {
	// A frame: size (4 bytes), kind of request (2), version (2), id (4), …
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

// readAnswer reads the answer to a login. It returns an error that passes if the login was
// refused and should be tried again; else Read hands the answer on.
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

// errAnotherToken says that the connection is to be made again.
var errAnotherToken error = anotherToken{}

type anotherToken struct{}

func (anotherToken) Error() string {
	return "the access token was refused before its time; trying another"
}
func (anotherToken) Temporary() bool { return true } // the Kafka client tries again
