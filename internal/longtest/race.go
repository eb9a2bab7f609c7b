//go:build race

package longtest

// Race tells whether the race detector is on. It makes everything ten times slower.
const Race = true
