package globusdev

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"
)

// This file has the part of Globus Auth's developer API with which an operator registers a service: its
// scope, and the host name that the scope may contain. All clients belong to one project. Its
// administrator is the first of the seed users.

const (
	scopeManageProjects = "urn:globus:auth:scope:auth.globus.org:manage_projects"

	// adminSession is how recently the administrator must have logged in.
	adminSession = 30 * time.Minute

	maxRegistered = 100 // scopes, host names and TXT records, each
)

var (
	suffixPattern = regexp.MustCompile(`^[a-z0-9_]{1,64}$`)
	hostPattern   = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?$`)
)

// registration is a scope that somebody has created for a client.
type registration struct {
	ID            string `json:"id"`
	Client        string `json:"client"`
	Suffix        string `json:"suffix"`
	Name          string `json:"name"`
	Description   string `json:"description"`
	RefreshTokens bool   `json:"refresh_tokens"`
}

// key identifies the scope among all scopes.
func (r registration) key() string { return scopeURL + r.Client + "/" + r.Suffix }

// verifiedHost is a host name that is verified for a client.
type verifiedHost struct {
	Host   string `json:"host"`
	Client string `json:"client"`
}

// setScope adds a scope under the client's ID and under each of the client's host names.
func (st *state) setScope(r registration) {
	st.registered[r.key()] = r
	st.nameScopes(r.Client)
}

func (st *state) setHost(h verifiedHost) {
	st.hosts[h.Host] = h.Client
	st.nameScopes(h.Client)
}

// nameScopes makes all names of a client's scopes valid.
func (st *state) nameScopes(client string) {
	owners := []string{client}
	for host, of := range st.hosts {
		if of == client {
			owners = append(owners, host)
		}
	}
	for _, r := range st.registered {
		for _, owner := range owners {
			if name := scopeURL + owner + "/" + r.Suffix; r.Client == client {
				st.scopes[name] = ScopeDef{Scope: name, ResourceServer: client, Description: r.Description, NoRefreshTokens: !r.RefreshTokens}
			}
		}
	}
}

// registrations returns the entries that create the scopes and host names.
func (st *state) registrations() (entries []*entry) {
	for _, key := range slices.Sorted(maps.Keys(st.registered)) {
		r := st.registered[key]
		entries = append(entries, &entry{Scope: &r})
	}
	for _, host := range slices.Sorted(maps.Keys(st.hosts)) {
		entries = append(entries, &entry{Host: &verifiedHost{host, st.hosts[host]}})
	}
	return entries
}

// administrator returns the ID of the user who administers the project of all clients.
func (s *Server) administrator() string {
	first := seedUsers(s.cfg.Username)[0]
	if first.ID != "" {
		return first.ID
	}
	return Subject(first.Username)
}

// checkAdministrator returns an error unless the request has an access token with which a project
// can be managed.
func (s *Server) checkAdministrator(w http.ResponseWriter, r *http.Request) error {
	t, _ := s.bearer(r, authResourceServer)
	switch {
	case t == nil:
		w.Header().Set("WWW-Authenticate", "Bearer")
		return unauthenticated()
	case !t.has(scopeManageProjects):
		return globusError(http.StatusForbidden, "The token does not have the scope "+scopeManageProjects)
	case t.Subject != s.administrator():
		return globusError(http.StatusForbidden, "The identity does not administer the project of this client")
	case s.now().Sub(time.Unix(t.Time, 0)) > adminSession:
		return globusError(http.StatusForbidden, "There must be an identity with admin privileges in session within the last 30 minutes")
	}
	return nil
}

// administratorQuery returns the parameters of a request that only the administrator may make.
func (s *Server) administratorQuery(w http.ResponseWriter, r *http.Request) (params, error) {
	if err := s.checkAdministrator(w, r); err != nil {
		return nil, err
	}
	p, err := parseParams(r.URL.RawQuery)
	if err != nil {
		return nil, badRequest(err.Error())
	}
	return p, nil
}

type scopeDocument struct {
	ID                 string   `json:"id"`
	Client             string   `json:"client"`
	ScopeString        string   `json:"scope_string"`
	Name               string   `json:"name"`
	Description        string   `json:"description"`
	AllowsRefreshToken bool     `json:"allows_refresh_token"`
	Advertised         bool     `json:"advertised"`
	RequiredDomains    []string `json:"required_domains"`
	DependentScopes    []string `json:"dependent_scopes"`
}

// serveScopes looks up scopes by name. The response omits those that were not created through this API.
func (s *Server) serveScopes(w *recorder, r *http.Request) error {
	p, err := s.administratorQuery(w, r)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	found := []scopeDocument{}
	for name := range strings.SplitSeq(p["scope_strings"], ",") {
		def, suffix := s.state.scopes[name], name[strings.LastIndexByte(name, '/')+1:]
		if r, ok := s.state.registered[scopeURL+def.ResourceServer+"/"+suffix]; ok {
			found = append(found, r.document(name))
		}
	}
	writeJSON(w, http.StatusOK, map[string]any{"scopes": found})
	return nil
}

func (r registration) document(name string) scopeDocument {
	return scopeDocument{
		ID: r.ID, Client: r.Client, ScopeString: name, Name: r.Name, Description: r.Description,
		AllowsRefreshToken: r.RefreshTokens, RequiredDomains: []string{}, DependentScopes: []string{},
	}
}

// scopeRequest is the body of a request that creates a scope.
type scopeRequest struct {
	Scope struct {
		Name               string   `json:"name"`
		Description        string   `json:"description"`
		Suffix             string   `json:"scope_suffix"`
		AllowsRefreshToken bool     `json:"allows_refresh_token"`
		Advertised         bool     `json:"advertised"`
		DependentScopes    []string `json:"dependent_scopes"` // this server has none that another could depend on
	} `json:"scope"`
}

// serveNewScope creates a scope of a client.
func (s *Server) serveNewScope(w *recorder, r *http.Request) error {
	if err := s.checkAdministrator(w, r); err != nil {
		return err
	}
	body, err := readBody(r)
	if err != nil {
		return err
	}
	var request scopeRequest
	if decodeStrict(body, &request) != nil || len(request.Scope.DependentScopes) > 0 {
		return badRequest("The body does not describe a scope")
	}
	asked := request.Scope
	switch {
	case !suffixPattern.MatchString(asked.Suffix):
		return badRequest("scope_suffix must consist of lower-case letters, digits and underscores")
	case asked.Name == "" || asked.Description == "" || max(len(asked.Name), len(asked.Description)) > maxFieldSize:
		return badRequest("name and description are required")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.state.clients[strings.ToLower(r.PathValue("id"))]
	if c == nil || c.public {
		return globusError(http.StatusNotFound, "There is no such client")
	}
	made := registration{Client: c.id, Suffix: asked.Suffix, Name: asked.Name, Description: asked.Description, RefreshTokens: asked.AllowsRefreshToken}
	made.ID = derivedID("scope:" + made.key())
	if _, taken := s.state.scopes[made.key()]; taken {
		return globusError(http.StatusConflict, "The client has a scope with this suffix")
	}
	if len(s.state.registered) >= maxRegistered {
		return globusError(http.StatusForbidden, "There are too many scopes")
	}
	if err := s.commit(&entry{Scope: &made}); err != nil {
		return err
	}
	writeJSON(w, http.StatusCreated, map[string]any{"scope": made.document(made.key())})
	return nil
}

// serveClients looks up the client that a host name is verified for.
func (s *Server) serveClients(w *recorder, r *http.Request) error {
	p, err := s.administratorQuery(w, r)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	id, ok := s.state.hosts[p["fqdn"]]
	if !ok {
		return globusError(http.StatusNotFound, "There is no such client")
	}
	writeJSON(w, http.StatusOK, map[string]any{"client": map[string]any{"id": id, "name": s.state.clients[id].name, "fqdns": []string{p["fqdn"]}}})
	return nil
}

// serveVerifyHost verifies a host name for a client that signs in with its secret. A TXT record at the name
// CLIENT.HOST must contain the client's ID. Instead of asking DNS, the server uses the records of
// [Server.SetTXT].
func (s *Server) serveVerifyHost(w *recorder, r *http.Request) error {
	c, err := s.authenticateClient(w, r, params{})
	switch {
	case err != nil:
		return err
	case c.id != strings.ToLower(r.PathValue("id")):
		return globusError(http.StatusForbidden, "A client can only verify host names of its own")
	}
	body, err := readBody(r)
	if err != nil {
		return err
	}
	var request struct {
		FQDN string `json:"fqdn"`
	}
	if decodeStrict(body, &request) != nil || !hostPattern.MatchString(request.FQDN) {
		return badRequest("fqdn is not a host name")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	owner, taken := s.state.hosts[request.FQDN]
	switch {
	case taken:
		return globusError(http.StatusConflict, "The name is verified already, for "+owner)
	case s.txt[c.id+"."+request.FQDN] != c.id:
		return badRequest("There is no TXT record with the client's ID at " + c.id + "." + request.FQDN)
	case len(s.state.hosts) >= maxRegistered:
		return globusError(http.StatusForbidden, "There are too many host names")
	}
	if err := s.commit(&entry{Host: &verifiedHost{request.FQDN, c.id}}); err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, map[string]any{"client": map[string]any{"id": c.id, "name": c.name, "fqdns": []string{request.FQDN}}})
	return nil
}

// SetTXT sets a TXT record that the server sees in DNS. It is forgotten when the server ends.
func (s *Server) SetTXT(name, value string) error {
	if !hostPattern.MatchString(name) || len(value) > maxFieldSize {
		return fmt.Errorf("globusdev: TXT record: %q is not a host name, or the value is too long", clip(name))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.txt) >= maxRegistered {
		return errors.New("globusdev: too many TXT records")
	}
	if s.txt == nil {
		s.txt = map[string]string{}
	}
	s.txt[name] = value
	return nil
}

type txtControl struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}
