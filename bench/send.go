package main

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/bench/measure"
)

// plain returns a franz-go client with default options. Like a Logger, it does not compress.
func plain(ctx context.Context, cfg diaspora.Config) (*kgo.Client, error) {
	return measure.Dial(ctx, cfg, kgo.DefaultProduceTopic(topic), kgo.ProducerBatchCompression(kgo.NoCompression()))
}

// send compares asynchronous producing.
func (b bench) send(ctx context.Context) (string, error) {
	cfg, fabric, err := b.onDisk(ctx, partitions, topic)
	if err != nil {
		return "", err
	}
	defer fabric.Close()

	rows := [][]string{{"event", "client", "events/s", "MB/s", "ratio to franz-go, median (min–max)"}}
	for _, load := range []struct{ size, n int }{{100, 5_000_000}, {1024, 1_500_000}} { // a turn takes at least a second
		contenders, done, err := senders(ctx, cfg, measure.Payloads(load.size))
		if err != nil {
			return "", err
		}
		rates, err := measure.TakeTurns(contenders, b.Rounds, b.Scaled(load.n))
		done()
		if err != nil {
			return "", err
		}
		for i, c := range contenders {
			rows = append(rows, []string{
				size(load.size), c.Name, measure.Rate(rates[i]),
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
	return []measure.Contender{
			{Name: "franz-go", Run: measure.Produce(ctx, bare, func(i int) *kgo.Record { return &kgo.Record{Value: values[i%len(values)]} })},
			{Name: "franz-go, id and time added", Run: measure.Produce(ctx, headed, func(i int) *kgo.Record { return measure.WithHeaders(values[i%len(values)], i) })},
			{Name: "diaspora Logger.Send", Run: measure.Send(ctx, logger, topic, values)},
		}, func() {
			bare.Close()
			headed.Close()
			logger.Close(ctx)
		}, nil
}
