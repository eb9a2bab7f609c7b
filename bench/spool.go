package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/bench/measure"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/spool"
)

// benchSpool measures the cost of writing events to disk first.
func benchSpool(ctx context.Context, opts options) (string, error) {
	send, err := benchSpoolSend(ctx, opts)
	if err != nil {
		return "", err
	}
	log, err := benchSpoolLog(ctx, opts)
	return send + "\n" + log, err
}

const benchSpoolBytes = 16 << 30

func benchSpoolSend(ctx context.Context, opts options) (string, error) {
	cfg, stop, err := onDisk(ctx)
	if err != nil {
		return "", err
	}
	defer stop()
	without, err := diaspora.OpenLogger(ctx, cfg)
	if err != nil {
		return "", err
	}
	defer without.Close(ctx)
	dir, err := os.MkdirTemp("", "diaspora-bench-spool-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	alone, err := spool.Open(context.Background(), spool.Options{Dir: filepath.Join(dir, "alone"), MaxBytes: benchSpoolBytes})
	if err != nil {
		return "", err
	}
	defer alone.Close()
	cfg.SpoolDir, cfg.SpoolBytes = filepath.Join(dir, "spool"), benchSpoolBytes
	with, err := diaspora.OpenLogger(ctx, cfg)
	if err != nil {
		return "", err
	}
	defer with.Close(ctx)

	values := measure.Payloads(1024)
	contenders := []measure.Contender{
		{Name: "Send, until acknowledged", Run: measure.Send(ctx, without, topic, values)},
		{Name: "Send on a spool, until durable", Run: durableSender(ctx, with, values)},
		{Name: "Send on a spool, until acknowledged", Run: measure.Send(ctx, with, topic, values)},
		{Name: "the spool alone, until durable", Run: appender(alone, values)},
	}
	rates, err := measure.TakeTurns(contenders, opts.rounds, int(100_000*opts.scale))
	if err != nil {
		return "", err
	}
	rows := [][]string{{"client", "events/s", "MB/s", "ratio to Send without, median (min–max)"}}
	for i, c := range contenders {
		rows = append(rows, []string{c.Name, fmt.Sprintf("%.0f", measure.Median(rates[i])), fmt.Sprintf("%.0f", measure.Median(rates[i])*1024/1e6), measure.Spread(measure.Ratios(rates[i], rates[0]))})
	}
	return "## Send through a spool\n\nEvents of 1 KiB to the embedded broker with its data on disk, which has the same disk and cores. \"Durable\" is\n" +
		"when the last callback came; the cluster's acknowledgement is waited for before the next turn. The last row has no\n" +
		"cluster and nothing else to do: no Logger can be faster. Goal: at least 0.60.\n\n" + measure.Table(rows), nil
}

// durableSender measures the time until the last event is on disk.
func durableSender(ctx context.Context, logger *diaspora.Logger, values [][]byte) func(int) (time.Duration, error) {
	return func(n int) (time.Duration, error) {
		var failed measure.FirstError
		var all sync.WaitGroup
		all.Add(n)
		callback := func(_ diaspora.Record, err error) {
			failed.Keep(err)
			all.Done()
		}
		start := time.Now()
		for i := range n {
			logger.Send(diaspora.Event{Topic: topic, Value: values[i%len(values)]}, callback)
		}
		all.Wait()
		took := time.Since(start)
		failed.Keep(logger.Flush(ctx))
		return took, failed.Err()
	}
}

// appender measures the time until the last event is on disk, while nothing reads the spool.
func appender(s *spool.Spool, values [][]byte) func(int) (time.Duration, error) {
	return func(n int) (time.Duration, error) {
		var failed measure.FirstError
		var all sync.WaitGroup
		all.Add(n)
		callback := func(err error) {
			failed.Keep(err)
			all.Done()
		}
		start := time.Now()
		for i := range n {
			if err := s.AppendAsync(context.Background(), spoolEntry(values[i%len(values)]), callback); err != nil {
				callback(err)
			}
		}
		all.Wait()
		return time.Since(start), failed.Err()
	}
}

// spoolEntry returns the entry that the Logger creates for a value.
func spoolEntry(value []byte) spool.Entry {
	return spool.Entry{Topic: topic, ID: "k3v9x0q2m7ta5h1c-abcd", Time: time.Now().Truncate(time.Millisecond), Value: value}
}

// benchSpoolLog measures durable Log calls while no cluster is reachable, and compares them with
// the spool alone.
func benchSpoolLog(ctx context.Context, opts options) (string, error) {
	rows := [][]string{{"writers", "call", "events/s", "p50", "p99", "disk bytes / payload", "goal, events/s"}}
	for _, load := range []struct{ writers, n, goal int }{{1, 5_000, 4_000}, {16, 40_000, 30_000}, {128, 150_000, 100_000}} {
		n := int(float64(load.n) * opts.scale)
		for _, call := range []string{"spool alone", "Logger.Log"} {
			var rates []float64
			var took []time.Duration
			var ratio float64
			for range opts.rounds {
				rate, latency, disk, err := spoolLogTurn(ctx, call == "spool alone", load.writers, n)
				if err != nil {
					return "", err
				}
				rates, took, ratio = append(rates, rate), append(took, latency...), disk
			}
			slices.Sort(took)
			rows = append(rows, []string{
				fmt.Sprint(load.writers), call, fmt.Sprintf("%.0f", measure.Median(rates)),
				took[len(took)/2].Round(time.Microsecond).String(), took[len(took)*99/100].Round(time.Microsecond).String(),
				fmt.Sprintf("%.3f", ratio), fmt.Sprint(load.goal),
			})
		}
	}
	return "## Durable Log\n\nEvents of 1 KiB, each call one event, no cluster in reach. Goals: p99 at most 5 ms, at most 1.05 bytes on disk for\n" +
		"each of payload.\n\n" + measure.Table(rows), nil
}

func spoolLogTurn(ctx context.Context, alone bool, writers, n int) (rate float64, took []time.Duration, disk float64, err error) {
	dir, err := os.MkdirTemp("", "diaspora-bench-spool-")
	if err != nil {
		return 0, nil, 0, err
	}
	defer os.RemoveAll(dir)
	dir = filepath.Join(dir, "spool")
	var call func(value []byte) error
	var bytes func() int64
	var done func()
	if alone {
		s, err := spool.Open(context.Background(), spool.Options{Dir: dir, MaxBytes: benchSpoolBytes})
		if err != nil {
			return 0, nil, 0, err
		}
		done = func() { s.Close() }
		bytes = func() int64 { return s.Stats().Bytes }
		call = func(value []byte) error {
			return s.Append(ctx, spoolEntry(value))
		}
	} else {
		l, err := diaspora.OpenLogger(ctx, awayConfig(dir))
		if err != nil {
			return 0, nil, 0, err
		}
		done = func() {
			ended, cancel := context.WithCancel(ctx)
			cancel()
			l.Close(ended)
		}
		bytes = func() int64 { return l.Stats().Spool.Bytes }
		call = func(value []byte) error { return l.Log(ctx, diaspora.Event{Topic: topic, Value: value}) }
	}
	defer done()
	values := measure.Payloads(1024)
	each := n / writers
	latencies := make([][]time.Duration, writers)
	var failed measure.FirstError
	var all sync.WaitGroup
	start := time.Now()
	for w := range writers {
		all.Go(func() {
			latencies[w] = make([]time.Duration, 0, each)
			for i := range each {
				before := time.Now()
				if err := call(values[(i+w)%len(values)]); err != nil {
					failed.Keep(err)
					return
				}
				latencies[w] = append(latencies[w], time.Since(before))
			}
		})
	}
	all.Wait()
	elapsed := time.Since(start)
	return float64(each*writers) / elapsed.Seconds(), slices.Concat(latencies...), float64(bytes()) / float64(each*writers*1024), failed.Err()
}

// awayConfig is the configuration of a cluster that is not reachable.
func awayConfig(dir string) diaspora.Config {
	return diaspora.Config{
		Brokers:     []string{"127.0.0.1:1"},
		TokenSource: globus.StaticToken(globus.Token{AccessToken: "dev-none"}),
		Identity:    globus.Identity{Subject: "00000000-0000-0000-0000-000000000000"},
		SpoolDir:    dir,
		SpoolBytes:  benchSpoolBytes,
	}
}
