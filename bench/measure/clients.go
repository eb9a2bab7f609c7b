package measure

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/oauth"
	"golang.org/x/sync/errgroup"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
)

// Payloads returns 1024 different values of the given size. Half of each is incompressible.
func Payloads(size int) [][]byte {
	random := rand.NewChaCha8([32]byte{1})
	values := make([][]byte, 1024)
	for i := range values {
		values[i] = bytes.Repeat([]byte("temperature=21.5 "), size/17+1)[:size]
		random.Read(values[i][:size/2])
	}
	return values
}

// FirstError keeps the first error that callbacks report.
type FirstError struct{ first atomic.Pointer[error] }

// Keep keeps err if no error was kept before.
func (f *FirstError) Keep(err error) {
	if err != nil {
		f.first.CompareAndSwap(nil, &err)
	}
}

// Err returns the error that was kept.
func (f *FirstError) Err() error {
	if first := f.first.Load(); first != nil {
		return *first
	}
	return nil
}

// Claim claims topics, up to eight at a time.
func Claim(ctx context.Context, cfg diaspora.Config, partitions int, topics ...string) error {
	client, err := diaspora.NewClient(cfg)
	if err != nil {
		return err
	}
	var claims errgroup.Group
	claims.SetLimit(8)
	for _, name := range topics {
		claims.Go(func() error {
			_, err := client.Claim(ctx, diaspora.ClaimRequest{Name: name, Partitions: partitions})
			return err
		})
	}
	return claims.Wait()
}

// Opts returns the options of a plain franz-go client that signs in as in cfg.
func Opts(cfg diaspora.Config) []kgo.Opt {
	token := oauth.Oauth(func(ctx context.Context) (oauth.Auth, error) {
		token, err := cfg.TokenSource.Token(ctx)
		return oauth.Auth{Token: token.AccessToken.Reveal()}, err
	})
	return []kgo.Opt{kgo.SeedBrokers(cfg.Brokers...), kgo.SASL(token)}
}

// Dial returns a plain franz-go client, signed in as in cfg.
func Dial(ctx context.Context, cfg diaspora.Config, opts ...kgo.Opt) (*kgo.Client, error) {
	client, err := kgo.NewClient(append(opts, Opts(cfg)...)...)
	if err != nil {
		return nil, err
	}
	return client, client.Ping(ctx)
}

// Produce returns a Run function in which a plain client produces records until all are
// acknowledged.
func Produce(ctx context.Context, client *kgo.Client, record func(i int) *kgo.Record) func(int) (time.Duration, error) {
	return func(n int) (time.Duration, error) {
		var failed FirstError
		callback := func(_ *kgo.Record, err error) { failed.Keep(err) }
		start := time.Now()
		for i := range n {
			client.Produce(ctx, record(i), callback)
		}
		failed.Keep(client.Flush(ctx))
		return time.Since(start), failed.Err()
	}
}

// WithHeaders returns a record with the headers that the Logger gives each event, made the way the
// caller of a plain client would make them.
func WithHeaders(value []byte, i int) *kgo.Record {
	return &kgo.Record{Value: value, Headers: []kgo.RecordHeader{
		{Key: diaspora.HeaderTime, Value: time.Now().UTC().AppendFormat(nil, "2006-01-02T15:04:05.000000Z")},
		{Key: diaspora.HeaderID, Value: fmt.Appendf(nil, "k3v9x0q2m7ta5h1c-%d", i)},
	}}
}

// Send returns a Run function in which a Logger sends events until all are acknowledged.
func Send(ctx context.Context, logger *diaspora.Logger, topic string, values [][]byte) func(int) (time.Duration, error) {
	return func(n int) (time.Duration, error) {
		var failed FirstError
		callback := func(_ diaspora.Record, err error) { failed.Keep(err) }
		start := time.Now()
		for i := range n {
			logger.Send(diaspora.Event{Topic: topic, Value: values[i%len(values)]}, callback)
		}
		failed.Keep(logger.Flush(ctx))
		return time.Since(start), failed.Err()
	}
}

// Log returns a call that logs one event, and waits until it is acknowledged.
func Log(ctx context.Context, logger *diaspora.Logger, topic string) func(value []byte) error {
	return func(value []byte) error { return logger.Log(ctx, diaspora.Event{Topic: topic, Value: value}) }
}

// Consume returns a Run function that opens a client and reads the topics from the start.
func Consume(ctx context.Context, topics []string, opts ...kgo.Opt) func(int) (time.Duration, error) {
	return func(n int) (time.Duration, error) {
		start := time.Now() // before NewClient, because the client starts to fetch at once
		client, err := kgo.NewClient(append(opts[:len(opts):len(opts)], kgo.ConsumeTopics(topics...), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))...)
		if err != nil {
			return 0, err
		}
		defer client.Close()
		for got := 0; got < n; {
			fetches := client.PollFetches(ctx)
			if err := fetches.Err(); err != nil {
				return 0, err
			}
			fetches.EachRecord(func(*kgo.Record) { got++ })
		}
		return time.Since(start), nil
	}
}

// Read returns a Run function that opens our Consumer and reads records. options returns its options.
func Read(ctx context.Context, cfg diaspora.Config, options func() diaspora.ConsumerOptions) func(int) (time.Duration, error) {
	return func(n int) (time.Duration, error) {
		o := options()
		start, got := time.Now(), 0
		c, err := diaspora.OpenConsumer(ctx, cfg, o)
		if err != nil {
			return 0, err
		}
		for _, err := range c.Records(ctx) {
			if err != nil {
				return 0, err
			}
			if got++; got == n {
				break
			}
		}
		took := time.Since(start)
		return took, c.Close(ctx)
	}
}

// SignIn signs in with a token on a connection to the gateway.
func SignIn(conn net.Conn, token globus.Secret) error {
	handshake := kmsg.NewPtrSASLHandshakeRequest()
	handshake.Version, handshake.Mechanism = 1, "OAUTHBEARER"
	if err := Ask(conn, handshake, new(kmsg.SASLHandshakeResponse)); err != nil {
		return err
	}
	login := kmsg.NewPtrSASLAuthenticateRequest()
	login.Version, login.SASLAuthBytes = 1, []byte("n,,\x01auth=Bearer "+token.Reveal()+"\x01\x01")
	var answer kmsg.SASLAuthenticateResponse
	if err := Ask(conn, login, &answer); err != nil {
		return err
	}
	return kerr.ErrorForCode(answer.ErrorCode)
}

var formatter = kmsg.NewRequestFormatter(kmsg.FormatterClientID("bench"))

// Ask sends a request and reads the response. The version has to be an old one, whose headers have
// no tagged fields.
func Ask(conn net.Conn, request kmsg.Request, response kmsg.Response) error {
	if _, err := conn.Write(formatter.AppendRequest(nil, request, 0)); err != nil {
		return err
	}
	var size [4]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return err
	}
	frame := make([]byte, binary.BigEndian.Uint32(size[:]))
	if _, err := io.ReadFull(conn, frame); err != nil {
		return err
	}
	response.SetVersion(request.GetVersion())
	return response.ReadFrom(frame[4:]) // after the correlation ID
}
