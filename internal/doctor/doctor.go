// Package doctor finds out why events do not get through, and says what to do about it.
//
// It is a list of small checks, [checks], from the environment of the program over the
// network, the login, the gateway and the rights on a topic to an event that is written and
// read back, and to the spool on disk. Each says in a sentence what it has seen, and what to do
// next if that is not well. Each has a bound in time: whatever hangs, [Examine] ends. A check
// that could only repeat what another has said is not tried, and says because of what.
//
// Checks change nothing, but for: a test event in the topic that was named for it; a
// renewed token, as any program would renew it; and files that are made to see whether one can,
// and removed at once.
//
// [Report.WriteBundle] packs what was found for somebody else to look at, without secrets.
package doctor

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/accesskey"
	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/outcome"
	"github.com/diaspora-streams/diaspora/internal/spool"
)

// Config says what to examine.
type Config struct {
	// Getenv and Environ are the environment, like [os.Getenv] and [os.Environ].
	// Required.
	Getenv  func(string) string
	Environ []string

	// Version is that of the program.
	Version string

	// Spools returns the folder of the spools that the program uses, which need not
	// be there, and the spools in it. Required.
	Spools func() (home string, dirs []string, err error)

	// Topic is what is tried, and where the test event goes. Default: a topic of the
	// person's own is tried, and the event goes nowhere but to [EchoTopic].
	Topic string

	// Timeout bounds each check. Default: 10 s.
	Timeout time.Duration

	// Now is the clock. Default: time.Now.
	Now func() time.Time

	// Resolver looks names up. Default: the system's.
	Resolver *net.Resolver

	// Proxy says through what an HTTP request goes. Default: what the
	// environment says, as all of package http has it.
	Proxy func(*http.Request) (*url.URL, error)

	// What the machine says, which a test cannot always make it say.
	fileSystem func(dir string) (disk.FileSystemKind, error)
	space      func(dir string) (diskSpace, error)
	locks      func(dir string) error
	user       func() int
}

const (
	defaultTimeout = 10 * time.Second
	grace          = time.Second // for a check to say so itself that its time is over
)

// Status is what came of a check.
type Status string

// The four that there are.
const (
	OK       Status = "ok"
	Warning  Status = "warning"   // it works, but not as well as it could, or not for long
	Failure  Status = "failure"   // it does not work
	NotTried Status = "not tried" // something else has to work before
)

// Finding is what a check has found.
type Finding struct {
	Check  string  `json:"check"`
	Status Status  `json:"status"`
	Seen   string  `json:"seen"`           // a sentence
	Next   string  `json:"next,omitempty"` // what to do; empty if all is well
	TookMS float64 `json:"took_ms"`
	Legs   []Leg   `json:"legs,omitempty"` // of the way that was gone, where there is one

	learn func() // keeps what later checks need
}

// Leg is a part of an event's way, and how long it took.
type Leg struct {
	Name string  `json:"name"`
	MS   float64 `json:"ms"`
}

// check is one thing that is looked at.
type check struct {
	name  string
	needs []string // what must not have failed, for this to say anything new
	run   func(ctx context.Context, v *visit) Finding
}

// checks are all of them, in the order in which they are tried: what others
// need comes first.
var checks = []check{
	{"environment", nil, checkEnvironment},
	{"credentials", nil, checkCredentials},
	{"settings folder", nil, checkFolder},
	{"profile", nil, checkProfile},
	{"token file", []string{"profile"}, checkTokenFile},
	{"configuration", []string{"credentials", "profile", "token file"}, checkConfiguration},
	{"proxy", []string{"configuration"}, checkProxy},

	{"DNS", []string{"configuration"}, checkDNS},
	{"TCP", []string{"DNS"}, checkTCP},
	{"TLS", []string{"TCP", "proxy"}, checkTLS},
	{"certificate", []string{"TLS"}, checkCertificate},
	{"ACL endpoint", []string{"TLS"}, checkEndpoint},
	{"profile freshness", []string{"ACL endpoint"}, checkFreshness},
	{"health", []string{"ACL endpoint"}, checkHealth},
	{"versions", []string{"ACL endpoint"}, checkVersions},
	{"clock", []string{"ACL endpoint"}, checkClock},

	{"Globus Auth", []string{"proxy"}, checkGlobus},
	{"clock at Globus", []string{"Globus Auth"}, checkGlobusClock},
	{"login", []string{"proxy"}, checkLogin},
	{"renewal", []string{"login"}, checkRenewal},
	{"scopes", []string{"login"}, checkScopes},
	{"identity", []string{"login", "ACL endpoint"}, checkIdentity},

	{"gateway DNS", []string{"configuration"}, checkGatewayDNS},
	{"gateway TCP", []string{"gateway DNS"}, checkGatewayTCP},
	{"gateway TLS", []string{"gateway TCP"}, checkGatewayTLS},
	{"gateway certificate", []string{"gateway TLS"}, checkGatewayCertificate},
	{"sign-in", []string{"gateway TLS", "login"}, checkSignIn},
	{"session", []string{"sign-in"}, checkSession},
	{"brokers", []string{"sign-in"}, checkBrokers},

	{"topics", []string{"identity"}, checkTopics},
	{"topic", []string{"sign-in"}, checkTopic},
	{"topic settings", []string{"topic"}, checkTopicSettings},
	{"write", []string{"topic"}, checkWrite},
	{"read", []string{"topic"}, checkRead},
	{"produce", []string{"write", "brokers"}, checkProduce},
	{"consume", []string{"produce", "read"}, checkConsume},

	{"spool folder", nil, checkSpoolFolder},
	{"spool files", []string{"spool folder"}, checkSpoolFiles},
	{"file locks", []string{"spool folder"}, checkLocks},
	{"file system", []string{"spool folder"}, checkFileSystem},
	{"disk space", []string{"spool folder"}, checkSpace},
	{"backlog", []string{"spool files"}, checkBacklog},
	{"quarantine", []string{"spool files"}, checkQuarantine},
	{"losses", []string{"spool files"}, checkLosses},
}

// Names returns the names of all checks, in the order in which they are tried.
func Names() []string {
	var names []string
	for _, c := range checks {
		names = append(names, c.name)
	}
	return names
}

// visit is one run: what to examine, and what has been learnt.
type visit struct {
	Config
	diag   *diagnostics
	stored []globus.Token // of all profiles, to know them where they must not be

	keyFile  accesskey.File  // that DIASPORA_KEY_FILE names
	profile  string          // its name; "" if none is used
	cfg      diaspora.Config // from configuration on
	endpoint *url.URL        // of the ACL endpoint
	proxy    *url.URL        // through which that is reached; nil for none

	presented tlsState            // what the ACL endpoint showed
	live      *diaspora.Discovery // what it says now
	skew      clockReading        // of its clock
	globusAt  clockReading        // of Globus Auth's

	token    globus.Token
	identity globus.Identity
	key      diaspora.AccessKey // that signs in, as the fabric describes it

	reachable []string    // gateways that take connections
	gateway   *tls.Config // how to trust them; nil for plaintext
	shown     []tlsState  // what each of them showed
	first     *connection // signed in, to the first gateway that let us
	topic     topicState
	sent      sentEvent

	home   string // of the spools
	kind   disk.FileSystemKind
	left   diskSpace
	dirs   []string
	spools []spool.Report
}

// Report is all that was found.
type Report struct {
	Version  string    `json:"version"`
	Go       string    `json:"go"`
	OS       string    `json:"os"`
	Arch     string    `json:"arch"`
	Time     time.Time `json:"time"`
	Findings []Finding `json:"checks"`

	visit *visit
}

// Count returns how many checks ended so.
func (r *Report) Count(s Status) (n int) {
	for _, f := range r.Findings {
		if f.Status == s {
			n++
		}
	}
	return n
}

// Examine tries all checks, one after the other, and calls each with a finding as soon as
// it is there. When ctx ends, what is left is not tried.
func Examine(ctx context.Context, cfg Config, each func(Finding)) *Report {
	return newVisit(cfg).examine(ctx, each)
}

func (v *visit) examine(ctx context.Context, each func(Finding)) *Report {
	defer v.end()
	r := &Report{
		Version: v.Version, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH,
		Time: v.Now().UTC(), visit: v,
	}
	v.readStored()
	blocked := map[string]string{} // what cannot be built upon, and because of what
	for _, c := range checks {
		f := v.try(ctx, c, blocked)
		switch f.Status {
		case Failure:
			blocked[c.name] = c.name + " failed"
		case NotTried:
			blocked[c.name] = f.Seen
		}
		r.Findings = append(r.Findings, f)
		each(f)
	}
	return r
}

func newVisit(cfg Config) *visit {
	v := &visit{Config: cfg, diag: new(diagnostics)}
	setDefault(&v.Timeout, defaultTimeout)
	if v.Now == nil {
		v.Now = time.Now
	}
	if v.Resolver == nil {
		v.Resolver = net.DefaultResolver
	}
	if v.Proxy == nil {
		v.Proxy = http.ProxyFromEnvironment
	}
	if v.fileSystem == nil {
		v.fileSystem = disk.FileSystem
	}
	if v.space == nil {
		v.space = spaceOf
	}
	if v.locks == nil {
		v.locks = tryLocks
	}
	if v.user == nil {
		v.user = os.Geteuid
	}
	return v
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// end gives back what the visit holds. A renewal of the token that is under way may
// bring the only refresh token that is still good, so it is waited for.
func (v *visit) end() {
	if v.first != nil {
		v.first.close()
	}
	if source, ok := v.cfg.TokenSource.(interface{ Settle() }); ok {
		source.Settle()
	}
}

// try runs a check, unless something that it needs is missing, and leaves it alone
// when its time is over.
func (v *visit) try(ctx context.Context, c check, blocked map[string]string) Finding {
	for _, need := range c.needs {
		if why := blocked[need]; why != "" {
			return Finding{Check: c.name, Status: NotTried, Seen: why}
		}
	}
	if ctx.Err() != nil {
		return Finding{Check: c.name, Status: NotTried, Seen: "it was interrupted"}
	}
	timed, cancel := context.WithTimeout(ctx, v.Timeout)
	defer cancel()
	began := time.Now()
	done := make(chan Finding, 1)
	secrets := v.secrets()
	go func() { done <- c.run(timed, v) }()
	f, inTime := await(timed, done)
	switch {
	case inTime && f.learn != nil: // only now, for a check that was left alone may still be running
		f.learn()
		f.learn = nil
	case !inTime && ctx.Err() != nil:
		f = notTried("it was interrupted")
	case !inTime:
		f = failure("try again, with a longer --timeout", "it did not end within %v", v.Timeout)
	}
	f.Check, f.TookMS = c.name, ms(time.Since(began))
	// Some errors of others quote what they were given, a proxy's password even. Before any
	// text is cut to a length: half a secret would not be known for one.
	f.Seen, f.Next = redact(f.Seen, secrets), redact(f.Next, secrets)
	return f
}

// await waits for a finding until ctx has ended, and a moment longer.
func await(ctx context.Context, done <-chan Finding) (f Finding, inTime bool) {
	select {
	case f = <-done:
		return f, true
	case <-ctx.Done():
	}
	select {
	case f = <-done:
		return f, true
	case <-time.After(grace):
		return Finding{}, false
	}
}

func ok(format string, args ...any) Finding {
	return Finding{Status: OK, Seen: fmt.Sprintf(format, args...)}
}

func warning(next, format string, args ...any) Finding {
	return Finding{Status: Warning, Seen: fmt.Sprintf(format, args...), Next: next}
}

func failure(next, format string, args ...any) Finding {
	return Finding{Status: Failure, Seen: fmt.Sprintf(format, args...), Next: next}
}

func notTried(because string) Finding { return Finding{Status: NotTried, Seen: because} }

// failed makes a finding of an error, with its own advice if it has some.
func failed(err error, next string) Finding {
	text, hint := outcome.Split(err)
	next = cmp.Or(hint, next)
	if errors.Is(err, context.DeadlineExceeded) {
		text, next = "no answer in time", "try again, with a longer --timeout too; if it stays so, tell the operator"
	}
	return failure(next, "%s", text)
}

// and adds what later checks need to know, to be kept if the check ends in time.
func (f Finding) and(learn func()) Finding {
	f.learn = learn
	return f
}
