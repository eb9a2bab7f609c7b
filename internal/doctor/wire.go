package doctor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// connection is a connection to a gateway that is opened step by step. A Kafka client would hide
// the single legs, and work around the faults that the checks are looking for.
type connection struct {
	net.Conn
	leaf    *x509.Certificate // the certificate that the gateway presented; nil for plaintext
	legs    []Leg
	session time.Duration // time until the login must be repeated; 0 means no limit
	asked   int32
}

const maxAnswerBytes = 16 << 20

func (c *connection) close() { c.Conn.Close() }

// connect opens a connection. Unless secure is nil, it uses TLS and performs the handshake.
func (v *visit) connect(ctx context.Context, address string, secure *tls.Config) (*connection, error) {
	c := &connection{}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	dial := address
	if _, err := netip.ParseAddr(host); err != nil {
		began := time.Now()
		found, err := v.Resolver.LookupNetIP(ctx, "ip", host)
		if err != nil {
			return nil, err
		}
		c.leg("DNS", began)
		if len(found) == 1 { // otherwise the dialer tries the addresses concurrently
			dial = net.JoinHostPort(found[0].String(), port)
		}
	}
	began := time.Now()
	conn, err := v.dialer().DialContext(ctx, "tcp", dial)
	if err != nil {
		return nil, err
	}
	c.Conn = conn
	c.leg("TCP", began)
	if secure == nil {
		return c, nil
	}
	began = time.Now()
	secure = secure.Clone()
	secure.ServerName = host
	encrypted := tls.Client(conn, secure)
	if err := encrypted.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	c.leg("TLS", began)
	c.Conn, c.leaf = encrypted, encrypted.ConnectionState().PeerCertificates[0]
	return c, nil
}

func (c *connection) leg(name string, began time.Time) {
	c.legs = append(c.legs, Leg{name, ms(time.Since(began))})
}

// signIn sends the credentials to the gateway with the given SASL mechanism.
func (c *connection) signIn(ctx context.Context, mechanism string, message []byte) error {
	began := time.Now()
	handshake := kmsg.NewPtrSASLHandshakeRequest()
	handshake.Version, handshake.Mechanism = 1, mechanism
	shaken, err := handshake.RequestWith(ctx, c)
	if err != nil {
		return err
	}
	if err := kerr.ErrorForCode(shaken.ErrorCode); err != nil {
		return err
	}
	login := kmsg.NewPtrSASLAuthenticateRequest()
	login.Version, login.SASLAuthBytes = 1, message
	answer, err := login.RequestWith(ctx, c)
	if err != nil {
		return err
	}
	if err := kerr.ErrorForCode(answer.ErrorCode); err != nil {
		if answer.ErrorMessage != nil && *answer.ErrorMessage != "" {
			return fmt.Errorf("%w: %s", err, *answer.ErrorMessage)
		}
		return err
	}
	c.session = time.Duration(answer.SessionLifetimeMillis) * time.Millisecond
	c.leg("sign-in", began)
	return nil
}

// Request implements [kmsg.Requestor]. It must not be called concurrently.
func (c *connection) Request(ctx context.Context, req kmsg.Request) (kmsg.Response, error) {
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	c.asked++
	formatter := kmsg.NewRequestFormatter(kmsg.FormatterClientID("diaspora-doctor"))
	if _, err := c.Write(formatter.AppendRequest(nil, req, c.asked)); err != nil {
		return nil, err
	}
	var head [8]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if correlation := int32(binary.BigEndian.Uint32(head[4:])); correlation != c.asked || size < 4 || size > maxAnswerBytes {
		return nil, errNotKafka
	}
	body := make([]byte, size-4)
	if _, err := io.ReadFull(c, body); err != nil {
		return nil, err
	}
	resp := req.ResponseKind()
	if err := resp.ReadFrom(body); err != nil {
		return nil, errNotKafka
	}
	return resp, nil
}

var errNotKafka = errors.New("what answers there does not speak Kafka")
