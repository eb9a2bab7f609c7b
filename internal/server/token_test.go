package server

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/admission"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

const (
	keyID     = "key-abcdefghij234567"
	keySecret = "dks_" + canary
	keyToken  = "eyJ.token-for-a-key.sig"
)

// exchange is a Tokens that knows a single key.
type exchanger struct{}

func (exchanger) Exchange(_ context.Context, id string, secret globus.Secret) (globus.Token, error) {
	switch {
	case id == "outage":
		return globus.Token{}, diaspora.ErrUnavailable
	case id == "broken":
		return globus.Token{}, errors.New("sign at 10.1.2.3: no entropy")
	case id != keyID || secret != keySecret:
		return globus.Token{}, &globus.RefusedError{Reason: "there is no such access key"}
	}
	return globus.Token{AccessToken: keyToken, Scope: []string{"read", "write"}, Expiry: time.Now().Add(time.Hour)}, nil
}

func withTokens(cfg *Config) { cfg.Tokens = exchanger{} }

func basicAuth(id, secret string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(id+":"+secret))
}

func tokenForm(pairs ...string) string {
	form := url.Values{"grant_type": {"client_credentials"}}
	for i := 0; i < len(pairs); i += 2 {
		form.Set(pairs[i], pairs[i+1])
	}
	return form.Encode()
}

// TestExchangeKey requests a token in every way that RFC 6749 allows.
func TestExchangeKey(t *testing.T) {
	e := start(t, withTokens)
	inForm := tokenForm("client_id", keyID, "client_secret", keySecret)
	for name, tt := range map[string]struct {
		body    string
		headers []string
	}{
		"basic":                {tokenForm(), []string{"Authorization", basicAuth(keyID, keySecret)}},
		"basic, encoded":       {tokenForm(), []string{"Authorization", basicAuth(strings.ReplaceAll(keyID, "-", "%2D"), strings.ReplaceAll(keySecret, "_", "%5f"))}},
		"basic, in small":      {tokenForm(), []string{"Authorization", strings.Replace(basicAuth(keyID, keySecret), "Basic", "basic", 1)}},
		"basic, and named":     {tokenForm("client_id", keyID), []string{"Authorization", basicAuth(keyID, keySecret)}},
		"post":                 {inForm, nil},
		"with a scope":         {inForm + "&scope=kafka", nil},
		"with what is unknown": {inForm + "&audience=x&resource=y", nil},
		"with charset":         {inForm, []string{"Content-Type", typeForm + "; charset=utf-8"}},
	} {
		headers := append([]string{}, tt.headers...)
		if !strings.Contains(strings.Join(headers, " "), "Content-Type") {
			headers = append(headers, "Content-Type", typeForm)
		}
		a := e.do("POST", "/v1/token", tt.body, headers...)
		var got tokenResponse
		if err := json.Unmarshal([]byte(a.body), &got); err != nil || a.status != 200 || a.header.Get("Content-Type") != typeJSON {
			t.Errorf("%s: %d %v\n%s", name, a.status, err, a.body)
		}
		if got.AccessToken != keyToken || got.TokenType != "Bearer" || got.ExpiresIn < 3590 || got.ExpiresIn > 3600 || got.Scope != "read write" {
			t.Errorf("%s: %+v", name, got)
		}
		if a.header.Get("Pragma") != "no-cache" || a.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: the answer may be kept: %v", name, a.header)
		}
	}
	if log := e.logs.String(); strings.Contains(log, keyToken) {
		t.Errorf("the token is in the log:\n%s", log)
	}
}

// TestExchangeRefuses checks the errors of the token endpoint. They have OAuth's format, and repeat
// nothing that was sent.
func TestExchangeRefuses(t *testing.T) {
	good := []string{"Content-Type", typeForm, "Authorization", basicAuth(keyID, keySecret)}
	form := []string{"Content-Type", typeForm}
	basic := func(header string) []string { return append([]string{"Authorization", header}, form...) }
	inForm := tokenForm("client_id", keyID, "client_secret", keySecret)
	for _, tt := range []struct {
		name    string
		target  string
		body    string
		headers []string
		status  int
		code    string
	}{
		{"nobody", "", tokenForm(), form, 401, "invalid_client"},
		{"an ID alone", "", tokenForm("client_id", keyID), form, 401, "invalid_client"},
		{"a secret alone", "", tokenForm("client_secret", keySecret), form, 401, "invalid_client"},
		{"empty secret", "", tokenForm("client_id", keyID, "client_secret", ""), form, 401, "invalid_client"},
		{"wrong secret", "", tokenForm("client_id", keyID, "client_secret", keySecret+"x"), form, 401, "invalid_client"},
		{"wrong ID", "", tokenForm("client_id", canary, "client_secret", keySecret), form, 401, "invalid_client"},
		{"ID and secret swapped", "", tokenForm("client_id", keySecret, "client_secret", keyID), form, 401, "invalid_client"},
		{"huge secret", "", tokenForm("client_id", keyID, "client_secret", strings.Repeat("x", 5000)), form, 401, "invalid_client"},
		{"bytes", "", tokenForm("client_id", keyID, "client_secret", "\xff"), form, 401, "invalid_client"},
		{"basic, wrong secret", "", tokenForm(), basic(basicAuth(keyID, "wrong")), 401, "invalid_client"},
		{"basic, empty", "", tokenForm(), basic("Basic"), 401, "invalid_client"},
		{"basic, no colon", "", tokenForm(), basic("Basic YWRh"), 401, "invalid_client"},
		{"basic, not base64", "", tokenForm(), basic("Basic " + keySecret + "!"), 401, "invalid_client"},
		{"basic, broken escape", "", tokenForm(), basic(basicAuth(keyID, "%zz")), 401, "invalid_client"},
		{"basic, no text", "", tokenForm(), basic(basicAuth(keyID, "\xff")), 401, "invalid_client"},
		{"a Globus token", "", tokenForm(), basic(adaBearer), 401, "invalid_client"},
		{"both ways", "", inForm, good, 400, "invalid_request"},
		{"two headers", "", tokenForm(), append(basic(basicAuth(keyID, keySecret)), good[2:]...), 400, "invalid_request"},
		{"two clients", "", tokenForm("client_id", "key-bbbbbbbbbbbbbbbb"), good, 400, "invalid_request"},
		{"no grant", "", strings.Replace(inForm, "grant_type", "grant", 1), form, 400, "invalid_request"},
		{"another grant", "", strings.Replace(inForm, "client_credentials", "refresh_token", 1), form, 400, "unsupported_grant_type"},
		{"a grant twice", "", inForm + "&grant_type=client_credentials", form, 400, "invalid_request"},
		{"a secret twice", "", inForm + "&client_secret=" + keySecret, form, 400, "invalid_request"},
		{"broken form", "", inForm + "%zz", form, 400, "invalid_request"},
		{"empty", "", "", form, 401, "invalid_client"},
		{"JSON", "", `{"grant_type":"client_credentials"}`, []string{"Content-Type", typeJSON}, 415, "invalid_request"},
		{"compressed", "", inForm, append([]string{"Content-Encoding", "gzip"}, form...), 415, "invalid_request"},
		{"too large", "", inForm + "&x=" + strings.Repeat("x", maxBodyBytes), form, 413, "invalid_request"},
		{"in the query", "?" + inForm, "", form, 400, "invalid_request"},
		{"no JSON wanted", "", inForm, append([]string{"Accept", "text/html"}, form...), 406, "invalid_request"},
		{"outage", "", tokenForm("client_id", "outage", "client_secret", keySecret), form, 503, "temporarily_unavailable"},
		{"our own fault", "", tokenForm("client_id", "broken", "client_secret", keySecret), form, 500, "server_error"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := start(t, withTokens)
			a := e.do("POST", "/v1/token"+tt.target, tt.body, tt.headers...)
			var got struct {
				Error       string `json:"error"`
				Description string `json:"error_description"`
			}
			if err := json.Unmarshal([]byte(a.body), &got); err != nil || a.header.Get("Content-Type") != typeJSON {
				t.Fatalf("%v, type %q:\n%s", err, a.header.Get("Content-Type"), a.body)
			}
			if a.status != tt.status || got.Error != tt.code || got.Description == "" {
				t.Errorf("%d %+v, want %d %s", a.status, got, tt.status, tt.code)
			}
			if strings.ContainsAny(got.Description, `"\`) || strings.Contains(got.Description, "10.1.2.3") {
				t.Errorf("error_description = %q", got.Description)
			}
			if header := a.header.Get("WWW-Authenticate"); strings.HasPrefix(header, "Basic ") != (a.status == 401) {
				t.Errorf("status %d with WWW-Authenticate %q", a.status, header)
			}
			if a.status == 503 && a.header.Get("Retry-After") == "" {
				t.Error("503 without Retry-After")
			}
		})
	}
	e := start(t) // without Tokens
	if a := e.do("POST", "/v1/token", inForm, form...); a.status != 404 {
		t.Errorf("without an exchange: %d\n%s", a.status, a.body)
	}
}

// TestExchangeBudget: a client that guesses keys is told to wait. A key that is known to be valid
// is accepted all the same.
func TestExchangeBudget(t *testing.T) {
	e := start(t, withTokens)
	ask := func(secret string) int {
		return e.do("POST", "/v1/token", tokenForm("client_id", keyID, "client_secret", secret), "Content-Type", typeForm).status
	}
	if got := ask(keySecret); got != 200 {
		t.Fatalf("a good key: %d", got)
	}
	refusedLater := false
	for range 3 * admission.DefaultBurst {
		if got := ask("wrong"); got == 429 {
			refusedLater = true
			break
		}
	}
	if !refusedLater {
		t.Error("guessing goes on for ever")
	}
	if got := ask(keySecret); got != 200 {
		t.Errorf("a good key from where guesses came: %d", got)
	}
}

// TestKeysAPI follows a key through the API, from its creation to its revocation.
func TestKeysAPI(t *testing.T) {
	service := openClaims(t)
	e := start(t, withClaims(service))
	auth := []string{"Authorization", adaBearer, "Content-Type", typeJSON}
	a := e.do("POST", "/v1/keys", `{"name":"laptop","read":true,"write":true,"expires":"2035-01-01T00:00:00Z"}`, auth...)
	var key diaspora.NewAccessKey
	if err := json.Unmarshal([]byte(a.body), &key); err != nil || a.status != 201 || key.Secret == "" || a.header.Get("Location") != "/v1/keys/"+key.ID {
		t.Fatalf("create: %d %v %v\n%s", a.status, err, a.header, strings.ReplaceAll(a.body, key.Secret.Reveal(), "(secret)"))
	}
	e.secrets = append(e.secrets, key.Secret.Reveal()) // from here on it must appear nowhere
	if got, err := service.AuthenticateKey(t.Context(), key.ID, key.Secret); err != nil || got.Owner != ada {
		t.Errorf("the key is %+v, %v", got, err)
	}
	if a := e.do("POST", "/v1/keys", laptop, auth...); a.status != 409 {
		t.Errorf("the same name again: %d\n%s", a.status, a.body)
	}
	var list diaspora.AccessKeyList
	a = e.do("GET", "/v1/keys", "", auth[:2]...)
	if err := json.Unmarshal([]byte(a.body), &list); err != nil || a.status != 200 || len(list.Keys) != 1 || list.Keys[0].ID != key.ID || list.Keys[0].Topics != nil {
		t.Errorf("list: %d %v\n%s", a.status, err, a.body)
	}
	bobs := []string{"Authorization", "Bearer " + bobToken}
	if a := e.do("GET", "/v1/keys", "", bobs...); !strings.Contains(a.body, `"keys": []`) {
		t.Errorf("another's list: %d\n%s", a.status, a.body)
	}
	for _, method := range []string{"GET", "DELETE"} {
		if a := e.do(method, "/v1/keys/"+key.ID, "", bobs...); a.status != 404 {
			t.Errorf("%s by another: %d\n%s", method, a.status, a.body)
		}
	}
	for range 2 {
		if a := e.do("DELETE", "/v1/keys/"+key.ID, "", auth[:2]...); a.status != 204 || a.body != "" {
			t.Errorf("revoke: %d\n%s", a.status, a.body)
		}
	}
	if a := e.do("GET", "/v1/keys/"+key.ID, "", auth[:2]...); a.status != 200 || !strings.Contains(a.body, `"ended"`) {
		t.Errorf("a key that has ended: %d\n%s", a.status, a.body)
	}
	if _, err := service.AuthenticateKey(t.Context(), key.ID, key.Secret); !errors.Is(err, globus.ErrRefused) {
		t.Errorf("the key afterwards: %v", err)
	}
}

// TestKeyShowsKeys signs in with an access key. It may show its owner's keys, including those that
// have ended, and nothing else.
func TestKeyShowsKeys(t *testing.T) {
	service := openClaims(t)
	e := start(t, withClaims(service))
	make := func(owner, name string) diaspora.NewAccessKey {
		t.Helper()
		key, err := service.IssueKey(t.Context(), owner, diaspora.AccessKeyRequest{Name: name, Read: true})
		testkit.Must(t, err)
		e.secrets = append(e.secrets, key.Secret.Reveal())
		return key
	}
	one, gone, bobs := make(ada, "one"), make(ada, "gone"), make(bob, "bobs")
	as := func(key diaspora.NewAccessKey) []string {
		return []string{"Authorization", basicAuth(key.ID, key.Secret.Reveal())}
	}
	show := func(of diaspora.NewAccessKey, headers []string, status int, words string) {
		t.Helper()
		if a := e.do("GET", "/v1/keys/"+of.ID, "", headers...); a.status != status || !strings.Contains(a.body, words) {
			t.Errorf("%s is shown with %d, want %d and %q:\n%s", of.Name, a.status, status, words, a.body)
		} else if challenge := a.header.Get("WWW-Authenticate"); status == 401 && !strings.HasPrefix(challenge, "Basic ") {
			t.Errorf("%s: the challenge is %q", of.Name, challenge)
		}
	}
	show(gone, as(one), 200, `"owner": "`+ada+`"`)
	testkit.Must(t, service.RevokeKey(t.Context(), ada, gone.ID))
	show(one, as(one), 200, `"name": "one"`)
	show(gone, as(one), 200, `"ended"`)
	show(one, as(bobs), 404, "you have no access key with this ID")
	show(gone, as(gone), 401, "the access key was revoked")
	wrong := one
	wrong.Secret += "x"
	e.secrets = append(e.secrets, wrong.Secret.Reveal())
	show(one, as(wrong), 401, "there is no such access key, or this is not its secret")
	show(one, []string{"Authorization", "Basic !"}, 401, "Basic")
	show(one, append(as(one), "Authorization", adaBearer), 401, "exactly one")

	for _, rt := range routeTable {
		if rt.access != bearer {
			continue
		}
		method, path, _ := strings.Cut(rt.pattern, " ")
		target := strings.NewReplacer("{name}", "weather", "{id}", one.ID, "{subject}", bob).Replace(path)
		a := e.do(method, target, "", append(as(one), "Content-Type", typeJSON)...)
		if a.status != 401 || !strings.Contains(a.body, "the access token of a login") {
			t.Errorf("%s with an access key: %d\n%s", rt.pattern, a.status, a.body)
		}
	}
	if keys, err := service.Keys(t.Context(), ada); err != nil || len(keys) != 1 {
		t.Errorf("the keys of ada afterwards: %v, %v, want one", keys, err)
	}
	for range 3 * admission.DefaultBurst {
		if a := e.do("GET", "/v1/keys/"+one.ID, "", as(wrong)...); a.status == 429 {
			show(one, as(one), 200, `"name": "one"`)
			return
		}
	}
	t.Error("guessing goes on for ever")
}
