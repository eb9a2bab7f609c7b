// Command peers compares our Logger and Consumer with other Kafka clients. All handle the same
// events with the same one-node Apache Kafka, produce with acks=all, and take turns in one run.
//
//	go run ./bench/peers    # or: make bench-peers; takes some minutes
//
// It starts an Apache Kafka of its own (which needs Java 17 and Maven), puts a fabric in front of
// it, and installs the Python clients (which needs python3) from the lock files of interop/clients.
// It writes a table and a plot to bench/results/.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"

	"github.com/diaspora-streams/diaspora/bench/measure"
)

func main() {
	p := &measure.Program{Name: "peers", Rounds: 5}
	goOnly := flag.Bool("go", false, "franz-go and ours only, through the gateway only, for profiles")
	profile := flag.String("cpuprofile", "", "write a CPU profile of this process, gateway and Go clients, to `FILE`")
	p.Main(func(ctx context.Context) error {
		stop, err := measure.CPUProfile(*profile)
		if err != nil {
			return err
		}
		defer stop()
		return p.Report(ctx, "", []measure.Part{{Name: "peers", Run: func(ctx context.Context) (section string, err error) {
			s, err := openSite(ctx, p.Dir)
			if err != nil {
				return "", err
			}
			defer func() { err = errors.Join(err, s.close()) }()
			results, err := s.measureAll(ctx, p, *goOnly)
			if err != nil {
				return "", err
			}
			return report(results, p.FileName(".svg")), p.Write(".svg", plot(results))
		}}})
	})
}

// discipline is a task for the contenders.
type discipline struct {
	what string // produced or consumed
	way  string // through the gateway, or around it
	size int    // of an event, in bytes
}

// topic returns the topic that the contenders produce to or consume from.
func (d discipline) topic() string { return fmt.Sprintf("peers_%s_%d", d.what, d.size) }

// result holds the results of the contenders in one discipline.
type result struct {
	discipline
	names []string
	rates [][]float64 // by contender and round
}

const (
	produced, consumed = "produced", "consumed"
	gateway, direct    = "gateway", "no gateway"
)

// measureAll runs all disciplines.
func (s *site) measureAll(ctx context.Context, p *measure.Program, goOnly bool) (results []result, err error) {
	for _, load := range []struct{ size, produce, consume int }{{100, 1_200_000, 4_000_000}, {1024, 400_000, 1_000_000}} {
		n := map[string]int{produced: max(kafkaPythonShare, p.Scaled(load.produce)), consumed: max(kafkaPythonShare, p.Scaled(load.consume))}
		if err := s.fill(ctx, load.size, n[consumed]); err != nil {
			return nil, err
		}
		ways := []string{gateway, direct}
		if goOnly {
			ways = ways[:1]
		}
		for _, way := range ways {
			for _, what := range []string{produced, consumed} {
				fmt.Fprintf(os.Stderr, "peers: %s, %s, %d B\n", what, way, load.size)
				contenders, done, err := s.contenders(ctx, discipline{what, way, load.size}, goOnly)
				if err == nil {
					r := result{discipline: discipline{what, way, load.size}}
					for _, c := range contenders {
						r.names = append(r.names, c.Name)
					}
					r.rates, err = measure.TakeTurns(contenders, p.Rounds, n[what])
					results = append(results, r)
				}
				if err = errors.Join(err, done()); err != nil {
					return nil, fmt.Errorf("%s, %s, %d B: %w", what, way, load.size, err)
				}
			}
		}
	}
	return results, nil
}

// goals are the target ratios of our rate to that of each other client, through the gateway.
var goals = map[string]float64{plainName: 0.95, headedName: 1, confluentName: 1, javaName: 1, kafkaPythonName: 30}

func report(results []result, plotFile string) string {
	rows := [][]string{{"", "way", "event", "client", "events/s, median", "MB/s", "ratio to franz-go, median (min–max)", "ours to it", "goal"}}
	missed := 0
	for _, r := range results {
		for i, name := range r.names {
			rate := measure.Median(r.rates[i])
			row := []string{r.what, r.way, fmt.Sprintf("%d B", r.size), name, fmt.Sprintf("%.0f", rate), fmt.Sprintf("%.1f", rate*float64(r.size)/1e6),
				measure.Spread(measure.Ratios(r.rates[i], r.rates[0])), "", ""}
			if goal, has := goals[name]; has && r.way == gateway {
				ratio := measure.Median(measure.Ratios(r.rates[1], r.rates[i]))
				row[7], row[8] = fmt.Sprintf("%.2f", ratio), fmt.Sprintf("%g", goal)
				if ratio < goal {
					row[8] += ", missed"
					missed++
				}
			}
			rows = append(rows, row)
		}
	}
	verdict := "Every goal was reached."
	if missed > 0 {
		verdict = fmt.Sprintf("%d goals were missed.", missed)
	}
	return "## Peers\n\n" + strings.TrimSpace(fmt.Sprintf(`
Apache Kafka 4.3 of one node, six partitions, the same events for all, half of each incompressible. acks=all; idempotent; batches
of up to 1 MB; 10 ms of linger; snappy, but for kafka-python, which cannot without a further package, and for the events that are consumed. All sign in with the same access key,
without the gateway with the super user's password; our Logger and Consumer with a token, which nothing but the gateway takes. A turn
ends when all is acknowledged, or read from the start by a client that was opened for it. Producers live through all turns, but for the Java tool, which is
a new process each time and warms up with a third as many events. That the Java tools start and connect is not counted. %s clients do a %dth of
the events, and what %s's consumer is given is a %dth. Go clients and gateway are one process.`, kafkaPythonName, kafkaPythonShare, confluentName, confluentShare)) + "\n\n" + verdict + "\n\n![events per second](" + plotFile + ")\n\n" + measure.Table(rows)
}
