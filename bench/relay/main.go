//go:build unix

// Command relay measures what the gateway costs as a relay in front of Apache Kafka. A plain franz-go
// client produces and consumes the same events through the gateway and through HAProxy, which both
// terminate TLS in front of the same broker, and through the gateway and past it without TLS.
//
//	go run ./bench/relay    # or: make bench-relay; takes some minutes
//
// It starts an Apache Kafka of its own (which needs Java 17 and Maven), and HAProxy. The gateway is a
// process of its own, so that its processor time and memory can be compared. It runs package gateway
// with the upstream of `diaspora serve`, but takes every token.
//
// Start reading at main; gateway.go has the gateway's process, and idle.go idle connections.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora/bench/measure"
)

// bench has the parts as methods.
type bench struct {
	*measure.Program
	profiles string // folder for CPU profiles of the gateway, or empty
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == gatewayArgument {
		if err := runGateway(); err != nil {
			fmt.Fprintln(os.Stderr, "relay: gateway:", err)
			os.Exit(1)
		}
		return
	}
	b := bench{Program: &measure.Program{Name: "relay", Rounds: 9}}
	flag.StringVar(&b.profiles, "profiles", "", "write CPU profiles of the gateway's processes to `FOLDER`")
	b.Main(func(ctx context.Context) error {
		return b.Report(ctx, intro, []measure.Part{
			{Name: "tls", Run: b.tls},
			{Name: "plain", Run: b.plain},
			{Name: "idle", Run: b.idle},
		})
	})
}

const intro = `
Each ratio is between turns of the same round. The interval holds the median with a confidence of 95%; with fewer than six rounds
it is the range. A goal is reached if the interval includes it.
`

// load is what is done in one turn.
type load struct{ size, produce, consume int }

var loads = []load{{100, 3_000_000, 5_000_000}, {1024, 400_000, 700_000}}

// tls compares the gateway with HAProxy in TCP mode. Both terminate TLS 1.3.
func (b bench) tls(ctx context.Context) (section string, err error) {
	s, err := openSite(ctx, b)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	gateway, err := s.startGateway(true)
	if err != nil {
		return "", err
	}
	haproxy, err := s.startHAProxy(ctx)
	if err != nil {
		return "", err
	}
	rows := [][]string{{"", "event", "through", "events/s", "ratio to HAProxy", "goal", "CPU s per GB", "ratio to HAProxy", "goal"}}
	err = b.each(ctx, s, []relay{haproxy, gateway}, func(what string, l load, rates, costs [][]float64) {
		for i, name := range []string{"HAProxy", "gateway"} {
			row := []string{what, fmt.Sprintf("%d B", l.size), name, measure.Rate(rates[i]), "", "", fmt.Sprintf("%.2f", measure.Median(costs[i])), "", ""}
			if i == 1 {
				row[4], row[5] = atLeast(1.0, measure.Ratios(rates[1], rates[0]))
				row[7], row[8] = atMost(1.3, measure.Ratios(costs[1], costs[0]))
			}
			rows = append(rows, row)
		}
	})
	return "## With TLS to the client\n\nThe gateway next to HAProxy in TCP mode, both with TLS 1.3, TLS_AES_128_GCM_SHA256 and an ECDSA certificate. " +
		"A GB is one of events.\n\n" + measure.Table(rows), err
}

// plain compares a client that consumes through the gateway with the same client past it.
func (b bench) plain(ctx context.Context) (section string, err error) {
	s, err := openSite(ctx, b)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	gateway, err := s.startGateway(false)
	if err != nil {
		return "", err
	}
	goals := map[string]float64{"consumed 100": 0.9, "consumed 1024": 0.75}
	rows := [][]string{{"", "event", "through", "events/s", "ratio", "goal", "CPU s of the gateway per GB"}}
	err = b.each(ctx, s, []relay{s.past(), gateway}, func(what string, l load, rates, costs [][]float64) {
		ratio, verdict := atLeast(goals[fmt.Sprint(what, " ", l.size)], measure.Ratios(rates[1], rates[0]))
		if what == produced {
			verdict = ""
		}
		rows = append(rows,
			[]string{what, fmt.Sprintf("%d B", l.size), "no gateway", measure.Rate(rates[0]), "", "", ""},
			[]string{what, fmt.Sprintf("%d B", l.size), "gateway", measure.Rate(rates[1]), ratio, verdict, fmt.Sprintf("%.2f", measure.Median(costs[1]))})
	})
	return "## Without TLS\n\nThe same client through the gateway, and at the broker without it, over loopback. The events are not compressed.\n\n" + measure.Table(rows), err
}

const (
	produced = "produced"
	consumed = "consumed"
)

// each has the client produce and consume events of each size through the relays, in turns. It
// reports the events per second, and the relays' processor time in seconds per GB of events.
func (b bench) each(ctx context.Context, s *site, relays []relay, report func(what string, l load, rates, costs [][]float64)) error {
	for _, l := range loads {
		n := map[string]int{produced: b.Scaled(l.produce), consumed: b.Scaled(l.consume)}
		if err := s.fill(ctx, l.size, n[consumed]); err != nil {
			return err
		}
		for _, what := range []string{produced, consumed} {
			fmt.Fprintf(os.Stderr, "relay: %s, %d B\n", what, l.size)
			var contenders []measure.Contender
			costs := make([][]float64, len(relays))
			for i, r := range relays {
				run := measure.Consume(ctx, []string{topic(consumed, l.size)}, r.opts...)
				if what == produced {
					client, err := kgo.NewClient(append(r.opts, kgo.DefaultProduceTopic(topic(produced, l.size)), kgo.ProducerLinger(10*time.Millisecond),
						kgo.ProducerBatchCompression(kgo.NoCompression()))...)
					if err != nil {
						return err
					}
					defer client.Close()
					values := measure.Payloads(l.size)
					run = measure.Produce(ctx, client, func(i int) *kgo.Record { return &kgo.Record{Value: values[i%len(values)]} })
				}
				contenders = append(contenders, measure.Contender{Name: r.name, Run: func(n int) (time.Duration, error) {
					before, err := r.cpu()
					if err != nil {
						return 0, err
					}
					took, err := run(n)
					if err != nil {
						return 0, err
					}
					after, err := r.cpu()
					costs[i] = append(costs[i], (after-before).Seconds()/(float64(n*l.size)/1e9))
					return took, err
				}})
			}
			rates, err := measure.TakeTurns(contenders, b.Rounds, n[what])
			if err != nil {
				return fmt.Errorf("%s, %d B: %w", what, l.size, err)
			}
			for i := range costs {
				costs[i] = costs[i][1:] // without the round that warms up
			}
			report(what, l, rates, costs)
		}
	}
	return nil
}

// atLeast formats ratios, and whether they reach a goal from below.
func atLeast(goal float64, ratios []float64) (interval, verdict string) {
	low, median, high := measure.Interval(ratios)
	verdict = fmt.Sprintf("at least %g", goal)
	if high < goal {
		verdict += fmt.Sprintf(", missed by %.2f", goal-median)
	}
	return fmt.Sprintf("%.2f (%.2f–%.2f)", median, low, high), verdict
}

// atMost formats ratios, and whether they stay below a limit.
func atMost(goal float64, ratios []float64) (interval, verdict string) {
	low, median, high := measure.Interval(ratios)
	verdict = fmt.Sprintf("at most %g", goal)
	if low > goal {
		verdict += fmt.Sprintf(", missed by %.2f", median-goal)
	}
	return fmt.Sprintf("%.2f (%.2f–%.2f)", median, low, high), verdict
}
