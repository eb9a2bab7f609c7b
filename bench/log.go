package main

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/bench/measure"
)

// log compares the latency of producing one event and waiting for its acknowledgement.
func (b bench) log(ctx context.Context) (string, error) {
	cfg, fabric, err := b.onDisk(ctx, partitions, topic)
	if err != nil {
		return "", err
	}
	defer fabric.Close()
	client, err := plain(ctx, cfg)
	if err != nil {
		return "", err
	}
	defer client.Close()
	logger, err := diaspora.OpenLogger(ctx, cfg)
	if err != nil {
		return "", err
	}
	defer logger.Close(ctx)
	table, err := b.latencyTable(
		measure.Caller{Name: "franz-go ProduceSync", Call: produceSync(ctx, client)},
		measure.Caller{Name: "diaspora Logger.Log", Call: measure.Log(ctx, logger, topic)},
	)
	return "## Synchronous producing\n\nOne event of 100 B at a time. Goal: p50 of `Logger.Log` at most 1.2 of `ProduceSync`.\n\n" + table, err
}

func produceSync(ctx context.Context, client *kgo.Client) func([]byte) error {
	return func(value []byte) error {
		return client.ProduceSync(ctx, &kgo.Record{Value: value}).FirstErr()
	}
}

// latencyTable compares the latency of the callers with that of the first one.
func (b bench) latencyTable(callers ...measure.Caller) (string, error) {
	took, err := measure.Latencies(callers, b.Scaled(5000))
	if err != nil {
		return "", err
	}
	rows := [][]string{{"client", "p50", "p99", "ratio of p50"}}
	for i, c := range callers {
		rows = append(rows, append(append([]string{c.Name}, measure.Quantiles(took[i], 0.5, 0.99)...),
			fmt.Sprintf("%.2f", float64(measure.Median(took[i]))/float64(measure.Median(took[0])))))
	}
	return measure.Table(rows), nil
}
