//go:build !race

package testkit

// Race reports whether the race detector is enabled. It slows everything down by a factor of about
// ten.
const Race = false
