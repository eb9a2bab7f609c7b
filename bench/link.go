package main

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/bench/measure"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/faultnet"
	"github.com/diaspora-streams/diaspora/internal/inside"
)

// link compares producing over links of different latency.
func (b bench) link(ctx context.Context) (string, error) {
	cfg, proxy, stop, err := b.farAway(ctx)
	if err != nil {
		return "", err
	}
	defer stop()
	values := measure.Payloads(1024)
	rows := [][]string{{"each way", "client", "events/s", "MB/s", "ratio to franz-go, median (min–max)"}}
	for _, delay := range []time.Duration{0, 10 * time.Millisecond, 50 * time.Millisecond} {
		proxy.Set(faultnet.Link{Delay: delay})
		rates, err := b.across(ctx, cfg, values, delay)
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

// across measures each contender over the link as it is now. The delay only names the folder of the spool.
func (b bench) across(ctx context.Context, cfg diaspora.Config, values [][]byte, delay time.Duration) (rates [][]float64, err error) {
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
	cfg.SpoolDir, cfg.SpoolBytes = filepath.Join(b.Dir, "spool-"+delay.String()), benchSpoolBytes
	with, err := diaspora.OpenLogger(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer with.Close(ctx)
	return measure.TakeTurns([]measure.Contender{
		{Name: "franz-go", Run: measure.Produce(ctx, bare, func(i int) *kgo.Record { return &kgo.Record{Value: values[i%len(values)]} })},
		{Name: "diaspora Logger.Send", Run: measure.Send(ctx, without, topic, values)},
		{Name: "diaspora Logger.Send on a spool", Run: measure.Send(ctx, with, topic, values)},
	}, b.Rounds, b.Scaled(100_000))
}

// farAway starts a fabric on disk, with a link to its gateway that has no latency yet.
func (b bench) farAway(ctx context.Context) (cfg diaspora.Config, link *faultnet.Proxy, stop func(), err error) {
	target, err := freeAddr()
	if err != nil {
		return cfg, nil, nil, err
	}
	if link, err = faultnet.Start(target); err != nil {
		return cfg, nil, nil, err
	}
	cfg, f, err := b.start(ctx, inside.Behind(fabric.Config{KafkaAddr: target}, link.Addr()).(fabric.Config), partitions, topic)
	if err != nil {
		link.Close()
		return cfg, nil, nil, err
	}
	return cfg, link, func() { f.Close(); link.Close() }, nil
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
