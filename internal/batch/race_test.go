//go:build race

package batch

// slow says that the race detector makes everything ten times slower.
const slow = true
