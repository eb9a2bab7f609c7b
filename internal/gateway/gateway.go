// Package gateway proves at the Kafka wire who is calling. It stands in front
// of a broker, takes the client's access token from SASL/OAUTHBEARER or its
// access key from SASL/PLAIN, asks whose it is, signs in to the broker as that
// principal, and from then on relays frames. The broker sees the real principal
// and enforces its own ACLs.
//
// # What reaches the broker
//
// Before login nothing but a request for ApiVersions, written anew. Afterwards
// requests that a client may make, in versions that the broker offers, laid out
// as they should be and within limits. The first frame that is anything else
// ends the connection. Responses are copied, but for that to ApiVersions, which
// is cut to what the gateway takes.
//
// # How long a login lasts
//
// As long as the [Identity], which clients learn as the session lifetime
// (KIP-368): those that can log in again on the same connection, the others
// are cut off and connect anew. A revoked token or key loses its connections,
// see [Config.RevocationInterval].
//
// # When Globus Auth cannot be reached
//
// Then, and while the ledger of access keys cannot be read, nobody is refused.
// Whoever the [Authenticator] still knows goes on; the others get a closed
// connection, which Kafka clients retry, instead of an error, which they take
// for final.
//
// It is another matter when Globus Auth is reached and its answer cannot be used, since this
// service is misconfigured: an operator has to mend that, and clients would retry all the time until
// then. So they get an error, which says that.
package gateway

import (
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
	// Dial connects to the broker; nobody is signed in on the connection.
	Dial(ctx context.Context) (net.Conn, error)
	// SignIn signs a connection in as User:<principal>. The connection is one
	// from Dial, and ask makes requests on it. SignIn returns when to sign in
	// again, for brokers whose sessions end; the zero time means never. The
	// gateway decides how long the client may stay.
	SignIn(ctx context.Context, conn net.Conn, ask kmsg.Requestor, principal string) (again time.Time, err error)
}

// Authenticator says whose credentials they are. Its errors are
// [globus.ErrRefused]; with any other it could not find out, and with
// [globus.ErrMisconfigured] it will not until somebody mends that.
type Authenticator interface {
	Authenticate(ctx context.Context, c Credentials) (Identity, error)
	// Recheck looks whether credentials with which a client was let in are still good.
	// What was known of them does not count, unless it is fresh.
	Recheck(ctx context.Context, c Credentials) error
}

// Credentials are what a client shows: an access token, or the ID of an access
// key and the secret that goes with it.
type Credentials struct {
	KeyID  string // empty with an access token
	Secret globus.Secret
}

// Identity is who a client turns out to be.
type Identity struct {
	Subject   string    // whose limits its connections count for
	Principal string    // whom the broker is to see: the subject, or a key of the subject's with fewer rights
	Read      bool      // may read topics, and so use consumer groups
	Expiry    time.Time // until when that holds
}

// Config says what a [Gateway] stands in front of and what it puts up with.
type Config struct {
	// Upstream is the broker. Required.
	Upstream Upstream

	// Authenticator knows the tokens and keys. Required.
	Authenticator Authenticator

	// TLS, if set, is what clients must speak.
	TLS *tls.Config

	// RevocationInterval is how often the Authenticator is asked again about
	// the credentials of each open connection. A connection whose token or key
	// was revoked, or has expired without a new login, is closed within this
	// interval, plus a tenth, plus what the Authenticator remembers answers for.
	// While the Authenticator cannot find out, connections stay. Default: 30 s.
	RevocationInterval time.Duration

	// LoginTimeout bounds the time from connecting to being signed in.
	// Default: 15 s.
	LoginTimeout time.Duration

	// FailureDelay is how long a refusal is held back. Default: 100 ms.
	FailureDelay time.Duration

	// FailuresPerAddress is how many logins with credentials that turn out not to be
	// good an address may have at once; it gains one more every 200 ms. Beyond that its
	// connections are closed before anybody is asked about their credentials, unless these
	// were good lately. Credentials that were refused before are counted apart from those
	// that nobody has shown yet, and not at all within 10 s. Default: 100.
	FailuresPerAddress int

	// DrainTimeout bounds how long requests in flight may take to finish when
	// the Gateway stops. Default: 5 s.
	DrainTimeout time.Duration

	// MaxConnections bounds all connections. A subject with [subjectConnections] of them gets
	// no more than a third of those that are still free. Default: 10,000.
	MaxConnections int

	// MaxHalfOpen bounds the connections that are not signed in yet, and
	// MaxHalfOpenPerAddress those from one address (IPv4) or one network of
	// 64 bits (IPv6). When there is one too many, the oldest one of the address that has
	// most of them is closed. Default: 2,000 and 500.
	MaxHalfOpen, MaxHalfOpenPerAddress int

	// MaxRequestBytes bounds a produce request, which may have batches of 1 MiB for
	// several partitions. All others are bounded by 1 MiB. Default: 32 MiB.
	MaxRequestBytes int

	// MaxFetchBytes bounds what a fetch asks for: larger wishes are cut to it,
	// which makes clients ask more often. One batch may still be larger.
	// Default: 16 MiB.
	MaxFetchBytes int

	// Diagnostics receives the Gateway's own messages. Nil discards them.
	Diagnostics *slog.Logger
}

const (
	maxSmallRequestBytes = 1 << 20   // of any request but produce
	maxLoginBytes        = 512 << 10 // of any request before login, as in Apache Kafka

	// What is held in memory shares these, so that many requests or answers at once
	// cannot use it up.
	loginBudgetBytes   = 64 << 20
	subjectBudgetBytes = 64 << 20
	requestBudgetBytes = 512 << 20
	answerBudgetBytes  = 256 << 20
)

// setDefaults fills in what the caller left out, or says what cannot be.
func (cfg *Config) setDefaults() error {
	if cfg.Upstream == nil || cfg.Authenticator == nil {
		return errors.New("gateway: Upstream and Authenticator are required")
	}
	for _, d := range []struct {
		name  string
		field *time.Duration
		value time.Duration
	}{
		{"RevocationInterval", &cfg.RevocationInterval, 30 * time.Second},
		{"LoginTimeout", &cfg.LoginTimeout, 15 * time.Second},
		{"FailureDelay", &cfg.FailureDelay, 100 * time.Millisecond},
		{"DrainTimeout", &cfg.DrainTimeout, 5 * time.Second},
	} {
		if *d.field == 0 {
			*d.field = d.value
		}
		if *d.field < 0 {
			return fmt.Errorf("gateway: %s is negative", d.name)
		}
	}
	for _, d := range []struct {
		name  string
		field *int
		value int
	}{
		{"FailuresPerAddress", &cfg.FailuresPerAddress, admission.DefaultBurst},
		{"MaxConnections", &cfg.MaxConnections, 10_000},
		{"MaxHalfOpen", &cfg.MaxHalfOpen, 2_000},
		{"MaxHalfOpenPerAddress", &cfg.MaxHalfOpenPerAddress, 500},
		{"MaxRequestBytes", &cfg.MaxRequestBytes, kafka.MaxRequestBytes},
		{"MaxFetchBytes", &cfg.MaxFetchBytes, 16 << 20},
	} {
		if *d.field == 0 {
			*d.field = d.value
		}
		if *d.field < 0 {
			return fmt.Errorf("gateway: %s is negative", d.name)
		}
	}
	if cfg.MaxRequestBytes > subjectBudgetBytes-4 {
		return fmt.Errorf("gateway: MaxRequestBytes is more than %d", subjectBudgetBytes-4)
	}
	if cfg.Diagnostics == nil {
		cfg.Diagnostics = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Gateway relays between clients that prove who they are and one broker.
type Gateway struct {
	cfg      Config
	limits   *limits
	counters counters

	loginBudget   *semaphore.Weighted
	requestBudget *semaphore.Weighted
	answerBudget  *semaphore.Weighted
	uploads       uploads

	mu      sync.Mutex // guards the field below
	serving map[*server]struct{}

	// What may happen a thousand times a second is not told as often.
	rejectedOften, unavailableOften, misconfiguredOften, brokerOften rate.Sometimes
}

// New returns a gateway that does nothing until [Gateway.Serve].
func New(cfg Config) (*Gateway, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	const often = 10 * time.Second
	return &Gateway{
		cfg:                cfg,
		serving:            map[*server]struct{}{},
		limits:             newLimits(&cfg),
		loginBudget:        semaphore.NewWeighted(loginBudgetBytes),
		requestBudget:      semaphore.NewWeighted(requestBudgetBytes),
		answerBudget:       semaphore.NewWeighted(answerBudgetBytes),
		rejectedOften:      rate.Sometimes{Interval: often},
		unavailableOften:   rate.Sometimes{Interval: often},
		misconfiguredOften: rate.Sometimes{Interval: time.Minute},
		brokerOften:        rate.Sometimes{Interval: often},
	}, nil
}

func (g *Gateway) fetchLimit() fetchLimit {
	return fetchLimit{bytes: int32(min(g.cfg.MaxFetchBytes, math.MaxInt32)), waitMillis: fetchWaitMillis}
}
