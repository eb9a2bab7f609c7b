package globusdev

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

const nobodysID = "d1a590a0-0000-4000-8000-0000000000ff"

func TestIdentities(t *testing.T) {
	h := start(t, nil)
	auth, ours := h.login("ada@example.edu")
	get := func(path string) answer { t.Helper(); return h.do("GET", path, "", bearer(auth.AccessToken)) }
	ada, grace, linked := Subject("ada@example.edu"), Subject("grace@example.org"), Subject("grace@example.com@idp.example")
	for query, want := range map[string][]string{
		"usernames=ada@example.edu":                                   {ada},
		"usernames=ADA@Example.EDU":                                   {ada},
		"usernames=ada@example.edu,grace@example.org":                 {ada, grace},
		"usernames=ada@example.edu,ada@example.edu":                   {ada},
		"usernames=grace@example.com@idp.example":                     {linked},
		"usernames=nobody@example.edu":                                {},
		"usernames=nobody@example.edu&provision=false":                {},
		"usernames=" + ServiceClientID + "@clients.auth.globus.org":   {ServiceClientID},
		"usernames=nobody@clients.auth.globus.org,grace@example.org":  {grace},
		"ids=" + strings.ToUpper(ada):                                 {ada},
		"ids=" + linked + "," + ada:                                   {linked, ada},
		"ids=" + ServiceClientID:                                      {ServiceClientID},
		"ids=" + nobodysID:                                            {},
		"ids=" + strings.Repeat(nobodysID+",", maxLookups-1) + linked: {linked},
	} {
		a := get("/v2/api/identities?" + query)
		ids := []string{}
		for _, i := range a.json(t)["identities"].([]any) {
			ids = append(ids, i.(map[string]any)["id"].(string))
		}
		if a.status != http.StatusOK || !slices.Equal(ids, want) {
			t.Errorf("%s: status %d, %v, want %v", query, a.status, ids, want)
		}
	}
	for path, want := range map[string]want{
		"?":                  {400, "bad_request", "BAD_REQUEST", ""},
		"?usernames=":        {400, "bad_request", "BAD_REQUEST", ""},
		"?usernames=ada":     {400, "bad_request", "BAD_REQUEST", "Not a username: ada"},
		"?usernames=ada@":    {400, "bad_request", "BAD_REQUEST", "Not a username: ada@"},
		"?usernames=@x":      {400, "bad_request", "BAD_REQUEST", "Not a username: @x"},
		"?usernames=a%20b@x": {400, "bad_request", "BAD_REQUEST", ""},
		"?usernames=a@x,":    {400, "bad_request", "BAD_REQUEST", ""},
		"?usernames=" + ada:  {400, "bad_request", "BAD_REQUEST", ""},
		"?usernames=" + strings.Repeat("x", 300) + "@x": {400, "bad_request", "BAD_REQUEST", ""},
		"?usernames=a@x&provision=true":                 {400, "bad_request", "BAD_REQUEST", ""},
		"?ids=ada":                                      {400, "bad_request", "BAD_REQUEST", ""},
		"?ids={" + ada + "}":                            {400, "bad_request", "BAD_REQUEST", ""},
		"?ids=" + ada + "&usernames=a@x":                {400, "bad_request", "BAD_REQUEST", ""},
		"?ids=" + ada + "&ids=" + ada:                   {400, "bad_request", "BAD_REQUEST", ""},
		"?ids=" + strings.Repeat(ada+",", maxLookups):   {400, "bad_request", "BAD_REQUEST", "Too many at once"},
		"/x":            {400, "bad_request", "BAD_REQUEST", ""},
		"/" + nobodysID: {404, "not_found", "NOT_FOUND", ""},
	} {
		t.Run("bad "+clip(path), func(t *testing.T) { want.check(t, get("/v2/api/identities"+path)) })
	}
	for name, tt := range map[string]struct {
		change func(*http.Request)
		want   want
	}{
		"nobody":        {nil, wantNoAuth},
		"our token":     {bearer(ours.AccessToken), wantNoAuth},
		"refresh token": {bearer(auth.RefreshToken), wantNoAuth},
		"wrong secret":  {basicAuth(ServiceClientID, "x"), wantBasicFailed},
		"public client": {basicAuth(NativeClientID, ""), wantBasicFailed},
	} {
		for _, path := range []string{"/v2/api/identities?ids=" + ada, "/v2/api/identities/" + ada} {
			t.Run(name, func(t *testing.T) { tt.want.check(t, h.do("GET", path, "", tt.change)) })
		}
	}
	if a := h.do("GET", "/v2/api/identities?ids="+ada, "", h.basic(ServiceClientID)); a.status != http.StatusOK {
		t.Errorf("with Basic: status %d", a.status)
	}
	if name := h.identity(linked)["name"]; name != nil {
		t.Errorf("name %v, want null", name)
	}
	service := h.identity(ServiceClientID)
	if service["identity_type"] != nil || service["status"] != "used" || service["identity_provider"] != clientsProviderID {
		t.Errorf("a client's identity: %v", service)
	}
}

// identity looks one identity up, as a service.
func (h *harness) identity(id string) map[string]any {
	h.t.Helper()
	a := h.do("GET", "/v2/api/identities/"+id, "", h.basic(ServiceClientID))
	if a.status != http.StatusOK {
		h.t.Fatalf("identity %s: status %d, body %s", id, a.status, a.body)
	}
	return a.json(h.t)["identity"].(map[string]any)
}

func TestIdentityStatus(t *testing.T) {
	h := start(t, nil)
	ada, grace, linked := Subject("ada@example.edu"), Subject("grace@example.org"), Subject("grace@example.com@idp.example")
	check := func(when string, want map[string]string) {
		t.Helper()
		for id, status := range want {
			if got := h.identity(id)["status"]; got != status {
				t.Errorf("%s: the status of %s is %v, want %s", when, id, got, status)
			}
		}
	}
	check("at first", map[string]string{ada: "unused", grace: "unused", linked: "unused"})
	h.login("grace@example.com@idp.example")
	check("after a login", map[string]string{ada: "unused", grace: "used", linked: "used"})
	testkit.Must(t, h.Reset())
	check("after a reset", map[string]string{ada: "unused", grace: "used", linked: "used"})

	h.mustControl("user", `{"username":"ada@example.edu","name":"Ada","email":"ada@example.edu","organization":"X","status":"private"}`)
	h.mustControl("user", `{"username":"mary@example.edu","status":"closed","linked":[{"username":"mary@example.org","status":"used"}]}`)
	mary := Subject("mary@example.edu")
	check("set", map[string]string{ada: "private", mary: "closed", Subject("mary@example.org"): "used"})
	if i := h.identity(ada); i["username"] != "ada@example.edu" || i["name"] != nil || i["email"] != nil || i["organization"] != nil {
		t.Errorf("a private identity: %v", i)
	}
	h.login("ada@example.edu")
	check("after a login", map[string]string{ada: "private"})
	if a := h.get(authorizeQuery("dev_user", "mary@example.edu")); a.status != http.StatusForbidden {
		t.Errorf("a closed identity signs in: status %d", a.status)
	}
	if _, err := h.IssueTokens("mary@example.edu", NativeClientID, []string{Scope}, false); err == nil {
		t.Error("tokens are issued to a closed identity")
	}
	code := h.code("mary@example.org")
	h.mustControl("user", `{"username":"mary@example.edu","linked":[{"username":"mary@example.org","status":"closed"}]}`)
	want{401, "invalid_grant", "", ""}.check(t, h.exchange(code))
	if _, err := h.AddUser(User{Identity: Identity{Username: "x@example.edu", Status: "asleep"}}); err == nil {
		t.Error("AddUser takes an unknown status")
	}
}

// TestLinkedIdentities links an identity to a user who is signed in.
func TestLinkedIdentities(t *testing.T) {
	h := start(t, nil)
	_, ours := h.login("ada@example.edu")
	set := func() []any {
		t.Helper()
		return h.introspect(ours.AccessToken, "include", "identity_set")["identity_set"].([]any)
	}
	if got := set(); len(got) != 1 || got[0] != Subject("ada@example.edu") {
		t.Errorf("identity_set = %v, want Ada's only", got)
	}
	h.mustControl("user", `{"username":"ada@example.edu","linked":[{"username":"ada@lab.example"}]}`)
	if got := set(); len(got) != 2 || got[1] != Subject("ada@lab.example") {
		t.Errorf("identity_set = %v, want both of Ada's", got)
	}
	h.mustControl("user", `{"username":"ada@example.edu"}`)
	if got := set(); len(got) != 1 {
		t.Errorf("identity_set = %v after the other one is unlinked", got)
	}
}
