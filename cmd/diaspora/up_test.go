package main

import (
	"errors"
	"slices"
	"syscall"
	"testing"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
)

// TestTakenGateway: with an Apache Kafka, the ports of the gateways are fixed, and --kafka stays in the suggestion for
// the others.
func TestTakenGateway(t *testing.T) {
	t.Parallel()
	taken := func(service, addr string) error {
		return &fabric.ListenError{Service: service, Addr: addr, Err: syscall.EADDRINUSE}
	}
	all := errors.Join(errors.Join(taken("the Kafka gateway", "127.0.0.1:19092"), taken("the ACL endpoint", "127.0.0.1:9090")), nil)
	cmd := new(env).upCommand()
	if err := cmd.ParseFlags([]string{"--kafka", ".kafka/cluster.json"}); err != nil {
		t.Fatal(err)
	}
	err := upError(all, ".kafka/cluster.json", func(ports ...portFlag) string { return upLine(cmd.Flags(), ports) })
	text, hints := explanation(err)
	if want := "up: port 19092, for the Kafka gateway, and port 9090, for the ACL endpoint, are taken by other programs"; text != want || !errors.Is(err, diaspora.ErrConflict) {
		t.Errorf("upError = %q, want %q", text, want)
	}
	want := []string{
		"end what listens at the gateways; their ports were chosen when the Apache Kafka was made",
		`"diaspora up --kafka .kafka/cluster.json --http-port 0" selects a free port`,
	}
	if !slices.Equal(hints, want) {
		t.Errorf("the hints are %q, want %q", hints, want)
	}
}
