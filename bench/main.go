// Command bench measures what the README and DESIGN.md promise. Each figure is compared with a
// floor or a similar program in the same run. It writes a table to bench/results/.
//
//	go run ./bench               # all of it, some minutes
//	go run ./bench -only send    # one part: send, link, compression, log, spool, backlog, handler, gateway, idle, storm
//
// The machine also runs the broker, the client and whatever else it is used for. So the contenders
// take turns in rounds, in alternating order. The figure is the median of the rounds. The ratios
// are more reliable than the figures.
//
// Start reading at run in this file; each part is in a file of its own.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"github.com/diaspora-streams/diaspora/bench/measure"
)

// part measures one thing and returns its section of the report.
type part struct {
	name string
	run  func(context.Context, options) (string, error)
}

type options struct {
	rounds int     // number of turns of each contender
	scale  float64 // factor for the number of events in a turn
}

var parts = []part{
	{"send", benchSend},
	{"link", benchLink},
	{"compression", benchCompression},
	{"log", benchLog},
	{"spool", benchSpool},
	{"backlog", benchBacklog},
	{"handler", benchHandler},
	{"gateway", benchGateway},
	{"idle", benchIdle},
	{"storm", benchStorm},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	only := flag.String("only", "", "measure only this part")
	out := flag.String("out", "bench/results", "folder for the report; empty: print only")
	var opts options
	flag.IntVar(&opts.rounds, "rounds", 7, "turns of each contender")
	flag.Float64Var(&opts.scale, "scale", 1, "factor on the number of events in a turn")
	flag.Parse()

	report := measure.Header("./bench", opts.rounds)
	for _, p := range parts {
		if *only != "" && *only != p.name {
			continue
		}
		fmt.Fprintf(os.Stderr, "bench: %s\n", p.name)
		section, err := p.run(ctx, opts)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		report += "\n" + section
	}
	fmt.Print(report)
	if *out == "" {
		return nil
	}
	if err := os.MkdirAll(*out, 0o755); err != nil {
		return err
	}
	name := time.Now().UTC().Format("2006-01-02")
	if *only != "" {
		name += "-" + *only
	}
	return os.WriteFile(filepath.Join(*out, name+".md"), []byte(report), 0o644)
}
