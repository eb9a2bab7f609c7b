package globusdev

import (
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

const (
	introspectPath = "/v2/oauth2/token/introspect"
	revokePath     = "/v2/oauth2/token/revoke"
	userInfoPath   = "/v2/oauth2/userinfo"
)

func TestIntrospect(t *testing.T) {
	h := start(t, nil)
	_, ours := h.login("grace@example.org")
	info := h.introspect(ours.AccessToken)
	now := float64(time.Now().Unix())
	for name, want := range map[string]any{
		"active": true, "token_type": "Bearer", "scope": Scope, "client_id": NativeClientID, "sub": Subject("grace@example.org"),
		"username": "grace@example.org", "name": "Grace Hopper", "email": "grace@example.org", "iss": h.Issuer(),
		"aud": []any{ResourceServerID, NativeClientID},
	} {
		if !reflect.DeepEqual(info[name], want) {
			t.Errorf("%s = %v, want %v", name, info[name], want)
		}
	}
	iat := info["iat"].(float64)
	if iat != info["nbf"] || iat > now || iat < now-60 || info["exp"] != iat+172800 {
		t.Errorf("iat %v, nbf %v, exp %v at %v", info["iat"], info["nbf"], info["exp"], now)
	}
	if len(info) != 13 {
		t.Errorf("%d fields without include: %v", len(info), info)
	}

	set := h.introspect(ours.AccessToken, "include", "whatever,identity_set")["identity_set"]
	if want := []any{Subject("grace@example.org"), Subject("grace@example.com@idp.example")}; !reflect.DeepEqual(set, want) {
		t.Errorf("identity_set = %v, want %v", set, want)
	}
}

func TestIntrospectInactive(t *testing.T) {
	h := start(t, nil)
	auth, ours := h.login("ada@example.edu")
	_, expired := h.login("ada@example.edu")
	_, revoked := h.login("ada@example.edu")
	testkit.Must(t, h.Expire(secretOf(expired.AccessToken)))
	testkit.Must(t, h.Revoke(secretOf(revoked.AccessToken)))
	for name, token := range map[string]string{
		"garbage": "garbage", "nearly": ours.AccessToken + "x", "another server's": auth.AccessToken, "refresh": ours.RefreshToken,
		"expired": expired.AccessToken, "revoked": revoked.AccessToken, "spaces": " ", "long": strings.Repeat("x", 60_000),
	} {
		a := h.post(introspectPath, h.basic(ResourceServerID), "token", token, "include", "identity_set")
		if a.status != http.StatusOK || a.body != "{\"active\":false}\n" {
			t.Errorf("%s: status %d, body %s", name, a.status, a.body)
		}
	}
	if !h.active(ours.AccessToken) {
		t.Error("the good one is inactive, too")
	}
}

func TestIntrospectAny(t *testing.T) {
	h := start(t, func(c *Config) { c.IntrospectAny = true })
	auth, ours := h.login("ada@example.edu")
	if !h.active(auth.AccessToken) {
		t.Error("a token for another server is inactive")
	}
	if h.active(ours.RefreshToken) {
		t.Error("a refresh token is active to a resource server")
	}
}

func TestIntrospectOwn(t *testing.T) {
	h := start(t, nil)
	token := h.post(tokenPath, h.basic(ServiceClientID), "grant_type", "client_credentials", "scope", "openid").tokens(t).AccessToken
	if a := h.post(introspectPath, h.basic(ServiceClientID), "token", token); a.json(t)["active"] != true {
		t.Errorf("a client's own token: %s", a.body)
	}
}

func TestTokenEndpointsErrors(t *testing.T) {
	h := start(t, nil)
	_, ours := h.login("ada@example.edu")
	tests := []struct {
		name   string
		path   string
		change func(*http.Request)
		fields []string
		want   want
	}{
		{"introspect unauthenticated", introspectPath, nil, nil, wantNoAuth},
		{"introspect as a public client", introspectPath, nil, []string{"client_id", NativeClientID}, wantNoAuth},
		{"introspect with a bearer token", introspectPath, bearer(ours.AccessToken), nil, wantBasicFailed},
		{"introspect with a wrong secret", introspectPath, basicAuth(ResourceServerID, "wrong"), nil, wantBasicFailed},
		{"introspect as an unknown client", introspectPath, basicAuth("x", "y"), nil, wantBasicFailed},
		{"introspect nothing", introspectPath, h.basic(ResourceServerID), []string{"token", ""}, wantInvalid},
		{"introspect twice", introspectPath, h.basic(ResourceServerID), []string{"token", "b"}, wantInvalid},
		{"revoke unauthenticated", revokePath, nil, nil, wantNoAuth},
		{"revoke as an unknown client", revokePath, nil, []string{"client_id", "x"}, wantNoAuth},
		{"revoke with a wrong secret", revokePath, basicAuth(ServiceClientID, "wrong"), nil, wantBasicFailed},
		{"revoke nothing", revokePath, nil, []string{"client_id", NativeClientID, "token", ""}, wantInvalid},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			fields := append([]string{"token", ours.AccessToken}, tt.fields...)
			if slices.Contains(tt.fields, "token") && tt.want == wantInvalid && !strings.HasSuffix(tt.name, "twice") {
				fields = tt.fields
			}
			a := h.post(tt.path, tt.change, fields...)
			tt.want.check(t, a)
			if strings.Contains(a.body, ours.AccessToken) {
				t.Error("the answer repeats the token")
			}
		})
	}
	t.Run("body credentials", func(t *testing.T) {
		a := h.post(introspectPath, nil, "token", ours.AccessToken, "client_id", ResourceServerID, "client_secret", h.secret(ResourceServerID))
		if a.json(t)["active"] != true {
			t.Errorf("status %d, body %s", a.status, a.body)
		}
	})
}

func TestRevoke(t *testing.T) {
	h := start(t, nil)
	revoke := func(token string, change func(*http.Request), fields ...string) {
		t.Helper()
		a := h.post(revokePath, change, append([]string{"token", token}, fields...)...)
		if a.status != http.StatusOK || a.body != "{\"active\":false}\n" {
			t.Errorf("revoke: status %d, body %s", a.status, a.body)
		}
	}
	_, ours := h.login("ada@example.edu")
	revoke("garbage", nil, "client_id", NativeClientID)
	revoke(ours.AccessToken, h.basic(ServiceClientID)) // of another client: the same response, and no effect
	revoke(strings.Repeat("x", 10_000), nil, "client_id", NativeClientID)
	if !h.active(ours.AccessToken) {
		t.Fatal("another client revoked the token")
	}
	revoke(ours.RefreshToken, nil, "client_id", NativeClientID)
	want{400, "invalid_grant", "", ""}.check(t, h.post(tokenPath, nil, "grant_type", "refresh_token", "client_id", NativeClientID, "refresh_token", ours.RefreshToken))
	if !h.active(ours.AccessToken) {
		t.Error("revoking the refresh token cost the access token, which Globus does not promise")
	}
	for range 2 {
		revoke(ours.AccessToken, nil, "client_id", NativeClientID)
	}
	if h.active(ours.AccessToken) {
		t.Error("active after it was revoked")
	}

	service := h.post(tokenPath, h.basic(ServiceClientID), "grant_type", "client_credentials", "scope", Scope).tokens(t).AccessToken
	revoke(service, h.basic(ServiceClientID))
	if h.active(service) {
		t.Error("the service's token is active after it was revoked")
	}
}

func TestUserInfo(t *testing.T) {
	h := start(t, nil)
	token := func(scope string) string {
		return h.exchange(h.code("grace@example.org", "scope", scope)).tokens(t).AccessToken
	}
	for scope, want := range map[string][]string{
		"openid":       {"last_authentication", "sub"},
		"openid email": {"email", "last_authentication", "sub"},
		"openid profile": {"identity_provider", "identity_provider_display_name", "last_authentication", "name", "organization",
			"preferred_username", "sub"},
	} {
		for _, method := range []string{"GET", "POST"} {
			a := h.do(method, userInfoPath, "", bearer(token(scope)))
			body := a.json(t)
			names := []string{}
			for name := range body {
				names = append(names, name)
			}
			slices.Sort(names)
			if a.status != http.StatusOK || !slices.Equal(names, want) || body["sub"] != Subject("grace@example.org") {
				t.Errorf("%s with %q: status %d, %s", method, scope, a.status, a.body)
			}
		}
	}
	auth, ours := h.login("ada@example.edu")
	good := auth.AccessToken
	for name, tt := range map[string]struct {
		change func(*http.Request)
		want   want
	}{
		"no token":      {nil, wantNoAuth},
		"garbage":       {bearer("garbage"), wantNoAuth},
		"Basic":         {h.basic(ServiceClientID), wantNoAuth},
		"no scheme":     {header("Authorization", good), wantNoAuth},
		"two headers":   {func(r *http.Request) { r.Header["Authorization"] = []string{"Bearer " + good, "Bearer " + good} }, wantNoAuth},
		"refresh token": {bearer(auth.RefreshToken), wantNoAuth},
		"our token":     {bearer(ours.AccessToken), wantNoAuth},
		"too long":      {bearer(strings.Repeat("x", 5000)), wantNoAuth},
		"no openid":     {bearer(token("email")), wantForbidden},
	} {
		t.Run(name, func(t *testing.T) {
			a := h.do("GET", userInfoPath, "", tt.change)
			tt.want.check(t, a)
			if tt.want.status == 401 && a.header.Get("WWW-Authenticate") != "Bearer" {
				t.Errorf("WWW-Authenticate %q", a.header.Get("WWW-Authenticate"))
			}
		})
	}
	if a := h.do("GET", userInfoPath, "", header("Authorization", "bearer "+good)); a.status != http.StatusOK {
		t.Errorf("scheme in lower case: status %d", a.status)
	}
}
