package measure

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/diaspora-streams/diaspora"
)

// BuildBinary builds the diaspora command into dir, with the flags of a release.
func BuildBinary(ctx context.Context, dir string) (string, error) {
	binary := filepath.Join(dir, "diaspora")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, "./cmd/diaspora")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w: %s", err, out)
	}
	return binary, nil
}

// KafkaCluster runs a command of deploy/kafka/cluster on an Apache Kafka whose files are in dir. It
// returns what the command prints to stdout.
func KafkaCluster(dir string, args ...string) (string, error) {
	const script = "deploy/kafka/cluster"
	cmd := exec.Command(script, args...)
	cmd.Env = append(os.Environ(), "KAFKA_DIR="+dir, "CI=true") // it does not ask
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", script, args[0], err, stderr.String())
	}
	return string(out), nil
}

// An Up is a process of `diaspora up`. It has a home of its own for its configuration and data, and
// listens on free ports.
type Up struct {
	Home  string
	Ready time.Duration // from exec to the first line on stdout

	cmd *exec.Cmd
}

// StartUp starts the binary, with additional arguments if any are given. It returns once the
// process is ready.
func StartUp(ctx context.Context, binary, home string, args ...string) (*Up, error) {
	if err := os.MkdirAll(home, 0o700); err != nil {
		return nil, err
	}
	args = append([]string{"up", "-o", "json", "--kafka-port", "0", "--http-port", "0", "--globus-port", "0"}, args...)
	cmd := exec.CommandContext(ctx, binary, args...)
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
	up := &Up{cmd: cmd, Home: home, Ready: time.Since(start)}
	if !json.Valid(lines.Bytes()) {
		return nil, fmt.Errorf("diaspora up: %q is not JSON", lines.Text())
	}
	return up, nil
}

// Stop stops the process cleanly. It may be called more than once.
func (u *Up) Stop() error {
	if u.cmd.ProcessState != nil {
		return nil
	}
	if err := u.cmd.Process.Signal(os.Interrupt); err != nil {
		return err
	}
	return u.cmd.Wait()
}

// Kill ends the process at once, like kill -9.
func (u *Up) Kill() error {
	if err := u.cmd.Process.Kill(); err != nil {
		return err
	}
	var killed *exec.ExitError
	if err := u.cmd.Wait(); !errors.As(err, &killed) {
		return fmt.Errorf("kill diaspora up: %w", err)
	}
	return nil
}

// Config returns the configuration of the local profile.
func (u *Up) Config() (diaspora.Config, error) {
	return diaspora.ConfigFromEnv(func(name string) string {
		if name == "DIASPORA_CONFIG_DIR" {
			return filepath.Join(u.Home, "config")
		}
		return ""
	})
}

// SettledRSS returns the resident memory of the process; see [SettledRSS].
func (u *Up) SettledRSS(ctx context.Context) (int64, error) {
	return SettledRSS(ctx, u.cmd.Process.Pid)
}

// SettledRSS waits until the resident memory of a process has changed by no more than 1% for five
// seconds, and returns it in bytes.
func SettledRSS(ctx context.Context, pid int) (int64, error) {
	var last int64
	for still := 0; still < 5; {
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(time.Second):
		}
		rss, err := Memory(pid, "VmRSS")
		if err != nil {
			return 0, err
		}
		if diff := rss - last; diff > last/100 || -diff > last/100 {
			still, last = 0, rss
			continue
		}
		still++
	}
	return last, nil
}

// Memory returns a figure about the memory of the process; see [Memory].
func (u *Up) Memory(figure string) (int64, error) { return Memory(u.cmd.Process.Pid, figure) }

// Memory returns a figure about the memory of a process in bytes. The figure is named as in
// /proc/PID/status, for example VmRSS.
func Memory(pid int, figure string) (int64, error) {
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

// CPU returns the processor time that the process has used; see [CPU].
func (u *Up) CPU() (time.Duration, error) { return CPU(u.cmd.Process.Pid) }

// CPU returns the processor time that a process has used, from /proc/PID/stat.
func CPU(pid int) (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The program's name is in parentheses and may contain spaces.
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	var ticks int64
	for _, field := range fields[11:13] { // utime and stime
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	const perSecond = 100 // USER_HZ, the same on all Linux architectures that matter here
	return time.Duration(ticks) * time.Second / perSecond, nil
}
