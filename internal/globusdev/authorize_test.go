package globusdev

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// location parses the target of a redirect.
func (a answer) location(t *testing.T) *url.URL {
	t.Helper()
	u, err := url.Parse(a.header.Get("Location"))
	testkit.Must(t, err)
	return u
}

func TestAuthorizeErrorPage(t *testing.T) {
	h := start(t, nil)
	tests := []struct {
		name   string
		fields []string
		raw    string // appended to the query
		reason string
	}{
		{name: "no client", fields: []string{"client_id", ""}, reason: "Missing client_id parameter."},
		{name: "unknown client", fields: []string{"client_id", "d1a590a0-0000-4000-8000-0000000000ff"}, reason: "Invalid client_id parameter value."},
		{name: "client that is no UUID", fields: []string{"client_id", "<script>"}, reason: "Invalid client_id parameter value."},
		{name: "no redirect", fields: []string{"redirect_uri", ""}, reason: "Missing redirect URI."},
		{name: "relative redirect", fields: []string{"redirect_uri", "/here"}, reason: "Invalid redirect URI."},
		{name: "redirect with fragment", fields: []string{"redirect_uri", "http://127.0.0.1:1/#x"}, reason: "Invalid redirect URI."},
		{name: "redirect with user", fields: []string{"redirect_uri", "http://user@127.0.0.1:1/"}, reason: "Invalid redirect URI."},
		{name: "redirect with backslash", fields: []string{"redirect_uri", `http://127.0.0.1:1\@evil.example/`}, reason: "Invalid redirect URI."},
		{name: "redirect that is too long", fields: []string{"redirect_uri", "http://127.0.0.1:1/" + strings.Repeat("x", 3000)}, reason: "Invalid redirect URI."},
		{name: "redirect elsewhere", fields: []string{"redirect_uri", "https://evil.example/"}, reason: "Mismatching redirect URI."},
		{name: "redirect to a lookalike", fields: []string{"redirect_uri", "http://127.0.0.1.evil.example/"}, reason: "Mismatching redirect URI."},
		{name: "redirect to IPv6", fields: []string{"redirect_uri", "http://[::1]:4444/"}, reason: "Mismatching redirect URI."},
		{name: "loopback with TLS", fields: []string{"redirect_uri", "https://127.0.0.1:4444/"}, reason: "Mismatching redirect URI."},
		{name: "script", fields: []string{"redirect_uri", "javascript:alert(1)"}, reason: "Mismatching redirect URI."},
		{name: "any port is for public clients", fields: []string{"client_id", ServiceClientID, "redirect_uri", "http://localhost:4444"}, reason: "Mismatching redirect URI."},
		{name: "twice the same parameter", raw: "&scope=openid", reason: "more than once"},
		{name: "bad encoding", raw: "&x=%zz", reason: "not properly encoded"},
		{name: "control characters", fields: []string{"state", "a\x00b"}, reason: "cannot have"},
		{name: "invalid UTF-8", raw: "&x=%ff", reason: "cannot have"},
		{name: "nobody by that name", fields: []string{"dev_user", "nobody@example.edu"}, reason: "There is no development identity nobody@example.edu."},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := h.get(authorizeQuery(tt.fields...) + tt.raw)
			if a.status != http.StatusBadRequest || a.header.Get("Location") != "" || !strings.HasPrefix(a.header.Get("Content-Type"), "text/html") {
				t.Errorf("status %d, location %q, type %q, want a page with status 400", a.status, a.header.Get("Location"), a.header.Get("Content-Type"))
			}
			for _, want := range []string{"Unable to Fulfill Your Request", "OAUTH_AUTH_REQUEST_FAILURE", tt.reason, "This is not Globus"} {
				if !strings.Contains(a.body, want) {
					t.Errorf("the page has no %q", want)
				}
			}
			if strings.Contains(a.body, "<script>") {
				t.Error("the page repeats markup")
			}
		})
	}
}

func TestAuthorizeRedirect(t *testing.T) {
	h := start(t, nil)
	tests := []struct {
		name   string
		fields []string
		target string // the target without the query
		err    string // the expected error, or empty for a code
	}{
		{name: "loopback", target: testRedirect},
		{name: "loopback by name, with a path", fields: []string{"redirect_uri", "http://localhost:1/cb"}, target: "http://localhost:1/cb"},
		{name: "own page", fields: []string{"redirect_uri", h.Issuer() + "/v2/web/auth-code"}, target: h.Issuer() + "/v2/web/auth-code"},
		{name: "own page, of a confidential client", fields: []string{"client_id", ServiceClientID, "redirect_uri", h.Issuer() + "/v2/web/auth-code"}, target: h.Issuer() + "/v2/web/auth-code"},
		{name: "redirect with a query", fields: []string{"redirect_uri", "http://localhost:1/cb?a=1"}, target: "http://localhost:1/cb"},
		{name: "client in upper case", fields: []string{"client_id", strings.ToUpper(NativeClientID)}, target: testRedirect},
		{name: "denied", fields: []string{"dev_deny", "1"}, target: testRedirect, err: "access_denied"},
		{name: "nobody logged in", fields: []string{"prompt", "none", "dev_user", ""}, target: testRedirect, err: "login_required"},
		{name: "no response type", fields: []string{"response_type", ""}, target: testRedirect, err: "unsupported_response_type"},
		{name: "implicit", fields: []string{"response_type", "token"}, target: testRedirect, err: "unsupported_response_type"},
		{name: "no challenge", fields: []string{"code_challenge", "", "code_challenge_method", ""}, target: testRedirect, err: "invalid_request"},
		{name: "method without challenge", fields: []string{"code_challenge", ""}, target: testRedirect, err: "invalid_request"},
		{name: "challenge without method", fields: []string{"code_challenge_method", ""}, target: testRedirect, err: "invalid_request"},
		{name: "plain challenge", fields: []string{"code_challenge_method", "plain"}, target: testRedirect, err: "invalid_request"},
		{name: "short challenge", fields: []string{"code_challenge", "short"}, target: testRedirect, err: "invalid_request"},
		{name: "challenge of other characters", fields: []string{"code_challenge", strings.Repeat("+", 43)}, target: testRedirect, err: "invalid_request"},
		{name: "access type", fields: []string{"access_type", "sometimes"}, target: testRedirect, err: "invalid_request"},
		{name: "long nonce", fields: []string{"nonce", strings.Repeat("x", 5000)}, target: testRedirect, err: "invalid_request"},
		{name: "no scope", fields: []string{"scope", ""}, target: testRedirect, err: "invalid_scope"},
		{name: "offline_access alone", fields: []string{"scope", "offline_access"}, target: testRedirect, err: "invalid_scope"},
		{name: "unknown scope", fields: []string{"scope", "openid nothing"}, target: testRedirect, err: "invalid_scope"},
		{name: "unknown scope in brackets", fields: []string{"scope", Scope + "[nothing]"}, target: testRedirect, err: "invalid_scope"},
		{name: "tab between scopes", fields: []string{"scope", "openid\temail"}, target: testRedirect, err: "invalid_scope"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := h.get(authorizeQuery(append([]string{"dev_user", "ada@example.edu"}, tt.fields...)...))
			target := a.location(t)
			query := target.Query()
			target.RawQuery = ""
			if a.status != http.StatusFound || target.String() != tt.target || query.Get("error") != tt.err || query.Get("state") != "s-t-a-t-e" {
				t.Errorf("status %d, location %s ? %v, want 302 to %s with error %q and the state", a.status, target, query, tt.target, tt.err)
			}
			if (tt.err == "") != strings.HasPrefix(query.Get("code"), "dev-code-") || (tt.err != "") != (query.Get("error_description") != "") {
				t.Errorf("query %v, want a code or an error with a description", query)
			}
			if tt.name == "redirect with a query" && query.Get("a") != "1" {
				t.Errorf("query %v lost the redirect's own", query)
			}
			if a.header.Get("Cache-Control") != "no-store" || a.header.Get("Referrer-Policy") != "no-referrer" {
				t.Errorf("headers %v, want no-store and no-referrer", a.header)
			}
		})
	}
	t.Run("a state that is too long is not sent back", func(t *testing.T) {
		a := h.get(authorizeQuery("state", strings.Repeat("x", 5000)))
		if q := a.location(t).Query(); q.Get("error") != "invalid_request" || q.Has("state") {
			t.Errorf("query %v, want invalid_request without a state", q)
		}
	})
}

// TestPicker submits the page in the same way as a browser without scripts.
func TestPicker(t *testing.T) {
	h := start(t, nil)
	a := h.get(authorizeQuery("session_message", `<b>"hi"</b>`, "prefill_named_grant", "diaspora on laptop", "prompt", "login"))
	if a.status != http.StatusOK {
		t.Fatalf("status %d", a.status)
	}
	for _, want := range []string{
		"This is not Globus", "mary@localhost", "ada@example.edu", "grace@example.org", "grace@example.com@idp.example", "Claim topics",
		"Stay logged in", `&lt;b&gt;`, "diaspora on laptop", `method="post" action="/v2/oauth2/authorize"`, `name="state" value="s-t-a-t-e"`,
	} {
		if !strings.Contains(a.body, want) {
			t.Errorf("the page has no %q", want)
		}
	}
	if strings.Contains(a.body, "<script") || strings.Contains(a.body, "<b>") || strings.Contains(a.body, "style=") {
		t.Error("the page has scripts, foreign markup or inline styles")
	}
	if strings.Index(a.body, "mary@localhost") > strings.Index(a.body, "ada@example.edu") {
		t.Error("the person at this machine is not first")
	}
	for name, want := range map[string]string{
		"Content-Security-Policy": "default-src 'none'; style-src 'self'; base-uri 'none'; frame-ancestors 'none'; form-action 'self' http://127.0.0.1:45678",
		"X-Frame-Options":         "DENY", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Referrer-Policy": "same-origin",
		"Cross-Origin-Opener-Policy": "same-origin",
	} {
		if got := a.header.Get(name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	if style := h.get("/style.css"); style.status != http.StatusOK || !strings.HasPrefix(style.header.Get("Content-Type"), "text/css") {
		t.Errorf("style sheet: status %d, type %q", style.status, style.header.Get("Content-Type"))
	}
	query := strings.TrimPrefix(authorizeQuery(), "/v2/oauth2/authorize?")
	picked := h.do("POST", "/v2/oauth2/authorize", query+"&dev_user="+Subject("grace@example.org"), func(r *http.Request) {
		r.Header.Set("Origin", h.http.URL)
		r.Header.Set("Sec-Fetch-Site", "same-origin")
	})
	if picked.status != http.StatusSeeOther {
		t.Fatalf("picked: status %d, body %s", picked.status, picked.body)
	}
	tokens := h.exchange(picked.location(t).Query().Get("code")).tokens(t)
	if info := h.introspect(tokens.OtherTokens[0].AccessToken); info["username"] != "grace@example.org" {
		t.Errorf("logged in as %v", info["username"])
	}
	denied := h.do("POST", "/v2/oauth2/authorize", query+"&dev_deny=1", nil)
	if q := denied.location(t).Query(); denied.status != http.StatusSeeOther || q.Get("error") != "access_denied" {
		t.Errorf("denied: status %d, %v", denied.status, q)
	}
	if a := h.do("POST", "/v2/oauth2/authorize", query, func(r *http.Request) { r.Header.Set("Content-Type", "text/plain") }); a.status != http.StatusBadRequest || !strings.Contains(a.body, "OAUTH_AUTH_REQUEST_FAILURE") {
		t.Errorf("post that is no form: status %d, %s", a.status, a.body)
	}
}

func TestPickerShowsSoMany(t *testing.T) {
	h := start(t, nil)
	for i := range 300 {
		if _, err := h.AddUser(User{Identity: Identity{Username: strings.Repeat("x", i%200+1) + string(rune('a'+i/200)) + "@example.edu"}}); err != nil {
			t.Fatal(err)
		}
	}
	a := h.get(authorizeQuery())
	if n := strings.Count(a.body, `name="dev_user"`); n != maxShown || !strings.Contains(a.body, "And 103 more") {
		t.Errorf("%d people are shown, want %d, and the rest counted", n, maxShown)
	}
}

func TestFormTarget(t *testing.T) {
	for redirect, want := range map[string]string{
		"http://127.0.0.1:4444":               "http://127.0.0.1:4444",
		"https://app.example.org/callback?a=": "https://app.example.org",
		"org.example.app:/callback":           "org.example.app:",
		"http://[::1]:4444/":                  "http:", // policies have no IPv6 addresses
		"https://a;b/":                        "https:",
	} {
		if got := formTarget(redirect); got != want {
			t.Errorf("formTarget(%q) = %q, want %q", redirect, got, want)
		}
	}
}

func TestOtherPages(t *testing.T) {
	h := start(t, nil)
	tests := []struct {
		path   string
		status int
		want   []string
	}{
		{"/", 200, []string{"GLOBUS_SDK_SERVICE_URL_AUTH=" + h.Issuer() + "/"}},
		{"/v2/web/auth-code?code=dev-code-ABC&state=x", 200, []string{"<code>dev-code-ABC</code>"}},
		{"/v2/web/auth-code?error=access_denied&error_description=The+%3Cuser%3E", 200, []string{"No authorization code", "The &lt;user&gt;", "access_denied"}},
		{"/v2/web/auth-code", 200, []string{"No authorization code"}},
		{"/v2/web/auth-code?code=a&code=b", 400, []string{"more than once"}},
	}
	for _, tt := range tests {
		a := h.get(tt.path)
		if a.status != tt.status || !strings.Contains(a.header.Get("Content-Security-Policy"), "default-src 'none'") {
			t.Errorf("GET %s: status %d, policy %q", tt.path, a.status, a.header.Get("Content-Security-Policy"))
		}
		for _, want := range append(tt.want, "This is not Globus") {
			if !strings.Contains(a.body, want) {
				t.Errorf("GET %s has no %q", tt.path, want)
			}
		}
	}
}
