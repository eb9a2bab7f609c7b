package globusdev

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
)

const (
	maxGroups  = 100
	maxMembers = 10_000 // of a group, in any status

	scopeViewGroups = "urn:globus:auth:scope:groups.api.globus.org:view_my_groups_and_memberships"
)

var (
	memberRoles    = []string{"member", "manager", "admin"}
	memberStatuses = []string{"active", "declined", "invited", "left", "pending", "rejected", "removed"}
)

// Group is a Globus group.
type Group struct {
	// ID is a UUID. Default: derived from Name.
	ID   string `json:"id"`
	Name string `json:"name"`
	// MembersVisibility says who may see the members: "managers", which includes admins, or
	// "members". Default: managers.
	MembersVisibility string `json:"members_visibility,omitempty"`
}

// GroupMember is an identity's membership in a group. Somebody who left is a member with the status
// left.
type GroupMember struct {
	// Group is the ID of the group.
	Group string `json:"group"`
	// Identity is the ID of the identity of a user or client. [Server.SetMember] also takes a
	// username.
	Identity string `json:"identity"`
	// Role is "member", "manager" or "admin". Default: member.
	Role string `json:"role,omitempty"`
	// Status is "active", "declined", "invited", "left", "pending", "rejected" or "removed".
	// Default: active.
	Status string `json:"status,omitempty"`
}

// group is a group with its members, by the ID of their identity.
type group struct {
	Group
	members map[string]GroupMember
}

// normalize sets defaults, and returns an error if the group is not valid.
func (g *Group) normalize() error {
	switch {
	case g.Name == "" || len(g.Name) > maxFieldSize:
		return fmt.Errorf("group: the name is empty or longer than %d bytes", maxFieldSize)
	case g.MembersVisibility != "" && g.MembersVisibility != "managers" && g.MembersVisibility != "members":
		return fmt.Errorf("group %q: members can be visible to managers or members, not to %q", clip(g.Name), clip(g.MembersVisibility))
	}
	if g.ID == "" {
		g.ID = derivedID("group:" + g.Name)
	}
	if !isID(g.ID) {
		return fmt.Errorf("group %q: %q is not a UUID", clip(g.Name), clip(g.ID))
	}
	g.ID = strings.ToLower(g.ID)
	return nil
}

func (m *GroupMember) normalize() error {
	if m.Role == "" {
		m.Role = "member"
	}
	if m.Status == "" {
		m.Status = "active"
	}
	m.Group, m.Identity = strings.ToLower(m.Group), strings.ToLower(m.Identity)
	switch {
	case !slices.Contains(memberRoles, m.Role):
		return fmt.Errorf("no role %q: want one of %s", clip(m.Role), strings.Join(memberRoles, ", "))
	case !slices.Contains(memberStatuses, m.Status):
		return fmt.Errorf("no status %q: want one of %s", clip(m.Status), strings.Join(memberStatuses, ", "))
	case !isID(m.Identity):
		return fmt.Errorf("%q is not a UUID", clip(m.Identity))
	}
	return nil
}

// setGroup adds a group, or changes the one with the same ID, which keeps its members.
func (st *state) setGroup(g Group) error {
	if err := g.normalize(); err != nil {
		return err
	}
	if have := st.groups[g.ID]; have != nil {
		have.Group = g
		return nil
	}
	st.groups[g.ID] = &group{Group: g, members: map[string]GroupMember{}}
	return nil
}

func (st *state) setMember(m GroupMember) error {
	if err := m.normalize(); err != nil {
		return err
	}
	g := st.groups[m.Group]
	if g == nil {
		return errNoGroup
	}
	g.members[m.Identity] = m
	return nil
}

var errNoGroup = errors.New("there is no such group")

// AddGroup adds a group, or changes the one with the same ID, which keeps its members. It returns
// the group's ID.
func (s *Server) AddGroup(g Group) (id string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := g.normalize(); err != nil {
		return "", fmt.Errorf("globusdev: %w", err)
	}
	if s.state.groups[g.ID] == nil && len(s.state.groups) >= maxGroups {
		return "", fmt.Errorf("globusdev: more than %d groups", maxGroups)
	}
	if err := s.commit(&entry{Group: &g}); err != nil {
		return "", fmt.Errorf("globusdev: %w", err)
	}
	return g.ID, nil
}

// RemoveGroup removes a group and its members.
func (s *Server) RemoveGroup(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	id = strings.ToLower(id)
	if s.state.groups[id] == nil {
		return fmt.Errorf("globusdev: %w", errNoGroup)
	}
	return s.commit(&entry{NoGroup: id})
}

// SetMember adds a member to a group, or changes the member's role and status. The identity must
// exist.
func (s *Server) SetMember(m GroupMember) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	identity := s.state.lookup(m.Identity)
	if identity == nil {
		return fmt.Errorf("globusdev: there is no identity %q", clip(m.Identity))
	}
	m.Identity = identity.ID
	if err := m.normalize(); err != nil {
		return fmt.Errorf("globusdev: %w", err)
	}
	g := s.state.groups[m.Group]
	if g == nil {
		return fmt.Errorf("globusdev: %w", errNoGroup)
	}
	if _, have := g.members[m.Identity]; !have && len(g.members) >= maxMembers {
		return fmt.Errorf("globusdev: more than %d members", maxMembers)
	}
	return s.commit(&entry{Member: &m})
}

// groupDocument is a group in a response of the Groups API.
type groupDocument struct {
	ID             string           `json:"id"`
	Name           string           `json:"name"`
	Description    *string          `json:"description"`
	ParentID       *string          `json:"parent_id"`
	GroupType      string           `json:"group_type"`
	EnforceSession bool             `json:"enforce_session"`
	Policies       groupPolicies    `json:"policies"`
	Memberships    []memberDocument `json:"memberships,omitempty"`
}

type groupPolicies struct {
	GroupVisibility   string `json:"group_visibility"`
	MembersVisibility string `json:"group_members_visibility"`
}

type memberDocument struct {
	GroupID    string  `json:"group_id"`
	IdentityID string  `json:"identity_id"`
	Username   *string `json:"username"`
	Role       string  `json:"role"`
	Status     string  `json:"status"`
}

// serveGroup returns a group to an active member and, with include=memberships, the group's members.
// It is the part of the Groups API that a service needs to share something with a group.
func (s *Server) serveGroup(w *recorder, r *http.Request) error {
	t, _ := s.bearer(r, groupsResourceServer)
	p, err := parseParams(r.URL.RawQuery)
	switch {
	case t == nil:
		w.Header().Set("WWW-Authenticate", "Bearer")
		return unauthenticated()
	case !t.has(scopeViewGroups):
		return globusError(http.StatusForbidden, "The token does not have the scope "+scopeViewGroups)
	case err != nil:
		return badRequest(err.Error())
	case !isID(r.PathValue("id")):
		return badRequest("Not a UUID: " + clip(r.PathValue("id")))
	}
	doc, err := s.viewGroup(t, r.PathValue("id"), slices.Contains(strings.Split(p["include"], ","), "memberships"))
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, doc)
	return nil
}

// viewGroup returns a group, with its members if wanted, as the owner of the token may see it.
func (s *Server) viewGroup(t *token, id string, members bool) (*groupDocument, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.state.groups[strings.ToLower(id)]
	if g == nil {
		return nil, globusError(http.StatusNotFound, "There is no such group")
	}
	joined, manages := false, false
	_, set, _ := s.state.identityOf(t.Subject)
	for _, identity := range set {
		if m := g.members[identity.ID]; m.Status == "active" {
			joined, manages = true, manages || m.Role != "member"
		}
	}
	if !joined || members && !manages && g.MembersVisibility != "members" {
		return nil, globusError(http.StatusForbidden, "You may not see this")
	}
	doc := &groupDocument{ID: g.ID, Name: g.Name, GroupType: "regular", Policies: groupPolicies{"private", g.MembersVisibility}}
	if doc.Policies.MembersVisibility == "" {
		doc.Policies.MembersVisibility = "managers"
	}
	if members {
		for _, id := range slices.Sorted(maps.Keys(g.members)) {
			m := memberDocument{GroupID: g.ID, IdentityID: id, Role: g.members[id].Role, Status: g.members[id].Status}
			if identity := s.state.lookup(id); identity != nil {
				m.Username = nullable(identity.Username)
			}
			doc.Memberships = append(doc.Memberships, m)
		}
	}
	return doc, nil
}

// groupDump is a group in a [dump].
type groupDump struct {
	Group
	Members []GroupMember `json:"members"`
}

func (st *state) dumpGroups() []groupDump {
	list := []groupDump{}
	for _, id := range slices.Sorted(maps.Keys(st.groups)) {
		g := groupDump{Group: st.groups[id].Group, Members: []GroupMember{}}
		for _, identity := range slices.Sorted(maps.Keys(st.groups[id].members)) {
			g.Members = append(g.Members, st.groups[id].members[identity])
		}
		list = append(list, g)
	}
	return list
}
