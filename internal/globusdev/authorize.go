package globusdev

import (
	"crypto/rand"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	authCodePath   = "/v2/web/auth-code"
	maxStateBytes  = 4 << 10 // limits state, and nonce
	maxRedirectURI = 2 << 10
	codeLifetime   = 10 * time.Minute
)

// authorization is a request to the authorize endpoint. client and redirect must be checked before the
// browser may be redirected. checkAuthorization fills in scopes and offline.
type authorization struct {
	client   *client
	redirect string
	state    string
	scopes   []ScopeDef
	offline  bool
	params   params
}

// serveAuthorize shows the page on which the user picks an identity. The page posts its form to the
// same endpoint. A request that names an identity is redirected at once. A request that may not log
// in gets the page that asks for the secret instead.
func (s *Server) serveAuthorize(w *recorder, r *http.Request) error {
	p, err := parseParams(r.URL.RawQuery)
	if r.Method == http.MethodPost {
		p, err = parseForm(r)
	}
	if err != nil { // shown as a page, because a user sees it
		status := http.StatusBadRequest
		if api := (*apiError)(nil); errors.As(err, &api) {
			status = api.status
		}
		return newPageError(status, err.Error())
	}
	w.noteParameters(p)
	a := &authorization{client: s.client(p["client_id"]), state: p["state"], redirect: p["redirect_uri"], params: p}
	switch {
	case p["client_id"] == "":
		return newPageError(http.StatusBadRequest, "Missing client_id parameter.")
	case a.client == nil:
		return newPageError(http.StatusBadRequest, "Invalid client_id parameter value.")
	}
	w.entry.ClientID = a.client.id
	// Before this check the browser must not be redirected.
	if why := s.redirectFault(a); why != "" {
		return newPageError(http.StatusBadRequest, why)
	}
	if code, why := s.checkAuthorization(a); code != "" {
		return redirect(w, r, a, url.Values{"error": {code}, "error_description": {why}})
	}
	switch {
	case !s.mayLogIn(r, p):
		return s.showSecretPage(w, r, a)
	case p["dev_user"] == "":
		return s.showPicker(w, a)
	}
	secret, err := s.newCode(a)
	if err != nil {
		return err
	}
	return redirect(w, r, a, url.Values{"code": {secret}})
}

// redirect redirects the browser to the client.
func redirect(w http.ResponseWriter, r *http.Request, a *authorization, answer url.Values) error {
	if a.state != "" {
		answer.Set("state", a.state)
	}
	separator := "?"
	if strings.Contains(a.redirect, "?") {
		separator = "&"
	}
	status := http.StatusFound
	if r.Method == http.MethodPost {
		status = http.StatusSeeOther // after a POST, StatusFound does not guarantee that the browser continues with a GET
	}
	w.Header().Set("Referrer-Policy", "no-referrer")
	w.Header().Set("Location", a.redirect+separator+answer.Encode())
	w.WriteHeader(status)
	return nil
}

// redirectFault returns why the redirect URI is not allowed, or "". All clients may use the page that
// shows the code. Public clients may also use http on localhost and 127.0.0.1 with any port.
func (s *Server) redirectFault(a *authorization) string {
	u, err := url.Parse(a.redirect)
	switch {
	case a.redirect == "":
		return "Missing redirect URI."
	case err != nil || len(a.redirect) > maxRedirectURI || u.Scheme == "" || u.User != nil || strings.ContainsAny(a.redirect, "\\ \t\r\n#"):
		return "Invalid redirect URI."
	case a.redirect != s.cfg.Issuer+authCodePath && !(a.client.public && isLoopbackRedirect(u)):
		return "Mismatching redirect URI."
	}
	return ""
}

// isLoopbackRedirect reports whether Globus is known to accept the redirect URI for public clients: with
// http, and with one of two hosts. [::1] is not among them.
func isLoopbackRedirect(u *url.URL) bool {
	return u.Scheme == "http" && (u.Hostname() == "localhost" || u.Hostname() == "127.0.0.1")
}

// checkAuthorization checks the remaining parameters. It returns the error that is reported to the
// client through the browser, if there is one.
func (s *Server) checkAuthorization(a *authorization) (code, description string) {
	p := a.params
	if len(a.state) > maxStateBytes {
		a.state = ""
		return "invalid_request", "state is too long"
	}
	s.mu.Lock()
	scopes, offline, err := s.state.parseScopes(p["scope"])
	s.mu.Unlock()
	access := p["access_type"]
	a.scopes, a.offline = scopes, offline || access == "offline"
	switch {
	case len(p["nonce"]) > maxStateBytes:
		return "invalid_request", "nonce is too long"
	case p["response_type"] != "code":
		return "unsupported_response_type", "response_type must be code"
	case p["code_challenge"] == "":
		return "invalid_request", "Code challenge required."
	case p["code_challenge_method"] != "S256":
		return "invalid_request", "code_challenge_method must be S256"
	case !isChallenge(p["code_challenge"]):
		return "invalid_request", "The code challenge is not a SHA-256 hash in base64url."
	case access != "" && access != "online" && access != "offline":
		return "invalid_request", "access_type must be online or offline"
	case err != nil:
		return "invalid_scope", err.Error()
	case p["dev_deny"] != "":
		return "access_denied", "The user did not consent."
	case p["prompt"] == "none" && p["dev_user"] == "":
		return "login_required", "Nobody is logged in."
	}
	return "", ""
}

// isChallenge reports whether text may be a SHA-256 hash in base64url.
func isChallenge(text string) bool {
	return len(text) == 43 && !strings.ContainsFunc(text, func(r rune) bool { return !isUnreserved(r) || r == '.' || r == '~' })
}

// isUnreserved reports whether a code verifier may contain r (RFC 7636, section 4.1).
func isUnreserved(r rune) bool {
	return 'A' <= r && r <= 'Z' || 'a' <= r && r <= 'z' || '0' <= r && r <= '9' || strings.ContainsRune("-._~", r)
}

// newCode creates an authorization code for the picked identity. If the request has a ticket (see
// WithTicket), it marks the ticket as used.
func (s *Server) newCode(a *authorization) (string, error) {
	secret := "dev-code-" + rand.Text()
	p := a.params
	s.mu.Lock()
	defer s.mu.Unlock()
	picked, ok := s.state.find(p["dev_user"])
	if !ok {
		return "", newPageError(http.StatusBadRequest, "There is no development identity "+clip(p["dev_user"])+".")
	}
	if picked.Status == statusClosed {
		return "", newPageError(http.StatusForbidden, "The identity "+clip(picked.Username)+" is closed.")
	}
	now := s.nowLocked()
	if len(s.state.codes) >= s.cfg.MaxTokens {
		s.state.prune(now)
	}
	if len(s.state.codes) >= s.cfg.MaxTokens {
		return "", newPageError(http.StatusServiceUnavailable, "Too many authorization codes are open.")
	}
	if !s.useTicket(p[ticketParameter]) {
		return "", newPageError(http.StatusForbidden, "This login link works only once, and has been used. Start the login again.")
	}
	var scopes []string
	for _, scope := range a.scopes {
		scopes = append(scopes, scope.Scope)
	}
	return secret, s.commit(&entry{Code: &code{
		Hash:      digestOf(secret),
		Client:    a.client.id,
		Redirect:  a.redirect,
		Challenge: p["code_challenge"],
		Scope:     strings.Join(scopes, " "),
		State:     a.state,
		Nonce:     p["nonce"],
		Offline:   a.offline,
		Expiry:    now.Add(codeLifetime).Unix(),
		login:     picked.login(now),
	}})
}
