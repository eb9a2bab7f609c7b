package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/bench/measure"
)

// layout is how the records are spread over topics and partitions.
type layout struct {
	topics, partitions int
	plain, sync        float64 // factors on the number of events, so that a turn takes about a second
}

var (
	layouts = []layout{{1, 1, 1, 0.2}, {1, 100, 1, 0.02}, {10, 100, 0.5, 0.01}}
	loads   = []struct{ size, n int }{{100, 1_000_000}, {1024, 300_000}}
)

// mode is a way of starting the engine.
type mode struct {
	name string
	args []string
}

var modes = []mode{{"plain", nil}, {"--sync", []string{"--sync"}}}

func (m mode) sync() bool { return m.args != nil }

// throughput compares how fast the engines take and return events.
func (b *bench) throughput(ctx context.Context) (string, error) {
	rows := [][]string{{"", "partitions", "event", "engine", "produced/s", "ratio", "CPU ratio", "consumed/s", "ratio", "CPU ratio"}}
	for _, mode := range modes {
		for _, l := range layouts {
			more, err := b.throughputOf(ctx, l, mode)
			if err != nil {
				return "", fmt.Errorf("%s, %d partitions: %w", mode.name, l.topics*l.partitions, err)
			}
			rows = append(rows, more...)
		}
	}
	return "## Throughput\n\nA plain franz-go client, idempotent, acks=all, snappy, until all events are acknowledged. Events go to all partitions in turn, so\n" +
		"that a request has batches of many. Then clients read as many from the start; that does not depend on `--sync`. Goal: at least 1.0. The CPU ratio\n" +
		"is of the processor time of the engine's process, where less is better.\n\n" + measure.Table(rows), nil
}

func (b *bench) throughputOf(ctx context.Context, l layout, mode mode) (rows [][]string, err error) {
	sites, closeAll, err := b.together(ctx, b.kafka && !mode.sync(), mode.args...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closeAll()) }()
	for _, load := range loads {
		topics := names(fmt.Sprintf("bytes%d", load.size), l.topics)
		produced, consumed := make([]metered, len(sites)), make([]metered, len(sites))
		for i, s := range sites {
			if err := measure.Claim(ctx, s.cfg, l.partitions, topics...); err != nil {
				return nil, err
			}
			client, err := measure.Dial(ctx, s.cfg, kgo.RecordPartitioner(kgo.RoundRobinPartitioner()))
			if err != nil {
				return nil, err
			}
			defer client.Close()
			values := measure.Payloads(load.size)
			produced[i] = metered{site: s, run: measure.Produce(ctx, client, func(i int) *kgo.Record {
				return &kgo.Record{Topic: topics[i%len(topics)], Value: values[i%len(values)]}
			})}
			consumed[i] = metered{site: s, run: measure.Consume(ctx, topics, client.Opts()...)}
		}
		factor, turns := l.plain, [][]metered{produced, consumed}
		if mode.sync() {
			factor, turns = l.sync, turns[:1]
		}
		for _, all := range turns {
			if err := b.takeTurns(all, b.Scaled(int(float64(load.n)*factor))); err != nil {
				return nil, err
			}
		}
		for i, s := range sites {
			row := []string{mode.name, fmt.Sprint(l.topics * l.partitions), fmt.Sprintf("%d B", load.size), s.name}
			for _, all := range turns {
				row = append(row, measure.Rate(all[i].rates),
					measure.Spread(measure.Ratios(all[i].rates, all[0].rates)), all[i].cpuRatio(all[0]))
			}
			rows = append(rows, append(row, "", "", "")[:10])
		}
	}
	return rows, nil
}

// metered is a contender whose engine's processor time is measured as well.
type metered struct {
	site  *site
	run   func(n int) (time.Duration, error)
	rates []float64
	cpu   time.Duration
}

func (b *bench) takeTurns(all []metered, n int) error {
	contenders := make([]measure.Contender, len(all))
	for i := range all {
		m, warm := &all[i], false
		contenders[i] = measure.Contender{Name: m.site.name, Run: func(n int) (time.Duration, error) {
			before := m.site.cpu()
			took, err := m.run(n)
			if warm {
				m.cpu += m.site.cpu() - before
			}
			warm = true
			return took, err
		}}
	}
	rates, err := measure.TakeTurns(contenders, b.Rounds, n)
	for i := range rates {
		all[i].rates = rates[i]
	}
	return err
}

func (m *metered) cpuRatio(base metered) string {
	if m.cpu == 0 || base.cpu == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f", float64(m.cpu)/float64(base.cpu))
}

// cpu returns the processor time of the site's process, or 0 if it is unknown.
func (s *site) cpu() time.Duration {
	if s.up == nil {
		return 0
	}
	used, _ := s.up.CPU()
	return used
}

// log compares the latency of Log, one event at a time. The engines take turns with each call.
func (b *bench) log(ctx context.Context) (string, error) {
	rows := [][]string{{"", "engine", "p50", "p99", "ratio of p50", "ratio of p99"}}
	for _, mode := range modes {
		more, err := b.logLatency(ctx, mode)
		if err != nil {
			return "", fmt.Errorf("%s: %w", mode.name, err)
		}
		rows = append(rows, more...)
	}
	return "## Log\n\n`Logger.Log` of one event of 100 B at a time. Goal: at most 1.0.\n\n" + measure.Table(rows), nil
}

func (b *bench) logLatency(ctx context.Context, mode mode) (rows [][]string, err error) {
	sites, closeAll, err := b.together(ctx, b.kafka && !mode.sync(), mode.args...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closeAll()) }()
	var callers []measure.Caller
	for _, s := range sites {
		if err := measure.Claim(ctx, s.cfg, 1, "log"); err != nil {
			return nil, err
		}
		logger, err := diaspora.OpenLogger(ctx, s.cfg)
		if err != nil {
			return nil, err
		}
		defer logger.Close(ctx)
		callers = append(callers, measure.Caller{Name: s.name, Call: measure.Log(ctx, logger, "log")})
	}
	took, err := measure.Latencies(callers, b.Scaled(10_000))
	if err != nil {
		return nil, err
	}
	for i, s := range sites {
		row := append([]string{mode.name, s.name}, measure.Quantiles(took[i], 0.5, 0.99)...)
		for _, q := range []float64{0.5, 0.99} {
			row = append(row, fmt.Sprintf("%.2f", float64(measure.Quantile(took[i], q))/float64(measure.Quantile(took[0], q))))
		}
		rows = append(rows, row)
	}
	return rows, nil
}
