//go:build !race

package broker

const slow = false
