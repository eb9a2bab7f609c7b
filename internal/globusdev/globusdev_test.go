package globusdev

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// harness is a server on its own listener, and a client that does not follow redirects.
type harness struct {
	*Server
	t    *testing.T
	http *httptest.Server
}

const testScopes = "openid profile email " + Scope

// start opens a server; change may modify its configuration.
func start(t *testing.T, change func(*Config)) *harness {
	t.Helper()
	h := &harness{t: t, http: httptest.NewUnstartedServer(nil)}
	cfg := Config{Issuer: "http://" + h.http.Listener.Addr().String(), Username: "mary"}
	if change != nil {
		change(&cfg)
	}
	var err error
	if h.Server, err = Open(cfg); err != nil {
		h.http.Listener.Close()
		t.Fatal(err)
	}
	h.http.Config.Handler = h.Server
	h.http.Start()
	t.Cleanup(func() {
		h.http.Close()
		if err := h.Server.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// answer is a response that has been read.
type answer struct {
	status int
	header http.Header
	body   string
}

// json decodes the body.
func (a answer) json(t *testing.T) map[string]any {
	t.Helper()
	var v map[string]any
	if err := json.Unmarshal([]byte(a.body), &v); err != nil {
		t.Fatalf("status %d, body %q: %v", a.status, a.body, err)
	}
	return v
}

// try sends a request; change may modify it.
func (h *harness) try(method, path, body string, change func(*http.Request)) (answer, error) {
	h.t.Helper()
	r, err := http.NewRequestWithContext(context.Background(), method, h.http.URL+path, strings.NewReader(body))
	testkit.Must(h.t, err)
	if method == http.MethodPost {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if change != nil {
		change(r)
	}
	response, err := h.http.Client().Transport.RoundTrip(r)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	var out bytes.Buffer
	if _, err := io.Copy(&out, response.Body); err != nil {
		return answer{}, err
	}
	return answer{response.StatusCode, response.Header, out.String()}, nil
}

func (h *harness) do(method, path, body string, change func(*http.Request)) answer {
	h.t.Helper()
	a, err := h.try(method, path, body, change)
	if err != nil {
		h.t.Fatalf("%s %s: %v", method, path, err)
	}
	return a
}

func (h *harness) get(path string) answer { h.t.Helper(); return h.do("GET", path, "", nil) }

// post sends a form; fields alternates names and values.
func (h *harness) post(path string, change func(*http.Request), fields ...string) answer {
	h.t.Helper()
	return h.do("POST", path, form(fields...), change)
}

func form(fields ...string) string {
	v := url.Values{}
	for i := 0; i < len(fields); i += 2 {
		v.Add(fields[i], fields[i+1])
	}
	return v.Encode()
}

// basic authenticates as a confidential client, with its secret unencoded.
func (h *harness) basic(clientID string) func(*http.Request) {
	h.t.Helper()
	secret, err := h.ClientSecret(clientID)
	testkit.Must(h.t, err)
	return func(r *http.Request) { r.SetBasicAuth(clientID, secret.Reveal()) }
}

func bearer(token string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) }
}

const (
	testVerifier = "a-verifier-of-at-least-forty-three-characters-._~"
	testRedirect = "http://127.0.0.1:45678"
)

func challenge(verifier string) string {
	sum := sha256.Sum256([]byte(verifier))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// authorizeQuery returns the query of a correct native client. It adds fields, or removes those
// with an empty value.
func authorizeQuery(fields ...string) string {
	v := url.Values{
		"response_type": {"code"}, "client_id": {NativeClientID}, "redirect_uri": {testRedirect}, "scope": {testScopes}, "state": {"s-t-a-t-e"},
		"code_challenge": {challenge(testVerifier)}, "code_challenge_method": {"S256"}, "access_type": {"offline"},
	}
	for i := 0; i < len(fields); i += 2 {
		if v.Set(fields[i], fields[i+1]); fields[i+1] == "" {
			v.Del(fields[i])
		}
	}
	return "/v2/oauth2/authorize?" + v.Encode()
}

// code logs a user in and returns the code.
func (h *harness) code(who string, fields ...string) string {
	h.t.Helper()
	a := h.get(authorizeQuery(append([]string{"dev_user", who}, fields...)...))
	location, err := url.Parse(a.header.Get("Location"))
	if a.status != http.StatusFound || err != nil || location.Query().Get("code") == "" {
		h.t.Fatalf("authorize: status %d, location %q, body %q", a.status, location, a.body)
	}
	return location.Query().Get("code")
}

// exchange redeems a code as the native client.
func (h *harness) exchange(code string, fields ...string) answer {
	h.t.Helper()
	v := url.Values{"grant_type": {"authorization_code"}, "client_id": {NativeClientID}, "code": {code}, "redirect_uri": {testRedirect}, "code_verifier": {testVerifier}}
	for i := 0; i < len(fields); i += 2 {
		if v.Set(fields[i], fields[i+1]); fields[i+1] == "" {
			v.Del(fields[i])
		}
	}
	return h.do("POST", "/v2/oauth2/token", v.Encode(), nil)
}

// tokens is a response of the token endpoint.
func (a answer) tokens(t *testing.T) tokenResponse {
	t.Helper()
	var response tokenResponse
	if err := json.Unmarshal([]byte(a.body), &response); err != nil || a.status != http.StatusOK {
		t.Fatalf("token endpoint: status %d, body %q, err %v", a.status, a.body, err)
	}
	return response
}

// login performs a complete login, and returns the tokens for Globus Auth and for the ACL endpoint.
func (h *harness) login(who string) (auth, ours tokenDocument) {
	h.t.Helper()
	response := h.exchange(h.code(who)).tokens(h.t)
	if len(response.OtherTokens) != 1 || response.OtherTokens[0].ResourceServer != ResourceServerID {
		h.t.Fatalf("login = %+v, want one other token, for %s", response, ResourceServerID)
	}
	return response.tokenDocument, response.OtherTokens[0]
}

// introspect introspects a token as the resource server.
func (h *harness) introspect(token string, fields ...string) map[string]any {
	h.t.Helper()
	a := h.post("/v2/oauth2/token/introspect", h.basic(ResourceServerID), append([]string{"token", token}, fields...)...)
	if a.status != http.StatusOK {
		h.t.Fatalf("introspect: status %d, body %q", a.status, a.body)
	}
	return a.json(h.t)
}

func (h *harness) active(token string) bool {
	h.t.Helper()
	return h.introspect(token)["active"] == true
}

func TestLogin(t *testing.T) {
	h := start(t, nil)
	auth, ours := h.login("mary@localhost")
	if auth.ResourceServer != "auth.globus.org" || auth.IDToken == "" || ours.IDToken != "" {
		t.Errorf("the token for Globus Auth = %+v, want it on top with an ID token", auth)
	}
	for _, doc := range []tokenDocument{auth, ours} {
		if !strings.HasPrefix(doc.AccessToken, "dev-at-") || !strings.HasPrefix(doc.RefreshToken, "dev-rt-") || doc.TokenType != "Bearer" || doc.ExpiresIn != 172800 || doc.State != "s-t-a-t-e" {
			t.Errorf("token = %+v", doc)
		}
	}
	if info := h.introspect(ours.AccessToken); info["sub"] != Subject("mary@localhost") || info["username"] != "mary@localhost" {
		t.Errorf("introspect = %v", info)
	}
	if a := h.do("GET", "/v2/oauth2/userinfo", "", bearer(auth.AccessToken)); a.json(t)["sub"] != Subject("mary@localhost") {
		t.Errorf("userinfo = %d %s", a.status, a.body)
	}
}
