//go:build !unix

package faultnet

import "net"

// smallBuffers makes sockets that hold as much as they do by default.
var smallBuffers net.ListenConfig
