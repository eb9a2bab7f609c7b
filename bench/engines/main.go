// Command engines compares the embedded engine of `diaspora up` with that of another build, and
// writes a table to bench/results/.
//
//	go run ./bench/engines -other /path/to/diaspora            # all of it
//	go run ./bench/engines -other /path/to/diaspora -kafka     # with an Apache Kafka of one node; needs Java and Maven
//	go run ./bench/engines -other /path/to/diaspora -only log  # one part
//
// Each engine runs in a process of its own. Their data are on the same disk, and they share the
// cores with the clients. The engines take turns in rounds, in alternating order. A ratio compares
// turns of the same round.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/diaspora-streams/diaspora/bench/measure"
)

// bench has the parts as methods, and what all of them need.
type bench struct {
	*measure.Program
	builds   []build
	kafka    bool
	patience time.Duration
}

// build is one build of the diaspora command.
type build struct{ name, path string }

// The names of the two builds in the tables.
const (
	other = "the other"
	ours  = "this"
)

func main() {
	b := bench{Program: &measure.Program{Name: "engines", Rounds: 9}}
	path := flag.String("other", "", "binary of the other build; without it, only this one is measured")
	flag.BoolVar(&b.kafka, "kafka", false, "measure an Apache Kafka of one node as well, in the parts throughput and log")
	flag.DurationVar(&b.patience, "patience", 20*time.Second, "limit for what an engine does too slowly to finish")
	b.Main(func(ctx context.Context) (err error) {
		dir, err := os.MkdirTemp("", "diaspora-engines-")
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
		if *path != "" {
			b.builds = append(b.builds, build{other, *path})
		}
		built, err := measure.BuildBinary(ctx, dir)
		if err != nil {
			return err
		}
		b.builds = append(b.builds, build{ours, built})
		intro := "\n`" + other + "` is the engine of the build that is given, `" + ours + "` is that of the working tree. Ratios are of `" + ours + "` to `" + other + "`, median (min–max) of the rounds.\n"
		return b.Report(ctx, intro, []measure.Part{
			{Name: "throughput", Run: b.throughput},
			{Name: "log", Run: b.log},
			{Name: "topics", Run: b.topics},
			{Name: "connections", Run: b.connections},
			{Name: "start", Run: b.start},
			{Name: "batches", Run: b.batches},
			{Name: "groups", Run: b.groups},
			{Name: "producers", Run: b.producers},
		})
	})
}

// inTurn measures one build after the other, each with empty data. It returns the rows of a table.
func (b *bench) inTurn(ctx context.Context, header []string, run func(*site) ([][]string, error)) (rows [][]string, err error) {
	rows = [][]string{header}
	for _, of := range b.builds {
		s, err := b.open(ctx, of)
		if err != nil {
			return nil, err
		}
		more, err := run(s)
		if err := errors.Join(err, s.close()); err != nil {
			return nil, fmt.Errorf("%s: %w", of.name, err)
		}
		rows = append(rows, more...)
	}
	return rows, nil
}

// together starts all builds, for measurements that take turns, and an Apache Kafka if kafka is true.
func (b *bench) together(ctx context.Context, kafka bool, args ...string) (sites []*site, closeAll func() error, err error) {
	closeAll = func() (err error) {
		for _, s := range sites {
			err = errors.Join(err, s.close())
		}
		return err
	}
	for _, of := range b.builds {
		s, err := b.open(ctx, of, args...)
		if err != nil {
			return nil, nil, errors.Join(err, closeAll())
		}
		sites = append(sites, s)
	}
	if kafka {
		s, err := openKafka(ctx, filepath.Join(b.Dir, "kafka"))
		if err != nil {
			return nil, nil, errors.Join(err, closeAll())
		}
		sites = append(sites, s)
	}
	return sites, closeAll, nil
}
