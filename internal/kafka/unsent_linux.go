package kafka

import (
	"net"
	"syscall"
)

const tcpNotsentLowat = 25 // TCP_NOTSENT_LOWAT, which package syscall does not define

// limitUnsent makes a write block while the kernel holds that many bytes that it has not sent.
// Unlike a smaller send buffer, it does not limit the bytes in flight.
func limitUnsent(conn *net.TCPConn, bytes int) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	// An error is ignored: then large batches need a fast enough link, as with any other client.
	_ = raw.Control(func(fd uintptr) {
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpNotsentLowat, bytes)
	})
}
