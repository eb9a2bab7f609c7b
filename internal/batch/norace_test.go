//go:build !race

package batch

const slow = false
