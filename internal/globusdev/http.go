package globusdev

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
)

const (
	maxBodyBytes  = 64 << 10
	maxQueryBytes = 16 << 10
	maxParameters = 64
)

// handlerFunc answers a request, or returns an error for [Server.fail].
type handlerFunc func(w *recorder, r *http.Request) error

// route is a row of the routing table.
type route struct {
	path    string
	methods []string
	handle  handlerFunc
}

func (s *Server) table() []route {
	get, post := []string{http.MethodGet, http.MethodHead}, []string{http.MethodPost}
	both := slices.Concat(get, post)
	return []route{
		{"/{$}", get, s.serveHome},
		{"/style.css", get, s.serveStyle},
		{"/.well-known/openid-configuration", get, s.serveDiscovery},
		{"/jwk.json", get, s.serveKeys},
		{"/v2/oauth2/authorize", both, s.serveAuthorize},
		{"/v2/web/auth-code", get, s.serveAuthCode},
		{"/v2/oauth2/token", post, s.serveToken},
		{"/v2/oauth2/token/introspect", post, s.serveIntrospect},
		{"/v2/oauth2/token/revoke", post, s.serveRevoke},
		{"/v2/oauth2/userinfo", both, s.serveUserInfo},
		{"/v2/api/clients", get, s.serveClients},
		{"/v2/api/clients/{id}/fqdns", post, s.serveVerifyHost},
		{"/v2/api/clients/{id}/scopes", post, s.serveNewScope},
		{"/v2/api/identities", get, s.serveIdentities},
		{"/v2/api/identities/{id}", get, s.serveIdentity},
		{"/v2/api/scopes", get, s.serveScopes},
		{"/v2/groups/{id}", get, s.serveGroup}, // of the Groups API
	}
}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	for _, rt := range append(s.table(), s.controls()...) {
		mux.Handle(rt.path, s.serve(rt))
	}
	nothing := s.serve(route{path: "(unknown)", handle: func(*recorder, *http.Request) error { return nothingHere() }})
	mux.Handle("/", nothing)
	mux.Handle(strings.TrimSuffix(controlPrefix, "/"), nothing) // without the slash: ServeMux would redirect it and repeat the query, which may contain a code
	return mux
}

// serve wraps a route's handler in the guard and, except for the controls, in the request log and the
// failures that a test has asked for.
func (s *Server) serve(rt route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		now := s.now()
		rec := &recorder{ResponseWriter: w, entry: Request{Time: now, Method: clip(r.Method), Path: rt.path}}
		r.Body = http.MaxBytesReader(w, r.Body, maxBodyBytes)
		w.Header().Set("Date", now.UTC().Format(http.TimeFormat)) // time of the adjustable clock
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		control := strings.HasPrefix(rt.path, controlPrefix)
		if !control {
			defer func() { s.record(rec.entry) }()
		}
		err := s.guard(rec, r, rt, control)
		if err == nil && !control {
			if inj := s.nextFailure(rt.path); inj != nil {
				rec.entry.Injected = true
				if done := s.inject(rec, r, inj, rt.handle); done {
					return
				}
			}
		}
		if err == nil {
			err = rt.handle(rec, r)
		}
		if err != nil {
			s.fail(rec, err)
		}
	})
}

// guard refuses requests from other machines, to other host names, with another method, or with too
// long a query. It also refuses POSTs and controls that come from web pages of other sites, and
// controls without the secret.
func (s *Server) guard(w http.ResponseWriter, r *http.Request, rt route, control bool) error {
	switch {
	case !isLoopbackPeer(r.RemoteAddr):
		return globusError(http.StatusForbidden, "This development server answers its own machine only")
	case !isLoopbackHost(r.Host):
		return globusError(http.StatusMisdirectedRequest, "This development server answers to loopback names only")
	case len(r.URL.RawQuery) > maxQueryBytes:
		return globusError(http.StatusRequestURITooLong, "The query is too long")
	case rt.methods != nil && !slices.Contains(rt.methods, r.Method):
		w.Header().Set("Allow", strings.Join(rt.methods, ", "))
		return globusError(http.StatusMethodNotAllowed, "The method is not allowed here")
	case (control || r.Method == http.MethodPost) && !sameOrigin(r):
		return globusError(http.StatusForbidden, "The request comes from a page of another site")
	case control && !s.knowsSecret(r):
		w.Header().Set("WWW-Authenticate", "Bearer")
		return globusError(http.StatusUnauthorized, "Requests below "+controlPrefix+" need the secret of this server: use curl -H @FILE, with the file whose path diaspora up prints")
	}
	return nil
}

// isLoopbackPeer reports whether a request came from this machine. An empty address counts as this
// machine, because only a request that was made within this process has none.
func isLoopbackPeer(addr string) bool {
	if addr == "" {
		return true
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// sameOrigin reports whether a request comes from a page of this server, or from no page at all.
func sameOrigin(r *http.Request) bool {
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "none", "same-origin":
	default:
		return false
	}
	for _, origin := range r.Header.Values("Origin") {
		u, err := url.Parse(origin)
		if err != nil || u.Host == "" || u.Host != r.Host {
			return false
		}
	}
	return true
}

func (s *Server) now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nowLocked()
}

// apiError is a response in one of the two formats of Globus's errors.
type apiError struct {
	status int
	body   any
	detail string
}

func (e *apiError) Error() string { return e.detail }

type oauthBody struct {
	Error       string `json:"error"`
	Description string `json:"error_description,omitempty"`
}

// oauthError returns an error in the format of RFC 6749, section 5.2. An empty description is left
// out, as Globus Auth does in most cases.
func oauthError(status int, code, description string) *apiError {
	return &apiError{status, oauthBody{code, description}, description}
}

func invalidRequest(description string) *apiError {
	return oauthError(http.StatusBadRequest, "invalid_request", description)
}

func invalidScope(description string) *apiError {
	return oauthError(http.StatusBadRequest, "invalid_scope", description)
}

type globusBody struct {
	Errors []globusDetail `json:"errors"`
	oauthBody
}

type globusDetail struct {
	Status string `json:"status"`
	Code   string `json:"code"`
	ID     string `json:"id"`
	Title  string `json:"title"`
	Detail string `json:"detail"`
}

// globusError returns an error in Globus's own format, which is based on JSON:API.
func globusError(status int, detail string) *apiError {
	title := http.StatusText(status)
	code := strings.ToUpper(strings.ReplaceAll(title, " ", "_"))
	return &apiError{status, globusBody{
		Errors:    []globusDetail{{strconv.Itoa(status), code, uuid.NewString(), title, detail}},
		oauthBody: oauthBody{strings.ToLower(code), title},
	}, detail}
}

func nothingHere() error { return globusError(http.StatusNotFound, "There is nothing here") }

func unauthenticated() error {
	return globusError(http.StatusUnauthorized, "Call must be authenticated")
}

func badSecret() error { return globusError(http.StatusUnauthorized, "Basic auth failed") }

// fail sends an error response.
func (s *Server) fail(w http.ResponseWriter, err error) {
	var api *apiError
	var page *pageError
	switch {
	case errors.As(err, &page):
		s.writePage(w, page.status, "error", page)
		return
	case errors.As(err, &api):
	case errors.Is(err, errClosed):
		api = globusError(http.StatusServiceUnavailable, "The server is shutting down")
	default:
		s.log.Error("cannot answer", "err", err)
		api = globusError(http.StatusInternalServerError, "Internal error; the log of the server says what happened")
	}
	if api.status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	writeJSON(w, api.status, api.body)
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(body); err != nil {
		http.Error(w, "cannot encode the answer", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Pragma", "no-cache")
	w.WriteHeader(status)
	w.Write(out.Bytes()) // an error here is the client's problem
}

// params are the parameters of a query or a form. As in RFC 6749, a parameter without a value
// counts as omitted, and a parameter may not be repeated.
type params map[string]string

// parseParams parses a query or a form. Its errors may be shown to the client.
func parseParams(raw string) (params, error) {
	values, err := url.ParseQuery(raw)
	if err != nil {
		return nil, errors.New("the parameters are not properly encoded")
	}
	if len(values) > maxParameters {
		return nil, errors.New("too many parameters")
	}
	p := make(params, len(values))
	for name, list := range values {
		if len(list) > 1 {
			return nil, fmt.Errorf("the parameter %q is given more than once", clip(name))
		}
		if !isText(name) || !isText(list[0]) {
			return nil, fmt.Errorf("the parameter %q has characters that it cannot have", clip(name))
		}
		p[name] = list[0]
	}
	return p, nil
}

func isText(text string) bool {
	return utf8.ValidString(text) && !strings.ContainsFunc(text, func(r rune) bool {
		return (r < ' ' && r != '\t' && r != '\r' && r != '\n') || r == 0x7f
	})
}

// parseForm parses a form in a request's body. It ignores the query, because secrets must not be
// sent there.
func parseForm(r *http.Request) (params, error) {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "application/x-www-form-urlencoded" {
		return nil, invalidRequest("the body must be application/x-www-form-urlencoded")
	}
	body, err := readBody(r)
	if err != nil {
		return nil, err
	}
	p, err := parseParams(string(body))
	if err != nil {
		return nil, invalidRequest(err.Error())
	}
	return p, nil
}

func readBody(r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(r.Body)
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return nil, oauthError(http.StatusRequestEntityTooLarge, "invalid_request", "the body is too large")
	}
	if err != nil {
		return nil, invalidRequest("the body cannot be read")
	}
	return body, nil
}

// authenticateClient authenticates the client: by its secret, in the header or the form, or, if it
// is public, by its ID only.
func (s *Server) authenticateClient(w *recorder, r *http.Request, p params) (*client, error) {
	id, secret, basic, err := clientCredentials(r, p)
	if err != nil {
		return nil, err
	}
	c := s.client(id)
	if c != nil {
		w.entry.ClientID = c.id
	}
	hasSecret := basic || p["client_secret"] != ""
	switch {
	case c != nil && c.public && !hasSecret:
		return c, nil
	case !hasSecret:
		return nil, unauthenticated()
	case c == nil || c.public || !equalSecret(secret, c.secret.Reveal()):
		return nil, badSecret()
	}
	return c, nil
}

// clientCredentials returns the client's credentials. It takes Basic credentials as they are:
// Globus's own software sends secrets without the percent-encoding of RFC 6749.
func clientCredentials(r *http.Request, p params) (id, secret string, basic bool, err error) {
	headers := r.Header.Values("Authorization")
	if len(headers) == 0 {
		return p["client_id"], p["client_secret"], false, nil
	}
	id, secret, ok := r.BasicAuth()
	switch {
	case !ok || len(headers) > 1:
		return "", "", false, badSecret()
	case p["client_secret"] != "":
		return "", "", false, invalidRequest("the client is authenticated twice")
	case p["client_id"] != "" && p["client_id"] != id:
		return "", "", false, invalidRequest("client_id is not that of the Authorization header")
	}
	return id, secret, true, nil
}

func (s *Server) client(id string) *client {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state.clients[strings.ToLower(id)]
}

func equalSecret(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}
