//go:build !linux

package kafka

import "net"

// limitUnsent does nothing on this system, so large batches need a fast enough link.
func limitUnsent(*net.TCPConn, int) {}
