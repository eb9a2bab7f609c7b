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
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/diaspora-streams/diaspora/bench/measure"
)

// A part measures one thing and returns the section of the report about it.
type part struct {
	name string
	run  func(context.Context, *bench) (string, error)
}

var parts = []part{
	{"throughput", benchThroughput},
	{"log", benchLog},
	{"topics", benchTopics},
	{"connections", benchConnections},
	{"start", benchStart},
	{"batches", benchBatches},
	{"groups", benchGroups},
	{"producers", benchProducers},
}

// bench holds what all parts need.
type bench struct {
	dir      string // contains the homes, which the parts create and remove
	builds   []build
	kafka    bool
	rounds   int
	scale    float64 // factor on the amounts
	patience time.Duration
}

// build is one build of the diaspora command.
type build struct{ name, path string }

// The names of the two builds in the tables.
const (
	other = "the other"
	ours  = "this"
)

// scaled returns n times the scale, and at least 1. Trial runs use a small scale.
func (b *bench) scaled(n int) int { return max(1, int(float64(n)*b.scale)) }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "engines:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	var b bench
	path := flag.String("other", "", "binary of the other build; without it, only this one is measured")
	only := flag.String("only", "", "measure only these `PARTS`, with commas between")
	out := flag.String("out", "bench/results", "folder for the report; empty: print only")
	data := flag.String("data", "", "folder for the data (default: the system's for temporary files)")
	flag.BoolVar(&b.kafka, "kafka", false, "measure an Apache Kafka of one node as well, in the parts throughput and log")
	flag.IntVar(&b.rounds, "rounds", 9, "turns of each engine")
	flag.Float64Var(&b.scale, "scale", 1, "factor on the amounts")
	flag.DurationVar(&b.patience, "patience", 20*time.Second, "limit for what an engine does too slowly to finish")
	flag.Parse()

	if b.dir, err = os.MkdirTemp(*data, "diaspora-engines-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	if *path != "" {
		b.builds = append(b.builds, build{other, *path})
	}
	built, err := measure.BuildBinary(ctx, b.dir)
	if err != nil {
		return err
	}
	b.builds = append(b.builds, build{ours, built})

	report := measure.Header("./bench/engines", b.rounds)
	report += "\n`" + other + "` is the engine of the build that is given, `" + ours + "` is that of the working tree. Ratios are of `" + ours + "` to `" + other + "`, median (min–max) of the rounds.\n"
	for _, p := range parts {
		if *only != "" && !slices.Contains(strings.Split(*only, ","), p.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "engines: %s\n", p.name)
		section, err := p.run(ctx, &b)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		report += "\n" + section
	}
	fmt.Print(report)
	if *out == "" {
		return nil
	}
	name := time.Now().UTC().Format("2006-01-02") + "-engines"
	if *only != "" {
		name += "-" + strings.ReplaceAll(*only, ",", "-")
	}
	return os.WriteFile(filepath.Join(*out, name+".md"), []byte(report), 0o644)
}
