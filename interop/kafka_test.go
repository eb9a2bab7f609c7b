//go:build kafka

package interop

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"encoding/json"

	"github.com/diaspora-streams/diaspora/fabric"
)

// useEngine puts the fabric in front of the Apache Kafka that `make kafka-up` has
// started. That there is none is an error.
func useEngine(t *testing.T, cfg *fabric.Config) {
	t.Helper()
	cfg.KafkaFile = clusterFile(t)
	if _, err := os.Stat(cfg.KafkaFile); err != nil {
		t.Fatalf("there is no Apache Kafka to test with; start one with `make kafka-up`: %v", err)
	}
}

// parallel does not: a cluster's gateways have one address each.
func parallel(*testing.T) {}

const clusterScript = "../deploy/kafka/cluster"

func clusterFile(t *testing.T) string {
	t.Helper()
	out, err := exec.Command(clusterScript, "file").Output()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Clean(string(out[:len(out)-1]))
}

// cluster gives the script a command.
func cluster(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(clusterScript, args...).CombinedOutput(); err != nil {
		t.Fatalf("cluster %v: %v\n%s", args, err, out)
	}
}

// nodes returns how many nodes the cluster has.
func nodes(t *testing.T) int {
	t.Helper()
	data, err := os.ReadFile(clusterFile(t))
	if err != nil {
		t.Fatal(err)
	}
	var c struct{ Nodes []struct{} }
	if err := json.Unmarshal(data, &c); err != nil {
		t.Fatal(err)
	}
	return len(c.Nodes)
}

// restartBroker kills each node in turn, and starts it again before the next. The
// gateways and the ACL endpoint stay where they are.
func restartBroker(t *testing.T, f *fabric.Fabric, _ fabric.Config) *fabric.Fabric {
	t.Helper()
	for n := 1; n <= nodes(t); n++ {
		id := string(rune('0' + n))
		cluster(t, "kill", id)
		cluster(t, "start-node", id)
	}
	return f
}
