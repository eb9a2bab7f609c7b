package diaspora

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/trust"
)

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
