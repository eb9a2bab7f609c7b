package testkit

import (
	"os"
	"strconv"
	"testing"
)

// Scaled returns the value of an environment variable. If it is not set, Scaled returns n, or a
// tenth of n under the race detector. A value that is not a number fails the test.
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

// Fewer returns n, or a tenth of it under the race detector. Fewer cases suffice there, because the
// first ones reveal a data race as well as later ones.
func Fewer(n int) int {
	if Race {
		return max(1, n/10)
	}
	return n
}
