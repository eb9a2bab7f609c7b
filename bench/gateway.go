package main

import (
	"context"
	"fmt"
	"os"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/diaspora-streams/diaspora/bench/measure"
)

// benchGateway compares a client that connects through the gateway with one that connects to a
// broker directly over TCP.
func benchGateway(ctx context.Context, opts options) (string, error) {
	cfg, stop, err := onDisk(ctx)
	if err != nil {
		return "", err
	}
	defer stop()
	through, err := plain(ctx, cfg)
	if err != nil {
		return "", err
	}
	defer through.Close()
	bare, stopBare, err := withoutGateway(ctx)
	if err != nil {
		return "", err
	}
	defer stopBare()

	rows := [][]string{{"event", "way", "produced/s", "ratio", "consumed/s", "ratio"}}
	for _, load := range []struct{ size, n int }{{100, 400_000}, {1024, 150_000}} {
		values := measure.Payloads(load.size)
		n := int(float64(load.n) * opts.scale)
		record := func(i int) *kgo.Record { return &kgo.Record{Value: values[i%len(values)]} }
		produced, err := measure.TakeTurns([]measure.Contender{
			{Name: "no gateway", Run: measure.Produce(ctx, bare, record)},
			{Name: "gateway", Run: measure.Produce(ctx, through, record)},
		}, opts.rounds, n)
		if err != nil {
			return "", err
		}
		consumed, err := measure.TakeTurns([]measure.Contender{
			{Name: "no gateway", Run: measure.Consume(ctx, []string{topic}, bare.Opts()...)},
			{Name: "gateway", Run: measure.Consume(ctx, []string{topic}, through.Opts()...)},
		}, opts.rounds, n)
		if err != nil {
			return "", err
		}
		for i, way := range []string{"no gateway", "gateway"} {
			rows = append(rows, []string{
				fmt.Sprintf("%d B", load.size), way,
				fmt.Sprintf("%.0f", measure.Median(produced[i])), measure.Spread(measure.Ratios(produced[i], produced[0])),
				fmt.Sprintf("%.0f", measure.Median(consumed[i])), measure.Spread(measure.Ratios(consumed[i], consumed[0])),
			})
		}
	}
	callers := []caller{
		{"no gateway", produceSync(ctx, bare)},
		{"gateway", produceSync(ctx, through)},
	}
	took, err := latencies(callers, measure.Payloads(100), int(5000*opts.scale))
	if err != nil {
		return "", err
	}
	return "## What the gateway costs\n\nA plain franz-go client through the gateway, and to the same kind of broker over TCP without it.\n\n" +
		measure.Table(rows) + "\nOne synchronous event of 100 B at a time:\n\n" + latencyTable(callers, took), nil
}

// withoutGateway starts a broker without a gateway, on TCP and on disk, with a client that is
// signed in to it. The broker is kfake, which is not the engine that the gateway uses.
func withoutGateway(ctx context.Context) (*kgo.Client, func(), error) {
	dir, err := os.MkdirTemp("", "diaspora-bench-")
	if err != nil {
		return nil, nil, err
	}
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.DataDir(dir), kfake.EnableSASL(), kfake.EnableACLs(),
		kfake.Superuser("SCRAM-SHA-256", "bench", "bench"), kfake.SeedTopics(partitions, topic))
	if err != nil {
		return nil, nil, err
	}
	stop := func() {
		cluster.Close()
		os.RemoveAll(dir)
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...), kgo.DefaultProduceTopic(topic),
		kgo.SASL(scram.Auth{User: "bench", Pass: "bench"}.AsSha256Mechanism()))
	if err != nil {
		stop()
		return nil, nil, err
	}
	return client, func() { client.Close(); stop() }, client.Ping(ctx)
}
