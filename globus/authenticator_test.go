package globus_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// introspector is an [globus.Introspector] that answers from a map and counts its calls.
type introspector struct {
	mu       sync.Mutex
	tokens   map[globus.Secret]globus.TokenInfo
	fault    error
	hang     bool
	delay    time.Duration
	asked    int
	now, max int // concurrent calls: current number and maximum
}

func (i *introspector) Introspect(ctx context.Context, token globus.Secret) (globus.TokenInfo, error) {
	i.mu.Lock()
	i.asked++
	i.now++
	i.max = max(i.max, i.now)
	hang, delay := i.hang, i.delay
	i.mu.Unlock()
	defer func() { i.mu.Lock(); i.now--; i.mu.Unlock() }()
	if hang {
		<-ctx.Done()
		return globus.TokenInfo{}, context.Cause(ctx)
	}
	time.Sleep(delay) // in the bubble's time
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.fault != nil {
		return globus.TokenInfo{}, i.fault
	}
	info, ok := i.tokens[token]
	if !ok {
		return globus.TokenInfo{}, &globus.RefusedError{Reason: "inactive"}
	}
	return info, nil
}

func (i *introspector) set(change func(*introspector)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change(i)
}

func (i *introspector) calls() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.asked
}

const askTimeout = 10 * time.Second

const authIssuer = "https://auth.globus.org"

// goodInfo is the introspection result for a valid token for this service, issued now.
func goodInfo() globus.TokenInfo {
	return globus.TokenInfo{
		Identity: globus.Identity{Subject: adaSubject, Username: "ada@example.edu"},
		ClientID: nativeID,
		Issuer:   authIssuer,
		Audience: []string{topics, nativeID},
		Scope:    []string{"openid", topicsScope},
		IssuedAt: time.Now(), NotBefore: time.Now(), Expiry: time.Now().Add(48 * time.Hour),
	}
}

func newAuthenticator(t *testing.T, i globus.Introspector, change ...func(*globus.AuthenticatorConfig)) *globus.Authenticator {
	t.Helper()
	cfg := globus.AuthenticatorConfig{Introspector: i, Issuer: authIssuer, Audience: topics, Scope: topicsScope}
	for _, f := range change {
		f(&cfg)
	}
	a, err := globus.NewAuthenticator(cfg)
	testkit.Must(t, err)
	return a
}

// TestAuthenticate checks which tokens are accepted.
func TestAuthenticate(t *testing.T) {
	const token = "canary-access"
	for name, c := range map[string]struct {
		change func(*globus.TokenInfo)
		want   string // the reason for the rejection; "" if the token is accepted
	}{
		"good":                     {func(*globus.TokenInfo) {}, ""},
		"just enough":              {func(i *globus.TokenInfo) { i.Audience, i.Scope = []string{topics}, []string{topicsScope} }, ""},
		"of a service":             {func(i *globus.TokenInfo) { i.Subject, i.Username, i.IdentitySet = nativeID, "", nil }, ""},
		"expired":                  {func(i *globus.TokenInfo) { i.Expiry = time.Now() }, "expired at"},
		"never expires":            {func(i *globus.TokenInfo) { i.Expiry = time.Time{} }, "does not say when it expires"},
		"nbf 4 minutes ahead":      {func(i *globus.TokenInfo) { i.NotBefore = time.Now().Add(4 * time.Minute) }, ""},
		"nbf 6 minutes ahead":      {func(i *globus.TokenInfo) { i.NotBefore = time.Now().Add(6 * time.Minute) }, "not valid yet"},
		"iat 6 minutes ahead":      {func(i *globus.TokenInfo) { i.IssuedAt = time.Now().Add(6 * time.Minute) }, "not valid yet"},
		"no nbf, no iat":           {func(i *globus.TokenInfo) { i.NotBefore, i.IssuedAt = time.Time{}, time.Time{} }, ""},
		"another issuer":           {func(i *globus.TokenInfo) { i.Issuer = authIssuer + "/" }, "somebody else than " + authIssuer},
		"no issuer":                {func(i *globus.TokenInfo) { i.Issuer = "" }, "somebody else"},
		"for another service":      {func(i *globus.TokenInfo) { i.Audience = []string{"transfer.api.globus.org", nativeID} }, "another service"},
		"for nobody":               {func(i *globus.TokenInfo) { i.Audience = nil }, "another service"},
		"audience almost ours":     {func(i *globus.TokenInfo) { i.Audience = []string{topics + "0"} }, "another service"},
		"scope missing":            {func(i *globus.TokenInfo) { i.Scope = []string{"openid"} }, "lacks the scope " + topicsScope},
		"scope almost ours":        {func(i *globus.TokenInfo) { i.Scope = []string{topicsScope + "_but_less"} }, "lacks the scope"},
		"username as the subject":  {func(i *globus.TokenInfo) { i.Subject, i.Username = bobSubject, "ada@example.edu" }, ""},
		"wrong audience and scope": {func(i *globus.TokenInfo) { i.Audience, i.Scope = nil, nil }, "another service"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				info := goodInfo()
				c.change(&info)
				i := &introspector{tokens: map[globus.Secret]globus.TokenInfo{token: info}}
				a := newAuthenticator(t, i)
				for range 2 { // the second result comes from the cache
					got, err := a.Authenticate(t.Context(), token)
					if c.want == "" {
						if err != nil || got.Subject != info.Subject {
							t.Errorf("Authenticate = %q, %v, want %q", got.Subject, err, info.Subject)
						}
						continue
					}
					checkErr(t, "Authenticate", err, globus.ErrRefused, c.want)
					var refused *globus.RefusedError
					if !errors.As(err, &refused) || strings.Contains(refused.Reason, token) {
						t.Errorf("Authenticate = %#v, want a RefusedError without the token", err)
					}
					if missing := strings.Contains(c.want, "scope"); missing != (refused.MissingScope == topicsScope) {
						t.Errorf("MissingScope = %q", refused.MissingScope)
					}
				}
				if n := i.calls(); n != 1 {
					t.Errorf("asked %d times, want once", n)
				}
			})
		})
	}
	t.Run("what cannot be a token", func(t *testing.T) {
		i := &introspector{}
		a := newAuthenticator(t, i)
		for _, bad := range []globus.Secret{"", " ", "a b", "a\x00", "ä", globus.Secret(strings.Repeat("a", 4097))} {
			_, err := a.Authenticate(t.Context(), bad)
			checkErr(t, "Authenticate", err, globus.ErrRefused, "the access token")
		}
		if n := i.calls(); n != 0 {
			t.Errorf("asked %d times", n)
		}
	})
}

func TestNewAuthenticator(t *testing.T) {
	full := globus.AuthenticatorConfig{Introspector: &introspector{}, Issuer: authIssuer, Audience: topics, Scope: topicsScope}
	for name, remove := range map[string]func(*globus.AuthenticatorConfig){
		"introspector": func(c *globus.AuthenticatorConfig) { c.Introspector = nil },
		"issuer":       func(c *globus.AuthenticatorConfig) { c.Issuer = "" },
		"audience":     func(c *globus.AuthenticatorConfig) { c.Audience = "" },
		"scope":        func(c *globus.AuthenticatorConfig) { c.Scope = "" },
	} {
		cfg := full
		remove(&cfg)
		if _, err := globus.NewAuthenticator(cfg); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("NewAuthenticator without %s = %v", name, err)
		}
	}
}

func TestAuthenticatorSeesRevocation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &introspector{tokens: map[globus.Secret]globus.TokenInfo{"tok": goodInfo()}}
		a := newAuthenticator(t, i)
		mustKnow(t, a, "tok")
		i.set(func(i *introspector) { delete(i.tokens, "tok") })
		time.Sleep(30*time.Second - time.Nanosecond)
		mustKnow(t, a, "tok") // still fresh
		time.Sleep(time.Nanosecond)
		_, err := a.Authenticate(t.Context(), "tok")
		checkErr(t, "Authenticate", err, globus.ErrRefused, "")
		if n := i.calls(); n != 2 {
			t.Errorf("asked %d times, want 2", n)
		}
		// An outage does not make the token valid again.
		i.set(func(i *introspector) { i.fault = globus.ErrUnavailable })
		_, err = a.Authenticate(t.Context(), "tok")
		checkErr(t, "Authenticate", err, globus.ErrRefused, "")
		time.Sleep(time.Minute)
		_, err = a.Authenticate(t.Context(), "tok")
		checkErr(t, "Authenticate", err, globus.ErrUnavailable, "")
	})
}

// checkOutage checks that err says that the token's state is unknown, and whether retrying helps.
func checkOutage(t *testing.T, call string, err, want error) {
	t.Helper()
	for _, s := range []error{globus.ErrUnavailable, globus.ErrMisconfigured, globus.ErrRefused} {
		if got := errors.Is(err, s); got != (s == want) {
			t.Errorf("%s = %v: errors.Is %q = %t, want %t", call, err, s, got, s == want)
		}
	}
}

func mustKnow(t *testing.T, a *globus.Authenticator, token globus.Secret) {
	t.Helper()
	info, err := a.Authenticate(t.Context(), token)
	if err != nil || info.Subject != adaSubject {
		t.Fatalf("Authenticate = %q, %v, want Ada", info.Subject, err)
	}
}

func TestAuthenticatorExpiresWhatItRemembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		info := goodInfo()
		info.Expiry = time.Now().Add(10 * time.Second)
		i := &introspector{tokens: map[globus.Secret]globus.TokenInfo{"tok": info}}
		a := newAuthenticator(t, i)
		mustKnow(t, a, "tok")
		time.Sleep(10 * time.Second)
		_, err := a.Authenticate(t.Context(), "tok")
		checkErr(t, "Authenticate", err, globus.ErrRefused, "expired at")
		// An outage does not extend its validity either.
		i.set(func(i *introspector) { i.fault = globus.ErrUnavailable })
		time.Sleep(time.Minute)
		_, err = a.Authenticate(t.Context(), "tok")
		checkErr(t, "Authenticate", err, globus.ErrRefused, "expired at")
	})
}

func TestAuthenticatorRemembersRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &introspector{tokens: map[globus.Secret]globus.TokenInfo{}}
		a := newAuthenticator(t, i)
		for range 5 {
			_, err := a.Authenticate(t.Context(), "tok")
			checkErr(t, "Authenticate", err, globus.ErrRefused, "")
			time.Sleep(time.Second)
		}
		if n := i.calls(); n != 1 {
			t.Errorf("asked %d times, want once", n)
		}
		i.set(func(i *introspector) { i.tokens["tok"] = goodInfo() })
		time.Sleep(5 * time.Second)
		mustKnow(t, a, "tok")
	})
}

// TestAuthenticatorOutage: known tokens stay valid, and callers with unknown ones are asked to
// retry.
func TestAuthenticatorOutage(t *testing.T) {
	for name, c := range map[string]struct{ fault, want error }{
		"Globus Auth is away":           {fmt.Errorf("no route: %w", globus.ErrUnavailable), globus.ErrUnavailable},
		"something odd":                 {errors.New("odd"), globus.ErrUnavailable},
		"our own secret is refused":     {globus.ErrClientRefused, globus.ErrMisconfigured},
		"our own question is malformed": {&globus.Error{Op: "introspect token", Status: 400, Code: "invalid_request"}, globus.ErrMisconfigured},
		"somebody else answers":         {fmt.Errorf("%w: a web page", globus.ErrMisconfigured), globus.ErrMisconfigured},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i := &introspector{tokens: map[globus.Secret]globus.TokenInfo{"known": goodInfo(), "unknown": goodInfo()}}
				a := newAuthenticator(t, i)
				mustKnow(t, a, "known")
				i.set(func(i *introspector) { i.fault = c.fault })

				_, err := a.Authenticate(t.Context(), "unknown")
				checkOutage(t, "Authenticate", err, c.want)
				before := i.calls()
				for begin := time.Now(); time.Since(begin) < time.Hour-time.Second; time.Sleep(time.Second) {
					mustKnow(t, a, "known")
				}
				if n := i.calls() - before; n < 700 || n > 720 {
					t.Errorf("asked %d times in an hour of outage, want every 5 s", n)
				}
				time.Sleep(time.Minute)
				_, err = a.Authenticate(t.Context(), "known")
				checkOutage(t, "Authenticate after StaleFor", err, c.want)
				i.set(func(i *introspector) { i.fault = nil })
				mustKnow(t, a, "known")
				mustKnow(t, a, "unknown")
			})
		})
	}
	t.Run("revoked during the outage", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			i := &introspector{tokens: map[globus.Secret]globus.TokenInfo{"tok": goodInfo()}}
			a := newAuthenticator(t, i)
			mustKnow(t, a, "tok")
			i.set(func(i *introspector) { i.fault = globus.ErrUnavailable; delete(i.tokens, "tok") })
			time.Sleep(time.Minute)
			mustKnow(t, a, "tok")
			i.set(func(i *introspector) { i.fault = nil })
			time.Sleep(5 * time.Second)
			_, err := a.Authenticate(t.Context(), "tok")
			checkErr(t, "Authenticate", err, globus.ErrRefused, "")
		})
	})
	t.Run("Globus Auth hangs", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			i := &introspector{tokens: map[globus.Secret]globus.TokenInfo{"tok": goodInfo()}}
			a := newAuthenticator(t, i)
			mustKnow(t, a, "tok")
			i.set(func(i *introspector) { i.hang = true })
			time.Sleep(time.Minute)
			begin := time.Now()
			mustKnow(t, a, "tok")
			if took := time.Since(begin); took != 500*time.Millisecond {
				t.Errorf("a known token waited %v, want 500ms", took)
			}
			begin = time.Now()
			_, err := a.Authenticate(t.Context(), "unknown")
			checkErr(t, "Authenticate", err, globus.ErrUnavailable, "no answer within 10s")
			if took := time.Since(begin); took != 10*time.Second {
				t.Errorf("an unknown token waited %v, want 10s", took)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if _, err := a.Authenticate(ctx, "unknown"); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Authenticate = %v, want the caller's deadline", err)
			}
			time.Sleep(10 * time.Second) // the request continues without its caller, and ends
		})
	})
}

// TestAuthenticatorSlow has Globus Auth respond late, and then not at all. Known tokens wait once,
// all of them together. Unknown ones wait for the response.
func TestAuthenticatorSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &introspector{tokens: map[globus.Secret]globus.TokenInfo{}}
		for _, token := range []globus.Secret{"first", "second", "new"} {
			i.tokens[token] = goodInfo()
		}
		a := newAuthenticator(t, i)
		takes := func(token globus.Secret, want time.Duration, wantErr error) {
			t.Helper()
			began := time.Now()
			_, err := a.Authenticate(t.Context(), token)
			if took := time.Since(began); took != want || !errors.Is(err, wantErr) {
				t.Errorf("Authenticate(%s) = %v after %v, want %v after %v", token.Reveal(), err, took, wantErr, want)
			}
		}
		stale := func() { time.Sleep(time.Minute) }
		takes("first", 0, nil)
		takes("second", 0, nil)

		stale()
		i.set(func(i *introspector) { i.delay = 5 * time.Second })
		takes("first", 500*time.Millisecond, nil) // this request discovers that Globus Auth is slow
		for range 10 {
			takes("first", 0, nil)
			takes("second", 0, nil)
		}
		takes("new", 5*time.Second, nil)

		stale()
		i.set(func(i *introspector) { i.hang = true; delete(i.tokens, "second") }) // revoke the second token
		takes("first", 0, nil)
		takes("second", 0, nil)
		takes("unknown", 10*time.Second, globus.ErrUnavailable)

		stale()
		i.set(func(i *introspector) { i.hang, i.delay = false, 0 })
		_, _ = a.Authenticate(t.Context(), "second") // may still be accepted, but Globus Auth is asked
		synctest.Wait()
		takes("second", 0, globus.ErrRefused)
		takes("first", 0, nil)
	})
}

// TestAuthenticatorIsSlowNoMore fails when a revoked token is accepted because Globus Auth was slow
// some time before.
func TestAuthenticatorIsSlowNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &introspector{tokens: map[globus.Secret]globus.TokenInfo{"first": goodInfo(), "second": goodInfo()}}
		a := newAuthenticator(t, i)
		ask := func(token globus.Secret) error {
			_, err := a.Authenticate(t.Context(), token)
			return err
		}
		testkit.Must(t, errors.Join(ask("first"), ask("second")))
		time.Sleep(time.Minute)
		i.set(func(i *introspector) { i.delay = 5 * time.Second })
		testkit.Must(t, ask("first"))
		time.Sleep(time.Minute)
		i.set(func(i *introspector) { i.delay = 0; delete(i.tokens, "second") })
		if err := ask("first"); err != nil { // this request discovers that Globus Auth is fast again
			t.Fatal(err)
		}
		synctest.Wait()
		if err := ask("second"); !errors.Is(err, globus.ErrRefused) {
			t.Errorf("Authenticate of a token that was revoked = %v, want ErrRefused", err)
		}
	})
}

func TestAuthenticatorSingleFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &introspector{tokens: map[globus.Secret]globus.TokenInfo{"tok": goodInfo()}, delay: time.Second}
		a := newAuthenticator(t, i)
		// The first caller gives up; the others still get the result.
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := a.Authenticate(ctx, "tok"); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Authenticate = %v, want the deadline", err)
			}
		})
		synctest.Wait()
		for range 1000 {
			wg.Go(func() { mustKnow(t, a, "tok") })
		}
		wg.Wait()
		if n := i.calls(); n != 1 {
			t.Errorf("asked %d times, want once", n)
		}
	})
}

func TestAuthenticatorBounds(t *testing.T) {
	t.Run("what is remembered", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			i := &introspector{tokens: map[globus.Secret]globus.TokenInfo{"known": goodInfo()}}
			a := newAuthenticator(t, i, func(cfg *globus.AuthenticatorConfig) { cfg.CacheSize = 10 })
			mustKnow(t, a, "known")
			for n := range 20_000 {
				a.Authenticate(t.Context(), globus.Secret(fmt.Sprintf("guess-%d", n)))
			}
			if known, refused := a.Remembered(); known != 1 || refused != 10_000 {
				t.Errorf("remembers %d known and %d refused tokens, want 1 and 10000", known, refused)
			}
			// Guessed tokens do not evict known ones.
			i.set(func(i *introspector) { i.fault = globus.ErrUnavailable })
			time.Sleep(time.Minute)
			mustKnow(t, a, "known")
			i.set(func(i *introspector) { i.fault = nil })
			for n := range 100 {
				token := globus.Secret(fmt.Sprintf("good-%d", n))
				i.set(func(i *introspector) { i.tokens[token] = goodInfo() })
				mustKnow(t, a, token)
			}
			if known, _ := a.Remembered(); known != 10 {
				t.Errorf("remembers %d known tokens, want 10", known)
			}
			for _, key := range a.Keys() {
				if strings.Contains(key, "good-") || strings.Contains(key, "guess-") {
					t.Fatalf("remembers the token itself: %q", key)
				}
			}
		})
	})
	t.Run("questions at the same time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			i := &introspector{hang: true}
			a := newAuthenticator(t, i)
			var wg sync.WaitGroup
			for n := range 1000 {
				wg.Go(func() {
					_, err := a.Authenticate(t.Context(), globus.Secret(fmt.Sprintf("guess-%d", n)))
					checkErr(t, "Authenticate", err, globus.ErrUnavailable, "")
				})
			}
			wg.Wait()
			if i.max > 64 {
				t.Errorf("asked %d questions at the same time, want at most 64", i.max)
			}
		})
	})
}

// overloadable is an introspector that responds after 350 ms, and answers requests above a limit
// per second with status 429.
type overloadable struct {
	introspector
	mu        sync.Mutex // guards the fields below
	perSecond int
	second    time.Time
	answered  int // requests in that second
	asked     int
	refused   int
}

func (o *overloadable) Introspect(ctx context.Context, token globus.Secret) (globus.TokenInfo, error) {
	o.mu.Lock()
	o.asked++
	if s := time.Now().Truncate(time.Second); s != o.second {
		o.second, o.answered = s, 0
	}
	o.answered++
	over := o.answered > o.perSecond
	if over {
		o.refused++
	}
	o.mu.Unlock()
	time.Sleep(350 * time.Millisecond) // in the bubble's time
	if over {
		return globus.TokenInfo{}, globus.Overloaded(time.Second)
	}
	return o.introspector.Introspect(ctx, token)
}

// TestAuthenticatorFlood has four callers send thousands of unknown tokens, while Globus Auth
// answers ten requests a second. Known tokens must be accepted without delay, a revoked token must
// be noticed in time, new tokens of other callers must be accepted, and Globus Auth must not be
// asked much more often than it answers.
func TestAuthenticatorFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &overloadable{perSecond: 10, introspector: introspector{tokens: map[globus.Secret]globus.TokenInfo{}}}
		const people = 50 // so many that known tokens alone use part of Globus Auth's limit
		known := func(i int) globus.Secret { return globus.Secret(fmt.Sprint("known-", i)) }
		add := func(token globus.Secret) { o.set(func(i *introspector) { i.tokens[token] = goodInfo() }) }
		a := newAuthenticator(t, o)
		for i := range people {
			add(known(i))
			mustKnow(t, a, known(i))
			time.Sleep(200 * time.Millisecond)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		o.mu.Lock()
		o.asked, o.refused = 0, 0
		o.mu.Unlock()
		began := time.Now()
		var flood sync.WaitGroup
		for caller := range 4 {
			for guesser := range 40 {
				flood.Go(func() {
					for n := 0; ctx.Err() == nil; n++ {
						_, err := a.Authenticate(globus.WithCaller(ctx, fmt.Sprint(caller)), globus.Secret(fmt.Sprintf("guess-%d-%d-%d", caller, guesser, n)))
						if err == nil {
							t.Error("a guess is good")
						}
						time.Sleep(time.Second)
					}
				})
			}
		}
		logins := 0
		var worst time.Duration
		for ctx.Err() == nil { // clients connect, and a gateway rechecks their tokens
			time.Sleep(time.Second)
			login := time.Now()
			mustKnow(t, a, known(logins%people))
			worst = max(worst, time.Since(login))
			logins++
			if logins%30 == 0 {
				for i := range people {
					flood.Go(func() {
						for ctx.Err() == nil {
							if _, err := a.Recheck(ctx, known(i)); err == nil {
								return
							}
							time.Sleep(3 * time.Second)
						}
					})
				}
			}
			if logins%30 == 7 {
				token := globus.Secret(fmt.Sprint("new-", logins))
				add(token)
				for try := 1; ; try++ {
					_, err := a.Authenticate(globus.WithCaller(t.Context(), "elsewhere"), token)
					if err == nil {
						break
					}
					if try == 5 {
						t.Fatalf("a newcomer's token, for the fifth time: %v", err)
					}
				}
			}
			if logins == 40 {
				o.set(func(i *introspector) { delete(i.tokens, known(1)) })
				revoked := time.Now()
				for {
					if _, err := a.Recheck(t.Context(), known(1)); errors.Is(err, globus.ErrRefused) {
						break
					}
					time.Sleep(time.Second)
				}
				if took := time.Since(revoked); took > 45*time.Second {
					t.Errorf("a revoked token is good for %v, want at most 30s and a few questions", took)
				}
				add(known(1))
				for try := 0; ; try++ { // until the cached rejection expires
					time.Sleep(time.Second)
					if _, err := a.Authenticate(globus.WithCaller(t.Context(), "elsewhere"), known(1)); err == nil {
						break
					} else if try == 30 {
						t.Fatal(err)
					}
				}
			}
		}
		flood.Wait()
		seconds := int(time.Since(began).Seconds())
		time.Sleep(askTimeout) // until requests without callers have ended
		o.mu.Lock()
		defer o.mu.Unlock()
		t.Logf("%d questions in %d s, %d of them refused; the slowest of %d logins took %v", o.asked, seconds, o.refused, logins, worst)
		if worst > 600*time.Millisecond {
			t.Errorf("a known token waited %v, want half a second at most", worst)
		}
		if most := 150 + 10*seconds; o.asked > most {
			t.Errorf("asked %d questions in %d s, want at most %d", o.asked, seconds, most)
		}
		if o.refused > o.asked/4 {
			t.Errorf("%d of %d questions were too many, want few", o.refused, o.asked)
		}
	})
}

// TestAuthenticatorBudget has a long flood of tokens, and a Globus Auth that could answer all
// requests. No more requests than allowed must be sent, and a caller with many tokens must not use
// up the turns of others.
func TestAuthenticatorBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &introspector{tokens: map[globus.Secret]globus.TokenInfo{"new": goodInfo()}, delay: 100 * time.Millisecond}
		a := newAuthenticator(t, i)
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		var flood sync.WaitGroup
		for guesser := range 100 {
			flood.Go(func() {
				for n := 0; ctx.Err() == nil; n++ {
					a.Authenticate(globus.WithCaller(ctx, "flood"), globus.Secret(fmt.Sprintf("guess-%d-%d", guesser, n)))
					time.Sleep(100 * time.Millisecond)
				}
			})
		}
		time.Sleep(5 * time.Second)
		asked := time.Now()
		_, err := a.Authenticate(globus.WithCaller(ctx, "elsewhere"), "new")
		if took := time.Since(asked); err != nil || took > 200*time.Millisecond {
			t.Errorf("a newcomer during the flood: %v after %v", err, took)
		}
		flood.Wait()
		n, most := i.calls(), 50+int(50*time.Since(began).Seconds())
		if n > most {
			t.Errorf("asked %d questions in %v, want at most %d", n, time.Since(began), most)
		}
		time.Sleep(askTimeout) // until requests without callers have ended
	})
}

// TestIntrospectIsNotRepeated fails when Introspect retries after status 429.
func TestIntrospectIsNotRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{handler: answers(after(status(429, "{}"), "1"), ok(`{"active":false}`))}
		began := time.Now()
		_, err := w.client(t, confidential).Introspect(t.Context(), "tok")
		checkErr(t, "Introspect", err, globus.ErrUnavailable, "429")
		if took := time.Since(began); took != 0 {
			t.Errorf("it took %v: it was asked again", took)
		}
	})
}

// TestRecheck checks that Recheck uses only fresh results, and rejects expired tokens in any case.
func TestRecheck(t *testing.T) {
	for _, fault := range []error{globus.ErrUnavailable, globus.ErrMisconfigured} {
		synctest.Test(t, func(t *testing.T) { testRecheck(t, fault) })
	}
}

func testRecheck(t *testing.T, fault error) {
	info := goodInfo()
	info.Expiry = time.Now().Add(2 * time.Minute)
	i := &introspector{tokens: map[globus.Secret]globus.TokenInfo{"tok": info}}
	a := newAuthenticator(t, i)
	mustKnow(t, a, "tok")
	i.set(func(i *introspector) { i.fault = fault })
	for _, age := range []time.Duration{0, 29 * time.Second} {
		time.Sleep(age)
		if _, err := a.Recheck(t.Context(), "tok"); err != nil {
			t.Errorf("Recheck after %v = %v", age, err)
		}
	}
	for range 2 { // the second time, Globus Auth is not asked
		time.Sleep(time.Second)
		_, err := a.Recheck(t.Context(), "tok")
		checkErr(t, "Recheck in an outage", err, fault, "")
		mustKnow(t, a, "tok")
	}
	time.Sleep(2 * time.Minute)
	_, err := a.Recheck(t.Context(), "tok")
	checkErr(t, "Recheck of an expired token in an outage", err, globus.ErrRefused, "expired at")
}

// TestAuthenticatorOverTheWire combines an Authenticator with a Client.
func TestAuthenticatorOverTheWire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		body := document(map[string]any{"active": true, "sub": adaSubject, "iss": authIssuer, "aud": []string{topics},
			"scope": topicsScope, "exp": time.Now().Add(time.Hour).Unix(), "iat": time.Now().Unix()})
		w := &wire{handler: answers(ok(body), ok(`{"active":false}`), status(401, globusUnauthorized), status(503, ""))}
		a := newAuthenticator(t, w.client(t, confidential))
		mustKnow(t, a, "tok")
		_, err := a.Authenticate(t.Context(), "revoked")
		checkErr(t, "Authenticate", err, globus.ErrRefused, "expired, revoked or malformed")
		_, err = a.Authenticate(t.Context(), "third")
		checkOutage(t, "Authenticate", err, globus.ErrMisconfigured)
		_, err = a.Authenticate(t.Context(), "fourth")
		checkErr(t, "Authenticate", err, globus.ErrUnavailable, "503")
		mustKnow(t, a, "tok")
	})
}
