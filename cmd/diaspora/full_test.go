package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestProduceSaysFull fills the spool of produce while the cluster is unreachable. produce must say that the
// spool is full, how much of the input is safe, and what to do. status must report it too.
func TestProduceSaysFull(t *testing.T) {
	d := newDesk(t)
	d.must(t, "topic", "claim", "weather")
	d.fabric.Close()
	cfg, err := d.env.config()
	testkit.Must(t, err)
	home, err := d.env.currentPool()
	testkit.Must(t, err)
	cfg.SpoolDir, cfg.SpoolBytes = filepath.Join(home.Dir, "1"), 64<<10
	logger, err := diaspora.OpenLogger(t.Context(), cfg)
	testkit.Must(t, err)
	parse, err := produceOptions{input: "lines"}.parser("weather")
	testkit.Must(t, err)
	p := &produceRun{env: d.env, topic: "weather", parse: parse, out: newLineWriter(d.env.stdout), spool: true, logger: logger}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		ended <- p.run(ctx, func(reading context.Context) error {
			line := []byte(strings.Repeat("21.5 ", 40))
			for n := 1; reading.Err() == nil; n++ {
				p.send("the input", n, nil, line, nil)
			}
			return nil
		})
	}()
	testkit.Eventually(t, "the message", func() bool { return strings.Contains(d.err.String(), "the spool is full") })
	p.mu.Lock()
	safe := p.acknowledged
	p.mu.Unlock()
	for _, want := range []string{
		cfg.SpoolDir + ": it has reached its limit of 65536 bytes; ",
		fmt.Sprintf("the first %d events of the input are in the spool or sent", safe),
		`hint: see why the events are not sent with "diaspora doctor"`,
	} {
		if !strings.Contains(d.err.String(), want) {
			t.Errorf("produce does not say %q:\n%s", want, d.err.String())
		}
	}
	if safe < 100 {
		t.Errorf("%d events are safe", safe)
	}
	for command, want := range map[string]string{
		"status":           "the spool is full, and accepts no more: it has reached its limit of 65536 bytes",
		"status -o json":   `"full":"it has reached its limit of 65536 bytes"`,
		"spool ls":         "full: it has reached its limit of 65536 bytes",
		"spool ls -o json": `"full":"it has reached its limit of 65536 bytes"`,
	} {
		d.must(t, strings.Fields(command)...)
		if !strings.Contains(d.out.String(), want) {
			t.Errorf("%s does not say %q:\n%s", command, want, d.out.String())
		}
	}
	cancel()
	<-ended
	if n := strings.Count(d.err.String(), "the spool is full"); n != 1 {
		t.Errorf("it was said %d times to a file that the spool is full, want once:\n%s", n, d.err.String())
	}
}

// TestFullWatch checks that a user at a terminal is reminded every 30 s that the spool is full, and is not told
// if it is full only for a moment.
func TestFullWatch(t *testing.T) {
	full := errors.New("the spool is full")
	for _, terminal := range []bool{false, true} {
		d := emptyDesk(t)
		d.env.terminal = func(stream any) bool { return terminal && stream == any(d.env.stderr) }
		w := fullWatch{env: d.env}
		said := func(looks int, err error) int {
			before := strings.Count(d.err.String(), "\n")
			for range looks {
				w.see(err, func() string { return "how much" })
			}
			return strings.Count(d.err.String(), "\n") - before
		}
		again := 0
		if terminal {
			again = 1
		}
		for i, step := range []struct {
			looks int
			err   error
			want  int
		}{
			{10, nil, 0},
			{1, full, 0}, // full only for a moment
			{1, nil, 0},
			{2, full, 1},
			{tellAgain - 1, full, 0},
			{1, full, again},
			{tellAgain, full, again},
			{1, nil, 0},
			{1, full, 0},
			{100, nil, 1}, // no longer full
			{50, full, 1},
			{2, nil, 1},
			{9, full, 0}, // less than 30 s after the last message
			{50, full, 1},
		} {
			if got := said(step.looks, step.err); got != step.want {
				t.Errorf("terminal %v, step %d: %d lines, want %d:\n%s", terminal, i, got, step.want, d.err.String())
			}
		}
	}
}
