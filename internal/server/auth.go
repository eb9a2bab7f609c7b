package server

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/admission"
)

// tokenShape is the syntax of a bearer token (RFC 6750 section 2.1).
var tokenShape = regexp.MustCompile(`^[A-Za-z0-9._~+/-]+=*$`)

// looksLikeToken reports whether a token can be valid, so that it is worth asking Globus Auth.
func looksLikeToken(token globus.Secret) bool {
	t := token.Reveal()
	return len(t) >= 16 && len(t) <= 4096 && tokenShape.MatchString(t)
}

// authenticate is the only place that decides whose an access token is, for all endpoints and all
// ways to send a token. It asks the Authenticator about x.token and sets x.caller.
func (s *Server) authenticate(x *exchange) error {
	client := s.clientOf(x.r).String()
	if strings.Count(x.token.Reveal(), ".") == 2 { // a JWT; the tokens of Globus Auth are not JWTs
		return s.countMalformed(client, &refusal{
			status: http.StatusForbidden,
			detail: "a token that was issued for an access key works with Kafka only: it can neither claim topics nor create keys",
			hint:   "Send the access token of your login: `diaspora token` prints it.",
		})
	}
	if !looksLikeToken(x.token) {
		return s.countMalformed(client, unauthenticated("this is not an access token", "invalid_token"))
	}
	end, wait, ok := s.guard.Begin(x.r.Context(), client, sha256.Sum256([]byte(x.token)))
	if !ok {
		return tooManyFailures(wait, "log in again with `diaspora login`")
	}
	info, err := s.cfg.Authenticator.Authenticate(globus.WithCaller(x.r.Context(), client), x.token)
	end(admission.OutcomeOf(err))
	switch {
	case err != nil:
		return err
	case info.Subject == "":
		return errors.New("the authenticator accepted a token without a subject")
	}
	x.caller = info.Identity
	x.keepConnOpen()
	return nil
}

// sendsBasic reports whether a request has HTTP Basic credentials, valid or not.
func sendsBasic(r *http.Request) bool {
	scheme, _, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	return strings.EqualFold(scheme, "Basic")
}

// authenticateKey authenticates the access key in the request's header. It sets x.caller to the
// key's owner, so it must be used only for routes where a key has all rights of its owner.
func (s *Server) authenticateKey(x *exchange) error {
	client := s.clientOf(x.r).String()
	if len(x.r.Header["Authorization"]) > 1 {
		return invalidClient("the request must have exactly one Authorization header")
	}
	id, secret, err := basicCredentials(x.r.Header.Get("Authorization"))
	if err != nil {
		return s.countMalformed(client, err)
	}
	x.token = secret // so that it is concealed in logs and answers
	end, wait, ok := s.guard.Begin(x.r.Context(), client, sha256.Sum256([]byte(id+"\x00"+secret.Reveal())))
	if !ok {
		return tooManyFailures(wait, "create another access key with `diaspora key create`")
	}
	key, err := s.cfg.Claims.AuthenticateKey(x.r.Context(), id, secret)
	end(admission.OutcomeOf(err))
	if refused := (*globus.RefusedError)(nil); errors.As(err, &refused) && refused.Hint == "" {
		return &refusal{
			status: http.StatusUnauthorized,
			detail: refused.Reason,
			hint:   "Create another access key with `diaspora key create`, where you are logged in.",
			header: basicChallenge,
		}
	}
	if err != nil {
		return err
	}
	x.caller = globus.Identity{Subject: key.Owner}
	x.keepConnOpen()
	return nil
}

// countMalformed returns why, the reason for refusing a value that cannot be a token. If the client
// has sent too many of them, it returns an error that says so.
func (s *Server) countMalformed(client string, why error) error {
	if wait, ok := s.guard.Malformed(client); !ok {
		return tooManyFailures(wait, "send the token that `diaspora token` prints")
	}
	return why
}

// tooManyFailures refuses a request from an address with too many failed authentications.
func tooManyFailures(wait time.Duration, advice string) error {
	return &refusal{
		status: http.StatusTooManyRequests,
		detail: "too many tokens or keys from this address were refused",
		hint:   "Wait a minute, then " + advice + ".",
		header: http.Header{"Retry-After": {seconds(wait)}},
	}
}

// authenticateHeader authenticates the bearer token in the request's header.
func (s *Server) authenticateHeader(x *exchange) error {
	given, err := bearerToken(x)
	if err != nil {
		return err
	}
	if !given {
		return unauthenticated("the request has no access token", "")
	}
	return s.authenticate(x)
}

// bearerToken sets x.token from the Authorization header, if there is one. It refuses other
// schemes, and more than one header, because a proxy in front might read another one than we do.
func bearerToken(x *exchange) (given bool, err error) {
	values := x.r.Header["Authorization"]
	if len(values) == 0 {
		return false, nil
	}
	if sendsBasic(x.r) {
		return true, unauthenticated("this address needs the access token of a login, not an access key", "invalid_request")
	}
	scheme, token, ok := strings.Cut(values[0], " ")
	if len(values) > 1 || !ok || !strings.EqualFold(scheme, "Bearer") {
		return true, unauthenticated("the request must have exactly one Authorization header, with Bearer and one token", "invalid_request")
	}
	x.token = globus.Secret(strings.TrimLeft(token, " "))
	return true, nil
}

// unauthenticated returns a 401. code is the error code of RFC 6750, or "" if the client sent no
// credentials.
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

// clientOf returns the address that a request is counted under: that of the peer or, if the peer is
// a trusted proxy, the one in X-Forwarded-For. An IPv6 client usually has a whole /64 network, so a
// /64 counts as one address.
func (s *Server) clientOf(r *http.Request) netip.Addr {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{} // a listener without addresses; all clients count as one
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
	return admission.AddressOf(addr)
}

func (s *Server) trusts(addr netip.Addr) bool {
	return slices.ContainsFunc(s.cfg.TrustedProxies, func(p netip.Prefix) bool { return p.Contains(addr) })
}
