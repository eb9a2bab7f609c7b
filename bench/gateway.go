package main

import (
	"context"
	"path/filepath"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/diaspora-streams/diaspora/bench/measure"
)

// gateway compares a client that connects through the gateway with one that connects to a broker
// directly over TCP.
func (b bench) gateway(ctx context.Context) (string, error) {
	cfg, fabric, err := b.onDisk(ctx, partitions, topic)
	if err != nil {
		return "", err
	}
	defer fabric.Close()
	through, err := plain(ctx, cfg)
	if err != nil {
		return "", err
	}
	defer through.Close()
	// kfake is a broker of franz-go for tests. It is not the engine behind the gateway, which only the
	// gateway can reach.
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.DataDir(filepath.Join(b.Dir, "kfake")), kfake.EnableSASL(), kfake.EnableACLs(),
		kfake.Superuser("SCRAM-SHA-256", "bench", "bench"), kfake.SeedTopics(partitions, topic))
	if err != nil {
		return "", err
	}
	defer cluster.Close()
	bare, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...), kgo.DefaultProduceTopic(topic),
		kgo.SASL(scram.Auth{User: "bench", Pass: "bench"}.AsSha256Mechanism()))
	if err != nil {
		return "", err
	}
	defer bare.Close()

	rows := [][]string{{"event", "way", "produced/s", "ratio", "consumed/s", "ratio"}}
	for _, load := range []struct{ size, n int }{{100, 400_000}, {1024, 150_000}} {
		values := measure.Payloads(load.size)
		record := func(i int) *kgo.Record { return &kgo.Record{Value: values[i%len(values)]} }
		produced, err := measure.TakeTurns([]measure.Contender{
			{Name: "no gateway", Run: measure.Produce(ctx, bare, record)},
			{Name: "gateway", Run: measure.Produce(ctx, through, record)},
		}, b.Rounds, b.Scaled(load.n))
		if err != nil {
			return "", err
		}
		consumed, err := measure.TakeTurns([]measure.Contender{
			{Name: "no gateway", Run: measure.Consume(ctx, []string{topic}, bare.Opts()...)},
			{Name: "gateway", Run: measure.Consume(ctx, []string{topic}, through.Opts()...)},
		}, b.Rounds, b.Scaled(load.n))
		if err != nil {
			return "", err
		}
		for i, way := range []string{"no gateway", "gateway"} {
			rows = append(rows, []string{
				size(load.size), way,
				measure.Rate(produced[i]), measure.Spread(measure.Ratios(produced[i], produced[0])),
				measure.Rate(consumed[i]), measure.Spread(measure.Ratios(consumed[i], consumed[0])),
			})
		}
	}
	table, err := b.latencyTable(measure.Caller{Name: "no gateway", Call: produceSync(ctx, bare)}, measure.Caller{Name: "gateway", Call: produceSync(ctx, through)})
	return "## What the gateway costs\n\nA plain franz-go client through the gateway, and to another broker (kfake) over TCP without it.\n\n" +
		measure.Table(rows) + "\nOne synchronous event of 100 B at a time:\n\n" + table, err
}
