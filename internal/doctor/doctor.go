// Package doctor finds out why events do not reach the cluster, and what to do about it.
//
// It runs a list of small checks, [checks]: the program's environment, the network, the login, the
// gateway, the rights on a topic, a test event that is written and read back, and the spool on
// disk. Each check reports in a sentence what it has seen and, if there is a problem, what to do
// next. Each check has a time limit, so [Examine] always ends. If a check could only repeat the
// failure of an earlier one, it is not run, and its finding names the earlier one.
//
// Checks change nothing, with these exceptions: a test event in the topic that was named for it; a
// renewed token, as any program would renew it; and temporary files that are created to test
// whether that is possible, and removed at once.
//
// [Report.WriteBundle] packs the findings for a support ticket, without secrets.
//
// Start reading at [checks] and [Examine].
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
	"strings"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/accesskey"
	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/outcome"
	"github.com/diaspora-streams/diaspora/internal/spool"
)

// Config configures an examination.
type Config struct {
	// Getenv and Environ access the environment, like [os.Getenv] and [os.Environ]. Required.
	Getenv  func(string) string
	Environ []string

	// Version is the version of the program.
	Version string

	// Spools returns the folder of the spools that the program uses, which need not exist, and the
	// spools in it. Required.
	Spools func() (home string, dirs []string, err error)

	// Topic is the topic to check, and the topic for the test event. Default: one of the user's own
	// topics is checked, and a test event is only written to [EchoTopic].
	Topic string

	// Timeout bounds each check. Default: 10 s.
	Timeout time.Duration

	// Now is the clock. Default: time.Now.
	Now func() time.Time

	// Operator is what the user who runs the fabric can do instead of telling the operator, as an
	// imperative. Default: the user is not the operator.
	Operator string

	// Mistyped says what to do with the events of a spool that are for a topic whose name is most likely wrong. used means
	// that a process uses the spool. Required.
	Mistyped func(topic, spool string, used bool) string

	// Resolver resolves names. Default: the system's resolver.
	Resolver *net.Resolver

	// Proxy returns the proxy for an HTTP request. Default: the one that package http takes from
	// the environment.
	Proxy func(*http.Request) (*url.URL, error)

	// System calls that tests replace.
	fileSystem func(dir string) (disk.FileSystemKind, error)
	space      func(dir string) (diskSpace, error)
	locks      func(dir string) error
	user       func() int
}

const (
	defaultTimeout = 10 * time.Second
	grace          = time.Second // how long a check may take to report a timeout itself
)

// Status is the result of a check.
type Status string

// The possible results.
const (
	OK       Status = "ok"
	Warning  Status = "warning"   // it works, but not as well as it could, or not for long
	Failure  Status = "failure"   // it does not work
	NotTried Status = "not tried" // another check has to succeed first
)

// Finding is what a check has found.
type Finding struct {
	Check  string  `json:"check"`
	Status Status  `json:"status"`
	Seen   string  `json:"seen"`           // a sentence
	Next   string  `json:"next,omitempty"` // what to do; empty if there is no problem
	TookMS float64 `json:"took_ms"`
	Legs   []Leg   `json:"legs,omitempty"` // parts of the path that the check has tested, if any

	learn func() // stores what later checks need
}

// Leg is a part of an event's path, and how long it took.
type Leg struct {
	Name string  `json:"name"`
	MS   float64 `json:"ms"`
}

// check is one check of the list.
type check struct {
	name  string
	needs []string // checks that must not have failed, because otherwise this one could only repeat their failure
	run   func(ctx context.Context, v *visit) Finding
}

// checks lists all checks in the order in which they run. A check comes after those that it needs.
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
	{"ACL endpoint", []string{"TLS"}, checkEndpoint},
	{"profile freshness", []string{"ACL endpoint"}, checkFreshness},
	{"health", []string{"ACL endpoint"}, checkHealth},
	{"versions", []string{"ACL endpoint"}, checkVersions},

	{"Globus Auth", []string{"proxy"}, checkGlobus},
	{"clock", []string{"configuration"}, checkClock},
	{"login", []string{"proxy"}, checkLogin},
	{"scopes", []string{"login"}, checkScopes},
	{"identity", []string{"login", "ACL endpoint"}, checkIdentity},

	{"gateway DNS", []string{"configuration"}, checkGatewayDNS},
	{"gateway TCP", []string{"gateway DNS"}, checkGatewayTCP},
	{"gateway TLS", []string{"gateway TCP"}, checkGatewayTLS},
	{"sign-in", []string{"gateway TLS", "login"}, checkSignIn},
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

// visit is the state of one examination: its configuration, and what the checks have learned so
// far.
type visit struct {
	Config
	diag   *diagnostics
	stored []globus.Token // tokens of all profiles, which must not appear in any output

	keyFile  accesskey.File  // the file that DIASPORA_KEY_FILE names
	noKey    bool            // the access key cannot be used, so it is not known which fabric its file names
	profile  string          // name of the profile; "" if none is used
	noName   bool            // the name of the profile cannot be found out
	cfg      diaspora.Config // set by the check "configuration"
	endpoint *url.URL        // URL of the ACL endpoint
	client   *diaspora.Client
	proxy    *url.URL // proxy for the ACL endpoint; nil if there is none

	live   *diaspora.Discovery // current discovery document of the ACL endpoint
	clocks []Finding           // this machine's clock, compared with those of the ACL endpoint and Globus Auth

	token    globus.Token
	identity globus.Identity
	key      diaspora.AccessKey // the key that signs in, as the fabric describes it

	reachable []string    // gateways that accept connections
	gateway   *tls.Config // TLS configuration; nil for plaintext
	first     *connection // signed in, to the first gateway that accepted the login
	topic     topicState
	sent      sentEvent

	home   string // folder of the spools
	kind   disk.FileSystemKind
	left   diskSpace
	dirs   []string
	spools []spool.Report
}

// Report contains all findings.
type Report struct {
	Version  string    `json:"version"`
	Go       string    `json:"go"`
	OS       string    `json:"os"`
	Arch     string    `json:"arch"`
	Time     time.Time `json:"time"`
	Findings []Finding `json:"checks"`

	visit *visit
}

// Count returns the number of checks with this status.
func (r *Report) Count(s Status) (n int) {
	for _, f := range r.Findings {
		if f.Status == s {
			n++
		}
	}
	return n
}

// Examine runs all checks, one after another. It calls each with every finding as soon as it is
// available. When ctx ends, the remaining checks are not run.
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
	blocked := map[string]string{} // checks that failed or were not run, and the reason to report for others that need them
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
	v.Timeout = cmp.Or(v.Timeout, defaultTimeout)
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

// end releases the visit's resources. It waits for a token renewal in progress, because that may
// return the only refresh token that is still valid.
func (v *visit) end() {
	if v.first != nil {
		v.first.close()
	}
	if source, ok := v.cfg.TokenSource.(interface{ Settle() }); ok {
		source.Settle()
	}
}

// try runs a check, unless a check that it needs has failed. If the check does not end in time, try
// leaves it running and returns.
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
	case inTime && f.learn != nil: // not earlier, because a check that was left running could otherwise change v at any time
		f.learn()
		f.learn = nil
	case !inTime && ctx.Err() != nil:
		f = notTried("it was interrupted")
	case !inTime:
		f = failure("try again, with a longer --timeout", "it did not end within %v", v.Timeout)
	}
	if v.Operator != "" {
		f.Next = strings.ReplaceAll(f.Next, tellOperator, v.Operator)
	}
	f.Check, f.TookMS = c.name, ms(time.Since(began))
	// Errors of other packages may quote their input, even the password of a proxy. Redact before
	// any text is shortened: half a secret would no longer be recognized.
	f.Seen, f.Next = redact(f.Seen, secrets), redact(f.Next, secrets)
	return f
}

// await waits for a finding until ctx has ended, and then for the grace period.
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

// tellOperator is part of what findings advise.
const tellOperator = "tell the operator"

// failed returns a finding for an error. If the error has a hint, it replaces next.
func failed(err error, next string) Finding {
	text, hint := outcome.Split(err)
	next = cmp.Or(hint, next)
	if errors.Is(err, context.DeadlineExceeded) {
		text, next = "no answer in time", "try again, with a longer --timeout too; if it stays so, tell the operator"
	}
	return failure(next, "%s", text)
}

// and sets a function that stores what later checks need. It is called if the check ends in time.
func (f Finding) and(learn func()) Finding {
	f.learn = learn
	return f
}
