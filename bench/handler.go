package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/bench/measure"
)

// handlerRecords is the number of records in a turn. They fit into the memory of a Logger, so that
// no record waits for the broker.
const handlerRecords = 10_000

// handler compares logging through slog to the cluster and to nowhere.
func (b bench) handler(ctx context.Context) (_ string, err error) {
	_, up, cfg, err := b.startUp(ctx)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, up.Stop()) }()
	loggers := []*slogger{
		{name: "slog.JSONHandler, discarded", to: slog.NewJSONHandler(io.Discard, nil), flush: func() error { return nil }},
		{name: "diaspora.Handler, while the client lingers", linger: 100 * time.Millisecond}, // longer than a turn
		{name: "diaspora.Handler, while the client sends"},
		{name: "the same, until all is acknowledged", wait: true},
	}
	var contenders []measure.Contender
	for _, s := range loggers {
		if s.to == nil {
			cfg.Linger = s.linger
			logger, err := diaspora.OpenLogger(ctx, cfg)
			if err != nil {
				return "", err
			}
			defer logger.Close(ctx)
			handler := diaspora.NewHandler(logger, &diaspora.HandlerOptions{Topic: topic})
			s.to, s.flush = handler, func() error {
				err := logger.Flush(ctx)
				if lost := handler.Lost(); err == nil && lost > 0 {
					err = fmt.Errorf("%d records were lost", lost)
				}
				return err
			}
		}
		contenders = append(contenders, measure.Contender{Name: s.name, Run: s.log})
	}
	rates, err := measure.TakeTurns(contenders, b.Rounds, min(handlerRecords, b.Scaled(handlerRecords)))
	if err != nil {
		return "", err
	}
	rows := [][]string{{"handler", "µs a record, median (min–max)", "allocations a record", "time, ratio to the first"}}
	for i, s := range loggers {
		micros := make([]float64, len(rates[i]))
		for j, rate := range rates[i] {
			micros[j] = 1e6 / rate
		}
		rows = append(rows, []string{s.name, measure.Spread(micros), fmt.Sprintf("%.2f", float64(s.mallocs)/float64(s.records)), measure.Spread(measure.Ratios(rates[0], rates[i]))})
	}
	return "## Logging through slog\n\nA record of a message and five attributes, `slog.Logger.LogAttrs`, one goroutine; the fabric is a process of its own.\n" +
		"Goal: at most 3 µs and 5 allocations. The time is that of the caller: alone, with the Kafka client compressing and\n" +
		"the broker storing on the same cores, and until all is acknowledged. Allocations are all of the process until\n" +
		"then, those of the Kafka client included.\n\n" + measure.Table(rows), nil
}

// slogger is a handler to measure.
type slogger struct {
	name   string
	linger time.Duration // of its Logger
	wait   bool          // whether the measured time includes the flush
	to     slog.Handler
	flush  func() error

	records, mallocs uint64
}

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
