package globusdev

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestHostileRequests sends requests that no correct client sends. Each is refused with the right
// status, in a known format, and without repeating its content.
func TestHostileRequests(t *testing.T) {
	h := start(t, nil)
	const canary = "canary-secret"
	long := strings.Repeat("x", maxBodyBytes+1)
	manyFields := "a=1"
	for i := range maxParameters + 1 {
		manyFields += fmt.Sprintf("&b%d=1", i)
	}
	forms := []string{tokenPath, introspectPath, revokePath}
	type request struct {
		method, path, body string
		change             func(*http.Request)
	}
	tests := map[string]struct {
		request
		status int
	}{
		"unknown path":                   {request{"GET", "/v2/" + canary, "", nil}, 404},
		"unknown control":                {request{"GET", "/_dev/" + canary, "", nil}, 404},
		"token in the path":              {request{"POST", tokenPath + "/" + canary, "", nil}, 404},
		"embedded sources":               {request{"GET", "/pages/authorize.html", "", nil}, 404},
		"credentials in the query":       {request{"POST", tokenPath + "?grant_type=client_credentials&client_id=" + canary, "", nil}, 400},
		"long query":                     {request{"GET", "/v2/oauth2/authorize?x=" + strings.Repeat("x", maxQueryBytes), "", nil}, 414},
		"long query for the keys":        {request{"GET", "/jwk.json?ids=" + strings.Repeat("x", maxQueryBytes), "", nil}, 414},
		"authorize with PUT":             {request{"PUT", "/v2/oauth2/authorize", "", nil}, 405},
		"userinfo with DELETE":           {request{"DELETE", userInfoPath, "", nil}, 405},
		"keys with POST":                 {request{"POST", "/jwk.json", "", nil}, 405},
		"preflight":                      {request{"OPTIONS", tokenPath, "", nil}, 405},
		"odd method":                     {request{"BREW", tokenPath, "", nil}, 405},
		"control with GET":               {request{"GET", "/_dev/reset", "", nil}, 405},
		"state with POST":                {request{"POST", "/_dev/state", "", nil}, 405},
		"control as a form":              {request{"POST", "/_dev/reset", "x=y", nil}, 415},
		"control as text":                {request{"POST", "/_dev/reset", "{}", header("Content-Type", "text/plain")}, 415},
		"control without a type":         {request{"POST", "/_dev/reset", "{}", func(r *http.Request) { r.Header.Del("Content-Type") }}, 415},
		"control that is too long":       {request{"POST", "/_dev/user", `{"name":"` + long + `"}`, jsonType}, 413},
		"control with an unknown field":  {request{"POST", "/_dev/expire", `{"token":"x","` + canary + `":1}`, jsonType}, 400},
		"reset with a field":             {request{"POST", "/_dev/reset", `{"` + canary + `":1}`, jsonType}, 400},
		"control of another type":        {request{"POST", "/_dev/expire", `{"token":1}`, jsonType}, 400},
		"control with two values":        {request{"POST", "/_dev/reset", `{}{}`, jsonType}, 400},
		"control with a list":            {request{"POST", "/_dev/reset", `[]`, jsonType}, 400},
		"control with nothing":           {request{"POST", "/_dev/expire", ``, jsonType}, 400},
		"control with half":              {request{"POST", "/_dev/expire", `{"token":"` + canary, jsonType}, 400},
		"control of no token":            {request{"POST", "/_dev/revoke", `{}`, jsonType}, 400},
		"control of both":                {request{"POST", "/_dev/revoke", `{"token":"x","subject":"y"}`, jsonType}, 400},
		"control of an unknown token":    {request{"POST", "/_dev/revoke", `{"token":"` + canary + `"}`, jsonType}, 400},
		"clock that is no duration":      {request{"POST", "/_dev/clock", `{"advance":"tomorrow"}`, jsonType}, 400},
		"clock that is a number":         {request{"POST", "/_dev/clock", `{"advance":5}`, jsonType}, 400},
		"deep JSON":                      {request{"POST", "/_dev/user", strings.Repeat(`{"linked":[`, 5000), jsonType}, 400},
		"foreign host":                   {request{"GET", "/_dev/state", "", host("evil.example")}, 421},
		"foreign host of ours":           {request{"GET", "/_dev/state", "", host("127.0.0.1.evil.example:80")}, 421},
		"foreign host everywhere":        {request{"GET", authorizeQuery("dev_user", "ada@example.edu"), "", host("evil.example")}, 421},
		"foreign host for the code page": {request{"GET", "/v2/web/auth-code?code=" + canary, "", host("evil.example")}, 421},
		"another machine's host":         {request{"GET", "/_dev/state", "", host("192.0.2.1")}, 421},
		"host with a comma":              {request{"GET", "/_dev/state", "", host("localhost,evil.example")}, 421},
		"foreign origin reads":           {request{"GET", "/_dev/state", "", header("Origin", "http://evil.example")}, 403},
		"foreign origin":                 {request{"POST", "/_dev/reset", "{}", origin("http://evil.example")}, 403},
		"another port's origin":          {request{"POST", "/_dev/reset", "{}", origin("http://127.0.0.1:1")}, 403},
		"opaque origin":                  {request{"POST", "/_dev/reset", "{}", origin("null")}, 403},
		"garbled origin":                 {request{"POST", "/_dev/reset", "{}", origin("::")}, 403},
		"cross-site":                     {request{"POST", "/_dev/reset", "{}", site("cross-site")}, 403},
		"same site, another port":        {request{"POST", "/_dev/reset", "{}", site("same-site")}, 403},
		"cross-site read":                {request{"GET", "/_dev/requests", "", header("Sec-Fetch-Site", "cross-site")}, 403},
		"cross-site pick":                {request{"POST", "/v2/oauth2/authorize", "dev_user=ada@example.edu", header("Sec-Fetch-Site", "cross-site")}, 403},
		"cross-site post of a token":     {request{"POST", revokePath, "token=x", header("Origin", "http://evil.example")}, 403},
	}
	for _, path := range forms {
		good := "grant_type=refresh_token&client_id=" + NativeClientID + "&token=x"
		for name, tt := range map[string]struct {
			request
			status int
		}{
			"with GET":              {request{"GET", path + "?" + good, "", nil}, 405},
			"with PUT":              {request{"PUT", path, good, nil}, 405},
			"as JSON":               {request{"POST", path, `{"token":"` + canary + `"}`, jsonType}, 400},
			"as multipart":          {request{"POST", path, good, header("Content-Type", "multipart/form-data; boundary=x")}, 400},
			"without a type":        {request{"POST", path, good, func(r *http.Request) { r.Header.Del("Content-Type") }}, 400},
			"of a garbled type":     {request{"POST", path, good, header("Content-Type", ";;")}, 400},
			"with a duplicate":      {request{"POST", path, good + "&token=" + canary + "&token=y", nil}, 400},
			"with two clients":      {request{"POST", path, good + "&client_id=" + canary, nil}, 400},
			"that is too long":      {request{"POST", path, good + "&x=" + long, nil}, 413},
			"with many fields":      {request{"POST", path, good + "&" + manyFields, nil}, 400},
			"badly encoded":         {request{"POST", path, good + "&x=%z" + canary, nil}, 400},
			"with semicolons":       {request{"POST", path, good + ";x=" + canary, nil}, 400},
			"with NUL":              {request{"POST", path, good + "&x=%00" + canary, nil}, 400},
			"with invalid UTF-8":    {request{"POST", path, good + "&x=%ff" + canary, nil}, 400},
			"with a NUL in a name":  {request{"POST", path, good + "&%00=1", nil}, 400},
			"with nothing":          {request{"POST", path, "", nil}, 401},
			"with a long client ID": {request{"POST", path, "token=x&grant_type=refresh_token&client_id=" + strings.Repeat("x", 10000), nil}, 401},
		} {
			if path == tokenPath && name == "with nothing" {
				tt.status = 400 // the grant type is checked first
			}
			tests[path+" "+name] = tt
		}
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			a := h.do(tt.method, tt.path, tt.body, tt.change)
			if a.status != tt.status {
				t.Fatalf("status %d, want %d; body %s", a.status, tt.status, a.body)
			}
			if strings.Contains(a.body, canary) {
				t.Errorf("the answer repeats what was sent: %s", a.body)
			}
			if a.json(t)["error"] == "" || a.header.Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("body %s, headers %v", a.body, a.header)
			}
			if (a.status == 405) != (a.header.Get("Allow") != "") {
				t.Errorf("Allow %q with status %d", a.header.Get("Allow"), a.status)
			}
		})
	}
	t.Logf("%d bad requests", len(tests))
	h.login("ada@example.edu")
	if s := fmt.Sprint(h.Requests(), h.dump()); strings.Contains(s, canary) {
		t.Error("the log or the state has the canary")
	}
}

// TestNoRedirects requests paths from which web servers often redirect. The query contains a value
// that the response must not repeat.
func TestNoRedirects(t *testing.T) {
	h := start(t, nil)
	const canary = "dev-code-CANARY"
	for _, path := range []string{"//", "/./", "/..", "//v2/oauth2/authorize", "/v2//oauth2/authorize", "/v2/./oauth2/authorize", "/x/../v2/oauth2/authorize",
		"/v2/oauth2/authorize/", "/v2/web/auth-code/", "/v2/oauth2", "/v2/oauth2/userinfo/", "/_dev", "/_dev//state", "/%2e/", "/style.css/"} {
		for _, method := range []string{"GET", "POST", "OPTIONS"} {
			a := h.do(method, path+"?code="+canary, "", nil)
			if a.status < 400 || a.header.Get("Location") != "" || strings.Contains(a.body, canary) || a.header.Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("%s %s: status %d, %v\n%s", method, path, a.status, a.header, a.body)
			}
		}
	}
}

func jsonType(r *http.Request) { r.Header.Set("Content-Type", "application/json") }

func host(name string) func(*http.Request) { return func(r *http.Request) { r.Host = name } }

func origin(value string) func(*http.Request) {
	return func(r *http.Request) { jsonType(r); r.Header.Set("Origin", value) }
}

func site(value string) func(*http.Request) {
	return func(r *http.Request) { jsonType(r); r.Header.Set("Sec-Fetch-Site", value) }
}

// TestGoodOrigins is the opposite: requests from this server's own pages are accepted.
func TestGoodOrigins(t *testing.T) {
	h := start(t, nil)
	_, port, err := net.SplitHostPort(h.http.Listener.Addr().String())
	testkit.Must(t, err)
	for name, change := range map[string]func(*http.Request){
		"curl":        jsonType,
		"own page":    func(r *http.Request) { origin(h.http.URL)(r); r.Header.Set("Sec-Fetch-Site", "same-origin") },
		"address bar": site("none"),
		"localhost":   func(r *http.Request) { jsonType(r); r.Host = "localhost:" + port },
		"IPv6":        func(r *http.Request) { jsonType(r); r.Host = "[::1]:" + port },
		"charset":     header("Content-Type", "application/json; charset=utf-8"),
	} {
		if a := h.do("POST", "/_dev/reset", "{}", change); a.status != http.StatusOK {
			t.Errorf("%s: status %d, body %s", name, a.status, a.body)
		}
	}
	if a := h.do("GET", authorizeQuery("dev_user", "ada@example.edu"), "", header("Sec-Fetch-Site", "cross-site")); a.status != http.StatusFound {
		t.Errorf("a login that another site began: status %d", a.status)
	}
}

// TestPeers calls the handler with remote addresses that a loopback listener never has.
func TestPeers(t *testing.T) {
	h := start(t, nil)
	for addr, want := range map[string]int{
		"127.0.0.1:1": 200, "127.9.9.9:1": 200, "[::1]:1": 200, "": 200,
		"192.0.2.1:1": 403, "[2001:db8::1]:1": 403, "[::ffff:192.0.2.1]:1": 403, "0.0.0.0:1": 403, "@": 403, "localhost:1": 403, "x": 403,
	} {
		for _, path := range []string{"/_dev/state", "/jwk.json", authorizeQuery()} {
			r := httptest.NewRequest("GET", path, nil)
			r.Host, r.RemoteAddr = "127.0.0.1", addr
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != want {
				t.Errorf("GET %s from %q: status %d, want %d", path, addr, w.Code, want)
			}
		}
	}
}

// FuzzHandler sends queries, forms and headers to every route. No request may panic, cause an
// internal error, or authenticate.
func FuzzHandler(f *testing.F) {
	s, err := Open(Config{Issuer: "http://127.0.0.1:9"})
	testkit.Must(f, err)
	var routes []route
	for _, rt := range append(s.table(), s.controls()...) {
		if !strings.HasSuffix(rt.path, "/fail") {
			rt.path = strings.TrimSuffix(rt.path, "{$}")
			routes = append(routes, rt)
		}
	}
	_, query, _ := strings.Cut(authorizeQuery("dev_user", "ada@example.edu"), "?")
	for i := range routes {
		f.Add(uint8(i), query, "grant_type=client_credentials&scope=openid&client_id="+ServiceClientID, "", "application/x-www-form-urlencoded")
		f.Add(uint8(i), "a=1&b=2", `{"token":"x"}`, "Basic eDp5", "application/json")
	}
	f.Fuzz(func(t *testing.T, which uint8, query, body, authorization, kind string) {
		rt := routes[int(which)%len(routes)]
		r := httptest.NewRequest(rt.methods[len(rt.methods)-1], rt.path, strings.NewReader(body))
		r.URL = &url.URL{Path: rt.path, RawQuery: query}
		r.Host, r.RemoteAddr = "127.0.0.1:9", "127.0.0.1:1"
		r.Header.Set("Authorization", authorization)
		r.Header.Set("Content-Type", kind)
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code == http.StatusInternalServerError || strings.Contains(w.Body.String(), "dev-at-") {
			t.Fatalf("%s %s?%s: status %d, body %s", r.Method, rt.path, query, w.Code, w.Body)
		}
	})
}
