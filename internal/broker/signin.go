package broker

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"regexp"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// PLAIN is out of the question: kfake writes its passwords to disk in clear,
// and takes an unknown user with an empty password.
const (
	scramMechanism  = "SCRAM-SHA-256"
	scramIterations = 4096 // the least that Kafka takes
)

// subjectPattern keeps out what has a meaning in ACLs ("*") or SASL (",", "=").
var subjectPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,127}$`)

// SignIn logs conn, fresh from [Broker.Dial], in as User:<subject>. The
// subject needs no preparation: its credential is made at first use, is known
// to this process only and never ends, so expiry is the caller's to enforce.
// After an error conn is of no more use.
func (b *Broker) SignIn(ctx context.Context, conn net.Conn, subject string, _ time.Time) error {
	if !subjectPattern.MatchString(subject) {
		return fmt.Errorf("sign in to broker: %q cannot be a subject", subject)
	}
	salted, err := b.subjects.ensure(ctx, subject)
	if err != nil {
		return fmt.Errorf("sign in to broker: credential: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := authenticate(conn, subject, salted); err != nil {
		return fmt.Errorf("sign in to broker: %w", err)
	}
	return nil
}

func authenticate(conn net.Conn, subject string, salted []byte) error {
	handshake := kmsg.NewPtrSASLHandshakeRequest()
	handshake.Version, handshake.Mechanism = 1, scramMechanism
	response := kmsg.NewPtrSASLHandshakeResponse()
	if err := roundTrip(conn, handshake, response); err != nil {
		return err
	}
	if err := kerr.ErrorForCode(response.ErrorCode); err != nil {
		return err
	}
	client := scramClient{salted: salted}
	serverFirst, err := sendSASL(conn, client.first(subject))
	if err != nil {
		return err
	}
	final, err := client.final(serverFirst)
	if err != nil {
		return err
	}
	serverFinal, err := sendSASL(conn, final)
	if err != nil {
		return err
	}
	return client.verify(serverFinal)
}

func sendSASL(conn net.Conn, message []byte) ([]byte, error) {
	request := kmsg.NewPtrSASLAuthenticateRequest()
	request.Version, request.SASLAuthBytes = 1, message
	response := kmsg.NewPtrSASLAuthenticateResponse()
	response.Version = 1
	if err := roundTrip(conn, request, response); err != nil {
		return nil, err
	}
	return response.SASLAuthBytes, kerr.ErrorForCode(response.ErrorCode)
}

const maxSignInResponseBytes = 1 << 16

// roundTrip sends one request and reads its response. Neither is flexible.
func roundTrip(conn net.Conn, request kmsg.Request, response kmsg.Response) error {
	frame := kmsg.NewRequestFormatter(kmsg.FormatterClientID("diaspora")).AppendRequest(nil, request, 0)
	if _, err := conn.Write(frame); err != nil {
		return err
	}
	var header [8]byte // size and correlation ID
	if _, err := io.ReadFull(conn, header[:]); err != nil {
		return err
	}
	size := binary.BigEndian.Uint32(header[:4])
	if size < 4 || size > maxSignInResponseBytes {
		return fmt.Errorf("response of %d bytes", size)
	}
	body := make([]byte, size-4)
	if _, err := io.ReadFull(conn, body); err != nil {
		return err
	}
	return response.ReadFrom(body)
}
