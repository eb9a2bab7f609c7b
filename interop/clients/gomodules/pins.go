// Package gomodules pins clients in Go, for the programs in docs/clients.md.
package gomodules

import (
	_ "github.com/IBM/sarama"
	_ "github.com/segmentio/kafka-go"
	_ "github.com/segmentio/kafka-go/sasl/plain"
)
