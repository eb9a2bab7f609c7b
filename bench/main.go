// Command bench measures what the README and DESIGN.md promise. Each figure is compared with a
// floor or a similar program in the same run. It writes a table to bench/results/.
//
//	go run ./bench               # all of it, some minutes
//	go run ./bench -check        # repeats the short parts, and prints which ratios are worse than in the newest report
//	go run ./bench -only send    # one part: send, link, open, compression, log, spool, backlog, handler, gateway, idle, storm, shell
//
// The machine also runs the broker, the client and whatever else it is used for. So the contenders
// take turns in rounds, in alternating order. The figure is the median of the rounds. The ratios
// are more reliable than the figures.
//
// Start reading at main in this file; each part is in a file of its own.
package main

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/bench/measure"
	"github.com/diaspora-streams/diaspora/fabric"
)

// bench has the parts as methods.
type bench struct{ *measure.Program }

func main() {
	b := bench{&measure.Program{Name: "bench", Rounds: 7}}
	b.Main(func(ctx context.Context) error {
		return b.Report(ctx, "", []measure.Part{
			{Name: "send", Run: b.send, Short: true},
			{Name: "link", Run: b.link, Short: true},
			{Name: "open", Run: b.open, Short: true},
			{Name: "compression", Run: b.compression},
			{Name: "log", Run: b.log},
			{Name: "spool", Run: b.spool, Short: true},
			{Name: "backlog", Run: b.backlog},
			{Name: "handler", Run: b.handler},
			{Name: "gateway", Run: b.gateway},
			{Name: "idle", Run: b.idle},
			{Name: "storm", Run: b.storm},
			{Name: "shell", Run: b.shell},
		})
	})
}

const (
	user       = "ada@example.edu"
	topic      = "bench"
	partitions = 6
)

// onDisk starts a fabric on disk, claims the topics, and returns the configuration of a user.
func (b bench) onDisk(ctx context.Context, partitions int, topics ...string) (cfg diaspora.Config, f *fabric.Fabric, err error) {
	return b.start(ctx, fabric.Config{}, partitions, topics...)
}

// start is like onDisk, with a configuration of the fabric.
func (b bench) start(ctx context.Context, config fabric.Config, partitions int, topics ...string) (cfg diaspora.Config, f *fabric.Fabric, err error) {
	config.Dir = filepath.Join(b.Dir, "fabric")
	f, err = fabric.Start(ctx, config)
	if err != nil {
		return cfg, nil, err
	}
	cfg, err = f.As(ctx, user)
	if err == nil {
		err = measure.Claim(ctx, cfg, partitions, topics...)
	}
	if err != nil {
		f.Close()
	}
	return cfg, f, err
}

// startUp builds the binary, starts `diaspora up` and claims the topic.
func (b bench) startUp(ctx context.Context) (binary string, up *measure.Up, cfg diaspora.Config, err error) {
	if binary, err = measure.BuildBinary(ctx, b.Dir); err != nil {
		return "", nil, cfg, err
	}
	if up, err = measure.StartUp(ctx, binary, filepath.Join(b.Dir, "home")); err != nil {
		return "", nil, cfg, err
	}
	if cfg, err = up.Config(); err == nil {
		err = measure.Claim(ctx, cfg, partitions, topic)
	}
	if err != nil {
		up.Stop()
	}
	return binary, up, cfg, err
}

// size formats the size of events.
func size(bytes int) string { return fmt.Sprintf("%d B", bytes) }
