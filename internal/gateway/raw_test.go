package gateway

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// raw is a client that can send any bytes.
type raw struct {
	net.Conn
	t testing.TB
}

// impatience is how long a raw client waits for an answer.
const impatience = 10 * time.Second

func (f *front) dial(t testing.TB) *raw {
	t.Helper()
	conn, err := f.connect(t.Context())
	return newRaw(t, conn, err)
}

func (f *front) dialFrom(t testing.TB, address string) *raw {
	t.Helper()
	conn, err := f.memory.dialFrom(t.Context(), address)
	return newRaw(t, conn, err)
}

func newRaw(t testing.TB, conn net.Conn, err error) *raw {
	t.Helper()
	testkit.Must(t, err)
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(impatience))
	return &raw{Conn: conn, t: t}
}

// login opens a connection that is signed in.
func (f *front) login(t testing.TB, token string) *raw {
	t.Helper()
	c := f.dial(t)
	c.wantLogin(token)
	return c
}

func (c *raw) wantLogin(token string) *kmsg.SASLAuthenticateResponse {
	c.t.Helper()
	response := c.authenticate(token)
	if response.ErrorCode != 0 {
		c.t.Fatalf("login: error %d: %s", response.ErrorCode, *response.ErrorMessage)
	}
	return response
}

// wantRefusal fails unless a login with the token is refused with a sentence. Then it closes the
// connection.
func (c *raw) wantRefusal(token, words string) {
	c.t.Helper()
	response := c.authenticate(token)
	switch {
	case response.ErrorCode != kerr.SaslAuthenticationFailed.Code || response.ErrorMessage == nil:
		c.t.Fatalf("login: error %d, want SASL_AUTHENTICATION_FAILED", response.ErrorCode)
	case !strings.Contains(*response.ErrorMessage, words) || strings.Contains(*response.ErrorMessage, token):
		c.t.Errorf("login: %q, want %q in it and no token", *response.ErrorMessage, words)
	}
	c.Close()
}

// wantAlive fails unless the gateway answers another request on the connection.
func (c *raw) wantAlive() {
	c.t.Helper()
	c.SetDeadline(time.Now().Add(impatience))
	r := kmsg.NewPtrMetadataRequest()
	r.Version = 1
	c.ask(r)
}

// lifetime returns how long it takes until the gateway closes the connection.
func (c *raw) lifetime() time.Duration {
	began := time.Now()
	c.SetDeadline(time.Time{})
	io.Copy(io.Discard, c)
	return time.Since(began)
}

// authenticate does a handshake and a login.
func (c *raw) authenticate(token string) *kmsg.SASLAuthenticateResponse {
	c.t.Helper()
	c.handshake(1)
	return c.ask(saslAuthenticate(1, oauthMessage(token))).(*kmsg.SASLAuthenticateResponse)
}

func (c *raw) handshake(version int16) {
	c.t.Helper()
	if response := c.ask(saslHandshake(version, "OAUTHBEARER")).(*kmsg.SASLHandshakeResponse); response.ErrorCode != 0 {
		c.t.Fatalf("handshake: error %d", response.ErrorCode)
	}
}

// loginRaw does a login without Kafka headers, as old clients do.
func (c *raw) loginRaw(token string) {
	c.t.Helper()
	c.handshake(0)
	c.send(frame(oauthMessage(token)))
	if answer, err := c.frame(); err != nil || len(answer) != 0 {
		c.t.Fatalf("raw login: answer %x, %v; want an empty frame", answer, err)
	}
}

func oauthMessage(token string) []byte {
	return []byte("n,,\x01auth=Bearer " + token + "\x01\x01")
}

func saslHandshake(version int16, mechanism string) kmsg.Request {
	r := kmsg.NewPtrSASLHandshakeRequest()
	r.Version, r.Mechanism = version, mechanism
	return r
}

func saslAuthenticate(version int16, message []byte) kmsg.Request {
	r := kmsg.NewPtrSASLAuthenticateRequest()
	r.Version, r.SASLAuthBytes = version, message
	return r
}

func apiVersions(version int16) *kmsg.ApiVersionsRequest {
	r := kmsg.NewPtrApiVersionsRequest()
	r.Version, r.ClientSoftwareName, r.ClientSoftwareVersion, r.NodeID = version, "test", "1", -1
	return r
}

// send writes bytes unchanged. It ignores errors, because the reader notices if the gateway has
// closed the connection.
func (c *raw) send(b []byte) { c.Write(b) }

// ask sends a request and returns its response.
func (c *raw) ask(request kmsg.Request) kmsg.Response {
	c.t.Helper()
	c.send(appendRequest(request, 42))
	response, err := c.response(request, 42)
	if err != nil {
		c.t.Fatalf("%s: %v", kmsg.NameForKey(request.Key()), err)
	}
	return response
}

// response reads the response to a request.
func (c *raw) response(request kmsg.Request, correlation int32) (kmsg.Response, error) {
	frame, err := c.frame()
	if err != nil {
		return nil, err
	}
	if len(frame) < 4 || int32(binary.BigEndian.Uint32(frame)) != correlation {
		return nil, fmt.Errorf("response %x, want correlation ID %d", frame, correlation)
	}
	response := request.ResponseKind()
	frame = frame[4:]
	if response.IsFlexible() && response.Key() != keyApiVersions {
		frame = frame[1:]
	}
	return response, response.ReadFrom(frame)
}

func (c *raw) frame() ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return nil, err
	}
	frame := make([]byte, binary.BigEndian.Uint32(size[:]))
	_, err := io.ReadFull(c, frame)
	return frame, err
}

// wantClosed fails unless the gateway closes the connection, whatever it sends before.
func (c *raw) wantClosed() {
	c.t.Helper()
	_, err := io.Copy(io.Discard, c)
	if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
		c.t.Errorf("the connection is still open after %v, want it closed", impatience)
	}
}
