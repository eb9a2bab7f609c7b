package globusdev

import (
	"net/http"
	"slices"
	"strings"
	"time"
)

// consentSet is the set of consents that a login gives.
type consentSet struct {
	roots map[string]int // IDs of the consents to the requested scopes themselves
	fresh []*consent     // new consents, and existing ones with a new time
}

// consent determines the consents that a login adds: to each requested scope, to the dependencies
// that were requested with it, and to the dependencies that are registered for it.
func (st *state) consent(g issuance, now time.Time) consentSet {
	set := consentSet{roots: map[string]int{}}
	next := st.lastID
	var visit func(node *scopeNode, above *consent, names []string) *consent
	visit = func(node *scopeNode, above *consent, names []string) *consent {
		c := &consent{Client: g.client.ID, Subject: g.Subject, Scope: node.name, Created: now.Unix()}
		key := consentKey{client: c.Client, subject: c.Subject, scope: c.Scope}
		if above != nil {
			key.parent = above.ID
		}
		if old := st.consents[st.granted[key]]; old != nil {
			*c = *old
		} else {
			next++
			c.ID, c.Path = next, []int{next}
			if above != nil {
				c.Path = append(slices.Clone(above.Path), next)
			}
		}
		c.Refresh, c.Optional, c.Updated = c.Refresh || g.offline, node.optional, now.Unix()
		set.fresh = append(set.fresh, c)
		names = append(names, node.name)
		for _, child := range st.withDependencies(node) {
			if !slices.Contains(names, child.name) {
				visit(child, c, names)
			}
		}
		return c
	}
	for _, node := range g.scopes {
		set.roots[node.name] = visit(node, nil, nil).ID
	}
	return set
}

// withDependencies returns the dependencies that were requested with a scope, and those that are
// registered for it.
func (st *state) withDependencies(node *scopeNode) []*scopeNode {
	children := slices.Clone(node.children)
	for _, dep := range st.scopes[node.name].Dependent {
		asked := slices.ContainsFunc(children, func(n *scopeNode) bool { return n.name == dep.Scope })
		if !dep.Optional && !asked {
			children = append(children, &scopeNode{name: dep.Scope})
		}
	}
	return children
}

// dependencies returns the consents below those of a token: the scopes for which its resource
// server may get tokens. It also returns the scopes that the resource server needs and the user has
// not consented to.
func (st *state) dependencies(t *token) (approved map[string]int, missing []string) {
	approved = map[string]int{}
	for i, scope := range t.Scopes {
		root := st.consents[t.Consents[i]]
		if root == nil {
			continue
		}
		for name := range st.scopes {
			if id := st.granted[consentKey{root.Client, root.Subject, name, root.ID}]; id != 0 {
				approved[name] = id
			}
		}
		def := st.scopes[scope]
		if def == nil {
			continue
		}
		for _, dep := range def.Dependent {
			if !dep.Optional && approved[dep.Scope] == 0 {
				missing = append(missing, dep.Scope)
			}
		}
	}
	return approved, missing
}

// serves reports whether a client is the resource server that a token is for.
func (st *state) serves(client *Client, t *token) bool {
	return t.ResourceServer == client.ID || slices.ContainsFunc(t.Scopes, func(scope string) bool {
		def := st.scopes[scope]
		return def != nil && def.Client == client.ID
	})
}

// grantDependent gives a resource server its own tokens for a user who has called it.
func (s *Server) grantDependent(client *Client, p params) (any, error) {
	switch {
	case client.public():
		return nil, unauthorized(detailNoAuth)
	case p["token"] == "":
		return nil, invalidRequest("token is missing")
	}
	wanted, err := parseScopes(p["scope"])
	if err != nil {
		return nil, oauthError(http.StatusBadRequest, "invalid_scope", err.Error())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.nowLocked()
	t := s.state.tokens[digestOf(p["token"])]
	if t == nil || t.Refresh || !t.live(now) || !s.state.serves(client, t) {
		return nil, invalidGrant(http.StatusBadRequest)
	}
	if unknown := s.state.unknownScope(wanted); unknown != "" {
		return nil, oauthError(http.StatusBadRequest, "invalid_scope", "")
	}
	approved, missing := s.state.dependencies(t)
	if len(wanted) > 0 {
		missing = nil
		for _, node := range wanted {
			if approved[node.name] == 0 {
				missing = append(missing, node.name)
			}
		}
	} else {
		for scope := range approved {
			wanted = append(wanted, &scopeNode{name: scope})
		}
		slices.SortFunc(wanted, func(a, b *scopeNode) int { return strings.Compare(a.name, b.name) })
	}
	if len(missing) > 0 {
		return nil, dependentConsentRequired(missing)
	}
	return s.issueDependent(client, t, wanted, approved, p["access_type"] == "offline", now)
}

// issueDependent creates one token for each resource server. The response is a bare array.
func (s *Server) issueDependent(client *Client, t *token, wanted []*scopeNode, approved map[string]int, offline bool, now time.Time) (any, error) {
	docs := []tokenDocument{}
	var entries []*entry
	for _, group := range s.state.byResourceServer(wanted) {
		like := token{Client: client.ID, ResourceServer: group.resourceServer, login: t.login}
		refresh := offline
		for _, node := range group.scopes {
			like.Scopes = append(like.Scopes, node.name)
			like.Consents = append(like.Consents, approved[node.name])
			refresh = refresh && !s.state.scopes[node.name].NoRefreshTokens
		}
		access, secret := s.newToken(like, false, now)
		entries = append(entries, &entry{Token: access})
		doc := access.document(secret, now)
		if refresh {
			var t *token
			t, doc.RefreshToken = s.newToken(like, true, now)
			entries = append(entries, &entry{Token: t})
		}
		docs = append(docs, doc)
	}
	if err := s.roomFor(len(entries)); err != nil {
		return nil, err
	}
	return docs, s.commit(entries...)
}

func dependentConsentRequired(scopes []string) error {
	e := globusError(http.StatusForbidden, "DEPENDENT_CONSENT_REQUIRED", "Forbidden", "The user has not consented to dependent scopes")
	body := e.body.(globusBody)
	body.Errors[0].UnapprovedScopes = scopes
	body.Description = "dependent consent is required; see 'unapproved_scopes'"
	e.body = body
	return e
}
