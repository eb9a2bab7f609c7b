package globusdev

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
)

func TestIdentities(t *testing.T) {
	h := start(t, nil)
	auth, ours := h.login("ada@example.edu")
	get := func(path string) answer { t.Helper(); return h.do("GET", path, "", bearer(auth.AccessToken)) }
	ada, grace, linked := Subject("ada@example.edu"), Subject("grace@example.org"), Subject("grace@example.com@idp.example")
	service := ServiceClientID + "@clients.auth.globus.org"
	for query, want := range map[string][]string{
		"usernames=ada@example.edu":                               {ada},
		"usernames=ADA@Example.EDU":                               {ada},
		"usernames=ada@example.edu,grace@example.org":             {ada, grace},
		"usernames=ada@example.edu,ada@example.edu":               {ada},
		"usernames=grace@example.com@idp.example":                 {linked},
		"usernames=nobody@example.edu":                            {},
		"usernames=nobody@example.edu&provision=false":            {},
		"usernames=" + service:                                    {ServiceClientID},
		"usernames=x@clients.auth.globus.org&provision=true":      {},
		"ids=" + strings.ToUpper(ada):                             {ada},
		"ids=" + linked + "," + ada:                               {linked, ada},
		"ids=" + ServiceClientID:                                  {ServiceClientID},
		"ids=d1a590a0-0000-4000-8000-0000000000ff":                {},
		"ids=d1a590a0-0000-4000-8000-0000000000ff&provision=true": {},
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
		"?usernames=" + strings.Repeat("x", 300) + "@x": {400, "bad_request", "BAD_REQUEST", ""},
		"?ids=ada":                              {400, "bad_request", "BAD_REQUEST", ""},
		"?ids={" + ada + "}":                    {400, "bad_request", "BAD_REQUEST", ""},
		"?ids=" + ada + "&usernames=a@x":        {400, "bad_request", "BAD_REQUEST", ""},
		"?ids=" + ada + "&ids=" + ada:           {400, "bad_request", "BAD_REQUEST", ""},
		"?ids=" + strings.Repeat(ada+",", 101):  {400, "bad_request", "BAD_REQUEST", "Too many at once"},
		"/x":                                    {400, "bad_request", "BAD_REQUEST", ""},
		"/d1a590a0-0000-4000-8000-0000000000ff": {404, "not_found", "NOT_FOUND", ""},
	} {
		t.Run("bad "+clip(path), func(t *testing.T) { want.check(t, get("/v2/api/identities"+path)) })
	}
	for name, tt := range map[string]struct {
		change func(*http.Request)
		want   want
	}{
		"nobody":        {nil, wantNoAuth},
		"our token":     {bearer(ours.AccessToken), wantNoAuth},
		"wrong secret":  {basicAuth(ServiceClientID, "x"), wantBasicFailed},
		"public client": {basicAuth(NativeClientID, ""), wantBasicFailed},
	} {
		for _, path := range []string{"/v2/api/identities?ids=" + ada, "/v2/api/identities/" + ada, "/v2/api/identity_providers?domains=example.edu"} {
			t.Run(name, func(t *testing.T) { tt.want.check(t, h.do("GET", path, "", tt.change)) })
		}
	}
	if a := h.do("GET", "/v2/api/identities?ids="+ada, "", h.basic(ServiceClientID)); a.status != http.StatusOK {
		t.Errorf("with Basic: status %d", a.status)
	}

	one := get("/v2/api/identities/" + ada).json(t)["identity"].(map[string]any)
	if one["username"] != "ada@example.edu" || one["status"] != "used" || one["identity_type"] != "login" || one["name"] != "Ada Lovelace" {
		t.Errorf("one = %v", one)
	}
	two := get("/v2/api/identities/" + linked).json(t)["identity"].(map[string]any)
	if name, ok := two["name"]; !ok || name != nil {
		t.Errorf("name %v, want null", name)
	}
}

func TestProvision(t *testing.T) {
	h := start(t, nil)
	get := func(query string) map[string]any {
		t.Helper()
		return h.do("GET", "/v2/api/identities?"+query, "", h.basic(ServiceClientID)).json(t)
	}
	first := get("usernames=new@example.edu,new@lab.example&provision=true&include=identity_provider")
	if list := first["identities"].([]any); len(list) != 2 || list[0].(map[string]any)["status"] != "unused" {
		t.Fatalf("provisioned %v", first)
	}
	names := []string{}
	for _, p := range first["included"].(map[string]any)["identity_providers"].([]any) {
		names = append(names, p.(map[string]any)["name"].(string))
	}
	if !slices.Equal(names, []string{"Example University", "lab.example"}) {
		t.Errorf("providers %v", names)
	}
	if again := get("usernames=new@example.edu"); fmt.Sprint(again["identities"].([]any)[0]) != fmt.Sprint(first["identities"].([]any)[0]) {
		t.Errorf("again %v, want %v", again, first)
	}
	h.login("new@lab.example")
}

func TestIdentityProviders(t *testing.T) {
	h := start(t, nil)
	get := func(query string) answer {
		return h.do("GET", "/v2/api/identity_providers?"+query, "", h.basic(ServiceClientID))
	}
	for query, want := range map[string][]string{
		"domains=example.edu":               {"Example University"},
		"domains=example.org,example.edu":   {"Example Institute", "Example University"},
		"domains=idp.example":               {"idp.example"}, // a user has an identity there
		"domains=nowhere.example":           {},
		"ids=" + providerID("example.edu"):  {"Example University"},
		"ids=" + providerID("idp.example"):  {"idp.example"},
		"ids=" + providerID("else.example"): {},
	} {
		names := []string{}
		for _, p := range get(query).json(t)["identity_providers"].([]any) {
			fields := p.(map[string]any)
			names = append(names, fields["name"].(string))
			if fields["alternative_names"] == nil || fields["short_name"] == "" || len(fields["domains"].([]any)) == 0 {
				t.Errorf("%s: %v", query, p)
			}
		}
		if !slices.Equal(names, want) {
			t.Errorf("%s: %v, want %v", query, names, want)
		}
	}
	for _, query := range []string{"", "domains=a&ids=b", "domains=a&domains=b"} {
		want{400, "bad_request", "BAD_REQUEST", ""}.check(t, get(query))
	}
}

func TestConsents(t *testing.T) {
	h := start(t, nil)
	ada := Subject("ada@example.edu")
	auth, ours := h.login("ada@example.edu")
	h.login("ada@example.edu") // uses the same consents
	path := "/v2/api/identities/" + ada + "/consents"
	list := h.do("GET", path, "", bearer(auth.AccessToken)).json(t)["consents"].([]any)
	paths := map[string]string{}
	for _, c := range list {
		fields := c.(map[string]any)
		if fields["client"] != NativeClientID || fields["effective_identity"] != ada || fields["status"] != "approved" || fields["allows_refresh"] != true {
			t.Errorf("consent %v", fields)
		}
		paths[fields["scope_name"].(string)] = fmt.Sprint(fields["dependency_path"])
	}
	if want := (map[string]string{"openid": "[1]", "profile": "[2]", "email": "[3]", Scope: "[4]", scopeViewMyGroups: "[4 5]"}); fmt.Sprint(paths) != fmt.Sprint(want) {
		t.Errorf("consents %v, want %v", paths, want)
	}

	other := h.post(tokenPath, h.basic(ServiceClientID), "grant_type", "client_credentials", "scope", "openid").tokens(t)
	wantForbidden.check(t, h.do("GET", path, "", bearer(other.AccessToken)))
	wantForbidden.check(t, h.do("GET", path+"?all=true", "", bearer(auth.AccessToken)))
	wantNoAuth.check(t, h.do("GET", path, "", bearer(ours.AccessToken)))
	wantNoAuth.check(t, h.do("GET", path, "", nil))
	all := h.exchange(h.code("ada@example.edu", "scope", "openid "+scopeViewConsents)).tokens(t)
	if list := h.do("GET", path+"?all=true", "", bearer(all.AccessToken)).json(t)["consents"].([]any); len(list) != 6 {
		t.Errorf("%d consents, want 6", len(list))
	}

	// Rescinding a consent immediately revokes what was granted by it, and nothing else.
	if err := h.Rescind(ada, NativeClientID, Scope); err != nil {
		t.Fatal(err)
	}
	if h.active(ours.AccessToken) {
		t.Error("active after its consent was rescinded")
	}
	want{400, "invalid_grant", "", ""}.check(t, h.post(tokenPath, nil, "grant_type", "refresh_token", "client_id", NativeClientID, "refresh_token", ours.RefreshToken))
	if list := h.do("GET", path, "", bearer(auth.AccessToken)).json(t)["consents"].([]any); len(list) != 4 {
		t.Errorf("%d consents, want the 4 others", len(list))
	}
	if err := h.Rescind(ada, NativeClientID, Scope); err == nil {
		t.Error("rescinded twice")
	}
	if _, again := h.login("ada@example.edu"); !h.active(again.AccessToken) {
		t.Error("inactive after consenting anew")
	}
}
