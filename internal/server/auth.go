package server

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"

	"github.com/diaspora-streams/diaspora/globus"
)

// tokenShape is what a bearer token may look like (RFC 6750 section 2.1).
var tokenShape = regexp.MustCompile(`^[A-Za-z0-9._~+/-]+=*$`)

// plausible reports whether token is worth asking Globus about.
func plausible(token globus.Secret) bool {
	t := token.Reveal()
	return len(t) >= 16 && len(t) <= 4096 && tokenShape.MatchString(t)
}

// authenticate is the one way in: whatever the endpoint and however the token
// came, it alone decides who is calling. It asks whose x.token is and sets x.caller.
func (s *Server) authenticate(x *exchange) error {
	client := s.clientOf(x.r)
	hash := sha256.Sum256([]byte(x.token))
	if err := s.mayTry(client, hash, "log in again with `diaspora login`"); err != nil {
		return err
	}
	if strings.Count(x.token.Reveal(), ".") == 2 { // a JWT, and none of Globus Auth's
		s.failures.add(client)
		return &refusal{
			status: http.StatusForbidden,
			detail: "a token that was got with an access key is for Kafka alone: it can neither claim topics nor make keys",
			hint:   "Send the access token of your login: `diaspora token` prints it.",
		}
	}
	if !plausible(x.token) {
		s.failures.add(client)
		return unauthenticated("this is not an access token", "invalid_token")
	}
	info, err := s.cfg.Authenticator.Authenticate(x.r.Context(), x.token)
	switch refused := (*globus.RefusedError)(nil); {
	case errors.As(err, &refused) && refused.Hint != "": // no guess: the token is good
		return err
	case errors.Is(err, globus.ErrRefused):
		s.failures.add(client)
		s.known.Remove(hash)
		return err
	case err != nil:
		return err
	case info.Subject == "":
		return errors.New("the authenticator let in a token without a subject")
	}
	s.known.Add(hash, struct{}{})
	x.caller = info.Identity
	return nil
}

// mayTry refuses what comes from an address that has failed too often, unless it
// is known to be good.
func (s *Server) mayTry(client netip.Prefix, hash tokenHash, advice string) error {
	wait, spent := s.failures.spent(client)
	if !spent || s.known.Contains(hash) {
		return nil
	}
	return &refusal{
		status: http.StatusTooManyRequests,
		detail: "too many tokens or keys from this address were refused",
		hint:   "Wait a minute, then " + advice + ".",
		header: http.Header{"Retry-After": {seconds(wait)}},
	}
}

// authenticateHeader authenticates the bearer of the request's header.
func (s *Server) authenticateHeader(x *exchange) error {
	given, err := bearerToken(x)
	if err != nil {
		return err
	}
	if !given {
		return unauthenticated("the request does not say who is calling", "")
	}
	return s.authenticate(x)
}

// bearerToken takes x.token out of the Authorization header, if there is one. More
// than one header, or another scheme, is refused: two parsers might see two callers.
func bearerToken(x *exchange) (given bool, err error) {
	values := x.r.Header["Authorization"]
	if len(values) == 0 {
		return false, nil
	}
	scheme, token, ok := strings.Cut(values[0], " ")
	if len(values) > 1 || !ok || !strings.EqualFold(scheme, "Bearer") {
		return true, unauthenticated("the Authorization header must be there once, as Bearer and one token", "invalid_request")
	}
	x.token = globus.Secret(strings.TrimLeft(token, " "))
	return true, nil
}

// unauthenticated is a 401; code is RFC 6750's word for what is wrong, or "" if the
// client simply said nothing.
func unauthenticated(detail, code string) error {
	challenge := "Bearer"
	if code != "" {
		challenge += fmt.Sprintf(" error=%q", code)
	}
	return &refusal{
		status: http.StatusUnauthorized,
		detail: detail,
		hint:   "Send the access token alone and in full, as `Authorization: Bearer TOKEN` or in the form: `diaspora token` prints it.",
		header: http.Header{"Www-Authenticate": {challenge}},
	}
}

// The budget of refused tokens of one client: so many at once, then so many a
// second. Somebody with a stale token in a script notices it; somebody who guesses
// gets nowhere, and Globus Auth is not made to pay for it. Tokens that were good
// when last seen do not need the budget, so nobody loses access to a neighbour
// behind the same address.
const (
	failureBurst   = 30
	failureRate    = rate.Limit(1)
	failureClients = 4096 // remembered; the least recently seen is forgotten first
	knownTokens    = 4096 // likewise
)

// tokenHash is what is kept of a token.
type tokenHash = [sha256.Size]byte

// failures counts refused tokens by client.
type failures struct {
	byClient *lru.Cache[netip.Prefix, *rate.Limiter]
}

func newFailures() *failures {
	return &failures{byClient: newCache[netip.Prefix, *rate.Limiter](failureClients)}
}

func newCache[K comparable, V any](size int) *lru.Cache[K, V] {
	cache, err := lru.New[K, V](size)
	if err != nil {
		panic(err) // the sizes are positive constants
	}
	return cache
}

// spent reports whether client has failed too often, and for how long to wait.
func (f *failures) spent(client netip.Prefix) (time.Duration, bool) {
	l, ok := f.byClient.Get(client)
	if !ok {
		return 0, false
	}
	missing := 1 - l.Tokens()
	return time.Duration(missing / float64(failureRate) * float64(time.Second)), missing > 0
}

// add counts one failure. Failures that were under way together may overdraw the
// budget; they are paid back all the same.
func (f *failures) add(client netip.Prefix) {
	fresh := rate.NewLimiter(failureRate, failureBurst)
	l, known, _ := f.byClient.PeekOrAdd(client, fresh)
	if !known {
		l = fresh
	}
	l.Reserve()
}

// clientOf is the address that a request counts for: the peer's, or what a
// trusted proxy says of it. IPv6 clients own a /64 as a rule, so that counts as one.
func (s *Server) clientOf(r *http.Request) netip.Prefix {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Prefix{} // a listener without addresses: all count as one
	}
	addr := peer.Addr().Unmap().WithZone("")
	hops := strings.Split(strings.Join(r.Header["X-Forwarded-For"], ","), ",")
	for i := len(hops) - 1; i >= 0 && s.trusts(addr); i-- {
		hop, err := netip.ParseAddr(strings.TrimSpace(hops[i]))
		if err != nil {
			break
		}
		addr = hop.Unmap().WithZone("")
	}
	bits := addr.BitLen()
	if addr.Is6() {
		bits = 64
	}
	prefix, _ := addr.Prefix(bits)
	return prefix
}

func (s *Server) trusts(addr netip.Addr) bool {
	for _, p := range s.cfg.TrustedProxies {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}
