// Package trust decides where secrets may be sent: access tokens to which hosts, and refresh tokens
// and client secrets to which Globus Auth. It also decides which certificates show that a host is
// the right one ([Roots]).
//
// An ACL endpoint tells its clients where the brokers are, which Globus Auth issues the tokens, and
// which scope to ask for. Anyone can run an ACL endpoint, and can make it name the scope of another
// fabric. So what an ACL endpoint says decides nothing. These rules do:
//
//   - The Globus Auth must be Globus's own, unless the user has named another one.
//   - A scope that names a host, https://auth.globus.org/scopes/HOST/SUFFIX, can be created only by
//     somebody who has proved to Globus that the host is theirs. Its tokens may go to that host and
//     to hosts below it.
//   - A scope that names only an API, by its UUID, says nothing about hosts. Its tokens may go to
//     the hosts that the user has confirmed.
//   - Tokens may go to hosts that the user has named.
//   - If a fabric is entirely on this machine, its tokens are worthless elsewhere. They may go to
//     addresses of this machine.
//
// [Fabric] implements these rules. It asks no server and stores nothing. [Token] applies them
// whenever a token is about to be sent. It uses the scopes that Globus Auth has granted, not those
// that were requested. Start reading at [Fabric.CheckHost].
package trust

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/terminal"
)

// ErrUntrusted is the sentinel that every [*Error] wraps.
var ErrUntrusted = errors.New("not trusted")

// Error says why a secret is not sent, and what to do.
type Error struct {
	Reason, Hint string
	Unconfirmed  bool // only the user can allow it, by logging in and confirming the hosts
}

func (e *Error) Error() string { return e.Reason + "; " + e.Hint }
func (e *Error) Unwrap() error { return ErrUntrusted }

// Fabric is what an ACL endpoint says about its fabric, together with what the user has said.
type Fabric struct {
	URL     string   // of the ACL endpoint
	Brokers []string // as host:port
	Issuer  string   // the Globus Auth in use; empty means Globus's own
	Scope   string   // the scope to request tokens for

	NamedIssuer string   // a Globus Auth that the user has named, or ""
	Named       []string // hosts that the user has named, with or without a port
	Confirmed   bool     // the user has confirmed all of the above at a login
	Profile     string   // the profile that stores this login, for hints; "" if there is none
}

// Local reports whether the fabric is entirely on this machine.
func (f Fabric) Local() bool {
	for _, raw := range []string{f.URL, f.Issuer} {
		if u, err := url.Parse(raw); err != nil || !IsLoopback(hostOf(u.Host)) {
			return false
		}
	}
	return !slices.ContainsFunc(f.Brokers, func(b string) bool { return !IsLoopback(hostOf(b)) })
}

// CheckLogin returns nil if a refresh token or a client secret may be sent to the fabric's Globus
// Auth, and tokens for the fabric's scope may be requested there.
func (f Fabric) CheckLogin() error {
	if f.Local() {
		return nil
	}
	issuer := strings.TrimRight(f.Issuer, "/")
	if issuer != "" && issuer != globus.DefaultIssuer && issuer != strings.TrimRight(f.NamedIssuer, "/") && !f.Confirmed {
		return &Error{
			Reason: fmt.Sprintf("the fabric names a Globus Auth of its own, and %s is not Globus: nothing secret is sent there", clip(issuer)),
			Hint:   "check the URL of the fabric; to use another Globus Auth than Globus's own, name it in GLOBUS_SDK_SERVICE_URL_AUTH",
		}
	}
	_, _, err := owner(f.Scope)
	return err
}

// CheckHost returns nil if a token with these scopes may be sent to an address, which may have a
// port. If the user has not named the host, the ACL endpoint must be trusted too, because it also
// says which certificates to accept.
func (f Fabric) CheckHost(address string, scopes []string) error {
	host := hostOf(address)
	if f.Local() && IsLoopback(host) {
		return nil
	}
	named := slices.ContainsFunc(f.Named, func(n string) bool { return hostOf(n) == host })
	if len(scopes) == 0 && !named {
		return &Error{
			Reason: fmt.Sprintf("Globus Auth does not say what the token is good for, so it is not sent to %s", clip(host)),
			Hint:   "log in again",
		}
	}
	for _, scope := range scopes {
		name, verified, err := owner(scope)
		switch {
		case err != nil:
			return err
		case named:
			continue
		}
		for _, host := range []string{f.endpoint(), host} {
			if err := f.checkOwner(host, scope, name, verified); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkOwner does the check of CheckHost for one scope, whose owner is name, and a host that the
// user has not named.
func (f Fabric) checkOwner(host, scope, name string, verified bool) error {
	own, _, _ := owner(f.Scope)
	confirmed := f.Confirmed && own == name
	switch {
	case verified && (host == name || strings.HasSuffix(host, "."+name)), confirmed && slices.Contains(f.Hosts(), host):
		return nil
	case verified:
		return &Error{
			Reason: fmt.Sprintf("at Globus, the scope %s belongs to %s, and %s is not below %[2]s: no token is sent there", clip(scope), name, clip(host)),
			Hint:   "check the URL of the fabric; if it is right, tell the operator",
		}
	case confirmed:
		return &Error{
			Reason:      fmt.Sprintf("%s is not among the hosts that were confirmed when you logged in, so no token is sent there", clip(host)),
			Hint:        "ask the operator to list every gateway in acl-bootstrap and log in again, or name the brokers in DIASPORA_BOOTSTRAP",
			Unconfirmed: true,
		}
	}
	return &Error{
		Reason:      fmt.Sprintf("the scope %s names no host, and nobody has confirmed that its tokens may go to %s", clip(scope), clip(host)),
		Hint:        f.confirmHint(),
		Unconfirmed: true,
	}
}

func (f Fabric) confirmHint() string {
	if f.Profile != "" {
		return fmt.Sprintf(`run "diaspora login --profile %s" to see and confirm its hosts`, f.Profile)
	}
	return fmt.Sprintf(`run "diaspora login %s" to see and confirm its hosts, or name the brokers in DIASPORA_BOOTSTRAP`, clip(f.URL))
}

// Check returns nil if it is allowed to log in to the fabric, and its tokens may be sent to each of
// its hosts.
func (f Fabric) Check() error {
	if err := f.CheckLogin(); err != nil {
		return err
	}
	for _, host := range f.Hosts() {
		if err := f.CheckHost(host, []string{f.Scope}); err != nil {
			return err
		}
	}
	return nil
}

// endpoint returns the host of the ACL endpoint.
func (f Fabric) endpoint() string {
	u, err := url.Parse(f.URL)
	if err != nil {
		return ""
	}
	return hostOf(u.Host)
}

// Hosts returns the hosts of the ACL endpoint and the brokers, without ports.
func (f Fabric) Hosts() []string {
	hosts := []string{f.endpoint()}
	for _, b := range f.Brokers {
		if host := hostOf(b); !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	return hosts
}

// Agrees reports whether the user has confirmed the same API at the same hosts already, with
// another fabric. Then this one needs no new confirmation.
func (f Fabric) Agrees(other Fabric) bool {
	return other.Confirmed && f.sameAPI(other) && f.within(other) && f.Issuer == other.Issuer
}

// Contradicts reports whether another fabric sends the tokens of the same API to other hosts. A
// fabric with the same ACL endpoint is no contradiction, because an ACL endpoint may change its own
// brokers.
func (f Fabric) Contradicts(other Fabric) bool {
	return !other.Local() && f.sameAPI(other) && f.endpoint() != other.endpoint() && !f.within(other)
}

func (f Fabric) sameAPI(other Fabric) bool {
	mine, _, err := owner(f.Scope)
	theirs, _, otherErr := owner(other.Scope)
	return err == nil && otherErr == nil && mine == theirs
}

func (f Fabric) within(other Fabric) bool {
	known := other.Hosts()
	return !slices.ContainsFunc(f.Hosts(), func(host string) bool { return !slices.Contains(known, host) })
}

// The prefix of Globus scopes, in all environments of Globus.
const scopePrefix = "https://auth.globus.org/scopes/"

var (
	uuidShape   = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
	fqdnShape   = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?$`)
	suffixShape = regexp.MustCompile(`^[A-Za-z0-9_.~:/-]+$`) // other characters could name a second scope, as dependencies in brackets do
	urnShape    = regexp.MustCompile(`^urn:globus:auth:scope:([A-Za-z0-9_.-]+):`)
)

// globusAPIs are services of Globus itself whose scopes name them by UUID.
var globusAPIs = map[string]string{
	"524230d7-ea86-4a52-8312-86065a9e0417": "Globus Timers",
	"eec9b274-0c81-4334-bdc2-54e90e689b9a": "Globus Flows",
	"facd7ccc-c5f4-42aa-916b-a0e270e2c2a9": "Globus Compute",
}

// ScopeOwner returns the owner of a scope: a host, or the UUID of a client, in lower case. It fails
// for a scope that no fabric can have.
func ScopeOwner(scope string) (string, error) {
	name, _, err := owner(scope)
	if t := (*Error)(nil); errors.As(err, &t) {
		return "", fmt.Errorf("%s; it begins with %s", t.Reason, scopePrefix)
	}
	return name, err
}

// owner returns the owner of a scope: a host that Globus has verified, or the UUID of an API. It
// fails for the scopes of Globus's own services, because their tokens give access to files, groups
// and identities.
func owner(scope string) (name string, verified bool, err error) {
	name, suffix, _ := strings.Cut(strings.TrimPrefix(scope, scopePrefix), "/")
	name = lower(name)
	switch rest, ours := strings.CutPrefix(scope, scopePrefix); {
	case scope == "":
		return "", false, notOwn("no scope at all")
	case strings.ContainsAny(scope, " \t\r\n[]*"):
		return "", false, notOwn(fmt.Sprintf("%q, which is not one scope", clip(scope)))
	case urnShape.MatchString(scope):
		return "", false, notOwn(fmt.Sprintf("%q, a scope of %s", clip(scope), clip(urnShape.FindStringSubmatch(scope)[1])))
	case !ours || rest == "" || !suffixShape.MatchString(suffix):
		return "", false, notOwn(fmt.Sprintf("%q, which is not a scope like %sHOST/NAME", clip(scope), scopePrefix))
	case globusAPIs[name] != "":
		return "", false, notOwn(fmt.Sprintf("%q, a scope of %s", clip(scope), globusAPIs[name]))
	case uuidShape.MatchString(name):
		if suffix == "data_access" || suffix == "https" {
			return "", false, notOwn(fmt.Sprintf("%q, a scope for the files of a Globus collection", clip(scope)))
		}
		return name, false, nil
	case !fqdnShape.MatchString(name):
		return "", false, notOwn(fmt.Sprintf("%q, which names neither a host nor an API", clip(scope)))
	}
	for _, own := range []string{"globus.org", "globuscs.info"} {
		if name == own || strings.HasSuffix(name, "."+own) {
			return "", false, notOwn(fmt.Sprintf("%q, a scope of Globus itself", clip(scope)))
		}
	}
	return name, true, nil
}

func notOwn(what string) error {
	return &Error{
		Reason: "a fabric has a scope of its own at Globus, and this one asks for " + what,
		Hint:   "check the URL of the fabric; if it is right, tell the operator",
	}
}

// hostOf returns the host of an address in canonical form, for comparison.
func hostOf(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = strings.TrimSuffix(strings.TrimPrefix(address, "["), "]")
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.Unmap().String()
	}
	return strings.TrimSuffix(lower(host), ".")
}

// lower is strings.ToLower for ASCII only. Some other letters have an ASCII letter as their lower
// case, and would make a different name look like a host.
func lower(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}

// IsLoopback reports whether a host names this machine. It does not use DNS.
func IsLoopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return lower(host) == "localhost" || err == nil && addr.IsLoopback()
}

// clip shortens untrusted text for an error.
func clip(s string) string { return terminal.Clip(s, 200) }

// Source is the token source of a stored login, or of credentials in the environment. Its tokens
// are valid for one fabric, and must not be sent elsewhere; see [Token].
type Source struct {
	find  func(context.Context) (globus.TokenSource, Fabric, error)
	turn  chan struct{} // holds a value while a caller runs find
	found atomic.Pointer[guarded]
}

// guarded is a token source, and the fabric that its tokens are for.
type guarded struct {
	globus.TokenSource
	fabric Fabric
}

// Guard returns a Source for a fabric's tokens.
func Guard(tokens globus.TokenSource, fabric Fabric) *Source {
	s := new(Source)
	s.found.Store(&guarded{tokens, fabric})
	return s
}

// GuardLater returns a Source that calls find at its first Token, and again until find succeeds, to
// learn which Globus Auth to use. Only one caller at a time calls find; the callers that wait can
// then use the same result.
func GuardLater(find func(context.Context) (globus.TokenSource, Fabric, error)) *Source {
	return &Source{find: find, turn: make(chan struct{}, 1)}
}

// Fabric returns the fabric that the tokens are for, or the zero Fabric if it is not known yet.
func (s *Source) Fabric() Fabric {
	if g := s.found.Load(); g != nil {
		return g.fabric
	}
	return Fabric{}
}

// Token implements [globus.TokenSource]. It fails if logging in to the fabric is not allowed.
func (s *Source) Token(ctx context.Context) (globus.Token, error) {
	g, err := s.guarded(ctx)
	if err == nil {
		err = g.fabric.CheckLogin()
	}
	if err != nil {
		return globus.Token{}, err
	}
	return g.Token(ctx)
}

func (s *Source) guarded(ctx context.Context) (*guarded, error) {
	if g := s.found.Load(); g != nil {
		return g, nil
	}
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if g := s.found.Load(); g != nil {
		return g, nil
	}
	tokens, fabric, err := s.find(ctx)
	if err != nil {
		return nil, err
	}
	g := &guarded{tokens, fabric}
	s.found.Store(g)
	return g, nil
}

// Refused tells the underlying source, if there is one yet, that a service has refused the token.
func (s *Source) Refused(access globus.Secret) {
	if g := s.found.Load(); g != nil {
		if tokens, ok := g.TokenSource.(interface{ Refused(globus.Secret) }); ok {
			tokens.Refused(access)
		}
	}
}

// Settle waits until no renewal of a token is in progress.
func (s *Source) Settle() {
	if g := s.found.Load(); g != nil {
		settle(g.TokenSource)
	}
}

func settle(tokens globus.TokenSource) {
	if tokens, ok := tokens.(interface{ Settle() }); ok {
		tokens.Settle()
	}
}

// Settle waits until source is not renewing a token, or ctx ends. If the program exited during a
// renewal, it would lose the response. That may hold a new refresh token, and the old one has
// stopped working.
func Settle(ctx context.Context, source globus.TokenSource) {
	settled := make(chan struct{})
	go func() { // ends within 45 s
		defer close(settled)
		settle(source)
	}()
	select {
	case <-settled:
	case <-ctx.Done():
	}
}

// Token returns a token of the source, to be sent to an address, which may have a port. If the
// source has a method Fabric, as a [Source] does, Token fails if the token must not be sent there.
// Any other source is the program's own, and so is the decision. named are further hosts that the
// user has named.
func Token(ctx context.Context, source globus.TokenSource, address string, named []string) (globus.Token, error) {
	token, err := source.Token(ctx)
	if err != nil {
		return globus.Token{}, err
	}
	if guarded, ok := source.(interface{ Fabric() Fabric }); ok {
		fabric := guarded.Fabric() // after source.Token, because the source may have to ask the ACL endpoint first
		fabric.Named = append(slices.Clone(fabric.Named), named...)
		if err := fabric.CheckHost(address, token.Scope); err != nil {
			return globus.Token{}, err
		}
	}
	return token, nil
}
