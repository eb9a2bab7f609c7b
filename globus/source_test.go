package globus_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// issuer is a token endpoint for tests of sources.
type issuer struct {
	mu       sync.Mutex
	rotate   bool          // each refresh returns a new refresh token and invalidates the old one
	lifetime time.Duration // of the access tokens
	delay    time.Duration // before each response
	fault    *reply        // the response instead of a token
	alive    map[string]bool
	issued   int
}

func newIssuer(refresh ...string) *issuer {
	i := &issuer{lifetime: 48 * time.Hour, alive: map[string]bool{}}
	for _, r := range refresh {
		i.alive[r] = true
	}
	return i
}

func (i *issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if i.delay > 0 {
		time.Sleep(i.delay) // in the bubble's time
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.fault != nil {
		answers(*i.fault)(w, r)
		return
	}
	sent := r.FormValue("refresh_token")
	if r.FormValue("grant_type") == "refresh_token" && !i.alive[sent] {
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, `{"error":"invalid_grant"}`)
		return
	}
	i.issued++
	answer := tokenAnswer(topics, fmt.Sprintf("access-%d", i.issued), "")
	answer["expires_in"] = int(i.lifetime.Seconds())
	if i.rotate && sent != "" {
		delete(i.alive, sent)
		next := fmt.Sprintf("refresh-%d", i.issued)
		i.alive[next] = true
		answer["refresh_token"] = next
	}
	json.NewEncoder(w).Encode(answer)
}

func (i *issuer) set(change func(*issuer)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change(i)
}

// mustToken returns the source's token, which must be valid now.
func mustToken(t *testing.T, s globus.TokenSource) globus.Token {
	t.Helper()
	token, err := s.Token(t.Context())
	testkit.Must(t, err)
	if token.ResourceServer != topics || !time.Now().Before(token.Expiry) {
		t.Fatalf("Token = one for %s until %v, which is not good", token.ResourceServer, token.Expiry)
	}
	return token
}

// storedLogin returns a store that holds a login made now.
func storedLogin(t *testing.T, refresh string, life time.Duration) *globus.Store {
	t.Helper()
	s := newStore(t)
	login := adaLogin(time.Now())
	login.Tokens[0].RefreshToken = globus.Secret(refresh)
	login.Tokens[0].Expiry = time.Now().Add(life)
	save(t, s, login)
	return s
}

func TestSourceRefreshesAheadOfTime(t *testing.T) {
	for _, life := range []time.Duration{48 * time.Hour, time.Hour, time.Minute, 10 * time.Second} {
		t.Run(life.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				auth := newIssuer("r")
				auth.lifetime, auth.rotate = life, true
				w := &wire{handler: auth}
				s := w.client(t).StoredSource(storedLogin(t, "r", life), topics)
				// A caller asks all the time, for ten lifetimes.
				for begin := time.Now(); time.Since(begin) < 10*life; time.Sleep(life / 200) {
					mustToken(t, s)
				}
				if n := len(w.sent()); n < 9 || n > 14 {
					t.Errorf("refreshed %d times in 10 lifetimes", n)
				}
				// The same after three lifetimes without a call.
				time.Sleep(3 * life)
				mustToken(t, s)
			})
		})
	}
}

func TestSourceDoesNotAskWithoutNeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{handler: newIssuer("r")}
		s := w.client(t).StoredSource(storedLogin(t, "r", 48*time.Hour), topics)
		for range 100 {
			if got := mustToken(t, s).AccessToken; got != "canary-access" {
				t.Fatalf("Token = %s, want the stored one", got.Reveal())
			}
		}
		time.Sleep(48*time.Hour - 91*time.Second) // the longest margin is 90 s
		mustToken(t, s)
		if n := len(w.sent()); n != 0 {
			t.Errorf("sent %d requests, want none", n)
		}
	})
}

func TestSourceSingleFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		auth := newIssuer("r")
		auth.rotate, auth.delay = true, 3*time.Second
		w := &wire{handler: auth}
		store := storedLogin(t, "r", -time.Second)
		// Two sources on one file stand for two processes.
		sources := []*globus.Source{w.client(t).StoredSource(store, topics), w.client(t).StoredSource(store, topics)}
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Go(func() {
				if got := mustToken(t, sources[i%2]).AccessToken; got != "access-1" {
					t.Errorf("Token = %s, want access-1", got.Reveal())
				}
			})
		}
		wg.Wait()
		if n := len(w.sent()); n != 1 {
			t.Errorf("sent %d requests, want 1", n)
		}
	})
}

func TestSourceOutage(t *testing.T) {
	outage := status(503, "")
	synctest.Test(t, func(t *testing.T) {
		auth := newIssuer("r")
		w := &wire{handler: auth}
		s := w.client(t).StoredSource(storedLogin(t, "r", time.Hour), topics)
		mustToken(t, s)
		auth.set(func(i *issuer) { i.fault = &outage })

		// While the old token is valid, callers hardly notice the outage.
		time.Sleep(time.Hour - 50*time.Second)
		for range 45 {
			begin := time.Now()
			if got := mustToken(t, s).AccessToken; got != "canary-access" {
				t.Fatalf("Token = %s", got.Reveal())
			}
			if took := time.Since(begin); took > 2*time.Second {
				t.Fatalf("waited %v for a token that was at hand", took)
			}
			time.Sleep(time.Second - time.Since(begin)%time.Second)
			if time.Until(mustToken(t, s).Expiry) < 6*time.Second {
				break
			}
		}
		if n := len(w.sent()); n > 40 {
			t.Errorf("sent %d requests within 50 s of outage", n)
		}
		// Afterwards, there is no token, but the error does not ask for a new login.
		time.Sleep(10 * time.Second)
		_, err := s.Token(t.Context())
		checkErr(t, "Token", err, globus.ErrUnavailable, "503")
		// After the outage, everything works again.
		auth.set(func(i *issuer) { i.fault = nil })
		mustToken(t, s)
	})
}

func TestSourceHangingRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })}
		s := w.client(t).StoredSource(storedLogin(t, "r", 30*time.Second), topics)
		begin := time.Now()
		mustToken(t, s)
		time.Sleep(25 * time.Second) // due: a token of 30 s is renewed 7.5 s before its expiry
		mustToken(t, s)
		if took := time.Since(begin) - 25*time.Second; took > 4*time.Second {
			t.Errorf("waited %v for a token that is still valid", took)
		}
		if len(w.sent()) == 0 {
			t.Error("the token was due, and no renewal was tried")
		}
		// Without a valid token, the caller's ctx bounds the wait.
		time.Sleep(time.Minute)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		begin = time.Now()
		if _, err := s.Token(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != 5*time.Second {
			t.Errorf("Token = %v after %v, want the deadline after 5s", err, time.Since(begin))
		}
		begin = time.Now()
		_, err := s.Token(t.Context())
		checkErr(t, "Token", err, globus.ErrUnavailable, "not renewed")
		if took := time.Since(begin); took > time.Minute {
			t.Errorf("took %v to give up", took)
		}
	})
}

// TestSourceRefreshOutlivesItsCaller: the response to a refresh may contain the only refresh token
// that is still valid, so it must be received even if the caller gives up.
func TestSourceRefreshOutlivesItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		auth := newIssuer("r")
		auth.rotate, auth.delay = true, 3*time.Second
		w := &wire{handler: auth}
		store := storedLogin(t, "r", -time.Second)
		s := w.client(t).StoredSource(store, topics)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := s.Token(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Token = %v, want the deadline", err)
		}
		time.Sleep(10 * time.Second)
		login, err := store.Load()
		testkit.Must(t, err)
		if token, _ := login.Token(topics); token.RefreshToken != "refresh-1" {
			t.Errorf("the file holds %q, want the rotated refresh token", token.RefreshToken.Reveal())
		}
	})
}

// TestSourcePersistsBeforeUse fails when a source returns an access token before the refresh token
// is on disk.
func TestSourcePersistsBeforeUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		auth := newIssuer("r")
		auth.rotate, auth.lifetime = true, time.Minute
		w := &wire{handler: auth}
		store := storedLogin(t, "r", -time.Second)
		s := w.client(t).StoredSource(store, topics)
		for range 20 {
			got := mustToken(t, s)
			login, err := store.Load()
			testkit.Must(t, err)
			if on, _ := login.Token(topics); on.AccessToken != got.AccessToken || on.RefreshToken != got.RefreshToken {
				t.Fatalf("handed out %s, but %s is on disk", got.AccessToken.Reveal(), on.AccessToken.Reveal())
			}
			if other, _ := login.Token("auth.globus.org"); other.RefreshToken != "canary-refresh-auth" {
				t.Fatal("another resource server's token was lost")
			}
			if login.Identity.Username != "ada@example.edu" {
				t.Fatal("the identity was lost")
			}
			time.Sleep(50 * time.Second)
		}
	})
}

func TestSourceLoginRequired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		auth := newIssuer() // no refresh token is valid
		w := &wire{handler: auth}
		store := storedLogin(t, "r", -time.Second)
		s := w.client(t).StoredSource(store, topics)
		for range 5 {
			_, err := s.Token(t.Context())
			checkErr(t, "Token", err, globus.ErrLoginRequired, "")
		}
		if n := len(w.sent()); n != 1 {
			t.Errorf("sent %d requests with a dead refresh token, want 1", n)
		}
		login, err := store.Load()
		testkit.Must(t, err)
		if _, ok := login.Token(topics); ok {
			t.Error("the dead token is still on disk")
		}
		if _, ok := login.Token("auth.globus.org"); !ok || login.Identity.Subject != adaSubject {
			t.Error("more than the dead token was removed")
		}
		// A new login makes the running source work again.
		auth.set(func(i *issuer) { i.alive["new"] = true })
		again := adaLogin(time.Now())
		again.Tokens[0].RefreshToken, again.Tokens[0].Expiry = "new", time.Now()
		save(t, store, again)
		mustToken(t, s)
	})
}

func TestSourceNoToken(t *testing.T) {
	bob := adaLogin(time.Now())
	bob.Identity = globus.Identity{Subject: bobSubject, Username: "bob@example.edu"}
	for name, c := range map[string]struct {
		change func(*globus.Login)
		text   string
	}{
		"another resource server": {func(l *globus.Login) { l.Tokens = l.Tokens[1:] }, "no token for " + topics},
		"no refresh token":        {func(l *globus.Login) { l.Tokens[0].RefreshToken = ""; l.Tokens[0].Expiry = time.Now() }, "without a refresh token"},
		"another Globus Auth":     {func(l *globus.Login) { l.Issuer = "http://127.0.0.1:9090" }, "is from http://127.0.0.1:9090"},
		"another client":          {func(l *globus.Login) { l.ClientID = serviceID }, "for the client " + serviceID},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				login := adaLogin(time.Now())
				c.change(login)
				store := newStore(t)
				save(t, store, login)
				w := &wire{handler: newIssuer("canary-refresh")}
				_, err := w.client(t).StoredSource(store, topics).Token(t.Context())
				checkErr(t, "Token", err, globus.ErrLoginRequired, c.text)
				if n := len(w.sent()); n != 0 {
					t.Errorf("sent %d requests", n)
				}
			})
		})
	}
	t.Run("nobody is logged in", func(t *testing.T) {
		w := &wire{}
		_, err := w.client(t).StoredSource(newStore(t), topics).Token(t.Context())
		checkErr(t, "Token", err, globus.ErrLoginRequired, "no tokens in")
	})
	t.Run("the file is not private", func(t *testing.T) {
		store := storedLogin(t, "r", time.Hour)
		testkit.Must(t, os.Chmod(store.Path(), 0o644))
		w := &wire{}
		_, err := w.client(t).StoredSource(store, topics).Token(t.Context())
		checkErr(t, "Token", err, globus.ErrInsecureFile, "chmod 600")
	})
	t.Run("somebody else logs in to the file of a running source", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			store := storedLogin(t, "canary-refresh", time.Hour)
			w := &wire{handler: newIssuer("canary-refresh")}
			s := w.client(t).StoredSource(store, topics)
			mustToken(t, s)
			testkit.Must(t, store.Delete(t.Context()))
			save(t, store, bob)
			time.Sleep(2 * time.Hour)
			_, err := s.Token(t.Context())
			checkErr(t, "Token", err, globus.ErrLoginRequired, "now holds the login of bob@example.edu")
		})
	})
	t.Run("logged out while refreshing", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			store := storedLogin(t, "r", -time.Second)
			auth := newIssuer("r")
			w := &wire{handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				os.Remove(store.Path()) // by a program that ignores locks
				auth.ServeHTTP(w, r)
			})}
			_, err := w.client(t).StoredSource(store, topics).Token(t.Context())
			checkErr(t, "Token", err, globus.ErrLoginRequired, "")
			if _, err := os.Stat(store.Path()); !os.IsNotExist(err) {
				t.Error("the refresh brought the login back")
			}
		})
	})
}

// TestSourceWithoutLocks: without locks, two processes may refresh at the same time. The later one
// must use what the other has saved.
func TestSourceWithoutLocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := storedLogin(t, "r", -time.Second)
		auth := newIssuer() // "r" has been rotated away …
		w := &wire{handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.FormValue("refresh_token") == "r" { // … and its successor is saved right now
				login := adaLogin(time.Now())
				login.Tokens[0].RefreshToken = "successor"
				data := strings.NewReplacer(`"refresh_token": "r"`, `"refresh_token": "successor"`,
					`"access_token": "canary-access"`, `"access_token": "other-access"`)
				b, _ := os.ReadFile(store.Path())
				os.WriteFile(store.Path(), []byte(data.Replace(string(b))), 0o600)
				auth.alive["successor"] = true
			}
			auth.ServeHTTP(w, r)
		})}
		if got := mustToken(t, w.client(t).StoredSource(store, topics)).AccessToken; got != "access-1" {
			t.Errorf("Token = %s", got.Reveal())
		}
	})
}

// TestSourceCannotSave fails when a full or read-only disk makes a source unusable.
func TestSourceCannotSave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		auth := newIssuer("r")
		auth.rotate, auth.lifetime = true, time.Minute
		store := storedLogin(t, "r", -time.Second)
		// A directory that is not empty takes the place of the new file.
		block := store.Path() + ".tmp"
		testkit.Must(t, os.MkdirAll(filepath.Join(block, "x"), 0o700))
		var warnings atomic.Int32
		w := &wire{handler: auth}
		s := w.client(t, func(cfg *globus.Config) {
			cfg.Diagnostics = slog.New(countHandler{slog.DiscardHandler, &warnings})
		}).StoredSource(store, topics)
		for range 5 {
			mustToken(t, s)
			time.Sleep(time.Minute)
		}
		if n := warnings.Load(); n != 5 {
			t.Errorf("%d warnings, want 5", n)
		}
		// Once the disk is writable again, the newest token is saved.
		testkit.Must(t, os.RemoveAll(block))
		got := mustToken(t, s)
		login, err := store.Load()
		testkit.Must(t, err)
		if on, _ := login.Token(topics); on.RefreshToken != got.RefreshToken {
			t.Errorf("on disk is %q, want %q", on.RefreshToken.Reveal(), got.RefreshToken.Reveal())
		}
	})
}

type countHandler struct {
	slog.Handler
	n *atomic.Int32
}

func (h countHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }
func (h countHandler) Handle(context.Context, slog.Record) error    { h.n.Add(1); return nil }

// TestSourceIsAskedToWait: a source without a token respects Retry-After, up to a limit.
func TestSourceIsAskedToWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		auth := newIssuer("r")
		overload := after(status(429, "{}"), "3600")
		auth.fault = &overload
		w := &wire{handler: auth}
		s := w.client(t).StoredSource(storedLogin(t, "r", -time.Second), topics)
		for range 59 {
			_, err := s.Token(t.Context())
			checkErr(t, "Token", err, globus.ErrUnavailable, "429")
			time.Sleep(time.Second)
		}
		if n := len(w.sent()); n != 1 {
			t.Errorf("sent %d requests, want 1", n)
		}
		auth.set(func(i *issuer) { i.fault = nil })
		time.Sleep(time.Second)
		mustToken(t, s)
	})
}

// TestSourceStartsInAnOutage: a token on disk is used while it is valid.
func TestSourceStartsInAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })}
		store := newStore(t)
		login := adaLogin(time.Now().Add(-48*time.Hour + 30*time.Second)) // expires in half a minute
		save(t, store, login)
		begin := time.Now()
		if got := mustToken(t, w.client(t).StoredSource(store, topics)).AccessToken; got != "canary-access" {
			t.Errorf("Token = %s", got.Reveal())
		}
		if took := time.Since(begin); took > 2*time.Second {
			t.Errorf("waited %v for a token that was on disk", took)
		}
		time.Sleep(time.Minute) // until the renewal gives up
	})
}

func TestSourceRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{handler: newIssuer("r")}
		s := w.client(t).StoredSource(storedLogin(t, "r", 48*time.Hour), topics)
		old := mustToken(t, s)
		s.Refused("something else")
		if got := mustToken(t, s); got.AccessToken != old.AccessToken {
			t.Error("a token that nobody refused was replaced")
		}
		s.Refused(old.AccessToken)
		if got := mustToken(t, s); got.AccessToken == old.AccessToken {
			t.Error("the refused token was handed out again")
		}
		if n := len(w.sent()); n != 1 {
			t.Errorf("sent %d requests, want 1", n)
		}
	})
}

func TestSourceWaitsForTheLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := storedLogin(t, "r", -time.Second)
		unlock := globus.LockStore(t, store)
		defer unlock()
		w := &wire{handler: newIssuer("r")}
		_, err := w.client(t).StoredSource(store, topics).Token(t.Context())
		checkErr(t, "Token", err, globus.ErrUnavailable, "lock")
		if n := len(w.sent()); n != 0 {
			t.Errorf("sent %d requests without the lock", n)
		}
	})
}

func TestRefreshSource(t *testing.T) {
	blocked := filepath.Join(t.TempDir(), "file")
	testkit.Must(t, os.WriteFile(blocked, nil, 0o600))
	for name, dir := range map[string]string{
		"with a folder":    filepath.Join(t.TempDir(), "a", "cache"),
		"in memory":        "",
		"not writable":     filepath.Join(blocked, "cache"),
		"folder is a file": blocked,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				auth := newIssuer("canary-env-refresh")
				auth.rotate, auth.lifetime = true, time.Hour
				w := &wire{handler: auth}
				s := w.client(t).RefreshSource("canary-env-refresh", topics, dir)
				for range 5 {
					mustToken(t, s)
					mustToken(t, s)
					time.Sleep(time.Hour)
				}
				if n := len(w.sent()); n != 5 {
					t.Errorf("sent %d requests, want 5", n)
				}
			})
		})
	}
}

// TestRefreshSourceIsShared: programs with the same DIASPORA_REFRESH share the access token, and
// keep working when the refresh token is rotated.
func TestRefreshSourceIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "cache")
		auth := newIssuer("canary-env-refresh")
		auth.rotate, auth.lifetime = true, time.Hour
		w := &wire{handler: auth}
		for range 5 { // one program after another
			mustToken(t, w.client(t).RefreshSource("canary-env-refresh", topics, dir))
		}
		if n := len(w.sent()); n != 1 {
			t.Errorf("sent %d requests, want 1", n)
		}
		time.Sleep(2 * time.Hour)
		mustToken(t, w.client(t).RefreshSource("canary-env-refresh", topics, dir))
		if got := w.sent()[1].form.Get("refresh_token"); got != "refresh-1" {
			t.Errorf("refreshed with %q, want the rotated one", got)
		}
		entries, err := os.ReadDir(dir)
		testkit.Must(t, err)
		for _, e := range entries {
			info, err := e.Info()
			if err != nil || info.Mode().Perm() != 0o600 || strings.Contains(e.Name(), "canary") {
				t.Errorf("%s has mode %v, %v", e.Name(), info.Mode(), err)
			}
		}
		// Another refresh token belongs to another person or client.
		auth.set(func(i *issuer) { i.alive["somebody-else"] = true })
		before := len(w.sent())
		mustToken(t, w.client(t).RefreshSource("somebody-else", topics, dir))
		if sent := w.sent(); len(sent) != before+1 || sent[before].form.Get("refresh_token") != "somebody-else" {
			t.Error("one refresh token got what belongs to another")
		}
		if _, err := w.client(t, confidential).RefreshSource("canary-env-refresh", topics, dir).Token(t.Context()); !errors.Is(err, globus.ErrLoginRequired) {
			t.Errorf("Token = %v, want ErrLoginRequired", err)
		}
	})
}

func TestRefreshSourceFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "cache")
		w := &wire{handler: newIssuer()}
		s := w.client(t).RefreshSource("dead", topics, dir)
		for range 3 {
			_, err := s.Token(t.Context())
			checkErr(t, "Token", err, globus.ErrLoginRequired, "")
		}
		if n := len(w.sent()); n != 1 {
			t.Errorf("sent %d requests, want 1", n)
		}

		w = &wire{handler: newIssuer("r")}
		_, err := w.client(t).RefreshSource("r", "groups.api.globus.org", dir).Token(t.Context())
		checkErr(t, "Token", err, globus.ErrLoginRequired, "is for "+topics+", not for groups.api.globus.org")

		// The cache holds an invalid refresh token, the environment a valid one.
		auth := newIssuer("env")
		auth.rotate, auth.lifetime = true, time.Hour
		w = &wire{handler: auth}
		mustToken(t, w.client(t).RefreshSource("env", topics, dir))
		auth.set(func(i *issuer) { i.alive = map[string]bool{"env": true} })
		time.Sleep(2 * time.Hour)
		mustToken(t, w.client(t).RefreshSource("env", topics, dir))
	})
}

// TestTokenHeedsItsContext has callers wait for a renewal that another caller has started. Each
// must return when its own context ends.
func TestTokenHeedsItsContext(t *testing.T) {
	const patience = 100 * time.Millisecond
	sources := map[string]func(*testing.T, *wire) *globus.Source{
		"stored": func(t *testing.T, w *wire) *globus.Source {
			return w.client(t).StoredSource(storedLogin(t, "r", -time.Second), topics)
		},
		"refresh": func(t *testing.T, w *wire) *globus.Source {
			return w.client(t).RefreshSource("r", topics, t.TempDir())
		},
		"memory": func(t *testing.T, w *wire) *globus.Source {
			return w.client(t).RefreshSource("r", topics, "")
		},
		"credentials": func(t *testing.T, w *wire) *globus.Source {
			return w.client(t, confidential).ClientCredentialsSource(topics, topicsScope)
		},
	}
	for name, open := range sources {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				auth := newIssuer("r")
				auth.delay = 4 * time.Second
				s := open(t, &wire{handler: auth})
				go s.Token(context.WithoutCancel(t.Context()))
				synctest.Wait() // until the caller waits for the response
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				start := time.Now()
				_, err := s.Token(ctx)
				if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took > patience {
					t.Errorf("Token = %v after %v, want the end of the context after %v", err, took, patience)
				}
				time.Sleep(10 * time.Second) // until the renewal is over
			})
		})
	}
}

// TestDiagnosticsHoldUpNobody has the handler of the diagnostics hang after a failed renewal.
func TestDiagnosticsHoldUpNobody(t *testing.T) {
	auth := newIssuer("r")
	auth.fault = &reply{status: http.StatusBadRequest, body: `{"error":"invalid_request"}`}
	told, hang := make(chan struct{}), make(chan struct{})
	client := (&wire{handler: auth}).client(t, func(c *globus.Config) {
		c.Diagnostics = slog.New(hangingHandler{slog.DiscardHandler, told, hang})
	})
	store := newStore(t)
	login := adaLogin(time.Now())
	login.Tokens[0].RefreshToken, login.Tokens[0].Expiry, login.Tokens[0].Obtained = "r", time.Now().Add(30*time.Second), time.Time{}
	save(t, store, login)
	s := client.StoredSource(store, topics) // valid, and due for renewal
	go s.Token(context.WithoutCancel(t.Context()))
	select {
	case <-told:
	case <-time.After(20 * time.Second):
		t.Fatal("nothing was said of the renewal")
	}
	answered := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_, err := s.Token(ctx)
		answered <- err
	}()
	select {
	case err := <-answered:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("Token waits for whoever takes the diagnostics, although the token at hand is good")
	}
	close(hang)
	s.Settle()
}

// hangingHandler is a handler that reports when it is called, and returns only after hang is
// closed.
type hangingHandler struct {
	slog.Handler
	told chan<- struct{}
	hang <-chan struct{}
}

func (h hangingHandler) Enabled(context.Context, slog.Level) bool { return true }

func (h hangingHandler) Handle(context.Context, slog.Record) error {
	close(h.told)
	<-h.hang
	return nil
}

// TestAskedToWaitIsAnError asks a source for tokens while Globus Auth has asked it to wait and a
// renewal succeeds. Each call must return a token or an error.
func TestAskedToWaitIsAnError(t *testing.T) {
	auth := newIssuer("r")
	auth.fault = &reply{status: http.StatusServiceUnavailable, header: http.Header{"Retry-After": {"30"}}}
	s := (&wire{handler: auth}).client(t).StoredSource(storedLogin(t, "r", -time.Second), topics)
	_, err := s.Token(t.Context())
	checkErr(t, "Token", err, globus.ErrUnavailable, "")
	var ended atomic.Bool
	var asking sync.WaitGroup
	for range 4 {
		asking.Go(func() {
			for !ended.Load() {
				token, err := s.Token(t.Context())
				if err == nil && token.AccessToken == "" {
					t.Error("Token = an empty one, and no error")
					return
				}
			}
		})
	}
	for range 100_000 {
		globus.SucceedAndFail(s)
	}
	ended.Store(true)
	asking.Wait()
}

func TestClientCredentialsSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		auth := newIssuer()
		auth.lifetime = time.Hour
		w := &wire{handler: auth}
		s := w.client(t, confidential).ClientCredentialsSource(topics, topicsScope)
		for range 3 {
			mustToken(t, s)
			mustToken(t, s)
			time.Sleep(time.Hour)
		}
		if n := len(w.sent()); n != 3 {
			t.Errorf("sent %d requests, want 3", n)
		}
		_, err := w.client(t, confidential).ClientCredentialsSource("elsewhere", topicsScope).Token(t.Context())
		checkErr(t, "Token", err, globus.ErrClientRefused, "gave no token for elsewhere")
	})
}

func TestStaticToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		token := sampleToken("a", "", time.Now())
		token.Expiry = time.Now().Add(time.Minute)
		s := globus.StaticToken(token)
		mustToken(t, s)
		time.Sleep(time.Minute)
		_, err := s.Token(t.Context())
		checkErr(t, "Token", err, globus.ErrLoginRequired, "expired")
	})
}
