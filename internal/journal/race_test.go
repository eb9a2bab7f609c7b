//go:build race

package journal

const slow = true
