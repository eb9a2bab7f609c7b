package diaspora

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/accesskey"
	"github.com/diaspora-streams/diaspora/internal/aclclient"
	"github.com/diaspora-streams/diaspora/internal/backoff"
	"github.com/diaspora-streams/diaspora/internal/diagnostics"
	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/trust"
)

// Config says which fabric to use and how to sign in to it. [ConfigFromEnv] and [Profiles.Config]
// return one for a login that `diaspora login` has stored.
type Config struct {
	// URL is the fabric's ACL endpoint, for instance https://diaspora.example.org. Required unless
	// Brokers is set. Operations that use the ACL endpoint itself, such as those of a [Client],
	// always require it.
	URL string

	// Discovery is the fabric's discovery document, if it is already known. If it is nil, it is
	// fetched from URL when it is needed.
	Discovery *Discovery

	// Brokers are the bootstrap servers, as host:port. Default: the brokers in the discovery
	// document.
	Brokers []string

	// TokenSource returns the access token to sign in with. Required unless Key is set. If
	// ConfigFromEnv or Profiles.Config has set it, its tokens are sent only to hosts that they
	// belong to, and to Brokers. If the program has set it, its tokens are sent to URL, to Brokers
	// and to whatever brokers these name.
	TokenSource globus.TokenSource

	// Key is an access key to sign in with instead of a TokenSource. It needs no login and no
	// Globus Auth, and is enough for everything that only uses Kafka: a [Logger], a [Consumer] and
	// [Dial]. Its secret is sent to URL, to Brokers and to whatever brokers these name.
	Key Key

	// Identity is the identity that signs in; for a Key, that is the key's owner. Error messages
	// name it. With SpoolDir, its Subject says whose events the spool holds; if it is empty, the
	// ACL endpoint at URL is asked. Without SpoolDir, it may stay empty.
	Identity globus.Identity

	// CAFile names a file of PEM certificates to trust in addition to the system's and the
	// fabric's. CA holds such certificates directly.
	CAFile string
	CA     []byte

	// InsecureAllowPlaintext allows access tokens, keys and events to be sent to other machines
	// without TLS. Anybody on the network path can read and steal them. Without it, plaintext is
	// allowed only for loopback addresses.
	InsecureAllowPlaintext bool

	// DialTimeout is how long opening keeps retrying while the cluster or Globus Auth is
	// unreachable. A rejected login is not retried. Default: 10 s.
	DialTimeout time.Duration

	// Linger is how long events given to [Logger.Send] wait for more events to share a request
	// with, as Kafka's linger.ms. [Logger.Log] does not wait, and sends the events that are waiting
	// along with its own. While the cluster is busy, requests fill up whatever Linger is. Default:
	// 0.
	Linger time.Duration

	// Compression is how batches of events are compressed, as Kafka's compression.type: "none",
	// "gzip", "snappy", "lz4" or "zstd". Default: "none". All clients can read "none" and "gzip";
	// kafka-python and kafkajs need extra packages for the others.
	Compression string

	// SpoolDir is a directory on local disk where a [Logger] keeps events until the cluster has
	// acknowledged them. The Logger creates it if it does not exist, and locks it: only one Logger
	// can use it at a time. Default: none.
	SpoolDir string

	// SpoolBytes is the maximum size of the spool on disk, in bytes. SpoolPolicy says what happens
	// to events when it is reached. The events of one call of Log may take a quarter of it
	// together. Minimum: 64 KiB. Default: 1 GiB, and [SpoolBlock].
	SpoolBytes  int64
	SpoolPolicy SpoolPolicy

	// ClosePatience is how long [Logger.Close] keeps waiting, with a spool, while the cluster
	// acknowledges nothing. The next Logger sends the events that are still pending then. If it is
	// negative, Close does not wait for pending events. Default: 5 s.
	ClosePatience time.Duration

	// Diagnostics receives the library's own messages. Nil discards them. They must not become
	// events of the same Logger. A [Handler] drops them, but cannot recognize messages that have
	// passed through package log. That happens if Diagnostics is the original [slog.Default] and
	// the program then calls [slog.SetDefault].
	Diagnostics *slog.Logger

	login  string                 // the hint for ErrUnauthenticated; depends on where the Config comes from
	origin string                 // where the Config comes from, for errors: `profile "local"`
	again  func() (Config, error) // reads the configuration again, if the key is from a key file
	memory memory                 // what earlier runs learned about a credential from the environment
	said   trust.Fabric           // what the user has said about which hosts may get tokens

	// For tests only:
	anonymous bool           // do not sign in
	dial      kafka.DialFunc // how to connect to a broker
	opts      []kgo.Opt      // extra options for each Kafka client
}

// Key is an access key. [Client.CreateKey] and "diaspora key create" make one.
type Key struct {
	ID     string        // "key-" and sixteen letters; not secret
	Secret globus.Secret // begins with "dks_"
}

const (
	defaultDialTimeout   = 10 * time.Second
	defaultClosePatience = 5 * time.Second
	defaultMaxEventBytes = 999_000 // with overhead, fits Kafka's default batch limit of 1 MiB
	defaultLogin         = `run "diaspora login"`
	anotherKey           = `make another access key with "diaspora key create NAME --save-env FILE" (and the same --topic, --read or --write) where its owner is logged in, and `
	anotherKeyHint       = anotherKey + "use it instead"
	minSpoolBytes        = 64 << 10
)

// fabric is a validated Config, completed with defaults and with the discovery document.
type fabric struct {
	Config
	kafka         kafka.Config
	maxEventBytes int
}

// resolve validates the configuration, and fetches the discovery document if it is not known.
func (c Config) resolve(ctx context.Context) (*fabric, error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	if c.undiscovered() {
		found, err := c.discovered(ctx)
		if err != nil {
			return nil, err
		}
		c.Discovery = &found
	}
	return c.fabric()
}

// undiscovered reports whether the discovery document has to be fetched from the ACL endpoint.
func (c *Config) undiscovered() bool { return c.Discovery == nil && c.URL != "" }

// complete sets defaults, and validates everything that can be checked without the network.
func (c *Config) complete() error {
	_, known := kafka.Codec(c.Compression)
	switch {
	case c.TokenSource == nil && c.Key == Key{} && !c.anonymous:
		return invalid("configuration: there is neither a TokenSource nor a Key")
	case c.TokenSource != nil && c.Key != Key{}:
		return errTwoCredentials
	case c.Key != Key{} && (!accesskey.IsID(c.Key.ID) || !accesskey.IsSecret(c.Key.Secret)):
		return invalid("configuration: Key has no ID or no Secret")
	case c.DialTimeout < 0:
		return invalid("configuration: DialTimeout is negative")
	case c.Linger < 0:
		return invalid("configuration: Linger is negative")
	case !known:
		return invalid("configuration: there is no Compression %q; choose none, gzip, snappy, lz4 or zstd", c.Compression)
	case c.URL == "" && c.Discovery == nil && len(c.Brokers) == 0:
		return invalid("configuration: neither Brokers nor the URL of a fabric is set")
	case c.SpoolBytes != 0 && c.SpoolBytes < minSpoolBytes:
		return invalid("configuration: SpoolBytes is %d; a spool has %d bytes at least", c.SpoolBytes, minSpoolBytes)
	case c.SpoolPolicy < SpoolBlock || c.SpoolPolicy > SpoolDropOldest:
		return invalid("configuration: there is no SpoolPolicy %d", c.SpoolPolicy)
	}
	if c.DialTimeout == 0 {
		c.DialTimeout = defaultDialTimeout
	}
	if c.ClosePatience == 0 {
		c.ClosePatience = defaultClosePatience
	}
	c.login = c.advice()
	c.Diagnostics = diagnostics.New(c.Diagnostics)
	return nil
}

var errTwoCredentials = invalid("configuration: TokenSource and Key exclude each other")

// advice returns the hint for [ErrUnauthenticated].
func (c *Config) advice() string {
	switch {
	case c.login != "":
		return c.login
	case c.Key != Key{}:
		return anotherKeyHint
	}
	return defaultLogin
}

// fabric returns the fabric of a complete configuration. If the configuration is undiscovered, the
// result can check events and explain errors, but cannot dial.
func (c Config) fabric() (*fabric, error) {
	f := &fabric{Config: c, maxEventBytes: defaultMaxEventBytes}
	if d := c.Discovery; d != nil {
		if err := d.validate(); err != nil {
			return nil, err
		}
		if d.MaxEventBytes > 0 {
			f.maxEventBytes = d.MaxEventBytes
		}
		if len(c.Brokers) == 0 {
			f.Brokers = d.Brokers
		}
	}
	for _, b := range f.Brokers {
		if err := validBroker(b); err != nil {
			return nil, err
		}
	}
	here := allLoopback(f.Brokers)
	plaintext := c.Discovery == nil && len(c.CA) == 0 && c.CAFile == "" && here || c.Discovery != nil && c.Discovery.Security == "plaintext"
	if plaintext && !here && !c.InsecureAllowPlaintext {
		return nil, &Error{
			Condition: ErrInvalid,
			Reason:    fmt.Sprintf("brokers %s offer no TLS, so the access token or key could be read on its way", strings.Join(f.Brokers, ",")),
			Hint:      "only InsecureAllowPlaintext allows that",
		}
	}
	var secure *tls.Config
	if !plaintext {
		roots, err := c.roots()
		if err != nil {
			return nil, err
		}
		secure = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	}
	f.kafka = kafka.Config{
		Brokers:                f.Brokers,
		TokenSource:            c.TokenSource,
		Key:                    kafka.Key(c.Key),
		Named:                  c.Brokers, // not the brokers in the discovery document
		TLS:                    secure,
		InsecureAllowPlaintext: c.InsecureAllowPlaintext,
		Dial:                   c.dial,
		Diagnostics:            c.Diagnostics,
	}
	return f, nil
}

// roots returns the certificates to trust, or nil for the system's only.
func (c Config) roots() (*x509.CertPool, error) {
	var fabric []byte
	if c.Discovery != nil {
		fabric = []byte(c.Discovery.CA)
	}
	pool, err := trust.Roots(fabric, c.CA, c.CAFile)
	if err != nil {
		return nil, &Error{Condition: ErrInvalid, Reason: err.Error(), cause: err}
	}
	return pool, nil
}

func validBroker(address string) error {
	if err := aclclient.CheckBroker(address); err != nil {
		return invalid("%v", err)
	}
	return nil
}

func allLoopback(brokers []string) bool {
	return !slices.ContainsFunc(brokers, func(b string) bool {
		host, _, err := net.SplitHostPort(b)
		return err != nil || !trust.IsLoopback(host)
	})
}

// parseURL returns the base URL of an ACL endpoint.
func parseURL(raw string) (*url.URL, error) {
	u, err := aclclient.ParseURL(raw)
	if err != nil {
		return nil, invalid("URL of the fabric: %v", err)
	}
	return u, nil
}

// trusted returns d's fabric together with what the user has said about it.
func (c Config) trusted(d Discovery) trust.Fabric {
	f := c.said
	f.URL, f.Brokers, f.Issuer, f.Scope = c.URL, d.Brokers, d.Globus.Issuer, d.Globus.Scope
	return f
}

// identityName names the signed-in identity, for errors.
func (c Config) identityName() string {
	switch {
	case c.Identity.Username != "":
		return c.Identity.Username
	case c.Key.ID != "":
		return "the access key " + c.Key.ID
	case c.Identity.Subject != "":
		return c.Identity.Subject
	}
	return "this identity"
}

// signedInAs names the signed-in identity and where its credential comes from, for errors.
func (c Config) signedInAs() string {
	text := ""
	if who := c.identityName(); who != "this identity" {
		text = " as " + who
	}
	if c.origin != "" {
		text += " (" + c.origin + ")"
	}
	return text
}

// Dial returns a signed-in client of package kgo (franz-go), for programs that need all of Kafka.
// The Kafka client itself retries a rejected login forever without reporting it. Dial therefore
// returns only after a broker has answered, and fails at once if the login is rejected. While the
// cluster or Globus Auth is unreachable, it retries for [Config.DialTimeout]; ctx bounds the whole
// call.
//
// opts are applied after Dial's own options and override them. The caller closes the client.
//
// It returns [ErrInvalid], [ErrUnauthenticated], [ErrPermission], [ErrUnavailable], or ctx's error.
func Dial(ctx context.Context, cfg Config, opts ...kgo.Opt) (*kgo.Client, error) {
	f, err := cfg.resolve(ctx)
	if err != nil {
		return nil, err
	}
	return f.dial(ctx, kafka.Ping, opts...)
}

// dial connects and signs in; first sends the first request. Its errors name the brokers and the
// identity, and say what to type next.
func (f *fabric) dial(ctx context.Context, first func(context.Context, *kgo.Client) error, opts ...kgo.Opt) (*kgo.Client, error) {
	client, err := f.client(opts...)
	if err != nil {
		return nil, err
	}
	timed, cancel := context.WithTimeout(ctx, f.DialTimeout)
	defer cancel()
	worth := func(err error) bool {
		err = explain(err)
		again := errors.Is(err, ErrUnavailable) && !kafka.Misconfigured(err)
		if again {
			f.diagnostics().Warn("waiting for the cluster", "brokers", f.Brokers, "err", err)
		}
		return again
	}
	err = backoff.Retry(timed, math.MaxInt, worth, func() error { return kafka.SignIn(timed, client, f.kafka, first) })
	if err == nil {
		return client, nil
	}
	client.Close()
	if timed.Err() != nil && ctx.Err() == nil && kafka.ContextEnded(err) {
		err = &Error{Condition: ErrUnavailable, Reason: fmt.Sprintf("no broker answered within %v", f.DialTimeout), cause: err}
	}
	return nil, fmt.Errorf("sign in to %s%s: %w", strings.Join(f.Brokers, ","), f.signedInAs(), f.loginError(err))
}

// client returns a Kafka client that is not connected yet.
func (f *fabric) client(opts ...kgo.Opt) (*kgo.Client, error) {
	client, err := kgo.NewClient(slices.Concat(kafka.ClientOpts(f.kafka), f.tuning(), opts)...)
	if err != nil {
		return nil, invalid("configuration: %v", err)
	}
	return client, nil
}

// trySignIn signs in on a new connection and returns the error, if any.
func (f *fabric) trySignIn(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, f.DialTimeout)
	defer cancel()
	client, err := f.client()
	if err != nil {
		return err
	}
	defer client.Close()
	return explain(kafka.SignIn(ctx, client, f.kafka, kafka.Ping))
}

// tuning returns the options that differ from the Kafka client's defaults.
func (f *fabric) tuning() []kgo.Opt {
	codec, _ := kafka.Codec(f.Compression)
	return append([]kgo.Opt{
		kgo.ProducerLinger(f.Linger),
		kgo.ProducerBatchCompression(codec, kgo.NoCompression()), // no compression for clusters that are too old for the codec
		kgo.ProducerBatchMaxBytes(int32(min(max(1_000_012, f.maxEventBytes+1024), 64<<20))),
	}, f.opts...)
}

// loginError explains the error of a request, and adds a hint if the login was rejected.
func (f *fabric) loginError(err error) error {
	return withHint(explain(err), ErrUnauthenticated, f.login)
}

func (c *Config) diagnostics() *slog.Logger {
	if c.Diagnostics != nil {
		return c.Diagnostics
	}
	return slog.New(slog.DiscardHandler)
}
