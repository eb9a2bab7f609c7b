//go:build race

package main

// crashFileBytes is smaller with the race detector, which makes everything slower.
const crashFileBytes = 8_000_000
