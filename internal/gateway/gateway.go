// Package gateway authenticates Kafka clients in front of a broker. It takes the client's access
// token from SASL/OAUTHBEARER, or its access key from SASL/PLAIN, and asks an [Authenticator] which
// principal it belongs to. It then signs in to the broker as that principal and relays requests and
// responses. So the broker sees the real principal and enforces its own ACLs.
//
// Start reading at [Gateway.Serve]. login.go has the login, relay.go what happens after it.
//
// # What reaches the broker
//
// Before the login, only ApiVersions requests, which the gateway encodes itself. After the login,
// only requests that a client may make, in versions that the broker offers, that are well-formed
// and within limits. Any other frame ends the connection.
//
// The gateway itself refuses requests that create, change or delete topics, because the ledger
// decides that. It also refuses Fetch requests of keys that may not read.
//
// Responses are copied unchanged, with two exceptions. The response to ApiVersions lists only what
// the gateway relays as well. In responses that can name consumer groups, the gateway removes the
// prefix that keeps the groups of different subjects apart.
//
// # How long a login lasts
//
// A login lasts until the [Identity] expires. Clients learn that as the session lifetime (KIP-368).
// Those that support it log in again on the same connection. Others are disconnected and have to
// reconnect. When a token or key is revoked, its connections are closed; see
// [Config.RevocationInterval].
//
// # When Globus Auth cannot be reached
//
// While Globus Auth cannot be reached, or the ledger of access keys cannot be read, the gateway
// refuses no client. Clients whose credentials the [Authenticator] still knows continue to work.
// The gateway closes the connections of all others without an answer, because Kafka clients retry
// after a closed connection but treat an error as final.
//
// It is different if Globus Auth can be reached but its answer cannot be used. Then the service is
// misconfigured and an operator has to fix it; until then clients would reconnect in a tight loop.
// So clients get an error that says so.
package gateway

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/admission"
	"github.com/diaspora-streams/diaspora/internal/kafka"
)

// Upstream is the broker behind the gateway.
type Upstream interface {
	// Dial connects to the broker, without signing in.
	Dial(ctx context.Context) (net.Conn, error)
	// SignIn signs the connection conn, which Dial returned, in as User:<principal>. It uses ask to
	// make requests on that connection. signInAt is when SignIn has to be called again, for brokers
	// whose sessions expire; the zero time means never. How long the client may stay connected is
	// decided by the gateway, not by signInAt.
	SignIn(ctx context.Context, conn net.Conn, ask kmsg.Requestor, principal string) (signInAt time.Time, err error)
}

// Authenticator finds out which identity credentials belong to. Its errors wrap [globus.ErrRefused]
// if the credentials are not valid. They wrap [globus.ErrMisconfigured] if it cannot tell until an
// operator fixes the configuration. Any other error means that it cannot tell at the moment.
type Authenticator interface {
	Authenticate(ctx context.Context, c Credentials) (Identity, error)
	// Recheck checks whether credentials that were accepted before are still valid. It does not
	// rely on what it remembers of them, unless that is fresh.
	Recheck(ctx context.Context, c Credentials) error
}

// Credentials are what a client logs in with: an access token, or the ID of an access key and its
// secret.
type Credentials struct {
	KeyID  string // empty for an access token
	Secret globus.Secret
}

// Identity is the result of authenticating credentials.
type Identity struct {
	Subject string // the connection counts against this subject's limits
	// The principal at the broker: the subject, or a key of the subject that has fewer rights.
	Principal string
	Read      bool      // may read topics and use consumer groups
	Expiry    time.Time // when the login expires
}

// Config configures a [Gateway].
type Config struct {
	// Upstream is the broker. Required.
	Upstream Upstream

	// Authenticator authenticates tokens and keys. Required.
	Authenticator Authenticator

	// TLS is the configuration of the listener. If it is nil, clients connect without TLS.
	TLS *tls.Config

	// RevocationInterval is how often the gateway asks the Authenticator again about the
	// credentials of each open connection. A connection is closed if its token or key was revoked,
	// or expired without a new login. That happens within this interval plus a tenth of it, plus
	// the time for which the Authenticator remembers answers. While the Authenticator cannot tell,
	// connections stay open. Default: 30 s.
	RevocationInterval time.Duration

	// LoginTimeout limits the time from accepting a connection to the end of its login. Default: 15
	// s.
	LoginTimeout time.Duration

	// FailureDelay is how long the gateway waits before it answers that a login is refused, to slow
	// down guessing. Default: 100 ms.
	FailureDelay time.Duration

	// FailuresPerAddress is how many failed logins an address may make in a burst; one more is
	// allowed every 200 ms. Beyond that, the gateway closes the address's connections without
	// asking about their credentials, unless these were valid recently. Credentials that were
	// refused before are counted separately from new ones. If they are shown again within 10 s,
	// they are not counted at all. Default: 100.
	FailuresPerAddress int

	// DrainTimeout limits how long the gateway waits for requests in flight when it stops. Default:
	// 5 s.
	DrainTimeout time.Duration

	// MaxConnections limits all connections. A subject that has [subjectConnections] of them or
	// more may have at most a third of those that are still free. Default: 10,000.
	MaxConnections int

	// MaxHalfOpen limits the connections that are not signed in yet. MaxHalfOpenPerAddress limits
	// those of one address (IPv4) or one /64 network (IPv6). If there are too many, the gateway
	// closes the oldest one of the address that has most of them. Default: 2,000 and 500.
	MaxHalfOpen, MaxHalfOpenPerAddress int

	// MaxRequestBytes limits a produce request, which may hold batches of 1 MiB for several
	// partitions. All other requests are limited to 1 MiB. Default: 32 MiB.
	MaxRequestBytes int

	// MaxFetchBytes limits how much data a fetch may request. The gateway lowers a larger value to
	// it, so that clients fetch more often. A single batch may still be larger. Default: 16 MiB.
	MaxFetchBytes int

	// Diagnostics receives the Gateway's own messages. Nil discards them.
	Diagnostics *slog.Logger
}

const (
	maxSmallRequestBytes = 1 << 20   // limit of any request except produce
	maxLoginBytes        = 512 << 10 // limit of any request before the login, as in Apache Kafka

	// Memory budgets. All requests and answers that are held in memory at the same time share them,
	// so that many of them together cannot exhaust memory.
	loginBudgetBytes    = 64 << 20
	subjectBudgetBytes  = 64 << 20
	requestBudgetBytes  = 512 << 20
	responseBudgetBytes = 256 << 20
)

// setDefaults fills in the default values, and fails if a value is not allowed.
func (cfg *Config) setDefaults() error {
	if cfg.Upstream == nil || cfg.Authenticator == nil {
		return errors.New("gateway: Upstream and Authenticator are required")
	}
	if err := errors.Join(
		setDefault("RevocationInterval", &cfg.RevocationInterval, 30*time.Second),
		setDefault("LoginTimeout", &cfg.LoginTimeout, 15*time.Second),
		setDefault("FailureDelay", &cfg.FailureDelay, 100*time.Millisecond),
		setDefault("DrainTimeout", &cfg.DrainTimeout, 5*time.Second),
		setDefault("FailuresPerAddress", &cfg.FailuresPerAddress, admission.DefaultBurst),
		setDefault("MaxConnections", &cfg.MaxConnections, 10_000),
		setDefault("MaxHalfOpen", &cfg.MaxHalfOpen, 2_000),
		setDefault("MaxHalfOpenPerAddress", &cfg.MaxHalfOpenPerAddress, 500),
		setDefault("MaxRequestBytes", &cfg.MaxRequestBytes, kafka.MaxRequestBytes),
		setDefault("MaxFetchBytes", &cfg.MaxFetchBytes, 16<<20),
	); err != nil {
		return err
	}
	if cfg.MaxRequestBytes > subjectBudgetBytes-4 {
		return fmt.Errorf("gateway: MaxRequestBytes is more than %d", subjectBudgetBytes-4)
	}
	cfg.Diagnostics = cmp.Or(cfg.Diagnostics, slog.New(slog.DiscardHandler))
	return nil
}

// setDefault sets a field that is zero to value, and fails if the field is negative.
func setDefault[T int | time.Duration](name string, field *T, value T) error {
	if *field == 0 {
		*field = value
	}
	if *field < 0 {
		return fmt.Errorf("gateway: %s is negative", name)
	}
	return nil
}

// Gateway authenticates clients and relays their requests to one broker.
type Gateway struct {
	cfg      Config
	limits   *limits
	counters counters

	loginBudget    *semaphore.Weighted
	requestBudget  *semaphore.Weighted
	responseBudget *semaphore.Weighted
	splices        *semaphore.Weighted
	uploads        uploads

	mu      sync.Mutex // guards the field below
	serving map[*server]struct{}

	// Limit how often events are logged that may happen a thousand times a second.
	logRejected, logUnavailable, logMisconfigured, logBroker rate.Sometimes
}

// New returns a gateway. It does nothing until [Gateway.Serve] is called.
func New(cfg Config) (*Gateway, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	const often = 10 * time.Second
	return &Gateway{
		cfg:              cfg,
		serving:          map[*server]struct{}{},
		limits:           newLimits(&cfg),
		loginBudget:      semaphore.NewWeighted(loginBudgetBytes),
		requestBudget:    semaphore.NewWeighted(requestBudgetBytes),
		responseBudget:   semaphore.NewWeighted(responseBudgetBytes),
		splices:          semaphore.NewWeighted(maxSplices),
		logRejected:      rate.Sometimes{Interval: often},
		logUnavailable:   rate.Sometimes{Interval: often},
		logMisconfigured: rate.Sometimes{Interval: time.Minute},
		logBroker:        rate.Sometimes{Interval: often},
	}, nil
}

func (g *Gateway) fetchLimit() fetchLimit {
	return fetchLimit{bytes: int32(min(g.cfg.MaxFetchBytes, math.MaxInt32)), waitMillis: fetchWaitMillis}
}
