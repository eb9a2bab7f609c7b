package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/bench/measure"
)

// handlerRecords is the number of records in a turn. They fit into the memory of a Logger, so that
// no record waits for the broker.
const handlerRecords = 10_000

// benchHandler compares logging through slog to the cluster and to nowhere.
func benchHandler(ctx context.Context, opts options) (_ string, err error) {
	dir, err := os.MkdirTemp("", "diaspora-bench-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	binary, err := measure.BuildBinary(ctx, dir)
	if err != nil {
		return "", err
	}
	up, err := measure.StartUp(ctx, binary, dir)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, up.Stop()) }()
	cfg, err := up.Config()
	if err != nil {
		return "", err
	}
	if err := claim(ctx, cfg); err != nil {
		return "", err
	}
	busy, closeBusy, err := openSlogger(ctx, cfg)
	if err != nil {
		return "", err
	}
	defer closeBusy()
	cfg.Linger = 100 * time.Millisecond // longer than a turn
	quiet, closeQuiet, err := openSlogger(ctx, cfg)
	if err != nil {
		return "", err
	}
	defer closeQuiet()
	whole := busy
	whole.wait = true
	busy.name, whole.name, quiet.name = "diaspora.Handler, while the client sends", "the same, until all is acknowledged", "diaspora.Handler, while the client lingers"
	loggers := []slogger{
		{name: "slog.JSONHandler, discarded", to: slog.NewJSONHandler(io.Discard, nil), flush: func() error { return nil }},
		quiet, busy, whole,
	}
	contenders := make([]measure.Contender, len(loggers))
	for i := range loggers {
		contenders[i] = measure.Contender{Name: loggers[i].name, Run: loggers[i].log}
	}
	n := int(handlerRecords * min(1, opts.scale))
	rates, err := measure.TakeTurns(contenders, opts.rounds, n)
	if err != nil {
		return "", err
	}
	rows := [][]string{{"handler", "µs a record, median (min–max)", "allocations a record", "time, ratio to the first"}}
	for i, c := range contenders {
		micros := make([]float64, len(rates[i]))
		for j, rate := range rates[i] {
			micros[j] = 1e6 / rate
		}
		rows = append(rows, []string{c.Name, measure.Spread(micros), fmt.Sprintf("%.2f", loggers[i].allocations()), measure.Spread(measure.Ratios(rates[0], rates[i]))})
	}
	return "## Logging through slog\n\nA record of a message and five attributes, `slog.Logger.LogAttrs`, one goroutine; the fabric is a process of its own.\n" +
		"Goal: at most 3 µs and 5 allocations. The time is that of the caller: alone, with the Kafka client compressing and\n" +
		"the broker storing on the same cores, and until all is acknowledged. Allocations are all of the process until\n" +
		"then, those of the Kafka client included.\n\n" + measure.Table(rows), nil
}

// openSlogger returns a Handler with its own Logger.
func openSlogger(ctx context.Context, cfg diaspora.Config) (_ slogger, stop func(), err error) {
	logger, err := diaspora.OpenLogger(ctx, cfg)
	if err != nil {
		return slogger{}, nil, err
	}
	handler := diaspora.NewHandler(logger, &diaspora.HandlerOptions{Topic: topic})
	flush := func() error {
		if err := logger.Flush(ctx); err != nil {
			return err
		}
		if lost := handler.Lost(); lost > 0 {
			return fmt.Errorf("%d records were lost", lost)
		}
		return nil
	}
	return slogger{to: handler, flush: flush}, func() { logger.Close(ctx) }, nil
}

// slogger is a handler to measure.
type slogger struct {
	name  string
	to    slog.Handler
	flush func() error
	wait  bool // whether the measured time includes the flush

	records, mallocs uint64
}

func (s *slogger) allocations() float64 { return float64(s.mallocs) / float64(s.records) }

func (s *slogger) log(n int) (time.Duration, error) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	log := slog.New(s.to)
	ctx := context.Background()
	start := time.Now()
	for i := range n {
		log.LogAttrs(ctx, slog.LevelInfo, "shot taken", slog.String("instrument", "L1"), slog.Int("shot", i),
			slog.Float64("energy_keV", 12.4), slog.Duration("took", 1500*time.Microsecond), slog.Bool("beam", true))
	}
	took := time.Since(start)
	err := s.flush()
	if s.wait {
		took = time.Since(start)
	}
	runtime.ReadMemStats(&after)
	s.records += uint64(n)
	s.mallocs += after.Mallocs - before.Mallocs
	return took, err
}
