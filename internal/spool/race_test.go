//go:build race

package spool

// slow says that the race detector makes everything ten times slower.
const slow = true
