package main

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/bench/measure"
)

// caller makes one synchronous call.
type caller struct {
	name string
	call func(value []byte) error
}

// benchLog compares the latency of producing one event and waiting for its acknowledgement. The
// callers take turns after each call.
func benchLog(ctx context.Context, opts options) (string, error) {
	cfg, stop, err := onDisk(ctx)
	if err != nil {
		return "", err
	}
	defer stop()
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

	callers := []caller{
		{"franz-go ProduceSync", produceSync(ctx, client)},
		{"diaspora Logger.Log", func(value []byte) error {
			return logger.Log(ctx, diaspora.Event{Topic: topic, Value: value})
		}},
	}
	took, err := latencies(callers, measure.Payloads(100), int(5000*opts.scale))
	if err != nil {
		return "", err
	}
	return "## Synchronous producing\n\nOne event of 100 B at a time. Goal: p50 of `Logger.Log` at most 1.2 of `ProduceSync`.\n\n" +
		latencyTable(callers, took), nil
}

func produceSync(ctx context.Context, client *kgo.Client) func([]byte) error {
	return func(value []byte) error {
		return client.ProduceSync(ctx, &kgo.Record{Value: value}).FirstErr()
	}
}

// latencies returns how long each of n calls took, by caller. The same number of calls is made
// before, to warm up.
func latencies(callers []caller, values [][]byte, n int) ([][]time.Duration, error) {
	took := make([][]time.Duration, len(callers))
	for i := -n; i < n; i++ {
		for c := range callers {
			start := time.Now()
			if err := callers[c].call(values[(i+n)%len(values)]); err != nil {
				return nil, fmt.Errorf("%s: %w", callers[c].name, err)
			}
			if i >= 0 {
				took[c] = append(took[c], time.Since(start))
			}
		}
	}
	return took, nil
}

func latencyTable(callers []caller, took [][]time.Duration) string {
	rows := [][]string{{"client", "p50", "p99", "ratio of p50"}}
	for i, c := range callers {
		rows = append(rows, []string{
			c.name,
			measure.Median(took[i]).Round(time.Microsecond).String(),
			measure.Quantile(took[i], 0.99).Round(time.Microsecond).String(),
			fmt.Sprintf("%.2f", float64(measure.Median(took[i]))/float64(measure.Median(took[0]))),
		})
	}
	return measure.Table(rows)
}
