//go:build !race

package main

// crashFileBytes is the size of the file in TestFileSurvivesKill.
const crashFileBytes = 100_000_000
