package server

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/diaspora-streams/diaspora/globus"
)

// TestLookups checks that one person can look up 30 usernames at once and then one every two seconds,
// and that this limits nobody else.
func TestLookups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l lookups
		take := func(subject string, n int) (taken int) {
			for range n {
				if l.take(subject) {
					taken++
				}
			}
			return taken
		}
		if got := take(ada, 100); got != lookupsPerMinute {
			t.Errorf("%d look-ups at once, want %d", got, lookupsPerMinute)
		}
		if got := take(bob, 1); got != 1 {
			t.Error("one person's look-ups count for another")
		}
		time.Sleep(10 * time.Second)
		if got := take(ada, 100); got != 5 {
			t.Errorf("%d look-ups after ten seconds, want 5", got)
		}
	})
}

// TestLookupAnswers checks what the endpoint answers to a look-up that is one too many, and when Globus
// does not say who has a username.
func TestLookupAnswers(t *testing.T) {
	e := start(t, func(cfg *Config) { cfg.People = directory{} })
	for n := range lookupsPerMinute + 1 {
		a := e.do("GET", "/v1/identities/bob@example.org", "", "Authorization", adaBearer)
		want := http.StatusOK
		if n == lookupsPerMinute {
			want = http.StatusTooManyRequests
		}
		if a.status != want {
			t.Fatalf("look-up %d: %d, want %d\n%s", n+1, a.status, want, a.body)
		}
		if want == http.StatusOK && (strings.Contains(a.body, "bob@home.example") || strings.Contains(a.body, "identity_set")) {
			t.Fatalf("the answer says more than who it is: %s", a.body)
		}
		if want != http.StatusOK && a.header.Get("Retry-After") == "" {
			t.Error("the refusal does not say when to try again")
		}
	}
	for cause, want := range map[error]int{globus.ErrUnavailable: http.StatusServiceUnavailable, globus.ErrMisconfigured: http.StatusInternalServerError} {
		var why *refusal
		if err := lookupRefusal(cause); !errors.As(err, &why) || why.status != want || !strings.Contains(why.hint, "Nothing has changed") {
			t.Errorf("%v becomes %v, want status %d", cause, err, want)
		}
	}
}
