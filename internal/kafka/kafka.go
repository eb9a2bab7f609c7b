// Package kafka talks to a Kafka cluster. It hides how a client signs in as a person ([ClientOpts],
// [SignIn]), what a cluster's errors mean ([Explain], [Judge], [Temporary]), and the requests for
// offsets ([Spans]), consumer groups ([Commit]), topics and ACLs ([Admin]). It works the same with
// Apache Kafka and with the embedded broker.
//
// It guarantees that a client sends no token and no secret of an access key in the clear to another
// machine ([ErrInsecure]), unless the configuration allows it, and tokens only to brokers that
// package trust allows.
//
// Start reading at [Config] and [ClientOpts].
package kafka

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/oauth"
	"github.com/twmb/franz-go/pkg/sasl/plain"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/trust"
)

// ErrInsecure means that a connection was refused because it would have sent an access token, or
// the secret of an access key, in the clear to another machine.
var ErrInsecure = errors.New("refusing to send a token or a key without TLS to another machine")

// MaxRequestBytes is the size of the largest request that a gateway accepts, and that our clients
// send. It has room for batches of 1 MiB for several partitions.
const MaxRequestBytes = 32 << 20

// MaxEventBytes is the largest size of an event. It is Kafka's default limit for a batch, minus
// what a batch of one record needs in addition to key, value and headers.
const MaxEventBytes = 1<<20 - 4096

const (
	dialTimeout  = 10 * time.Second
	tokenTimeout = 20 * time.Second
)

// Config says how to connect to a cluster as a person.
type Config struct {
	// Brokers are the bootstrap servers, as host:port. Required.
	Brokers []string

	// TokenSource returns the access token to sign in with. It is called for every connection and
	// every re-authentication, so it must be cheap. The token is sent only where package trust
	// allows it.
	TokenSource globus.TokenSource

	// Key is the access key to sign in with instead. If there is neither a TokenSource nor a Key,
	// the client does not sign in.
	Key Key

	// CurrentKey returns the access key for the next login, if Key may be replaced while the client
	// runs. It is called for each login to each broker, and concurrently. Optional.
	CurrentKey func(context.Context) Key

	// Named are hosts that the user has named. Tokens may be sent to them in any case.
	Named []string

	// TLS is the configuration for TLS to the brokers. If it is nil, connections are in plaintext.
	// With a TokenSource or a Key, plaintext connections to other machines are refused.
	TLS *tls.Config

	// InsecureAllowPlaintext allows sending access tokens and keys in the clear to other machines.
	// Anyone on the way can read them.
	InsecureAllowPlaintext bool

	// Dial replaces the TCP dialer. If TLS is set, it is used on Dial's connections. Plaintext is
	// never refused on them.
	Dial DialFunc

	// Progress is called after each part of a large request that was sent, except the last. It must
	// return quickly. Optional.
	Progress func()

	// Diagnostics receives the client's own messages, each one level lower. Optional.
	Diagnostics *slog.Logger

	// ClientID is the client's name in the brokers' logs. Default: "diaspora".
	ClientID string
}

// Key is an access key, for SASL/PLAIN.
type Key struct {
	ID     string
	Secret globus.Secret
}

// NewPartitionsEvery is how often clients look for new partitions.
const NewPartitionsEvery = 30 * time.Second

// DialFunc opens a connection, as [net.Dialer.DialContext] does.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// ClientOpts returns the options for a client that signs in according to cfg. The caller adds
// options for what it produces or consumes. The client's defaults acks=all and idempotence must
// stay.
//
// The client does not report a refused login: its calls wait and it retries. So call [SignIn] first,
// and watch it with a [Connections].
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
		// While Globus Auth cannot be reached, the gateway closes the connections of clients that
		// it does not know. The client must treat that as an outage and retry. Without this option
		// it takes a connection that is closed during the login for a refusal, and fails its
		// events.
		kgo.AlwaysRetryEOF(),
		// So that a topic that has just been claimed works soon.
		kgo.MetadataMinAge(time.Second),
		// Limits how long new partitions go unnoticed.
		kgo.MetadataMaxAge(NewPartitionsEvery),
		kgo.DisableClientMetrics(),
		kgo.MaxVersions(versions()),
	}
	switch {
	case cfg.TokenSource != nil:
		opts = append(opts, kgo.SASL(bearer{cfg.TokenSource, cfg.Named}))
	case cfg.Key != Key{}:
		opts = append(opts, kgo.SASL(plain.Plain(func(ctx context.Context) (plain.Auth, error) {
			key := cfg.Key
			if cfg.CurrentKey != nil {
				key = cfg.CurrentKey(ctx)
			}
			return plain.Auth{User: key.ID, Pass: key.Secret.Reveal()}, nil
		})))
	}
	if cfg.Diagnostics != nil {
		opts = append(opts, kgo.WithLogger(clientLog{cfg.Diagnostics}))
	}
	return opts
}

// versions returns the highest versions of requests that a client uses: a Kafka client's defaults,
// except for ApiVersions, the first request on a connection. Neither the embedded broker nor Apache
// Kafka up to 4.3 knows its newest version. They refuse it, so that the first connection to each
// broker would take one more round trip. All that the version adds is a check whether the address
// still belongs to the same broker (KIP-1242).
func versions() *kversion.Versions {
	v := kversion.Stable()
	v.SetMaxKeyVersion(int16(kmsg.ApiVersions), 4)
	return v
}

// bearer signs in with the source's token. The client calls it for each login to each broker,
// including brokers that the cluster itself has named. So this is the place that keeps the token
// from brokers that it must not be sent to.
type bearer struct {
	source globus.TokenSource
	named  []string
}

// Name implements [sasl.Mechanism].
func (bearer) Name() string { return "OAUTHBEARER" }

// Authenticate implements [sasl.Mechanism]. The client's context lasts as long as the client and
// has no deadline, so Authenticate adds one. Otherwise a source that hangs would hang the client.
func (b bearer) Authenticate(ctx context.Context, broker string) (sasl.Session, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, tokenTimeout)
	defer cancel()
	token, err := trust.Token(ctx, b.source, broker, b.named)
	if err != nil {
		return nil, nil, fmt.Errorf("access token: %w", err)
	}
	return oauth.Auth{Token: token.AccessToken.Reveal()}.AsMechanism().Authenticate(ctx, broker)
}

// dialer returns a function that opens connections according to cfg, with cfg.Dial or else with
// tcp. It refuses connections that would send a token or a key in the clear.
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

// Ping is a first request for [SignIn] that asks for nothing in particular. It tries each broker
// once, and fails with the error of the last one.
func Ping(ctx context.Context, client *kgo.Client) error { return client.Ping(ctx) }

// CheckWrite returns the broker's error if the signed-in identity may not write to a topic, or if there
// is no such topic. It returns nil if the broker does not say which rights the identity has.
func CheckWrite(ctx context.Context, client kmsg.Requestor, topic string) error {
	req := kmsg.NewPtrMetadataRequest()
	req.Version, req.IncludeTopicAuthorizedOperations = 8, true
	asked := kmsg.NewMetadataRequestTopic()
	asked.Topic = kmsg.StringPtr(topic)
	req.Topics = append(req.Topics, asked)
	resp, err := req.RequestWith(ctx, client)
	if err != nil || len(resp.Topics) != 1 {
		return err
	}
	if err := kerr.ErrorForCode(resp.Topics[0].ErrorCode); err != nil {
		return err
	}
	const unknown = -1 << 31
	if rights := resp.Topics[0].AuthorizedOperations; rights != unknown && rights&(1<<kmsg.ACLOperationWrite) == 0 {
		return kerr.TopicAuthorizationFailed
	}
	return nil
}

// SignIn connects client, whose options are those of cfg, to a broker and signs in. first sends the
// client's first request, as [Ping] and [FirstLook.Ask] do. SignIn fails with its error, which
// [Explain] describes.
func SignIn(ctx context.Context, client *kgo.Client, cfg Config, first func(context.Context, *kgo.Client) error) error {
	// Ask for the token first. If the client asked, it would wrap the source's error into an error
	// of the connection, and the reason would be lost.
	if cfg.TokenSource != nil {
		for _, broker := range cfg.Brokers {
			if _, err := trust.Token(ctx, cfg.TokenSource, broker, cfg.Named); err != nil {
				return err
			}
		}
	}
	// While the client waits for a broker's first response, it ignores ctx.
	answered := make(chan error, 1)
	go func() { answered <- first(ctx, client) }() // ends with ctx, or a few seconds later
	select {
	case err := <-answered:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// codecs are the values of Kafka's compression.type.
var codecs = map[string]kgo.CompressionCodec{
	"none":   kgo.NoCompression(),
	"gzip":   kgo.GzipCompression(),
	"snappy": kgo.SnappyCompression(),
	"lz4":    kgo.Lz4Compression(),
	"zstd":   kgo.ZstdCompression(),
}

// Codec returns the codec with this name in Kafka's compression.type. The empty name is "none". It
// reports false if there is no such codec.
func Codec(name string) (codec kgo.CompressionCodec, ok bool) {
	codec, ok = codecs[cmp.Or(name, "none")]
	return codec, ok
}

// MaxTopicBytes is the longest name of a topic.
const MaxTopicBytes = 249

// IsTopic reports whether Kafka allows name as the name of a topic: ASCII letters, digits, dots, hyphens
// and underscores.
func IsTopic(name string) bool {
	if name == "" || len(name) > MaxTopicBytes || name == "." || name == ".." {
		return false
	}
	return !strings.ContainsFunc(name, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '_' || r == '.' || r == '-')
	})
}
