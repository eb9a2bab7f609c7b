//go:build !kafka

package interop

import (
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora/fabric"
)

// useEngine keeps the embedded broker's data on disk, as `diaspora up` does.
func useEngine(t *testing.T, cfg *fabric.Config) {
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
}

// parallel lets a test run beside others: each has a broker of its own.
func parallel(t *testing.T) { t.Parallel() }

// restartBroker takes the broker away from under its clients and brings it back.
// Here that is the whole fabric.
func restartBroker(t *testing.T, f *fabric.Fabric, cfg fabric.Config) *fabric.Fabric {
	t.Helper()
	cfg.KafkaAddr = f.Brokers()[0]
	cfg.HTTPAddr = strings.TrimPrefix(f.URL(), "http://")
	cfg.GlobusAddr = strings.TrimPrefix(f.GlobusURL(), "http://")
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return start(t, cfg)
}
