//go:build !race

package longtest

// Race reports whether the race detector is enabled. It slows everything down by a factor of about
// ten.
const Race = false
