package globusdev

import (
	"net/http"
	"slices"
	"strings"

	"github.com/google/uuid"
)

const maxLookups = 100

// The possible values of [Identity.Status].
const (
	statusUnused  = "unused"
	statusUsed    = "used"
	statusPrivate = "private"
	statusClosed  = "closed"
)

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

// document returns what a lookup says about an identity. Nobody may see more of a private one than
// its username.
func (st *state) document(i *Identity) identityDocument {
	doc := identityDocument{ID: i.ID, Username: i.Username, IdentityProvider: i.provider(), Status: st.status(i)}
	if doc.Status != statusPrivate {
		doc.Name, doc.Email, doc.Organization = nullable(i.Name), nullable(i.Email), nullable(i.Organization)
	}
	if st.clients[i.ID] == nil {
		doc.IdentityType = nullable("login")
	}
	return doc
}

// status returns the status of an identity. An identity that has none of its own is used once
// somebody has signed in with it. Clients are always used.
func (st *state) status(i *Identity) string {
	switch {
	case i.Status != "" && i.Status != statusUnused:
		return i.Status
	case st.used[i.ID] || st.clients[i.ID] != nil:
		return statusUsed
	}
	return statusUnused
}

// closed reports whether nobody can sign in with the user's identity that has this ID or username.
func (st *state) closed(who string) bool {
	m, ok := st.find(who)
	return ok && m.Status == statusClosed
}

// lookup finds the identity of a user or of a client by username or ID. It returns nil if there is
// none.
func (st *state) lookup(who string) *Identity {
	if m, ok := st.find(who); ok {
		return m.Identity
	}
	if c := st.clients[strings.TrimSuffix(strings.ToLower(who), "@"+clientsDomain)]; c != nil {
		return c.identity()
	}
	return nil
}

// serveIdentities looks identities up by username or ID. The response omits unknown ones.
func (s *Server) serveIdentities(w *recorder, r *http.Request) error {
	if err := s.anyCredentials(w, r); err != nil {
		return err
	}
	p, err := parseParams(r.URL.RawQuery)
	if err != nil {
		return badRequest(err.Error())
	}
	if (p["usernames"] == "") == (p["ids"] == "") {
		return badRequest("Give either usernames or ids")
	}
	list := strings.Split(p["usernames"]+p["ids"], ",")
	switch {
	case len(list) > maxLookups:
		return badRequest("Too many at once")
	case p["provision"] == "true":
		return badRequest("This development server creates no identities for new usernames")
	}
	for _, who := range list {
		if p["ids"] != "" && !isID(who) {
			return badRequest("Not a UUID: " + clip(who))
		}
		if candidate := (Identity{Username: who}); p["usernames"] != "" && candidate.normalize() != nil {
			return badRequest("Not a username: " + clip(who))
		}
	}
	writeJSON(w, http.StatusOK, map[string]any{"identities": s.findIdentities(list)})
	return nil
}

func (s *Server) findIdentities(list []string) []identityDocument {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := []identityDocument{}
	for _, who := range list {
		identity := s.state.lookup(who)
		if identity != nil && !slices.ContainsFunc(found, func(d identityDocument) bool { return d.ID == identity.ID }) {
			found = append(found, s.state.document(identity))
		}
	}
	return found
}

// serveIdentity returns one identity.
func (s *Server) serveIdentity(w *recorder, r *http.Request) error {
	if err := s.anyCredentials(w, r); err != nil {
		return err
	}
	id := r.PathValue("id")
	if !isID(id) {
		return badRequest("Not a UUID: " + clip(id))
	}
	found := s.findIdentities([]string{id})
	if len(found) == 0 {
		return globusError(http.StatusNotFound, "There is no such identity")
	}
	writeJSON(w, http.StatusOK, map[string]any{"identity": found[0]})
	return nil
}

// anyCredentials accepts a client with its secret, or an access token for Globus Auth.
func (s *Server) anyCredentials(w *recorder, r *http.Request) error {
	if _, _, basic := r.BasicAuth(); basic {
		_, err := s.authenticateClient(w, r, params{})
		return err
	}
	if t, _ := s.bearer(r, authResourceServer); t == nil {
		w.Header().Set("WWW-Authenticate", "Bearer")
		return unauthenticated()
	}
	return nil
}

// isID reports whether text is a UUID in its usual form.
func isID(text string) bool {
	_, err := uuid.Parse(text)
	return err == nil && len(text) == 36
}

func badRequest(detail string) error { return globusError(http.StatusBadRequest, detail) }
