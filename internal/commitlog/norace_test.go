//go:build !race

package commitlog

const slow = false
