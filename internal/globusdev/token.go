package globusdev

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/diaspora-streams/diaspora/globus"
)

const grantDependent = "urn:globus:auth:grant_type:dependent_token"

// tokenDocument is one token in a response of the token endpoint.
type tokenDocument struct {
	AccessToken    string `json:"access_token"`
	TokenType      string `json:"token_type"`
	ExpiresIn      int64  `json:"expires_in"`
	Scope          string `json:"scope"`
	ResourceServer string `json:"resource_server"`
	State          string `json:"state,omitempty"`
	RefreshToken   string `json:"refresh_token,omitempty"`
	IDToken        string `json:"id_token,omitempty"`
}

// tokenResponse is a response of the token endpoint: a token, and those for other resource servers.
// Clients rely on the list being present even if it is empty.
type tokenResponse struct {
	tokenDocument
	OtherTokens []tokenDocument `json:"other_tokens"`
}

// serveToken is the token endpoint.
func (s *Server) serveToken(w http.ResponseWriter, r *http.Request) error {
	p, err := parseForm(r)
	if err != nil {
		return err
	}
	grants := map[string]func(*Client, params) (any, error){
		"authorization_code": s.grantCode,
		"refresh_token":      s.grantRefresh,
		"client_credentials": s.grantClient,
		grantDependent:       s.grantDependent,
	}
	grant := grants[p["grant_type"]]
	if grant != nil {
		noteGrant(w, p["grant_type"])
	}
	client, err := s.authenticateClient(w, r, p)
	switch {
	case p["grant_type"] == "":
		return invalidRequest("grant_type is missing")
	case grant == nil:
		return oauthError(http.StatusBadRequest, "unsupported_grant_type", "")
	case err != nil:
		return err
	}
	body, err := grant(client, p)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, body)
	return nil
}

// invalidGrant has no description, as in Globus. The status is 401 for codes and 400 for refresh
// tokens; clients should check the error code.
func invalidGrant(status int) error { return oauthError(status, "invalid_grant", "") }

func (s *Server) grantCode(client *Client, p params) (any, error) {
	return s.finish(s.exchange(client, p))
}

// exchange exchanges an authorization code for tokens and marks it as used.
func (s *Server) exchange(client *Client, p params) (*issued, error) {
	for _, name := range []string{"code", "redirect_uri"} {
		if p[name] == "" {
			return nil, invalidRequest(name + " is missing")
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.nowLocked()
	c := s.state.codes[digestOf(p["code"])]
	switch {
	case c == nil || c.Used || now.Unix() >= c.Expiry || c.Client != client.ID:
		return nil, invalidGrant(http.StatusUnauthorized)
	case c.Redirect != p["redirect_uri"]:
		return nil, oauthError(http.StatusUnauthorized, "invalid_grant", "Mismatching redirect URI.")
	case !verifies(p["code_verifier"], c.Challenge):
		return nil, invalidGrant(http.StatusUnauthorized)
	}
	nodes, err := parseScopes(c.Scope)
	if err != nil {
		return nil, err
	}
	used := *c
	used.Used = true
	return s.issue(issuance{client: client, login: c.login, scopes: nodes, offline: c.Offline, state: c.State, nonce: c.Nonce}, now, &entry{Code: &used})
}

// verifies reports whether a code verifier matches a challenge (RFC 7636, section 4.6).
func verifies(verifier, challenge string) bool {
	if challenge == "" {
		return verifier == ""
	}
	if len(verifier) < 43 || len(verifier) > 128 || strings.ContainsFunc(verifier, func(r rune) bool { return !isUnreserved(r) }) {
		return false
	}
	sum := sha256.Sum256([]byte(verifier))
	return equalSecret(base64.RawURLEncoding.EncodeToString(sum[:]), challenge)
}

func (s *Server) grantClient(client *Client, p params) (any, error) {
	if client.public() {
		return nil, unauthorized(detailNoAuth)
	}
	nodes, err := parseScopes(p["scope"])
	if err != nil {
		return nil, oauthError(http.StatusBadRequest, "invalid_scope", err.Error())
	}
	nodes, _ = withoutOffline(nodes)
	return s.finish(s.issueToClient(client, nodes))
}

func (s *Server) issueToClient(client *Client, nodes []*scopeNode) (*issued, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if unknown := s.state.unknownScope(nodes); unknown != "" || len(nodes) == 0 {
		return nil, oauthError(http.StatusBadRequest, "invalid_scope", "")
	}
	now := s.nowLocked()
	return s.issue(issuance{client: client, login: login{Subject: client.ID, Session: uuid.NewString(), Time: now.Unix()}, scopes: nodes}, now)
}

func (s *Server) grantRefresh(client *Client, p params) (any, error) {
	if p["refresh_token"] == "" {
		return nil, invalidRequest("refresh_token is missing")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.nowLocked()
	old := s.state.tokens[digestOf(p["refresh_token"])]
	if old == nil || !old.Refresh || !old.live(now) || old.Client != client.ID {
		return nil, invalidGrant(http.StatusBadRequest)
	}
	if err := s.roomFor(2); err != nil {
		return nil, err
	}
	access, accessSecret := s.newToken(*old, false, now)
	if wanted := strings.Fields(p["scope"]); len(wanted) > 0 {
		if err := access.narrow(wanted); err != nil {
			return nil, err
		}
	}
	renewed, refreshSecret := *old, p["refresh_token"]
	entries := []*entry{{Token: access}}
	if s.mode == RefreshRotate {
		var next *token
		next, refreshSecret = s.newToken(*old, true, now)
		renewed = *next
		entries = append(entries, &entry{Dead: &old.Hash})
	}
	renewed.Expiry = now.Add(s.cfg.RefreshTokenLifetime).Unix() // each use extends its lifetime
	if err := s.commit(append(entries, &entry{Token: &renewed})...); err != nil {
		return nil, err
	}
	doc := access.document(accessSecret, now)
	if s.mode != RefreshAbsent {
		doc.RefreshToken = refreshSecret
	}
	return tokenResponse{doc, []tokenDocument{}}, nil
}

// narrow reduces t to some of its scopes.
func (t *token) narrow(wanted []string) error {
	scopes, consents := []string{}, []int{}
	for _, scope := range wanted {
		i := slices.Index(t.Scopes, scope)
		if i < 0 {
			return oauthError(http.StatusBadRequest, "invalid_scope", "")
		}
		scopes, consents = append(scopes, scope), append(consents, t.Consents[i])
	}
	t.Scopes, t.Consents = scopes, consents
	return nil
}

// newToken returns a copy of a token with its own secret and lifetime. The caller holds mu.
func (s *Server) newToken(like token, refresh bool, now time.Time) (*token, string) {
	prefix, lifetime := "dev-at-", s.cfg.AccessTokenLifetime
	if refresh {
		prefix, lifetime = "dev-rt-", s.cfg.RefreshTokenLifetime
	}
	// The token has the length of Globus's tokens, so that size limits of other software are
	// noticed here.
	secret := prefix + rand.Text() + rand.Text() + rand.Text()
	like.Hash, like.Refresh = digestOf(secret), refresh
	like.Issued, like.Expiry = now.Unix(), now.Unix()+int64(lifetime/time.Second)
	return &like, secret
}

func (t *token) document(secret string, now time.Time) tokenDocument {
	return tokenDocument{
		AccessToken: secret, TokenType: "Bearer", ExpiresIn: t.Expiry - now.Unix(),
		Scope: strings.Join(t.Scopes, " "), ResourceServer: t.ResourceServer,
	}
}

// roomFor returns an error if n more tokens would exceed the maximum number of live tokens.
func (s *Server) roomFor(n int) error {
	if len(s.state.tokens)+n > s.cfg.MaxTokens {
		s.state.prune(s.nowLocked())
	}
	if len(s.state.tokens)+n > s.cfg.MaxTokens {
		return globusError(http.StatusServiceUnavailable, "SERVICE_UNAVAILABLE", "Service Unavailable", "This development server has too many live tokens").header("Retry-After", "60")
	}
	return nil
}

// issuance is the input for a set of tokens.
type issuance struct {
	client *Client
	login
	scopes  []*scopeNode
	offline bool
	state   string
	nonce   string
}

// issued is a response whose ID token is not signed yet. Signing takes too long to be done while mu
// is held.
type issued struct {
	tokenResponse
	claims claims // nil: no ID token
}

// finish signs the ID token.
func (s *Server) finish(r *issued, err error) (*tokenResponse, error) {
	if err != nil {
		return nil, err
	}
	if r.claims != nil {
		if r.IDToken, err = s.sign(r.claims); err != nil {
			return nil, err
		}
	}
	return &r.tokenResponse, nil
}

// issue creates one token for each resource server, and refresh tokens if requested, and commits
// them together with the entries in more. The caller holds mu.
func (s *Server) issue(g issuance, now time.Time, more ...*entry) (*issued, error) {
	identity, set, ok := s.state.identityOf(g.Subject)
	if !ok {
		return nil, invalidGrant(http.StatusUnauthorized)
	}
	consents := s.state.consent(g, now)
	entries := more
	for _, c := range consents.fresh {
		entries = append(entries, &entry{Consent: c})
	}
	var docs []tokenDocument
	var idToken claims
	for _, group := range s.state.byResourceServer(g.scopes) {
		like := token{Client: g.client.ID, ResourceServer: group.resourceServer, login: g.login}
		refresh := g.offline
		for _, node := range group.scopes {
			like.Scopes = append(like.Scopes, node.name)
			like.Consents = append(like.Consents, consents.roots[node.name])
			refresh = refresh && !s.state.scopes[node.name].NoRefreshTokens
		}
		access, secret := s.newToken(like, false, now)
		entries = append(entries, &entry{Token: access})
		doc := access.document(secret, now)
		doc.State = g.state
		if refresh {
			var t *token
			t, doc.RefreshToken = s.newToken(like, true, now)
			entries = append(entries, &entry{Token: t})
		}
		if access.has(scopeOpenID) {
			idToken = s.idClaims(access, secret, g.nonce, identity, set)
		}
		docs = append(docs, doc)
	}
	if err := s.roomFor(2 * len(docs)); err != nil {
		return nil, err
	}
	if err := s.commit(entries...); err != nil {
		return nil, err
	}
	return &issued{tokenResponse{docs[0], append([]tokenDocument{}, docs[1:]...)}, idToken}, nil
}

// scopeGroup is the scopes of one resource server.
type scopeGroup struct {
	resourceServer string
	scopes         []*scopeNode
}

// byResourceServer groups scopes by resource server, in the order in which they were requested. The
// group with openid comes first, because the ID token belongs to it.
func (st *state) byResourceServer(nodes []*scopeNode) []scopeGroup {
	var groups []scopeGroup
	for _, node := range nodes {
		server := st.scopes[node.name].ResourceServer
		i := slices.IndexFunc(groups, func(g scopeGroup) bool { return g.resourceServer == server })
		if i < 0 {
			i = len(groups)
			groups = append(groups, scopeGroup{resourceServer: server})
		}
		groups[i].scopes = append(groups[i].scopes, node)
	}
	slices.SortStableFunc(groups, func(a, b scopeGroup) int { return b.openID() - a.openID() })
	return groups
}

func (g scopeGroup) openID() int {
	if slices.ContainsFunc(g.scopes, func(n *scopeNode) bool { return n.name == scopeOpenID }) {
		return 1
	}
	return 0
}

// Grant is the result of a login.
type Grant struct {
	Identity globus.Identity
	// Tokens contains one token for each resource server.
	Tokens []globus.Token
	// IDToken is set if the scope openid was requested.
	IDToken globus.Secret
}

// IssueTokens simulates a login without a browser. It returns the tokens that the token endpoint
// would give the client after the user has consented to the scopes. who is a username or an
// identity ID. offline requests refresh tokens.
func (s *Server) IssueTokens(who, clientID string, scopes []string, offline bool) (*Grant, error) {
	nodes, err := parseScopes(strings.Join(scopes, " "))
	if err != nil {
		return nil, fmt.Errorf("globusdev: issue tokens: %w", err)
	}
	now, person, pending, err := s.issueTo(who, clientID, nodes, offline)
	response, err := s.finish(pending, err)
	if err != nil {
		return nil, fmt.Errorf("globusdev: issue tokens: %w", err)
	}
	return response.grant(person, now), nil
}

func (s *Server) issueTo(who, clientID string, nodes []*scopeNode, offline bool) (time.Time, *User, *issued, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.nowLocked()
	nodes, wantsOffline := withoutOffline(nodes)
	client := s.state.clients[clientID]
	picked, known := s.state.find(who)
	unknown := s.state.unknownScope(nodes)
	switch {
	case client == nil:
		return now, nil, nil, fmt.Errorf("no client %q", clip(clientID))
	case !known:
		return now, nil, nil, fmt.Errorf("no identity %q", clip(who))
	case unknown != "" || len(nodes) == 0:
		return now, nil, nil, fmt.Errorf("no scope %q", clip(unknown))
	}
	pending, err := s.issue(issuance{
		client: client, scopes: nodes, offline: offline || wantsOffline,
		login: login{Subject: picked.person.ID, Picked: picked.ID, Session: uuid.NewString(), Time: now.Unix()},
	}, now)
	return now, picked.person, pending, err
}

// grant converts the response to the types that clients use.
func (r *tokenResponse) grant(person *User, now time.Time) *Grant {
	g := &Grant{
		Identity: globus.Identity{Subject: person.ID, Username: person.Username, Name: person.Name, Email: person.Email, Organization: person.Organization},
		IDToken:  globus.Secret(r.IDToken),
	}
	for _, identity := range person.identities() {
		g.Identity.IdentitySet = append(g.Identity.IdentitySet, identity.ID)
	}
	for _, doc := range append([]tokenDocument{r.tokenDocument}, r.OtherTokens...) {
		g.Tokens = append(g.Tokens, globus.Token{
			ResourceServer: doc.ResourceServer,
			AccessToken:    globus.Secret(doc.AccessToken),
			RefreshToken:   globus.Secret(doc.RefreshToken),
			Scope:          strings.Fields(doc.Scope),
			Expiry:         time.Unix(now.Unix()+doc.ExpiresIn, 0),
		})
	}
	return g
}
