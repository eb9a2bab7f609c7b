//go:build race

package commitlog

// slow says that the race detector makes everything ten times slower.
const slow = true
