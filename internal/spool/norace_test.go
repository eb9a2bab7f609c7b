//go:build !race

package spool

const slow = false
