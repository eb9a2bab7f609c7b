package globusdev

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

const tokenPath = "/v2/oauth2/token"

// want is an expected error: its status and format.
type want struct {
	status int
	error  string // error code of the OAuth format
	code   string // code of Globus's own format; empty: not in that format
	detail string
}

var (
	wantBasicFailed = want{401, "unauthorized", "UNAUTHORIZED", "Basic auth failed"}
	wantNoAuth      = want{401, "unauthorized", "UNAUTHORIZED", "Call must be authenticated"}
	wantForbidden   = want{403, "forbidden", "FORBIDDEN", ""}
	wantInvalid     = want{400, "invalid_request", "", ""}
)

// check compares a response with an expected error.
func (w want) check(t *testing.T, a answer) {
	t.Helper()
	var body globusBody
	if err := json.Unmarshal([]byte(a.body), &body); err != nil {
		t.Fatalf("status %d, body %q: %v", a.status, a.body, err)
	}
	if a.status != w.status || body.Error != w.error {
		t.Errorf("status %d, error %q, want %d, %q; body %s", a.status, body.Error, w.status, w.error, a.body)
	}
	if a.header.Get("Content-Type") != "application/json" || a.header.Get("Cache-Control") != "no-store" || a.header.Get("Pragma") != "no-cache" {
		t.Errorf("headers %v, want JSON that is not stored", a.header)
	}
	if w.code == "" {
		if len(body.Errors) != 0 {
			t.Errorf("body %s, want the OAuth shape", a.body)
		}
		return
	}
	if len(body.Errors) != 1 {
		t.Fatalf("body %s, want one of errors", a.body)
	}
	e := body.Errors[0]
	if e.Code != w.code || e.Status != strings.TrimSpace(a.status2()) || len(e.ID) != 36 || e.Title == "" || e.Detail == "" || (w.detail != "" && e.Detail != w.detail) {
		t.Errorf("error %+v, want code %s, detail %q, an ID and a title", e, w.code, w.detail)
	}
}

func (a answer) status2() string { b, _ := json.Marshal(a.status); return string(b) }

func TestTokenErrors(t *testing.T) {
	h := start(t, nil)
	native := []string{"client_id", NativeClientID}
	code := func(fields ...string) []string {
		return append([]string{"grant_type", "authorization_code"}, fields...)
	}
	refresh := func(fields ...string) []string { return append([]string{"grant_type", "refresh_token"}, fields...) }
	auth, ours := h.login("ada@example.edu")
	tests := []struct {
		name   string
		change func(*http.Request)
		fields []string
		want   want
	}{
		{"no grant type", nil, native, wantInvalid},
		{"unknown grant type", nil, append([]string{"grant_type", "password"}, native...), want{400, "unsupported_grant_type", "", ""}},
		{"no client", nil, code("code", "x", "redirect_uri", "y"), wantNoAuth},
		{"unknown client", nil, code("client_id", "d1a590a0-0000-4000-8000-0000000000ff", "code", "x", "redirect_uri", "y"), wantNoAuth},
		{"unknown client with a secret", nil, code("client_id", "d1a590a0-0000-4000-8000-0000000000ff", "client_secret", "x"), wantBasicFailed},
		{"public client with a secret", nil, code(append(native, "client_secret", "x")...), wantBasicFailed},
		{"public client with Basic", basicAuth(NativeClientID, ""), code("code", "x", "redirect_uri", "y"), wantBasicFailed},
		{"confidential client by name only", nil, code("client_id", ServiceClientID, "code", "x", "redirect_uri", "y"), wantNoAuth},
		{"wrong secret", basicAuth(ServiceClientID, "wrong"), code("code", "x", "redirect_uri", "y"), wantBasicFailed},
		{"no secret", basicAuth(ServiceClientID, ""), code("code", "x", "redirect_uri", "y"), wantBasicFailed},
		{"secret that was percent-encoded", basicAuth(ServiceClientID, url.QueryEscape(h.secret(ServiceClientID))), code("code", "x", "redirect_uri", "y"), wantBasicFailed},
		{"wrong secret in the body", nil, code("client_id", ServiceClientID, "client_secret", "wrong"), wantBasicFailed},
		{"another scheme", header("Authorization", "Bearer "+auth.AccessToken), code(native...), wantBasicFailed},
		{"Basic that is no base64", header("Authorization", "Basic !!!"), code(native...), wantBasicFailed},
		{"Basic without a colon", header("Authorization", "Basic eHg="), code(native...), wantBasicFailed},
		{"two Authorization headers", func(r *http.Request) { r.Header["Authorization"] = []string{"Basic eDp5", "Basic eDp5"} }, code(native...), wantBasicFailed},
		{"authenticated twice", h.basic(ServiceClientID), code("client_secret", h.secret(ServiceClientID)), wantInvalid},
		{"another client in the body", h.basic(ServiceClientID), code("client_id", NativeClientID), wantInvalid},

		{"no code", nil, code(append(native, "redirect_uri", testRedirect)...), wantInvalid},
		{"no redirect", nil, code(append(native, "code", "x")...), wantInvalid},
		{"unknown code", nil, code(append(native, "code", "dev-code-x", "redirect_uri", testRedirect)...), want{401, "invalid_grant", "", ""}},

		{"no refresh token", nil, refresh(native...), wantInvalid},
		{"unknown refresh token", nil, refresh(append(native, "refresh_token", "dev-rt-x")...), want{400, "invalid_grant", "", ""}},
		{"access token in place of a refresh token", nil, refresh(append(native, "refresh_token", ours.AccessToken)...), want{400, "invalid_grant", "", ""}},
		{"refresh token of another client", h.basic(ServiceClientID), refresh("refresh_token", ours.RefreshToken), want{400, "invalid_grant", "", ""}},
		{"refresh for more scopes", nil, refresh(append(native, "refresh_token", ours.RefreshToken, "scope", "openid")...), want{400, "invalid_scope", "", ""}},

		{"client credentials of a public client", nil, append([]string{"grant_type", "client_credentials", "scope", Scope}, native...), wantNoAuth},
		{"client credentials without a scope", h.basic(ServiceClientID), []string{"grant_type", "client_credentials"}, want{400, "invalid_scope", "", ""}},
		{"client credentials with an unknown scope", h.basic(ServiceClientID), []string{"grant_type", "client_credentials", "scope", "nothing"}, want{400, "invalid_scope", "", ""}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { tt.want.check(t, h.post(tokenPath, tt.change, tt.fields...)) })
	}
	if !h.active(ours.AccessToken) {
		t.Error("the refusals cost a good token")
	}
}

func (h *harness) secret(clientID string) string {
	h.t.Helper()
	secret, err := h.ClientSecret(clientID)
	testkit.Must(h.t, err)
	return secret.Reveal()
}

func basicAuth(id, secret string) func(*http.Request) {
	return func(r *http.Request) { r.SetBasicAuth(id, secret) }
}

func header(name, value string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set(name, value) }
}

// TestInvalidGrantBody pins the body that clients compare with.
func TestInvalidGrantBody(t *testing.T) {
	h := start(t, nil)
	a := h.post(tokenPath, nil, "grant_type", "refresh_token", "client_id", NativeClientID, "refresh_token", "x")
	if a.body != "{\"error\":\"invalid_grant\"}\n" {
		t.Errorf("body %q", a.body)
	}
}

func TestCodeIsBound(t *testing.T) {
	h := start(t, nil)
	tests := []struct {
		name   string
		fields []string
	}{
		{"wrong verifier", []string{"code_verifier", testVerifier + "x"}},
		{"no verifier", []string{"code_verifier", ""}},
		{"verifier of other characters", []string{"code_verifier", testVerifier + "/"}},
		{"another port", []string{"redirect_uri", "http://127.0.0.1:45679"}},
		{"trailing slash", []string{"redirect_uri", testRedirect + "/"}},
		{"with a newline", []string{"code", "\n"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := h.exchange(h.code("ada@example.edu"), tt.fields...)
			if a.status != http.StatusUnauthorized || a.json(t)["error"] != "invalid_grant" {
				t.Errorf("status %d, body %s, want 401 invalid_grant", a.status, a.body)
			}
		})
	}
	t.Run("another client", func(t *testing.T) {
		a := h.do("POST", tokenPath, form("grant_type", "authorization_code", "code", h.code("ada@example.edu"), "redirect_uri", testRedirect, "code_verifier", testVerifier), h.basic(ServiceClientID))
		want{401, "invalid_grant", "", ""}.check(t, a)
	})
	t.Run("used", func(t *testing.T) {
		code := h.code("ada@example.edu")
		first := h.exchange(code).tokens(t)
		want{401, "invalid_grant", "", ""}.check(t, h.exchange(code))
		if !h.active(first.OtherTokens[0].AccessToken) {
			t.Error("a replay cost the tokens of the first use")
		}
	})
	t.Run("expired", func(t *testing.T) {
		code := h.code("ada@example.edu")
		h.AdvanceClock(10 * time.Minute)
		want{401, "invalid_grant", "", ""}.check(t, h.exchange(code))
	})
}

func TestVerifies(t *testing.T) {
	// The example of RFC 7636, appendix B.
	const verifier, sum = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk", "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
	tests := []struct {
		verifier, challenge string
		want                bool
	}{
		{verifier, sum, true}, {"", "", false}, {verifier, "", false}, {"", sum, false}, {verifier + "a", sum, false},
		{strings.Repeat("a", 42), challenge(strings.Repeat("a", 42)), false}, {strings.Repeat("a", 128), challenge(strings.Repeat("a", 128)), true},
		{strings.Repeat("a", 129), challenge(strings.Repeat("a", 129)), false}, {strings.Repeat("a", 42) + "+", challenge(strings.Repeat("a", 42) + "+"), false},
	}
	for _, tt := range tests {
		if got := verifies(tt.verifier, tt.challenge); got != tt.want {
			t.Errorf("verifies(%q, %q) = %v", tt.verifier, tt.challenge, got)
		}
	}
}

func TestTokensPerResourceServer(t *testing.T) {
	h := start(t, func(c *Config) {
		c.Scopes = []ScopeDef{
			{Scope: "urn:globus:auth:scope:old_service:all", ResourceServer: "old_service"},
			{Scope: scopeURL + ResourceServerID + "/read", ResourceServer: ResourceServerID},
		}
	})
	const old, read = "urn:globus:auth:scope:old_service:all", scopeURL + ResourceServerID + "/read"
	tests := []struct {
		name    string
		fields  []string
		servers []string // in order
		scopes  []string
		refresh []bool
		idToken bool
	}{
		{"ours alone", []string{"scope", Scope}, []string{ResourceServerID}, []string{Scope}, []bool{true}, false},
		{"two scopes of one", []string{"scope", read + " " + Scope}, []string{ResourceServerID}, []string{read + " " + Scope}, []bool{true}, false},
		{"openid comes on top", []string{"scope", Scope + " email openid"}, []string{authResourceServer, ResourceServerID}, []string{"email openid", Scope}, []bool{true, true}, true},
		{"without openid as asked", []string{"scope", Scope + " email"}, []string{ResourceServerID, authResourceServer}, []string{Scope, "email"}, []bool{true, true}, false},
		{"online", []string{"scope", "openid " + Scope, "access_type", "online"}, []string{authResourceServer, ResourceServerID}, []string{"openid", Scope}, []bool{false, false}, true},
		{"offline_access", []string{"scope", "openid offline_access " + Scope, "access_type", ""}, []string{authResourceServer, ResourceServerID}, []string{"openid", Scope}, []bool{true, true}, true},
		{"a server with a name", []string{"scope", Scope + " " + old}, []string{ResourceServerID, "old_service"}, []string{Scope, old}, []bool{true, true}, false},
		{"twice and with spaces", []string{"scope", " " + Scope + "  openid " + Scope + " "}, []string{authResourceServer, ResourceServerID}, []string{"openid", Scope}, []bool{true, true}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := h.exchange(h.code("ada@example.edu", tt.fields...))
			if !strings.Contains(a.body, `"other_tokens":[`) {
				t.Errorf("no other_tokens in %s", a.body)
			}
			response := a.tokens(t)
			docs := append([]tokenDocument{response.tokenDocument}, response.OtherTokens...)
			if len(docs) != len(tt.servers) || (response.IDToken != "") != tt.idToken {
				t.Fatalf("tokens %+v", docs)
			}
			for i, doc := range docs {
				if doc.ResourceServer != tt.servers[i] || doc.Scope != tt.scopes[i] || (doc.RefreshToken != "") != tt.refresh[i] {
					t.Errorf("token %d = %+v, want %s, %q, refresh %v", i, doc, tt.servers[i], tt.scopes[i], tt.refresh[i])
				}
			}
		})
	}
}

func TestRefreshModes(t *testing.T) {
	h := start(t, nil)
	refresh := func(token string) answer {
		return h.post(tokenPath, nil, "grant_type", "refresh_token", "client_id", NativeClientID, "refresh_token", token)
	}
	for _, mode := range []RefreshMode{RefreshSame, RefreshRotate, RefreshAbsent} {
		t.Run(string(mode), func(t *testing.T) {
			testkit.Must(t, h.SetRefreshMode(mode))
			_, first := h.login("ada@example.edu")
			a := refresh(first.RefreshToken)
			second := a.tokens(t)
			if second.AccessToken == first.AccessToken || second.ResourceServer != ResourceServerID || second.Scope != Scope || second.ExpiresIn != 172800 || second.IDToken != "" {
				t.Errorf("refreshed = %+v", second)
			}
			if !strings.Contains(a.body, `"other_tokens":[]`) || strings.Contains(a.body, `"state"`) {
				t.Errorf("body %s, want empty other_tokens and no state", a.body)
			}
			if !h.active(first.AccessToken) || !h.active(second.AccessToken) {
				t.Error("a refresh cost an access token")
			}
			again := refresh(first.RefreshToken)
			switch mode {
			case RefreshSame:
				if second.RefreshToken != first.RefreshToken || again.status != http.StatusOK {
					t.Errorf("refresh token %q, again %d, want the same, and 200", second.RefreshToken, again.status)
				}
			case RefreshAbsent:
				if second.RefreshToken != "" || again.status != http.StatusOK {
					t.Errorf("refresh token %q, again %d, want none, and 200", second.RefreshToken, again.status)
				}
			case RefreshRotate:
				want{400, "invalid_grant", "", ""}.check(t, again)
				if second.RefreshToken == first.RefreshToken || refresh(second.RefreshToken).status != http.StatusOK {
					t.Errorf("refresh token %q, want another one that is good", second.RefreshToken)
				}
			}
		})
	}
	if err := h.SetRefreshMode("sometimes"); err == nil {
		t.Error("SetRefreshMode(sometimes) = nil")
	}
}

func TestRefreshNarrows(t *testing.T) {
	h := start(t, nil)
	auth, _ := h.login("ada@example.edu")
	got := h.post(tokenPath, nil, "grant_type", "refresh_token", "client_id", NativeClientID, "refresh_token", auth.RefreshToken, "scope", "email").tokens(t)
	if got.Scope != "email" {
		t.Errorf("scope %q, want email", got.Scope)
	}
	got = h.post(tokenPath, nil, "grant_type", "refresh_token", "client_id", NativeClientID, "refresh_token", auth.RefreshToken).tokens(t)
	if got.Scope != "openid profile email" {
		t.Errorf("scope %q, want all of it again", got.Scope)
	}
}

func TestLifetimes(t *testing.T) {
	h := start(t, func(c *Config) {
		c.AccessTokenLifetime = time.Hour
	})
	auth, ours := h.login("ada@example.edu")
	if auth.ExpiresIn != 3600 {
		t.Errorf("expires_in %d, want 3600", auth.ExpiresIn)
	}
	refresh := func() answer {
		return h.post(tokenPath, nil, "grant_type", "refresh_token", "client_id", NativeClientID, "refresh_token", ours.RefreshToken)
	}
	h.AdvanceClock(59 * time.Minute)
	if !h.active(ours.AccessToken) {
		t.Error("inactive after 59 minutes")
	}
	h.AdvanceClock(time.Minute)
	if h.active(ours.AccessToken) {
		t.Error("active after an hour")
	}
	if a := h.do("GET", "/v2/oauth2/userinfo", "", bearer(auth.AccessToken)); a.status != http.StatusUnauthorized {
		t.Errorf("userinfo with an expired token: status %d", a.status)
	}
	for range 3 { // each use extends its lifetime
		h.AdvanceClock(150 * 24 * time.Hour)
		refresh().tokens(t)
	}
	h.AdvanceClock(refreshTokenLifetime)
	want{400, "invalid_grant", "", ""}.check(t, refresh())
}

func TestClientCredentials(t *testing.T) {
	h := start(t, nil)
	ways := map[string]func(fields ...string) answer{
		"header": func(fields ...string) answer { return h.post(tokenPath, h.basic(ServiceClientID), fields...) },
		"header and name": func(fields ...string) answer {
			return h.post(tokenPath, h.basic(ServiceClientID), append(fields, "client_id", ServiceClientID)...)
		},
		"body": func(fields ...string) answer {
			return h.post(tokenPath, nil, append(fields, "client_id", ServiceClientID, "client_secret", h.secret(ServiceClientID))...)
		},
	}
	for name, send := range ways {
		t.Run(name, func(t *testing.T) {
			response := send("grant_type", "client_credentials", "scope", Scope+" openid profile email").tokens(t)
			if response.RefreshToken != "" || response.State != "" || len(response.OtherTokens) != 1 || response.OtherTokens[0].RefreshToken != "" {
				t.Errorf("response %+v, want two tokens without refresh tokens", response)
			}
			claims := h.idToken(response.IDToken, ServiceClientID)
			if claims["sub"] != ServiceClientID || claims["preferred_username"] != ServiceClientID+"@clients.auth.globus.org" || claims["identity_provider"] != clientsProviderID {
				t.Errorf("ID token %v", claims)
			}
			if email, ok := claims["email"]; !ok || email != nil {
				t.Errorf("email %v, want null", claims["email"])
			}
			info := h.introspect(response.OtherTokens[0].AccessToken, "include", "identity_set")
			if info["sub"] != ServiceClientID || info["client_id"] != ServiceClientID || info["email"] != nil || info["username"] != ServiceClientID+"@clients.auth.globus.org" {
				t.Errorf("introspect %v", info)
			}
			if set := info["identity_set"].([]any); len(set) != 1 || set[0] != ServiceClientID {
				t.Errorf("identity_set %v", set)
			}
		})
	}
}

// idToken verifies an ID token in the same way as clients.
func (h *harness) idToken(raw, audience string) map[string]any {
	h.t.Helper()
	provider, err := oidc.NewProvider(h.t.Context(), h.Issuer())
	testkit.Must(h.t, err)
	token, err := provider.Verifier(&oidc.Config{ClientID: audience, Now: h.now}).Verify(h.t.Context(), raw)
	testkit.Must(h.t, err)
	var claims map[string]any
	testkit.Must(h.t, token.Claims(&claims))
	return claims
}

func TestIDToken(t *testing.T) {
	h := start(t, nil)
	tokens := h.exchange(h.code("grace@example.com@idp.example", "nonce", "n-o-n-c-e")).tokens(t)
	head, err := base64.RawURLEncoding.DecodeString(strings.Split(tokens.IDToken, ".")[0])
	testkit.Must(t, err)
	var fields map[string]any
	if err := json.Unmarshal(head, &fields); err != nil || len(fields) != 2 || fields["alg"] != "RS512" || fields["typ"] != "JWT" {
		t.Errorf("header %s, want alg and typ only", head)
	}
	claims := h.idToken(tokens.IDToken, NativeClientID)
	for name, want := range map[string]any{
		"iss": h.Issuer(), "aud": any(nil), "sub": Subject("grace@example.org"), "preferred_username": "grace@example.org", "name": "Grace Hopper",
		"email": "grace@example.org", "organization": "Example Institute", "identity_provider_display_name": "example.org", "nonce": "n-o-n-c-e",
	} {
		if name == "aud" {
			want = NativeClientID // a string, not a list
		}
		if claims[name] != want {
			t.Errorf("%s = %v, want %v", name, claims[name], want)
		}
	}
	if claims["exp"].(float64)-claims["iat"].(float64) != 172800 {
		t.Errorf("lifetime of %v", claims)
	}
	for _, name := range []string{"nbf", "auth_time", "email_verified"} {
		if _, ok := claims[name]; ok {
			t.Errorf("there is a claim %s, which Globus does not make", name)
		}
	}
	set := claims["identity_set"].([]any)
	if len(set) != 2 {
		t.Fatalf("identity_set %v", set)
	}
	linked := set[1].(map[string]any)
	if linked["username"] != "grace@example.com@idp.example" || linked["name"] != nil || linked["last_authentication"] == nil {
		t.Errorf("linked identity %v, want it to be the one that logged in", linked)
	}
	if set[0].(map[string]any)["last_authentication"] != nil {
		t.Errorf("first identity %v, want no login", set[0])
	}

	provider, err := oidc.NewProvider(t.Context(), h.Issuer())
	testkit.Must(t, err)
	verified, err := provider.Verifier(&oidc.Config{ClientID: NativeClientID}).Verify(t.Context(), tokens.IDToken)
	testkit.Must(t, err)
	if err := verified.VerifyAccessToken(tokens.AccessToken); err != nil {
		t.Errorf("at_hash: %v", err)
	}

	minimal := h.idToken(h.exchange(h.code("ada@example.edu", "scope", "openid")).tokens(t).IDToken, NativeClientID)
	for _, name := range []string{"email", "name", "preferred_username", "identity_set", "nonce"} {
		if _, ok := minimal[name]; ok {
			t.Errorf("with openid alone there is a %s", name)
		}
	}
}

func TestDiscovery(t *testing.T) {
	h := start(t, nil)
	got := h.get("/.well-known/openid-configuration").json(t)
	for name, want := range map[string]string{
		"issuer": "", "authorization_endpoint": "/v2/oauth2/authorize", "token_endpoint": "/v2/oauth2/token", "userinfo_endpoint": "/v2/oauth2/userinfo",
		"revocation_endpoint": "/v2/oauth2/token/revoke", "jwks_uri": "/jwk.json",
	} {
		if got[name] != h.Issuer()+want {
			t.Errorf("%s = %v", name, got[name])
		}
	}
	if len(got) != 12 {
		t.Errorf("%d fields, want the 12 that Globus has: %v", len(got), got)
	}
	key := h.get("/jwk.json").json(t)["keys"].([]any)[0].(map[string]any)
	if len(key) != 5 || key["kty"] != "RSA" || key["alg"] != "RS512" || key["use"] != "sig" || key["e"] != "AQAB" || len(key["n"].(string)) != 342 {
		t.Errorf("key %v, want 2048 bits of RSA without an ID", key)
	}
}

func TestMaxTokens(t *testing.T) {
	h := start(t, func(c *Config) { c.MaxTokens = 10 })
	ask := func() answer {
		return h.post(tokenPath, h.basic(ServiceClientID), "grant_type", "client_credentials", "scope", Scope)
	}
	var last answer
	for range 20 {
		if last = ask(); last.status != http.StatusOK {
			break
		}
	}
	want{503, "service_unavailable", "SERVICE_UNAVAILABLE", ""}.check(t, last)
	if last.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	h.AdvanceClock(48 * time.Hour)
	ask().tokens(t)

	for range 10 {
		h.code("ada@example.edu")
	}
	if a := h.get(authorizeQuery("dev_user", "ada@example.edu")); a.status != http.StatusServiceUnavailable || !strings.Contains(a.body, "Too many authorization codes") {
		t.Errorf("the eleventh code: status %d", a.status)
	}
	h.AdvanceClock(time.Hour)
	h.code("ada@example.edu")
}

func TestIssueTokens(t *testing.T) {
	h := start(t, nil)
	grant, err := h.IssueTokens("mary@localhost", NativeClientID, []string{"openid", "profile", Scope}, true)
	testkit.Must(t, err)
	if grant.Identity.Subject != Subject("mary@localhost") || grant.Identity.Username != "mary@localhost" || !slices.Equal(grant.Identity.IdentitySet, []string{grant.Identity.Subject}) {
		t.Errorf("identity %+v", grant.Identity)
	}
	if claims := h.idToken(grant.IDToken.Reveal(), NativeClientID); claims["sub"] != grant.Identity.Subject {
		t.Errorf("ID token %v", claims)
	}
	i := slices.IndexFunc(grant.Tokens, func(t globus.Token) bool { return t.ResourceServer == ResourceServerID })
	if len(grant.Tokens) != 2 || i < 0 || !slices.Equal(grant.Tokens[i].Scope, []string{Scope}) || time.Until(grant.Tokens[i].Expiry) < 47*time.Hour {
		t.Fatalf("tokens %+v", grant.Tokens)
	}
	if !h.active(grant.Tokens[i].AccessToken.Reveal()) {
		t.Error("the token is not active")
	}
	h.post(tokenPath, nil, "grant_type", "refresh_token", "client_id", NativeClientID, "refresh_token", grant.Tokens[i].RefreshToken.Reveal()).tokens(t)

	for name, fail := range map[string]func() (*Grant, error){
		"no such person": func() (*Grant, error) { return h.IssueTokens("nobody", NativeClientID, []string{Scope}, false) },
		"no such client": func() (*Grant, error) { return h.IssueTokens("ada@example.edu", "x", []string{Scope}, false) },
		"no such scope":  func() (*Grant, error) { return h.IssueTokens("ada@example.edu", NativeClientID, []string{"x"}, false) },
		"no scope":       func() (*Grant, error) { return h.IssueTokens("ada@example.edu", NativeClientID, nil, false) },
	} {
		if grant, err := fail(); err == nil || grant != nil {
			t.Errorf("%s: %v, %v", name, grant, err)
		}
	}
}
