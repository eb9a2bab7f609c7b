//go:build unix

package faultnet

import (
	"net"
	"syscall"
)

// kernelHold is what each socket's buffers may hold; the kernel doubles it.
const kernelHold = 4 << 10

// smallBuffers makes sockets that hold little.
var smallBuffers = net.ListenConfig{Control: func(_, _ string, conn syscall.RawConn) error {
	return conn.Control(func(fd uintptr) {
		for _, option := range []int{syscall.SO_RCVBUF, syscall.SO_SNDBUF} {
			_ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, option, kernelHold)
		}
	})
}}
