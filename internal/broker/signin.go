package broker

import (
	"context"
	"fmt"
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

// SignIn logs a connection, fresh from [Broker.Dial], in as User:<subject>. The
// subject needs no preparation: its credential is made at first use and is known
// to this process only. The session never ends, so there is no again. After an
// error the connection is of no more use.
func (b *Broker) SignIn(ctx context.Context, conn kmsg.Requestor, subject string) (again time.Time, err error) {
	if !subjectPattern.MatchString(subject) {
		return again, fmt.Errorf("sign in to broker: %q cannot be a subject", subject)
	}
	salted, err := b.subjects.ensure(ctx, subject)
	if err != nil {
		return again, fmt.Errorf("sign in to broker: credential: %w", err)
	}
	if err := authenticate(ctx, conn, subject, salted); err != nil {
		return again, fmt.Errorf("sign in to broker: %w", err)
	}
	return again, nil
}

func authenticate(ctx context.Context, conn kmsg.Requestor, subject string, salted []byte) error {
	handshake := kmsg.NewPtrSASLHandshakeRequest()
	handshake.Version, handshake.Mechanism = 1, scramMechanism
	response, err := handshake.RequestWith(ctx, conn)
	if err != nil {
		return err
	}
	if err := kerr.ErrorForCode(response.ErrorCode); err != nil {
		return err
	}
	client := scramClient{salted: salted}
	serverFirst, err := sendSASL(ctx, conn, client.first(subject))
	if err != nil {
		return err
	}
	final, err := client.final(serverFirst)
	if err != nil {
		return err
	}
	serverFinal, err := sendSASL(ctx, conn, final)
	if err != nil {
		return err
	}
	return client.verify(serverFinal)
}

func sendSASL(ctx context.Context, conn kmsg.Requestor, message []byte) ([]byte, error) {
	request := kmsg.NewPtrSASLAuthenticateRequest()
	request.Version, request.SASLAuthBytes = 1, message
	response, err := request.RequestWith(ctx, conn)
	if err != nil {
		return nil, err
	}
	return response.SASLAuthBytes, kerr.ErrorForCode(response.ErrorCode)
}
