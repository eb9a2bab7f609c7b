package diaspora

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/accesskey"
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

	login  string       // the hint for ErrUnauthenticated; depends on where the Config comes from
	origin string       // where the Config comes from, for errors: `profile "local"`
	memory memory       // what earlier runs learned about a credential from the environment
	said   trust.Fabric // what the user has said about which hosts may get tokens

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
	anotherKey           = `make another access key with "diaspora key create NAME --save-env FILE" where its owner is logged in, and start again with it`
	maxCABytes           = 1 << 20
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
		client, err := NewClient(c)
		if err != nil {
			return nil, err
		}
		found, err := client.discoverOnce(ctx)
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
	case !isCodec(c.Compression):
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
	c.Diagnostics = own(c.Diagnostics)
	return nil
}

var errTwoCredentials = invalid("configuration: TokenSource and Key exclude each other")

// advice returns the hint for [ErrUnauthenticated].
func (c *Config) advice() string {
	switch {
	case c.login != "":
		return c.login
	case c.Key != Key{}:
		return anotherKey
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
	secure, err := f.tls()
	if err != nil {
		return nil, err
	}
	if secure == nil && !c.InsecureAllowPlaintext && !allLoopback(f.Brokers) {
		return nil, &Error{
			Condition: ErrInvalid,
			Reason:    fmt.Sprintf("brokers %s offer no TLS, so the access token or key could be read on its way", strings.Join(f.Brokers, ",")),
			Hint:      "only InsecureAllowPlaintext allows that",
		}
	}
	f.kafka = kafka.Config{
		Brokers:                f.Brokers,
		TokenSource:            c.TokenSource,
		Key:                    kafka.Key(c.Key),
		Named:                  c.Brokers, // not the brokers in the discovery document
		TLS:                    secure,
		InsecureAllowPlaintext: c.InsecureAllowPlaintext,
		Dial:                   c.dial,
	}
	return f, nil
}

// tls returns the TLS configuration for the brokers, or nil for plaintext.
func (f *fabric) tls() (*tls.Config, error) {
	var extra []byte
	if f.Discovery != nil {
		if f.Discovery.Security == "plaintext" {
			return nil, nil
		}
		extra = []byte(f.Discovery.CA)
	} else if len(f.CA) == 0 && f.CAFile == "" && allLoopback(f.Brokers) {
		return nil, nil
	}
	pool, err := f.Config.roots(extra)
	if err != nil {
		return nil, err
	}
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, nil
}

// roots returns the certificates to trust, or nil for the system's only.
func (c Config) roots(extra []byte) (*x509.CertPool, error) {
	sources := []struct {
		name string
		pem  []byte
	}{{"the fabric's CA", extra}, {"CA", c.CA}}
	if c.CAFile != "" {
		pem, err := readBounded(c.CAFile, maxCABytes)
		if err != nil {
			return nil, &Error{Condition: ErrInvalid, Reason: fmt.Sprintf("read CA file: %v", err), cause: err}
		}
		sources = append(sources, struct {
			name string
			pem  []byte
		}{"CA file " + c.CAFile, pem})
	}
	var pool *x509.CertPool
	for _, s := range sources {
		if len(s.pem) == 0 {
			continue
		}
		if pool == nil {
			if system, err := x509.SystemCertPool(); err == nil {
				pool = system
			} else {
				pool = x509.NewCertPool()
			}
		}
		if !pool.AppendCertsFromPEM(s.pem) {
			return nil, invalid("%s holds no PEM certificate", s.name)
		}
	}
	return pool, nil
}

func readBounded(name string, limit int64) ([]byte, error) {
	info, err := os.Stat(name) // before opening, because opening a device can have side effects
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() && info.Mode().Type() != os.ModeNamedPipe {
		return nil, fmt.Errorf("%s is not a file", name)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s has more than %d bytes", name, limit)
	}
	return data, nil
}

func validBroker(address string) error {
	host, port, err := net.SplitHostPort(address)
	other := func(r rune) bool { return !word(string(r)) && r != ':' && r != '%' } // ":" and "%" are for IPv6 addresses and zones
	if err != nil || host == "" || len(address) > 300 || strings.ContainsFunc(host, other) {
		return invalid("broker %q is not host:port", address)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return invalid("broker %q has no port from 1 to 65535", address)
	}
	return nil
}

// isLoopback reports whether host names this machine. It does not use DNS.
func isLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}

func allLoopback(brokers []string) bool {
	for _, b := range brokers {
		host, _, err := net.SplitHostPort(b)
		if err != nil || !isLoopback(host) {
			return false
		}
	}
	return true
}

// parseURL returns the base URL of an ACL endpoint. It accepts what people paste: a trailing slash,
// the address of the form (/acl), or that of the discovery document.
func parseURL(raw string) (*url.URL, error) {
	u, err := url.Parse(strings.TrimSpace(raw))
	switch {
	case err != nil:
		return nil, invalid("URL of the fabric: it cannot be parsed")
	case u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return nil, invalid("URL of the fabric: %q is not like https://host", redactURL(raw))
	case u.User != nil:
		return nil, invalid("URL of the fabric: it holds a user or a password")
	}
	path := strings.TrimRight(u.Path, "/")
	path = strings.TrimSuffix(path, "/.well-known/diaspora")
	path = strings.TrimSuffix(path, "/acl")
	return &url.URL{Scheme: u.Scheme, Host: u.Host, Path: strings.TrimRight(path, "/")}, nil
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

// clip shortens text from an untrusted source before it goes into an error.
func clip(s string) string { return clipTo(200, s) }

func clipTo(limit int, s string) string {
	if len(s) <= limit {
		return s
	}
	cut := limit
	for cut > limit-utf8.UTFMax && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
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
	return f.dial(ctx, opts...)
}

// dial connects and signs in. Its errors name the brokers and the identity, and say what to type
// next.
func (f *fabric) dial(ctx context.Context, opts ...kgo.Opt) (*kgo.Client, error) {
	timed, cancel := context.WithTimeout(ctx, f.DialTimeout)
	defer cancel()
	all := append(kafka.ClientOpts(f.kafka), f.tuning()...)
	client, err := kgo.NewClient(append(all, opts...)...)
	if err != nil {
		return nil, invalid("configuration: %v", err)
	}
	for attempt := 0; ; attempt++ {
		err := f.ping(timed, client)
		if err == nil {
			return client, nil
		}
		if timed.Err() != nil && ctx.Err() == nil {
			err = &Error{Condition: ErrUnavailable, Reason: fmt.Sprintf("no broker answered within %v", f.DialTimeout), cause: err}
		}
		if !errors.Is(err, ErrUnavailable) || kafka.Misconfigured(err) || !sleep(timed, backoff(attempt), farFuture(ctx)) {
			client.Close()
			return nil, f.signInError(err)
		}
		f.diagnostics().Warn("waiting for the cluster", "brokers", f.Brokers, "err", err)
	}
}

func (f *fabric) ping(ctx context.Context, client *kgo.Client) error {
	// Ask for the token first. If the client asked, it would wrap the source's error into an error
	// of the connection, and the reason would be lost.
	if f.TokenSource != nil {
		for _, broker := range f.Brokers {
			if _, err := trust.Token(ctx, f.TokenSource, broker, f.kafka.Named); err != nil {
				return explain(err)
			}
		}
	}
	// While the client waits for a broker's first response, it ignores ctx.
	answered := make(chan error, 1)
	go func() { answered <- client.Ping(ctx) }() // ends with ctx, or a few seconds later
	select {
	case err := <-answered:
		return explain(describeTLS(err))
	case <-ctx.Done():
		return ctx.Err()
	}
}

// trySignIn signs in on a new connection and returns the error, if any.
func (f *fabric) trySignIn(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, f.DialTimeout)
	defer cancel()
	client, err := kgo.NewClient(append(kafka.ClientOpts(f.kafka), f.tuning()...)...)
	if err != nil {
		return invalid("configuration: %v", err)
	}
	defer client.Close()
	return f.ping(ctx, client)
}

func (f *fabric) signInError(err error) error {
	err = withHint(err, ErrUnauthenticated, f.login)
	return fmt.Errorf("sign in to %s%s: %w", strings.Join(f.Brokers, ","), f.signedInAs(), err)
}

// codecs are the values of [Config.Compression].
var codecs = map[string]kgo.CompressionCodec{
	"":       kgo.NoCompression(),
	"none":   kgo.NoCompression(),
	"gzip":   kgo.GzipCompression(),
	"snappy": kgo.SnappyCompression(),
	"lz4":    kgo.Lz4Compression(),
	"zstd":   kgo.ZstdCompression(),
}

func isCodec(name string) bool {
	_, ok := codecs[name]
	return ok
}

// tuning returns the options that differ from the Kafka client's defaults.
func (f *fabric) tuning() []kgo.Opt {
	opts := []kgo.Opt{
		kgo.ProducerLinger(f.Linger),
		kgo.ProducerBatchCompression(codecs[f.Compression], kgo.NoCompression()), // no compression for clusters that are too old for the codec
		kgo.ProducerBatchMaxBytes(int32(min(max(1_000_012, f.maxEventBytes+1024), 64<<20))),
	}
	if f.Diagnostics != nil {
		opts = append(opts, kgo.WithLogger(clientLog{f.Diagnostics}))
	}
	return append(opts, f.opts...)
}

func (c *Config) diagnostics() *slog.Logger {
	if c.Diagnostics != nil {
		return c.Diagnostics
	}
	return slog.New(slog.DiscardHandler)
}

// describeTLS explains the TLS errors that a person has to fix.
func describeTLS(err error) error {
	var unknown x509.UnknownAuthorityError
	var hostname x509.HostnameError
	var invalidCert x509.CertificateInvalidError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &unknown):
		return &Error{Condition: ErrInvalid, Reason: "the certificate is signed by an unknown authority", Hint: "name its CA file in DIASPORA_CA_FILE", cause: err}
	case errors.As(err, &hostname):
		return &Error{Condition: ErrInvalid, Reason: "the certificate is not for this host: " + hostname.Error(), cause: err}
	case errors.As(err, &invalidCert):
		return &Error{Condition: ErrInvalid, Reason: "the certificate is not valid: " + invalidCert.Error(), cause: err}
	case errors.As(err, &record):
		return &Error{Condition: ErrInvalid, Reason: "the other side does not speak TLS", cause: err}
	}
	return err
}

// backoff returns how long to wait after the given attempt (the first is 0), with jitter.
func backoff(attempt int) time.Duration {
	limit := min(2*time.Second, 100*time.Millisecond<<min(attempt, 6))
	return limit/2 + rand.N(limit/2)
}

// sleep waits for d and reports true. It reports false if ctx ended, or at once if the deadline
// would pass during the wait.
func sleep(ctx context.Context, d time.Duration, deadline time.Time) bool {
	if time.Until(deadline) < d {
		return false
	}
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// clientLog passes the Kafka client's own messages on as diagnostics, each one level lower: most of
// its warnings are about problems that this package reports as errors anyway.
type clientLog struct{ to *slog.Logger }

func (l clientLog) Level() kgo.LogLevel {
	switch ctx := context.Background(); {
	case l.to.Enabled(ctx, slog.LevelDebug):
		return kgo.LogLevelInfo
	case l.to.Enabled(ctx, slog.LevelInfo):
		return kgo.LogLevelWarn
	}
	return kgo.LogLevelError
}

// flushing is the Kafka client's message at each flush, so at each [Logger.Log] with a Linger; see
// hurry. It is dropped because it would fill the diagnostics.
const flushing = "flushing"

func (l clientLog) Log(level kgo.LogLevel, msg string, keyvals ...any) {
	if msg == flushing {
		return
	}
	to := slog.LevelDebug
	switch level {
	case kgo.LogLevelError:
		to = slog.LevelWarn
	case kgo.LogLevelWarn:
		to = slog.LevelInfo
	}
	l.to.Log(context.Background(), to, msg, keyvals...)
}
