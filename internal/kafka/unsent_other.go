//go:build !linux

package kafka

import "net"

// limitUnsent does nothing: large batches need a fast enough link here.
func limitUnsent(*net.TCPConn, int) {}
