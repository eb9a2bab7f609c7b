package main

import (
	"bufio"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora"
)

// TestStillness: a cluster that can be reached and answers nothing is told of, and one
// that has nothing to answer is not.
func TestStillness(t *testing.T) {
	start := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	away := errors.New("away")
	for name, steps := range map[string][]struct {
		after time.Duration // since the start
		stats diaspora.LoggerStats
		want  error
	}{
		"nothing is logged": {{0, diaspora.LoggerStats{}, nil}, {time.Hour, diaspora.LoggerStats{}, nil}},
		"one after an hour": {
			{0, diaspora.LoggerStats{}, nil},
			{time.Hour, diaspora.LoggerStats{}, nil},
			{time.Hour + time.Second, diaspora.LoggerStats{Pending: 1}, nil},
			{time.Hour + stillAfter + time.Second, diaspora.LoggerStats{Pending: 1}, errStill},
			{time.Hour + stillAfter + 2*time.Second, diaspora.LoggerStats{Acknowledged: 1}, nil},
		},
		"busy": {
			{0, diaspora.LoggerStats{Pending: 5}, nil},
			{10 * time.Second, diaspora.LoggerStats{Pending: 5, Acknowledged: 1}, nil},
			{20 * time.Second, diaspora.LoggerStats{Pending: 5, Acknowledged: 1, Failed: 1}, nil},
			{34 * time.Second, diaspora.LoggerStats{Pending: 5, Acknowledged: 1, Failed: 1}, nil},
			{35 * time.Second, diaspora.LoggerStats{Pending: 5, Acknowledged: 1, Failed: 1}, errStill},
		},
		"away": {{0, diaspora.LoggerStats{Pending: 1, Err: away}, away}},
	} {
		var s stillness
		for _, step := range steps {
			if got := s.see(start.Add(step.after), step.stats.Err, step.stats.Pending, step.stats.Acknowledged+step.stats.Failed); got != step.want {
				t.Errorf("%s, after %v: %v, want %v", name, step.after, got, step.want)
			}
		}
	}
}

// TestConsumeTellsOfSilence freezes the cluster, once when a record was written that is not
// committed yet, and once when there is nothing to do. The person is told either way.
func TestConsumeTellsOfSilence(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	up := w.up(t, "--kafka-port", "0", "--http-port", "0", "--globus-port", "0")
	w.run(t, "topic", "claim", "weather")
	consume := w.command("consume", "weather", "-g", "analysis", "--from", "start")
	var talk lockedBuffer
	consume.Stderr = &talk
	stdout, err := consume.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := consume.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		consume.Process.Kill()
		consume.Wait()
	})
	eventually(t, "catching up", func() bool { return strings.Contains(talk.String(), "caught up") })
	records := bufio.NewReader(stdout)
	for _, uncommitted := range []bool{true, false} {
		talk.reset()
		if uncommitted {
			w.run(t, "produce", "weather", "--value", "21.5")
			if _, err := records.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
		}
		up.cmd.Process.Signal(syscall.SIGSTOP)
		eventually(t, "the word that the cluster does not answer", func() bool { return strings.Contains(talk.String(), "the cluster has not answered for 5s; ") })
		up.cmd.Process.Signal(syscall.SIGCONT)
		eventually(t, "the word that it is back", func() bool { return strings.Contains(talk.String(), "the cluster is back") })
	}
}
