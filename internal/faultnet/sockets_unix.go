//go:build unix

package faultnet

import (
	"net"
	"syscall"
)

// kernelHold is the buffer size of each socket, in bytes; the kernel doubles it.
const kernelHold = 4 << 10

// smallBuffers creates sockets with small buffers.
var smallBuffers = net.ListenConfig{Control: func(_, _ string, conn syscall.RawConn) error {
	return conn.Control(func(fd uintptr) {
		for _, option := range []int{syscall.SO_RCVBUF, syscall.SO_SNDBUF} {
			_ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, option, kernelHold)
		}
	})
}}
