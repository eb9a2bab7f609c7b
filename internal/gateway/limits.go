package gateway

import (
	"crypto/sha256"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/semaphore"

	"github.com/diaspora-streams/diaspora/internal/admission"
)

var (
	errConnections = errors.New("too many connections")
	errHalfOpen    = errors.New("too many connections that are not signed in")
	errSubject     = errors.New("too many connections of one subject")
	errFailures    = errors.New("too many refused logins from this address")
	errBudget      = errors.New("too many large requests at once")
	errSlowUpload  = errors.New("a request took too long to arrive while others waited for memory")
)

// subjectConnections is how many connections a subject may always have, within MaxConnections.
// Beyond that, a subject may have at most a third of the connections that are still free. Of
// 10,000, one subject gets 2,500, and three subjects together get 5,000. So a few subjects cannot
// use up all connections.
const subjectConnections = 16

const (
	refusedFor  = 10 * time.Second // how long the gateway remembers that credentials were refused
	refusedSize = 10_000           // for how many credentials
)

// limits counts connections and refused logins.
type limits struct {
	cfg       *Config
	guard     *admission.Guard
	anonymous admission.AnonymousConns // the connections that are not signed in

	mu       sync.Mutex               // guards the fields below
	signedIn int                      // number of connections that are signed in
	usage    map[string]*subjectUsage // by subject

	refusals *lru.Cache[admission.Hash, pastRefusal]
}

func newLimits(cfg *Config) *limits {
	refusals, _ := lru.New[admission.Hash, pastRefusal](refusedSize) // fails for a size of 0 only
	return &limits{
		cfg:      cfg,
		guard:    admission.NewGuard(cfg.FailuresPerAddress),
		usage:    make(map[string]*subjectUsage),
		refusals: refusals,
	}
}

// subjectUsage is shared by all connections of a subject.
type subjectUsage struct {
	connections int // guarded by limits.mu
	// Budgets for what is held in memory for the subject. They keep one subject from using up the
	// budgets of all.
	requests, answers *semaphore.Weighted
}

// addressOf returns the address that a client's connections are counted under.
func addressOf(a net.Addr) netip.Addr {
	ap, _ := netip.ParseAddrPort(a.String())
	return admission.AddressOf(ap.Addr())
}

// open counts a connection that is not signed in yet. If there are too many connections, open
// evicts another one that is not signed in. It fails if there is none to evict.
func (l *limits) open(address netip.Addr, close func()) (*admission.AnonymousConn, error) {
	for l.anonymous.LenOf(address) >= l.cfg.MaxHalfOpenPerAddress && l.anonymous.EvictFrom(address) {
	}
	for {
		total, halfOpen := l.counts()
		if total < l.cfg.MaxConnections && halfOpen < l.cfg.MaxHalfOpen {
			return l.anonymous.Add(address, close), nil
		}
		if !l.anonymous.Evict() {
			return nil, errConnections
		}
	}
}

// signIn counts an open connection as one of the subject's, or fails if there are too many.
func (l *limits) signIn(x *admission.AnonymousConn, subject string) (*subjectUsage, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.usage[subject]
	if a == nil {
		a = &subjectUsage{requests: semaphore.NewWeighted(subjectBudgetBytes), answers: semaphore.NewWeighted(subjectBudgetBytes)}
	}
	if free := l.cfg.MaxConnections - l.signedIn; a.connections >= max(subjectConnections, free/3) {
		return nil, errSubject
	}
	if !x.Remove() {
		return nil, errHalfOpen // it was evicted a moment ago to make room
	}
	l.usage[subject] = a
	a.connections++
	l.signedIn++
	return a, nil
}

// closed stops counting a connection. subject is empty if the connection was never signed in.
func (l *limits) closed(x *admission.AnonymousConn, subject string) {
	x.Remove()
	if subject == "" {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.signedIn--
	a := l.usage[subject]
	if a.connections--; a.connections == 0 {
		delete(l.usage, subject)
	}
}

func (l *limits) counts() (total, halfOpen int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	halfOpen = l.anonymous.Len()
	return l.signedIn + halfOpen, halfOpen
}

func hashOf(c Credentials) admission.Hash {
	return sha256.Sum256([]byte(c.KeyID + "\x00" + c.Secret.Reveal()))
}

type pastRefusal struct {
	refusal
	until time.Time
}

// remember records that credentials were refused, and why.
func (l *limits) remember(c Credentials, r refusal) {
	l.refusals.Add(hashOf(c), pastRefusal{r, time.Now().Add(refusedFor)})
}

// refusedBefore returns why the same credentials were refused a moment ago, or nil. The gateway need not
// ask again, because refused credentials seldom become valid. That happens if an operator unblocks their
// owner or corrects the configuration. They then work up to refusedFor later.
func (l *limits) refusedBefore(c Credentials) *refusal {
	if past, ok := l.refusals.Get(hashOf(c)); ok && time.Now().Before(past.until) {
		return &past.refusal
	}
	return nil
}
