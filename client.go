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

// Client talks to the ACL endpoint of a fabric, where topics are claimed and
// access keys are made. Use
// [NewClient]; its methods may be called concurrently. They return [ErrInvalid],
// [ErrUnauthenticated], [ErrPermission], [ErrNotFound], [ErrConflict],
// [ErrUnavailable], ctx's error, or what is not foreseen; an answer of the ACL
// endpoint itself is a [*ProblemError] as well.
type Client struct {
	cfg   Config
	base  *url.URL
	http  *http.Transport
	trial *kafka.Trial // of the access tokens
}

const (
	maxAnswerBytes = 16 << 20 // of a list of topics; anything else is far smaller
	requestTimeout = 60 * time.Second
	requestRetries = 4
)

// NewClient returns a client of the ACL endpoint at cfg.URL. It does not touch
// the network. Only [Client.Discover] works without cfg.TokenSource; with cfg.Key in its place
// [Client.Identity] and [Client.Key] do as well.
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

// Discover asks the fabric what a client needs to know. No token is sent, but tokens
// will go where the answer says: so it is not read over plain http, where anybody on
// the way could write it.
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
		return Discovery{}, f // it names the URL itself; "ask … for" would read like an order to the person
	}
	if err != nil {
		return Discovery{}, err
	}
	if err := d.validate(); err != nil {
		return Discovery{}, fmt.Errorf("ask %s for its configuration: %w", c.base, err)
	}
	return d, nil
}

// discoverOnce is Discover for those who ask nothing else. What the fabric said the last
// time is good as long as it is away.
func (c *Client) discoverOnce(ctx context.Context) (Discovery, error) {
	defer c.hangUp()
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

// hangUp gives the connection back after a single question: of the many programs of a
// job, none is to keep one that others wait for.
func (c *Client) hangUp() { c.http.CloseIdleConnections() }

// Identity returns who the caller is to the fabric: whose the token is, or the access key. Of
// a key's owner nothing is known but the subject.
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

// Claim makes the topic the caller's own, and returns once it works: the owner
// may write and read at once. Claiming what is already the caller's succeeds as
// well; Topic.Created tells the two apart. It changes nothing, and a claim that asks
// for settings that the topic does not have is [ErrConflict]. So is a topic of somebody
// else; a malformed name is [ErrInvalid].
func (c *Client) Claim(ctx context.Context, claim ClaimRequest) (Topic, error) {
	if err := ValidTopic(claim.Name); err != nil {
		return Topic{}, &TopicError{"claim", err.(*TopicError).Topic, err.(*TopicError).Err}
	}
	var t Topic
	// Claiming twice is claiming once, so a lost answer may be asked for again.
	err := c.do(ctx, request{
		op: "claim", topic: claim.Name, method: http.MethodPost, path: "/v1/topics", in: claim, again: true,
		out: &t, fault: func() string { return topicAnswerFault(t, claim.Name) },
	})
	return orZero(t, err)
}

// Release gives the topic up and deletes its events. It is [ErrNotFound] if there
// is no such topic, and [ErrPermission] if it is somebody else's.
func (c *Client) Release(ctx context.Context, name string) error {
	if !kafkaTopic(name) {
		return noTopic("release", name)
	}
	return c.do(ctx, request{op: "release", topic: name, method: http.MethodDelete, path: "/v1/topics/" + url.PathEscape(name)})
}

// Topics returns the caller's topics.
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

// Topic returns one topic of the caller's.
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

// noTopic is the error for a name that would lead to another path of the endpoint.
func noTopic(op, name string) error {
	return &TopicError{op, clip(name), invalid("no cluster has a topic of this name")}
}

// CreateKey gives the caller a new access key. Its secret is in this answer only.
// A name that the caller has a key of is [ErrConflict]. After [ErrUnavailable]
// there may be a key that nobody has the secret of: revoke it.
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

// Keys returns the access keys that the caller has, without their secrets.
func (c *Client) Keys(ctx context.Context) ([]AccessKey, error) {
	var list AccessKeyList
	err := c.do(ctx, request{
		op: "list access keys", method: http.MethodGet, path: "/v1/keys", again: true,
		out: &list, fault: func() string { return firstFault(list.Keys, keyFault) },
	})
	return orZero(list.Keys, err)
}

// Key returns one access key of the caller's, one that has ended included. An access key can
// ask for all of its owner's.
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

// RevokeKey ends an access key of the caller's: nobody can sign in with it any
// more, and connections that are open lose it soon. Revoking again succeeds.
func (c *Client) RevokeKey(ctx context.Context, id string) error {
	return c.do(ctx, request{op: "revoke access key", method: http.MethodDelete, path: "/v1/keys/" + url.PathEscape(id), again: true})
}

// Block shuts a subject out of the fabric; the caller must be one of its operators.
// No token and no access key of the subject's is accepted any more, and open connections
// are closed soon. Blocking again changes nothing. An operator cannot
// be blocked: that is [ErrConflict].
func (c *Client) Block(ctx context.Context, block BlockRequest) (Blocked, error) {
	var b Blocked
	err := c.do(ctx, request{
		op: "block", method: http.MethodPost, path: "/v1/admin/blocked", in: block, again: true,
		out: &b, fault: func() string { return blockedFault(b, block.Subject) },
	})
	return orZero(b, err)
}

// Unblock lets a subject in again; the caller must be an operator. It is [ErrNotFound] if
// the subject is not blocked.
func (c *Client) Unblock(ctx context.Context, subject string) error {
	return c.do(ctx, request{op: "unblock", method: http.MethodDelete, path: "/v1/admin/blocked/" + url.PathEscape(subject)})
}

// Blocked returns who is shut out of the fabric; the caller must be an operator.
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

// ProblemError is an error that the ACL endpoint answered with. Test its cause
// with [errors.Is].
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
	op     string // what is attempted; with a topic, its verb
	topic  string
	method string
	path   string        // below the base URL, escaped
	in     any           // the body, as JSON; nil for none
	out    any           // where the answer goes; nil if it is not looked at
	fault  func() string // says what is wrong with out once it is filled in, or ""; nil accepts anything
	public bool          // no token is needed
	key    bool          // an access key does as well
	again  bool          // idempotent: may be sent again
}

// orZero returns the zero value with an error, so that no part of a rejected answer is used.
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

// do sends the request, and again if that is safe and the endpoint was away or
// asked for patience: after a refused connection nothing has happened, and an
// idempotent call may happen twice. Nothing has happened after a refused token either:
// with another one, the request is sent once more.
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

// once sends the request, and returns the access token that it was sent with, if it was.
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
	// An http.Client follows redirects, or at least looks where they lead. They would
	// carry the token and the claim to whom they were not addressed.
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

// authorize says in a request who is asking, and only where nobody on the way can read it. It
// returns the access token, if there is one.
func (c *Client) authorize(ctx context.Context, r request, req *http.Request) (globus.Secret, error) {
	if r.public {
		return "", nil
	}
	if err := c.mustBePrivate(); err != nil {
		return "", err
	}
	switch key := c.cfg.Key; {
	case key != Key{} && r.key:
		req.SetBasicAuth(url.QueryEscape(key.ID), url.QueryEscape(key.Secret.Reveal())) // as OAuth has it
		return "", nil
	case key != Key{}:
		return "", c.personNeeded()
	case c.cfg.TokenSource == nil:
		return "", &Error{Condition: ErrUnauthenticated, Reason: "there is no TokenSource", Hint: c.cfg.login}
	}
	token, err := trust.Token(ctx, c.cfg.TokenSource, c.base.Host, nil)
	if err != nil {
		return "", advise(explain(err), ErrUnauthenticated, c.cfg.login)
	}
	req.Header.Set("Authorization", "Bearer "+token.AccessToken.Reveal())
	return token.AccessToken, nil
}

// personNeeded is the error where an access key does not do.
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
		Reason:    fmt.Sprintf("%s is not https: whoever is on the way could read tokens, or have them sent elsewhere", c.base),
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

// problem turns an error answer into an error. An answer in another shape than
// ours, for instance a proxy's page, is known by its status alone.
func (c *Client) problem(r request, resp *http.Response, data []byte) error {
	condition := statusCondition(resp.StatusCode)
	var p Problem
	if err := decodeAnswer(resp.Header.Get("Content-Type"), data, &p); err == nil && (p.Detail != "" || p.Title != "") {
		p.Detail, p.Title, p.Hint = tidy(clipTo(maxSentenceBytes, p.Detail)), tidy(clip(p.Title)), tidy(clipTo(maxSentenceBytes, p.Hint))
		p.Type, p.Topic = tidy(clip(p.Type)), tidy(clip(p.Topic))
		p.Status = resp.StatusCode
		problem := &ProblemError{Problem: p, condition: condition}
		hint := p.Hint
		if condition == ErrUnauthenticated {
			hint = c.cfg.login // the endpoint does not know how we got the token
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

// mayPass reports whether a status speaks of trouble that often is over soon.
func mayPass(status int) bool {
	switch status {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// redactURL returns where a redirect leads, without what may be secret in it.
func redactURL(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "?"
	}
	return clip((&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String())
}

// statusCondition returns the condition that an HTTP status stands for.
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

// decodeAnswer parses one JSON document and nothing behind it.
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
