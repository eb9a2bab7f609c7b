package globusdev

import (
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

func secretOf(token string) globus.Secret { return globus.Secret(token) }

// control sends a control as JSON.
func (h *harness) control(name, body string) answer {
	h.t.Helper()
	return h.do("POST", "/_dev/"+name, body, header("Content-Type", "application/json"))
}

func (h *harness) mustControl(name, body string) {
	h.t.Helper()
	if a := h.control(name, body); a.status != http.StatusOK {
		h.t.Fatalf("/_dev/%s %s: status %d, body %s", name, body, a.status, a.body)
	}
}

func (h *harness) refresh(token string) answer {
	h.t.Helper()
	return h.post(tokenPath, nil, "grant_type", "refresh_token", "client_id", NativeClientID, "refresh_token", token)
}

// TestControls uses each control both in Go and over HTTP.
func TestControls(t *testing.T) {
	ada := Subject("ada@example.edu")
	type controls struct {
		expire, revoke               func(token string) error
		expireSubject, revokeSubject func(subject string) error
		advance                      func(time.Duration)
		mode                         func(RefreshMode) error
		fail                         func(n, status int) error
		reset                        func() error
	}
	ways := map[string]func(h *harness) controls{
		"Go": func(h *harness) controls {
			return controls{
				expire:        func(token string) error { return h.Expire(secretOf(token)) },
				revoke:        func(token string) error { return h.Revoke(secretOf(token)) },
				expireSubject: h.ExpireAccessTokens, revokeSubject: h.RevokeAll, advance: h.AdvanceClock, mode: h.SetRefreshMode,
				fail:  func(n, status int) error { return h.FailNext(n, Failure{Path: tokenPath, Status: status}) },
				reset: h.Reset,
			}
		},
		"HTTP": func(h *harness) controls {
			send := func(name, format string, args ...any) error {
				if a := h.control(name, fmt.Sprintf(format, args...)); a.status != http.StatusOK {
					return fmt.Errorf("status %d: %s", a.status, a.body)
				}
				return nil
			}
			return controls{
				expire:        func(token string) error { return send("expire", `{"token":%q}`, token) },
				revoke:        func(token string) error { return send("revoke", `{"token":%q}`, token) },
				expireSubject: func(subject string) error { return send("expire", `{"subject":%q}`, subject) },
				revokeSubject: func(subject string) error { return send("revoke", `{"subject":%q}`, subject) },
				advance:       func(d time.Duration) { h.mustControl("clock", fmt.Sprintf(`{"advance":%q}`, d)) },
				mode:          func(m RefreshMode) error { return send("refresh-mode", `{"mode":%q}`, m) },
				fail: func(n, status int) error {
					return send("fail", `{"count":%d,"path":%q,"status":%d}`, n, tokenPath, status)
				},
				reset: func() error { return send("reset", `{}`) },
			}
		},
	}
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			h := start(t, nil)
			c := way(h)
			_, a := h.login("ada@example.edu")
			testkit.Must(t, c.expire(a.AccessToken))
			if h.active(a.AccessToken) {
				t.Error("active after expire")
			}
			a = h.refresh(a.RefreshToken).tokens(t).tokenDocument
			testkit.Must(t, c.expire(a.RefreshToken))
			if h.refresh(a.RefreshToken).status != 400 || !h.active(a.AccessToken) {
				t.Error("expiring the refresh token: want it dead, and the access token good")
			}
			testkit.Must(t, c.revoke(a.AccessToken))
			if h.active(a.AccessToken) || c.revoke(a.AccessToken) == nil || c.expire("x") == nil {
				t.Error("active after revoke, or an unknown token is no error")
			}

			_, one := h.login("ada@example.edu")
			_, two := h.login("ada@example.edu")
			_, other := h.login("grace@example.org")
			testkit.Must(t, c.expireSubject(ada))
			if h.active(one.AccessToken) || h.active(two.AccessToken) || !h.active(other.AccessToken) {
				t.Error("expiring a subject's access tokens")
			}
			one = h.refresh(one.RefreshToken).tokens(t).tokenDocument
			testkit.Must(t, c.revokeSubject(ada))
			if h.active(one.AccessToken) || h.refresh(one.RefreshToken).status != 400 || h.refresh(two.RefreshToken).status != 400 || !h.active(other.AccessToken) {
				t.Error("revoking a subject's tokens")
			}

			c.advance(48 * time.Hour)
			if h.active(other.AccessToken) {
				t.Error("active after 48 hours")
			}
			c.advance(-48 * time.Hour)
			if !h.active(other.AccessToken) {
				t.Error("inactive after the clock went back")
			}

			testkit.Must(t, c.mode(RefreshRotate))
			if renewed := h.refresh(other.RefreshToken).tokens(t); renewed.RefreshToken == other.RefreshToken {
				t.Error("not rotated")
			}
			testkit.Must(t, c.fail(2, 503))
			for _, want := range []int{503, 503, 400} {
				if a := h.refresh("x"); a.status != want {
					t.Errorf("status %d, want %d", a.status, want)
				}
			}
			if c.fail(1, 200) == nil || c.fail(-1, 503) == nil || c.mode("x") == nil {
				t.Error("nonsense is accepted")
			}
			_, last := h.login("ada@example.edu")
			testkit.Must(t, c.fail(1, 503))
			c.advance(time.Hour)
			testkit.Must(t, c.reset())
			if n := len(h.Requests()); n != 0 {
				t.Errorf("%d requests in the log after reset", n)
			}
			if h.active(last.AccessToken) {
				t.Error("active after reset")
			}
			if d := h.dump(); d.Advanced != "0s" || len(d.Failures) != 0 || d.Refresh != RefreshSame || len(d.Tokens) != 0 {
				t.Errorf("after reset: %+v", d)
			}
			h.login("ada@example.edu")
		})
	}
}

func TestFailNext(t *testing.T) {
	h := start(t, nil)
	_, ours := h.login("ada@example.edu")
	fail := func(body string) { t.Helper(); h.mustControl("fail", body) }

	fail(`{"path":"/v2/oauth2/token","status":429,"retry_after":"7s"}`)
	a := h.refresh(ours.RefreshToken)
	want{429, "too_many_requests", "TOO_MANY_REQUESTS", ""}.check(t, a)
	if a.header.Get("Retry-After") != "7" {
		t.Errorf("Retry-After %q, want 7", a.header.Get("Retry-After"))
	}

	fail(`{"status":502,"body":"<html>Bad gateway</html>"}`)
	if a := h.get("/jwk.json"); a.status != 502 || a.body != "<html>Bad gateway</html>" || !strings.HasPrefix(a.header.Get("Content-Type"), "text/html") {
		t.Errorf("a proxy's answer: %d %q", a.status, a.body)
	}

	fail(`{"count":2,"drop":true}`)
	for range 2 {
		if a, err := h.try("POST", tokenPath, form("grant_type", "refresh_token", "client_id", NativeClientID, "refresh_token", ours.RefreshToken), nil); err == nil {
			t.Errorf("not dropped: %d %s", a.status, a.body)
		}
	}
	if h.refresh(ours.RefreshToken).status != http.StatusOK {
		t.Error("dropped requests were looked at")
	}

	h.mustControl("refresh-mode", `{"mode":"rotate"}`)
	fail(`{"lose_answer":true}`)
	if a, err := h.try("POST", tokenPath, form("grant_type", "refresh_token", "client_id", NativeClientID, "refresh_token", ours.RefreshToken), nil); err == nil {
		t.Errorf("answered: %d %s", a.status, a.body)
	}
	want{400, "invalid_grant", "", ""}.check(t, h.refresh(ours.RefreshToken)) // the request had been handled

	fail(`{"delay":"1ms"}`)
	if h.get("/jwk.json").status != http.StatusOK {
		t.Error("a late answer is not the right one")
	}

	// Failures of different paths are independent.
	fail(`{"path":"/jwk.json","status":500}`)
	fail(`{"path":"/v2/oauth2/userinfo","status":501}`)
	for path, want := range map[string]int{"/v2/oauth2/userinfo": 501, "/jwk.json": 500, "/.well-known/openid-configuration": 200} {
		if a := h.get(path); a.status != want {
			t.Errorf("%s: status %d, want %d", path, a.status, want)
		}
	}
	for _, f := range []Failure{
		{}, {Status: 200}, {Status: 600}, {Status: 503, Drop: true}, {Drop: true, LoseAnswer: true}, {Delay: -1, Drop: true}, {Delay: time.Hour},
		{Drop: true, RetryAfter: 1}, {Drop: true, Body: "x"}, {Status: 503, Body: strings.Repeat("x", maxBodyBytes+1)}, {Drop: true, Path: strings.Repeat("x", 300)},
		{Status: 503, RetryAfter: -1},
	} {
		if err := h.FailNext(1, f); err == nil {
			t.Errorf("FailNext(%+v) = nil", f)
		}
	}
	if err := h.FailNext(0, Failure{Drop: true}); err == nil {
		t.Error("FailNext(0) = nil")
	}
	var err error
	for range maxFailures + 1 {
		err = h.FailNext(1, Failure{Status: 503})
	}
	if err == nil {
		t.Error("failures pile up without end")
	}
	if n := len(h.dump().Failures); n != maxFailures {
		t.Errorf("%d failures in the dump", n)
	}
}

// TestDelayEnds checks that a delayed request does not outlive its client or the server.
func TestDelayEnds(t *testing.T) {
	h := start(t, nil)
	testkit.Must(t, h.FailNext(2, Failure{Path: "/jwk.json", Delay: 10 * time.Minute, Status: 503}))
	done := make(chan int, 1)
	go func() {
		a, err := h.try("GET", "/jwk.json", "", nil)
		if err != nil {
			t.Error(err)
		}
		done <- a.status
	}()
	for len(h.dump().Failures) == 0 || h.dump().Failures[0].Count != 1 {
		runtime.Gosched()
	}
	testkit.Must(t, h.Server.Close())
	if status := <-done; status != 503 {
		t.Errorf("status %d, want 503", status)
	}
	want{503, "service_unavailable", "SERVICE_UNAVAILABLE", ""}.check(t, h.post(tokenPath, h.basic(ServiceClientID), "grant_type", "client_credentials", "scope", Scope))
}

func TestAddUser(t *testing.T) {
	h := start(t, nil)
	h.mustControl("user", `{"username":"mary@example.edu","name":"Mary","linked":[{"username":"mary@example.org"}]}`)
	auth, ours := h.login("mary@example.org")
	if info := h.introspect(ours.AccessToken, "include", "identity_set"); info["sub"] != Subject("mary@example.edu") || len(info["identity_set"].([]any)) != 2 {
		t.Errorf("introspect %v", info)
	}
	h.mustControl("user", `{"username":"mary@example.edu","name":"Mary S."}`) // replaces the user
	if a := h.get(authorizeQuery("dev_user", "mary@example.org")); a.status != http.StatusBadRequest {
		t.Errorf("the identity that was unlinked can log in: %d", a.status)
	}
	if name := h.do("GET", "/v2/oauth2/userinfo", "", bearer(auth.AccessToken)).json(t)["name"]; name != "Mary S." {
		t.Errorf("name %v", name)
	}
	for name, u := range map[string]User{
		"no domain":        {Identity: Identity{Username: "x"}},
		"no name":          {Identity: Identity{Username: "@x"}},
		"spaces":           {Identity: Identity{Username: "a b@x"}},
		"comma":            {Identity: Identity{Username: "a,b@x"}},
		"long":             {Identity: Identity{Username: strings.Repeat("x", 300) + "@x"}},
		"long name":        {Identity: Identity{Username: "a@x", Name: strings.Repeat("x", 300)}},
		"bad ID":           {Identity: Identity{Username: "a@x", ID: "1"}},
		"somebody's name":  {Identity: Identity{Username: "Ada@Example.edu", ID: NativeClientID[:35] + "9"}},
		"somebody's ID":    {Identity: Identity{Username: "a@x", ID: Subject("grace@example.com@idp.example")}},
		"somebody's link":  {Identity: Identity{Username: "a@x"}, Linked: []Identity{{Username: "ada@example.edu"}}},
		"a client's ID":    {Identity: Identity{Username: "a@x", ID: ServiceClientID}},
		"linked to itself": {Identity: Identity{Username: "a@x"}, Linked: []Identity{{Username: "A@x"}}},
		"too many linked":  {Identity: Identity{Username: "a@x"}, Linked: make([]Identity, maxLinked+1)},
		"a bad linked one": {Identity: Identity{Username: "a@x"}, Linked: []Identity{{Username: "x"}}},
	} {
		if subject, err := h.AddUser(u); err == nil || subject != "" {
			t.Errorf("%s: AddUser = %q, nil", name, subject)
		}
	}
	if subject, err := h.AddUser(User{Identity: Identity{Username: "a@x"}}); err != nil || subject != Subject("a@x") {
		t.Errorf("AddUser = %q, %v", subject, err)
	}
}

func TestMaxUsers(t *testing.T) {
	s, err := Open(Config{Issuer: "http://127.0.0.1:9"})
	testkit.Must(t, err)
	defer s.Close()
	for i := 0; err == nil; i++ {
		if _, err = s.AddUser(User{Identity: Identity{Username: fmt.Sprintf("u%d@example.edu", i)}}); i > maxUsers {
			t.Fatalf("%d users are accepted", i)
		}
	}
	if n := len(s.state.users); n != maxUsers {
		t.Errorf("%d users, want %d: %v", n, maxUsers, err)
	}
}

// TestRequestLog checks what is logged, and that secrets are not.
func TestRequestLog(t *testing.T) {
	h := start(t, nil)
	canaries := []string{testVerifier, "s-t-a-t-e", h.secret(ResourceServerID), "canary"}
	code := h.code("ada@example.edu", "session_required_single_domain", "example.edu", "prompt", "login")
	tokens := h.exchange(code).tokens(t)
	canaries = append(canaries, code, tokens.AccessToken, tokens.RefreshToken, tokens.IDToken, tokens.OtherTokens[0].AccessToken)
	h.introspect(tokens.OtherTokens[0].AccessToken)
	h.get("/v2/oauth2/token/dev-at-canary")
	h.get("/v2/api/identities/canary")
	h.get("/v2/web/auth-code?code=dev-code-canary")
	h.post(tokenPath, nil, "grant_type", "canary", "client_id", "canary")
	testkit.Must(t, h.FailNext(1, Failure{Status: 503}))
	h.get("/jwk.json")
	h.mustControl("user", `{"username":"canary-free@example.edu"}`)

	log := h.Requests()
	if len(log) != 8 {
		t.Fatalf("%d requests: %+v", len(log), log)
	}
	authorize := log[0]
	if authorize.Path != "/v2/oauth2/authorize" || authorize.Status != 302 || authorize.ClientID != NativeClientID || authorize.Parameters["prompt"] != "login" ||
		authorize.Parameters["session_required_single_domain"] != "example.edu" || authorize.Parameters["access_type"] != "offline" || authorize.Time.IsZero() {
		t.Errorf("authorize: %+v", authorize)
	}
	if r := log[1]; r.Method != "POST" || r.Path != tokenPath || r.GrantType != "authorization_code" || r.Status != 200 || r.ClientID != NativeClientID {
		t.Errorf("token: %+v", r)
	}
	if r := log[2]; r.ClientID != ResourceServerID {
		t.Errorf("introspect: %+v", r)
	}
	if r := log[3]; r.Path != "(unknown)" || r.Status != 404 {
		t.Errorf("unknown path: %+v", r)
	}
	if r := log[6]; r.GrantType != "" || r.ClientID != "" || r.Status != 401 && r.Status != 400 {
		t.Errorf("unknown grant: %+v", r)
	}
	if r := log[7]; !r.Injected || r.Status != 503 {
		t.Errorf("injected: %+v", r)
	}
	shown := fmt.Sprintf("%+v", log) + h.get("/_dev/requests").body + strings.ReplaceAll(h.get("/_dev/state").body, "canary-free", "") + fmt.Sprintf("%+v", h.dump())
	for _, canary := range canaries {
		if strings.Contains(shown, canary) {
			t.Errorf("the log or the dump shows %q", canary)
		}
	}
	for range maxRequests + 5 {
		h.record(Request{Path: "x"})
	}
	h.record(Request{Path: "last"})
	if log := h.Requests(); len(log) != maxRequests || log[0].Path != "x" || log[maxRequests-1].Path != "last" {
		t.Errorf("%d requests, from %q to %q", len(log), log[0].Path, log[len(log)-1].Path)
	}
}

func TestDump(t *testing.T) {
	h := start(t, nil)
	_, ours := h.login("ada@example.edu")
	testkit.Must(t, h.Expire(secretOf(ours.AccessToken)))
	h.code("ada@example.edu")
	h.AdvanceClock(time.Minute)
	state := h.get("/_dev/state").json(t)
	kinds := []string{}
	for _, token := range state["tokens"].([]any) {
		fields := token.(map[string]any)
		kinds = append(kinds, fields["kind"].(string))
		if fields["subject"] != Subject("ada@example.edu") || fields["client"] != NativeClientID || len(fields["hash"].(string)) != 12 {
			t.Errorf("token %v", fields)
		}
	}
	slices.Sort(kinds)
	if !slices.Equal(kinds, []string{"access", "refresh", "refresh"}) {
		t.Errorf("tokens %v, want those alive", kinds)
	}
	if len(state["users"].([]any)) != 3 || len(state["clients"].([]any)) != 3 || state["open_codes"] != 1.0 || state["advanced"] != "1m0s" {
		t.Errorf("state %v", state)
	}
	if help := h.get("/_dev/"); help.status != 200 || !strings.Contains(help.body, "This is not Globus") {
		t.Errorf("help: %d %s", help.status, help.body)
	}
	for _, route := range h.controls() {
		if path := strings.TrimSuffix(route.path, "{$}"); path != controlPrefix && !strings.Contains(controlText, path+" ") {
			t.Errorf("the help does not list %s", path)
		}
	}
}
