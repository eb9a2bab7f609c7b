package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/bench/measure"
)

const idleConnections = 1000

// idle measures "diaspora up" from outside: how soon it is ready, how much memory it uses when idle,
// and how much 1,000 signed-in connections add.
func (b bench) idle(ctx context.Context) (string, error) {
	binary, err := measure.BuildBinary(ctx, b.Dir)
	if err != nil {
		return "", err
	}
	file, err := os.Stat(binary)
	if err != nil {
		return "", err
	}
	var first, again []time.Duration
	for i := range b.Rounds {
		for _, into := range []*[]time.Duration{&first, &again} {
			up, err := measure.StartUp(ctx, binary, filepath.Join(b.Dir, strconv.Itoa(i)))
			if err != nil {
				return "", err
			}
			*into = append(*into, up.Ready)
			if err := up.Stop(); err != nil {
				return "", err
			}
		}
	}
	up, err := measure.StartUp(ctx, binary, filepath.Join(b.Dir, "0"))
	if err != nil {
		return "", err
	}
	defer up.Stop()
	idle, err := up.SettledRSS(ctx)
	if err != nil {
		return "", err
	}
	cfg, err := up.Config()
	if err != nil {
		return "", err
	}
	for range idleConnections {
		client, err := diaspora.Dial(ctx, cfg, kgo.ConnIdleTimeout(10*time.Minute))
		if err != nil {
			return "", err
		}
		defer client.Close()
	}
	full, err := up.SettledRSS(ctx)
	if err != nil {
		return "", err
	}
	ready := func(all []time.Duration) string {
		return fmt.Sprintf("%d ms median, %d ms worst", measure.Median(all).Milliseconds(), measure.Quantile(all, 1).Milliseconds())
	}
	return "## `diaspora up` at rest\n\nA process of its own with its data on disk, seen from outside: ready is from exec to its first line on stdout;\n" +
		"memory is VmRSS once it no longer changes.\n\n" + measure.Table([][]string{
		{"what", "goal", "measured"},
		{"ready, first start (keys are made)", "500 ms", ready(first)},
		{"ready, later start", "500 ms", ready(again)},
		{"resident memory, idle", "64 MB", measure.Megabytes(idle)},
		{fmt.Sprintf("added by each of %d idle connections", idleConnections), "64 KiB", fmt.Sprintf("%.1f KiB", float64(full-idle)/idleConnections/1024)},
		{"binary, stripped", "25 MB", measure.Megabytes(file.Size())},
	}), nil
}
