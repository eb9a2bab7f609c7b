//go:build !unix

package faultnet

import "net"

// smallBuffers creates sockets with the default buffer sizes, because they cannot be set here.
var smallBuffers net.ListenConfig
