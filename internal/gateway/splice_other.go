//go:build !linux

package gateway

import "net"

const canSplice = false

func splice(_, _ *net.TCPConn, n int) (left int, err error) { return n, nil }
