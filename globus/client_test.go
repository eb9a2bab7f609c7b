package globus_test

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

const (
	globusUnauthorized = `{"errors":[{"status":"401","code":"UNAUTHORIZED","id":"req-1","title":"Unauthorized","detail":"Basic auth failed"}],"error":"unauthorized","error_description":"Unauthorized"}`
	html               = `<html><title>Please log in to the hotel's network</title></html>`
)

func TestNew(t *testing.T) {
	for name, c := range map[string]struct {
		cfg  globus.Config
		want string // part of the error; empty: none
	}{
		"default issuer":      {globus.Config{ClientID: nativeID}, ""},
		"slash at the end":    {globus.Config{ClientID: nativeID, Issuer: "https://auth.example.org/"}, ""},
		"loopback":            {globus.Config{ClientID: nativeID, Issuer: "http://127.0.0.1:9090"}, ""},
		"localhost":           {globus.Config{ClientID: nativeID, Issuer: "http://localhost:9090"}, ""},
		"loopback, version 6": {globus.Config{ClientID: nativeID, Issuer: "http://[::1]:9090"}, ""},
		"plain http":          {globus.Config{ClientID: nativeID, Issuer: "http://auth.example.org"}, "loopback"},
		"plain http, dressed": {globus.Config{ClientID: nativeID, Issuer: "http://127.0.0.1.example.org"}, "loopback"},
		"not a URL":           {globus.Config{ClientID: nativeID, Issuer: "auth.globus.org"}, "must be a URL"},
		"password in URL":     {globus.Config{ClientID: nativeID, Issuer: "https://u:p@auth.globus.org"}, "must be a URL"},
		"another scheme":      {globus.Config{ClientID: nativeID, Issuer: "ftp://auth.globus.org"}, "want https"},
		"no client":           {globus.Config{}, "missing"},
		"username":            {globus.Config{ClientID: "ada@example.edu"}, "is a username"},
		"colon":               {globus.Config{ClientID: "a:b"}, "is not one"},
		"line break":          {globus.Config{ClientID: "a\r\nb"}, "is not one"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := globus.New(c.cfg)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("New = %v, want error with %q", err, c.want)
			}
		})
	}
}

func TestConfigFromEnv(t *testing.T) {
	for _, c := range []struct {
		service, environment, want string // want is "" for an error
	}{
		{"", "", "https://auth.globus.org"},
		{"", "production", "https://auth.globus.org"},
		{"", "preview", "https://auth.preview.globus.org"},
		{"", "sandbox", "https://auth.sandbox.globuscs.info"},
		{"", "elsewhere", ""},
		{"http://127.0.0.1:9090/", "preview", "http://127.0.0.1:9090"},
		{"http://auth.example.org/", "", ""},
	} {
		env := map[string]string{"GLOBUS_SDK_SERVICE_URL_AUTH": c.service, "GLOBUS_SDK_ENVIRONMENT": c.environment}
		cfg, err := globus.ConfigFromEnv(func(k string) string { return env[k] })
		if cfg.Issuer != c.want || (err != nil) != (c.want == "") {
			t.Errorf("ConfigFromEnv(%q, %q) = %q, %v, want %q", c.service, c.environment, cfg.Issuer, err, c.want)
		}
	}
}

// TestWire checks what each call sends, and how the client authenticates.
func TestWire(t *testing.T) {
	const access, refresh = "canary-access", "canary-refresh"
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte(serviceID+":"+serviceSecret))
	tokens := document(tokenAnswer(topics, access, ""))
	for name, c := range map[string]struct {
		answer        string
		call          func(context.Context, *globus.Client) error
		secret        bool
		method, path  string
		authorization string
		form          map[string]string
	}{
		"refresh, native": {tokens,
			func(ctx context.Context, c *globus.Client) error { _, err := c.Refresh(ctx, refresh); return err },
			false, "POST", "/v2/oauth2/token", "",
			map[string]string{"grant_type": "refresh_token", "refresh_token": refresh, "client_id": nativeID}},
		"refresh, confidential": {tokens,
			func(ctx context.Context, c *globus.Client) error { _, err := c.Refresh(ctx, refresh); return err },
			true, "POST", "/v2/oauth2/token", basic,
			map[string]string{"grant_type": "refresh_token", "refresh_token": refresh}},
		"client credentials": {tokens,
			func(ctx context.Context, c *globus.Client) error {
				_, err := c.ClientCredentials(ctx, "openid", topicsScope)
				return err
			},
			true, "POST", "/v2/oauth2/token", basic,
			map[string]string{"grant_type": "client_credentials", "scope": "openid " + topicsScope}},
		"revoke, native": {`{"active":false}`,
			func(ctx context.Context, c *globus.Client) error { return c.Revoke(ctx, access) },
			false, "POST", "/v2/oauth2/token/revoke", "",
			map[string]string{"token": access, "client_id": nativeID}},
		"revoke, confidential": {`{"active":false}`,
			func(ctx context.Context, c *globus.Client) error { return c.Revoke(ctx, access) },
			true, "POST", "/v2/oauth2/token/revoke", basic,
			map[string]string{"token": access}},
		"introspect": {`{"active":true,"sub":"` + adaSubject + `"}`,
			func(ctx context.Context, c *globus.Client) error { _, err := c.Introspect(ctx, access); return err },
			true, "POST", "/v2/oauth2/token/introspect", basic,
			map[string]string{"token": access, "include": "identity_set"}},
		"userinfo": {`{"sub":"` + adaSubject + `"}`,
			func(ctx context.Context, c *globus.Client) error { _, err := c.UserInfo(ctx, access); return err },
			true, "GET", "/v2/oauth2/userinfo", "Bearer " + access, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := &wire{handler: answers(ok(c.answer))}
			client := w.client(t, func(cfg *globus.Config) {
				cfg.Product, cfg.Version = "weather", "1.2"
				if c.secret {
					confidential(cfg)
				}
			})
			testkit.Must(t, c.call(t.Context(), client))
			r := w.sent()[0]
			if r.method != c.method || r.path != c.path {
				t.Errorf("sent %s %s, want %s %s", r.method, r.path, c.method, c.path)
			}
			if got := r.header.Get("Authorization"); got != c.authorization {
				t.Errorf("Authorization = %q, want %q", got, c.authorization)
			}
			if len(r.form) != len(c.form) {
				t.Errorf("form = %v, want %v", r.form, c.form)
			}
			for k, want := range c.form {
				if got := r.form.Get(k); got != want {
					t.Errorf("form[%s] = %q, want %q", k, got, want)
				}
			}
			if got := r.header.Get("X-Globus-Client-Info"); got != "product=weather,version=1.2" {
				t.Errorf("X-Globus-Client-Info = %q", got)
			}
			if got := r.header.Get("User-Agent"); got != "weather/1.2" {
				t.Errorf("User-Agent = %q", got)
			}
		})
	}
}

// TestAnswers checks which error each response leads to.
func TestAnswers(t *testing.T) {
	token := document(tokenAnswer(topics, "new-access", "new-refresh"))
	for name, c := range map[string]struct {
		answers []reply
		want    error  // the sentinel; nil for success
		text    string // part of the error
		sent    int
	}{
		"a token":                    {[]reply{ok(token)}, nil, "", 1},
		"invalid_grant as 400":       {[]reply{status(400, `{"error":"invalid_grant"}`)}, globus.ErrLoginRequired, "invalid_grant", 1},
		"invalid_grant as 401":       {[]reply{status(401, `{"error":"invalid_grant"}`)}, globus.ErrLoginRequired, "invalid_grant", 1},
		"invalid_grant as 403":       {[]reply{status(403, `{"error":"invalid_grant"}`)}, globus.ErrLoginRequired, "invalid_grant", 1},
		"invalid_grant as 200":       {[]reply{ok(`{"error":"invalid_grant"}`)}, globus.ErrLoginRequired, "invalid_grant", 1},
		"invalid_grant in both":      {[]reply{status(400, `{"error":"invalid_grant","errors":[{"code":"BAD","detail":"gone"}]}`)}, globus.ErrLoginRequired, "gone", 1},
		"401 in Globus's dialect":    {[]reply{status(401, globusUnauthorized)}, globus.ErrClientRefused, "UNAUTHORIZED: Basic auth failed (request req-1)", 1},
		"invalid_client":             {[]reply{status(401, `{"error":"invalid_client"}`)}, globus.ErrClientRefused, "invalid_client", 1},
		"400 of another kind":        {[]reply{status(400, `{"error":"invalid_request","error_description":"no"}`)}, errOther, "invalid_request: no", 1},
		"page of a proxy":            {[]reply{ok(html)}, globus.ErrMisconfigured, `with the title "Please log in to the hotel's network"; is`, 1},
		"401 page of a proxy":        {[]reply{status(401, html)}, globus.ErrMisconfigured, "is a proxy", 1},
		"407 page of a proxy":        {[]reply{status(407, html)}, globus.ErrMisconfigured, "is a proxy", 1},
		"200 page, to a request":     {[]reply{ok(html)}, globus.ErrMisconfigured, "a web page", 1},
		"404":                        {[]reply{status(404, html)}, globus.ErrMisconfigured, "status 404", 1},
		"404 as JSON":                {[]reply{status(404, `{"error":"not_found"}`)}, globus.ErrMisconfigured, "status 404 not_found", 1},
		"405":                        {[]reply{status(405, `{}`)}, globus.ErrMisconfigured, "status 405", 1},
		"501":                        {[]reply{status(501, "")}, globus.ErrMisconfigured, "status 501: the answer is empty", 1},
		"501 as JSON":                {[]reply{status(501, `{"error":"server_error"}`)}, globus.ErrMisconfigured, "status 501 server_error", 1},
		"505":                        {[]reply{status(505, "")}, globus.ErrMisconfigured, "status 505", 1},
		"511, a login page":          {[]reply{status(511, html)}, globus.ErrMisconfigured, "status 511", 1},
		"200, not JSON":              {[]reply{ok("canary-old-refresh")}, globus.ErrMisconfigured, "the answer is not JSON", 1},
		"a title of a secret":        {[]reply{ok("<title>old-refresh</title>")}, globus.ErrMisconfigured, `"[redacted]"`, 1},
		"a hostile title":            {[]reply{ok("<html><title>\n\x1b[2J&#27;\u202e\"" + strings.Repeat("x", 10_000) + "</title>")}, globus.ErrMisconfigured, `title "[2J\"xxx`, 1},
		"a page without a title":     {[]reply{ok(`<html>canary</html>`)}, globus.ErrMisconfigured, "the answer is a web page; is", 1},
		"502, of a proxy":            {[]reply{status(502, `{"error":"server_error"}`)}, globus.ErrUnavailable, "status 502", 4},
		"504":                        {[]reply{status(504, "")}, globus.ErrUnavailable, "status 504", 4},
		"520":                        {[]reply{status(520, "")}, globus.ErrUnavailable, "status 520", 1},
		"408":                        {[]reply{status(408, "")}, globus.ErrUnavailable, "status 408", 1},
		"502 page of a proxy":        {[]reply{status(502, html)}, globus.ErrUnavailable, "status 502", 4},
		"redirect":                   {[]reply{{302, "", http.Header{"Location": {"https://evil.example/"}}}}, globus.ErrMisconfigured, `status 302: it redirects to "https://evil.example"; is`, 1},
		"307":                        {[]reply{{307, "", http.Header{"Location": {"https://evil.example/"}}}}, globus.ErrMisconfigured, "status 307", 1},
		"redirect that is JSON":      {[]reply{{302, "{}", nil}}, globus.ErrMisconfigured, "status 302", 1},
		"a very long description":    {[]reply{status(400, `{"error":"x","error_description":"`+strings.Repeat("long ", 10_000)+`"}`)}, errOther, "long", 1},
		"503 storm":                  {[]reply{status(503, "")}, globus.ErrUnavailable, "status 503", 4},
		"503, then a token":          {[]reply{status(503, ""), status(500, ""), ok(token)}, nil, "", 3},
		"429, then a token":          {[]reply{after(status(429, `{}`), "3"), ok(token)}, nil, "", 2},
		"429, told to wait long":     {[]reply{after(status(429, `{}`), "3600")}, globus.ErrUnavailable, "status 429", 1},
		"429, nonsense to wait for":  {[]reply{after(status(429, `{}`), "-5"), ok(token)}, nil, "", 2},
		"no body":                    {[]reply{ok("")}, globus.ErrMisconfigured, "cannot be parsed", 1},
		"no token":                   {[]reply{ok("{}")}, globus.ErrMisconfigured, "access token is missing", 1},
		"not a bearer token":         {[]reply{ok(`{"access_token":"a","token_type":"mac"}`)}, globus.ErrMisconfigured, "bearer", 1},
		"a token with a line break":  {[]reply{ok(`{"access_token":"a\r\nHost: x"}`)}, globus.ErrMisconfigured, "characters", 1},
		"a token of a megabyte":      {[]reply{ok(`{"access_token":"` + strings.Repeat("a", 1<<19) + `"}`)}, globus.ErrMisconfigured, "longer", 1},
		"an endless body":            {[]reply{ok(strings.Repeat(" ", 1<<20+1))}, globus.ErrMisconfigured, "too large", 1},
		"two tokens for one":         {[]reply{ok(`{"access_token":"a","resource_server":"x","other_tokens":[{"access_token":"b","resource_server":"x"}]}`)}, globus.ErrMisconfigured, "two tokens", 1},
		"error of an odd type":       {[]reply{status(400, `{"error":{"a":1},"errors":[{"code":7}]}`)}, errOther, "status 400", 1},
		"errors that are not a list": {[]reply{status(400, `{"error":"invalid_grant","errors":"x"}`)}, globus.ErrLoginRequired, "status 400", 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &wire{handler: answers(c.answers...)}
				got, err := w.client(t).Refresh(t.Context(), "old-refresh")
				checkErr(t, "Refresh", err, c.want, c.text)
				if err != nil && (len(err.Error()) > 1000 || strings.ContainsAny(err.Error(), "\n\x1b\u202e") || strings.Contains(err.Error(), "canary")) {
					t.Errorf("Refresh = %q, which is not fit to be shown", err)
				}
				if n := len(w.sent()); n != c.sent {
					t.Errorf("sent %d requests, want %d", n, c.sent)
				}
				if err == nil && (got.AccessToken != "new-access" || got.RefreshToken != "new-refresh" || got.ResourceServer != topics) {
					t.Errorf("Refresh = %s for %s", got.AccessToken.Reveal(), got.ResourceServer)
				}
			})
		})
	}
}

// errOther stands for an error that matches none of the sentinels.
var errOther = errors.New("an error without a sentinel")

var sentinels = []error{globus.ErrLoginRequired, globus.ErrRefused, globus.ErrUnavailable, globus.ErrMisconfigured, globus.ErrClientRefused,
	globus.ErrDenied, globus.ErrInsecureFile, globus.ErrOtherSubject,
	globus.ErrNotFound, globus.ErrAmbiguous, globus.ErrMembersHidden, globus.ErrTooManyMembers}

// checkErr checks that err matches want and no other sentinel, and contains text.
func checkErr(t *testing.T, call string, err, want error, text string) {
	t.Helper()
	if (err == nil) != (want == nil) {
		t.Fatalf("%s = %v, want %v", call, err, want)
	}
	for _, s := range sentinels {
		if got := errors.Is(err, s); got != (s == want) {
			t.Errorf("%s = %v: errors.Is %q = %t, want %t", call, err, s, got, s == want)
		}
	}
	if err != nil && !strings.Contains(err.Error(), text) {
		t.Errorf("%s = %q, want it to say %q", call, err, text)
	}
}

// TestIdentitySet checks that the identity set has nothing but identities, and always the subject.
func TestIdentitySet(t *testing.T) {
	long := make([]any, 1000)
	for i := range long {
		long[i] = fmt.Sprintf("00000000-0000-4000-8000-%012d", i)
	}
	for name, c := range map[string]struct {
		set  any
		want []string
	}{
		"both":             {[]any{adaSubject, bobSubject}, []string{adaSubject, bobSubject}},
		"in another order": {[]any{bobSubject, adaSubject, bobSubject}, []string{adaSubject, bobSubject}},
		"null":             {nil, []string{adaSubject}},
		"empty":            {[]any{}, []string{adaSubject}},
		"without itself":   {[]any{bobSubject}, []string{adaSubject, bobSubject}},
		"no identities":    {[]any{"bob@example.edu", "", nil, 7, strings.ToUpper(bobSubject), []any{bobSubject}, bobSubject}, []string{adaSubject, bobSubject}},
		"an object":        {map[string]any{"sub": bobSubject}, []string{adaSubject}},
		"a string":         {bobSubject, []string{adaSubject}},
	} {
		w := &wire{handler: answers(ok(document(map[string]any{"active": true, "sub": adaSubject, "identity_set": c.set})))}
		info, err := w.client(t, confidential).Introspect(t.Context(), "canary-access")
		if err != nil || !slices.Equal(info.IdentitySet, c.want) {
			t.Errorf("%s: identity set %q, %v, want %q", name, info.IdentitySet, err, c.want)
		}
	}
	w := &wire{handler: answers(ok(document(map[string]any{"active": true, "sub": adaSubject, "identity_set": long})))}
	if info, err := w.client(t, confidential).Introspect(t.Context(), "canary-access"); err != nil || len(info.IdentitySet) != 101 {
		t.Errorf("%d identities of 1,000, %v, want 101", len(info.IdentitySet), err)
	}
}

func TestRefreshKeepsTheRefreshToken(t *testing.T) {
	for answered, want := range map[string]globus.Secret{"": "old", "old": "old", "next": "next"} {
		w := &wire{handler: answers(ok(document(tokenAnswer(topics, "a", answered))))}
		got, err := w.client(t).Refresh(t.Context(), "old")
		if err != nil || got.RefreshToken != want {
			t.Errorf("Refresh with %q in the answer: refresh token %q, %v, want %q", answered, got.RefreshToken.Reveal(), err, want)
		}
	}
}

func TestTokenResponses(t *testing.T) {
	const top, other = `"access_token":"A1","resource_server":"auth.globus.org"`, `{"access_token":"A2","resource_server":"` + topics + `"}`
	for name, c := range map[string]struct {
		body string
		want []string // resource servers, in order
	}{
		"ours in other_tokens":    {`{` + top + `,"other_tokens":[` + other + `]}`, []string{"auth.globus.org", topics}},
		"ours on top":             {`{"access_token":"A2","resource_server":"` + topics + `","other_tokens":[{` + top + `}]}`, []string{topics, "auth.globus.org"}},
		"other_tokens missing":    {`{` + top + `}`, []string{"auth.globus.org"}},
		"other_tokens null":       {`{` + top + `,"other_tokens":null}`, []string{"auth.globus.org"}},
		"unknown fields":          {`{` + top + `,"x":{"y":[1]},"other_tokens":[]}`, []string{"auth.globus.org"}},
		"lower-case bearer":       {`{` + top + `,"token_type":"bearer"}`, []string{"auth.globus.org"}},
		"scope of an odd type":    {`{` + top + `,"scope":["a"]}`, []string{"auth.globus.org"}},
		"refresh token is null":   {`{` + top + `,"refresh_token":null}`, []string{"auth.globus.org"}},
		"nested other_tokens":     {`{` + top + `,"other_tokens":[{"access_token":"A2","resource_server":"` + topics + `","other_tokens":[` + other + `]}]}`, []string{"auth.globus.org", topics}},
		"resource server missing": {`{"access_token":"A1"}`, []string{""}},
	} {
		t.Run(name, func(t *testing.T) {
			w := &wire{handler: answers(ok(c.body))}
			tokens, err := w.client(t, confidential).ClientCredentials(t.Context(), topicsScope)
			testkit.Must(t, err)
			var got []string
			for _, token := range tokens {
				got = append(got, token.ResourceServer)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("tokens for %q, want %q", got, c.want)
			}
		})
	}
}

func TestExpiresIn(t *testing.T) {
	for raw, want := range map[string]time.Duration{
		`172800`: 48 * time.Hour, `"172800"`: 48 * time.Hour, `60.5`: 60500 * time.Millisecond,
		`0`: time.Hour, `-5`: time.Hour, `null`: time.Hour, `"soon"`: time.Hour, `{}`: time.Hour,
		`1e300`: 366 * 24 * time.Hour, `99999999999999999999`: 366 * 24 * time.Hour,
	} {
		synctest.Test(t, func(t *testing.T) {
			w := &wire{handler: answers(ok(`{"access_token":"a","expires_in":` + raw + `}`))}
			got, err := w.client(t).Refresh(t.Context(), "r")
			if err != nil || time.Until(got.Expiry) != want || !got.Obtained.Equal(time.Now()) {
				t.Errorf("expires_in %s: expires in %v (%v), want %v", raw, time.Until(got.Expiry), err, want)
			}
		})
	}
}

// TestRetries checks the pauses between attempts: within the documented limits, as long as Globus
// Auth asks for, and never after the caller has given up.
func TestRetries(t *testing.T) {
	token := ok(document(tokenAnswer(topics, "a", "r")))
	for name, c := range map[string]struct {
		answers  []reply
		min, max time.Duration
	}{
		"backoff":                  {[]reply{status(503, ""), status(503, ""), status(503, ""), token}, (250 + 500 + 1000) * time.Millisecond, (750 + 1500 + 3000) * time.Millisecond},
		"Retry-After":              {[]reply{after(status(429, ""), "7"), token}, 7 * time.Second, 7 * time.Second},
		"Retry-After, as a date":   {[]reply{after(status(503, ""), "Sat, 01 Jan 2000 00:00:08 GMT"), token}, 8 * time.Second, 8 * time.Second},
		"Retry-After, in the past": {[]reply{after(status(503, ""), "Fri, 31 Dec 1999 00:00:00 GMT"), token}, 250 * time.Millisecond, 750 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &wire{handler: answers(c.answers...)}
				begin := time.Now()
				if _, err := w.client(t).Refresh(t.Context(), "r"); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(begin); took < c.min || took > c.max {
					t.Errorf("took %v, want %v to %v", took, c.min, c.max)
				}
			})
		})
	}
	t.Run("told to wait long", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := &wire{handler: answers(after(status(429, ""), "120"))}
			_, err := w.client(t).Refresh(t.Context(), "r")
			var e *globus.Error
			if !errors.As(err, &e) || e.RetryAfter != 2*time.Minute {
				t.Errorf("Refresh = %v, want an Error that asks for 2 minutes", err)
			}
		})
	})
	t.Run("ctx ends between attempts", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := &wire{handler: answers(after(status(503, ""), "9"))}
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			begin := time.Now()
			_, err := w.client(t).Refresh(ctx, "r")
			if !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != 5*time.Second {
				t.Errorf("Refresh = %v after %v, want the deadline after 5s", err, time.Since(begin))
			}
		})
	})
	t.Run("no answer", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := &wire{handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })}
			_, err := w.client(t).Refresh(t.Context(), "r")
			checkErr(t, "Refresh", err, globus.ErrUnavailable, "no answer within 15s")
			if errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Refresh = %v, which claims that the caller's deadline passed", err)
			}
			if n := len(w.sent()); n != 4 {
				t.Errorf("sent %d requests, want 4", n)
			}
		})
	})
	t.Run("untrusted certificate", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := &wire{cut: func(int) error { return &tls.CertificateVerificationError{Err: errors.New("unknown authority")} }}
			_, err := w.client(t).Refresh(t.Context(), "r")
			checkErr(t, "Refresh", err, globus.ErrMisconfigured, "unknown authority")
			if n := len(w.sent()); n != 1 {
				t.Errorf("sent %d requests, want 1", n)
			}
		})
	})
}

func TestUserInfo(t *testing.T) {
	full := `{"sub":"` + adaSubject + `","preferred_username":"ada@x.org@accounts.google.com","name":null,"email":null,
		"organization":"Uni","last_authentication":1621481006,"identity_set":[{"sub":"` + adaSubject + `","username":"ada"},{"sub":"` + bobSubject + `"}]}`
	w := &wire{handler: answers(ok(full))}
	got, err := w.client(t).UserInfo(t.Context(), "a")
	if err != nil || got.Username != "ada@x.org@accounts.google.com" || got.Name != "" ||
		!slices.Equal(got.IdentitySet, []string{adaSubject, bobSubject}) {
		t.Errorf("UserInfo = %+v, %v", got, err)
	}
	for name, c := range map[string]struct {
		answer reply
		want   error
	}{
		"401":     {status(401, globusUnauthorized), globus.ErrRefused},
		"403":     {status(403, `{"errors":[{"code":"FORBIDDEN"}]}`), globus.ErrRefused},
		"page":    {status(403, html), globus.ErrMisconfigured},
		"nobody":  {ok(`{}`), globus.ErrMisconfigured},
		"nothing": {ok(``), globus.ErrMisconfigured},
	} {
		w := &wire{handler: answers(c.answer)}
		_, err := w.client(t).UserInfo(t.Context(), "a")
		checkErr(t, "UserInfo, "+name, err, c.want, "")
	}
}

func TestIntrospect(t *testing.T) {
	body := `{"active":true,"sub":"` + adaSubject + `","username":"ada@example.edu","name":null,"email":null,"client_id":"` + nativeID + `",
		"iss":"https://auth.globus.org","aud":["` + topics + `","` + nativeID + `"],"scope":"openid ` + topicsScope + `",
		"exp":1900000000,"iat":1800000000,"nbf":1800000000,"identity_set":["` + adaSubject + `","` + bobSubject + `"],
		"session_info":{"authentications":null},"dependent_tokens_cache_id":"x"}`
	w := &wire{handler: answers(ok(body))}
	got, err := w.client(t, confidential).Introspect(t.Context(), "tok")
	if err != nil || got.Subject != adaSubject || got.ClientID != nativeID || len(got.Audience) != 2 || len(got.Scope) != 2 ||
		got.Expiry.Unix() != 1900000000 || len(got.IdentitySet) != 2 {
		t.Errorf("Introspect = %+v, %v", got, err)
	}
	for name, c := range map[string]struct {
		answer reply
		want   error
	}{
		"inactive":            {ok(`{"active":false}`), globus.ErrRefused},
		"says nothing":        {ok(`{}`), globus.ErrMisconfigured},
		"active as a string":  {ok(`{"active":"true","sub":"x"}`), globus.ErrMisconfigured},
		"names nobody":        {ok(`{"active":true}`), globus.ErrMisconfigured},
		"our secret is wrong": {status(401, globusUnauthorized), globus.ErrClientRefused},
		"outage":              {status(500, ``), globus.ErrUnavailable},
		"no such endpoint":    {status(501, ``), globus.ErrMisconfigured},
		"page":                {ok(html), globus.ErrMisconfigured},
		"names a username":    {ok(`{"active":true,"sub":"ada@example.edu"}`), globus.ErrMisconfigured},
		"in capitals":         {ok(`{"active":true,"sub":"` + strings.ToUpper(adaSubject) + `"}`), globus.ErrMisconfigured},
		"names a key":         {ok(`{"active":true,"sub":"` + adaSubject + `.key"}`), globus.ErrMisconfigured},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := &wire{handler: answers(c.answer)}
			_, err := w.client(t, confidential).Introspect(t.Context(), "tok")
			checkErr(t, "Introspect, "+name, err, c.want, "")
		})
	}
	// A malformed token is rejected without a request.
	for _, bad := range []globus.Secret{"", "a b", "a\nb", "ä", globus.Secret(strings.Repeat("a", 4097))} {
		w := &wire{handler: answers(ok(body))}
		if _, err := w.client(t, confidential).Introspect(t.Context(), bad); !errors.Is(err, globus.ErrRefused) || len(w.sent()) != 0 {
			t.Errorf("Introspect(%.10q) = %v after %d calls, want ErrRefused without a call", bad.Reveal(), err, len(w.sent()))
		}
	}
	w = &wire{handler: answers(ok(`{"active":true,"sub":"` + adaSubject + `","aud":"` + topics + `"}`))}
	if got, err := w.client(t, confidential).Introspect(t.Context(), "tok"); err != nil || !slices.Equal(got.Audience, []string{topics}) {
		t.Errorf("Introspect with one aud = %v, %v", got.Audience, err)
	}
}

func TestClientCredentialsNeedASecret(t *testing.T) {
	w := &wire{}
	_, err := w.client(t).ClientCredentials(t.Context(), topicsScope)
	checkErr(t, "ClientCredentials", err, globus.ErrClientRefused, "no secret")
	if len(w.sent()) != 0 {
		t.Error("asked Globus Auth all the same")
	}
}

// TestEndlessAnswer fails when a response of unlimited size is read into memory.
func TestEndlessAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var read atomic.Int64
		client, err := globus.New(globus.Config{ClientID: nativeID, HTTPClient: &http.Client{Transport: endless{&read}}})
		testkit.Must(t, err)
		_, err = client.Refresh(t.Context(), "r")
		checkErr(t, "Refresh", err, globus.ErrMisconfigured, "too large")
		if n := read.Load(); n > 10<<20 {
			t.Errorf("read %d bytes", n)
		}
	})
}

// endless is a body that never ends, or at least is larger than anybody should read.
type endless struct{ read *atomic.Int64 }

func (e endless) RoundTrip(*http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(e)}, nil
}

func (e endless) Read(p []byte) (int, error) {
	if e.read.Add(int64(len(p))) > 100<<20 {
		return 0, io.EOF
	}
	clear(p)
	return len(p), nil
}

func TestClientsDoNotShareTheirHTTPClient(t *testing.T) {
	own := &http.Client{}
	if _, err := globus.New(globus.Config{ClientID: nativeID, HTTPClient: own}); err != nil || own.CheckRedirect != nil {
		t.Errorf("New = %v, and changed the caller's http.Client: %t", err, own.CheckRedirect != nil)
	}
}

func ExampleConfigFromEnv() {
	env := map[string]string{"GLOBUS_SDK_ENVIRONMENT": "preview"}
	cfg, err := globus.ConfigFromEnv(func(name string) string { return env[name] })
	fmt.Println(cfg.Issuer, err)
	// Output: https://auth.preview.globus.org <nil>
}
