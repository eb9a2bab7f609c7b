package globusdev

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

// managerToken returns a token of a user for the developer API.
func (h *harness) managerToken(who string) string {
	h.t.Helper()
	return h.exchange(h.code(who, "scope", scopeManageProjects, "access_type", "online")).tokens(h.t).AccessToken
}

const newScope = `{"scope":{"name":"Log events","description":"Log events as you","scope_suffix":"logging","allows_refresh_token":true,"advertised":false,"dependent_scopes":[]}}`

// TestRegister rehearses over HTTP how an operator registers a scope and a host name, and uses both names of the scope,
// also after a restart.
func TestRegister(t *testing.T) {
	dir := t.TempDir()
	h := start(t, func(c *Config) { c.Dir = dir })
	token := h.managerToken("mary@localhost")
	scopes := "/v2/api/clients/" + ResourceServerID + "/scopes"
	byID, byHost := scopeURL+ResourceServerID+"/logging", scopeURL+"streams.lab.test/logging"
	find := func(scope string) string {
		t.Helper()
		return h.do("GET", "/v2/api/scopes?scope_strings="+scope, "", bearer(token)).body
	}
	if got := find(byID); got != `{"scopes":[]}`+"\n" {
		t.Errorf("before the creation: %s", got)
	}
	a := h.do("POST", scopes, newScope, bearer(token))
	if a.status != http.StatusCreated || a.json(t)["scope"].(map[string]any)["scope_string"] != byID {
		t.Fatalf("create a scope: status %d, body %s", a.status, a.body)
	}
	if got := find(byID); !strings.Contains(got, byID) || !strings.Contains(got, `"allows_refresh_token":true`) {
		t.Errorf("after the creation: %s", got)
	}
	if a := h.do("POST", scopes, newScope, bearer(token)); a.status != http.StatusConflict {
		t.Errorf("create the scope again: status %d, body %s", a.status, a.body)
	}

	fqdns := "/v2/api/clients/" + ResourceServerID + "/fqdns"
	verify := func() answer {
		t.Helper()
		return h.do("POST", fqdns, `{"fqdn":"streams.lab.test"}`, h.basic(ResourceServerID))
	}
	owner := func() answer { return h.do("GET", "/v2/api/clients?fqdn=streams.lab.test", "", bearer(token)) }
	if a := verify(); a.status != http.StatusBadRequest || !strings.Contains(a.body, "TXT") {
		t.Errorf("without the TXT record: status %d, body %s", a.status, a.body)
	}
	if a := owner(); a.status != http.StatusNotFound {
		t.Errorf("look up a host name that is not verified: status %d, body %s", a.status, a.body)
	}
	h.mustControl("txt", `{"name":"`+ResourceServerID+`.streams.lab.test","value":"`+ResourceServerID+`"}`)
	if a := verify(); a.status != http.StatusOK {
		t.Errorf("with the TXT record: status %d, body %s", a.status, a.body)
	}
	if a := owner(); a.status != http.StatusOK || a.json(t)["client"].(map[string]any)["id"] != ResourceServerID {
		t.Errorf("look up the host name: status %d, body %s", a.status, a.body)
	}
	if a := verify(); a.status != http.StatusConflict {
		t.Errorf("verify again: status %d, body %s", a.status, a.body)
	}

	for _, scope := range []string{byID, byHost} {
		got := h.exchange(h.code("ada@example.edu", "scope", scope)).tokens(t)
		if got.Scope != scope || got.ResourceServer != ResourceServerID || got.RefreshToken == "" {
			t.Errorf("log in with %s: %+v", scope, got.tokenDocument)
		}
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	h = start(t, func(c *Config) { c.Dir = dir })
	if got := h.exchange(h.code("ada@example.edu", "scope", byHost)).tokens(t).Scope; got != byHost {
		t.Errorf("after a restart, the scope is %q", got)
	}
}

// TestRegisterWithoutRefresh checks that a scope can forbid refresh tokens.
func TestRegisterWithoutRefresh(t *testing.T) {
	h := start(t, nil)
	h.do("POST", "/v2/api/clients/"+ResourceServerID+"/scopes", strings.Replace(newScope, "true", "false", 1), bearer(h.managerToken("mary@localhost")))
	if got := h.exchange(h.code("ada@example.edu", "scope", scopeURL+ResourceServerID+"/logging")).tokens(t); got.RefreshToken != "" {
		t.Error("the scope forbids refresh tokens, and the login has one")
	}
}

// TestRegisterRefused checks who may not register a scope or a host name, and what cannot be one.
func TestRegisterRefused(t *testing.T) {
	h := start(t, nil)
	admin := h.managerToken("mary@localhost")
	scopes, fqdns := "/v2/api/clients/"+ResourceServerID+"/scopes", "/v2/api/clients/"+ResourceServerID+"/fqdns"
	auth, ours := h.login("mary@localhost")
	for name, c := range map[string]struct {
		method, path, body string
		as                 func(*http.Request)
		status             int
	}{
		"no token":            {"POST", scopes, newScope, nil, 401},
		"of another service":  {"POST", scopes, newScope, bearer(ours.AccessToken), 401},
		"another scope":       {"POST", scopes, newScope, bearer(auth.AccessToken), 403},
		"no administrator":    {"POST", scopes, newScope, bearer(h.managerToken("ada@example.edu")), 403},
		"a client":            {"POST", scopes, newScope, h.basic(ResourceServerID), 401},
		"unknown client":      {"POST", "/v2/api/clients/" + Subject("nobody@example.edu") + "/scopes", newScope, bearer(admin), 404},
		"public client":       {"POST", "/v2/api/clients/" + NativeClientID + "/scopes", newScope, bearer(admin), 404},
		"bad suffix":          {"POST", scopes, strings.Replace(newScope, "logging", "Log-ging", 1), bearer(admin), 400},
		"no name":             {"POST", scopes, strings.Replace(newScope, "Log events", "", 1), bearer(admin), 400},
		"no JSON":             {"POST", scopes, "name=logging", bearer(admin), 400},
		"built-in suffix":     {"POST", scopes, strings.Replace(newScope, "logging", "action_all", 1), bearer(admin), 409},
		"look up, no admin":   {"GET", "/v2/api/scopes?scope_strings=x", "", bearer(h.managerToken("grace@example.org")), 403},
		"host, wrong secret":  {"POST", fqdns, `{"fqdn":"streams.lab.test"}`, func(r *http.Request) { r.SetBasicAuth(ResourceServerID, "wrong") }, 401},
		"host, other client":  {"POST", fqdns, `{"fqdn":"streams.lab.test"}`, h.basic(ServiceClientID), 403},
		"host, no name":       {"POST", fqdns, `{"fqdn":"streams"}`, h.basic(ResourceServerID), 400},
		"owner, no token":     {"GET", "/v2/api/clients?fqdn=streams.lab.test", "", nil, 401},
		"owner, not verified": {"GET", "/v2/api/clients?fqdn=streams.lab.test", "", bearer(admin), 404},
	} {
		if a := h.do(c.method, c.path, c.body, c.as); a.status != c.status {
			t.Errorf("%s: status %d, want %d; body %s", name, a.status, c.status, a.body)
		}
	}
	h.AdvanceClock(adminSession + time.Second)
	if a := h.do("POST", scopes, newScope, bearer(admin)); a.status != http.StatusForbidden || !strings.Contains(a.body, "in session within the last 30 minutes") {
		t.Errorf("after half an hour: status %d, body %s", a.status, a.body)
	}
}
