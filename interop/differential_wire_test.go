package interop

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl"
)

// wire is a connection to a broker. In contrast to a client, it sends each request unchanged, in
// the request's own version, and never retries. At most one request is in flight.
type wire struct {
	conn net.Conn
	next int32 // correlation ID of the last request
}

// errClosed means that the broker closed the connection instead of answering.
var errClosed = errors.New("the broker closed the connection")

// answerPatience is the maximum time to wait for a response.
const answerPatience = 20 * time.Second

// send writes a request.
func (w *wire) send(request kmsg.Request) error {
	w.next++
	formatter := kmsg.NewRequestFormatter(kmsg.FormatterClientID("differential"))
	if _, err := w.conn.Write(formatter.AppendRequest(nil, request, w.next)); err != nil {
		return fmt.Errorf("%w: %v", errClosed, err)
	}
	return nil
}

// receive reads the response to a request that was sent. It gives up if none begins within
// patience.
func (w *wire) receive(request kmsg.Request, patience time.Duration) (kmsg.Response, error) {
	w.conn.SetReadDeadline(time.Now().Add(patience))
	var size [4]byte
	if _, err := io.ReadFull(w.conn, size[:]); err != nil {
		return nil, closed(err)
	}
	w.conn.SetReadDeadline(time.Now().Add(answerPatience))
	frame := make([]byte, binary.BigEndian.Uint32(size[:]))
	if _, err := io.ReadFull(w.conn, frame); err != nil {
		return nil, closed(err)
	}
	header := 4 // size of the correlation ID
	if request.IsFlexible() && request.Key() != int16(kmsg.ApiVersions) {
		header++ // no tagged fields
	}
	if len(frame) < header || binary.BigEndian.Uint32(frame) != uint32(w.next) {
		return nil, fmt.Errorf("an answer of %d bytes is not to the last request", len(frame))
	}
	response := request.ResponseKind()
	if err := response.ReadFrom(frame[header:]); err != nil {
		return nil, fmt.Errorf("read %T version %d: %w", response, request.GetVersion(), err)
	}
	return response, nil
}

// closed distinguishes a closed connection from one that does not respond.
func closed(err error) error {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return err
	}
	return fmt.Errorf("%w: %v", errClosed, err)
}

// Request implements kmsg.Requestor.
func (w *wire) Request(_ context.Context, request kmsg.Request) (kmsg.Response, error) {
	if err := w.send(request); err != nil {
		return nil, err
	}
	return w.receive(request, answerPatience)
}

// signIn authenticates a connection with SASL.
func signIn(ctx context.Context, w *wire, mechanism sasl.Mechanism) error {
	handshake := kmsg.NewPtrSASLHandshakeRequest()
	handshake.Version, handshake.Mechanism = 1, mechanism.Name()
	hands, err := handshake.RequestWith(ctx, w)
	if err != nil {
		return err
	}
	if err := kerr.ErrorForCode(hands.ErrorCode); err != nil {
		return err
	}
	session, message, err := mechanism.Authenticate(ctx, w.conn.RemoteAddr().String())
	if err != nil {
		return err
	}
	for done := false; !done; {
		authenticate := kmsg.NewPtrSASLAuthenticateRequest()
		authenticate.Version, authenticate.SASLAuthBytes = 1, message
		answer, err := authenticate.RequestWith(ctx, w)
		if err != nil {
			return err
		}
		if err := kerr.ErrorForCode(answer.ErrorCode); err != nil {
			return err
		}
		if done, message, err = session.Challenge(answer.SASLAuthBytes); err != nil {
			return err
		}
	}
	return nil
}
