package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/bench/measure"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/faultnet"
	"github.com/diaspora-streams/diaspora/internal/inside"
)

// benchLink compares producing over links of different latency.
func benchLink(ctx context.Context, opts options) (string, error) {
	target, err := freeAddr()
	if err != nil {
		return "", err
	}
	proxy, err := faultnet.Start(target)
	if err != nil {
		return "", err
	}
	defer proxy.Close()
	cfg, stop, err := onDiskWith(ctx, inside.Behind(fabric.Config{KafkaAddr: target}, proxy.Addr()).(fabric.Config))
	if err != nil {
		return "", err
	}
	defer stop()
	values := measure.Payloads(1024)
	rows := [][]string{{"each way", "client", "events/s", "MB/s", "ratio to franz-go, median (min–max)"}}
	for _, delay := range []time.Duration{0, 10 * time.Millisecond, 50 * time.Millisecond} {
		proxy.Set(faultnet.Link{Delay: delay})
		rates, err := acrossLink(ctx, cfg, values, opts)
		if err != nil {
			return "", err
		}
		for i, name := range []string{"franz-go", "diaspora Logger.Send", "diaspora Logger.Send on a spool"} {
			rows = append(rows, []string{
				delay.String(), name,
				fmt.Sprintf("%.0f", measure.Median(rates[i])),
				fmt.Sprintf("%.0f", measure.Median(rates[i])*1024/1e6),
				measure.Spread(measure.Ratios(rates[i], rates[0])),
			})
		}
	}
	return "## Producing over a long link\n\nEvents of 1 KiB through the gateway to the embedded broker, acks=all, idempotent, six partitions, until every event is\n" +
		"acknowledged, with the latency of `internal/faultnet` in each direction. A spool makes events durable on disk first.\n" +
		"Goal: at least 0.85 of the plain client.\n\n" + measure.Table(rows), nil
}

// freeAddr returns an address on which nothing listens.
func freeAddr() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer listener.Close()
	return listener.Addr().String(), nil
}

func acrossLink(ctx context.Context, cfg diaspora.Config, values [][]byte, opts options) (rates [][]float64, err error) {
	bare, err := plain(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer bare.Close()
	without, err := diaspora.OpenLogger(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer without.Close(ctx)
	cfg.SpoolDir, err = os.MkdirTemp("", "diaspora-bench-spool-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(cfg.SpoolDir)
	cfg.SpoolBytes = benchSpoolBytes
	with, err := diaspora.OpenLogger(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer with.Close(ctx)
	return measure.TakeTurns([]measure.Contender{
		{Name: "franz-go", Run: measure.Produce(ctx, bare, func(i int) *kgo.Record { return &kgo.Record{Value: values[i%len(values)]} })},
		{Name: "diaspora Logger.Send", Run: measure.Send(ctx, without, topic, values)},
		{Name: "diaspora Logger.Send on a spool", Run: measure.Send(ctx, with, topic, values)},
	}, opts.rounds, int(100_000*opts.scale))
}
