package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/broker"
	"github.com/diaspora-streams/diaspora/internal/claims"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// The tokens of the tests. All contain canary, so that a single search of everything that was sent
// finds any leak.
const (
	canary       = "CANARY7f3a9c0e15b2d4"
	adaToken     = "dev-at-ada-" + canary
	bobToken     = "dev-at-bob-" + canary
	expiredToken = "dev-at-expired-" + canary
	outageToken  = "dev-at-outage-" + canary
	misconToken  = "dev-at-miscon-" + canary
	narrowToken  = "dev-at-narrow-" + canary
	nobodyToken  = "dev-at-nobody-" + canary
	nameToken    = "Ag" + canary + "x9" // has the form of Globus's own tokens, but could be a topic name

	ada = "8d2c4a51-2f6b-4c11-9d7e-3a1c5b7e9f01"
	bob = "8d2c4a51-2f6b-4c11-9d7e-3a1c5b7e9f02"
)

// identities authenticates the tests' tokens.
type identities struct{}

func (identities) Authenticate(_ context.Context, token globus.Secret) (globus.TokenInfo, error) {
	switch token {
	case nobodyToken:
		return globus.TokenInfo{}, nil
	case adaToken, nameToken:
		return globus.TokenInfo{Identity: globus.Identity{Subject: ada}}, nil
	case bobToken:
		return globus.TokenInfo{Identity: globus.Identity{Subject: bob}}, nil
	case narrowToken:
		return globus.TokenInfo{}, &globus.RefusedError{Reason: "it lacks the scope", MissingScope: "https://auth.globus.org/scopes/x/all"}
	case misconToken:
		return globus.TokenInfo{}, fmt.Errorf("introspect token: %w: status 501 <script>: %w", globus.ErrMisconfigured, globus.ErrClientRefused)
	case outageToken:
		return globus.TokenInfo{}, fmt.Errorf("introspect at 10.1.2.3: %w", globus.ErrUnavailable)
	}
	return globus.TokenInfo{}, &globus.RefusedError{Reason: "the access token has expired"}
}

// openClaims opens a real claims.Service on a broker of its own, in memory.
func openClaims(t *testing.T, changes ...func(*claims.Config)) *claims.Service {
	t.Helper()
	b, err := broker.Open(broker.Config{Advertise: "127.0.0.1:9092"})
	testkit.Must(t, err)
	cfg := claims.Config{Admin: b.AdminOpts()}
	for _, change := range changes {
		change(&cfg)
	}
	service, err := claims.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(errors.Join(err, b.Close()))
	}
	t.Cleanup(func() {
		if err := errors.Join(service.Close(), b.Close()); err != nil {
			t.Error(err)
		}
	})
	return service
}

// logBuffer collects diagnostics, to be searched at the end of the test.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// endpoint is a running ACL endpoint.
type endpoint struct {
	t       *testing.T
	url     string
	addr    string
	logs    *logBuffer
	secrets []string // must not appear in any response or log
}

// withClaims makes an endpoint use c. An endpoint without it fails the test when claims are used.
func withClaims(c Claims) func(*Config) { return func(cfg *Config) { cfg.Claims = c } }

// start serves the ACL endpoint on loopback until the test ends. The test then fails if a token
// leaked anywhere.
func start(t *testing.T, changes ...func(*Config)) *endpoint {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	logs := &logBuffer{}
	cfg := Config{
		Claims:        nobodysClaims{t},
		Authenticator: identities{},
		Discovery:     diaspora.Discovery{Version: "test", Brokers: []string{"127.0.0.1:9092"}, Security: "plaintext", MaxEventBytes: 1 << 20},
		PublicURL:     "http://" + l.Addr().String(),
		Diagnostics:   slog.New(slog.NewTextHandler(logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, change := range changes {
		change(&cfg)
	}
	srv, err := New(cfg)
	testkit.Must(t, err)
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ctx, l) }()
	e := &endpoint{t, "http://" + l.Addr().String(), l.Addr().String(), logs, []string{canary}}
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Errorf("Serve = %v, want nil", err)
		}
		if log := logs.String(); e.leaks(log) {
			t.Errorf("a token is in the log:\n%s", log)
		}
	})
	return e
}

// leaks reports whether text contains a secret.
func (e *endpoint) leaks(text string) bool {
	return slices.ContainsFunc(e.secrets, func(secret string) bool { return strings.Contains(text, secret) })
}

type answer struct {
	status int
	header http.Header
	body   string
}

// do sends a request; headers are pairs of name and value, and an empty Host
// header is not sent.
func (e *endpoint) do(method, target, body string, headers ...string) answer {
	e.t.Helper()
	req, err := http.NewRequestWithContext(e.t.Context(), method, e.url+target, strings.NewReader(body))
	testkit.Must(e.t, err)
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			req.Host = headers[i+1]
			continue
		}
		req.Header.Add(headers[i], headers[i+1])
	}
	resp, err := client.Do(req)
	testkit.Must(e.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	testkit.Must(e.t, err)
	a := answer{resp.StatusCode, resp.Header, string(b)}
	e.checkAnswer(method+" "+target, a)
	return a
}

// client does not follow redirects and does not reuse connections, so that each request is
// independent.
var client = &http.Client{
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	Transport:     &http.Transport{DisableKeepAlives: true, DisableCompression: true},
}

// checkAnswer checks what must be true of every response.
func (e *endpoint) checkAnswer(what string, a answer) {
	e.t.Helper()
	if e.leaks(a.body) || e.leaks(fmt.Sprint(a.header)) {
		e.t.Errorf("%s: a token is in the answer: %v\n%s", what, a.header, a.body)
	}
	for name, want := range map[string]string{
		"X-Content-Type-Options": "nosniff",
		"Referrer-Policy":        "no-referrer",
		"X-Frame-Options":        "DENY",
		"Vary":                   "Accept",

		"Cross-Origin-Opener-Policy":   "same-origin",
		"Cross-Origin-Resource-Policy": "same-origin",
	} {
		if got := a.header.Get(name); got != want {
			e.t.Errorf("%s: header %s = %q, want %q", what, name, got, want)
		}
	}
	if csp := a.header.Get("Content-Security-Policy"); !strings.Contains(csp, "frame-ancestors 'none'") || strings.Contains(csp, "unsafe") {
		e.t.Errorf("%s: Content-Security-Policy = %q", what, csp)
	}
	if got := a.header.Get("Cache-Control"); got != "no-store" && !strings.Contains(what, "/assets/") {
		e.t.Errorf("%s: Cache-Control = %q, want no-store", what, got)
	}
}

func (a answer) problem(t *testing.T) diaspora.Problem {
	t.Helper()
	if got := a.header.Get("Content-Type"); got != typeProblem {
		t.Errorf("Content-Type = %q, want %s; body %s", got, typeProblem, a.body)
	}
	var p diaspora.Problem
	dec := json.NewDecoder(strings.NewReader(a.body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&p); err != nil {
		t.Fatalf("the problem is not JSON: %v\n%s", err, a.body)
	}
	if p.Status != a.status || p.Title == "" || p.Detail == "" || !strings.HasPrefix(p.Type, "/problems/") || p.Type == "/problems/" {
		t.Errorf("status %d with an incomplete problem: %+v", a.status, p)
	}
	return p
}

func form(subject, token, topic string) string {
	return url.Values{"subject": {subject}, "token": {token}, "topic": {topic}}.Encode()
}

func TestClaimListShowRelease(t *testing.T) {
	e := start(t, withClaims(openClaims(t)))
	auth := []string{"Authorization", "Bearer " + adaToken, "Content-Type", "application/json"}

	a := e.do("POST", "/v1/topics", `{"name":"weather","partitions":3,"description":"Wetter für Ada"}`, auth...)
	if a.status != 201 || a.header.Get("Location") != "/v1/topics/weather" || !strings.Contains(a.body, `"created": true`) || !strings.Contains(a.body, "Wetter für Ada") {
		t.Errorf("first claim: %d %v\n%s", a.status, a.header, a.body)
	}
	a = e.do("POST", "/v1/topics", `{"name":"weather"}`, auth...)
	if a.status != 200 || strings.Contains(a.body, "created") {
		t.Errorf("second claim: %d\n%s", a.status, a.body)
	}
	a = e.do("POST", "/v1/topics", `{"name":"weather"}`, "Authorization", "bearer "+bobToken, "Content-Type", "application/json; charset=UTF-8")
	if p := a.problem(t); a.status != 409 || p.Topic != "weather" {
		t.Errorf("claim of a taken topic: %d %+v", a.status, p)
	}
	a = e.do("GET", "/v1/topics", "", auth[:2]...)
	var list diaspora.TopicList
	if err := json.Unmarshal([]byte(a.body), &list); err != nil || a.status != 200 || len(list.Topics) != 1 || list.Topics[0].Owner != ada || list.Topics[0].Partitions != 3 {
		t.Errorf("list: %d %v\n%s", a.status, err, a.body)
	}
	if a = e.do("GET", "/v1/topics", "", "Authorization", "Bearer "+bobToken); !strings.Contains(a.body, `"topics": []`) {
		t.Errorf("empty list: %d\n%s", a.status, a.body)
	}
	if a = e.do("GET", "/v1/topics/weather", "", auth[:2]...); a.status != 200 || !strings.Contains(a.body, ada) {
		t.Errorf("show: %d\n%s", a.status, a.body)
	}
	if a = e.do("GET", "/v1/topics/weather", "", "Authorization", "Bearer "+bobToken); a.status != 403 {
		t.Errorf("show to another: %d\n%s", a.status, a.body)
	}
	if a = e.do("DELETE", "/v1/topics/weather", "", "Authorization", "Bearer "+bobToken); a.status != 403 {
		t.Errorf("release by another: %d\n%s", a.status, a.body)
	}
	if a = e.do("DELETE", "/v1/topics/weather", "", auth[:2]...); a.status != 204 || a.body != "" {
		t.Errorf("release: %d\n%s", a.status, a.body)
	}
	if a = e.do("GET", "/v1/topics/weather", "", auth[:2]...); a.status != 404 {
		t.Errorf("show after release: %d\n%s", a.status, a.body)
	}
	if log := e.logs.String(); !strings.Contains(log, `route="POST /v1/topics"`) || !strings.Contains(log, "principal="+ada) {
		t.Errorf("access log without route or principal:\n%s", log)
	}
}

// TestShowIdentity checks that the owner of a token can find out whose it is.
func TestShowIdentity(t *testing.T) {
	e := start(t)
	a := e.do("GET", "/v1/identity", "", "Authorization", "Bearer "+adaToken)
	var got globus.Identity
	if err := json.Unmarshal([]byte(a.body), &got); err != nil || a.status != 200 || got.Subject != ada {
		t.Errorf("identity: %d %v\n%s", a.status, err, a.body)
	}
}

func TestClaimByForm(t *testing.T) {
	e := start(t, withClaims(openClaims(t)))
	const encoded = "application/x-www-form-urlencoded"
	browser := []string{"Content-Type", encoded, "Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "Origin", "null", "Sec-Fetch-Site", "same-origin"}
	for _, tt := range []struct {
		name    string
		body    string
		headers []string
		status  int
		kind    string
		want    []string
	}{
		{"curl", form(ada, adaToken, "weather"), []string{"Content-Type", encoded, "Accept", "*/*"}, 201, "text/plain; charset=utf-8", []string{"Topic weather is yours. Its events are kept for 7 days.", "/acl?subject=" + ada + "&topic=weather", "curl -sS --data-urlencode token@-"}},
		{"curl again", form(ada, adaToken, "weather"), []string{"Content-Type", encoded}, 200, "text/plain; charset=utf-8", []string{"Topic weather was yours already."}},
		{"browser", form(ada, adaToken, "snow"), browser, 201, "text/html; charset=utf-8", []string{"<code>snow</code> is yours", "<dt>Events are kept</dt><dd>for 7 days</dd>", `id="form-link"`}},
		{"browser again", form(ada, adaToken, "snow"), browser, 200, "text/html; charset=utf-8", []string{"was yours already"}},
		{"JSON", `{"subject":"` + ada + `","token":"` + adaToken + `","topic":"rain"}`, []string{"Content-Type", "application/json"}, 201, "application/json", []string{`"name": "rain"`, `"curl": "printf`, `"form": "http`}},
		{"token in the header", `{"subject":"` + ada + `","topic":"hail"}`, []string{"Content-Type", "application/json", "Authorization", "Bearer " + adaToken}, 201, "application/json", []string{`"name": "hail"`}},
		{"form answered in JSON", form(ada, adaToken, "fog"), []string{"Content-Type", encoded, "Accept", "application/json"}, 201, "application/json", []string{`"name": "fog"`}},
		{"pasted with space around", form(" "+strings.ToUpper(ada)+"\n", adaToken+"\n", "\tice "), []string{"Content-Type", encoded}, 201, "text/plain; charset=utf-8", []string{"Topic ice is yours."}},
	} {
		a := e.do("POST", "/acl", tt.body, tt.headers...)
		if a.status != tt.status || a.header.Get("Content-Type") != tt.kind {
			t.Errorf("%s: status %d, type %q, want %d, %q\n%s", tt.name, a.status, a.header.Get("Content-Type"), tt.status, tt.kind, a.body)
		}
		for _, want := range tt.want {
			if !strings.Contains(a.body, want) {
				t.Errorf("%s: the answer lacks %q:\n%s", tt.name, want, a.body)
			}
		}
	}
}

func TestDiscoveryHealthLanding(t *testing.T) {
	service := openClaims(t)
	e := start(t, func(cfg *Config) {
		cfg.Ready = map[string]func(context.Context) error{"ledger": func(ctx context.Context) error {
			_, err := service.Topics(ctx, ada)
			return err
		}}
	})
	var d diaspora.Discovery
	if a := e.do("GET", "/.well-known/diaspora", ""); a.status != 200 || json.Unmarshal([]byte(a.body), &d) != nil || len(d.Brokers) != 1 {
		t.Errorf("discovery: %d\n%s", a.status, a.body)
	}
	if a := e.do("GET", "/healthz", "", "Host", "10.0.0.1:9"); a.status != 200 || !strings.Contains(a.body, `"ledger": "ok"`) {
		t.Errorf("health: %d\n%s", a.status, a.body)
	}
	if a := e.do("GET", "/", "", "Accept", "text/html"); a.status != 200 || !strings.Contains(a.body, "127.0.0.1:9092") || !strings.Contains(a.body, e.url) {
		t.Errorf("landing: %d\n%s", a.status, a.body)
	}
	if a := e.do("HEAD", "/acl", ""); a.status != 200 || a.body != "" {
		t.Errorf("HEAD /acl: %d %q", a.status, a.body)
	}
}

// TestShowForm checks that the query fills in the form, except for the token, which only the page's
// script reads.
func TestShowForm(t *testing.T) {
	e := start(t)
	a := e.do("GET", "/acl?subject="+ada+"&topic=weather&utm_source=mail", "")
	for _, want := range []string{`name="subject" value="` + ada + `"`, `name="token" type="password"`, `name="topic" value="weather"`, ">Subject Claim<", ">Access Token<", ">Topic Name<", `method="post" action="/acl"`} {
		if a.status != 200 || !strings.Contains(a.body, want) {
			t.Errorf("%d, the form lacks %q:\n%s", a.status, want, a.body)
		}
	}
	const warning = "The address had your access token in it"
	if strings.Contains(a.body, warning) {
		t.Error("the form warns of a token that is not there")
	}
	a = e.do("GET", "/acl?topic=weather&token="+adaToken, "")
	if a.status != 200 || !strings.Contains(a.body, warning) || !strings.Contains(a.body, `value="weather"`) {
		t.Errorf("token in the query: %d\n%s", a.status, a.body)
	}
	a = e.do("GET", "/acl?topic=%22%3E%3Cscript%3Ealert(1)%3C/script%3E&subject=%22onfocus=alert(1)%20", "")
	if strings.Contains(a.body, "<script>") || strings.Contains(a.body, `"onfocus`) {
		t.Errorf("markup came through:\n%s", a.body)
	}
}

// TestAssets checks that the page's files have the right types, and that browsers load them only
// once.
func TestAssets(t *testing.T) {
	e := start(t)
	for name, contentType := range assetTypes {
		a := e.do("GET", "/assets/"+name, "")
		if a.status != 200 || a.header.Get("Content-Type") != contentType || len(a.body) == 0 {
			t.Errorf("%s: %d, type %q, %d bytes", name, a.status, a.header.Get("Content-Type"), len(a.body))
		}
		if again := e.do("GET", "/assets/"+name, "", "If-None-Match", a.header.Get("ETag")); again.status != 304 || again.body != "" {
			t.Errorf("%s again: %d, %d bytes", name, again.status, len(again.body))
		}
	}
	if a := e.do("GET", "/assets/layout.html", ""); a.status != 404 {
		t.Errorf("an unknown asset: %d", a.status)
	}
}

// nobodysClaims must not be called.
type nobodysClaims struct{ t *testing.T }

func (c nobodysClaims) called() error {
	c.t.Error("the claims were asked")
	return diaspora.ErrPermission
}

func (c nobodysClaims) Claim(context.Context, string, diaspora.ClaimRequest) (diaspora.Topic, error) {
	return diaspora.Topic{}, c.called()
}

func (c nobodysClaims) Topic(context.Context, string, string) (diaspora.Topic, error) {
	return diaspora.Topic{}, c.called()
}

func (c nobodysClaims) Topics(context.Context, string) (diaspora.TopicList, error) {
	return diaspora.TopicList{}, c.called()
}

func (c nobodysClaims) Usage(context.Context, []string) (map[string]diaspora.TopicUsage, error) {
	return nil, c.called()
}

func (c nobodysClaims) SetTopic(context.Context, string, string, diaspora.TopicSettings) (diaspora.TopicChange, error) {
	return diaspora.TopicChange{}, c.called()
}

func (c nobodysClaims) Share(context.Context, string, string, diaspora.GrantRequest) (diaspora.Grant, error) {
	return diaspora.Grant{}, c.called()
}

func (c nobodysClaims) Grants(context.Context, string, string) ([]diaspora.Grant, error) {
	return nil, c.called()
}

func (c nobodysClaims) Log(context.Context, string, string) ([]diaspora.TopicEvent, error) {
	return nil, c.called()
}

func (c nobodysClaims) Readers(context.Context, string, string) ([]diaspora.Reader, error) {
	return nil, c.called()
}

func (c nobodysClaims) Accept(context.Context, string, string) (diaspora.Topic, error) {
	return diaspora.Topic{}, c.called()
}

func (c nobodysClaims) Retire(context.Context, string, string) (diaspora.Topic, error) {
	return diaspora.Topic{}, c.called()
}

func (c nobodysClaims) Restore(context.Context, string, string) (diaspora.Topic, error) {
	return diaspora.Topic{}, c.called()
}

func (c nobodysClaims) Unshare(context.Context, string, string, string) error { return c.called() }
func (c nobodysClaims) Offer(context.Context, string, string, string) error   { return c.called() }

func (c nobodysClaims) IssueKey(context.Context, string, diaspora.AccessKeyRequest) (diaspora.NewAccessKey, error) {
	return diaspora.NewAccessKey{}, c.called()
}

func (c nobodysClaims) Keys(context.Context, string) ([]diaspora.AccessKey, error) {
	return nil, c.called()
}

func (c nobodysClaims) Key(context.Context, string, string) (diaspora.AccessKey, error) {
	return diaspora.AccessKey{}, c.called()
}

func (c nobodysClaims) AuthenticateKey(context.Context, string, globus.Secret) (diaspora.AccessKey, error) {
	return diaspora.AccessKey{}, c.called()
}

func (c nobodysClaims) RevokeKey(context.Context, string, string) error { return c.called() }
func (c nobodysClaims) Block(context.Context, string, diaspora.BlockRequest) (diaspora.Blocked, error) {
	return diaspora.Blocked{}, c.called()
}

func (c nobodysClaims) Blocked(context.Context, string) ([]diaspora.Blocked, error) {
	return nil, c.called()
}

func (c nobodysClaims) Unblock(context.Context, string, string) error { return c.called() }
func (c nobodysClaims) Release(context.Context, string, string) error { return c.called() }

// TestQueries: a client that puts fields into the URL is told where they belong. It is told about
// tokens only if one of the fields may be one.
func TestQueries(t *testing.T) {
	e := start(t)
	long := adaToken + adaToken // as long as Globus makes them
	for target, token := range map[string]bool{
		"POST /acl?sub=":                          false,
		"POST /acl?sub=" + ada:                    false,
		"POST /acl?subject=" + ada + "&topic=w":   false,
		"GET /v1/topics?limit=10":                 false,
		"POST /acl?sub=" + ada + "&token=x":       true,
		"POST /acl?" + long:                       true,
		"GET /v1/topics?access_token=" + adaToken: true,
		"GET /v1/topics?key=" + long:              true,
		"GET /v1/topics?%zz":                      true,
	} {
		method, path, _ := strings.Cut(target, " ")
		a := e.do(method, path, "", "Content-Type", typeForm)
		p := a.problem(t)
		if a.status != http.StatusBadRequest || strings.Contains(p.Hint, "revoke") != token {
			t.Errorf("%s: %d, hint %q, want 400, and a word about tokens: %v", target, a.status, p.Hint, token)
		}
		if strings.HasPrefix(path, "/acl") && !strings.Contains(p.Detail, "subject, token, topic") {
			t.Errorf("%s: %q does not say what is missing", target, p.Detail)
		}
	}
}
