//go:build !race

package groups

const slow = false
