package kafka

import (
	"net"
	"syscall"
)

const tcpNotsentLowat = 25 // TCP_NOTSENT_LOWAT, which package syscall does not have

// limitUnsent has the kernel take no more from a writer while it holds so many bytes that it
// has not sent. It does not bound those that are on their way, as a smaller buffer would.
func limitUnsent(conn *net.TCPConn, bytes int) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	// Without it large batches take a fast enough link, as with any other client.
	_ = raw.Control(func(fd uintptr) {
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpNotsentLowat, bytes)
	})
}
