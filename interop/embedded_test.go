//go:build !kafka

package interop

import (
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// engineIsApache tells tests what requests the engine under test has.
const engineIsApache = false

// useEngine keeps the embedded broker's data on disk, as `diaspora up` does.
func useEngine(t *testing.T, cfg *fabric.Config) {
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
}

// parallel lets a test run beside others: each has a broker of its own.
func parallel(t *testing.T) { t.Parallel() }

// stopBroker takes the broker away from under its clients; what it returns brings it
// back. Here that is the whole fabric.
func stopBroker(t *testing.T, f *fabric.Fabric, cfg fabric.Config) (bring func() *fabric.Fabric) {
	t.Helper()
	cfg.KafkaAddr = f.Brokers()[0]
	cfg.HTTPAddr = strings.TrimPrefix(f.URL(), "http://")
	cfg.GlobusAddr = strings.TrimPrefix(f.GlobusURL(), "http://")
	testkit.Must(t, f.Close())
	return func() *fabric.Fabric {
		t.Helper()
		return start(t, cfg)
	}
}

// secondOutage: one takes no time here.
const secondOutage = true

// stopAll does the same: there is one broker.
func stopAll(t *testing.T, f *fabric.Fabric, cfg fabric.Config) (bring func() *fabric.Fabric) {
	t.Helper()
	return stopBroker(t, f, cfg)
}
