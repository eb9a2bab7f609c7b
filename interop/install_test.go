//go:build clients

package interop

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/diaspora-streams/diaspora/interop/clients"
)

// nodeModules returns the modules that the lock file next to package.json pins.
func nodeModules(t *testing.T, folder string) (string, error) {
	dir, err := clients.Installed("node", filepath.Join(folder, "package-lock.json"), func(dir string) error {
		for _, name := range []string{"package.json", "package-lock.json"} {
			data, err := os.ReadFile(filepath.Join(folder, name))
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
				return err
			}
		}
		return clients.Quietly("npm", "ci", "--silent", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", dir)
	})
	return filepath.Join(dir, "node_modules"), err
}

// jarsOnce keeps tests that run side by side from fetching the same twice.
var jarsOnce sync.Mutex

// kafkaJars returns the folder of Apache Kafka's own clients and tools.
func kafkaJars() (string, error) {
	jarsOnce.Lock()
	defer jarsOnce.Unlock()
	out, err := exec.Command("../deploy/kafka/cluster", "jars").Output()
	if err != nil {
		return "", fmt.Errorf("jars: %w%s", err, stderrOf(err))
	}
	return strings.TrimSpace(string(out)), nil
}

func absolute(t *testing.T, path string) string {
	t.Helper()
	abs, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return abs
}

// buildCommand returns the diaspora command.
func buildCommand(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "diaspora")
	if err := clients.Quietly("go", "build", "-o", file, "../cmd/diaspora"); err != nil {
		t.Fatal(err)
	}
	return file
}
