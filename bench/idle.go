package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/bench/measure"
)

const idleConnections = 1000

// benchIdle measures `diaspora up` from outside: how soon it is ready, what it
// holds when idle, and what 1,000 signed-in connections add to that.
func benchIdle(ctx context.Context, opts options) (string, error) {
	dir, err := os.MkdirTemp("", "diaspora-bench-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	binary, err := buildBinary(ctx, dir)
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
			up, err := startUp(ctx, binary, home)
			if err != nil {
				return "", err
			}
			*into = append(*into, up.ready)
			if err := up.stop(); err != nil {
				return "", err
			}
		}
	}

	up, err := startUp(ctx, binary, filepath.Join(dir, "0"))
	if err != nil {
		return "", err
	}
	defer up.stop()
	idle, err := up.settledRSS(ctx)
	if err != nil {
		return "", err
	}
	closeAll, err := up.connect(ctx, idleConnections)
	if err != nil {
		return "", err
	}
	defer closeAll()
	full, err := up.settledRSS(ctx)
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

// buildBinary builds the command, as it is shipped, into a folder.
func buildBinary(ctx context.Context, dir string) (string, error) {
	binary := filepath.Join(dir, "diaspora")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, "./cmd/diaspora")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w: %s", err, out)
	}
	return binary, nil
}

// An upProcess is `diaspora up` in a home of its own.
type upProcess struct {
	cmd   *exec.Cmd
	home  string
	ready time.Duration
}

func startUp(ctx context.Context, binary, home string) (*upProcess, error) {
	if err := os.MkdirAll(home, 0o700); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, binary, "up", "-o", "json", "--kafka-port", "0", "--http-port", "0", "--globus-port", "0")
	cmd.Env = append(os.Environ(), "DIASPORA_CONFIG_DIR="+filepath.Join(home, "config"), "XDG_DATA_HOME="+filepath.Join(home, "data"))
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(stdout)
	if !lines.Scan() {
		return nil, fmt.Errorf("diaspora up: no line on stdout: %w", cmd.Wait())
	}
	up := &upProcess{cmd: cmd, home: home, ready: time.Since(start)}
	if !json.Valid(lines.Bytes()) {
		return nil, fmt.Errorf("diaspora up: %q is not JSON", lines.Text())
	}
	return up, nil
}

func (u *upProcess) stop() error {
	if u.cmd.ProcessState != nil {
		return nil
	}
	if err := u.cmd.Process.Signal(os.Interrupt); err != nil {
		return err
	}
	return u.cmd.Wait()
}

// config is that of the local profile.
func (u *upProcess) config() (diaspora.Config, error) {
	return diaspora.ConfigFromEnv(func(name string) string {
		if name == "DIASPORA_CONFIG_DIR" {
			return filepath.Join(u.home, "config")
		}
		return ""
	})
}

// connect opens n signed-in connections that stay idle.
func (u *upProcess) connect(ctx context.Context, n int) (closeAll func(), err error) {
	cfg, err := u.config()
	if err != nil {
		return nil, err
	}
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

// settledRSS waits until the resident memory has not changed by more than a
// hundredth for five seconds, and returns it in bytes.
func (u *upProcess) settledRSS(ctx context.Context) (int64, error) {
	var last int64
	for still := 0; still < 5; {
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(time.Second):
		}
		rss, err := u.rss()
		if err != nil {
			return 0, err
		}
		if diff := rss - last; diff > last/100 || -diff > last/100 {
			still = 0
			last = rss
			continue
		}
		still++
	}
	return last, nil
}

func (u *upProcess) rss() (int64, error) { return memoryOf(u.cmd.Process.Pid, "VmRSS") }

// memoryOf returns a figure of a process's memory, in bytes, as Linux tells it.
func memoryOf(pid int, figure string) (int64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, figure+":"); ok {
			kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("no %s of process %d", figure, pid)
}
