// Package trust decides where secrets may go: to which hosts an access token, and to which
// Globus Auth a refresh token or a client's secret.
//
// An ACL endpoint tells its clients where the brokers are, which Globus Auth issues the tokens,
// and which scope to ask for. Anybody can run an ACL endpoint, and have it name the scope of
// somebody else's fabric. So nothing counts that it says about itself; what counts is:
//
//   - The Globus Auth is Globus's own, unless the user has named another one.
//   - A scope that names a host, https://auth.globus.org/scopes/HOST/SUFFIX, can be made only by
//     whoever has proved to Globus that the host is theirs. Its tokens go to that host and
//     to hosts below it.
//   - A scope that names only an API, by its UUID, says nothing about hosts. Its tokens go where
//     the user has confirmed that they may.
//   - A host that the user has named is the user's own choice.
//   - A fabric that is wholly on this machine has tokens that are worth nothing elsewhere.
//
// All of that is in [Fabric]. It asks nobody and keeps nothing. [Token] applies it where a
// token leaves, to the scopes that Globus Auth has granted rather than those that were asked for.
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

	"github.com/diaspora-streams/diaspora/globus"
)

// ErrUntrusted is what every [*Error] is to [errors.Is].
var ErrUntrusted = errors.New("not trusted")

// Error says why a secret is not sent, and what to do.
type Error struct {
	Reason, Hint string
	Unconfirmed  bool // only the user can tell whether it may be, by logging in
}

func (e *Error) Error() string { return e.Reason + "; " + e.Hint }
func (e *Error) Unwrap() error { return ErrUntrusted }

// Fabric is what an ACL endpoint says of its fabric, and what the user has said.
type Fabric struct {
	URL     string   // of the ACL endpoint
	Brokers []string // as host:port
	Issuer  string   // the Globus Auth that is in use; empty is Globus's own
	Scope   string   // what tokens are asked for

	NamedIssuer string   // a Globus Auth that the user has named, or ""
	Named       []string // hosts that the user has named, with or without a port
	Confirmed   bool     // the user has confirmed all of the above at a login
	Profile     string   // where that login is stored, for hints; "" if it is not
}

// Local reports whether all of the fabric is on this machine.
func (f Fabric) Local() bool {
	for _, raw := range []string{f.URL, f.Issuer} {
		if u, err := url.Parse(raw); err != nil || !loopback(hostOf(u.Host)) {
			return false
		}
	}
	return !slices.ContainsFunc(f.Brokers, func(b string) bool { return !loopback(hostOf(b)) })
}

// CheckLogin returns nil if a refresh token or a client's secret may be shown to the
// fabric's Globus Auth, and tokens of its scope asked for there.
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

// CheckHost returns nil if a token that is good for the scopes may be sent to an address, with
// or without a port. For a host that the user has not named, the ACL endpoint has to be
// trusted as well: it also says whose certificates to believe.
func (f Fabric) CheckHost(address string, scopes []string) error {
	host := hostOf(address)
	if f.Local() && loopback(host) {
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

// checkOwner is CheckHost for one scope, whose owner is known, and a host that nobody has named.
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

// Check returns nil if the fabric may be logged in to and its tokens may go to each of its hosts.
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

// Agrees reports whether the user has already confirmed with another fabric what this one
// would have them confirm: the same API at the same hosts.
func (f Fabric) Agrees(other Fabric) bool {
	return other.Confirmed && f.sameAPI(other) && f.within(other) && f.Issuer == other.Issuer
}

// Contradicts reports whether another fabric has the tokens of the same API go to other hosts. An
// ACL endpoint may change its own brokers.
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

// Where Globus has its scopes, in every one of its environments.
const scopePrefix = "https://auth.globus.org/scopes/"

var (
	uuidShape   = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
	fqdnShape   = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?$`)
	suffixShape = regexp.MustCompile(`^[A-Za-z0-9_.~:/-]+$`) // what else could name a second scope, as dependencies in brackets do
	urnShape    = regexp.MustCompile(`^urn:globus:auth:scope:([A-Za-z0-9_.-]+):`)
)

// globusAPIs are services of Globus itself that are known by their UUIDs.
var globusAPIs = map[string]string{
	"524230d7-ea86-4a52-8312-86065a9e0417": "Globus Timers",
	"eec9b274-0c81-4334-bdc2-54e90e689b9a": "Globus Flows",
	"facd7ccc-c5f4-42aa-916b-a0e270e2c2a9": "Globus Compute",
}

// ScopeOwner returns whose scope it is, a host or the UUID of a client in small letters. It fails for what no fabric can have.
func ScopeOwner(scope string) (string, error) {
	name, _, err := owner(scope)
	if t := (*Error)(nil); errors.As(err, &t) {
		return "", fmt.Errorf("%s; it begins with %s", t.Reason, scopePrefix)
	}
	return name, err
}

// owner returns whose scope it is: a host that Globus has verified, or the UUID of an API. A
// scope of one of Globus's own services is an error, since its tokens are good for files, groups
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

// hostOf returns the host of an address in the one form in which it is compared.
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

// lower is strings.ToLower for ASCII alone: there are letters beyond it whose small form is an
// ASCII letter, and no host has those.
func lower(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}

// loopback reports whether a host names this machine without asking anybody.
func loopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}

// clip bounds what a stranger has written before it goes into an error.
func clip(s string) string {
	const limit = 200
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "…"
}

// Source yields the tokens of a stored login, or of a credential in the environment. They are
// good for one fabric, and must not be sent elsewhere; see [Token].
type Source struct {
	tokens globus.TokenSource
	fabric Fabric
}

// Guard makes a Source of a fabric's tokens.
func Guard(tokens globus.TokenSource, fabric Fabric) *Source { return &Source{tokens, fabric} }

// Fabric returns the fabric that the tokens are for.
func (s *Source) Fabric() Fabric { return s.fabric }

// Token implements [globus.TokenSource].
func (s *Source) Token(ctx context.Context) (globus.Token, error) {
	if err := s.fabric.CheckLogin(); err != nil {
		return globus.Token{}, err
	}
	return s.tokens.Token(ctx)
}

// Refused tells the source that a service has refused the token.
func (s *Source) Refused(access globus.Secret) {
	if tokens, ok := s.tokens.(interface{ Refused(globus.Secret) }); ok {
		tokens.Refused(access)
	}
}

// Settle waits until no renewal is under way.
func (s *Source) Settle() {
	if tokens, ok := s.tokens.(interface{ Settle() }); ok {
		tokens.Settle()
	}
}

// Token returns a source's token to send to an address, which has a port or not. If the source
// has a method Fabric, as a [Source] has, the token is returned only if it may go there. Any
// other source is the program's own, and so is the decision. named are further hosts that the
// user has named.
func Token(ctx context.Context, source globus.TokenSource, address string, named []string) (globus.Token, error) {
	token, err := source.Token(ctx)
	if err != nil {
		return globus.Token{}, err
	}
	if guarded, ok := source.(interface{ Fabric() Fabric }); ok {
		fabric := guarded.Fabric() // only now is it known, if the ACL endpoint had to be asked
		fabric.Named = append(slices.Clone(fabric.Named), named...)
		if err := fabric.CheckHost(address, token.Scope); err != nil {
			return globus.Token{}, err
		}
	}
	return token, nil
}
