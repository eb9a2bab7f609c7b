package globus

import (
	"context"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// DefaultIssuer is the production Globus Auth.
const DefaultIssuer = "https://auth.globus.org"

// Config says which Globus Auth a [Client] talks to, and as what.
type Config struct {
	// Issuer is the base URL of Globus Auth. Plain http is taken for loopback
	// addresses only. Default: [DefaultIssuer].
	Issuer string

	// ClientID is the UUID under which the program is registered. Required.
	ClientID string

	// ClientSecret makes this a confidential client: a service. It is empty in
	// programs that people install, which have nothing to hide it in.
	ClientSecret Secret

	// HTTPClient carries the requests, for instance with a CA of its own.
	// Redirects are never followed. Default: one with timeouts.
	HTTPClient *http.Client

	// Product and Version name the program to Globus. Default: diaspora, devel.
	Product, Version string

	// Now is the clock. Default: time.Now.
	Now func() time.Time

	// Diagnostics receives what needs no error: a refresh that failed while the
	// token was still good, tokens that could not be saved. Nil discards it.
	Diagnostics *slog.Logger
}

// ConfigFromEnv returns a Config for the Globus Auth that Globus's own variables
// GLOBUS_SDK_SERVICE_URL_AUTH (a URL) or GLOBUS_SDK_ENVIRONMENT ("preview")
// name, as Globus's Python SDK understands them. All but Issuer is left to set.
func ConfigFromEnv(getenv func(string) string) (Config, error) {
	if u := getenv("GLOBUS_SDK_SERVICE_URL_AUTH"); u != "" {
		issuer, err := parseIssuer(u)
		if err != nil {
			return Config{}, fmt.Errorf("GLOBUS_SDK_SERVICE_URL_AUTH: %w", err)
		}
		return Config{Issuer: issuer}, nil
	}
	switch env := getenv("GLOBUS_SDK_ENVIRONMENT"); env {
	case "", "production":
		return Config{Issuer: DefaultIssuer}, nil
	case "preview":
		return Config{Issuer: "https://auth.preview.globus.org"}, nil
	case "sandbox", "integration", "test", "staging":
		return Config{Issuer: "https://auth." + env + ".globuscs.info"}, nil
	default:
		return Config{}, fmt.Errorf("GLOBUS_SDK_ENVIRONMENT: unknown environment %q", env)
	}
}

// parseIssuer checks a base URL and returns it as Globus Auth writes it: without a
// slash at the end.
func parseIssuer(s string) (string, error) {
	u, err := url.Parse(strings.TrimRight(s, "/"))
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", errors.New("the issuer of Globus Auth must be a URL like https://auth.globus.org")
	}
	switch u.Scheme {
	case "https":
	case "http":
		ip := net.ParseIP(u.Hostname())
		if u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return "", fmt.Errorf("issuer %s: plain http is for loopback addresses only, since tokens go there", u)
		}
	default:
		return "", fmt.Errorf("issuer %s: want https", u)
	}
	return u.String(), nil
}

// Client talks to one Globus Auth as one registered client. It may be used
// concurrently, and needs no Close.
type Client struct {
	issuer   string
	clientID string
	secret   sealed[Secret] // nil for a native client
	http     *http.Client
	now      func() time.Time
	diag     *slog.Logger

	userAgent, clientInfo string

	// skew is how far the local clock is ahead of Globus Auth's, as the last
	// answer showed. Nil until then.
	skew atomic.Pointer[time.Duration]

	keys struct {
		sync.Mutex
		set []*rsa.PublicKey // of ID tokens; nil until fetched
	}
}

// New returns a Client. It does not touch the network.
func New(cfg Config) (*Client, error) {
	if cfg.Issuer == "" {
		cfg.Issuer = DefaultIssuer
	}
	issuer, err := parseIssuer(cfg.Issuer)
	if err != nil {
		return nil, err
	}
	switch id := cfg.ClientID; {
	case id == "":
		return nil, errors.New("the ID of the Globus Auth client is missing")
	case strings.Contains(id, "@"):
		return nil, fmt.Errorf("client ID %q is a username; want the client's UUID", id)
	case len(id) > 128 || strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == ':' }):
		return nil, fmt.Errorf("client ID %.40q is not one; want the client's UUID", id)
	}
	c := &Client{
		issuer:   issuer,
		clientID: cfg.ClientID,
		now:      cfg.Now,
		diag:     cfg.Diagnostics,
	}
	if cfg.ClientSecret != "" {
		c.secret = seal(cfg.ClientSecret)
	}
	if c.now == nil {
		c.now = time.Now
	}
	if c.diag == nil {
		c.diag = slog.New(slog.DiscardHandler)
	}
	c.http = httpClient(cfg.HTTPClient)
	product, version := plainWord(cfg.Product, "diaspora"), plainWord(cfg.Version, "devel")
	c.userAgent = product + "/" + version
	c.clientInfo = "product=" + product + ",version=" + version
	return c, nil
}

// Issuer returns the base URL of Globus Auth, which is what tokens name as issuer.
func (c *Client) Issuer() string { return c.issuer }

// ClientID returns the ID that the client was made with.
func (c *Client) ClientID() string { return c.clientID }

// String names the client, without its secret.
func (c *Client) String() string { return "Globus Auth client " + c.clientID + " at " + c.issuer }

// httpClient returns a copy of h that follows no redirects: they would carry
// tokens to wherever an answer points.
func httpClient(h *http.Client) *http.Client {
	var own http.Client
	if h != nil {
		own = *h
	} else {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.ResponseHeaderTimeout = attemptTimeout
		own.Transport = t
	}
	own.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	own.Jar = nil
	return &own
}

// plainWord returns s if it can stand in the X-Globus-Client-Info header, where
// some characters separate.
func plainWord(s, fallback string) string {
	if s == "" || len(s) > 64 || strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(";,=", r)
	}) {
		return fallback
	}
	return s
}

// Limits of one exchange with Globus Auth.
const (
	maxAttempts    = 4
	attemptTimeout = 15 * time.Second
	maxPause       = 10 * time.Second // between attempts; who asks for more gets an error
	maxBodyBytes   = 1 << 20
)

// call is one request to Globus Auth.
type call struct {
	op     string // what it is for, for errors
	path   string
	form   url.Values // sent by POST; nil makes it a GET
	bearer Secret     // authenticates the call instead of the client
	public bool       // needs no authentication
	once   bool       // must not arrive twice: an authorization code
	paced  bool       // the caller decides when to ask again after a 429
	hide   []Secret   // secrets that the answer might repeat
}

// answer is what came back.
type answer struct {
	status   int
	header   http.Header
	body     []byte
	bearer   bool // the call was authenticated by an access token
	received time.Time
}

// do sends the call until there is an answer, and returns it if it is a success.
// Attempts are repeated after failures of the network, 429 and 5xx. That is safe
// for all calls but an authorization code's: a second refresh gets the same or
// the next token, and the other calls change nothing twice. A code
// is sent again only when the first attempt never got a connection.
func (c *Client) do(ctx context.Context, call call) (answer, error) {
	if c.secret != nil {
		basic := base64.StdEncoding.EncodeToString([]byte(c.clientID + ":" + c.secret().Reveal()))
		call.hide = append(call.hide, c.secret(), Secret(basic))
	}
	for attempt := 0; ; attempt++ {
		a, reached, err := c.attempt(ctx, call)
		var failure *Error
		switch {
		case err != nil && ctx.Err() != nil:
			return answer{}, fmt.Errorf("%s: %w", call.op, context.Cause(ctx))
		case err != nil:
			failure = &Error{Op: call.op, kind: kindOfFailure(err), cause: err}
		default:
			if failure = answerError(call.op, a, call.hide); failure == nil {
				return a, nil
			}
		}
		pause := max(failure.RetryAfter, backoff(attempt))
		if !mayRepeat(call, failure, reached) || attempt+1 == maxAttempts || pause > maxPause {
			return answer{}, failure
		}
		if err := sleep(ctx, pause); err != nil {
			return answer{}, fmt.Errorf("%s: %w", call.op, context.Cause(ctx))
		}
	}
}

func mayRepeat(call call, failure *Error, reached bool) bool {
	if call.once && reached {
		return false
	}
	if call.paced && failure.Status == http.StatusTooManyRequests {
		return false
	}
	switch failure.Status {
	case 0, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway,
		http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return errors.Is(failure, ErrUnavailable)
	}
	return false
}

// backoff is the pause after the given attempt, counted from 0.
func backoff(attempt int) time.Duration {
	base := 250*time.Millisecond + rand.N(500*time.Millisecond)
	return min(base<<attempt, maxPause)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// attempt sends the call once. reached tells whether a connection was made, so
// that Globus Auth may have seen it.
func (c *Client) attempt(ctx context.Context, call call) (a answer, reached bool, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, attemptTimeout, errNoAnswer)
	defer cancel()
	var connected atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { connected.Store(true) },
	})
	req, err := c.request(ctx, call)
	if err != nil {
		return answer{}, false, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return answer{}, connected.Load(), transportError(ctx, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBodyBytes+1))
	if err != nil {
		return answer{}, true, transportError(ctx, err)
	}
	if len(body) > maxBodyBytes {
		return answer{}, true, errTooLarge
	}
	now := c.now()
	c.measureSkew(resp.Header, now)
	return answer{resp.StatusCode, resp.Header, body, call.bearer != "", now}, true, nil
}

var errTooLarge = errors.New("the answer is too large")

var errNoAnswer = fmt.Errorf("no answer within %v", attemptTimeout)

// transportError keeps what a person can use of an error of package http.
func transportError(ctx context.Context, err error) error {
	if context.Cause(ctx) == errNoAnswer {
		return errNoAnswer
	}
	if e := (*url.Error)(nil); errors.As(err, &e) {
		return e.Err // the URL says nothing that the operation does not
	}
	return err
}

func (c *Client) request(ctx context.Context, call call) (*http.Request, error) {
	method, form := http.MethodGet, url.Values{}
	if call.form != nil {
		method = http.MethodPost
		for k, v := range call.form {
			form[k] = v
		}
		if c.secret == nil && !call.public && call.bearer == "" {
			form.Set("client_id", c.clientID)
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, c.issuer+call.path, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, err
	}
	if call.form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", c.userAgent)
	req.Header.Set("X-Globus-Client-Info", c.clientInfo)
	switch {
	case call.public:
	case call.bearer != "":
		req.Header.Set("Authorization", "Bearer "+call.bearer.Reveal())
	case c.secret != nil:
		// Raw, as Globus's own SDKs do it, not percent-encoded as RFC 6749
		// section 2.3.1 has it: Globus's secrets contain + / =.
		req.SetBasicAuth(c.clientID, c.secret().Reveal())
	}
	return req, nil
}

// measureSkew compares the local clock with the Date of an answer, which is
// precise to a second and the network's delay, unless it comes out of a cache.
func (c *Client) measureSkew(h http.Header, now time.Time) {
	if date, err := http.ParseTime(h.Get("Date")); err == nil && h.Get("Age") == "" {
		skew := now.Sub(date).Truncate(time.Second)
		c.skew.Store(&skew)
	}
}

// ClockSkew returns how far the local clock is ahead of Globus Auth's (behind, if
// negative), to a second, as the last answer showed; ok is false before the first.
func (c *Client) ClockSkew() (skew time.Duration, ok bool) {
	if s := c.skew.Load(); s != nil {
		return *s, true
	}
	return 0, false
}

// Refresh trades a refresh token for an access token. The answer's refresh token
// may be a new one, which the caller must save before all else; without one in
// the answer it is the given one. The error is [ErrLoginRequired] if the refresh
// token is no longer good.
//
// Refresh does not care who else refreshes with the same token; [Client.StoredSource] does.
func (c *Client) Refresh(ctx context.Context, refresh Secret) (Token, error) {
	const op = "refresh token"
	if err := checkSecret(refresh); err != nil {
		return Token{}, &Error{Op: op, kind: ErrLoginRequired, cause: fmt.Errorf("the refresh token %w", err)}
	}
	doc, err := c.tokens(ctx, call{
		op:   op,
		form: url.Values{"grant_type": {"refresh_token"}, "refresh_token": {refresh.Reveal()}},
		hide: []Secret{refresh},
	})
	if err != nil {
		return Token{}, err
	}
	token := doc.tokens[0]
	if token.RefreshToken == "" {
		token.RefreshToken = refresh
	}
	return token, nil
}

// ClientCredentials returns access tokens for the client itself, one for each
// resource server that the scopes belong to. The client must have a secret.
func (c *Client) ClientCredentials(ctx context.Context, scopes ...string) ([]Token, error) {
	const op = "get client credentials"
	if c.secret == nil {
		return nil, &Error{Op: op, kind: ErrClientRefused, cause: errors.New("the client has no secret")}
	}
	doc, err := c.tokens(ctx, call{
		op:   op,
		form: url.Values{"grant_type": {"client_credentials"}, "scope": {strings.Join(scopes, " ")}},
	})
	return doc.tokens, err
}

// tokens makes a call of the token endpoint.
func (c *Client) tokens(ctx context.Context, call call) (tokenResponse, error) {
	call.path = "/v2/oauth2/token"
	a, err := c.do(ctx, call)
	if err != nil {
		return tokenResponse{}, err
	}
	doc, err := parseTokens(a.body, a.received)
	if err != nil {
		return tokenResponse{}, malformed(call.op, err.Error())
	}
	return doc, nil
}

// Revoke ends an access or refresh token. Revoking a token that is already dead
// succeeds. Revoking a refresh token may leave its access tokens alive: revoke both.
func (c *Client) Revoke(ctx context.Context, token Secret) error {
	_, err := c.do(ctx, call{
		op:   "revoke token",
		path: "/v2/oauth2/token/revoke",
		form: url.Values{"token": {token.Reveal()}},
		hide: []Secret{token},
	})
	return err
}

// UserInfo asks who an access token for Globus Auth itself (scope openid) belongs
// to. The error is [ErrRefused] if the token is not good for that.
func (c *Client) UserInfo(ctx context.Context, access Secret) (Identity, error) {
	const op = "get user information"
	if err := checkSecret(access); err != nil {
		return Identity{}, fmt.Errorf("%s: %w", op, &RefusedError{Reason: "the access token " + err.Error()})
	}
	a, err := c.do(ctx, call{op: op, path: "/v2/oauth2/userinfo", bearer: access, hide: []Secret{access}})
	if err != nil {
		return Identity{}, err
	}
	var claims identityClaims
	if err := json.Unmarshal(a.body, &claims); err != nil {
		return Identity{}, malformed(op, "the answer names nobody")
	}
	return claims.identity(op)
}

// identityClaims is what an ID token and userinfo say of a person.
type identityClaims struct {
	Subject      looseString `json:"sub"`
	Username     looseString `json:"preferred_username"`
	Name         looseString `json:"name"`
	Email        looseString `json:"email"`
	Organization looseString `json:"organization"`
	IdentitySet  []struct {
		Subject looseString `json:"sub"`
	} `json:"identity_set"`
}

// identity returns whom the claims name, which is an error if that is nobody, or none of Globus's.
func (c identityClaims) identity(op string) (Identity, error) {
	subject, err := subjectOf(op, c.Subject)
	if err != nil {
		return Identity{}, err
	}
	id := Identity{
		Subject:      subject,
		Username:     clean(string(c.Username), nil),
		Name:         clean(string(c.Name), nil),
		Email:        clean(string(c.Email), nil),
		Organization: clean(string(c.Organization), nil),
	}
	for _, linked := range c.IdentitySet {
		if subject := word(linked.Subject); subject != "" {
			id.IdentitySet = append(id.IdentitySet, subject)
		}
	}
	return id, nil
}

// Introspect asks Globus Auth about an access token that a caller presented. The
// client must be the resource server, with its secret. The error is [ErrRefused]
// if the token is not active: expired, revoked or never issued.
//
// An active token may be meant for somebody else altogether: servers use an
// [Authenticator], which checks that and caches.
func (c *Client) Introspect(ctx context.Context, token Secret) (TokenInfo, error) {
	const op = "introspect token"
	if err := checkSecret(token); err != nil {
		return TokenInfo{}, &RefusedError{Reason: "the access token " + err.Error()}
	}
	a, err := c.do(ctx, call{
		op:   op,
		path: "/v2/oauth2/token/introspect",
		form: url.Values{"token": {token.Reveal()}, "include": {"identity_set"}},
		hide: []Secret{token},
		// To ask again would make it worse: there may be thousands of tokens to ask about.
		paced: true,
	})
	if err != nil {
		return TokenInfo{}, err
	}
	return parseTokenInfo(op, a.body)
}
