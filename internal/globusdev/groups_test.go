package globusdev

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// groupsToken returns a token of a confidential client for the Groups API.
func (h *harness) groupsToken(clientID string) string {
	h.t.Helper()
	return h.post(tokenPath, h.basic(clientID), "grant_type", "client_credentials", "scope", scopeViewGroups).tokens(h.t).AccessToken
}

// members returns the members of a group, as username:role:status.
func members(t *testing.T, a answer) []string {
	t.Helper()
	if a.status != http.StatusOK {
		t.Fatalf("status %d, body %s", a.status, a.body)
	}
	list := []string{}
	for _, m := range a.json(t)["memberships"].([]any) {
		fields := m.(map[string]any)
		list = append(list, fmt.Sprintf("%v:%v:%v", fields["username"], fields["role"], fields["status"]))
	}
	slices.Sort(list)
	return list
}

// TestGroup rehearses over HTTP how the manager of a group adds a service to it.
func TestGroup(t *testing.T) {
	h := start(t, nil)
	a := h.control("group", `{"name":"Weather"}`)
	id, _ := a.json(t)["id"].(string)
	if a.status != http.StatusOK || id != derivedID("group:Weather") {
		t.Fatalf("status %d, body %s", a.status, a.body)
	}
	token := h.groupsToken(ResourceServerID)
	view := func() answer {
		t.Helper()
		return h.do("GET", "/v2/groups/"+id+"?include=memberships", "", bearer(token))
	}
	member := func(format string, args ...any) { t.Helper(); h.mustControl("member", fmt.Sprintf(format, args...)) }

	member(`{"group":%q,"identity":"ada@example.edu","role":"admin"}`, id)
	wantForbidden.check(t, view())
	member(`{"group":%q,"identity":%q,"status":"invited"}`, id, ResourceServerID)
	wantForbidden.check(t, view())
	member(`{"group":%q,"identity":%q}`, id, ResourceServerID)
	wantForbidden.check(t, view()) // only managers may see the members
	service := ResourceServerID + "@clients.auth.globus.org:"
	if a := h.do("GET", "/v2/groups/"+id, "", bearer(token)); a.status != http.StatusOK || a.json(t)["memberships"] != nil {
		t.Errorf("without the members: status %d, body %s", a.status, a.body)
	}
	for _, role := range []string{"manager", "admin"} {
		member(`{"group":%q,"identity":%q,"role":%q}`, id, ResourceServerID, role)
		if got, want := members(t, view()), []string{"ada@example.edu:admin:active", service + role + ":active"}; !slices.Equal(got, want) {
			t.Errorf("members %v, want %v", got, want)
		}
	}
	member(`{"group":%q,"identity":%q}`, id, ResourceServerID)
	h.mustControl("group", fmt.Sprintf(`{"id":%q,"name":"Weather and climate","members_visibility":"members"}`, id))
	member(`{"group":%q,"identity":"grace@example.com@idp.example","status":"pending"}`, id)
	member(`{"group":%q,"identity":"ada@example.edu","status":"removed"}`, id)
	want := []string{"ada@example.edu:member:removed", "grace@example.com@idp.example:member:pending", service + "member:active"}
	slices.Sort(want)
	if got := members(t, view()); !slices.Equal(got, want) {
		t.Errorf("members %v, want %v", got, want)
	}
	doc := view().json(t)
	if doc["id"] != id || doc["name"] != "Weather and climate" || doc["policies"].(map[string]any)["group_members_visibility"] != "members" {
		t.Errorf("group %v", doc)
	}
	if state := h.get("/_dev/state").body; !strings.Contains(state, `"name":"Weather and climate","members_visibility":"members","members":[{`) {
		t.Errorf("the state does not show the group: %s", state)
	}
	h.mustControl("remove-group", fmt.Sprintf(`{"id":%q}`, id))
	want404().check(t, view())
	if a := h.control("remove-group", fmt.Sprintf(`{"id":%q}`, id)); a.status != http.StatusBadRequest {
		t.Errorf("a group is removed twice: status %d", a.status)
	}
}

func want404() want { return want{404, "not_found", "NOT_FOUND", ""} }

// TestGroupOfLinkedIdentity checks that a person may see a group that a linked identity is in.
func TestGroupOfLinkedIdentity(t *testing.T) {
	h := start(t, nil)
	id, err := h.AddGroup(Group{Name: "Weather"})
	testkit.Must(t, err)
	testkit.Must(t, h.SetMember(GroupMember{Group: id, Identity: "grace@example.com@idp.example", Role: "manager"}))
	for who, status := range map[string]int{"grace@example.org": 200, "ada@example.edu": 403} {
		grant, err := h.IssueTokens(who, NativeClientID, []string{scopeViewGroups}, false)
		testkit.Must(t, err)
		if a := h.do("GET", "/v2/groups/"+id+"?include=memberships", "", bearer(grant.Tokens[0].AccessToken.Reveal())); a.status != status {
			t.Errorf("%s: status %d, want %d", who, a.status, status)
		}
	}
	// The user is replaced by one without this identity. The membership stays, without a name.
	_, err = h.AddUser(User{Identity: Identity{Username: "grace@example.org"}})
	testkit.Must(t, err)
	testkit.Must(t, h.SetMember(GroupMember{Group: id, Identity: ServiceClientID, Role: "manager"}))
	got := members(t, h.do("GET", "/v2/groups/"+id+"?include=policies,memberships", "", bearer(h.groupsToken(ServiceClientID))))
	if !slices.Contains(got, "<nil>:manager:active") {
		t.Errorf("members %v, want one without a name", got)
	}
}

func TestGroupErrors(t *testing.T) {
	h := start(t, nil)
	id, err := h.AddGroup(Group{Name: "Weather"})
	testkit.Must(t, err)
	testkit.Must(t, h.SetMember(GroupMember{Group: id, Identity: ServiceClientID, Role: "manager"}))
	auth, ours := h.login("ada@example.edu")
	good := bearer(h.groupsToken(ServiceClientID))
	for name, tt := range map[string]struct {
		path   string
		change func(*http.Request)
		want   want
	}{
		"no token":           {id, nil, wantNoAuth},
		"Basic":              {id, h.basic(ServiceClientID), wantNoAuth},
		"a token for Auth":   {id, bearer(auth.AccessToken), wantNoAuth},
		"a token for us":     {id, bearer(ours.AccessToken), wantNoAuth},
		"somebody else":      {id, bearer(h.groupsToken(ResourceServerID)), wantForbidden},
		"unknown":            {nobodysID, good, want404()},
		"not a UUID":         {"weather", good, want{400, "bad_request", "BAD_REQUEST", ""}},
		"include, repeated":  {id + "?include=x&include=y", good, want{400, "bad_request", "BAD_REQUEST", ""}},
		"the badly encoded":  {id + "?include=%zz", good, want{400, "bad_request", "BAD_REQUEST", ""}},
		"the list of groups": {"my_groups", good, want{400, "bad_request", "BAD_REQUEST", ""}},
	} {
		t.Run(name, func(t *testing.T) { tt.want.check(t, h.do("GET", "/v2/groups/"+tt.path, "", tt.change)) })
	}
	for name, g := range map[string]Group{
		"no name": {}, "a long name": {Name: strings.Repeat("x", 300)}, "a bad ID": {Name: "x", ID: "x"}, "a bad visibility": {Name: "x", MembersVisibility: "all"},
	} {
		if id, err := h.AddGroup(g); err == nil || id != "" {
			t.Errorf("AddGroup with %s = %q, %v", name, id, err)
		}
	}
	for name, m := range map[string]GroupMember{
		"no group": {Identity: ServiceClientID}, "an unknown group": {Group: nobodysID, Identity: ServiceClientID}, "nobody": {Group: id, Identity: nobodysID},
		"no identity": {Group: id}, "a bad role": {Group: id, Identity: ServiceClientID, Role: "owner"}, "a bad status": {Group: id, Identity: ServiceClientID, Status: "here"},
	} {
		if err := h.SetMember(m); err == nil {
			t.Errorf("SetMember with %s = nil", name)
		}
	}
	for err == nil {
		_, err = h.AddGroup(Group{Name: fmt.Sprint(len(h.state.groups))})
	}
	if n := len(h.state.groups); n != maxGroups {
		t.Errorf("%d groups, want %d: %v", n, maxGroups, err)
	}
	if _, err := h.AddGroup(Group{ID: id, Name: "Climate"}); err != nil {
		t.Errorf("a full server does not let a group change: %v", err)
	}
	g := h.state.groups[id]
	for i := len(g.members); i < maxMembers; i++ {
		m := GroupMember{Group: id, Identity: derivedID(fmt.Sprint("member", i))}
		testkit.Must(t, h.state.setMember(m))
	}
	if err := h.SetMember(GroupMember{Group: id, Identity: "grace@example.org"}); err == nil {
		t.Errorf("%d members", len(g.members))
	}
	if err := h.SetMember(GroupMember{Group: id, Identity: ServiceClientID, Status: "left"}); err != nil {
		t.Errorf("a member of a full group cannot leave: %v", err)
	}
}
