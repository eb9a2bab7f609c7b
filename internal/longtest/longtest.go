// Package longtest says how much tests do: less under the race detector, and as much as
// the environment asks for in long runs (make test-long).
package longtest

import (
	"os"
	"strconv"
	"testing"
)

// Scaled returns the value of an environment variable, or n if it is not set, and a
// tenth of n under the race detector. A value that is no number fails the test.
func Scaled(t testing.TB, variable string, n int) int {
	t.Helper()
	s := os.Getenv(variable)
	if s == "" {
		return Fewer(n)
	}
	m, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("%s: %v", variable, err)
	}
	return m
}

// Fewer returns n, or a tenth of it under the race detector: that is for data races,
// which the first cases show as well as the last.
func Fewer(n int) int {
	if Race {
		return max(1, n/10)
	}
	return n
}
