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
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/diaspora-streams/diaspora/internal/backoff"
)

// DefaultIssuer is the production Globus Auth.
const DefaultIssuer = "https://auth.globus.org"

// Config says which Globus Auth a [Client] uses, and as which client.
type Config struct {
	// Issuer is the base URL of Globus Auth. Plain http is allowed only for loopback addresses.
	// Default: [DefaultIssuer].
	Issuer string

	// ClientID is the UUID under which the program is registered at Globus. Required.
	ClientID string

	// ClientSecret makes this a confidential client, such as a service. Leave it empty in programs
	// that people install, because they cannot keep it secret.
	ClientSecret Secret

	// HTTPClient sends the requests. Set it to use another CA, for instance. Redirects are never
	// followed. Default: a client with timeouts.
	HTTPClient *http.Client

	// Product and Version name the program to Globus. Defaults: diaspora and devel.
	Product, Version string

	// Now returns the current time. Default: time.Now.
	Now func() time.Time

	// Diagnostics receives messages about problems that are not returned as errors: for instance, a
	// refresh that failed while the token was still valid, or tokens that could not be saved. Nil
	// discards them.
	Diagnostics *slog.Logger
}

// ConfigFromEnv returns a Config for the Globus Auth that the variables of Globus's Python SDK
// name: GLOBUS_SDK_SERVICE_URL_AUTH (a URL) or GLOBUS_SDK_ENVIRONMENT (such as "preview"). It sets
// only Issuer.
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

// parseIssuer checks a base URL and returns it as Globus Auth writes it, without a trailing slash.
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

// Client is a client of one Globus Auth, with one client registration. It may be used concurrently,
// and needs no Close.
type Client struct {
	issuer   string
	clientID string
	secret   sealed[Secret] // nil for a native client
	http     *http.Client
	now      func() time.Time
	diag     *slog.Logger

	userAgent, clientInfo string

	// skew is how far the local clock is ahead of Globus Auth's, measured at the last response. It
	// is nil before the first.
	skew atomic.Pointer[time.Duration]

	keys struct {
		sync.Mutex
		set []*rsa.PublicKey // public keys for ID tokens; nil until fetched
	}
}

// New returns a Client. It does not use the network.
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

// Issuer returns the base URL of Globus Auth. Tokens have it as their issuer.
func (c *Client) Issuer() string { return c.issuer }

// ClientID returns the client ID in the Client's Config.
func (c *Client) ClientID() string { return c.clientID }

// String names the client, without its secret.
func (c *Client) String() string { return "Globus Auth client " + c.clientID + " at " + c.issuer }

// httpClient returns a copy of h that follows no redirects, because these would send tokens to
// whatever host the response names.
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

// plainWord returns s if it contains none of the separators of the X-Globus-Client-Info header, and
// fallback otherwise.
func plainWord(s, fallback string) string {
	if s == "" || len(s) > 64 || strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(";,=", r)
	}) {
		return fallback
	}
	return s
}

// Limits of one request to Globus Auth.
const (
	maxAttempts    = 4
	attemptTimeout = 15 * time.Second
	maxPause       = 10 * time.Second // maximum between attempts; if Globus Auth asks for more, the call fails
	maxBodyBytes   = 1 << 20
)

// call is one request to Globus Auth or, if groups is set, to Globus Groups.
type call struct {
	op     string // the operation, for errors
	groups string // the base URL of Globus Groups
	path   string
	form   url.Values // sent with POST; nil makes it a GET, unless json is set
	json   []byte     // sent with POST
	bearer Secret     // the access token that authenticates the call, instead of the client
	public bool       // needs no authentication
	once   bool       // must not arrive twice: it contains an authorization code
	paced  bool       // after status 429, the caller decides when to retry
	hide   []Secret   // secrets that the response might repeat
	// maxBytes is the maximum size of a successful response. Default: maxBodyBytes.
	maxBytes int64
}

// answer is a response of Globus Auth.
type answer struct {
	status   int
	header   http.Header
	body     []byte
	bearer   bool // the call was authenticated with an access token
	received time.Time
}

// do sends the call, retries it if necessary, and returns a successful response. It retries after
// network failures, status 429 and 5xx. Retrying is safe for all calls except one with an
// authorization code: repeating a refresh returns the same or the next token, and repeating the
// other calls changes nothing. A call with an authorization code is retried only if the attempt got
// no connection.
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
		if call.groups != "" {
			failure.service = groupsService
		}
		pause := max(failure.RetryAfter, backoff.Delay(attempt, 750*time.Millisecond, maxPause))
		if !mayRepeat(call, failure, reached) || attempt+1 == maxAttempts || pause > maxPause {
			return answer{}, failure
		}
		if !backoff.Sleep(ctx, pause) {
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

// attempt sends the call once. reached reports whether it got a connection, so that Globus Auth may
// have received the call.
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
	limit := int64(maxBodyBytes)
	if resp.StatusCode == http.StatusOK {
		limit = max(limit, call.maxBytes)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return answer{}, true, transportError(ctx, err)
	}
	switch {
	case int64(len(body)) <= limit:
	case limit > maxBodyBytes:
		return answer{}, true, errManyMembers // only the members of a group may take so much
	default:
		return answer{}, true, errTooLarge
	}
	now := c.now()
	if call.groups == "" {
		c.measureSkew(resp.Header, now)
	}
	return answer{resp.StatusCode, resp.Header, body, call.bearer != "", now}, true, nil
}

var errTooLarge = errors.New("the answer is too large")

var errNoAnswer = fmt.Errorf("no answer within %v", attemptTimeout)

// transportError removes what people cannot use from an error of package http.
func transportError(ctx context.Context, err error) error {
	if context.Cause(ctx) == errNoAnswer {
		return errNoAnswer
	}
	if e := (*url.Error)(nil); errors.As(err, &e) {
		return e.Err // the operation already says what was requested
	}
	return err
}

func (c *Client) request(ctx context.Context, call call) (*http.Request, error) {
	method, form := http.MethodGet, url.Values{}
	if call.json != nil {
		method = http.MethodPost
	}
	if call.form != nil {
		method = http.MethodPost
		for k, v := range call.form {
			form[k] = v
		}
		if c.secret == nil && !call.public && call.bearer == "" {
			form.Set("client_id", c.clientID)
		}
	}
	base := c.issuer
	if call.groups != "" {
		base = call.groups
	}
	body, kind := string(call.json), "application/json"
	if call.form != nil {
		body, kind = form.Encode(), "application/x-www-form-urlencoded"
	}
	req, err := http.NewRequestWithContext(ctx, method, base+call.path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	if method == http.MethodPost {
		req.Header.Set("Content-Type", kind)
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", c.userAgent)
	req.Header.Set("X-Globus-Client-Info", c.clientInfo)
	switch {
	case call.public:
	case call.bearer != "":
		req.Header.Set("Authorization", "Bearer "+call.bearer.Reveal())
	case c.secret != nil:
		// Do not percent-encode ID and secret, although RFC 6749, section 2.3.1 requires it.
		// Globus's own SDKs do not either, and Globus's secrets contain "+", "/" and "=".
		req.SetBasicAuth(c.clientID, c.secret().Reveal())
	}
	return req, nil
}

// measureSkew compares the local clock with the Date header of a response, unless the response
// comes from a cache. The result is precise to about a second plus the network's delay.
func (c *Client) measureSkew(h http.Header, now time.Time) {
	if date, err := http.ParseTime(h.Get("Date")); err == nil && h.Get("Age") == "" {
		skew := now.Sub(date).Truncate(time.Second)
		c.skew.Store(&skew)
	}
}

// ClockSkew returns how far the local clock is ahead of Globus Auth's (negative if it is behind),
// in whole seconds, measured at the last response. ok is false before the first.
func (c *Client) ClockSkew() (skew time.Duration, ok bool) {
	if s := c.skew.Load(); s != nil {
		return *s, true
	}
	return 0, false
}

// Refresh exchanges a refresh token for an access token. The returned Token may have a new refresh
// token, which the caller must save before anything else. If the response contains none, the Token
// has the given one. The error is [ErrLoginRequired] if the refresh token is no longer valid.
//
// Refresh does not coordinate with other programs that use the same refresh token;
// [Client.StoredSource] does.
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

// ClientCredentials returns access tokens for the client itself, one for each resource server that
// the scopes belong to. The client must have a secret.
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

// tokens sends a call to the token endpoint.
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

// Revoke revokes an access or refresh token. Revoking a token that is not valid any more succeeds.
// Revoking a refresh token may leave its access tokens valid, so revoke both.
func (c *Client) Revoke(ctx context.Context, token Secret) error {
	_, err := c.do(ctx, call{
		op:   "revoke token",
		path: "/v2/oauth2/token/revoke",
		form: url.Values{"token": {token.Reveal()}},
		hide: []Secret{token},
	})
	return err
}

// UserInfo returns the identity that an access token for Globus Auth itself (scope openid) belongs
// to. The error is [ErrRefused] if the token is not valid for that.
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
		return Identity{}, malformed(op, "the answer does not describe an identity")
	}
	return claims.identity(op)
}

// identityClaims is the part of an ID token, or of userinfo, that describes a person.
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

// identity returns the identity that the claims name. It fails if they have no subject, or none
// that Globus could have issued.
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

// Introspect asks Globus Auth about an access token that a caller has sent. The client must be the
// resource server and have its secret. The error is [ErrRefused] if the token is not active:
// expired, revoked or never issued.
//
// An active token may be meant for another service. Servers should use an [Authenticator], which
// checks that, and caches results.
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
		// Do not retry after status 429. There may be thousands of tokens to introspect, and
		// retrying each would overload Globus Auth further.
		paced: true,
	})
	if err != nil {
		return TokenInfo{}, err
	}
	return parseTokenInfo(op, a.body)
}
