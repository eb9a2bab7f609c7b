package main

import (
	"errors"
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
