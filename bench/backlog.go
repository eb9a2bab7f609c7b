package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/bench/measure"
	"github.com/diaspora-streams/diaspora/internal/spool"
)

// backlogBytes is the size of the backlog in the spool, at a scale of 1.
const backlogBytes = 1 << 30

// backlog measures how fast a spool is emptied that has filled up during an outage. It uses
// "diaspora spool drain" and "diaspora up", two processes as they are shipped.
func (b bench) backlog(ctx context.Context) (string, error) {
	binary, up, cfg, err := b.startUp(ctx)
	if err != nil {
		return "", err
	}
	defer up.Stop()
	size := int64(backlogBytes * b.Scale)
	cfg.SpoolDir = filepath.Join(up.Home, "config", "state", "spool", "local", "1") // where the program keeps it
	cfg.SpoolBytes = 2 * size
	events, err := fillBacklog(ctx, cfg, size)
	if err != nil {
		return "", err
	}
	opened, err := openBacklog(ctx, cfg, events)
	if err != nil {
		return "", err
	}
	read, err := readBacklog(ctx, cfg, events)
	if err != nil {
		return "", err
	}
	d, err := drain(ctx, binary, up.Home)
	if err != nil {
		return "", err
	}
	if d.Acknowledged != events || d.Waiting != 0 {
		return "", fmt.Errorf("%d events were acknowledged and %d wait, of %d", d.Acknowledged, d.Waiting, events)
	}
	return fmt.Sprintf("## A backlog of %.1f GB\n\n%d events of 1 KiB wait in a spool. Then `diaspora spool drain` sends them to `diaspora up`, a process each on\nthe same cores and disk. The first twelve seconds are slow on purpose, because after an outage many programs may start to send at once.\n\n",
		float64(size)/1e9, events) + measure.Table([][]string{
		{"what", "goal", "measured"},
		{"OpenLogger", "1 s", opened.Round(time.Millisecond).String()},
		{"read from disk, not sent", "", fmt.Sprintf("%.0f events/s", float64(events)/read.Seconds())},
		{"drained, all acknowledged", "50,000 events/s", fmt.Sprintf("%.0f events/s (%v)", float64(events)/d.took.Seconds(), d.took.Round(time.Second))},
		{"resident memory, at most", "64 MB", measure.Megabytes(d.rss)},
	}), nil
}

func fillBacklog(ctx context.Context, cfg diaspora.Config, size int64) (events int64, err error) {
	s, err := spool.Open(ctx, spool.Options{Dir: cfg.SpoolDir, MaxBytes: cfg.SpoolBytes, Subject: cfg.Identity.Subject})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	values := measure.Payloads(1024)
	batch := make([]spool.Entry, 512)
	for s.Stats().Bytes < size {
		for i := range batch {
			batch[i] = spoolEntry(values[i])
			batch[i].ID = fmt.Sprintf("k3v9x0q2m7ta5h1c-%d", events)
			events++
		}
		if err := s.Append(ctx, batch...); err != nil {
			return 0, err
		}
	}
	return events, nil
}

// openBacklog returns how long it takes until a Logger accepts events.
func openBacklog(ctx context.Context, cfg diaspora.Config, events int64) (time.Duration, error) {
	cfg.URL, cfg.Brokers = "", []string{"127.0.0.1:1"} // unreachable, so that nothing is sent
	began := time.Now()
	l, err := diaspora.OpenLogger(ctx, cfg)
	if err != nil {
		return 0, err
	}
	took := time.Since(began)
	if got := l.Stats().Spool.Events; got != events {
		err = fmt.Errorf("%d events wait, want %d", got, events)
	}
	return took, errors.Join(err, closeNow(l))
}

// readBacklog returns how long it takes to read all events. It does not remove them.
func readBacklog(ctx context.Context, cfg diaspora.Config, events int64) (took time.Duration, err error) {
	s, err := spool.Open(ctx, spool.Options{Dir: cfg.SpoolDir, MaxBytes: cfg.SpoolBytes, Subject: cfg.Identity.Subject})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	began := time.Now()
	for n := int64(0); n < events; {
		records, err := s.Next(ctx, 4096, 800_000)
		if err != nil {
			return 0, err
		}
		n += int64(len(records))
	}
	return time.Since(began), nil
}

// drained is the result that "diaspora spool drain" reports, and what was measured about it.
type drained struct {
	Acknowledged, Waiting int64
	took                  time.Duration
	rss                   int64
}

func drain(ctx context.Context, binary, home string) (d drained, err error) {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, binary, "spool", "drain", "-o", "json", "--profile", "local")
	cmd.Env = append(os.Environ(), "DIASPORA_CONFIG_DIR="+filepath.Join(home, "config"))
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return d, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	look := time.NewTicker(100 * time.Millisecond)
	defer look.Stop()
	for {
		select {
		case err := <-ended:
			d.took = time.Since(began)
			if err != nil {
				return d, fmt.Errorf("diaspora spool drain: %w", err)
			}
			if d.rss == 0 {
				return d, errors.New("the memory of diaspora spool drain is unknown; this needs Linux")
			}
			return d, json.Unmarshal(out.Bytes(), &d)
		case <-look.C:
			if peak, err := measure.Memory(cmd.Process.Pid, "VmHWM"); err == nil { // on an error, the process has just ended, or this is not Linux
				d.rss = peak
			}
		}
	}
}
