package diaspora

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/aclclient"
	"github.com/diaspora-streams/diaspora/internal/terminal"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// endpoint serves as an ACL endpoint, and returns a client of it that has a token.
func endpoint(t testing.TB, handler http.HandlerFunc) (*Client, *httptest.Server) {
	t.Helper()
	s := httptest.NewServer(handler)
	t.Cleanup(s.Close)
	return newClient(t, Config{URL: s.URL}), s
}

func newClient(t testing.TB, cfg Config) *Client {
	t.Helper()
	cfg.TokenSource = canarySource()
	c, err := NewClient(cfg)
	testkit.Must(t, err)
	t.Cleanup(c.closeIdle)
	return c
}

func canarySource() globus.TokenSource {
	return globus.StaticToken(globus.Token{AccessToken: canary, Expiry: time.Now().Add(time.Hour)})
}

// withoutCanary fails if an error contains the token.
func withoutCanary(t testing.TB, err error) {
	t.Helper()
	if strings.Contains(fmt.Sprintf("%v %+v %#v", err, err, err), canary) {
		t.Errorf("the error holds the token: %v", err)
	}
}

// calls is every method of a Client.
func calls(c *Client) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"Discover": func(ctx context.Context) error { _, err := c.Discover(ctx); return err },
		"Identity": func(ctx context.Context) error { _, err := c.Identity(ctx); return err },
		"Claim":    func(ctx context.Context) error { _, err := c.Claim(ctx, ClaimRequest{Name: "weather"}); return err },
		"Release":  func(ctx context.Context) error { return c.Release(ctx, "weather") },
		"Topics":   func(ctx context.Context) error { _, err := c.Topics(ctx); return err },
		"Topic":    func(ctx context.Context) error { _, err := c.Topic(ctx, "weather"); return err },
	}
}

// TestStatuses has an endpoint answer with every status that has a meaning, once as a problem
// document and once as a foreign server would.
func TestStatuses(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]error{
		400: ErrInvalid, 401: ErrUnauthenticated, 403: ErrPermission, 404: ErrNotFound, 405: ErrInvalid,
		406: ErrInvalid, 408: ErrInvalid, 409: ErrConflict, 410: ErrNotFound, 413: ErrInvalid, 414: ErrInvalid,
		415: ErrInvalid, 418: ErrInvalid, 421: ErrInvalid, 422: ErrInvalid, 429: ErrUnavailable, 431: ErrInvalid,
		500: ErrUnavailable, 501: ErrInvalid, 502: ErrUnavailable, 503: ErrUnavailable, 504: ErrUnavailable,
		300: ErrInvalid, 301: ErrInvalid, 302: ErrInvalid, 303: ErrInvalid, 304: ErrInvalid, 307: ErrInvalid, 308: ErrInvalid,
	} {
		problem := true
		c, _ := endpoint(t, func(w http.ResponseWriter, r *http.Request) {
			if problem {
				w.Header().Set("Content-Type", "application/problem+json")
				w.WriteHeader(status)
				io.WriteString(w, `{"title":"A title","status":200,"detail":"what went wrong","hint":"do this","topic":"weather"}`)
				return
			}
			w.WriteHeader(status)
			io.WriteString(w, "<html>secret body</html>")
		})
		err := c.Release(within(t), "weather") // not retried
		var p *ProblemError
		if !errors.Is(err, want) || !errors.As(err, &p) || p.Status != status && status != 304 || !strings.Contains(err.Error(), "what went wrong") {
			if status != 304 { // has no body
				t.Errorf("status %d: %v, want a ProblemError with %v", status, err, want)
			}
		}
		hint := "do this"
		if status == 401 {
			hint = defaultLogin
		}
		if got := Hint(err); status != 304 && got != hint {
			t.Errorf("status %d: hint %q, want %q", status, got, hint)
		}
		problem = false
		err = c.Release(within(t), "weather")
		if !errors.Is(err, want) || strings.Contains(err.Error(), "secret body") {
			t.Errorf("status %d without a problem: %v, want %v and not the body", status, err, want)
		}
		if !strings.HasPrefix(err.Error(), `release topic "weather": `) {
			t.Errorf("status %d without a problem: %v, which does not say what was attempted", status, err)
		}
		withoutCanary(t, err)
	}
}

// TestRepeats counts how often a call is retried when the endpoint has temporary problems.
func TestRepeats(t *testing.T) {
	t.Parallel()
	for status, again := range map[int]bool{429: true, 502: true, 503: true, 504: true, 400: false, 401: false, 409: false, 500: false} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			var tries atomic.Int32
			c, _ := endpoint(t, func(w http.ResponseWriter, r *http.Request) {
				if tries.Add(1) == 1 {
					w.WriteHeader(status)
					return
				}
				w.Header().Set("Content-Type", "application/json")
				io.WriteString(w, `{"name":"weather","brokers":["127.0.0.1:1"],"security":"plaintext"}`)
			})
			for name, call := range calls(c) {
				tries.Store(0)
				want := int32(1)
				if again && name != "Release" { // Release is not retried: a second one would fail with ErrNotFound
					want = 2
				}
				err := call(within(t))
				if got := tries.Load(); got != want || (err == nil) != (want == 2) {
					t.Errorf("%s was tried %d times, want %d: %v", name, got, want, err)
				}
			}
		})
	}
}

// TestRepeatsEnd fails when a call is retried forever.
func TestRepeatsEnd(t *testing.T) {
	t.Parallel()
	var tries atomic.Int32
	c, _ := endpoint(t, func(w http.ResponseWriter, r *http.Request) {
		tries.Add(1)
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	if _, err := c.Topics(within(t)); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Topics = %v, want ErrUnavailable", err)
	}
	if got := tries.Load(); got != aclclient.MaxRepeats+1 {
		t.Errorf("tried %d times, want %d", got, aclclient.MaxRepeats+1)
	}
}

func TestAnswersThatAreNone(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]struct{ contentType, body string }{
		"a page":           {"text/html", "<html>secret body</html>"},
		"JSON as text":     {"text/plain", "{}"},
		"no type":          {"", "{}"},
		"a strange type":   {"application/json/x; =", "{}"},
		"not JSON":         {"application/json", "secret body"},
		"nothing":          {"application/json", ""},
		"cut":              {"application/json", `{"topics":[`},
		"more than one":    {"application/json", `{} {}`},
		"another type":     {"application/json", `[1,2,3]`},
		"a member's type":  {"application/json", `{"name":17,"topics":{},"group":1,"username":1,"brokers":1}`},
		"a long type":      {strings.Repeat("x", 1000), "{}"},
		"more than bounds": {"application/json", `{"x":"` + strings.Repeat("x", aclclient.MaxAnswerBytes) + `"}`},
	} {
		c, _ := endpoint(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header()["Content-Type"] = []string{answer.contentType}
			io.WriteString(w, answer.body)
		})
		for method, call := range calls(c) {
			if method == "Release" && name != "more than bounds" {
				continue // its response has no content
			}
			err := call(within(t))
			if !errors.Is(err, ErrInvalid) || len(err.Error()) > 600 {
				t.Errorf("%s: %s = %.600v, want ErrInvalid in a few words", name, method, err)
			} else if strings.Contains(err.Error(), "secret body") {
				t.Errorf("%s: %s = %v, which shows the body", name, method, err)
			}
		}
	}
}

// TestLongProblem fails when text from the endpoint goes into an error without a length limit.
func TestLongProblem(t *testing.T) {
	t.Parallel()
	c, _ := endpoint(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusConflict)
		long := strings.Repeat("ü", 5000)
		fmt.Fprintf(w, `{"title":"%s","detail":"%s","hint":"%s","topic":"%s"}`, long, long, long, long)
	})
	err := c.Release(within(t), "weather")
	if !errors.Is(err, ErrConflict) || len(err.Error()) > 1200 { // reason and hint
		t.Errorf("the error has %d bytes", len(err.Error()))
	}
}

// TestRedirects fails when a token or a claim follows a redirect, or when the error quotes parts of
// the target that may be secret.
func TestRedirects(t *testing.T) {
	t.Parallel()
	var followed atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { followed.Add(1) }))
	defer other.Close()
	for status := range map[int]bool{301: true, 302: true, 303: true, 307: true, 308: true} {
		for _, location := range []string{other.URL + "/x?access_token=secret1#secret2", "/elsewhere?q=secret1", "http://user:secret1@127.0.0.1:1/", "http://%zz/secret1"} {
			var asked atomic.Int32
			c, _ := endpoint(t, func(w http.ResponseWriter, r *http.Request) {
				asked.Add(1)
				w.Header().Set("Location", location)
				w.WriteHeader(status)
			})
			for name, call := range calls(c) {
				asked.Store(0)
				err := call(within(t))
				if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "redirects") || strings.Contains(err.Error(), "secret") {
					t.Errorf("%s, redirected with %d to %q = %v", name, status, location, err)
				}
				if got := asked.Load(); got != 1 {
					t.Errorf("%s, redirected with %d, asked %d times", name, status, got)
				}
			}
		}
	}
	if got := followed.Load(); got != 0 {
		t.Errorf("%d redirects were followed", got)
	}
}

// TestWhereTokensGo fails when a token is sent where others could read it, or where none is needed.
func TestWhereTokensGo(t *testing.T) {
	t.Parallel()
	var tokens atomic.Int32
	handler := func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "Bearer "+canary {
			tokens.Add(1)
		}
		if strings.Contains(r.URL.String(), canary) {
			t.Error("a token in a URL")
		}
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"name":"weather","brokers":["127.0.0.1:1"],"security":"plaintext"}`)
	}
	c, _ := endpoint(t, handler)
	for name, call := range calls(c) {
		tokens.Store(0)
		if err := call(within(t)); err != nil {
			t.Errorf("%s = %v", name, err)
		}
		if got := tokens.Load(); (got == 1) != (name != "Discover") {
			t.Errorf("%s sent the token %d times", name, got)
		}
	}

	// Beyond loopback, without TLS. The name does not resolve, so a call that tries to connect
	// returns ErrUnavailable.
	for name, call := range calls(newClient(t, Config{URL: "http://diaspora.invalid"})) {
		err := call(within(t))
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "not https") {
			t.Errorf("%s over plain http = %v, want ErrInvalid", name, err)
		}
		withoutCanary(t, err)
	}
	if _, err := newClient(t, Config{URL: "http://diaspora.invalid", InsecureAllowPlaintext: true}).Discover(within(t)); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Discover over plain http that was allowed = %v, want ErrUnavailable", err)
	}
}

func TestClientWithoutAToken(t *testing.T) {
	t.Parallel()
	_, s := endpoint(t, func(w http.ResponseWriter, r *http.Request) { t.Error("a request was sent") })
	for name, source := range map[string]globus.TokenSource{
		"none":    nil,
		"expired": globus.StaticToken(globus.Token{AccessToken: canary, Expiry: time.Now().Add(-time.Hour)}),
	} {
		c, err := NewClient(Config{URL: s.URL, TokenSource: source})
		testkit.Must(t, err)
		_, err = c.Topics(within(t))
		if !errors.Is(err, ErrUnauthenticated) || Hint(err) != defaultLogin {
			t.Errorf("%s: Topics = %v, want ErrUnauthenticated and what to do", name, err)
		}
		withoutCanary(t, err)
	}
}

func TestEndpointThatIsAway(t *testing.T) {
	t.Parallel()
	c, s := endpoint(t, func(w http.ResponseWriter, r *http.Request) {})
	s.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err := c.Release(ctx, "weather") // retried: after a refused connection, nothing has happened
	if !errors.Is(err, ErrUnavailable) && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Release while the endpoint is away = %v, want ErrUnavailable", err)
	}
	withoutCanary(t, err)

	waiting := make(chan struct{}, 1)
	c, _ = endpoint(t, func(w http.ResponseWriter, r *http.Request) {
		waiting <- struct{}{}
		<-r.Context().Done()
	})
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	go func() { <-waiting; cancel() }()
	if _, err := c.Topics(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Topics whose context ends = %v, want context.Canceled", err)
	}

	c, _ = endpoint(t, func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) })
	if err := c.Release(within(t), "weather"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Release when the connection breaks = %v, want ErrUnavailable", err)
	}
}

// TestBadNames fails when a malformed name changes which resource is requested.
func TestBadNames(t *testing.T) {
	t.Parallel()
	c, _ := endpoint(t, func(w http.ResponseWriter, r *http.Request) {
		if p := r.URL.EscapedPath(); strings.Count(p, "/") != 3 || !strings.HasPrefix(p, "/v1/topics/") || p == "/v1/topics/" {
			t.Errorf("the path is %q", p)
		}
		w.WriteHeader(http.StatusNotFound)
	})
	for _, name := range []string{"", ".", "..", "a/b", "../identity", "a?b", "a#b", "a%2fb", "ünï", strings.Repeat("x", 250), "_diaspora_ledger"} {
		release := c.Release(within(t), name)
		_, show := c.Topic(within(t), name)
		for what, err := range map[string]error{"Release": release, "Topic": show} {
			if !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrInvalid) {
				t.Errorf("%s(%.20q) = %v, want ErrNotFound or ErrInvalid", what, name, err)
			}
		}
		if _, err := c.Claim(within(t), ClaimRequest{Name: name}); !errors.Is(err, ErrInvalid) {
			t.Errorf("Claim(%.20q) = %v, want ErrInvalid", name, err)
		}
	}
}

func TestNewClientThatCannotBe(t *testing.T) {
	t.Parallel()
	for _, raw := range []string{"", "diaspora.example.org", "ftp://host", "https://", "https://user:secret@host", "http://%zz", "https://h:b", "ftp://host/acl?token=secret#secret", "ftp://secret@host"} {
		_, err := NewClient(Config{URL: raw})
		if !errors.Is(err, ErrInvalid) || strings.Contains(err.Error(), "secret") {
			t.Errorf("NewClient(%q) = %v, want ErrInvalid that shows no secret", raw, err)
		}
	}
	for _, raw := range []string{"http://h", "http://h/", " http://h/acl\n", "http://h/acl/", "http://h/acl?topic=x#token=secret", "http://h/.well-known/diaspora"} {
		c, err := NewClient(Config{URL: raw})
		if err != nil || c.base.String() != "http://h" {
			t.Errorf("NewClient(%q) = %v, %v, want one of http://h", raw, c, err)
		}
	}
}

// TestOneQuestionKeepsNoConnection fails when a program keeps its connection to the ACL endpoint
// after it has fetched the discovery document. A job of many such programs would use up all
// connections.
func TestOneQuestionKeepsNoConnection(t *testing.T) {
	t.Parallel()
	var open, asked atomic.Int32
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"brokers": ["127.0.0.1:1"], "security": "plaintext", "globus": {"issuer": "https://auth.example.org", "client_id": "c", "resource_server": "r", "scope": "s"}, "groups": "open", "max_event_bytes": 1000000, "subject": "1168fe43-ef48-54e0-8aeb-e0dc24146888"}`)
	}))
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			open.Add(1)
		case http.StateClosed:
			open.Add(-1)
		}
	}
	s.Start()
	defer s.Close()
	cfg := Config{URL: s.URL, TokenSource: canarySource()}
	f, err := cfg.resolve(within(t))
	testkit.Must(t, err)
	if _, _, err := f.Config.spoolSubject(within(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the connections to end", func() bool { return asked.Load() == 2 && open.Load() == 0 })
}

// Responses as the service sends them.
const (
	goodIdentity  = `{"subject":"1168fe43-ef48-54e0-8aeb-e0dc24146888","username":"ada@example.edu","name":"Ada 日本"}`
	goodTopic     = `{"name":"weather","owner":"1168fe43-ef48-54e0-8aeb-e0dc24146888","partitions":1,"description":"Wetter für Ada"}`
	goodKey       = `{"id":"key-abcdefghij234567","name":"laptop","owner":"1168fe43-ef48-54e0-8aeb-e0dc24146888","topics":["weather"],"read":true,"secret":"dks_0123456789abcdefghijABCDEFGHIJ_-0123456789a"}`
	goodDiscovery = `{"version":"v1.2.3+dirty (a build)","brokers":["a.example.org:9092","[::1]:9092"],"security":"tls","token_url":"https://a.example.org/v1/token",
		"globus":{"issuer":"https://auth.globus.org","client_id":"4b116d3c-1703-4f8f-9f6f-39921e5864df","resource_server":"diaspora.example.org",
		"scope":"urn:globus:auth:scope:diaspora.example.org:all[*https://auth.globus.org/scopes/x/y other]"}}`
)

// TestAnswersAreChecked puts text that a service never sends into each field of each response: line
// feeds, which would add settings to files, escape sequences, and text that is too long. No method
// may return such text to its caller.
func TestAnswersAreChecked(t *testing.T) {
	t.Parallel()
	answer := ""
	c, _ := endpoint(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, answer)
	})
	list := func(name, item string) string { return fmt.Sprintf(`{%q:[%s]}`, name, item) }
	bad := []string{"x\nmetric.reporters=evil", "x\r", "\x1b]0;owned\a", "\u009b31m", "x\u2028y", strings.Repeat("x", 16<<10)}
	strict := append([]string{`x" evil="`, "a b", "a\u202eb", "ä", "a\\nb"}, bad...)
	for _, tt := range []struct {
		name   string
		call   func(context.Context) (any, error)
		answer string
		fields map[string][]string // good text in the response, and bad text to replace it with
	}{
		{"Identity", func(ctx context.Context) (any, error) { return c.Identity(ctx) }, goodIdentity, map[string][]string{
			"1168fe43-ef48-54e0-8aeb-e0dc24146888": strict, "ada@example.edu": bad, "Ada 日本": bad,
		}},
		{"Topic", func(ctx context.Context) (any, error) { return c.Topic(ctx, "weather") }, goodTopic, map[string][]string{
			"weather": append(strict, "", "other"), "1168fe43-ef48-54e0-8aeb-e0dc24146888": strict, "Wetter für Ada": bad,
		}},
		{"Claim", func(ctx context.Context) (any, error) { return c.Claim(ctx, ClaimRequest{Name: "weather"}) }, goodTopic, map[string][]string{
			"weather": append(strict, "", "other"),
		}},
		{"Topics", func(ctx context.Context) (any, error) { return c.Topics(ctx) }, list("topics", goodTopic), map[string][]string{
			"weather": append(strict, ""), "Wetter für Ada": bad,
		}},
		{"CreateKey", func(ctx context.Context) (any, error) { return c.CreateKey(ctx, AccessKeyRequest{Name: "laptop"}) }, goodKey, map[string][]string{
			"key-abcdefghij234567": append(strict, "", "key-abcdefghij23456", "KEY-abcdefghij234567"), "laptop": append(strict, ""),
			"weather": append(strict, ""), "dks_0123456789abcdefghijABCDEFGHIJ_-0123456789a": append(strict, "", "dks_", "dks_"+strings.Repeat(".", 43)),
		}},
		{"Keys", func(ctx context.Context) (any, error) { return c.Keys(ctx) }, list("keys", goodKey), map[string][]string{
			"key-abcdefghij234567": append(strict, ""), "laptop": append(strict, ""), "weather": append(strict, ""),
		}},
		{"Key", func(ctx context.Context) (any, error) { return c.Key(ctx, "key-abcdefghij234567") }, goodKey, map[string][]string{
			"laptop": append(strict, ""),
		}},
		{"Discover", func(ctx context.Context) (any, error) { return c.Discover(ctx) }, goodDiscovery, map[string][]string{
			"a.example.org:9092": append(strict, "", "a,b:1", "a/b:1", "a:70000"), "https://auth.globus.org": append(strict, "http://auth.globus.org", "https://\u202eevil"),
			"https://a.example.org/v1/token": strict, "4b116d3c-1703-4f8f-9f6f-39921e5864df": strict, "diaspora.example.org": strict,
			"urn:globus:auth:scope:": bad, "v1.2.3+dirty (a build)": bad,
		}},
	} {
		if answer = tt.answer; !json.Valid([]byte(answer)) {
			t.Fatalf("%s: %s", tt.name, answer)
		}
		if _, err := tt.call(within(t)); err != nil {
			t.Errorf("%s of a good answer = %v", tt.name, err)
		}
		for good, bads := range tt.fields {
			if !strings.Contains(tt.answer, `"`+good) {
				t.Fatalf("%s: the answer has no %q", tt.name, good)
			}
			for _, bad := range bads {
				text, _ := json.Marshal(bad)
				answer = strings.Replace(tt.answer, `"`+good, `"`+strings.Trim(string(text), `"`), 1)
				got, err := tt.call(within(t))
				if !errors.Is(err, ErrInvalid) {
					t.Errorf("%s with %.60q for %q = %+v, %v, want ErrInvalid", tt.name, bad, good, got, err)
				} else if strings.ContainsFunc(err.Error(), terminal.Commands) || len(err.Error()) > 600 {
					t.Errorf("%s with %.60q for %q: the error is %q", tt.name, bad, good, err)
				}
				if text := fmt.Sprint(got); strings.Contains(text, "evil") || strings.Contains(text, "\x1b") {
					t.Errorf("%s with %.60q for %q returned %q with its error", tt.name, bad, good, text)
				}
			}
		}
	}
}

// TestProblemsAreTidied has an endpoint send error texts that would control a terminal, or look
// like a second message.
func TestProblemsAreTidied(t *testing.T) {
	t.Parallel()
	const evil = "no\u001b]0;owned\u0007 \u009b31m\u202e\ndiaspora: Hint: run this"
	c, _ := endpoint(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusConflict)
		json.NewEncoder(w).Encode(Problem{Type: evil, Title: evil, Detail: evil, Hint: evil, Topic: evil})
	})
	err := c.Release(within(t), "weather")
	var p *ProblemError
	if !errors.As(err, &p) {
		t.Fatalf("Release = %v, want a ProblemError", err)
	}
	const want = `no\x1b]0;owned\x07 \x9b31m\u202e diaspora: Hint: run this`
	for _, got := range []string{p.Type, p.Title, p.Detail, p.Hint, p.Topic, Hint(err)} {
		if got != want {
			t.Errorf("the problem says %q, want %q", got, want)
		}
	}
	if strings.ContainsFunc(err.Error(), terminal.Commands) {
		t.Errorf("the error is %q", err)
	}
}
