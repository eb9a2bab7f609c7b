// Package aclclient sends requests to the ACL endpoint of a fabric. It hides HTTP: to which URLs a
// credential may be sent, what a status or a broken connection means, and which requests are
// repeated. It also checks all text that comes from an ACL endpoint ([TextFault]).
//
// The requests themselves, and the types of their answers, are those of package diaspora.
package aclclient

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/backoff"
	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/terminal"
	"github.com/diaspora-streams/diaspora/internal/trust"
)

// Limits of a request.
const (
	MaxAnswerBytes = 16 << 20 // for a list of topics; all other answers are far smaller
	MaxRepeats     = 4
	timeout        = 60 * time.Second
)

// Client sends requests to one ACL endpoint. Its methods may be called concurrently.
type Client struct {
	cfg   Config
	http  *http.Transport
	trial *kafka.Trial // decides whether to retry with another access token
}

// Config says where an ACL endpoint is and how to sign in to it.
type Config struct {
	Base                   *url.URL           // see [ParseURL]
	TokenSource            globus.TokenSource // the access token to sign in with
	Key                    kafka.Key          // the access key to sign in with instead
	Roots                  *x509.CertPool     // the certificates to trust; nil for the system's
	InsecureAllowPlaintext bool               // allows http to other machines
}

// New returns a Client. It does not use the network.
func New(cfg Config) *Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.ResponseHeaderTimeout = timeout
	transport.MaxResponseHeaderBytes = 64 << 10
	if cfg.Roots != nil {
		transport.TLSClientConfig.RootCAs = cfg.Roots
	}
	return &Client{cfg: cfg, http: transport, trial: kafka.NewTrial(cfg.TokenSource)}
}

// CloseIdle closes idle connections. Otherwise, each stays open for 90 s, and when a job starts many
// programs, they use up the connections that the ACL endpoint accepts.
func (c *Client) CloseIdle() { c.http.CloseIdleConnections() }

// Request is one request.
type Request struct {
	Method string        // default: GET
	Path   string        // relative to the base URL, escaped
	In     any           // the body, encoded as JSON; nil for none
	Out    any           // where to decode the answer; nil ignores it
	Fault  func() string // says what else is wrong with the decoded Out, or returns ""; nil checks only its texts
	Public bool          // no credential is needed
	Key    bool          // an access key is accepted too
	Again  bool          // idempotent: may be repeated
}

// Error says why a request failed, and what to do next. All errors of a Client are of this type,
// except those of the context and of the token source.
type Error struct {
	Condition kafka.Condition
	Reason    string
	Hint      string
	Problem   *Problem // the endpoint's own words; nil if it did not answer with a problem
	Err       error    // the error of the connection, or nil

	transient bool // the same request may succeed soon
}

func (e *Error) Error() string { return e.Reason }
func (e *Error) Unwrap() error { return e.Err }

// Problem is the body of an error response (RFC 9457). Its texts are safe to display.
type Problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	Hint   string `json:"hint"`
	Topic  string `json:"topic"`
}

// Do sends a request, and repeats it if that is safe. After a refused connection nothing has
// happened. An idempotent request is repeated if the endpoint was unreachable or asked to retry
// later. After a rejected token nothing has happened either: the request is sent once more, with
// another token.
func (c *Client) Do(ctx context.Context, r Request) error {
	deadline := time.Now().Add(timeout)
	worth := func(err error) bool {
		f := (*Error)(nil)
		again := errors.Is(err, syscall.ECONNREFUSED) || r.Again && errors.As(err, &f) && f.transient
		return again && time.Now().Before(deadline)
	}
	renewed := false
	return backoff.Retry(ctx, MaxRepeats, worth, func() error {
		token, err := c.once(ctx, r)
		f := (*Error)(nil)
		if errors.As(err, &f) && f.Condition == kafka.Unauthenticated && token != "" && !renewed && c.trial.Refused(ctx, token) {
			renewed = true
			token, err = c.once(ctx, r)
		}
		if err == nil && token != "" {
			c.trial.Accepted()
		}
		return err
	})
}

// once sends a request. It also returns the access token that was sent, or "".
func (c *Client) once(ctx context.Context, r Request) (token globus.Secret, err error) {
	var body io.Reader
	if r.In != nil {
		data, err := json.Marshal(r.In)
		if err != nil {
			return "", invalid("", "%v", err)
		}
		body = bytes.NewReader(data)
	}
	timed, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(timed, r.Method, c.cfg.Base.String()+r.Path, body)
	if err != nil {
		return "", invalid("", "%v", err)
	}
	req.Header.Set("Accept", "application/json, application/problem+json")
	if r.In != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if err = c.checkPrivate(); err == nil {
		token, err = c.authorize(ctx, r, req)
	}
	if err != nil {
		return "", err
	}
	// Do not use an http.Client: it follows redirects, and would send the token and the claim to
	// another host.
	resp, err := c.http.RoundTrip(req)
	if err != nil {
		return token, c.transportError(ctx, r, err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, MaxAnswerBytes+1))
	switch {
	case err != nil:
		return token, c.transportError(ctx, r, err)
	case len(data) > MaxAnswerBytes:
		return token, invalid("", "%s answered with more than %d bytes", c.cfg.Base, MaxAnswerBytes)
	case resp.StatusCode < 200 || resp.StatusCode > 299:
		return token, c.statusError(resp, data)
	case r.Out == nil:
		return token, nil
	}
	fault := decode(resp, data, r.Out)
	if fault == "" {
		fault = TextFault(r.Out)
	}
	if fault == "" && r.Fault != nil {
		fault = r.Fault()
	}
	if fault != "" {
		return token, invalid("check the URL of the fabric", "%s does not answer as an ACL endpoint does: %s", c.cfg.Base, fault)
	}
	return token, nil
}

func invalid(hint, format string, args ...any) error {
	return &Error{Condition: kafka.Invalid, Reason: fmt.Sprintf(format, args...), Hint: hint}
}

// checkPrivate fails if others on the network could read or change what is sent and answered. That
// matters without a credential, too: the discovery document says where tokens are sent later.
func (c *Client) checkPrivate() error {
	if c.cfg.Base.Scheme == "https" || trust.IsLoopback(c.cfg.Base.Hostname()) || c.cfg.InsecureAllowPlaintext {
		return nil
	}
	return invalid("use the https URL of the fabric", "%s is not https: others on the network could read the tokens, or have them sent elsewhere", c.cfg.Base)
}

// authorize adds the credential to a request. It returns the access token, if it used one.
func (c *Client) authorize(ctx context.Context, r Request, req *http.Request) (globus.Secret, error) {
	key := c.cfg.Key
	switch {
	case r.Public:
		return "", nil
	case r.Key && key != kafka.Key{}:
		req.SetBasicAuth(url.QueryEscape(key.ID), url.QueryEscape(key.Secret.Reveal())) // OAuth requires both to be URL-encoded (RFC 6749, section 2.3.1)
		return "", nil
	case c.cfg.TokenSource == nil:
		return "", &Error{Condition: kafka.Unauthenticated, Reason: "there is no TokenSource"}
	}
	token, err := trust.Token(ctx, c.cfg.TokenSource, c.cfg.Base.Host, nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("Authorization", "Bearer "+token.AccessToken.Reveal())
	return token.AccessToken, nil
}

func (c *Client) transportError(ctx context.Context, r Request, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	base := c.cfg.Base
	if reason, hint := trust.ExplainTLS(err); reason != "" {
		if record := (tls.RecordHeaderError{}); errors.As(err, &record) {
			reason = base.Host + " does not speak TLS"
			hint = "check the URL and its port; an ACL endpoint speaks https"
			if trust.IsLoopback(base.Hostname()) {
				plain := *base
				plain.Scheme = "http"
				hint = "on this machine, use " + plain.String()
			}
		}
		return &Error{Condition: kafka.Invalid, Reason: reason, Hint: hint, Err: err}
	}
	reason, hint := err.Error(), ""
	if late := (net.Error)(nil); errors.As(err, &late) && late.Timeout() {
		reason = "no answer in time"
	}
	op := (*net.OpError)(nil)
	switch {
	case errors.As(err, &op) && op.Op == "dial":
		if r.Public { // it is the first request to this URL
			hint = "check the URL and the network"
		}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		reason = "it closed the connection without an answer"
		hint = "check the port in the URL, unless the service is being restarted"
	case reason == err.Error() && op == nil: // what came back is not HTTP
		hint = "check the port in the URL"
	}
	return &Error{Condition: kafka.Unavailable, Reason: fmt.Sprintf("%s cannot be reached: %s", base, reason), Hint: hint, Err: err, transient: true}
}

// statusError converts an error response to an error. If the response is not a problem, for instance
// an error page of a proxy, only its status counts.
func (c *Client) statusError(resp *http.Response, data []byte) error {
	e := &Error{Condition: condition(resp.StatusCode)}
	switch resp.StatusCode {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		e.transient = true
	}
	var p Problem
	if decode(resp, data, &p) == "" && (p.Detail != "" || p.Title != "") {
		const short, sentence = 200, 500
		tidy := func(text string, limit int) string { return terminal.OneLine(terminal.Clip(text, limit)) }
		e.Problem = &Problem{
			Type: tidy(p.Type, short), Title: tidy(p.Title, short), Status: resp.StatusCode,
			Detail: tidy(p.Detail, sentence), Hint: tidy(p.Hint, sentence), Topic: tidy(p.Topic, short),
		}
		return e
	}
	e.Reason = fmt.Sprintf("%s answered with status %d", c.cfg.Base, resp.StatusCode)
	switch {
	case resp.StatusCode == http.StatusNotFound:
		e.Hint = "check the URL and its port: there is no ACL endpoint at this one"
	case resp.StatusCode/100 == 3:
		e.Condition, e.Hint = kafka.Invalid, "use the URL that it names"
		e.Reason = fmt.Sprintf("%s redirects to %q, and tokens do not follow redirects", c.cfg.Base, RedactURL(resp.Header.Get("Location")))
	}
	return e
}

// conditions are those of HTTP statuses with a meaning of their own.
var conditions = map[int]kafka.Condition{
	http.StatusUnauthorized:    kafka.Unauthenticated,
	http.StatusForbidden:       kafka.Permission,
	http.StatusNotFound:        kafka.NotFound,
	http.StatusGone:            kafka.NotFound,
	http.StatusConflict:        kafka.Conflict,
	http.StatusTooManyRequests: kafka.Unavailable,
	http.StatusNotImplemented:  kafka.Invalid,
}

// condition returns the condition for an HTTP status.
func condition(status int) kafka.Condition {
	if c, ok := conditions[status]; ok {
		return c
	}
	if status >= 500 {
		return kafka.Unavailable
	}
	return kafka.Invalid
}

// decode parses a response that must be a single JSON document. It returns what is wrong with it,
// or "".
func decode(resp *http.Response, data []byte, out any) string {
	media, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil || media != "application/json" && !strings.HasSuffix(media, "+json") {
		return fmt.Sprintf("it answered with %q instead of JSON", terminal.Clip(resp.Header.Get("Content-Type"), 200))
	}
	if err := json.Unmarshal(data, out); err != nil {
		return "its JSON is not what it should be"
	}
	return ""
}
