package globusdev

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
)

const maxLookups = 100

// identityDocument is an identity in the response of a lookup.
type identityDocument struct {
	ID               string  `json:"id"`
	Username         string  `json:"username"`
	Name             *string `json:"name"`
	Email            *string `json:"email"`
	Organization     *string `json:"organization"`
	IdentityProvider string  `json:"identity_provider"`
	IdentityType     *string `json:"identity_type"`
	Status           string  `json:"status"`
}

type identityList struct {
	Identities []identityDocument `json:"identities"`
	Included   *providerList      `json:"included,omitempty"`
}

type providerList struct {
	Providers []*IdentityProvider `json:"identity_providers"`
}

func identityDocumentOf(i *Identity, kind *string) identityDocument {
	return identityDocument{
		ID: i.ID, Username: i.Username, Name: nullable(i.Name), Email: nullable(i.Email), Organization: nullable(i.Organization),
		IdentityProvider: i.IdentityProvider, IdentityType: kind, Status: i.Status,
	}
}

// anyCredentials accepts a client with its secret, or an access token for Globus Auth.
func (s *Server) anyCredentials(w http.ResponseWriter, r *http.Request) error {
	if _, _, ok := r.BasicAuth(); ok {
		_, err := s.confidential(w, r, params{})
		return err
	}
	_, err := s.bearer(r)
	return err
}

// lookup parses a query that has exactly one of two comma-separated lists.
func lookup(r *http.Request, one, other string) (p params, list []string, err error) {
	p, err = parseParams(r.URL.RawQuery)
	if err != nil {
		return nil, nil, badRequest(err.Error())
	}
	if (p[one] == "") == (p[other] == "") {
		return nil, nil, badRequest("Give either " + one + " or " + other)
	}
	list = strings.Split(p[one]+p[other], ",")
	if len(list) > maxLookups {
		return nil, nil, badRequest("Too many at once")
	}
	return p, list, nil
}

// serveIdentities looks identities up by username or ID. The response omits unknown ones.
func (s *Server) serveIdentities(w http.ResponseWriter, r *http.Request) error {
	if err := s.anyCredentials(w, r); err != nil {
		return err
	}
	p, list, err := lookup(r, "usernames", "ids")
	if err != nil {
		return err
	}
	for _, who := range list {
		if _, err := parseUUID(who); p["ids"] != "" && err != nil {
			return badRequest(err.Error())
		}
		if candidate := (Identity{Username: who}); p["usernames"] != "" && candidate.normalize() != nil {
			return badRequest("Not a username: " + clip(who))
		}
	}
	return s.answer(w, func(st *state) (any, error) {
		return s.findIdentities(st, list, p["usernames"] != "" && p["provision"] == "true", p["include"] == "identity_provider")
	})
}

// findIdentities looks up each identity. If provision is set, it creates those that do not exist.
func (s *Server) findIdentities(st *state, list []string, provision, withProviders bool) (any, error) {
	answer := identityList{Identities: []identityDocument{}}
	found := map[string]*Identity{}
	for _, who := range list {
		identity, kind := st.lookup(who)
		if identity == nil && provision && domainOf(who) != clientsDomain {
			if err := s.addUser(User{Identity: Identity{Username: who, Status: "unused"}}); err != nil {
				return nil, badRequest(err.Error())
			}
			identity, kind = st.lookup(who)
		}
		if identity != nil && found[identity.ID] == nil {
			found[identity.ID] = identity
			answer.Identities = append(answer.Identities, identityDocumentOf(identity, kind))
		}
	}
	if withProviders {
		answer.Included = st.providersOf(found)
	}
	return answer, nil
}

// lookup finds an identity, including those of clients. For clients, kind is nil.
func (st *state) lookup(who string) (_ *Identity, kind *string) {
	if m, ok := st.find(who); ok {
		return m.Identity, nullable("login")
	}
	id, _ := strings.CutSuffix(strings.ToLower(who), "@"+clientsDomain)
	if c := st.clients[id]; c != nil {
		return c.identity(), nil
	}
	return nil, nil
}

// providersOf returns the providers of the given identities.
func (st *state) providersOf(identities map[string]*Identity) *providerList {
	known := map[string]*IdentityProvider{}
	for _, i := range identities {
		p := st.provider(i)
		known[p.ID] = p
	}
	return sortProviders(known)
}

func sortProviders(known map[string]*IdentityProvider) *providerList {
	list := &providerList{Providers: []*IdentityProvider{}}
	for _, p := range known {
		list.Providers = append(list.Providers, p)
	}
	slices.SortFunc(list.Providers, func(a, b *IdentityProvider) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// serveIdentity returns one identity.
func (s *Server) serveIdentity(w http.ResponseWriter, r *http.Request) error {
	if err := s.anyCredentials(w, r); err != nil {
		return err
	}
	id, err := parseUUID(r.PathValue("id"))
	if err != nil {
		return badRequest(err.Error())
	}
	return s.answer(w, func(st *state) (any, error) {
		identity, kind := st.lookup(id)
		if identity == nil {
			return nil, globusError(http.StatusNotFound, "NOT_FOUND", "Not Found", "There is no such identity")
		}
		return map[string]any{"identity": identityDocumentOf(identity, kind)}, nil
	})
}

// serveIdentityProviders looks providers up by domain or ID.
func (s *Server) serveIdentityProviders(w http.ResponseWriter, r *http.Request) error {
	if err := s.anyCredentials(w, r); err != nil {
		return err
	}
	p, list, err := lookup(r, "domains", "ids")
	if err != nil {
		return err
	}
	return s.answer(w, func(st *state) (any, error) {
		found := st.allProviders()
		maps.DeleteFunc(found, func(id string, provider *IdentityProvider) bool {
			if p["ids"] != "" {
				return !slices.Contains(list, id)
			}
			return !slices.ContainsFunc(provider.Domains, func(d string) bool { return slices.Contains(list, d) })
		})
		return sortProviders(found), nil
	})
}

// allProviders returns all known providers: those that are seeded, and those of existing
// identities.
func (st *state) allProviders() map[string]*IdentityProvider {
	known := maps.Clone(st.providers)
	for _, m := range st.members {
		p := st.provider(m.Identity)
		known[p.ID] = p
	}
	return known
}

// consentDocument is a consent in a list.
type consentDocument struct {
	ID                  int       `json:"id"`
	Scope               string    `json:"scope"`
	ScopeName           string    `json:"scope_name"`
	Client              string    `json:"client"`
	EffectiveIdentity   string    `json:"effective_identity"`
	Status              string    `json:"status"`
	AllowsRefresh       bool      `json:"allows_refresh"`
	AutoApproved        bool      `json:"auto_approved"`
	AtomicallyRevocable bool      `json:"atomically_revocable"`
	DependencyPath      []int     `json:"dependency_path"`
	Created             time.Time `json:"created"`
	Updated             time.Time `json:"updated"`
	LastUsed            time.Time `json:"last_used"`
}

// serveConsents lists the consents of the token's owner for the client that asks or, with all=true
// and the scope for it, for all clients.
func (s *Server) serveConsents(w http.ResponseWriter, r *http.Request) error {
	t, err := s.bearer(r)
	if err != nil {
		return err
	}
	all := r.URL.Query().Get("all") == "true"
	if t.Subject != strings.ToLower(r.PathValue("id")) || all && !t.has(scopeViewConsents) {
		return globusError(http.StatusForbidden, "FORBIDDEN", "Forbidden", "These are not yours to see")
	}
	return s.answer(w, func(st *state) (any, error) {
		list := []consentDocument{}
		for _, c := range st.consents {
			if c.Subject == t.Subject && (all || c.Client == t.Client) {
				list = append(list, c.document())
			}
		}
		slices.SortFunc(list, func(a, b consentDocument) int { return a.ID - b.ID })
		return map[string]any{"consents": list}, nil
	})
}

func (c *consent) document() consentDocument {
	updated := time.Unix(c.Updated, 0).UTC()
	return consentDocument{
		ID: c.ID, Scope: derivedID("scope:" + c.Scope), ScopeName: c.Scope, Client: c.Client, EffectiveIdentity: c.Subject,
		Status: "approved", AllowsRefresh: c.Refresh, AtomicallyRevocable: c.Optional, DependencyPath: c.Path,
		Created: time.Unix(c.Created, 0).UTC(), Updated: updated, LastUsed: updated,
	}
}
