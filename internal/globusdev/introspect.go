package globusdev

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"slices"
	"strings"
)

// inactive is the complete response for an invalid token, whatever the reason.
var inactive = map[string]bool{"active": false}

// tokenRequest parses a form with a token. A token that is too long is replaced by an invalid one.
func tokenRequest(r *http.Request) (params, error) {
	p, err := parseForm(r)
	if err != nil {
		return nil, err
	}
	if len(p["token"]) > maxTokenBytes {
		p["token"] = "x"
	}
	return p, nil
}

// serveIntrospect returns information about a token to a resource server.
func (s *Server) serveIntrospect(w http.ResponseWriter, r *http.Request) error {
	p, err := tokenRequest(r)
	if err != nil {
		return err
	}
	client, err := s.confidential(w, r, p)
	if err != nil {
		return err
	}
	if p["token"] == "" {
		return invalidRequest("token is missing")
	}
	writeJSON(w, http.StatusOK, s.introspect(client, p))
	return nil
}

func (s *Server) introspect(client *Client, p params) any {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.state.tokens[digestOf(p["token"])]
	if t == nil || !t.live(s.nowLocked()) || !s.mayIntrospect(client, t) {
		return inactive
	}
	identity, set, ok := s.state.identityOf(t.Subject)
	if !ok {
		return inactive
	}
	sum := sha256.Sum256([]byte("dependent tokens\x00" + p["token"]))
	answer := map[string]any{
		"active":                    true,
		"token_type":                "Bearer",
		"scope":                     strings.Join(t.Scopes, " "),
		"client_id":                 t.Client,
		"sub":                       identity.ID,
		"username":                  identity.Username,
		"name":                      nullable(identity.Name),
		"email":                     nullable(identity.Email),
		"exp":                       t.Expiry,
		"iat":                       t.Issued,
		"nbf":                       t.Issued,
		"aud":                       s.state.audience(t),
		"iss":                       s.cfg.Issuer,
		"dependent_tokens_cache_id": hex.EncodeToString(sum[:]),
	}
	include := strings.Split(p["include"], ",")
	if slices.Contains(include, "identity_set") || slices.Contains(include, "identities_set") {
		ids := []string{}
		for _, i := range set {
			ids = append(ids, i.ID)
		}
		answer["identity_set"] = ids
	}
	if slices.Contains(include, "identity_set_detail") {
		answer["identity_set_detail"] = s.state.identityDetails(t, set)
	}
	if slices.Contains(include, "session_info") {
		answer["session_info"] = s.state.sessionInfo(t)
	}
	if policies := p["authentication_policies"]; policies != "" {
		evaluations := map[string]any{}
		for _, id := range strings.Split(policies, ",") {
			evaluations[id] = map[string]bool{"evaluation": true}
		}
		answer["policy_evaluations"] = evaluations
	}
	return answer
}

// mayIntrospect reports whether a client gets information about a token. For a refresh token, only
// the client that owns it does. Otherwise a resource server could take the refresh token for an
// access token and accept it.
func (s *Server) mayIntrospect(client *Client, t *token) bool {
	if t.Refresh {
		return t.Client == client.ID
	}
	return t.Client == client.ID || s.state.serves(client, t) || s.cfg.IntrospectAny
}

// audience returns the audience of a token: the resource server, its client, and the client that
// got it.
func (st *state) audience(t *token) []string {
	aud := []string{t.ResourceServer}
	for _, scope := range t.Scopes {
		if def := st.scopes[scope]; def != nil && !slices.Contains(aud, def.Client) {
			aud = append(aud, def.Client)
		}
	}
	if !slices.Contains(aud, t.Client) {
		aud = append(aud, t.Client)
	}
	return aud
}

// identityDetail is an identity with additional fields of userinfo and introspection.
type identityDetail struct {
	identityClaim
	IdentityType *string `json:"identity_type"` // null for clients
	Status       string  `json:"status"`
}

func (st *state) identityDetails(t *token, set []*Identity) []identityDetail {
	var list []identityDetail
	for i, claim := range st.identitySet(t, set) {
		detail := identityDetail{identityClaim: claim, Status: set[i].Status}
		if st.clients[claim.Subject] == nil {
			detail.IdentityType = nullable("login")
		}
		list = append(list, detail)
	}
	return list
}

// sessionInfo describes which identity logged in, and when. Service accounts never log in.
func (st *state) sessionInfo(t *token) any {
	authentications := map[string]any{}
	if m, ok := st.members[t.Picked]; ok {
		authentications[m.ID] = map[string]any{
			"idp": m.IdentityProvider, "auth_time": t.Time, "acr": nil, "amr": nil, "custom_claims": map[string]any{},
		}
	}
	return map[string]any{"session_id": t.Session, "authentications": authentications}
}

// serveRevoke revokes a token of the client that asks. The response is the same if there is no such
// token.
func (s *Server) serveRevoke(w http.ResponseWriter, r *http.Request) error {
	t, err := s.ownToken(w, r)
	if err != nil {
		return err
	}
	if t != nil {
		s.mu.Lock()
		err = s.commit(&entry{Dead: &t.Hash})
		s.mu.Unlock()
		if err != nil {
			return err
		}
	}
	writeJSON(w, http.StatusOK, inactive)
	return nil
}

// serveValidate tells a client, which may be public, whether its token is valid.
func (s *Server) serveValidate(w http.ResponseWriter, r *http.Request) error {
	t, err := s.ownToken(w, r)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, map[string]bool{"active": t != nil})
	return nil
}

// ownToken returns the token in a request, if it is live and belongs to the client.
func (s *Server) ownToken(w http.ResponseWriter, r *http.Request) (*token, error) {
	p, err := tokenRequest(r)
	if err != nil {
		return nil, err
	}
	client, err := s.authenticateClient(w, r, p)
	if err != nil {
		return nil, err
	}
	if p["token"] == "" {
		return nil, invalidRequest("token is missing")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.state.tokens[digestOf(p["token"])]
	if t == nil || !t.live(s.nowLocked()) || t.Client != client.ID {
		return nil, nil
	}
	return t, nil
}

// serveUserInfo describes the user that an access token belongs to.
func (s *Server) serveUserInfo(w http.ResponseWriter, r *http.Request) error {
	t, err := s.bearer(r)
	if err != nil {
		return err
	}
	if !t.has(scopeOpenID) {
		return globusError(http.StatusForbidden, "FORBIDDEN", "Forbidden", "The token does not have the scope openid")
	}
	return s.answer(w, func(st *state) (any, error) {
		identity, set, ok := st.identityOf(t.Subject)
		if !ok {
			return nil, unauthorized(detailNoAuth)
		}
		c := st.claims(t, identity)
		if t.has(scopeViewIdentitySet) {
			c["identity_set"] = st.identityDetails(t, set)
		}
		return c, nil
	})
}
