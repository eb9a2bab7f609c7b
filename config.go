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

// Config says how to reach a fabric, and as whom. [ConfigFromEnv] and
// [Profiles.Config] fill one from what `diaspora login` has stored.
type Config struct {
	// URL is the fabric's ACL endpoint, for instance
	// https://diaspora.example.org. Required unless Brokers is set; what needs
	// the ACL endpoint itself, as a [Client] does, needs it in any case.
	URL string

	// Discovery is what URL told of the fabric the last time, so that it need
	// not be asked again. Nil asks when it is needed.
	Discovery *Discovery

	// Brokers are the bootstrap servers, as host:port. Default: those that
	// the fabric names.
	Brokers []string

	// TokenSource yields the access token to sign in with. Required, unless Key is set. Tokens of
	// the one that ConfigFromEnv or Profiles.Config has set are sent only to hosts to which they
	// belong, and to Brokers. With another one, they are sent wherever URL and Brokers lead.
	TokenSource globus.TokenSource

	// Key is an access key to sign in with in place of a TokenSource. It needs no login and no
	// Globus Auth, and works wherever only Kafka is asked: for a [Logger], a [Consumer]
	// and [Dial]. Its secret is sent wherever URL and Brokers lead.
	Key Key

	// Identity is who signs in. It is named in errors, and with SpoolDir its Subject says whose
	// events the spool holds; of a Key, that is the key's owner. Default: with
	// SpoolDir the ACL endpoint at URL is asked; otherwise it does not matter.
	Identity globus.Identity

	// CAFile names a file of PEM certificates to trust besides the system's
	// and those that the fabric names. CA holds such certificates themselves.
	CAFile string
	CA     []byte

	// InsecureAllowPlaintext sends access tokens, keys and events to other machines
	// without TLS, where anybody on the way can read and take them. Without
	// it, plaintext is for loopback addresses only.
	InsecureAllowPlaintext bool

	// DialTimeout is how long opening goes on trying while the cluster or
	// Globus Auth cannot be reached. A refusal is final at once. Default: 10 s.
	DialTimeout time.Duration

	// Linger is how long events given to [Logger.Send] wait for others to
	// share a request with, as Kafka's linger.ms. [Logger.Log] does not wait,
	// but for the first event of a topic, and takes along those that do. While
	// the cluster is busy, requests fill in any case. Default: 0.
	Linger time.Duration

	// Compression is how batches of events are compressed, as Kafka's compression.type:
	// "none", "gzip", "snappy", "lz4" or "zstd". Default: "none", which every client can
	// read; kafka-python and kafkajs need further packages for the last three.
	Compression string

	// SpoolDir is a directory on local disk where a [Logger] keeps events until
	// the cluster has acknowledged them. It is made if need be, and belongs to
	// one Logger at a time. Default: none.
	SpoolDir string

	// SpoolBytes bounds the spool's size on disk, in bytes; SpoolPolicy says
	// what happens to events for which there is no room. Together, the events of
	// a call of Log may take a quarter of it. At least 64 KiB; default: 1 GiB,
	// and [SpoolBlock].
	SpoolBytes  int64
	SpoolPolicy SpoolPolicy

	// ClosePatience is for how long [Logger.Close] waits, with a spool, while the cluster
	// acknowledges nothing; what is left then, the next Logger sends. Negative
	// leaves what is not acknowledged yet. Default: 5 s.
	ClosePatience time.Duration

	// Diagnostics receives the messages of the library itself. Nil discards them. They must
	// not become events of the same Logger: a [Handler] drops them, but not what has passed
	// through package log before, as from the [slog.Default] of a program that then calls
	// [slog.SetDefault].
	Diagnostics *slog.Logger

	login  string       // the advice when nobody is signed in; depends on where the Config is from
	origin string       // where the Config is from, for errors: `profile "local"`
	memory memory       // of credentials from the environment
	said   trust.Fabric // what the user has said about where tokens may go

	// Tests only:
	anonymous bool           // do not sign in
	dial      kafka.DialFunc // how to get to a broker
	opts      []kgo.Opt      // more of each Kafka client
}

// Key is what signs in with an access key; [Client.CreateKey] and "diaspora key create" make one.
type Key struct {
	ID     string        // "key-" and sixteen letters; no secret
	Secret globus.Secret // "dks_" and more
}

const (
	defaultDialTimeout   = 10 * time.Second
	defaultClosePatience = 5 * time.Second
	defaultMaxEventBytes = 999_000 // fits Kafka's own default of 1 MiB for a batch
	defaultLogin         = `run "diaspora login"`
	anotherKey           = `make another access key with "diaspora key create NAME --save-env FILE" where its owner is logged in, and start again with it`
	maxCABytes           = 1 << 20
	minSpoolBytes        = 64 << 10
)

// fabric is a Config after validation, with all that it leaves open found out.
type fabric struct {
	Config
	kafka         kafka.Config
	maxEventBytes int
}

// resolve validates the configuration and asks the ACL endpoint for what is missing.
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

// undiscovered reports whether the ACL endpoint has to be asked what else there is to know.
func (c *Config) undiscovered() bool { return c.Discovery == nil && c.URL != "" }

// complete validates what can be without asking anybody, and sets defaults.
func (c *Config) complete() error {
	switch {
	case c.TokenSource == nil && c.Key == Key{} && !c.anonymous:
		return invalid("configuration: there is neither a TokenSource nor a Key")
	case c.TokenSource != nil && c.Key != Key{}:
		return errTwoCredentials
	case c.Key != Key{} && (!accesskey.IsID(c.Key.ID) || !accesskey.IsSecret(c.Key.Secret)):
		return invalid("configuration: Key has not the ID and the Secret of an access key")
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

// advice is what to do when nobody is signed in.
func (c *Config) advice() string {
	switch {
	case c.login != "":
		return c.login
	case c.Key != Key{}:
		return anotherKey
	}
	return defaultLogin
}

// fabric makes one of a configuration that is complete. If that is undiscovered, the
// fabric is good for words, but not for dialing.
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
			Hint:      "only InsecureAllowPlaintext would send it all the same",
		}
	}
	f.kafka = kafka.Config{
		Brokers:                f.Brokers,
		TokenSource:            c.TokenSource,
		Key:                    kafka.Key(c.Key),
		Named:                  c.Brokers, // not those that the fabric names
		TLS:                    secure,
		InsecureAllowPlaintext: c.InsecureAllowPlaintext,
		Dial:                   c.dial,
	}
	return f, nil
}

// tls returns how to trust the brokers, or nil for plaintext.
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

// roots returns the certificates to trust; nil for just those of the system.
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
	info, err := os.Stat(name) // before opening, which may do something to a device
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
	other := func(r rune) bool { return !word(string(r)) && r != ':' && r != '%' } // the latter two are IPv6's
	if err != nil || host == "" || len(address) > 300 || strings.ContainsFunc(host, other) {
		return invalid("broker %q is not host:port", address)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return invalid("broker %q has no port from 1 to 65535", address)
	}
	return nil
}

// isLoopback reports whether a host names this machine without asking anybody.
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

// parseURL returns the base URL of an ACL endpoint. It takes what people paste:
// with or without a slash at the end, and the address of the form itself.
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

// trusted is a fabric with what the user has said of it.
func (c Config) trusted(d Discovery) trust.Fabric {
	f := c.said
	f.URL, f.Brokers, f.Issuer, f.Scope = c.URL, d.Brokers, d.Globus.Issuer, d.Globus.Scope
	return f
}

// who names the one who is signed in, for errors.
func (c Config) who() string {
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

// signedInAs names who signs in, and by what.
func (c Config) signedInAs() string {
	text := ""
	if who := c.who(); who != "this identity" {
		text = " as " + who
	}
	if c.origin != "" {
		text += " (" + c.origin + ")"
	}
	return text
}

// clip bounds what a stranger has written before it goes into an error.
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

// Dial returns the plain Kafka client (package kgo of franz-go), signed in and
// tuned, for those who want all of it. It returns only after a broker has
// answered, so a refused token fails here, in words, and not as a client that
// waits in silence. While the cluster or Globus Auth cannot be reached it goes
// on trying for [Config.DialTimeout]; ctx bounds the whole.
//
// The options come after Dial's own and override them. The caller closes the
// client.
//
// It returns [ErrInvalid], [ErrUnauthenticated], [ErrUnavailable], or ctx's error.
func Dial(ctx context.Context, cfg Config, opts ...kgo.Opt) (*kgo.Client, error) {
	f, err := cfg.resolve(ctx)
	if err != nil {
		return nil, err
	}
	return f.dial(ctx, opts...)
}

// dial connects. A fabric's errors about signing in name the broker, who, and
// what to type next.
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
	// The token is asked for up front: the client would wrap what the source
	// says into an error of the connection.
	if f.TokenSource != nil {
		for _, broker := range f.Brokers {
			if _, err := trust.Token(ctx, f.TokenSource, broker, f.kafka.Named); err != nil {
				return explain(err)
			}
		}
	}
	// The client does not look at ctx while it waits for a broker's first words.
	answered := make(chan error, 1)
	go func() { answered <- client.Ping(ctx) }() // ends with ctx, or a few seconds later
	select {
	case err := <-answered:
		return explain(describeTLS(err))
	case <-ctx.Done():
		return ctx.Err()
	}
}

// signsInAnew signs in on a connection of its own, and returns the error.
func (f *fabric) signsInAnew(ctx context.Context) error {
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
	err = advise(err, ErrUnauthenticated, f.login)
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

// tuning returns the options in which a client of ours differs from a plain one.
func (f *fabric) tuning() []kgo.Opt {
	opts := []kgo.Opt{
		kgo.ProducerLinger(f.Linger),
		kgo.ProducerBatchCompression(codecs[f.Compression], kgo.NoCompression()), // for clusters that are too old
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

// describeTLS gives the errors of TLS that a person has to mend their sentence.
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

// backoff returns how long to wait after the attempt, with jitter.
func backoff(attempt int) time.Duration {
	limit := min(2*time.Second, 100*time.Millisecond<<min(attempt, 6))
	return limit/2 + rand.N(limit/2)
}

// sleep waits, and reports false if ctx ended or the deadline would pass.
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

// clientLog hands the Kafka client's own messages on as diagnostics. It warns
// of what this package reports as errors anyway, so everything is one level lower.
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

// flushing is what the Kafka client says at every [Logger.Log]; see hurry.
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
