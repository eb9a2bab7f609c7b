package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/bench/measure"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/spool"
)

// spool measures the cost of writing events to disk first.
func (b bench) spool(ctx context.Context) (string, error) {
	send, err := b.spoolSend(ctx)
	if err != nil {
		return "", err
	}
	log, err := b.spoolLog(ctx)
	return send + "\n" + log, err
}

const benchSpoolBytes = 16 << 30

func (b bench) spoolSend(ctx context.Context) (string, error) {
	cfg, fabric, err := b.onDisk(ctx, partitions, topic)
	if err != nil {
		return "", err
	}
	defer fabric.Close()
	without, err := diaspora.OpenLogger(ctx, cfg)
	if err != nil {
		return "", err
	}
	defer without.Close(ctx)
	alone, err := spool.Open(context.Background(), spool.Options{Dir: filepath.Join(b.Dir, "alone"), MaxBytes: benchSpoolBytes})
	if err != nil {
		return "", err
	}
	defer alone.Close()
	cfg.SpoolDir, cfg.SpoolBytes = filepath.Join(b.Dir, "spool"), benchSpoolBytes
	with, err := diaspora.OpenLogger(ctx, cfg)
	if err != nil {
		return "", err
	}
	defer with.Close(ctx)

	values := measure.Payloads(1024)
	contenders := []measure.Contender{
		{Name: "Send, until acknowledged", Run: measure.Send(ctx, without, topic, values)},
		{Name: "Send on a spool, until durable", Run: untilDurable(values, func(value []byte, done func(error)) {
			with.Send(diaspora.Event{Topic: topic, Value: value}, func(_ diaspora.Record, err error) { done(err) })
		}, func() error { return with.Flush(ctx) })},
		{Name: "Send on a spool, until acknowledged", Run: measure.Send(ctx, with, topic, values)},
		{Name: "the spool alone, until durable", Run: untilDurable(values, func(value []byte, done func(error)) {
			if err := alone.AppendAsync(context.Background(), spoolEntry(value), done); err != nil {
				done(err)
			}
		}, func() error { return nil })},
	}
	rates, err := measure.TakeTurns(contenders, b.Rounds, b.Scaled(100_000))
	if err != nil {
		return "", err
	}
	rows := [][]string{{"client", "events/s", "MB/s", "ratio to Send without, median (min–max)"}}
	for i, c := range contenders {
		rows = append(rows, []string{c.Name, measure.Rate(rates[i]), fmt.Sprintf("%.0f", measure.Median(rates[i])*1024/1e6), measure.Spread(measure.Ratios(rates[i], rates[0]))})
	}
	return "## Send through a spool\n\nEvents of 1 KiB to the embedded broker with its data on disk, which has the same disk and cores. \"Durable\" is\n" +
		"when the last callback came; the cluster's acknowledgement is waited for before the next turn. The last row has no\n" +
		"cluster and nothing else to do: no Logger can be faster. Goal: at least 0.60.\n\n" + measure.Table(rows), nil
}

// untilDurable returns a Run function that measures the time until the last event is on disk. finish
// then waits for what should not disturb the next turn.
func untilDurable(values [][]byte, send func(value []byte, done func(error)), finish func() error) func(int) (time.Duration, error) {
	return func(n int) (time.Duration, error) {
		var failed measure.FirstError
		var all sync.WaitGroup
		all.Add(n)
		done := func(err error) {
			failed.Keep(err)
			all.Done()
		}
		start := time.Now()
		for i := range n {
			send(values[i%len(values)], done)
		}
		all.Wait()
		took := time.Since(start)
		failed.Keep(finish())
		return took, failed.Err()
	}
}

// spoolEntry returns the entry that the Logger creates for a value.
func spoolEntry(value []byte) spool.Entry {
	return spool.Entry{Topic: topic, ID: "k3v9x0q2m7ta5h1c-abcd", Time: time.Now().Truncate(time.Millisecond), Value: value}
}

// spoolLog measures durable Log calls while no cluster is reachable, and compares them with the spool
// alone.
func (b bench) spoolLog(ctx context.Context) (string, error) {
	rows := [][]string{{"writers", "call", "events/s", "p50", "p99", "disk bytes / payload", "goal, events/s"}}
	for _, load := range []struct{ writers, n, goal int }{{1, 5_000, 4_000}, {16, 40_000, 30_000}, {128, 150_000, 100_000}} {
		for _, call := range []struct {
			name string
			open func(ctx context.Context, dir string) (durable, error)
		}{{"spool alone", openSpool}, {"Logger.Log", openLogger}} {
			var rates []float64
			var took []time.Duration
			var ratio float64
			for range b.Rounds {
				dir := filepath.Join(b.Dir, "turn")
				d, err := call.open(ctx, dir)
				if err != nil {
					return "", err
				}
				latencies, elapsed, err := measure.Concurrently(load.writers, b.Scaled(load.n), measure.Payloads(1024), d.call)
				ratio = float64(d.bytes()) / float64(len(latencies)*1024)
				if err := errors.Join(err, d.close(), os.RemoveAll(dir)); err != nil {
					return "", err
				}
				rates, took = append(rates, float64(len(latencies))/elapsed.Seconds()), append(took, latencies...)
			}
			cells := measure.Quantiles(took, 0.5, 0.99)
			rows = append(rows, []string{fmt.Sprint(load.writers), call.name, measure.Rate(rates), cells[0], cells[1], fmt.Sprintf("%.3f", ratio), fmt.Sprint(load.goal)})
		}
	}
	return "## Durable Log\n\nEvents of 1 KiB, each call one event, no cluster in reach. Goals: p99 at most 5 ms, at most 1.05 bytes on disk for\n" +
		"each of payload.\n\n" + measure.Table(rows), nil
}

// durable is a way to write one event to disk.
type durable struct {
	call  func(value []byte) error
	bytes func() int64 // on disk
	close func() error
}

func openSpool(ctx context.Context, dir string) (durable, error) {
	s, err := spool.Open(ctx, spool.Options{Dir: dir, MaxBytes: benchSpoolBytes})
	return durable{
		call:  func(value []byte) error { return s.Append(ctx, spoolEntry(value)) },
		bytes: func() int64 { return s.Stats().Bytes },
		close: func() error { return s.Close() },
	}, err
}

// openLogger opens a Logger for a cluster that is not reachable.
func openLogger(ctx context.Context, dir string) (durable, error) {
	l, err := diaspora.OpenLogger(ctx, diaspora.Config{
		Brokers:     []string{"127.0.0.1:1"},
		TokenSource: globus.StaticToken(globus.Token{AccessToken: "dev-none"}),
		Identity:    globus.Identity{Subject: "00000000-0000-0000-0000-000000000000"},
		SpoolDir:    dir,
		SpoolBytes:  benchSpoolBytes,
	})
	return durable{
		call:  measure.Log(ctx, l, topic),
		bytes: func() int64 { return l.Stats().Spool.Bytes },
		close: func() error { return closeNow(l) },
	}, err
}

// closeNow closes a Logger without waiting for the cluster.
func closeNow(l *diaspora.Logger) error {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	return l.Close(ended)
}
