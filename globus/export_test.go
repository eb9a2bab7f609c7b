package globus

import (
	"errors"
	"net"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// LockStore takes a store's lock, as another process would.
func LockStore(t *testing.T, s *Store) (unlock func()) {
	t.Helper()
	unlock, err := s.lock(t.Context())
	testkit.Must(t, err)
	return unlock
}

// Remembered returns how many tokens an Authenticator remembers.
func (a *Authenticator) Remembered() (known, refused int) { return a.known.Len(), a.refused.Len() }

// Keys returns the keys of an Authenticator's cache.
func (a *Authenticator) Keys() []string {
	var keys []string
	for _, k := range append(a.known.Keys(), a.refused.Keys()...) {
		keys = append(keys, string(k[:]))
	}
	return keys
}

// NoBrowser says why no browser can be started in an environment, or returns "".
var NoBrowser = noBrowser

// BlockPort makes a login unable to listen on a port.
func BlockPort(opts *LoginOptions) {
	opts.listen = func() (net.Listener, error) { return nil, errors.New("listen: permission denied") }
}

// SucceedAndFail resets, as a successful renewal does, that Globus Auth asked the source to wait,
// and then sets it again.
func SucceedAndFail(s *Source) {
	s.mu.Lock()
	asked, retryAt := s.pauseErr, s.retryAt
	s.pauseErr, s.retryAt = nil, time.Time{}
	s.mu.Unlock()
	s.mu.Lock()
	s.pauseErr, s.retryAt = asked, retryAt
	s.mu.Unlock()
}

// Overloaded returns the error for status 429.
func Overloaded(retryAfter time.Duration) error {
	return &Error{Op: "introspect token", Status: 429, RetryAfter: retryAfter, kind: ErrUnavailable}
}
