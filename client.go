package diaspora

import (
	"bytes"
	"context"
	"crypto/tls"
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
	"github.com/diaspora-streams/diaspora/internal/accesskey"
	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/trust"
)

// Client talks to the ACL endpoint of a fabric, which manages topics and access keys. Make one with
// [NewClient]; its methods may be called concurrently. They return [ErrInvalid],
// [ErrUnauthenticated], [ErrPermission], [ErrNotFound], [ErrConflict], [ErrUnavailable], ctx's
// error, or an unexpected error. If the ACL endpoint answered with an error, the error is a
// [*ProblemError] as well.
type Client struct {
	cfg   Config
	base  *url.URL
	http  *http.Transport
	trial *kafka.Trial // decides whether to retry with another access token
}

const (
	maxAnswerBytes = 16 << 20 // for a list of topics; all other responses are far smaller
	requestTimeout = 60 * time.Second
	requestRetries = 4
)

// NewClient returns a client of the ACL endpoint at cfg.URL. It does not use the network. Without
// cfg.TokenSource, only [Client.Discover] works; with cfg.Key instead, [Client.Identity] and
// [Client.Key] work too.
func NewClient(cfg Config) (*Client, error) {
	if cfg.URL == "" {
		return nil, &Error{
			Condition: ErrInvalid,
			Reason:    "configuration: the URL of the fabric's ACL endpoint is not set",
			Hint:      `set DIASPORA_URL, or run "diaspora login URL"`,
		}
	}
	base, err := parseURL(cfg.URL)
	if err != nil {
		return nil, err
	}
	if cfg.TokenSource != nil && cfg.Key != (Key{}) {
		return nil, errTwoCredentials
	}
	var extra []byte
	if cfg.Discovery != nil {
		extra = []byte(cfg.Discovery.CA)
	}
	pool, err := cfg.roots(extra)
	if err != nil {
		return nil, err
	}
	cfg.login = cfg.advice()
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.ResponseHeaderTimeout = requestTimeout
	transport.MaxResponseHeaderBytes = 64 << 10
	if pool != nil {
		transport.TLSClientConfig.RootCAs = pool
	}
	return &Client{cfg: cfg, base: base, http: transport, trial: kafka.NewTrial(cfg.TokenSource)}, nil
}

// Discover fetches the fabric's discovery document. It sends no token, but the document says where
// tokens are sent later. So it is not fetched over plain http from another machine, where anybody
// on the network path could change it.
func (c *Client) Discover(ctx context.Context) (Discovery, error) {
	if err := c.mustBePrivate(); err != nil {
		return Discovery{}, err
	}
	var d Discovery
	err := c.do(ctx, request{
		op: "ask " + c.base.String() + " for its configuration", method: http.MethodGet, path: "/.well-known/diaspora",
		public: true, again: true, out: &d,
	})
	if f, ok := errors.Unwrap(err).(*Error); ok && f.Condition == ErrUnavailable && f.cause != nil {
		return Discovery{}, f // it names the URL itself; after "ask … for" it would read like an instruction
	}
	if err != nil {
		return Discovery{}, err
	}
	if err := d.validate(); err != nil {
		return Discovery{}, fmt.Errorf("ask %s for its configuration: %w", c.base, err)
	}
	return d, nil
}

// discoverOnce fetches the discovery document and closes the connection. If the fabric is
// unreachable, it returns the document that was remembered from the last time, if there is one.
func (c *Client) discoverOnce(ctx context.Context) (Discovery, error) {
	defer c.closeIdle()
	d, err := c.Discover(ctx)
	if err == nil {
		c.cfg.memory.learn(&c.cfg, func(r *remembered) { r.Discovery = &d })
	}
	if !away(err) {
		return d, err
	}
	if known := c.cfg.memory.recall(c.cfg.memory.name); known.Discovery != nil {
		c.cfg.diagnostics().Warn("the fabric cannot be asked where its cluster is; going by what it said before", "url", c.cfg.URL, "err", err)
		return *known.Discovery, nil
	}
	return d, err
}

// closeIdle closes idle connections after the last request. Otherwise, the transport keeps each open
// for 90 s, and when a job starts many programs, they use up the connections that the ACL endpoint
// accepts.
func (c *Client) closeIdle() { c.http.CloseIdleConnections() }

// Identity returns the caller's identity: that of the token, or of the access key's owner. For a
// key, only the Subject is known.
func (c *Client) Identity(ctx context.Context) (globus.Identity, error) {
	var id globus.Identity
	var err error
	if c.cfg.Key != (Key{}) {
		var key AccessKey
		key, err = c.showKey(ctx, "ask whose the access key is", c.cfg.Key.ID)
		id.Subject = key.Owner
	} else {
		err = c.do(ctx, request{
			op: "ask who is signed in", method: http.MethodGet, path: "/v1/identity", again: true,
			out: &id, fault: func() string { return identityFault(id) },
		})
	}
	if err != nil {
		return globus.Identity{}, err
	}
	if id.Subject != "" {
		c.cfg.memory.learn(&c.cfg, func(r *remembered) { r.Identity = id })
	}
	return id, nil
}

// Claim makes the caller the owner of a topic. When it returns, the topic exists and the owner may
// write to it and read from it.
//
// Claiming a topic that the caller already owns changes nothing and succeeds; Topic.Created tells
// whether the topic is new. Claim returns [ErrConflict] if the topic belongs to somebody else, or
// is the caller's and has other settings than the claim, and [ErrInvalid] if the name is malformed.
func (c *Client) Claim(ctx context.Context, claim ClaimRequest) (Topic, error) {
	if err := ValidTopic(claim.Name); err != nil {
		return Topic{}, &TopicError{"claim", err.(*TopicError).Topic, err.(*TopicError).Err}
	}
	var t Topic
	// Claiming is idempotent, so it is safe to retry after a lost response.
	err := c.do(ctx, request{
		op: "claim", topic: claim.Name, method: http.MethodPost, path: "/v1/topics", in: claim, again: true,
		out: &t, fault: func() string { return topicAnswerFault(t, claim.Name) },
	})
	return orZero(t, err)
}

// Release gives up a topic and deletes its events. It returns [ErrNotFound] if there is no such
// topic, and [ErrPermission] if it belongs to somebody else.
func (c *Client) Release(ctx context.Context, name string) error {
	if !kafkaTopic(name) {
		return noTopic("release", name)
	}
	return c.do(ctx, request{op: "release", topic: name, method: http.MethodDelete, path: "/v1/topics/" + url.PathEscape(name)})
}

// Topics returns the topics that the caller owns.
func (c *Client) Topics(ctx context.Context) ([]Topic, error) {
	var list TopicList
	err := c.do(ctx, request{
		op: "list topics", method: http.MethodGet, path: "/v1/topics", again: true,
		out: &list, fault: func() string {
			return firstFault(list.Topics, func(t Topic) string { return topicAnswerFault(t, "") })
		},
	})
	return orZero(list.Topics, err)
}

// Topic returns one of the caller's topics.
func (c *Client) Topic(ctx context.Context, name string) (Topic, error) {
	if !kafkaTopic(name) {
		return Topic{}, noTopic("show", name)
	}
	var t Topic
	err := c.do(ctx, request{
		op: "show", topic: name, method: http.MethodGet, path: "/v1/topics/" + url.PathEscape(name), again: true,
		out: &t, fault: func() string { return topicAnswerFault(t, name) },
	})
	return orZero(t, err)
}

// noTopic is the error for a name that no topic can have. Such a name is not sent, because it could
// lead to another path of the ACL endpoint.
func noTopic(op, name string) error {
	return &TopicError{op, clip(name), invalid("no cluster has a topic of this name")}
}

// CreateKey creates an access key for the caller. Only its result contains the secret. It returns
// [ErrConflict] if the caller already has a key of that name. After [ErrUnavailable], the key may
// exist although its secret is lost; revoke it.
func (c *Client) CreateKey(ctx context.Context, key AccessKeyRequest) (NewAccessKey, error) {
	var created NewAccessKey
	err := c.do(ctx, request{
		op: "create access key", method: http.MethodPost, path: "/v1/keys", in: key,
		out: &created, fault: func() string {
			if !accesskey.IsSecret(created.Secret) {
				return "the access key's secret is malformed"
			}
			return keyFault(created.AccessKey)
		},
	})
	return orZero(created, err)
}

// Keys returns the caller's access keys, without their secrets.
func (c *Client) Keys(ctx context.Context) ([]AccessKey, error) {
	var list AccessKeyList
	err := c.do(ctx, request{
		op: "list access keys", method: http.MethodGet, path: "/v1/keys", again: true,
		out: &list, fault: func() string { return firstFault(list.Keys, keyFault) },
	})
	return orZero(list.Keys, err)
}

// Key returns one of the caller's access keys, which may have expired or been revoked. A caller
// that signs in with an access key may ask for all keys of the same owner.
func (c *Client) Key(ctx context.Context, id string) (AccessKey, error) {
	return c.showKey(ctx, "show access key", id)
}

func (c *Client) showKey(ctx context.Context, op, id string) (AccessKey, error) {
	var key AccessKey
	err := c.do(ctx, request{
		op: op, method: http.MethodGet, path: "/v1/keys/" + url.PathEscape(id), again: true, key: true,
		out: &key, fault: func() string {
			if key.ID != id {
				return "it is about another access key"
			}
			return keyFault(key)
		},
	})
	return orZero(key, err)
}

// RevokeKey revokes one of the caller's access keys. Nobody can sign in with it any more, and open
// connections that use it are closed soon. Revoking it again succeeds.
func (c *Client) RevokeKey(ctx context.Context, id string) error {
	return c.do(ctx, request{op: "revoke access key", method: http.MethodDelete, path: "/v1/keys/" + url.PathEscape(id), again: true})
}

// Block blocks a subject from the fabric; the caller must be an operator. The fabric then rejects
// all tokens and access keys of the subject, and soon closes its open connections. Blocking again
// changes nothing. An operator cannot be blocked: Block returns [ErrConflict].
func (c *Client) Block(ctx context.Context, block BlockRequest) (Blocked, error) {
	var b Blocked
	err := c.do(ctx, request{
		op: "block", method: http.MethodPost, path: "/v1/admin/blocked", in: block, again: true,
		out: &b, fault: func() string { return blockedFault(b, block.Subject) },
	})
	return orZero(b, err)
}

// Unblock ends the block of a subject; the caller must be an operator. It returns [ErrNotFound] if
// the subject is not blocked.
func (c *Client) Unblock(ctx context.Context, subject string) error {
	return c.do(ctx, request{op: "unblock", method: http.MethodDelete, path: "/v1/admin/blocked/" + url.PathEscape(subject)})
}

// Blocked returns the subjects that are blocked; the caller must be an operator.
func (c *Client) Blocked(ctx context.Context) ([]Blocked, error) {
	var list BlockedList
	err := c.do(ctx, request{
		op: "list blocked subjects", method: http.MethodGet, path: "/v1/admin/blocked", again: true,
		out: &list, fault: func() string {
			return firstFault(list.Blocked, func(b Blocked) string { return blockedFault(b, "") })
		},
	})
	return orZero(list.Blocked, err)
}

// ProblemError is an error with which the ACL endpoint answered. Test its cause with [errors.Is].
type ProblemError struct {
	Problem
	condition error
}

func (e *ProblemError) Error() string {
	if e.Detail != "" {
		return e.Detail
	}
	return e.Title
}

func (e *ProblemError) Unwrap() error { return e.condition }

type request struct {
	op     string // the operation, for errors; with a topic, only its verb
	topic  string
	method string
	path   string        // relative to the base URL, escaped
	in     any           // the body, encoded as JSON; nil for none
	out    any           // where to decode the response; nil ignores it
	fault  func() string // says what is wrong with the decoded out, or returns ""; nil accepts anything
	public bool          // no token is needed
	key    bool          // an access key is accepted too
	again  bool          // idempotent: may be retried
}

// orZero returns v, or its zero value and the error, so that no part of a rejected response is
// used.
func orZero[T any](v T, err error) (T, error) {
	if err != nil {
		var zero T
		return zero, err
	}
	return v, nil
}

func (r request) wrap(err error) error {
	if r.topic != "" {
		return &TopicError{r.op, clip(r.topic), err}
	}
	return fmt.Errorf("%s: %w", r.op, err)
}

// do sends the request and retries it if that is safe. After a refused connection nothing has
// happened. An idempotent request is repeated if the endpoint was unreachable or asked to retry
// later. After a rejected token nothing has happened either: the request is sent once more, with a
// new token.
func (c *Client) do(ctx context.Context, r request) error {
	deadline := time.Now().Add(requestTimeout)
	renewed := false
	for attempt := 0; ; attempt++ {
		token, err := c.once(ctx, r)
		if errors.Is(err, ErrUnauthenticated) && token != "" && !renewed && c.trial.Refused(ctx, token) {
			renewed = true
			token, err = c.once(ctx, r)
		}
		if err == nil && token != "" {
			c.trial.Accepted()
		}
		if err == nil || attempt >= requestRetries || !c.mayRetry(r, err) || !sleep(ctx, backoff(attempt), deadline) {
			return err
		}
	}
}

func (c *Client) mayRetry(r request, err error) bool {
	if errors.Is(err, syscall.ECONNREFUSED) {
		return true
	}
	f := (*Error)(nil)
	return r.again && errors.As(err, &f) && f.transient
}

// once sends the request. It also returns the access token that was sent, or "".
func (c *Client) once(ctx context.Context, r request) (token globus.Secret, err error) {
	var body io.Reader
	if r.in != nil {
		data, err := json.Marshal(r.in)
		if err != nil {
			return "", r.wrap(invalid("%v", err))
		}
		body = bytes.NewReader(data)
	}
	timed, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(timed, r.method, c.base.String()+r.path, body)
	if err != nil {
		return "", r.wrap(invalid("%v", err))
	}
	req.Header.Set("Accept", "application/json, application/problem+json")
	if r.in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if token, err = c.authorize(ctx, r, req); err != nil {
		return "", r.wrap(err)
	}
	// Do not use an http.Client: it follows redirects, and would send the token and the claim to
	// another host.
	resp, err := c.http.RoundTrip(req)
	if err != nil {
		return token, r.wrap(c.transportError(ctx, err))
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes+1))
	if err != nil {
		return token, r.wrap(c.transportError(ctx, err))
	}
	if len(data) > maxAnswerBytes {
		return token, r.wrap(&Error{Condition: ErrInvalid, Reason: fmt.Sprintf("%s answered with more than %d bytes", c.base, maxAnswerBytes)})
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return token, c.problem(r, resp, data)
	}
	if r.out == nil {
		return token, nil
	}
	err = decodeAnswer(resp.Header.Get("Content-Type"), data, r.out)
	if err == nil && r.fault != nil {
		if what := r.fault(); what != "" {
			err = errors.New(what)
		}
	}
	if err != nil {
		return token, r.wrap(&Error{
			Condition: ErrInvalid,
			Reason:    fmt.Sprintf("%s does not answer as an ACL endpoint does: %v", c.base, err),
			Hint:      "check the URL of the fabric",
		})
	}
	return token, nil
}

// authorize adds the credential to a request, unless somebody on the network path could read it. It
// returns the access token, if it used one.
func (c *Client) authorize(ctx context.Context, r request, req *http.Request) (globus.Secret, error) {
	if r.public {
		return "", nil
	}
	if err := c.mustBePrivate(); err != nil {
		return "", err
	}
	switch key := c.cfg.Key; {
	case key != Key{} && r.key:
		req.SetBasicAuth(url.QueryEscape(key.ID), url.QueryEscape(key.Secret.Reveal())) // OAuth requires both to be URL-encoded (RFC 6749, section 2.3.1)
		return "", nil
	case key != Key{}:
		return "", c.personNeeded()
	case c.cfg.TokenSource == nil:
		return "", &Error{Condition: ErrUnauthenticated, Reason: "there is no TokenSource", Hint: c.cfg.login}
	}
	token, err := trust.Token(ctx, c.cfg.TokenSource, c.base.Host, nil)
	if err != nil {
		return "", withHint(explain(err), ErrUnauthenticated, c.cfg.login)
	}
	req.Header.Set("Authorization", "Bearer "+token.AccessToken.Reveal())
	return token.AccessToken, nil
}

// personNeeded is the error for operations that need a person's login instead of an access key.
func (c *Client) personNeeded() error {
	reason := "this takes the login of a person, and an access key signs in"
	hint := fmt.Sprintf(`run "diaspora login %s"`, c.base)
	if from := c.cfg.origin; from != "" {
		reason += " (" + from + ")"
		if from == fromKeyID {
			from += " and DIASPORA_KEY_SECRET"
		}
		hint = fmt.Sprintf(`do it where you are logged in; or here, unset %s and run "diaspora login %s"`, from, c.base)
	}
	return &Error{Condition: ErrUnauthenticated, Reason: reason, Hint: hint}
}

func (c *Client) mustBePrivate() error {
	if c.base.Scheme == "https" || isLoopback(c.base.Hostname()) || c.cfg.InsecureAllowPlaintext {
		return nil
	}
	return &Error{
		Condition: ErrInvalid,
		Reason:    fmt.Sprintf("%s is not https: others on the network could read the tokens, or have them sent elsewhere", c.base),
		Hint:      "use the https URL of the fabric",
	}
}

func (c *Client) transportError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if known := describeTLS(err); known != err {
		if record := (tls.RecordHeaderError{}); errors.As(err, &record) && isLoopback(c.base.Hostname()) {
			plain := *c.base
			plain.Scheme = "http"
			known = &Error{Condition: ErrInvalid, Reason: fmt.Sprintf("%s does not speak TLS", c.base.Host), Hint: "on this machine, use " + plain.String(), cause: err}
		} else if errors.As(err, &record) {
			known = &Error{Condition: ErrInvalid, Reason: fmt.Sprintf("%s does not speak TLS", c.base.Host), Hint: "check the URL and its port; an ACL endpoint speaks https", cause: err}
		}
		return known
	}
	reason := err.Error()
	if late := (net.Error)(nil); errors.As(err, &late) && late.Timeout() {
		reason = "no answer in time"
	}
	hint := ""
	if op := (*net.OpError)(nil); errors.As(err, &op) && op.Op == "dial" {
		hint = "check the URL and the network"
	}
	return &Error{Condition: ErrUnavailable, Reason: fmt.Sprintf("%s cannot be reached: %s", c.base, reason), Hint: hint, cause: err, transient: true}
}

// problem converts an error response to an error. If the response is not one of ours, for instance
// an error page of a proxy, only its status counts.
func (c *Client) problem(r request, resp *http.Response, data []byte) error {
	condition := statusCondition(resp.StatusCode)
	var p Problem
	if err := decodeAnswer(resp.Header.Get("Content-Type"), data, &p); err == nil && (p.Detail != "" || p.Title != "") {
		p.Detail, p.Title, p.Hint = sanitize(clipTo(maxSentenceBytes, p.Detail)), sanitize(clip(p.Title)), sanitize(clipTo(maxSentenceBytes, p.Hint))
		p.Type, p.Topic = sanitize(clip(p.Type)), sanitize(clip(p.Topic))
		p.Status = resp.StatusCode
		problem := &ProblemError{Problem: p, condition: condition}
		hint := p.Hint
		if condition == ErrUnauthenticated {
			hint = c.cfg.login // only we know where the credential came from
		}
		return &Error{Reason: problem.Error(), Hint: hint, cause: problem, transient: mayPass(resp.StatusCode)}
	}
	reason := fmt.Sprintf("%s answered with status %d", c.base, resp.StatusCode)
	hint := ""
	if location := resp.Header.Get("Location"); resp.StatusCode/100 == 3 {
		condition, hint = ErrInvalid, "use the URL that it names"
		reason = fmt.Sprintf("%s redirects to %q, and tokens do not follow redirects", c.base, redactURL(location))
	} else if condition == ErrUnauthenticated {
		hint = c.cfg.login
	}
	return r.wrap(&Error{Condition: condition, Reason: reason, Hint: hint, transient: mayPass(resp.StatusCode)})
}

// mayPass reports whether a status says that the same request may succeed soon.
func mayPass(status int) bool {
	switch status {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// redactURL returns the scheme, host and path of a URL. The rest may contain secrets.
func redactURL(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "?"
	}
	return clip((&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String())
}

// statusCondition returns the condition for an HTTP status.
func statusCondition(status int) error {
	switch status {
	case http.StatusUnauthorized:
		return ErrUnauthenticated
	case http.StatusForbidden:
		return ErrPermission
	case http.StatusNotFound, http.StatusGone:
		return ErrNotFound
	case http.StatusConflict:
		return ErrConflict
	case http.StatusTooManyRequests:
		return ErrUnavailable
	}
	if status >= 500 && status != http.StatusNotImplemented {
		return ErrUnavailable
	}
	return ErrInvalid
}

// decodeAnswer parses a response that must be a single JSON document.
func decodeAnswer(contentType string, data []byte, out any) error {
	media, _, err := mime.ParseMediaType(contentType)
	if err != nil || media != "application/json" && !strings.HasSuffix(media, "+json") {
		return fmt.Errorf("it answered with %q instead of JSON", clip(contentType))
	}
	if err := json.Unmarshal(data, out); err != nil {
		return errors.New("its JSON is not what it should be")
	}
	return nil
}
