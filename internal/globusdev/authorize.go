package globusdev

import (
	"crypto/rand"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/google/uuid"
)

const (
	authCodePath   = "/v2/web/auth-code"
	maxStateBytes  = 4 << 10
	maxRedirectURI = 2 << 10
)

// authorization is a valid request to the authorize endpoint.
type authorization struct {
	client    *Client
	redirect  string
	state     string
	nonce     string
	challenge string
	scopes    []*scopeNode
	offline   bool
	params    params
}

// redirectError is an error that is reported to the client through the browser.
type redirectError struct{ code, description string }

func (e *redirectError) Error() string { return e.code + ": " + e.description }

// serveAuthorize shows the page on which the user picks an identity. If the request names an
// identity, it redirects at once. The page posts its form to the same endpoint.
func (s *Server) serveAuthorize(w http.ResponseWriter, r *http.Request) error {
	p, err := authorizeParams(r)
	if err != nil {
		return authorizeError(err)
	}
	noteAuthorize(w, p)
	a := &authorization{state: p["state"], params: p}
	if a.client, err = s.authorizingClient(p["client_id"]); err != nil {
		return err
	}
	noteClient(w, a.client.ID)
	if a.redirect, err = s.checkRedirect(a.client, p["redirect_uri"]); err != nil {
		return err
	}
	var told *redirectError
	if err := s.checkAuthorization(a); errors.As(err, &told) {
		return s.redirect(w, r, a, url.Values{"error": {told.code}, "error_description": {told.description}})
	} else if err != nil {
		return err
	}
	switch {
	case !s.admit(r, p):
		return s.showLocked(w, a)
	case p["dev_user"] == "":
		return s.showPicker(w, a)
	}
	secret, err := s.newCode(a, p["dev_user"])
	if err != nil {
		return err
	}
	return s.redirect(w, r, a, url.Values{"code": {secret}})
}

func authorizeParams(r *http.Request) (params, error) {
	if r.Method == http.MethodPost {
		return parseForm(r)
	}
	return parseParams(r.URL.RawQuery)
}

// authorizeError shows the error of a malformed request as a page, because a user sees it.
func authorizeError(err error) error {
	var api *apiError
	if errors.As(err, &api) {
		if body, ok := api.body.(oauthBody); ok {
			return newPageError(api.status, body.Description)
		}
	}
	return newPageError(http.StatusBadRequest, err.Error())
}

func (s *Server) authorizingClient(id string) (*Client, error) {
	if id == "" {
		return nil, newPageError(http.StatusBadRequest, "Missing client_id parameter.")
	}
	client := s.client(id)
	if client == nil {
		return nil, newPageError(http.StatusBadRequest, "Invalid client_id parameter value.")
	}
	return client, nil
}

// checkRedirect returns the redirect URI, if it is allowed. Before this check the browser must not
// be redirected.
func (s *Server) checkRedirect(client *Client, redirect string) (string, error) {
	u, err := url.Parse(redirect)
	switch {
	case redirect == "":
		return "", newPageError(http.StatusBadRequest, "Missing redirect URI.")
	case err != nil || len(redirect) > maxRedirectURI || u.Scheme == "" || u.User != nil || strings.ContainsAny(redirect, "\\ \t\r\n#"):
		return "", newPageError(http.StatusBadRequest, "Invalid redirect URI.")
	case slices.Contains(client.RedirectURIs, redirect), redirect == s.cfg.Issuer+authCodePath:
		return redirect, nil
	case client.public() && isNativeLoopback(u):
		return redirect, nil
	}
	return "", newPageError(http.StatusBadRequest, "Mismatching redirect URI.")
}

// isNativeLoopback reports whether the host is one that Globus is known to accept for native
// clients. [::1] is not.
func isNativeLoopback(u *url.URL) bool {
	return u.Scheme == "http" && (u.Hostname() == "localhost" || u.Hostname() == "127.0.0.1")
}

// checkAuthorization checks and stores the remaining parameters.
func (s *Server) checkAuthorization(a *authorization) error {
	p := a.params
	if len(a.state) > maxStateBytes {
		a.state = ""
		return &redirectError{"invalid_request", "state is too long"}
	}
	if len(p["nonce"]) > maxStateBytes {
		return &redirectError{"invalid_request", "nonce is too long"}
	}
	if p["response_type"] != "code" {
		return &redirectError{"unsupported_response_type", "response_type must be code"}
	}
	challenge, method := p["code_challenge"], p["code_challenge_method"]
	switch {
	case challenge == "" && method != "":
		return &redirectError{"invalid_request", "Code challenge required."}
	case challenge == "" && a.client.public():
		return &redirectError{"invalid_request", "Code challenge required."}
	case challenge != "" && method != "S256":
		return &redirectError{"invalid_request", "Transform algorithm not supported."}
	case challenge != "" && !isChallenge(challenge):
		return &redirectError{"invalid_request", "The code challenge is not a SHA-256 hash in base64url."}
	}
	if access := p["access_type"]; access != "" && access != "online" && access != "offline" {
		return &redirectError{"invalid_request", "access_type must be online or offline"}
	}
	nodes, err := parseScopes(p["scope"])
	if err != nil {
		return &redirectError{"invalid_scope", err.Error()}
	}
	nodes, offline := withoutOffline(nodes)
	if unknown := s.unknownScope(nodes); unknown != "" {
		return &redirectError{"invalid_scope", "unknown scope " + clip(unknown)}
	}
	if len(nodes) == 0 {
		return &redirectError{"invalid_scope", "no scope is asked for"}
	}
	a.challenge, a.nonce, a.scopes, a.offline = challenge, p["nonce"], nodes, offline || p["access_type"] == "offline"
	switch {
	case p["dev_deny"] != "":
		return &redirectError{"access_denied", "The user did not consent."}
	case p["prompt"] == "none" && p["dev_user"] == "":
		return &redirectError{"login_required", "Nobody is logged in."}
	}
	return nil
}

// isChallenge reports whether text may be a SHA-256 hash in base64url.
func isChallenge(text string) bool {
	return len(text) == 43 && !strings.ContainsFunc(text, func(r rune) bool { return !isUnreserved(r) || r == '.' || r == '~' })
}

// isUnreserved reports whether a code verifier may contain r (RFC 7636, section 4.1).
func isUnreserved(r rune) bool {
	return 'A' <= r && r <= 'Z' || 'a' <= r && r <= 'z' || '0' <= r && r <= '9' || strings.ContainsRune("-._~", r)
}

// withoutOffline removes the scope offline_access, which only requests refresh tokens.
func withoutOffline(nodes []*scopeNode) (rest []*scopeNode, offline bool) {
	for _, node := range nodes {
		if node.name == scopeOffline {
			offline = true
		} else {
			rest = append(rest, node)
		}
	}
	return rest, offline
}

// unknownScope returns the first scope that is not registered, or "".
func (s *Server) unknownScope(nodes []*scopeNode) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state.unknownScope(nodes)
}

func (st *state) unknownScope(nodes []*scopeNode) string {
	for _, node := range nodes {
		if st.scopes[node.name] == nil {
			return node.name
		}
		if unknown := st.unknownScope(node.children); unknown != "" {
			return unknown
		}
	}
	return ""
}

// newCode creates an authorization code for the picked identity, and marks the request's ticket as
// used.
func (s *Server) newCode(a *authorization, who string) (string, error) {
	secret := "dev-code-" + rand.Text()
	s.mu.Lock()
	defer s.mu.Unlock()
	picked, ok := s.state.find(who)
	if !ok {
		return "", newPageError(http.StatusBadRequest, "There is no development identity "+clip(who)+".")
	}
	now := s.nowLocked()
	if len(s.state.codes) >= s.cfg.MaxTokens {
		s.state.prune(now)
	}
	if len(s.state.codes) >= s.cfg.MaxTokens {
		return "", newPageError(http.StatusServiceUnavailable, "Too many authorization codes are open.")
	}
	if !s.use(a.params[ticketParameter]) {
		return "", newPageError(http.StatusForbidden, "This address was good for one login, and has been used.")
	}
	return secret, s.commit(&entry{Code: &code{
		Hash:      digestOf(secret),
		Client:    a.client.ID,
		Redirect:  a.redirect,
		Challenge: a.challenge,
		Scope:     formatScopes(a.scopes),
		State:     a.state,
		Nonce:     a.nonce,
		Offline:   a.offline,
		Expiry:    now.Add(s.cfg.CodeLifetime).Unix(),
		login:     login{Subject: picked.person.ID, Picked: picked.ID, Session: uuid.NewString(), Time: now.Unix()},
	}})
}

// redirect redirects the browser to the client.
func (s *Server) redirect(w http.ResponseWriter, r *http.Request, a *authorization, answer url.Values) error {
	if a.state != "" {
		answer.Set("state", a.state)
	}
	separator := "?"
	if strings.Contains(a.redirect, "?") {
		separator = "&"
	}
	status := http.StatusFound
	if r.Method == http.MethodPost {
		status = http.StatusSeeOther // makes the browser send a GET, whatever the method of this request
	}
	w.Header().Set("Referrer-Policy", "no-referrer")
	w.Header().Set("Location", a.redirect+separator+answer.Encode())
	w.WriteHeader(status)
	return nil
}
