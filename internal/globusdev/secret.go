package globusdev

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/diaspora-streams/diaspora/globus"
)

// All users of a machine can connect to each of its loopback ports. So a client that logs in as an
// identity, or uses the controls, must present the server's secret: in an Authorization header, or
// by a ticket that was made with it.
//
// A ticket is for browsers. The URL of a login is among the arguments of the browser's process,
// where all users can see it. A ticket is valid for one use and for the one authorization request
// that it was made for. The resulting code is only useful with that request's code verifier or with
// the client's secret. So another user who uses a ticket first gains nothing.

// TicketLifetime is how long a login may wait for its browser, the same as in
// [globus.Client.Login].
const TicketLifetime = 15 * time.Minute

const (
	secretParameter = "dev_secret"
	ticketParameter = "dev_ticket"
	secretScheme    = "Bearer "
)

// NewSecret returns a secret for [Config.Secret].
func NewSecret() globus.Secret { return globus.Secret("dev-secret-" + rand.Text()) }

// SecretHeader returns the line of an HTTP request that contains the secret.
func SecretHeader(secret globus.Secret) string {
	return "Authorization: " + secretScheme + secret.Reveal()
}

// ParseSecretHeader returns the secret in such a line.
func ParseSecretHeader(line string) (globus.Secret, error) {
	secret, ok := strings.CutPrefix(strings.TrimSpace(line), "Authorization: "+secretScheme)
	if !ok || secret == "" {
		return "", fmt.Errorf("it is not a line %q", SecretHeader("…"))
	}
	return globus.Secret(secret), nil
}

// WithTicket adds a ticket to the URL of an authorization request.
func WithTicket(secret globus.Secret, address string, now time.Time) (string, error) {
	u, err := url.Parse(address)
	if err != nil {
		return "", err
	}
	p, err := parseParams(u.RawQuery)
	if err != nil {
		return "", err
	}
	u.RawQuery += "&" + ticketParameter + "=" + ticketFor(secret, p, now.Add(TicketLifetime).Unix())
	return u.String(), nil
}

// boundParameters are the parameters of an authorization request that a ticket is bound to. They
// determine what the request is for, and who receives its code.
var boundParameters = []string{"client_id", "redirect_uri", "response_type", "state", "nonce", "scope", "access_type", "code_challenge", "code_challenge_method"}

func ticketFor(secret globus.Secret, p params, expiry int64) string {
	bound := url.Values{"expiry": {strconv.FormatInt(expiry, 10)}}
	for _, name := range boundParameters {
		bound.Set("p."+name, p[name])
	}
	mac := hmac.New(sha256.New, []byte(secret.Reveal()))
	mac.Write([]byte("authorize " + bound.Encode()))
	return bound.Get("expiry") + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// knowsSecret reports whether a request has the secret in its header.
func (s *Server) knowsSecret(r *http.Request) bool {
	shown, ok := strings.CutPrefix(r.Header.Get("Authorization"), secretScheme)
	return s.cfg.Secret == "" || ok && equalSecret(shown, s.cfg.Secret.Reveal())
}

// mayLogIn reports whether an authorization request may log a user in. It must have a ticket, or the
// secret in its header or in the form of the page that asks for it.
func (s *Server) mayLogIn(r *http.Request, p params) bool {
	typed := r.Method == http.MethodPost && equalSecret(PastedSecret(p[secretParameter]).Reveal(), s.cfg.Secret.Reveal())
	return typed || s.knowsSecret(r) || s.goodTicket(p)
}

// PastedSecret returns the secret in what somebody has pasted: the secret, or more of the line in the file, as
// [SecretHeader] writes it.
func PastedSecret(text string) globus.Secret {
	text = strings.TrimPrefix(strings.TrimSpace(text), "Authorization:")
	return globus.Secret(strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(text), strings.TrimSpace(secretScheme))))
}

// newTicket makes a ticket for the request that the next page will send.
func (s *Server) newTicket(p params) string {
	return ticketFor(s.cfg.Secret, p, s.cfg.Now().Add(TicketLifetime).Unix())
}

// goodTicket reports whether the request has a valid ticket that has not been used. It uses the
// real clock and not the server's adjustable one, like the command that made the ticket.
func (s *Server) goodTicket(p params) bool {
	ticket := p[ticketParameter]
	before, _, _ := strings.Cut(ticket, ".")
	expiry, err := strconv.ParseInt(before, 10, 64)
	now := s.cfg.Now().Unix()
	if err != nil || now >= expiry || expiry > now+2*int64(TicketLifetime/time.Second) {
		return false
	}
	if subtle.ConstantTimeCompare([]byte(ticket), []byte(ticketFor(s.cfg.Secret, p, expiry))) != 1 {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, used := s.used[ticket]
	return !used
}

// useTicket marks a ticket as used, and reports whether this was its first use. An empty ticket means
// that the request had the secret itself. The caller holds mu.
func (s *Server) useTicket(ticket string) bool {
	if ticket == "" {
		return true
	}
	now := s.cfg.Now()
	for old, expiry := range s.used {
		if !now.Before(expiry) {
			delete(s.used, old)
		}
	}
	if _, used := s.used[ticket]; used {
		return false
	}
	if s.used == nil {
		s.used = make(map[string]time.Time)
	}
	s.used[ticket] = now.Add(2 * TicketLifetime)
	return true
}
