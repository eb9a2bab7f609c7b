package gateway

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/globus"
)

const (
	maxLoginBytes    = 512 << 10 // as Kafka's sasl.server.max.receive.size
	maxLoginRequests = 16        // a client needs three
)

// login serves a client until it is signed in.
func (c *conn) login(ctx context.Context) error {
	for range maxLoginRequests {
		h, frame, err := c.takeRequest(maxLoginBytes)
		if err != nil {
			return err
		}
		switch h.key {
		case keyApiVersions:
			err = c.answerApiVersions(ctx, frame)
		case keySaslHandshake:
			return c.loginAfterHandshake(ctx, frame)
		default:
			err = fmt.Errorf("%w: key %d before login", errFrame, h.key)
		}
		if err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: no login in %d requests", errFrame, maxLoginRequests)
}

// takeRequest reads the next request whole.
func (c *conn) takeRequest(limit int) (requestHeader, []byte, error) {
	size, err := c.in.size()
	if err != nil {
		return requestHeader{}, nil, err
	}
	if size < requestHeaderBytes || size > limit {
		return requestHeader{}, nil, fmt.Errorf("%w: size %d", errFrame, size)
	}
	c.in.start += 4
	frame, err := c.in.take(size)
	if err != nil {
		return requestHeader{}, nil, err
	}
	return parseRequestHeader(frame), frame, nil
}

// loginAfterHandshake answers a handshake and takes the login that follows.
func (c *conn) loginAfterHandshake(ctx context.Context, handshake []byte) error {
	raw, err := c.answerHandshake(handshake)
	if err != nil {
		return err
	}
	if raw {
		return c.loginRaw(ctx)
	}
	return c.loginFramed(ctx)
}

// answerHandshake answers SaslHandshake. raw says that the SASL messages that
// follow have no Kafka header, which is what version 0 means.
func (c *conn) answerHandshake(frame []byte) (raw bool, err error) {
	h, w := parseRequest(frame, func(int16) bool { return false })
	mechanism := w.string()
	if !w.done() || h.version < 0 || h.version > 1 {
		return false, fmt.Errorf("%w: SaslHandshake version %d", errFrame, h.version)
	}
	response := kmsg.NewPtrSASLHandshakeResponse()
	response.Version = h.version
	response.SupportedMechanisms = []string{mechanismOAuthBearer}
	if mechanism != mechanismOAuthBearer {
		response.ErrorCode = kerr.UnsupportedSaslMechanism.Code
		err = fmt.Errorf("SASL mechanism %q", mechanism)
	}
	return h.version == 0, errors.Join(c.respond(h.correlation, response), err)
}

// loginFramed takes a login in a SaslAuthenticate request.
func (c *conn) loginFramed(ctx context.Context) error {
	h, frame, err := c.takeRequest(maxLoginBytes)
	if err != nil {
		return err
	}
	message, err := parseSaslAuthenticate(frame)
	if err != nil {
		return err
	}
	response := kmsg.NewPtrSASLAuthenticateResponse()
	response.Version = h.version
	if err := c.authenticate(ctx, message); err != nil {
		var refusal *refusal
		if !errors.As(err, &refusal) {
			return err
		}
		response.ErrorCode = kerr.SaslAuthenticationFailed.Code
		response.ErrorMessage = &refusal.reason
		c.delay(ctx)
		return errors.Join(err, c.respond(h.correlation, response))
	}
	response.SASLAuthBytes = []byte{}
	response.SessionLifetimeMillis = max(1, time.Until(c.info.Expiry).Milliseconds())
	return c.respond(h.correlation, response)
}

// loginRaw takes a login in a frame that is nothing but the SASL message. Its
// answer is an empty frame, or none.
func (c *conn) loginRaw(ctx context.Context) error {
	size, err := c.in.size()
	if err != nil {
		return err
	}
	if size < 0 || size > maxLoginBytes {
		return fmt.Errorf("%w: size %d", errFrame, size)
	}
	c.in.start += 4
	message, err := c.in.take(size)
	if err != nil {
		return err
	}
	if err := c.authenticate(ctx, message); err != nil {
		c.delay(ctx)
		return err
	}
	_, err = c.client.Write(make([]byte, 4))
	return err
}

func parseSaslAuthenticate(frame []byte) ([]byte, error) {
	flexible := func(version int16) bool { return version >= 2 }
	h, w := parseRequest(frame, flexible)
	if h.key != keySaslAuthenticate || h.version < 0 || h.version > 2 {
		return nil, fmt.Errorf("%w: key %d version %d during login", errFrame, h.key, h.version)
	}
	var message []byte
	if flexible(h.version) {
		message = w.compactBytes()
		w.tags()
	} else {
		message = w.longBytes()
	}
	if !w.done() {
		return nil, fmt.Errorf("%w: SaslAuthenticate", errFrame)
	}
	return message, nil
}

// authenticate finds out who the client is and signs in to the broker. A
// *refusal is the client's fault; after any other error it may try again.
func (c *conn) authenticate(ctx context.Context, message []byte) error {
	info, token, err := c.g.identify(ctx, message)
	if err != nil {
		return err
	}
	if c.info.Subject == "" {
		err = c.signIn(ctx, info)
	} else if c.info.Subject != info.Subject {
		err = &refusal{reason: "the access token belongs to another identity than the connection; open a new connection for it"}
	}
	if err != nil {
		return err
	}
	c.info, c.token = info, token
	return nil
}

// signIn makes the connection to the broker the subject's.
func (c *conn) signIn(ctx context.Context, info globus.TokenInfo) error {
	if err := c.dial(ctx); err != nil {
		return err
	}
	if err := c.g.cfg.Upstream.SignIn(ctx, c.upstream, info.Subject, info.Expiry); err != nil {
		return err
	}
	return c.learn()
}

// identify asks whose token a SASL message carries.
func (g *Gateway) identify(ctx context.Context, message []byte) (globus.TokenInfo, globus.Secret, error) {
	credentials, err := parseOAuthBearer(message)
	if err != nil {
		return globus.TokenInfo{}, "", err
	}
	info, err := g.cfg.Authenticator.Authenticate(ctx, credentials.token)
	switch {
	case errors.Is(err, globus.ErrRefused):
		return info, "", &refusal{reason: refusedReason(err), err: err}
	case err != nil:
		return info, "", err
	case !info.Expiry.After(time.Now()):
		return info, "", &refusal{reason: "the access token has expired; " + loginHint}
	case credentials.authzid != "" && credentials.authzid != info.Subject:
		return info, "", &refusal{reason: "the access token belongs to another subject than the authorization ID names"}
	}
	return info, credentials.token, nil
}

const loginHint = "run `diaspora login` and use the new token"

func refusedReason(error) string {
	return "the access token was refused: it is expired, revoked or not for this service; " + loginHint
}

// refusal is a login that failed for good: the client gets the reason.
type refusal struct {
	reason string // a sentence that a person can act on, without the token
	err    error
}

func (r *refusal) Error() string { return "login refused: " + r.reason }
func (r *refusal) Unwrap() error { return r.err }

func (c *conn) delay(ctx context.Context) {
	select {
	case <-time.After(c.g.cfg.FailureDelay):
	case <-ctx.Done():
	}
}

func (c *conn) respond(correlation int32, response kmsg.Response) error {
	_, err := c.client.Write(appendResponse(nil, correlation, response))
	return err
}

// dial connects to the broker, if that has not been done.
func (c *conn) dial(ctx context.Context) error {
	if c.upstream != nil {
		return nil
	}
	upstream, err := c.g.cfg.Upstream.Dial(ctx)
	if err != nil {
		return fmt.Errorf("connect to broker: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.upstream = upstream
	c.out.r = upstream
	if c.closed {
		upstream.Close()
	}
	return nil
}

// answerApiVersions passes a request for ApiVersions on and the answer back.
func (c *conn) answerApiVersions(ctx context.Context, frame []byte) error {
	request, err := rewriteApiVersions(frame)
	if err != nil {
		return err
	}
	if err := c.dial(ctx); err != nil {
		return err
	}
	if _, err := c.upstream.Write(request); err != nil {
		return err
	}
	size, err := c.out.size()
	if err != nil {
		return err
	}
	return c.out.relay(c.client, 4+size)
}

const maxApiVersions = 5 // the newest whose body is known here

// rewriteApiVersions returns the frame of a request for ApiVersions, checked.
// The body of a version that nobody knows yet is replaced: Kafka answers such
// a request whatever its body, the embedded broker would hang up.
func rewriteApiVersions(frame []byte) ([]byte, error) {
	flexible := func(version int16) bool { return version >= 3 }
	h, w := parseRequest(frame, flexible)
	request := kmsg.NewPtrApiVersionsRequest()
	request.Version = h.version
	if h.version < 0 {
		return nil, fmt.Errorf("%w: ApiVersions version %d", errFrame, h.version)
	}
	if h.version <= maxApiVersions {
		if flexible(h.version) {
			request.ClientSoftwareName = string(w.compactBytes())
			request.ClientSoftwareVersion = string(w.compactBytes())
			if h.version >= 5 {
				request.ClusterID = w.compactNullableString()
				request.NodeID = int32(w.int32())
			}
			w.tags()
		}
		if !w.done() {
			return nil, fmt.Errorf("%w: ApiVersions", errFrame)
		}
	}
	return kmsg.NewRequestFormatter().AppendRequest(nil, request, h.correlation), nil
}

// versions says which versions of each request the broker takes.
type versions map[int16]struct{ min, max int16 }

// learn asks the broker which requests it takes.
func (c *conn) learn() error {
	request := kmsg.NewPtrApiVersionsRequest()
	if _, err := c.upstream.Write(kmsg.NewRequestFormatter().AppendRequest(nil, request, 0)); err != nil {
		return err
	}
	size, err := c.out.size()
	if err != nil {
		return err
	}
	if size < 4 || size > maxLoginBytes {
		return fmt.Errorf("ask broker for its versions: answer of %d bytes", size)
	}
	c.out.start += 4
	frame, err := c.out.take(size)
	if err != nil {
		return err
	}
	response := kmsg.NewPtrApiVersionsResponse()
	if err := response.ReadFrom(frame[4:]); err != nil {
		return fmt.Errorf("ask broker for its versions: %w", err)
	}
	c.versions = make(versions, len(response.ApiKeys))
	for _, key := range response.ApiKeys {
		c.versions[key.ApiKey] = struct{ min, max int16 }{key.MinVersion, key.MaxVersion}
	}
	return nil
}
