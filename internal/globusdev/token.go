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

	"github.com/diaspora-streams/diaspora/globus"
)

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

	claims claims // of the ID token, which is not signed yet; nil if there is none
}

// serveToken is the token endpoint.
func (s *Server) serveToken(w *recorder, r *http.Request) error {
	p, err := parseForm(r)
	if err != nil {
		return err
	}
	grant := map[string]func(*client, params, time.Time) (*tokenResponse, error){
		"authorization_code": s.grantCode,
		"refresh_token":      s.grantRefresh,
		"client_credentials": s.grantClient,
	}[p["grant_type"]]
	if grant != nil {
		w.entry.GrantType = p["grant_type"]
	}
	c, err := s.authenticateClient(w, r, p)
	switch {
	case p["grant_type"] == "":
		return invalidRequest("grant_type is missing")
	case grant == nil:
		return oauthError(http.StatusBadRequest, "unsupported_grant_type", "")
	case err != nil:
		return err
	}
	s.mu.Lock()
	response, err := grant(c, p, s.nowLocked())
	s.mu.Unlock()
	if err == nil {
		err = s.sign(response)
	}
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, response)
	return nil
}

// invalidGrant has no description, as in Globus. The status is 401 for codes and 400 for refresh
// tokens; clients should check the error code.
func invalidGrant(status int) error { return oauthError(status, "invalid_grant", "") }

// grantCode exchanges an authorization code for tokens and marks it as used. The caller holds mu, as
// for all grants.
func (s *Server) grantCode(client *client, p params, now time.Time) (*tokenResponse, error) {
	for _, name := range []string{"code", "redirect_uri"} {
		if p[name] == "" {
			return nil, invalidRequest(name + " is missing")
		}
	}
	c := s.state.codes[digestOf(p["code"])]
	switch {
	case c == nil || c.Used || now.Unix() >= c.Expiry || c.Client != client.id:
		return nil, invalidGrant(http.StatusUnauthorized)
	case c.Redirect != p["redirect_uri"]:
		return nil, oauthError(http.StatusUnauthorized, "invalid_grant", "Mismatching redirect URI.")
	case !verifies(p["code_verifier"], c.Challenge):
		return nil, invalidGrant(http.StatusUnauthorized)
	}
	scopes, _, err := s.state.parseScopes(c.Scope)
	if err != nil {
		return nil, invalidScope("")
	}
	used := *c
	used.Used = true
	return s.issue(issuance{client: client, login: c.login, scopes: scopes, offline: c.Offline, state: c.State, nonce: c.Nonce}, now, &entry{Code: &used})
}

// verifies reports whether a code verifier matches a challenge (RFC 7636, section 4.6).
func verifies(verifier, challenge string) bool {
	if len(verifier) < 43 || len(verifier) > 128 || strings.ContainsFunc(verifier, func(r rune) bool { return !isUnreserved(r) }) {
		return false
	}
	sum := sha256.Sum256([]byte(verifier))
	return equalSecret(base64.RawURLEncoding.EncodeToString(sum[:]), challenge)
}

// grantClient issues tokens to a client itself.
func (s *Server) grantClient(client *client, p params, now time.Time) (*tokenResponse, error) {
	if client.public {
		return nil, unauthenticated()
	}
	scopes, _, err := s.state.parseScopes(p["scope"])
	if err != nil {
		return nil, invalidScope(err.Error())
	}
	return s.issue(issuance{client: client, login: login{Subject: client.id, Time: now.Unix()}, scopes: scopes}, now)
}

func (s *Server) grantRefresh(client *client, p params, now time.Time) (*tokenResponse, error) {
	if p["refresh_token"] == "" {
		return nil, invalidRequest("refresh_token is missing")
	}
	old := s.state.tokens[digestOf(p["refresh_token"])]
	if old == nil || !old.Refresh || !old.live(now) || old.Client != client.id {
		return nil, invalidGrant(http.StatusBadRequest)
	}
	if err := s.roomFor(2); err != nil {
		return nil, err
	}
	access, accessSecret := s.newToken(*old, false, now)
	if wanted := strings.Fields(p["scope"]); len(wanted) > 0 {
		if slices.ContainsFunc(wanted, func(scope string) bool { return !old.has(scope) }) {
			return nil, invalidScope("")
		}
		access.Scopes = wanted
	}
	renewed, refreshSecret := *old, p["refresh_token"]
	entries := []*entry{{Token: access}}
	if s.mode == RefreshRotate {
		var next *token
		next, refreshSecret = s.newToken(*old, true, now)
		renewed = *next
		entries = append(entries, &entry{Dead: &old.Hash})
	}
	renewed.Expiry = now.Add(refreshTokenLifetime).Unix() // each use extends its lifetime
	if err := s.commit(append(entries, &entry{Token: &renewed})...); err != nil {
		return nil, err
	}
	doc := access.document(accessSecret, now)
	if s.mode != RefreshAbsent {
		doc.RefreshToken = refreshSecret
	}
	return &tokenResponse{tokenDocument: doc, OtherTokens: []tokenDocument{}}, nil
}

// refreshTokenLifetime is how long a refresh token stays valid without being used.
const refreshTokenLifetime = 183 * 24 * time.Hour

// newToken returns a copy of a token with its own secret and lifetime.
func (s *Server) newToken(like token, refresh bool, now time.Time) (*token, string) {
	prefix, lifetime := "dev-at-", s.cfg.AccessTokenLifetime
	if refresh {
		prefix, lifetime = "dev-rt-", refreshTokenLifetime
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
		return globusError(http.StatusServiceUnavailable, "This development server has too many live tokens")
	}
	return nil
}

// issuance is the input for a set of tokens.
type issuance struct {
	client *client
	login
	scopes  []ScopeDef // at least one
	offline bool       // refresh tokens are requested
	state   string
	nonce   string
}

// issue creates one token for each resource server, and refresh tokens if requested, and commits
// them together with the entries in more. The caller holds mu and signs the response's ID token
// later, because that takes too long to be done while mu is held.
func (s *Server) issue(g issuance, now time.Time, more ...*entry) (*tokenResponse, error) {
	identity, set, ok := s.state.identityOf(g.Subject)
	if !ok || s.state.closed(g.Picked) {
		return nil, invalidGrant(http.StatusUnauthorized)
	}
	entries := more
	response := &tokenResponse{OtherTokens: []tokenDocument{}}
	for i, like := range byResourceServer(g.scopes) {
		like.Client, like.login = g.client.id, g.login
		access, secret := s.newToken(like, false, now)
		entries = append(entries, &entry{Token: access})
		doc := access.document(secret, now)
		doc.State = g.state
		if g.offline && !slices.ContainsFunc(g.scopes, func(def ScopeDef) bool { return def.NoRefreshTokens && access.has(def.Scope) }) {
			var t *token
			t, doc.RefreshToken = s.newToken(like, true, now)
			entries = append(entries, &entry{Token: t})
		}
		if access.has(scopeOpenID) {
			response.claims = s.idClaims(access, secret, g.nonce, identity, set)
		}
		if i == 0 {
			response.tokenDocument = doc
		} else {
			response.OtherTokens = append(response.OtherTokens, doc)
		}
	}
	if err := s.roomFor(len(entries)); err != nil {
		return nil, err
	}
	// Somebody who signs in has used the linked identities too: linking them meant signing in with
	// each of them.
	for _, i := range set {
		if g.Picked != "" && !s.state.used[i.ID] {
			entries = append(entries, &entry{Used: i.ID})
		}
	}
	return response, s.commit(entries...)
}

// byResourceServer returns a token for each resource server, in the order in which the scopes were
// requested. The token with openid comes first, because the ID token belongs to it.
func byResourceServer(scopes []ScopeDef) []token {
	var tokens []token
	for _, scope := range scopes {
		i := slices.IndexFunc(tokens, func(t token) bool { return t.ResourceServer == scope.ResourceServer })
		if i < 0 {
			i = len(tokens)
			tokens = append(tokens, token{ResourceServer: scope.ResourceServer})
		}
		tokens[i].Scopes = append(tokens[i].Scopes, scope.Scope)
	}
	if i := slices.IndexFunc(tokens, func(t token) bool { return t.has(scopeOpenID) }); i > 0 {
		first := tokens[i]
		tokens = slices.Insert(slices.Delete(tokens, i, i+1), 0, first)
	}
	return tokens
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
	now, person, response, err := s.issueTo(who, clientID, strings.Join(scopes, " "), offline)
	if err == nil {
		err = s.sign(response)
	}
	if err != nil {
		return nil, fmt.Errorf("globusdev: issue tokens: %w", err)
	}
	g := &Grant{
		Identity: globus.Identity{Subject: person.ID, Username: person.Username, Name: person.Name, Email: person.Email, Organization: person.Organization},
		IDToken:  globus.Secret(response.IDToken),
	}
	for _, identity := range person.identities() {
		g.Identity.IdentitySet = append(g.Identity.IdentitySet, identity.ID)
	}
	for _, doc := range append([]tokenDocument{response.tokenDocument}, response.OtherTokens...) {
		g.Tokens = append(g.Tokens, globus.Token{
			ResourceServer: doc.ResourceServer,
			AccessToken:    globus.Secret(doc.AccessToken),
			RefreshToken:   globus.Secret(doc.RefreshToken),
			Scope:          strings.Fields(doc.Scope),
			Expiry:         time.Unix(now.Unix()+doc.ExpiresIn, 0),
		})
	}
	return g, nil
}

func (s *Server) issueTo(who, clientID, scopes string, offline bool) (time.Time, *User, *tokenResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.nowLocked()
	client := s.state.clients[clientID]
	picked, known := s.state.find(who)
	defs, wantsOffline, err := s.state.parseScopes(scopes)
	switch {
	case client == nil:
		return now, nil, nil, fmt.Errorf("no client %q", clip(clientID))
	case !known:
		return now, nil, nil, fmt.Errorf("no identity %q", clip(who))
	case err != nil:
		return now, nil, nil, err
	}
	response, err := s.issue(issuance{client: client, scopes: defs, offline: offline || wantsOffline, login: picked.login(now)}, now)
	return now, picked.person, response, err
}
