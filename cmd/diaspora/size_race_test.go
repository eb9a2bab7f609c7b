//go:build race

package main

// crashFileBytes is less under the race detector, which makes everything slower.
const crashFileBytes = 8_000_000
