package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/diaspora-streams/diaspora/bench/measure"
)

// shell compares the commands produce and consume with kcat, as programs that are started, read a
// file or write to a pipe, and end. All of them use the same "diaspora up".
func (b bench) shell(ctx context.Context) (string, error) {
	binary, up, cfg, err := b.startUp(ctx)
	if err != nil {
		return "", err
	}
	defer up.Stop()
	if err := measure.Claim(ctx, cfg, partitions, shellReadTopic); err != nil {
		return "", err
	}
	s := shellBench{bench: b, up: up, binary: binary, kcatFile: filepath.Join(b.Dir, "kcat.conf")}
	if err := s.diaspora("key", "create", "bench", "--save-for-kcat", s.kcatFile).run(ctx, 0); err != nil {
		return "", err
	}
	produced, err := s.produce(ctx)
	if err != nil {
		return "", err
	}
	consumed, err := s.consume(ctx)
	return produced + "\n" + consumed, err
}

const shellReadTopic = "bench_read" // the topic that is consumed; its number of records does not change

type shellBench struct {
	bench
	up               *measure.Up
	binary, kcatFile string
}

// produce compares how fast lines of 100 B are produced until all are acknowledged.
func (s shellBench) produce(ctx context.Context) (string, error) {
	n := s.Scaled(1_000_000)
	file, err := s.writeLines(n)
	if err != nil {
		return "", err
	}
	headers := []string{"-H", "diaspora-time=2026-11-29T12:00:00.000Z", "-H", "diaspora-id=k3v9x0q2m7ta5h1c-abcd"}
	programs := []*shellProgram{
		s.kcat(append(headers, "-P", "-t", topic)...).named("kcat -P, with two headers").reading(file),
		s.kcat("-P", "-t", topic).named("kcat -P").reading(file),
		s.diaspora("produce", topic, "--no-spool").named("diaspora produce --no-spool").reading(file),
		s.diaspora("produce", topic, "--require-ack").named("diaspora produce").reading(file),
	}
	rates, err := s.takeTurns(ctx, programs, n, func(int) int { return 0 })
	if err != nil {
		return "", err
	}
	rows := shellRows(programs, rates, n, []string{"", "", "1.3", "0.7"}, func(int) int { return 0 })
	return "## Producing from the shell\n\nLines of 100 B from a file on standard input, until the program ends and every event is acknowledged. acks=all, no\n" +
		"compression, no lingering, six partitions, through the gateway to the embedded broker. kcat is not idempotent. The headers are\n" +
		"as large as those that produce adds. Without `--no-spool`, each event is on disk first.\n\n" + measure.Table(rows), nil
}

// consume compares how fast a topic is written to a pipe.
func (s shellBench) consume(ctx context.Context) (string, error) {
	n := s.Scaled(3_000_000)
	file, err := s.writeLines(n)
	if err != nil {
		return "", err
	}
	if err := s.diaspora("produce", shellReadTopic, "--no-spool").reading(file).run(ctx, 0); err != nil {
		return "", err
	}
	programs := []*shellProgram{
		s.kcat("-C", "-t", shellReadTopic, "-o", "beginning", "-e").named("kcat -C"),
		s.diaspora("consume", shellReadTopic, "--from", "start", "--exit").named("diaspora consume"),
		s.kcat("-C", "-t", shellReadTopic, "-o", "beginning", "-e", "-J").named("kcat -C -J"),
		s.diaspora("consume", shellReadTopic, "--from", "start", "--exit", "-o", "ndjson").named("diaspora consume -o ndjson"),
	}
	rates, err := s.takeTurns(ctx, programs, n, func(n int) int { return n })
	if err != nil {
		return "", err
	}
	rows := shellRows(programs, rates, n, []string{"", "1.4", "", "4"}, func(i int) int { return i &^ 1 })
	return "## Consuming in the shell\n\nThe whole topic, from its start to its end, into a pipe whose reader only counts the lines. JSON is compared with JSON.\n\n" + measure.Table(rows), nil
}

// writeLines writes a file of n lines of 100 B. Half of each is incompressible.
func (s shellBench) writeLines(n int) (string, error) {
	lines := measure.Payloads(99)
	for _, line := range lines {
		copy(line, base64.StdEncoding.EncodeToString(line[:len(line)/2])) // random bytes may be line feeds
	}
	file := filepath.Join(s.Dir, "lines")
	f, err := os.Create(file)
	if err != nil {
		return "", err
	}
	block := append(bytes.Join(lines, []byte("\n")), '\n')
	for ; n >= len(lines) && err == nil; n -= len(lines) {
		_, err = f.Write(block)
	}
	if err == nil {
		_, err = f.Write(block[:n*100])
	}
	if err != nil {
		f.Close()
		return "", err
	}
	return file, f.Close()
}

// takeTurns has the programs take turns. lines says how many lines a program has to write, given n.
func (s shellBench) takeTurns(ctx context.Context, programs []*shellProgram, n int, lines func(n int) int) ([][]float64, error) {
	var contenders []measure.Contender
	for _, p := range programs {
		contenders = append(contenders, measure.Contender{Name: p.name, Run: func(n int) (time.Duration, error) {
			before, err := s.up.CPU()
			if err != nil {
				return 0, err
			}
			start := time.Now()
			if err := p.run(ctx, lines(n)); err != nil {
				return 0, err
			}
			took := time.Since(start)
			after, err := s.up.CPU()
			p.broker = append(p.broker, after-before)
			return took, err
		}})
	}
	return measure.TakeTurns(contenders, s.Rounds, n)
}

// shellRows returns the rows of a table. peer says with which program a program is compared.
func shellRows(programs []*shellProgram, rates [][]float64, n int, goals []string, peer func(int) int) [][]string {
	rows := [][]string{{"program", "events/s", "CPU of the program, µs per event", "CPU of the broker", "goal", "ratio to kcat, median (min–max)"}}
	each := func(spent []time.Duration) string {
		return fmt.Sprintf("%.2f", float64(measure.Median(spent[1:]).Nanoseconds())/1000/float64(n)) // without the round that warms up
	}
	for i, p := range programs {
		rows = append(rows, []string{"`" + p.name + "`", measure.Rate(rates[i]), each(p.spent), each(p.broker), goals[i], measure.Spread(measure.Ratios(rates[i], rates[peer(i)]))})
	}
	return rows
}

// shellProgram is a command line.
type shellProgram struct {
	name  string
	args  []string
	env   []string
	stdin string // name of a file, or ""

	spent, broker []time.Duration // processor time of the program, and of the broker meanwhile, by turn
}

func (s shellBench) diaspora(args ...string) *shellProgram {
	return &shellProgram{
		args: append([]string{s.binary}, args...),
		env:  []string{"DIASPORA_CONFIG_DIR=" + filepath.Join(s.up.Home, "config"), "DIASPORA_PROFILE=local"},
	}
}

func (s shellBench) kcat(args ...string) *shellProgram {
	return &shellProgram{args: append([]string{"kcat", "-F", s.kcatFile, "-X", "acks=all", "-X", "linger.ms=0"}, args...)}
}

func (p *shellProgram) named(name string) *shellProgram {
	p.name = name
	return p
}

func (p *shellProgram) reading(file string) *shellProgram {
	p.stdin = file
	return p
}

// run runs the program to its end. It fails if the program does not write the given number of lines.
func (p *shellProgram) run(ctx context.Context, lines int) error {
	cmd := exec.CommandContext(ctx, p.args[0], p.args[1:]...)
	cmd.Env = append(os.Environ(), p.env...)
	var written lineCounter
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &written, &stderr
	if p.stdin != "" {
		in, err := os.Open(p.stdin)
		if err != nil {
			return err
		}
		defer in.Close()
		cmd.Stdin = in
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", p.args[0], err, stderr.Bytes())
	}
	p.spent = append(p.spent, cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime())
	if lines > 0 && int(written) != lines {
		return fmt.Errorf("%s wrote %d lines, want %d", p.args[0], written, lines)
	}
	return nil
}

// lineCounter counts the line feeds that are written to it.
type lineCounter int

func (c *lineCounter) Write(p []byte) (int, error) {
	*c += lineCounter(bytes.Count(p, []byte{'\n'}))
	return len(p), nil
}
