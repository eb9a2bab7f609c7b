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
	"golang.org/x/time/rate"
)

var (
	errConnections = errors.New("too many connections")
	errHalfOpen    = errors.New("too many connections that are not signed in")
	errSubject     = errors.New("too many connections of one subject")
	errFailures    = errors.New("too many refused logins from this address")
	errBudget      = errors.New("too many large requests at once")
	errSlowUpload  = errors.New("a request takes too long while others wait for its memory")
)

const (
	failureInterval  = 200 * time.Millisecond // how often an address is forgiven one failure
	failureAddresses = 10_000                 // how many addresses are remembered

	refusedFor  = 10 * time.Second // how long credentials that were refused are remembered
	refusedSize = 10_000           // how many
)

// limits counts connections and refused logins.
type limits struct {
	cfg *Config

	mu        sync.Mutex // guards the fields below
	total     int
	halfOpen  int
	byAddress map[netip.Addr]int // half-open
	bySubject map[string]*account
	failures  *lru.Cache[netip.Addr, *rate.Limiter]

	refusals *lru.Cache[credentialsHash, pastRefusal]
}

func newLimits(cfg *Config) *limits {
	failures, _ := lru.New[netip.Addr, *rate.Limiter](failureAddresses) // fails for a size of 0 only
	refusals, _ := lru.New[credentialsHash, pastRefusal](refusedSize)
	return &limits{
		cfg:       cfg,
		byAddress: make(map[netip.Addr]int),
		bySubject: make(map[string]*account),
		failures:  failures,
		refusals:  refusals,
	}
}

// account is what the connections of one subject have in common.
type account struct {
	connections int // guarded by limits.mu
	// requests and answers are shared by what is held in memory for the subject, so
	// that one subject cannot take all that there is for everybody.
	requests, answers *semaphore.Weighted
}

// addressOf is what a client's limits hang on: its IPv4 address, or its network
// of 64 bits, of which every IPv6 host has all addresses.
func addressOf(a net.Addr) netip.Addr {
	ap, _ := netip.ParseAddrPort(a.String())
	addr := ap.Addr().Unmap().WithZone("")
	if addr.Is6() {
		prefix, _ := addr.Prefix(64)
		return prefix.Addr()
	}
	return addr
}

// open counts a connection that is not signed in yet, unless it is one too many.
func (l *limits) open(address netip.Addr) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.total >= l.cfg.MaxConnections {
		return errConnections
	}
	if l.halfOpen >= l.cfg.MaxHalfOpen || l.byAddress[address] >= l.cfg.MaxHalfOpenPerAddress {
		return errHalfOpen
	}
	l.total++
	l.halfOpen++
	l.byAddress[address]++
	return nil
}

// signedIn counts an open connection as the subject's, unless it is one too many.
func (l *limits) signedIn(address netip.Addr, subject string) (*account, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.bySubject[subject]
	if a == nil {
		a = &account{requests: semaphore.NewWeighted(subjectBudgetBytes), answers: semaphore.NewWeighted(subjectBudgetBytes)}
		l.bySubject[subject] = a
	}
	if a.connections >= l.cfg.MaxConnectionsPerSubject {
		return nil, errSubject
	}
	a.connections++
	l.halfOpen--
	decrement(l.byAddress, address)
	return a, nil
}

// closed takes a connection off the count; subject is empty if it never was
// signed in.
func (l *limits) closed(address netip.Addr, subject string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total--
	if subject == "" {
		l.halfOpen--
		decrement(l.byAddress, address)
		return
	}
	a := l.bySubject[subject]
	if a.connections--; a.connections == 0 {
		delete(l.bySubject, subject)
	}
}

func decrement(counts map[netip.Addr]int, address netip.Addr) {
	if counts[address]--; counts[address] == 0 {
		delete(counts, address)
	}
}

func (l *limits) counts() (total, halfOpen int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.total, l.halfOpen
}

// mayFail reports whether the address may try another token.
func (l *limits) mayFail(address netip.Addr) bool {
	limiter, ok := l.failures.Get(address)
	return !ok || limiter.Tokens() >= 1
}

// failed counts a refused login.
func (l *limits) failed(address netip.Addr) {
	fresh := rate.NewLimiter(rate.Every(failureInterval), l.cfg.FailuresPerAddress)
	limiter, ok, _ := l.failures.PeekOrAdd(address, fresh)
	if !ok {
		limiter = fresh
	}
	limiter.Allow()
}

type credentialsHash [sha256.Size]byte

func hashOf(c Credentials) credentialsHash {
	return sha256.Sum256([]byte(c.KeyID + "\x00" + c.Secret.Reveal()))
}

type pastRefusal struct {
	refusal
	until time.Time
}

// remember notes that credentials were refused.
func (l *limits) remember(c Credentials, r refusal) {
	r.again = true
	l.refusals.Add(hashOf(c), pastRefusal{r, time.Now().Add(refusedFor)})
}

// refusedBefore returns why the same credentials were refused a moment ago, or nil.
// What was refused does not become good.
func (l *limits) refusedBefore(c Credentials) *refusal {
	if past, ok := l.refusals.Get(hashOf(c)); ok && time.Now().Before(past.until) {
		return &past.refusal
	}
	return nil
}
