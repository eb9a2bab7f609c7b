// Package kafka talks to a Kafka cluster, and is the only place that knows how:
// signing in as a person ([ClientOpts], [Dial]), what a cluster's errors mean
// ([Explain]), and administering topics and ACLs as the service ([Admin]).
//
// It speaks to any broker alike: Apache Kafka, or the embedded one behind the
// gateway.
package kafka

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/oauth"
	"github.com/twmb/franz-go/pkg/sasl/plain"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/trust"
)

// ErrInsecure says that a connection was not made because it would have carried
// an access token, or the secret of an access key, in the clear to another machine.
var ErrInsecure = errors.New("refusing to send a token or a key without TLS to another machine")

// MaxRequestBytes is the size of the largest request that a gateway takes, and that our
// clients send. It has room for batches of 1 MiB for several partitions.
const MaxRequestBytes = 32 << 20

// MaxEventBytes is Kafka's own bound on a batch, less what a batch with one record
// needs around key, value and headers.
const MaxEventBytes = 1<<20 - 4096

const (
	dialTimeout  = 10 * time.Second
	tokenTimeout = 20 * time.Second
)

// Config says how to reach a cluster as a person.
type Config struct {
	// Brokers are the bootstrap servers, as host:port. Required.
	Brokers []string

	// TokenSource yields the access token to sign in with. It is asked at
	// every connection and at every re-authentication, so it must be cheap.
	// Tokens go only where package trust lets them.
	TokenSource globus.TokenSource

	// Key is the access key to sign in with instead. Without either, the client
	// signs in as nobody.
	Key Key

	// Named are hosts that the user has named, to whom tokens may go in any case.
	Named []string

	// TLS is how to trust the brokers. Nil is plaintext, which is refused
	// beyond this machine as long as there is a TokenSource or a Key.
	TLS *tls.Config

	// InsecureAllowPlaintext sends access tokens and keys in the clear to other
	// machines, where anybody on the way can take them.
	InsecureAllowPlaintext bool

	// Dial replaces the TCP dialer. TLS, if set, runs over its connections;
	// the refusal of plaintext does not apply to them.
	Dial DialFunc

	// Progress is told of each piece of a large request that is on its way. It
	// must be quick. Optional.
	Progress func()

	// ClientID is the name that brokers log. Default: "diaspora".
	ClientID string
}

// Key is an access key, for SASL/PLAIN.
type Key struct {
	ID     string
	Secret globus.Secret
}

// NewPartitionsEvery is how often clients look for partitions that were added.
const NewPartitionsEvery = 30 * time.Second

// DialFunc opens a connection, as [net.Dialer.DialContext] does.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// ClientOpts returns the options of a client that signs in as cfg says. To them
// a caller adds what it produces or consumes; acks=all and idempotence are the
// client's own defaults and stay. A refused login does not show in the client's
// calls, which wait for better times: open it with [Dial], and watch it with a
// [Connections].
func ClientOpts(cfg Config) []kgo.Opt {
	clientID := cfg.ClientID
	if clientID == "" {
		clientID = "diaspora"
	}
	opts := []kgo.Opt{
		kgo.SeedBrokers(cfg.Brokers...),
		kgo.ClientID(clientID),
		kgo.Dialer(dialer(cfg, (&net.Dialer{Timeout: dialTimeout}).DialContext)),
		kgo.BrokerMaxWriteBytes(MaxRequestBytes),
		// While Globus cannot be reached the gateway closes the connections of
		// those it does not know. To the client that must look like an outage,
		// which it sits out, not like a refusal, which fails its events.
		kgo.AlwaysRetryEOF(),
		// A topic that was claimed a moment ago should work now.
		kgo.MetadataMinAge(time.Second),
		// How long partitions that were added may go unnoticed.
		kgo.MetadataMaxAge(NewPartitionsEvery),
		kgo.DisableClientMetrics(),
	}
	switch {
	case cfg.TokenSource != nil:
		opts = append(opts, kgo.SASL(bearer{cfg.TokenSource, cfg.Named}))
	case cfg.Key != Key{}:
		opts = append(opts, kgo.SASL(plain.Auth{User: cfg.Key.ID, Pass: cfg.Key.Secret.Reveal()}.AsMechanism()))
	}
	return opts
}

// bearer signs in with the source's token. It is asked at each login to each broker, those
// included that the cluster itself has named, so the token is held back here from
// brokers to which it does not belong.
type bearer struct {
	source globus.TokenSource
	named  []string
}

// Name implements [sasl.Mechanism].
func (bearer) Name() string { return "OAUTHBEARER" }

// Authenticate implements [sasl.Mechanism]. The context that the client hands to it lives as
// long as the client and has no deadline, hence ours.
func (b bearer) Authenticate(ctx context.Context, broker string) (sasl.Session, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, tokenTimeout)
	defer cancel()
	token, err := trust.Token(ctx, b.source, broker, b.named)
	if err != nil {
		return nil, nil, fmt.Errorf("access token: %w", err)
	}
	return oauth.Auth{Token: token.AccessToken.Reveal()}.AsMechanism().Authenticate(ctx, broker)
}

// dialer opens connections as cfg says, through tcp unless cfg brings its own
// way, and none that would give a token away.
func dialer(cfg Config, tcp DialFunc) DialFunc {
	dial := cfg.Dial
	if dial == nil {
		dial = tcp
	}
	logins := trials{source: cfg.TokenSource}
	secret := cfg.TokenSource != nil || cfg.Key != Key{}
	mustStayLocal := cfg.Dial == nil && cfg.TLS == nil && secret && !cfg.InsecureAllowPlaintext
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		if mustStayLocal && !isLoopback(conn.RemoteAddr()) {
			return nil, errors.Join(fmt.Errorf("broker %s: %w", address, ErrInsecure), conn.Close())
		}
		conn = newPatientConn(conn, cfg.Progress)
		if cfg.TLS != nil {
			if conn, err = handshake(ctx, conn, cfg.TLS, address); err != nil {
				return nil, err
			}
		}
		if cfg.TokenSource != nil {
			conn = &trialConn{Conn: conn, trial: logins.of(address)}
		}
		return conn, nil
	}
}

func isLoopback(addr net.Addr) bool {
	tcp, ok := addr.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

func handshake(ctx context.Context, conn net.Conn, cfg *tls.Config, address string) (net.Conn, error) {
	cfg = cfg.Clone()
	if cfg.ServerName == "" {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return nil, errors.Join(err, conn.Close())
		}
		cfg.ServerName = host
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	secured := tls.Client(conn, cfg)
	if err := secured.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return secured, nil
}

// Dial returns a client that has reached a broker and is signed in. It tries
// each of the brokers once and fails with the reason of the last; [Explain]
// puts that into words. The caller closes the client.
func Dial(ctx context.Context, cfg Config, opts ...kgo.Opt) (*kgo.Client, error) {
	if len(cfg.Brokers) == 0 {
		return nil, errors.New("no brokers are configured")
	}
	client, err := kgo.NewClient(append(ClientOpts(cfg), opts...)...)
	if err != nil {
		return nil, err
	}
	if err := client.Ping(ctx); err != nil {
		client.Close()
		return nil, err
	}
	return client, nil
}
