//go:build !race

package main

// crashFileBytes is how large the file of TestFileSurvivesKill is.
const crashFileBytes = 100_000_000
