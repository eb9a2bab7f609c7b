package globusdev

import (
	"net/http"
	"slices"
	"strings"
)

// inactive is the complete response for an invalid token, whatever the reason.
var inactive = map[string]bool{"active": false}

// tokenRequest authenticates the client of a request about a token.
func (s *Server) tokenRequest(w *recorder, r *http.Request) (*client, params, error) {
	p, err := parseForm(r)
	if err != nil {
		return nil, nil, err
	}
	c, err := s.authenticateClient(w, r, p)
	if err == nil && p["token"] == "" {
		err = invalidRequest("token is missing")
	}
	return c, p, err
}

// serveIntrospect returns information about a token to a resource server.
func (s *Server) serveIntrospect(w *recorder, r *http.Request) error {
	c, p, err := s.tokenRequest(w, r)
	switch {
	case err != nil:
		return err
	case c.public:
		return unauthenticated()
	}
	writeJSON(w, http.StatusOK, s.introspect(c, p))
	return nil
}

func (s *Server) introspect(c *client, p params) any {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.state.tokens[digestOf(p["token"])]
	if t == nil || !t.live(s.nowLocked()) {
		return inactive
	}
	// Nobody but its owner learns about a refresh token. Otherwise a resource server could take it
	// for an access token and accept it.
	if t.Client != c.id && (t.Refresh || t.ResourceServer != c.id && !s.cfg.IntrospectAny) {
		return inactive
	}
	identity, set, ok := s.state.identityOf(t.Subject)
	if !ok {
		return inactive
	}
	audience := []string{t.ResourceServer}
	if t.Client != t.ResourceServer {
		audience = append(audience, t.Client)
	}
	answer := map[string]any{
		"active":     true,
		"token_type": "Bearer",
		"scope":      strings.Join(t.Scopes, " "),
		"client_id":  t.Client,
		"sub":        identity.ID,
		"username":   identity.Username,
		"name":       nullable(identity.Name),
		"email":      nullable(identity.Email),
		"exp":        t.Expiry,
		"iat":        t.Issued,
		"nbf":        t.Issued,
		"aud":        audience,
		"iss":        s.cfg.Issuer,
	}
	if slices.Contains(strings.Split(p["include"], ","), "identity_set") {
		ids := []string{}
		for _, i := range set {
			ids = append(ids, i.ID)
		}
		answer["identity_set"] = ids
	}
	return answer
}

// serveRevoke revokes a token of the client that asks. The response is the same if there is no such
// token.
func (s *Server) serveRevoke(w *recorder, r *http.Request) error {
	c, p, err := s.tokenRequest(w, r)
	if err != nil {
		return err
	}
	s.mu.Lock()
	if t := s.state.tokens[digestOf(p["token"])]; t != nil && t.Client == c.id {
		err = s.commit(&entry{Dead: &t.Hash})
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, inactive)
	return nil
}

// serveUserInfo describes the user that an access token for Globus Auth belongs to.
func (s *Server) serveUserInfo(w *recorder, r *http.Request) error {
	t, identity := s.bearer(r, authResourceServer)
	switch {
	case t == nil:
		w.Header().Set("WWW-Authenticate", "Bearer")
		return unauthenticated()
	case !t.has(scopeOpenID):
		return globusError(http.StatusForbidden, "The token does not have the scope openid")
	}
	writeJSON(w, http.StatusOK, t.claims(identity))
	return nil
}

// bearer returns the access token of a request to one of Globus's own APIs and the identity that it
// belongs to, or nil if there is none for this resource server.
func (s *Server) bearer(r *http.Request, resourceServer string) (*token, *Identity) {
	headers := r.Header.Values("Authorization")
	if len(headers) != 1 {
		return nil, nil
	}
	scheme, secret, _ := strings.Cut(headers[0], " ")
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.state.tokens[digestOf(secret)]
	if !strings.EqualFold(scheme, "Bearer") || t == nil || t.Refresh || t.ResourceServer != resourceServer || !t.live(s.nowLocked()) {
		return nil, nil
	}
	identity, _, ok := s.state.identityOf(t.Subject)
	if !ok {
		return nil, nil
	}
	return t, identity
}
