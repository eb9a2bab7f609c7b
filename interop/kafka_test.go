//go:build kafka

package interop

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// engineIsApache tells tests what requests the engine under test has.
const engineIsApache = true

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

func clusterFile(t testing.TB) string {
	t.Helper()
	out, err := exec.Command(clusterScript, "file").Output()
	testkit.Must(t, err)
	return filepath.Clean(string(out[:len(out)-1]))
}

// cluster gives the script a command.
func cluster(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(clusterScript, args...).CombinedOutput(); err != nil {
		t.Fatalf("cluster %v: %v\n%s", args, err, out)
	}
}

// stopBroker kills a node; what it returns starts it again. The gateways and the ACL
// endpoint stay where they are.
func stopBroker(t *testing.T, f *fabric.Fabric, _ fabric.Config) (bring func() *fabric.Fabric) {
	t.Helper()
	cluster(t, "kill", "1")
	return func() *fabric.Fabric {
		t.Helper()
		cluster(t, "start-node", "1")
		return f
	}
}

// secondOutage: one takes half a minute here.
const secondOutage = false

// stopAll does the same with all nodes at once.
func stopAll(t *testing.T, f *fabric.Fabric, _ fabric.Config) (bring func() *fabric.Fabric) {
	t.Helper()
	nodes := len(f.Brokers())
	for n := range nodes {
		cluster(t, "kill", fmt.Sprint(n+1))
	}
	return func() *fabric.Fabric {
		t.Helper()
		cluster(t, "start", fmt.Sprint(nodes))
		return f
	}
}
