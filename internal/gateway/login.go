package gateway

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/admission"
	"github.com/diaspora-streams/diaspora/internal/backoff"
	"github.com/diaspora-streams/diaspora/internal/kafka"
)

const (
	maxLoginRequests = 16       // a client needs three
	smallLoginBytes  = 16 << 10 // a larger login request counts in the memory budget
)

var (
	errBroker     = errors.New("broker")
	errCannotTell = errors.New("the identity cannot be verified now")
)

func brokerError(op string, err error) error {
	return fmt.Errorf("%w: %s: %w", errBroker, op, err)
}

// login handles a client's requests until it is signed in.
func (c *conn) login(ctx context.Context) error {
	for range maxLoginRequests {
		h, frame, free, err := c.readOwnRequest(maxLoginBytes)
		if err != nil {
			return err
		}
		done := false
		switch h.key {
		case keyApiVersions:
			if err = c.dial(ctx); err == nil {
				err = c.answerApiVersions(ctx, loginRequestor{c}, frame)
			}
		case keySaslHandshake:
			done, err = c.loginAfterHandshake(ctx, frame)
		default:
			err = frameError("%v before login", h)
		}
		free()
		if done || err != nil {
			return err
		}
	}
	return frameError("no login within %d requests", maxLoginRequests)
}

// readOwnRequest reads a whole request that the gateway answers itself. The caller calls free when
// the request has been handled.
func (c *conn) readOwnRequest(maxBytes int) (h header, frame []byte, free func(), err error) {
	frame, free, err = c.readFrame(headerBytes, maxBytes)
	if err != nil {
		return header{}, nil, nil, err
	}
	return parseHeader(frame), frame, free, nil
}

// readFrame reads a frame of minBytes to maxBytes bytes.
func (c *conn) readFrame(minBytes, maxBytes int) (frame []byte, free func(), err error) {
	size, err := c.fromClient.size()
	if err != nil {
		return nil, nil, err
	}
	if size < minBytes || size > maxBytes {
		return nil, nil, frameError("size %d", size)
	}
	free = func() {}
	if size > smallLoginBytes {
		if !c.g.loginBudget.TryAcquire(int64(size)) {
			return nil, nil, errBudget
		}
		free = func() { c.g.loginBudget.Release(int64(size)) }
	}
	c.fromClient.discard(4)
	frame, err = c.fromClient.readN(size)
	if err != nil {
		free()
		return nil, nil, err
	}
	return frame, free, nil
}

// loginAfterHandshake answers a handshake. If the client has chosen a mechanism, it also handles
// the login that follows.
func (c *conn) loginAfterHandshake(ctx context.Context, frame []byte) (done bool, err error) {
	mechanism, raw, err := c.answerHandshake(frame)
	if err != nil || mechanism == nil {
		return false, err
	}
	if raw {
		return true, c.loginRaw(ctx, mechanism)
	}
	return true, c.loginFramed(ctx, mechanism)
}

// answerHandshake answers SaslHandshake. The mechanism is nil if the gateway has none of that name;
// the client may then try another one. raw means that the following SASL messages have no Kafka
// header, as version 0 of the handshake requires.
func (c *conn) answerHandshake(frame []byte) (m *mechanism, raw bool, err error) {
	h, r := parseHead(frame)
	name := r.bytes(r.int16())
	if !r.done() || h.version < 0 || h.version > maxSaslHandshake {
		return nil, false, frameError("malformed %v", h)
	}
	response := kmsg.NewPtrSASLHandshakeResponse()
	response.Version = h.version
	response.SupportedMechanisms = mechanismNames()
	if m = mechanisms[string(name)]; m == nil {
		response.ErrorCode = kerr.UnsupportedSaslMechanism.Code
	}
	return m, h.version == 0, c.respond(h.correlation, response)
}

// loginFramed handles a login in a SaslAuthenticate request.
func (c *conn) loginFramed(ctx context.Context, m *mechanism) error {
	h, frame, free, err := c.readOwnRequest(maxLoginBytes)
	if err != nil {
		return err
	}
	defer free()
	message, err := parseSaslAuthenticate(frame)
	if err != nil {
		return err
	}
	response := kmsg.NewPtrSASLAuthenticateResponse()
	response.Version = h.version
	expiry, err := c.authenticate(ctx, m, message)
	if refusal := (*refusal)(nil); errors.As(err, &refusal) {
		response.ErrorCode = kerr.SaslAuthenticationFailed.Code
		response.ErrorMessage = kmsg.StringPtr(refusal.reason)
		return errors.Join(err, c.respond(h.correlation, response), c.linger(ctx))
	}
	if err != nil {
		return err
	}
	response.SASLAuthBytes = []byte{}
	response.SessionLifetimeMillis = max(1, time.Until(expiry).Milliseconds())
	return c.respond(h.correlation, response)
}

// loginRaw handles a login whose frame holds only the SASL message. It answers with an empty frame,
// or with the mechanism's own message for a refusal. Without that message, the client would take
// the closed connection for a network failure and retry forever.
func (c *conn) loginRaw(ctx context.Context, m *mechanism) error {
	message, free, err := c.readFrame(0, maxLoginBytes)
	if err != nil {
		return err
	}
	defer free()
	_, err = c.authenticate(ctx, m, message)
	if refusal := (*refusal)(nil); errors.As(err, &refusal) && m.refused != nil {
		return errors.Join(err, c.writeFrame(m.refused(refusal)), c.linger(ctx))
	}
	if err != nil {
		return err
	}
	return c.writeFrame(nil)
}

// linger waits up to lingerTimeout for the client to close the connection. It is called after a refusal,
// because kafka-python 3.0 does not read an answer if it already sees the end of the connection
// behind it.
func (c *conn) linger(ctx context.Context) error {
	c.client.SetReadDeadline(time.Now().Add(lingerTimeout))
	defer context.AfterFunc(ctx, func() { c.client.SetReadDeadline(time.Unix(1, 0)) })()
	io.Copy(io.Discard, c.client)
	return nil
}

// writeFrame sends the client a frame without a Kafka header.
func (c *conn) writeFrame(message []byte) error {
	_, err := c.client.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(message))), message...))
	return err
}

func parseSaslAuthenticate(frame []byte) ([]byte, error) {
	h, r := parseHead(frame)
	if h.key != keySaslAuthenticate || h.version < 0 || h.version > maxSaslAuthenticate {
		return nil, frameError("%v during login", h)
	}
	var message []byte
	if r.flexible {
		message, _ = r.compactBytes()
		r.skipTags()
	} else {
		message = r.bytes(r.int32())
	}
	if !r.done() {
		return nil, frameError("malformed %v", h)
	}
	return message, nil
}

// authenticate finds out the client's identity and, at the first login, signs in to the broker. It
// returns the time at which the login expires. A *refusal is final; authenticate has already waited
// for FailureDelay then. After any other error the client may retry.
func (c *conn) authenticate(ctx context.Context, m *mechanism, message []byte) (time.Time, error) {
	c.anonymous.SetChecking(true)
	defer c.anonymous.SetChecking(false)
	credentials, id, err := c.identify(ctx, m, message)
	if err == nil && c.subject == "" {
		err = c.signIn(ctx, id)
	} else if err == nil && c.principal != id.Principal {
		err = &refusal{reason: "the " + credentials.kind() + " belongs to another identity than this connection; open a new connection to change identities"}
	}
	if errors.As(err, new(*refusal)) {
		backoff.Sleep(ctx, c.g.cfg.FailureDelay)
	}
	if err != nil {
		return time.Time{}, err
	}
	c.g.counters.logins.Add(1)
	if !c.recordLogin(credentials, id) {
		return time.Time{}, errStopping
	}
	return id.Expiry, nil
}

// identify asks the Authenticator about the credentials in a SASL message. Credentials that were
// refused a moment ago are refused again with the same reason, without asking. So a program that
// keeps using a revoked token always learns why, and does not use up the failures that its address
// may make.
func (c *conn) identify(ctx context.Context, m *mechanism, message []byte) (Credentials, Identity, error) {
	parsed, err := m.parse(message)
	credentials := parsed.Credentials
	if err != nil {
		if _, ok := c.g.limits.guard.Malformed(c.caller()); !ok {
			err = errFailures
		}
		return credentials, Identity{}, err
	}
	if past := c.g.limits.refusedBefore(credentials); past != nil {
		return credentials, Identity{}, past
	}
	end, _, ok := c.g.limits.guard.Begin(ctx, c.caller(), hashOf(credentials))
	if !ok {
		return credentials, Identity{}, errFailures
	}
	id, err := c.g.cfg.Authenticator.Authenticate(globus.WithCaller(ctx, c.caller()), credentials)
	end(admission.OutcomeOf(err))
	switch {
	case errors.Is(err, globus.ErrRefused):
		refused := refusal{reason: credentials.refusedReason(err), err: err}
		c.g.limits.remember(credentials, refused)
		return credentials, id, &refused
	case errors.Is(err, globus.ErrMisconfigured):
		refused := refusal{reason: credentials.misconfiguredReason(err), err: err}
		c.g.limits.remember(credentials, refused)
		return credentials, id, &refused
	case err != nil:
		return credentials, id, fmt.Errorf("%w: %w", errCannotTell, err)
	case id.Subject == "" || id.Principal == "" || !id.Expiry.After(time.Now()):
		return credentials, id, &refusal{reason: "the " + credentials.kind() + " has expired" + credentials.hint()}
	case parsed.authzid != "" && parsed.authzid != id.Subject:
		return credentials, id, &refusal{reason: "the authorization ID is not the subject of the " + credentials.kind() + "; leave it out"}
	}
	return credentials, id, nil
}

// caller returns the key under which failed logins of this connection are counted: its address, or
// its subject once it is signed in. So a client that is signed in is not affected by others at its
// address that guess.
func (c *conn) caller() string {
	if c.subject != "" {
		return c.subject
	}
	return c.address.String()
}

// signIn signs the connection to the broker in as the identity's principal.
func (c *conn) signIn(ctx context.Context, id Identity) error {
	usage, err := c.g.limits.signIn(c.anonymous, id.Subject)
	if err != nil {
		return err
	}
	c.subject, c.principal, c.usage = id.Subject, id.Principal, usage
	c.canRead, c.groups = id.Read, groupPrefixOf(id)
	if err := c.dial(ctx); err != nil {
		return err
	}
	if c.signInAt, err = c.g.cfg.Upstream.SignIn(ctx, c.upstream, loginRequestor{c}, id.Principal); err != nil {
		return brokerError("sign in", err)
	}
	return c.learnVersions(ctx)
}

// refusal is the error of a login that is refused for good.
type refusal struct {
	reason string // a sentence that a person can act on; it never holds the token
	err    error
}

func (r *refusal) Error() string { return r.reason }
func (r *refusal) Unwrap() error { return r.err }

// kind names the type of the credentials, for messages.
func (c Credentials) kind() string {
	if c.KeyID != "" {
		return "access key"
	}
	return "access token"
}

// hint says how to get valid credentials. A token with dots is a JWT that was issued for an access
// key, because access tokens of Globus Auth are opaque.
func (c Credentials) hint() string {
	if c.KeyID != "" || strings.Contains(c.Secret.Reveal(), ".") {
		return kafka.KeyHint
	}
	return kafka.LoginHint
}

func (c Credentials) refusedReason(err error) string {
	if refused := (*globus.RefusedError)(nil); errors.As(err, &refused) {
		if refused.Hint != "" {
			return refused.Reason + "; " + refused.Hint
		}
		return refused.Reason + c.hint()
	}
	return "the " + c.kind() + " was refused" + c.hint()
}

// misconfiguredReason tells a client that its credentials are not the cause of the failure.
func (c Credentials) misconfiguredReason(err error) string {
	return fmt.Sprintf("%s whose %s this is, because it cannot use the response of Globus Auth (%v); the %s may be valid: tell the operators of the fabric",
		kafka.CannotTell, c.kind(), err, c.kind())
}

// respond sends the client a response that the gateway has made itself.
func (c *conn) respond(correlation int32, response kmsg.Response) error {
	_, err := c.Write(appendResponse(nil, correlation, response))
	return err
}
