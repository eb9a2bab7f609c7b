package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/oauth"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/bench/measure"
	"github.com/diaspora-streams/diaspora/fabric"
)

const (
	user       = "ada@example.edu"
	topic      = "bench"
	partitions = 6
)

// onDisk starts a fabric on disk, claims the topic, and returns the configuration of a user.
func onDisk(ctx context.Context) (cfg diaspora.Config, stop func(), err error) {
	return onDiskWith(ctx, fabric.Config{})
}

// onDiskWith is like onDisk, with a configuration of the fabric.
func onDiskWith(ctx context.Context, config fabric.Config) (cfg diaspora.Config, stop func(), err error) {
	dir, err := os.MkdirTemp("", "diaspora-bench-")
	if err != nil {
		return cfg, nil, err
	}
	config.Dir = dir
	f, err := fabric.Start(ctx, config)
	if err != nil {
		return cfg, nil, err
	}
	stop = func() {
		f.Close()
		os.RemoveAll(dir)
	}
	cfg, err = f.As(ctx, user)
	if err == nil {
		err = claim(ctx, cfg)
	}
	if err != nil {
		stop()
	}
	return cfg, stop, err
}

func claim(ctx context.Context, cfg diaspora.Config) error {
	client, err := diaspora.NewClient(cfg)
	if err != nil {
		return err
	}
	_, err = client.Claim(ctx, diaspora.ClaimRequest{Name: topic, Partitions: partitions})
	return err
}

// plain returns a franz-go client with default options, signed in as in cfg. Like a Logger, it does
// not compress.
func plain(ctx context.Context, cfg diaspora.Config, opts ...kgo.Opt) (*kgo.Client, error) {
	token := oauth.Oauth(func(ctx context.Context) (oauth.Auth, error) {
		token, err := cfg.TokenSource.Token(ctx)
		return oauth.Auth{Token: token.AccessToken.Reveal()}, err
	})
	client, err := kgo.NewClient(append(opts, kgo.SeedBrokers(cfg.Brokers...), kgo.DefaultProduceTopic(topic), kgo.SASL(token), kgo.ProducerBatchCompression(kgo.NoCompression()))...)
	if err != nil {
		return nil, err
	}
	return client, client.Ping(ctx)
}

// benchSend compares asynchronous producing.
func benchSend(ctx context.Context, opts options) (string, error) {
	cfg, stop, err := onDisk(ctx)
	if err != nil {
		return "", err
	}
	defer stop()

	rows := [][]string{{"event", "client", "events/s", "MB/s", "ratio to franz-go, median (min–max)"}}
	for _, load := range []struct{ size, n int }{{100, 5_000_000}, {1024, 1_500_000}} { // a turn takes at least a second
		values := measure.Payloads(load.size)
		n := int(float64(load.n) * opts.scale)
		contenders, done, err := senders(ctx, cfg, values)
		if err != nil {
			return "", err
		}
		rates, err := measure.TakeTurns(contenders, opts.rounds, n)
		done()
		if err != nil {
			return "", err
		}
		for i, c := range contenders {
			rows = append(rows, []string{
				fmt.Sprintf("%d B", load.size), c.Name,
				fmt.Sprintf("%.0f", measure.Median(rates[i])),
				fmt.Sprintf("%.0f", measure.Median(rates[i])*float64(load.size)/1e6),
				measure.Spread(measure.Ratios(rates[i], rates[0])),
			})
		}
	}
	return "## Asynchronous producing\n\nThrough the gateway to the embedded broker with its data on disk, acks=all, idempotent, six partitions,\n" +
		"until every event is acknowledged. Goal: `Logger.Send` at least 0.95 of the plain client. The Logger gives each\nevent two headers, its id and its time; in the second row the caller of the plain client does the same.\n\n" + measure.Table(rows), nil
}

func senders(ctx context.Context, cfg diaspora.Config, values [][]byte) (_ []measure.Contender, done func(), err error) {
	bare, err := plain(ctx, cfg)
	if err != nil {
		return nil, nil, err
	}
	headed, err := plain(ctx, cfg)
	if err != nil {
		return nil, nil, err
	}
	logger, err := diaspora.OpenLogger(ctx, cfg)
	if err != nil {
		return nil, nil, err
	}
	const timeLayout = "2006-01-02T15:04:05.000000Z"
	return []measure.Contender{
			{Name: "franz-go", Run: measure.Produce(ctx, bare, func(i int) *kgo.Record { return &kgo.Record{Value: values[i%len(values)]} })},
			{Name: "franz-go, id and time added", Run: measure.Produce(ctx, headed, func(i int) *kgo.Record {
				return &kgo.Record{Value: values[i%len(values)], Headers: []kgo.RecordHeader{
					{Key: diaspora.HeaderTime, Value: time.Now().UTC().AppendFormat(nil, timeLayout)},
					{Key: diaspora.HeaderID, Value: fmt.Appendf(nil, "k3v9x0q2m7ta5h1c-%d", i)},
				}}
			})},
			{Name: "diaspora Logger.Send", Run: measure.Send(ctx, logger, topic, values)},
		}, func() {
			bare.Close()
			headed.Close()
			logger.Close(ctx)
		}, nil
}
