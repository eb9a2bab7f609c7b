package main

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/bench/measure"
	"github.com/diaspora-streams/diaspora/internal/faultnet"
)

// openDelay is the latency of the link in each direction. Over a long link, opening costs about as
// much time as it makes requests that have to wait for each other.
const openDelay = 50 * time.Millisecond

// open compares what a program does first over a long link: it opens a client and reads a topic, or
// logs its first event.
func (b bench) open(ctx context.Context) (string, error) {
	cfg, proxy, stop, err := b.farAway(ctx)
	if err != nil {
		return "", err
	}
	defer stop()
	client, err := plain(ctx, cfg)
	if err != nil {
		return "", err
	}
	defer client.Close()
	n, values := b.Scaled(50_000), measure.Payloads(1024)
	if _, err := measure.Produce(ctx, client, func(i int) *kgo.Record { return &kgo.Record{Value: values[i%len(values)]} })(n); err != nil {
		return "", err
	}
	proxy.Set(faultnet.Link{Delay: openDelay})

	sections := []struct {
		what       string
		n          int
		contenders []measure.Contender
	}{
		{"read the topic", n, []measure.Contender{
			{Name: "franz-go", Run: measure.Consume(ctx, []string{topic}, measure.Opts(cfg)...)},
			{Name: "diaspora Consumer", Run: measure.Read(ctx, cfg, func() diaspora.ConsumerOptions { return diaspora.ConsumerOptions{Topics: []string{topic}} })},
		}},
		{"read the topic in a new group", n, []measure.Contender{
			{Name: "franz-go", Run: consumeInGroup(ctx, cfg)},
			{Name: "diaspora Consumer", Run: measure.Read(ctx, cfg, func() diaspora.ConsumerOptions {
				return diaspora.ConsumerOptions{Topics: []string{topic}, Group: newGroup()}
			})},
		}},
		{"first event of an open client", 1, []measure.Contender{
			{Name: "franz-go ProduceSync", Run: firstProduced(ctx, cfg, values[0])},
			{Name: "diaspora Logger.Log", Run: firstLogged(ctx, cfg, values[0])},
		}},
	}
	rows := [][]string{{"what", "client", "time, median", "ratio to franz-go's speed, median (min–max)"}}
	for _, s := range sections {
		rates, err := measure.TakeTurns(s.contenders, b.Rounds, s.n)
		if err != nil {
			return "", fmt.Errorf("%s: %w", s.what, err)
		}
		for i, c := range s.contenders {
			took := time.Duration(float64(s.n) / measure.Median(rates[i]) * float64(time.Second))
			rows = append(rows, []string{s.what, c.Name, took.Round(time.Millisecond).String(), measure.Spread(measure.Ratios(rates[i], rates[0]))})
		}
	}
	return fmt.Sprintf("## Opening over a long link\n\nOver a link with a latency of %v in each direction, through the gateway to the embedded broker, six partitions. Reading lasts\n"+
		"from opening a client to the last of %d records of 1 KiB. The first event is logged when the client has connected.\n"+
		"Goals: reading at least 0.95 of the plain client; the first event at least 0.91, that is in at most 1.1 times as long.\n\n",
		openDelay, n) + measure.Table(rows), nil
}

// newGroup returns the name of a group that has no offsets and no members.
func newGroup() string { return fmt.Sprintf("open-%d", time.Now().UnixNano()) }

// consumeInGroup returns a Run function that reads the topic with a plain client in a new group.
func consumeInGroup(ctx context.Context, cfg diaspora.Config) func(int) (time.Duration, error) {
	return func(n int) (time.Duration, error) {
		return measure.Consume(ctx, []string{topic}, append(measure.Opts(cfg), kgo.ConsumerGroup(newGroup()))...)(n)
	}
}

// firstProduced returns a Run function in which a plain client that has connected produces its first
// record.
func firstProduced(ctx context.Context, cfg diaspora.Config, value []byte) func(int) (time.Duration, error) {
	return func(int) (time.Duration, error) {
		client, err := plain(ctx, cfg)
		if err != nil {
			return 0, err
		}
		defer client.Close()
		start := time.Now()
		err = client.ProduceSync(ctx, &kgo.Record{Value: value}).FirstErr()
		return time.Since(start), err
	}
}

// firstLogged returns a Run function in which a Logger logs its first event.
func firstLogged(ctx context.Context, cfg diaspora.Config, value []byte) func(int) (time.Duration, error) {
	return func(int) (time.Duration, error) {
		logger, err := diaspora.OpenLogger(ctx, cfg)
		if err != nil {
			return 0, err
		}
		start := time.Now()
		err = logger.Log(ctx, diaspora.Event{Topic: topic, Value: value})
		took := time.Since(start)
		if closed := logger.Close(ctx); err == nil {
			err = closed
		}
		return took, err
	}
}
