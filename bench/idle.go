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

// benchIdle measures "diaspora up" from outside: how soon it is ready, how much memory it uses when
// idle, and how much 1,000 signed-in connections add.
func benchIdle(ctx context.Context, opts options) (string, error) {
	dir, err := os.MkdirTemp("", "diaspora-bench-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	binary, err := measure.BuildBinary(ctx, dir)
	if err != nil {
		return "", err
	}
	size, err := os.Stat(binary)
	if err != nil {
		return "", err
	}

	var first, again []time.Duration
	for i := range opts.rounds {
		home := filepath.Join(dir, strconv.Itoa(i))
		for _, into := range []*[]time.Duration{&first, &again} {
			up, err := measure.StartUp(ctx, binary, home)
			if err != nil {
				return "", err
			}
			*into = append(*into, up.Ready)
			if err := up.Stop(); err != nil {
				return "", err
			}
		}
	}

	up, err := measure.StartUp(ctx, binary, filepath.Join(dir, "0"))
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
	closeAll, err := connect(ctx, cfg, idleConnections)
	if err != nil {
		return "", err
	}
	defer closeAll()
	full, err := up.SettledRSS(ctx)
	if err != nil {
		return "", err
	}

	rows := [][]string{
		{"what", "goal", "measured"},
		{"ready, first start (keys are made)", "500 ms", fmt.Sprintf("%d ms median, %d ms worst", measure.Median(first).Milliseconds(), measure.Quantile(first, 1).Milliseconds())},
		{"ready, later start", "500 ms", fmt.Sprintf("%d ms median, %d ms worst", measure.Median(again).Milliseconds(), measure.Quantile(again, 1).Milliseconds())},
		{"resident memory, idle", "64 MB", fmt.Sprintf("%.1f MB", float64(idle)/1e6)},
		{fmt.Sprintf("added by each of %d idle connections", idleConnections), "64 KiB", fmt.Sprintf("%.1f KiB", float64(full-idle)/idleConnections/1024)},
		{"binary, stripped", "25 MB", fmt.Sprintf("%.1f MB", float64(size.Size())/1e6)},
	}
	return "## `diaspora up` at rest\n\nA process of its own with its data on disk, seen from outside: ready is from exec to its first line on stdout;\n" +
		"memory is VmRSS once it no longer changes.\n\n" + measure.Table(rows), nil
}

// connect opens n signed-in connections that stay idle.
func connect(ctx context.Context, cfg diaspora.Config, n int) (closeAll func(), err error) {
	var clients []*kgo.Client
	closeAll = func() {
		for _, client := range clients {
			client.Close()
		}
	}
	for range n {
		client, err := diaspora.Dial(ctx, cfg, kgo.ConnIdleTimeout(10*time.Minute))
		if err != nil {
			closeAll()
			return nil, err
		}
		clients = append(clients, client)
	}
	return closeAll, nil
}
