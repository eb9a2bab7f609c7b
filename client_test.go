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
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode"

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
		"Set": func(ctx context.Context) error {
			_, err := c.Set(ctx, "weather", TopicSettings{Partitions: 2})
			return err
		},
		"Share": func(ctx context.Context) error {
			_, err := c.Share(ctx, "weather", GrantRequest{Subject: adaSubject, Read: true})
			return err
		},
		"Unshare": func(ctx context.Context) error { return c.Unshare(ctx, "weather", adaSubject) },
		"Grants":  func(ctx context.Context) error { _, err := c.Grants(ctx, "weather"); return err },
		"Log":     func(ctx context.Context) error { _, err := c.Log(ctx, "weather"); return err },
		"Readers": func(ctx context.Context) error { _, err := c.Readers(ctx, "weather"); return err },
		"LookUp":  func(ctx context.Context) error { _, err := c.LookUp(ctx, "ada@example.edu"); return err },
		"Transfer": func(ctx context.Context) error {
			_, err := c.Transfer(ctx, "weather", Transfer{Subject: adaSubject})
			return err
		},
		"Accept":  func(ctx context.Context) error { _, err := c.Accept(ctx, "weather"); return err },
		"Retire":  func(ctx context.Context) error { _, err := c.Retire(ctx, "weather"); return err },
		"Restore": func(ctx context.Context) error { _, err := c.Restore(ctx, "weather"); return err },
		"CreateKey": func(ctx context.Context) error {
			_, err := c.CreateKey(ctx, AccessKeyRequest{Name: "weather"})
			return err
		},
		"Keys":      func(ctx context.Context) error { _, err := c.Keys(ctx); return err },
		"Key":       func(ctx context.Context) error { _, err := c.Key(ctx, "key-abcdefghij234567"); return err },
		"RevokeKey": func(ctx context.Context) error { return c.RevokeKey(ctx, "key-abcdefghij234567") },
		"Block": func(ctx context.Context) error {
			_, err := c.Block(ctx, BlockRequest{Subject: adaSubject, Why: "spam"})
			return err
		},
		"Unblock": func(ctx context.Context) error { return c.Unblock(ctx, adaSubject) },
		"Blocked": func(ctx context.Context) error { _, err := c.Blocked(ctx); return err },
	}
}

const adaSubject = "1168fe43-ef48-54e0-8aeb-e0dc24146888"

// goodForAll is an answer that all methods accept.
const goodForAll = `{"name":"weather","brokers":["127.0.0.1:1"],"security":"plaintext","before":{"name":"weather"},"after":{"name":"weather"},
	"subject":"` + adaSubject + `","username":"ada@example.edu","id":"key-abcdefghij234567","secret":"dks_0123456789abcdefghijABCDEFGHIJ_-0123456789a"}`

// Methods that are not retried when the answer to the first attempt may be lost, because a second one
// would fail, or make another key; and those whose answer has no content.
var (
	onlyOnce  = []string{"Release", "Unshare", "Accept", "Retire", "Restore", "CreateKey", "Unblock"}
	noContent = []string{"Release", "Unshare", "RevokeKey", "Unblock"}
)

// TestCallsAreComplete fails when a method of Client is missing from the tests of all methods.
func TestCallsAreComplete(t *testing.T) {
	t.Parallel()
	methods := reflect.TypeFor[*Client]()
	known := calls(nil)
	for i := range methods.NumMethod() {
		if name := methods.Method(i).Name; known[name] == nil {
			t.Errorf("calls has no %s", name)
		}
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
				io.WriteString(w, goodForAll)
			})
			for name, call := range calls(c) {
				tries.Store(0)
				want := int32(1)
				if again && !slices.Contains(onlyOnce, name) {
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
		"a member's type":  {"application/json", `{"name":17,"topics":{},"group":1,"username":1,"brokers":1,"grants":1,"before":1,"keys":1,"id":1,"blocked":1,"subject":1,"events":1,"readers":1}`},
		"a long type":      {strings.Repeat("x", 1000), "{}"},
		"more than bounds": {"application/json", `{"x":"` + strings.Repeat("x", aclclient.MaxAnswerBytes) + `"}`},
	} {
		c, _ := endpoint(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header()["Content-Type"] = []string{answer.contentType}
			io.WriteString(w, answer.body)
		})
		for method, call := range calls(c) {
			if slices.Contains(noContent, method) && name != "more than bounds" {
				continue
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
		io.WriteString(w, goodForAll)
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

// TestBadNames fails when a malformed name changes which resource is requested. A proxy in front of an
// ACL endpoint may resolve dots in a path, so that ending a share with ".." would release the topic.
func TestBadNames(t *testing.T) {
	t.Parallel()
	var asked string
	c, _ := endpoint(t, func(w http.ResponseWriter, r *http.Request) {
		asked = r.Method + " " + r.URL.EscapedPath()
		w.WriteHeader(http.StatusNotFound)
	})
	type call func(ctx context.Context, bad string) error
	ofTopics := map[string]call{
		"DELETE /v1/topics/*":               c.Release,
		"GET /v1/topics/*":                  func(ctx context.Context, bad string) error { _, err := c.Topic(ctx, bad); return err },
		"PATCH /v1/topics/*":                func(ctx context.Context, bad string) error { _, err := c.Set(ctx, bad, TopicSettings{}); return err },
		"POST /v1/topics/*/grants":          func(ctx context.Context, bad string) error { _, err := c.Share(ctx, bad, GrantRequest{}); return err },
		"GET /v1/topics/*/grants":           func(ctx context.Context, bad string) error { _, err := c.Grants(ctx, bad); return err },
		"GET /v1/topics/*/log":              func(ctx context.Context, bad string) error { _, err := c.Log(ctx, bad); return err },
		"GET /v1/topics/*/readers":          func(ctx context.Context, bad string) error { _, err := c.Readers(ctx, bad); return err },
		"DELETE /v1/topics/*/grants/public": func(ctx context.Context, bad string) error { return c.Unshare(ctx, bad, "public") },
		"POST /v1/topics/*/transfer":        func(ctx context.Context, bad string) error { _, err := c.Transfer(ctx, bad, Transfer{}); return err },
		"POST /v1/topics/*/accept":          func(ctx context.Context, bad string) error { _, err := c.Accept(ctx, bad); return err },
		"POST /v1/topics/*/release":         func(ctx context.Context, bad string) error { _, err := c.Retire(ctx, bad); return err },
		"POST /v1/topics/*/restore":         func(ctx context.Context, bad string) error { _, err := c.Restore(ctx, bad); return err },
	}
	others := map[string]call{
		"DELETE /v1/topics/weather/grants/*": func(ctx context.Context, bad string) error { return c.Unshare(ctx, "weather", bad) },
		"GET /v1/identities/*":               func(ctx context.Context, bad string) error { _, err := c.LookUp(ctx, bad); return err },
		"GET /v1/keys/*":                     func(ctx context.Context, bad string) error { _, err := c.Key(ctx, bad); return err },
		"DELETE /v1/keys/*":                  c.RevokeKey,
		"DELETE /v1/admin/blocked/*":         c.Unblock,
	}
	for _, name := range []string{"", ".", "..", "a/b", "../identity", "a?b", "a#b", "a%2fb", "ünï", "a\nb", "\x1b[2J", "a\xff", "a\u202eb@c", "a,b@c", strings.Repeat("x", 250), strings.Repeat("x@", 250), "_diaspora_ledger"} {
		for _, all := range []map[string]call{ofTopics, others} {
			for want, call := range all {
				asked = ""
				err := call(within(t), name)
				if !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrInvalid) {
					t.Errorf("%s with %.20q = %v, want ErrNotFound or ErrInvalid", want, name, err)
				} else if strings.ContainsFunc(err.Error(), terminal.Commands) || len(err.Error()) > 600 {
					t.Errorf("%s with %.20q: the error is %.1000q", want, name, err)
				}
				before, after, _ := strings.Cut(want, "*")
				part, ok := strings.CutPrefix(asked, before)
				part, ok2 := strings.CutSuffix(part, after)
				if asked != "" && (!ok || !ok2 || part == "" || part == "." || part == ".." || strings.Contains(part, "/")) {
					t.Errorf("%s with %.20q requests %s", want, name, asked)
				}
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
	goodIdentity  = `{"subject":"1168fe43-ef48-54e0-8aeb-e0dc24146888","username":"ada@example.edu","name":"Ada 日本","status":"used"}`
	goodTopic     = `{"name":"weather","owner":"1168fe43-ef48-54e0-8aeb-e0dc24146888","owner_username":"ada@example.edu","partitions":1,"description":"Wetter für Ada"}`
	goodGrant     = `{"subject":"1168fe43-ef48-54e0-8aeb-e0dc24146888","username":"ada@example.edu","read":true,"by":"2268fe43-ef48-54e0-8aeb-e0dc24146888","since":"2026-05-01T12:00:00Z"}`
	goodGroup     = `{"group":"1168fe43-ef48-54e0-8aeb-e0dc24146888","members":[{"subject":"3368fe43-ef48-54e0-8aeb-e0dc24146888","username":"mel@example.org"}],"read":true,"by":"2268fe43-ef48-54e0-8aeb-e0dc24146888","since":"2026-05-01T12:00:00Z"}`
	goodShared    = `{"op":"share","by":"2268fe43-ef48-54e0-8aeb-e0dc24146888","username":"ben@example.org","grant":` + goodGrant + `}`
	goodKeyMade   = `{"op":"issue_key","by":"2268fe43-ef48-54e0-8aeb-e0dc24146888","key":"key-abcdefghij234567","key_name":"laptop","set":{"description":"Wetter für Ada"},"subject":"3368fe43-ef48-54e0-8aeb-e0dc24146888"}`
	goodReader    = `{"subject":"1168fe43-ef48-54e0-8aeb-e0dc24146888","username":"ada@example.edu","group":"analysis 1","members":1,"lag":2}`
	goodOffer     = `{"name":"weather","owner":"1168fe43-ef48-54e0-8aeb-e0dc24146888","offered_to":"2268fe43-ef48-54e0-8aeb-e0dc24146888","description":"Wetter für Ada"}`
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
	strict := slices.Clip(append([]string{`x" evil="`, "a b", "a\u202eb", "ä", "a\\nb"}, bad...))
	ofTopic := map[string][]string{"weather": append(strict, ""), adaSubject: strict, "ada@example.edu": bad, "Wetter für Ada": bad}
	ofOneTopic := map[string][]string{"weather": append(strict, "", "other"), adaSubject: strict, "ada@example.edu": bad, "Wetter für Ada": bad}
	ofOffer := map[string][]string{"weather": append(strict, ""), "2268fe43-ef48-54e0-8aeb-e0dc24146888": strict, "Wetter für Ada": bad}
	ofOneOffer := map[string][]string{"weather": append(strict, "", "other"), "2268fe43-ef48-54e0-8aeb-e0dc24146888": strict}
	ofGrant := map[string][]string{adaSubject: append(strict, ""), "2268fe43-ef48-54e0-8aeb-e0dc24146888": strict, "ada@example.edu": bad}
	for _, tt := range []struct {
		name   string
		call   func(context.Context) (any, error)
		answer string
		fields map[string][]string // good text in the response, and bad text to replace it with
	}{
		{"Identity", func(ctx context.Context) (any, error) { return c.Identity(ctx) }, goodIdentity, map[string][]string{
			"1168fe43-ef48-54e0-8aeb-e0dc24146888": strict, "ada@example.edu": bad, "Ada 日本": bad, "used": bad,
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
		{"Topics, shared", func(ctx context.Context) (any, error) { return c.Topics(ctx) }, list("shared", goodTopic), ofTopic},
		{"Topics, public", func(ctx context.Context) (any, error) { return c.Topics(ctx) }, list("public", goodTopic), ofTopic},
		{"Topics, offered", func(ctx context.Context) (any, error) { return c.Topics(ctx) }, list("offered", goodOffer), ofOffer},
		{"Set, before", func(ctx context.Context) (any, error) { return c.Set(ctx, "weather", TopicSettings{Partitions: 2}) }, `{"before":` + goodTopic + `,"after":` + goodTopic + `}`, ofOneTopic},
		{"Set, after", func(ctx context.Context) (any, error) { return c.Set(ctx, "weather", TopicSettings{Partitions: 2}) }, `{"after":` + goodTopic + `,"before":` + goodTopic + `}`, ofOneTopic},
		{"Transfer", func(ctx context.Context) (any, error) {
			return c.Transfer(ctx, "weather", Transfer{Username: "ada@example.edu"})
		}, goodOffer, ofOneOffer},
		{"Accept", func(ctx context.Context) (any, error) { return c.Accept(ctx, "weather") }, goodTopic, ofOneTopic},
		{"Retire", func(ctx context.Context) (any, error) { return c.Retire(ctx, "weather") }, goodTopic, ofOneTopic},
		{"Restore", func(ctx context.Context) (any, error) { return c.Restore(ctx, "weather") }, goodTopic, ofOneTopic},
		{"Share", func(ctx context.Context) (any, error) {
			return c.Share(ctx, "weather", GrantRequest{Username: "ada@example.edu", Read: true})
		}, goodGrant, ofGrant},
		{"Share with a subject", func(ctx context.Context) (any, error) {
			return c.Share(ctx, "weather", GrantRequest{Subject: adaSubject, Read: true})
		}, goodGrant, map[string][]string{adaSubject: append(strict, "", "another")}},
		{"Share with a group", func(ctx context.Context) (any, error) {
			return c.Share(ctx, "weather", GrantRequest{Group: adaSubject, Read: true})
		}, goodGroup, map[string][]string{
			adaSubject: append(strict, "", "another"), "3368fe43-ef48-54e0-8aeb-e0dc24146888": strict,
		}},
		{"Grants", func(ctx context.Context) (any, error) { return c.Grants(ctx, "weather") }, list("grants", goodGrant), ofGrant},
		{"Grants, of a group", func(ctx context.Context) (any, error) { return c.Grants(ctx, "weather") }, list("grants", goodGroup), map[string][]string{
			adaSubject: append(strict, ""), "3368fe43-ef48-54e0-8aeb-e0dc24146888": strict, "mel@example.org": bad,
		}},
		{"Log, of a share", func(ctx context.Context) (any, error) { return c.Log(ctx, "weather") }, list("events", goodShared), map[string][]string{
			"share": bad, "2268fe43-ef48-54e0-8aeb-e0dc24146888": strict, "ben@example.org": bad, adaSubject: append(strict, ""), "ada@example.edu": bad,
		}},
		{"Log, of a key", func(ctx context.Context) (any, error) { return c.Log(ctx, "weather") }, list("events", goodKeyMade), map[string][]string{
			"key-abcdefghij234567": append(strict, "key-"), "laptop": bad, "Wetter für Ada": bad, "3368fe43-ef48-54e0-8aeb-e0dc24146888": strict,
		}},
		{"Readers", func(ctx context.Context) (any, error) { return c.Readers(ctx, "weather") }, list("readers", goodReader), map[string][]string{
			adaSubject: strict, "ada@example.edu": bad, "analysis 1": bad,
		}},
		{"LookUp", func(ctx context.Context) (any, error) { return c.LookUp(ctx, "ada@example.edu") }, goodIdentity, map[string][]string{
			adaSubject: append(strict, ""), "ada@example.edu": append(bad, "ben@example.org"), "Ada 日本": bad,
		}},
		{"LookUp of a subject", func(ctx context.Context) (any, error) { return c.LookUp(ctx, adaSubject) }, goodIdentity, map[string][]string{
			adaSubject: append(strict, "", "2268fe43-ef48-54e0-8aeb-e0dc24146888"), "ada@example.edu": bad, "Ada 日本": bad,
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

// TestEveryTextIsChecked fails when a text in an answer of some method of a Client is not checked: it puts bad
// text in each field, with good text in all others.
func TestEveryTextIsChecked(t *testing.T) {
	t.Parallel()
	good := map[string]string{ // by form
		"": "Ada 日本", "short line": "Wetter für Ada", "subject": adaSubject, "group": adaSubject, "topic": "weather", "key": "key-abcdefghij234567",
		"key name": "laptop", "secret": string(keySecretOfTests), "certificates": "-----BEGIN CERTIFICATE-----\n",
	}
	var texts []reflect.Value // of the answer that is being filled
	var names, formsOf []string
	var fill func(v reflect.Value, name, form string)
	fill = func(v reflect.Value, name, form string) {
		switch v.Kind() {
		case reflect.String:
			texts, names, formsOf = append(texts, v), append(names, name), append(formsOf, form)
			if v.SetString(good[form]); good[form] == "" {
				t.Errorf("%s has the form %q, of which this test has no example", name, form)
			}
		case reflect.Pointer:
			v.Set(reflect.New(v.Type().Elem()))
			fill(v.Elem(), name, form)
		case reflect.Slice:
			v.Set(reflect.MakeSlice(v.Type(), 1, 1))
			fill(v.Index(0), name, form)
		case reflect.Struct:
			for f, value := range v.Fields() {
				if f.IsExported() {
					fill(value, v.Type().Name()+"."+f.Name, f.Tag.Get("form"))
				}
			}
		case reflect.Map, reflect.Interface, reflect.Array:
			t.Errorf("%s is a %v, whose texts are not checked", name, v.Kind())
		}
	}
	for method := range reflect.TypeFor[*Client]().Methods() {
		if method.Type.NumOut() < 2 {
			continue // it returns only an error
		}
		texts, names, formsOf = nil, nil, nil
		answer := reflect.New(method.Type.Out(0))
		if fill(answer.Elem(), method.Name, ""); len(texts) == 0 {
			t.Errorf("the answer of %s has no text", method.Name)
		}
		if fault := aclclient.TextFault(answer.Interface()); fault != "" {
			t.Errorf("of a good answer of %s: %s", method.Name, fault)
		}
		for i, text := range texts {
			bads := []string{strings.Repeat("x", 2<<20), "x\nevil"}
			if formsOf[i] == "certificates" {
				bads = bads[:1]
			}
			for _, bad := range bads {
				text.SetString(bad)
				if fault := aclclient.TextFault(answer.Interface()); !strings.Contains(fault, "malformed") || strings.Contains(fault, "x\nevil") {
					t.Errorf("%s: the fault of %.10q in %s is %q", method.Name, bad, names[i], fault)
				}
			}
			text.SetString(good[formsOf[i]])
		}
	}
}

// FuzzAnswers checks, for each type of answer, that no text in one that a Client would return can
// control a terminal, or add a line to a file.
func FuzzAnswers(f *testing.F) {
	for _, answer := range []string{
		goodForAll, goodIdentity, goodTopic, goodGrant, goodGroup, goodOffer, goodKey, goodShared, goodKeyMade, goodReader, goodDiscovery, `{"topics":[` + goodTopic + `],"shared":[` + goodTopic + `],"offered":[` + goodOffer + `]}`,
		`{"grants":[` + goodGrant + `,` + goodGroup + `]}`, `{"subject":"` + adaSubject + `","why":"spam","by":"` + adaSubject + `"}`, `{"before":` + goodTopic + `,"after":` + goodTopic + `}`,
	} {
		f.Add([]byte(answer))
		f.Add([]byte(strings.ReplaceAll(answer, "a", `\u001b`)))
		f.Add([]byte(strings.ReplaceAll(answer, "r", `\n`)))
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		checkTexts(t, answer, textFault[globus.Identity])
		checkTexts(t, answer, textFault[Topic])
		checkTexts(t, answer, textFault[Grant])
		checkTexts(t, answer, textFault[AccessKey])
		checkTexts(t, answer, textFault[NewAccessKey])
		checkTexts(t, answer, textFault[TopicEvent])
		checkTexts(t, answer, textFault[Reader])
		checkTexts(t, answer, textFault[Blocked])
		checkTexts(t, answer, func(d Discovery) string {
			d.CA = "" // has lines, and is parsed before it is used
			return fmt.Sprint(d.validate())
		})
	})
}

func textFault[T any](answer T) string { return aclclient.TextFault(answer) }

func checkTexts[T any](t *testing.T, answer []byte, fault func(T) string) {
	t.Helper()
	var value T
	if json.Unmarshal(answer, &value) != nil {
		return
	}
	if text := fault(value); text != "" && text != "<nil>" {
		if len(text) > 1000 || strings.ContainsFunc(text, func(r rune) bool { return unicode.IsControl(r) }) {
			t.Errorf("the fault of %q is %q", answer, text)
		}
		return
	}
	var check func(reflect.Value)
	check = func(v reflect.Value) {
		switch v.Kind() {
		case reflect.String:
			if !aclclient.IsLine(v.String()) {
				t.Errorf("%T of %q has the text %q", value, answer, v.String())
			}
		case reflect.Pointer:
			if !v.IsNil() {
				check(v.Elem())
			}
		case reflect.Slice:
			for i := range v.Len() {
				check(v.Index(i))
			}
		case reflect.Struct:
			for i := range v.NumField() {
				if field := v.Type().Field(i); field.IsExported() && field.Name != "CA" {
					check(v.Field(i))
				}
			}
		}
	}
	check(reflect.ValueOf(value))
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
