//go:build race

package groups

// slow says that the race detector makes everything ten times slower.
const slow = true
