package globus_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

const ada = "ada@example.edu"

// session is a login by one person at one terminal.
type session struct {
	t        *testing.T
	dev      *dev
	screen   *screen
	keyboard *keyboard
	store    *globus.Store
	env      map[string]string
	opts     globus.LoginOptions
	client   *globus.Client
	opened   chan string // URLs that the browser was started with

	cancel context.CancelFunc
	done   chan struct{}
	login  *globus.Login
	err    error
}

// newSession returns a session at a desktop, whose browser logs Ada in. Tests change what should
// differ before they call start.
func newSession(t *testing.T) *session {
	s := &session{
		t: t, dev: newDev(t), screen: &screen{}, keyboard: newKeyboard(t), store: newStore(t),
		env: map[string]string{"DISPLAY": ":0"}, opened: make(chan string, 10), done: make(chan struct{}),
	}
	s.client = s.dev.native(t)
	s.opts = globus.LoginOptions{
		Scopes:  []string{globusdev.Scope},
		In:      s.keyboard,
		Out:     s.screen,
		Browser: s.browser,
		Getenv:  func(k string) string { return s.env[k] },
		Store:   s.store,
	}
	return s
}

// browser is a browser in which Ada is already logged in.
func (s *session) browser(address string) error {
	s.opened <- address
	if shown := s.screen.String(); !strings.Contains(shown, address) {
		s.t.Error("the browser was started before the URL was printed")
	}
	_, _, err := visit(address, ada)
	return err
}

func (s *session) noBrowser(string) error { s.t.Error("a browser was started"); return nil }

func (s *session) start() *session {
	ctx, cancel := context.WithCancel(s.t.Context())
	s.cancel = cancel
	go func() {
		defer close(s.done)
		s.login, s.err = s.client.Login(ctx, s.opts)
	}()
	s.t.Cleanup(func() { cancel(); <-s.done })
	return s
}

// wait waits for the login to end.
func (s *session) wait() {
	s.t.Helper()
	select {
	case <-s.done:
	case <-time.After(30 * time.Second):
		s.t.Fatalf("the login hangs; the screen shows: %s", s.screen)
	}
}

// succeeds checks that Ada is logged in after a single exchange, and that everything is saved.
func (s *session) succeeds() {
	s.t.Helper()
	s.wait()
	if s.err != nil {
		s.t.Fatalf("Login = %v; the screen shows: %s", s.err, s.screen)
	}
	s.complete()
	saved, err := s.store.Load()
	testkit.Must(s.t, err)
	want, _ := s.login.Token(globusdev.ResourceServerID)
	got, ok := saved.Token(globusdev.ResourceServerID)
	if !ok || got.RefreshToken != want.RefreshToken || saved.Identity.Subject != s.login.Identity.Subject {
		s.t.Error("the login was not saved whole")
	}
}

// complete checks that Login returned a complete login.
func (s *session) complete() {
	s.t.Helper()
	if s.login == nil {
		s.t.Fatalf("the login is lost: %v", s.err)
	}
	token, ok := s.login.Token(globusdev.ResourceServerID)
	if !ok || token.RefreshToken == "" || s.login.Identity.Subject != globusdev.Subject(ada) || s.login.Identity.Username != ada {
		s.t.Errorf("Login = %+v, which is not all of Ada's", s.login.Identity)
	}
	resource := s.dev.confidential(s.t, globusdev.ResourceServerID)
	if info, err := resource.Introspect(s.t.Context(), token.AccessToken); err != nil || info.Subject != globusdev.Subject(ada) {
		s.t.Errorf("the access token is %v, %v", info.Subject, err)
	}
	if shows := s.screen.String(); strings.Contains(shows, token.AccessToken.Reveal()) || strings.Contains(shows, "dev-code-") || strings.Contains(shows, "dev-rt-") {
		s.t.Errorf("the screen shows secrets: %s", shows)
	}
}

// fails checks that there is no login, and the reason.
func (s *session) fails(want error, text string) {
	s.t.Helper()
	s.wait()
	if s.login != nil {
		s.t.Errorf("Login returned a login next to %v", s.err)
	}
	if want == nil {
		want = errOther
	}
	checkErr(s.t, "Login", s.err, want, text)
	if _, err := s.store.Load(); !errors.Is(err, globus.ErrLoginRequired) {
		s.t.Errorf("something was saved: %v", err)
	}
}

// code logs Ada in elsewhere, and returns the code from the page on which that browser ends.
func (s *session) code() string {
	s.t.Helper()
	end, page, err := visit(s.screen.address(s.t), ada)
	code := end.Query().Get("code")
	if err != nil || code == "" || !strings.Contains(page, code) {
		s.t.Fatalf("the browser ended on %s, %v, which shows no code", end, err)
	}
	return code
}

func TestLoginEnvironments(t *testing.T) {
	t.Run("terminal with a browser", func(t *testing.T) {
		s := newSession(t).start()
		s.succeeds()
		if n := s.dev.count("/v2/oauth2/token", "authorization_code"); n != 1 {
			t.Errorf("%d exchanges, want 1", n)
		}
		asked := s.dev.Requests()[0].Parameters
		for name, want := range map[string]string{
			"access_type": "offline", "prompt": "login", "scope": "openid profile email " + globusdev.Scope,
		} {
			if asked[name] != want {
				t.Errorf("%s = %q, want %q", name, asked[name], want)
			}
		}
		if !strings.HasPrefix(asked["prefill_named_grant"], "diaspora on ") {
			t.Errorf("prefill_named_grant = %q", asked["prefill_named_grant"])
		}
	})
	t.Run("terminal without a keyboard", func(t *testing.T) {
		s := newSession(t)
		s.opts.In = nil
		s.start().succeeds()
	})
	t.Run("input has ended", func(t *testing.T) {
		s := newSession(t)
		s.opts.In = strings.NewReader("")
		s.start().succeeds()
	})
	t.Run("message for the login page", func(t *testing.T) {
		s := newSession(t)
		s.opts.Message = "The topic needs a fresh login."
		s.start().succeeds()
		if got := s.dev.Requests()[0].Parameters["session_message"]; got != s.opts.Message {
			t.Errorf("session_message = %q", got)
		}
	})
	for name, env := range map[string]map[string]string{
		"ssh":             {"DISPLAY": ":10", "SSH_TTY": "/dev/pts/0"},
		"ssh, no tty":     {"DISPLAY": ":10", "SSH_CONNECTION": "10.0.0.1 1 10.0.0.2 22"},
		"no display":      {},
		"text browser":    {"DISPLAY": ":0", "BROWSER": "/usr/bin/lynx"},
		"another of them": {"DISPLAY": ":0", "BROWSER": "w3m"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSession(t)
			s.env = env
			s.opts.Browser = s.noBrowser
			s.start()
			s.keyboard.enter(t, s.code()+"\n")
			s.succeeds()
		})
	}
	t.Run("pasting on request", func(t *testing.T) {
		s := newSession(t)
		s.opts.NoBrowser, s.opts.Browser = true, s.noBrowser
		s.start()
		s.keyboard.enter(t, s.code()+"\n")
		s.succeeds()
	})
	t.Run("no port to listen on", func(t *testing.T) {
		s := newSession(t)
		globus.BlockPort(&s.opts)
		s.opts.Browser = s.noBrowser
		s.start()
		s.keyboard.enter(t, s.code()+"\n")
		s.succeeds()
	})
	t.Run("hanging browser", func(t *testing.T) {
		s := newSession(t)
		hang := make(chan struct{})
		t.Cleanup(func() { close(hang) })
		s.opts.Browser = func(string) error { <-hang; return nil }
		s.start()
		if _, page, err := visit(s.screen.address(t), ada); err != nil || !strings.Contains(page, "You are logged in as "+ada) {
			t.Errorf("the page shows %s, %v", page, err)
		}
		s.succeeds()
	})
	t.Run("failing browser", func(t *testing.T) {
		s := newSession(t)
		s.opts.Browser = func(string) error { return errors.New("exec: not found\x1b[31m") }
		s.start()
		shown := s.screen.await(t, "No browser could be started", 1)
		if strings.Contains(shown, "\x1b") {
			t.Error("the screen shows control characters")
		}
		if _, _, err := visit(s.screen.address(t), ada); err != nil {
			t.Error(err)
		}
		s.succeeds()
	})
	t.Run("browser on another machine", func(t *testing.T) {
		// On that machine, the loopback address does not work, so the person pastes it.
		s := newSession(t)
		s.opts.Browser = func(string) error { return nil }
		s.start()
		redirect := s.redirected(s.screen.address(t), ada)
		s.keyboard.enter(t, "\n"+redirect+"\n")
		s.succeeds()
	})
	t.Run("nowhere to print", func(t *testing.T) {
		s := newSession(t)
		s.opts.Out = nil
		s.start().fails(nil, "nowhere to print")
	})
	t.Run("nowhere to paste", func(t *testing.T) {
		s := newSession(t)
		s.env, s.opts.In = nil, nil
		s.start().fails(nil, "nowhere to paste")
	})
	t.Run("input ends before the code", func(t *testing.T) {
		s := newSession(t)
		s.env, s.opts.In = nil, strings.NewReader("\n\n")
		s.start().fails(nil, "the input ended")
	})
}

// redirected logs somebody in, and returns the URL to which the browser is redirected, without
// opening it.
func (s *session) redirected(address, who string) string {
	s.t.Helper()
	stop := &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport:     &http.Transport{DisableKeepAlives: true},
	}
	query := "&dev_user=" + who
	if who == "" {
		query = "&dev_deny=1"
	}
	resp, err := stop.Get(address + query)
	testkit.Must(s.t, err)
	resp.Body.Close()
	return resp.Header.Get("Location")
}

// TestLoginAddress has an issuer that requires a ticket in the URL.
func TestLoginAddress(t *testing.T) {
	secret := globusdev.NewSecret()
	ticket := func(address string) (string, error) { return globusdev.WithTicket(secret, address, time.Now()) }
	locked := func(cfg *globusdev.Config) { cfg.Secret = secret }
	for name, noBrowser := range map[string]bool{"browser": false, "paste": true} {
		t.Run(name, func(t *testing.T) {
			s := newSession(t)
			s.dev = newDev(t, locked)
			s.client = s.dev.native(t)
			s.opts.Address, s.opts.NoBrowser = ticket, noBrowser
			s.start()
			if noBrowser {
				s.keyboard.enter(t, s.code()+"\n")
			}
			s.succeeds()
		})
		t.Run("no address, "+name, func(t *testing.T) {
			s := newSession(t)
			s.opts.Address = func(string) (string, error) { return "", errors.New("no ticket can be had") }
			s.opts.NoBrowser, s.opts.Browser = noBrowser, s.noBrowser
			s.start().fails(nil, "no ticket can be had")
		})
	}
}

// TestLoginPaste pastes the code together with other text that may be copied along with it.
func TestLoginPaste(t *testing.T) {
	for name, paste := range map[string]func(s *session, code, state string) string{
		"spaces":               func(_ *session, code, _ string) string { return "  " + code + " \t\r\n" },
		"spaces inside":        func(_ *session, code, _ string) string { return code[:12] + " " + code[12:] + "\n" },
		"empty lines first":    func(_ *session, code, _ string) string { return "\n \n\r\n" + code + "\n" },
		"quotes":               func(_ *session, code, _ string) string { return `"` + code + `"` + "\n" },
		"no newline":           func(s *session, code, _ string) string { return code + "\x00" },
		"invisible characters": func(_ *session, code, _ string) string { return "\ufeff\u200b" + code + "\u00a0\n" },
		"code=":                func(_ *session, code, _ string) string { return "code=" + code + "\n" },
		"whole address": func(s *session, code, state string) string {
			return s.dev.Issuer() + "/v2/web/auth-code?code=" + code + "&state=" + state + "\n"
		},
		"whole address, other order": func(s *session, code, state string) string {
			return " <" + s.dev.Issuer() + "/v2/web/auth-code?state=" + state + "&code=" + code + "> \n"
		},
		"another login's address first": func(s *session, code, state string) string {
			return s.dev.Issuer() + "/v2/web/auth-code?code=dev-code-X&state=other\n" + code + "\n"
		},
		"a wrong code first": func(_ *session, code, _ string) string { return "dev-code-WRONG\nnot a code\n" + code + "\n" },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSession(t)
			s.env, s.opts.Browser = nil, s.noBrowser
			s.start()
			address, err := url.Parse(s.screen.address(t))
			testkit.Must(t, err)
			text := paste(s, s.code(), address.Query().Get("state"))
			if line, ok := strings.CutSuffix(text, "\x00"); ok {
				go func() { s.keyboard.w.Write([]byte(line)); s.keyboard.w.Close() }()
			} else {
				s.keyboard.enter(t, text)
			}
			s.succeeds()
		})
	}
	t.Run("three wrong codes", func(t *testing.T) {
		s := newSession(t)
		s.env = nil
		s.start()
		s.keyboard.enter(t, "dev-code-1\ndev-code-2\ndev-code-3\ndev-code-4\n")
		s.fails(globus.ErrLoginRequired, "invalid_grant")
		if n := s.dev.count("/v2/oauth2/token", ""); n != 3 {
			t.Errorf("%d exchanges, want 3", n)
		}
	})
	t.Run("a line without end", func(t *testing.T) {
		s := newSession(t)
		s.env, s.opts.In = nil, bytes.NewReader(bytes.Repeat([]byte("a"), 1<<20))
		s.start().fails(globus.ErrLoginRequired, "")
	})
	t.Run("denied", func(t *testing.T) {
		s := newSession(t)
		s.env = nil
		s.start()
		s.keyboard.enter(t, s.redirected(s.screen.address(t), "")+"\n")
		s.fails(globus.ErrDenied, "access_denied: The user did not consent.")
	})
}

func TestLoginCallback(t *testing.T) {
	t.Run("denied consent", func(t *testing.T) {
		s := newSession(t)
		pages := make(chan string, 1)
		s.opts.Browser = func(address string) error {
			_, page, _ := visit(address, "")
			pages <- page
			return nil
		}
		s.start().fails(globus.ErrDenied, "access_denied: The user did not consent.")
		if page := <-pages; !strings.Contains(page, "denied") {
			t.Errorf("the page shows %s", page)
		}
		if n := s.dev.count("/v2/oauth2/token", ""); n != 0 {
			t.Errorf("%d exchanges", n)
		}
	})
	// Requests to the port that lack the state must not affect the login.
	for name, query := range map[string]string{
		"wrong state":     "/?code=dev-code-EVIL&state=wrong",
		"no state":        "/?code=dev-code-EVIL",
		"empty state":     "/?code=dev-code-EVIL&state=",
		"error, no state": "/?error=access_denied",
		"no code":         "/?state=STATE",
		"empty code":      "/?state=STATE&code=",
		"two states":      "/?code=dev-code-EVIL&state=STATE&state=x",
		"two codes":       "/?code=dev-code-EVIL&code=x&state=STATE",
		"nothing":         "/",
		"an icon":         "/favicon.ico",
		"another path":    "/x?code=dev-code-EVIL&state=STATE",
	} {
		t.Run(name, func(t *testing.T) {
			s := newSession(t)
			s.opts.Browser = func(string) error { return nil }
			s.start()
			address := s.screen.address(t)
			u, err := url.Parse(address)
			testkit.Must(t, err)
			redirect, state := u.Query().Get("redirect_uri"), u.Query().Get("state")
			if len(state) < 20 || !strings.HasPrefix(redirect, "http://127.0.0.1:") || strings.Count(redirect, "/") != 2 {
				t.Errorf("state %q, redirect %q", state, redirect)
			}
			if _, page, err := open(redirect + strings.ReplaceAll(query, "STATE", state)); err == nil {
				t.Errorf("answered 200: %s", page)
			}
			if _, err := http.Post(redirect+"/?code=dev-code-EVIL&state="+state, "text/plain", nil); err != nil {
				t.Error(err)
			}
			if n := s.dev.count("/v2/oauth2/token", ""); n != 0 {
				t.Errorf("%d exchanges", n)
			}
			if _, page, err := visit(address, ada); err != nil || !strings.Contains(page, "logged in as") {
				t.Errorf("the page shows %s, %v", page, err)
			}
			s.succeeds()
		})
	}
	t.Run("the browser asks twice", func(t *testing.T) {
		s := newSession(t)
		s.opts.Browser = func(string) error { return nil }
		hold, held := make(chan struct{}), make(chan struct{})
		s.dev.intercept(func(_ http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/v2/oauth2/token" {
				close(held)
				<-hold
			}
			return false
		})
		s.start()
		redirect := s.redirected(s.screen.address(t), ada)
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				if _, page, err := open(redirect); err != nil || !strings.Contains(page, "logged in as") {
					t.Errorf("the page shows %s, %v", page, err)
				}
			})
		}
		<-held
		close(hold)
		wg.Wait()
		s.succeeds()
		if n := s.dev.count("/v2/oauth2/token", ""); n != 1 {
			t.Errorf("%d exchanges, want 1", n)
		}
	})
	t.Run("the port is free afterwards", func(t *testing.T) {
		s := newSession(t).start()
		s.succeeds()
		u, err := url.Parse(<-s.opened)
		testkit.Must(t, err)
		if c, err := net.Dial("tcp", strings.TrimPrefix(u.Query().Get("redirect_uri"), "http://")); err == nil {
			c.Close()
			t.Error("still listening")
		}
	})
	t.Run("the page keeps to itself", func(t *testing.T) {
		s := newSession(t)
		headers := make(chan http.Header, 1)
		s.opts.Browser = func(address string) error {
			resp, err := http.Get(s.redirected(address, ada))
			if err == nil {
				headers <- resp.Header
				resp.Body.Close()
			}
			return err
		}
		s.start().succeeds()
		h := <-headers
		if h.Get("Cache-Control") != "no-store" || h.Get("Referrer-Policy") != "no-referrer" || !strings.Contains(h.Get("Content-Security-Policy"), "default-src 'none'") {
			t.Errorf("headers %v", h)
		}
	})
}

// TestLoginIsNeverLost covers failures after Globus Auth has issued the tokens.
func TestLoginIsNeverLost(t *testing.T) {
	t.Run("read-only home", func(t *testing.T) {
		s := newSession(t)
		file := filepath.Join(t.TempDir(), "file")
		testkit.Must(t, os.WriteFile(file, nil, 0o600))
		store, err := globus.OpenStore(filepath.Join(file, "tokens", "x.json"))
		testkit.Must(t, err)
		s.opts.Store = store
		s.start().wait()
		if s.err == nil || !strings.Contains(s.err.Error(), "save tokens") {
			t.Errorf("Login = %v, want an error about saving", s.err)
		}
		s.complete()
		s.screen.await(t, "cannot be saved", 1) // printed before the browser was started
	})
	t.Run("the disk fills up meanwhile", func(t *testing.T) {
		s := newSession(t)
		s.opts.Browser = func(address string) error {
			if err := os.MkdirAll(filepath.Join(s.store.Path()+".tmp", "x"), 0o700); err != nil {
				t.Error(err)
			}
			_, _, err := visit(address, ada)
			if err == nil {
				t.Error("the page does not tell of the problem")
			}
			return nil
		}
		s.start().wait()
		if s.err == nil || !strings.Contains(s.err.Error(), "save tokens") {
			t.Errorf("Login = %v, want an error about saving", s.err)
		}
		s.complete()
	})
	for name, offset := range map[string]time.Duration{"clock 10 minutes slow": -10 * time.Minute, "clock 10 minutes fast": 10 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			s := newSession(t)
			s.client = s.dev.native(t, func(cfg *globus.Config) {
				cfg.Now = func() time.Time { return time.Now().Add(offset) }
			})
			s.start().succeeds()
			if got := s.login.ClockSkew - offset; got.Abs() > 10*time.Second {
				t.Errorf("ClockSkew = %v, want about %v", s.login.ClockSkew, offset)
			}
			s.screen.await(t, "this computer's clock is", 1)
			token, _ := s.login.Token(globusdev.ResourceServerID)
			if life := time.Until(token.Expiry.Add(-offset)); life < 47*time.Hour || life > 48*time.Hour {
				t.Errorf("the token expires in %v by the local clock", life)
			}
		})
	}
	t.Run("clock 4 minutes slow", func(t *testing.T) {
		s := newSession(t)
		s.client = s.dev.native(t, func(cfg *globus.Config) {
			cfg.Now = func() time.Time { return time.Now().Add(-4 * time.Minute) }
		})
		s.start().succeeds()
		if s.login.ClockSkew != 0 || strings.Contains(s.screen.String(), "clock") {
			t.Errorf("ClockSkew = %v, with a warning", s.login.ClockSkew)
		}
	})
	for name, status := range map[string]int{"no keys of ID tokens": 404, "the keys are down": 503} {
		t.Run(name, func(t *testing.T) {
			s := newSession(t)
			testkit.Must(t, s.dev.FailNext(100, globusdev.Failure{Path: "/jwk.json", Status: status, Body: html}))
			s.start().succeeds()
		})
	}
	t.Run("Ctrl-C right after the exchange", func(t *testing.T) {
		s := newSession(t)
		s.dev.intercept(func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/jwk.json" {
				s.cancel()
			}
			return false
		})
		s.start().succeeds()
	})
}

// TestLoginCancelled cancels the login at each step before there are tokens.
func TestLoginCancelled(t *testing.T) {
	t.Run("before anything", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		s := newSession(t)
		s.opts.Browser = func(string) error { return nil }
		_, err := s.client.Login(ctx, s.opts)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Login = %v, want canceled", err)
		}
	})
	t.Run("waiting for the browser", func(t *testing.T) {
		s := newSession(t)
		s.opts.Browser = func(string) error { return nil }
		s.start()
		s.screen.await(t, "Waiting for the browser", 1)
		s.cancel()
		s.cancelled()
	})
	t.Run("waiting for the code", func(t *testing.T) {
		s := newSession(t)
		s.env = nil
		s.start()
		s.screen.await(t, "Paste the authorization code here", 1)
		s.cancel()
		s.cancelled()
	})
	t.Run("after a wrong code", func(t *testing.T) {
		s := newSession(t)
		s.env = nil
		s.start()
		s.keyboard.enter(t, "dev-code-WRONG\n")
		s.screen.await(t, "Paste the authorization code here", 2)
		s.cancel()
		s.cancelled()
	})
	t.Run("in the exchange", func(t *testing.T) {
		s := newSession(t)
		s.dev.intercept(func(_ http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != "/v2/oauth2/token" {
				return false
			}
			s.cancel()
			<-r.Context().Done() // the client has disconnected
			return true
		})
		s.opts.Browser = func(address string) error { visit(address, ada); return nil }
		s.start()
		s.cancelled()
	})
}

func (s *session) cancelled() {
	s.t.Helper()
	s.wait()
	if s.login != nil || !errors.Is(s.err, context.Canceled) {
		s.t.Errorf("Login = %v, %v, want canceled", s.login, s.err)
	}
}

func TestLoginTimesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{}
		r := newKeyboard(t)
		begin := time.Now()
		_, err := w.client(t).Login(t.Context(), globus.LoginOptions{In: r, Out: &screen{}, NoBrowser: true})
		checkErr(t, "Login", err, errOther, "nobody finished the login within 15m0s")
		if took := time.Since(begin); took != 15*time.Minute {
			t.Errorf("took %v", took)
		}
		r.w.Close()
	})
}

func TestLoginSecondAtOnce(t *testing.T) {
	first := newSession(t)
	second := newSession(t)
	second.dev, second.store, second.opts.Store = first.dev, first.store, first.store
	second.client = first.dev.native(t)
	gate := make(chan struct{})
	for _, s := range []*session{first, second} {
		s.opts.Browser = func(string) error { return nil }
		s.start()
	}
	// A redirect from one login to the port of another belongs to neither.
	u, err := url.Parse(second.screen.address(t))
	testkit.Must(t, err)
	stray := strings.Replace(first.redirected(first.screen.address(t), ada), portOf(t, first), u.Query().Get("redirect_uri"), 1)
	if _, _, err := open(stray); err == nil {
		t.Error("one login took the other's code")
	}
	close(gate)
	var wg sync.WaitGroup
	for _, s := range []*session{first, second} {
		wg.Go(func() {
			if _, page, err := visit(s.screen.address(t), ada); err != nil {
				t.Errorf("the page shows %s, %v", page, err)
			}
		})
	}
	wg.Wait()
	for _, s := range []*session{first, second} {
		s.wait()
		if s.err != nil {
			t.Error(s.err)
		}
		s.complete()
	}
	saved, err := first.store.Load()
	testkit.Must(t, err)
	got, _ := saved.Token(globusdev.ResourceServerID)
	one, _ := first.login.Token(globusdev.ResourceServerID)
	two, _ := second.login.Token(globusdev.ResourceServerID)
	if got.RefreshToken != one.RefreshToken && got.RefreshToken != two.RefreshToken {
		t.Error("what is saved is neither login")
	}
}

func portOf(t *testing.T, s *session) string {
	u, err := url.Parse(s.screen.address(t))
	testkit.Must(t, err)
	return u.Query().Get("redirect_uri")
}

func TestLoginAsSomebodyElse(t *testing.T) {
	t.Run("into a store that is taken", func(t *testing.T) {
		s := newSession(t)
		bob := adaLogin(time.Now())
		bob.Identity = globus.Identity{Subject: bobSubject, Username: "bob@example.edu"}
		save(t, s.store, bob)
		s.opts.Browser = func(address string) error { visit(address, ada); return nil }
		s.start().wait()
		checkErr(t, "Login", s.err, globus.ErrOtherSubject, "bob@example.edu")
		s.complete() // the caller decides what to do with it
		if saved, err := s.store.Load(); err != nil || saved.Identity.Subject != bobSubject {
			t.Errorf("Load = %v, %v, want Bob's login untouched", saved, err)
		}
		if err := s.client.RevokeLogin(t.Context(), s.login); err != nil {
			t.Error(err)
		}
		token, _ := s.login.Token(globusdev.ResourceServerID)
		if _, err := s.client.Refresh(t.Context(), token.RefreshToken); !errors.Is(err, globus.ErrLoginRequired) {
			t.Errorf("Refresh after RevokeLogin = %v", err)
		}
	})
	t.Run("than was asked for", func(t *testing.T) {
		s := newSession(t)
		s.opts.Subject = bobSubject
		s.opts.Browser = func(address string) error { visit(address, ada); return nil }
		s.start().wait()
		checkErr(t, "Login", s.err, globus.ErrOtherSubject, "but "+ada)
		s.complete()
		if _, err := s.store.Load(); !errors.Is(err, globus.ErrLoginRequired) {
			t.Errorf("it was saved: %v", err)
		}
	})
	t.Run("known before", func(t *testing.T) {
		s := newSession(t)
		save(t, s.store, adaLogin(time.Now()))
		s.opts.Subject, s.opts.Browser = bobSubject, s.noBrowser
		s.start().wait()
		checkErr(t, "Login", s.err, globus.ErrOtherSubject, ada)
	})
	t.Run("with a token file that is not private", func(t *testing.T) {
		s := newSession(t)
		save(t, s.store, adaLogin(time.Now()))
		testkit.Must(t, os.Chmod(s.store.Path(), 0o644))
		s.opts.Browser = s.noBrowser
		s.start().wait()
		checkErr(t, "Login", s.err, globus.ErrInsecureFile, "chmod 600")
	})
}

// TestLoginSendsTheCodeOnce fails when a code that may have arrived is sent again.
func TestLoginSendsTheCodeOnce(t *testing.T) {
	for name, c := range map[string]struct {
		answers []reply
		cut     func(n int) error
		want    error
		sent    int
	}{
		"answer lost":           {[]reply{ok("{}")}, func(int) error { return errAnswerLost }, globus.ErrUnavailable, 1},
		"503":                   {[]reply{status(503, "")}, nil, globus.ErrUnavailable, 1},
		"429":                   {[]reply{after(status(429, "{}"), "1")}, nil, globus.ErrUnavailable, 1},
		"page of a proxy":       {[]reply{ok(html)}, nil, globus.ErrMisconfigured, 1},
		"never connected":       {[]reply{ok("{}")}, func(int) error { return errNotSent }, globus.ErrUnavailable, 4},
		"connected, then lost":  {[]reply{ok("{}")}, func(n int) error { return map[int]error{1: errNotSent, 2: errAnswerLost}[n] }, globus.ErrUnavailable, 2},
		"invalid_grant":         {[]reply{status(401, `{"error":"invalid_grant"}`)}, nil, globus.ErrLoginRequired, 1},
		"client is not allowed": {[]reply{status(401, globusUnauthorized)}, nil, globus.ErrClientRefused, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &wire{handler: answers(c.answers...), cut: c.cut}
				keys := newKeyboard(t)
				keys.enter(t, "canary-code\n")
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				opts := globus.LoginOptions{In: keys, Out: &screen{}, NoBrowser: true}
				if c.want == globus.ErrLoginRequired {
					opts.In = strings.NewReader("canary-code\n") // the input ends, so there is no second try
				}
				login, err := w.client(t).Login(ctx, opts)
				if login != nil {
					t.Errorf("Login = %v", login)
				}
				if c.want != globus.ErrLoginRequired { // otherwise Login asks for another code, and fails because the input has ended
					checkErr(t, "Login", err, c.want, "exchange the authorization code")
				}
				if n := len(w.sent()); n != c.sent {
					t.Errorf("sent the code %d times, want %d", n, c.sent)
				}
			})
		})
	}
	t.Run("over a real connection", func(t *testing.T) {
		for name, failure := range map[string]globusdev.Failure{
			"lost": {Path: "/v2/oauth2/token", LoseAnswer: true}, "dropped": {Path: "/v2/oauth2/token", Drop: true},
		} {
			s := newSession(t)
			testkit.Must(t, s.dev.FailNext(1, failure))
			s.opts.Browser = func(address string) error { visit(address, ada); return nil }
			s.start().fails(globus.ErrUnavailable, "exchange the authorization code")
			if n := s.dev.count("/v2/oauth2/token", ""); n != 1 {
				t.Errorf("%s: sent the code %d times", name, n)
			}
		}
	})
}

// TestLoginIdentity checks where the identity comes from, and which ID tokens are rejected.
func TestLoginIdentity(t *testing.T) {
	firstKey()
	secondKey()
	anybody := document(map[string]any{"sub": adaSubject, "preferred_username": ada})
	for name, c := range map[string]struct {
		idToken        func(*testing.T, time.Time) globus.Secret
		keys, userinfo reply
		want           error  // nil if it is Ada
		text           string // part of the error
		lost           bool   // no login is returned
	}{
		"signed":                    {signed(nil), ok(jwks(firstKey().Public())), status(500, ""), nil, "", false},
		"keys down":                 {signed(nil), status(500, ""), status(500, ""), nil, "", false},
		"keys are a web page":       {signed(nil), ok(html), status(500, ""), nil, "", false},
		"no such page of keys":      {signed(nil), status(404, "{}"), status(500, ""), nil, "", false},
		"names a username":          {signed(map[string]any{"sub": "ada@example.edu"}), ok(jwks(firstKey().Public())), status(500, ""), globus.ErrMisconfigured, "not a UUID", false},
		"no ID token":               {nil, status(500, ""), ok(anybody), nil, "", false},
		"no ID token, all down":     {nil, status(500, ""), status(500, ""), globus.ErrUnavailable, "get user information", false},
		"expired":                   {issued(-72 * time.Hour), ok(jwks(firstKey().Public())), status(500, ""), errOther, "expired", false},
		"another key":               {signed(nil), ok(jwks(secondKey().Public())), ok(anybody), errOther, "cannot be trusted", true},
		"keys down, for another":    {signed(map[string]any{"aud": serviceID}), status(500, ""), ok(anybody), errOther, "cannot be trusted", true},
		"keys down, another issuer": {signed(map[string]any{"iss": "https://evil.example"}), status(500, ""), ok(anybody), errOther, "cannot be trusted", true},
		"keys down, another token":  {signed(map[string]any{"at_hash": atHash("other")}), status(500, ""), ok(anybody), errOther, "does not belong to this access token", true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				answer := tokenAnswer("auth.globus.org", "A1", "R1")
				if c.idToken != nil {
					answer["id_token"] = c.idToken(t, time.Now()).Reveal()
				}
				w := &wire{handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					answers(map[string]reply{
						"/v2/oauth2/token": ok(document(answer)), "/jwk.json": c.keys, "/v2/oauth2/userinfo": c.userinfo,
					}[r.URL.Path])(w, r)
				})}
				store := newStore(t)
				opts := globus.LoginOptions{In: strings.NewReader("canary-code\n"), Out: &screen{}, NoBrowser: true, Store: store}
				login, err := w.client(t).Login(t.Context(), opts)
				checkErr(t, "Login", err, c.want, c.text)
				if (login == nil) != c.lost {
					t.Errorf("Login = %v, want it lost: %t", login, c.lost)
				}
				if login != nil && login.Tokens[0].RefreshToken != "R1" {
					t.Error("the refresh token is missing")
				}
				saved, loadErr := store.Load()
				if (loadErr == nil) != (err == nil) {
					t.Errorf("Load = %v, %v after %v", saved, loadErr, err)
				}
				if err == nil && login.Identity.Subject != adaSubject {
					t.Errorf("Login = %+v, want Ada", login.Identity)
				}
			})
		})
	}
}

// TestLoginVerifier checks that each login has its own verifier and state, and that the code is
// useless without them.
func TestLoginVerifier(t *testing.T) {
	d := newDev(t)
	seen := map[string]bool{}
	var exchanges atomic.Int32
	d.intercept(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/v2/oauth2/token" {
			exchanges.Add(1)
		}
		return false
	})
	for range 5 {
		s := newSession(t)
		s.dev, s.client = d, d.native(t)
		s.start().succeeds()
		u, err := url.Parse(<-s.opened)
		testkit.Must(t, err)
		for _, name := range []string{"state", "code_challenge"} {
			v := u.Query().Get(name)
			if v == "" || seen[v] {
				t.Errorf("%s %q is empty or has been used before", name, v)
			}
			seen[v] = true
		}
		if got := u.Query().Get("code_challenge_method"); got != "S256" {
			t.Errorf("code_challenge_method = %q", got)
		}
	}
	if n := exchanges.Load(); n != 5 {
		t.Errorf("%d exchanges, want 5", n)
	}
	// A code issued for another challenge or redirect address is rejected.
	s := newSession(t)
	s.env = nil
	s.dev, s.client = d, d.native(t)
	other := newSession(t)
	other.env = nil
	other.dev, other.client = d, d.native(t)
	s.start()
	other.start()
	s.keyboard.enter(t, other.code()+"\n")
	s.screen.await(t, "does not know this code", 1)
}

// TestNoBrowser checks in which environments a browser can be started.
func TestNoBrowser(t *testing.T) {
	for name, c := range map[string]struct {
		goos  string
		env   string
		paste bool
	}{
		"desktop":         {"linux", "DISPLAY=:0", false},
		"wayland":         {"linux", "WAYLAND_DISPLAY=wayland-0", false},
		"console":         {"linux", "", true},
		"windows in it":   {"linux", "WSL_DISTRO_NAME=Debian", false},
		"mac":             {"darwin", "", false},
		"mac over ssh":    {"darwin", "SSH_CONNECTION=x", true},
		"windows":         {"windows", "", false},
		"bsd console":     {"freebsd", "", true},
		"firefox":         {"linux", "DISPLAY=:0 BROWSER=/usr/bin/firefox", false},
		"lynx with flags": {"linux", "DISPLAY=:0 BROWSER=/usr/bin/lynx -accept_all_cookies", true},
		"elinks":          {"linux", "DISPLAY=:0 BROWSER=elinks", true},
		"www-browser":     {"linux", "DISPLAY=:0 BROWSER=www-browser", true},
		"ssh with X":      {"linux", "DISPLAY=localhost:10.0 SSH_CLIENT=x", true},
		"links, on mac":   {"darwin", "BROWSER=links", true},
	} {
		env := map[string]string{}
		last := ""
		for _, pair := range strings.Fields(c.env) {
			if k, v, ok := strings.Cut(pair, "="); ok {
				env[k], last = v, k
			} else {
				env[last] += " " + pair
			}
		}
		if why := globus.NoBrowser(c.goos, func(k string) string { return env[k] }); (why != "") != c.paste {
			t.Errorf("%s: reason to paste %q, want one: %t", name, why, c.paste)
		}
	}
}
