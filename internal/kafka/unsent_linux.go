package kafka

import (
	"net"
	"syscall"
)

const tcpNotsentLowat = 25 // TCP_NOTSENT_LOWAT, which package syscall does not define

// limitUnsent makes a write block while the kernel holds the given number of unsent bytes, so that
// a patientConn notices the progress on a slow link. Unlike a smaller send buffer, it does not limit
// the bytes in flight.
func limitUnsent(conn *net.TCPConn, bytes int) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	// An error is ignored: without the limit, a large batch may time out on a slow link, as it would
	// with any other client.
	_ = raw.Control(func(fd uintptr) {
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpNotsentLowat, bytes)
	})
}
