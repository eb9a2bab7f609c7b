//go:build clients

package interop

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// installing keeps tests that run side by side from fetching the same twice.
var installing sync.Mutex

// installed returns the folder of the user's cache with what belongs to a lock
// file, which install fills the first time. Whoever changes the lock file gets
// another folder.
func installed(t *testing.T, name, lock string, install func(dir string) error) (string, error) {
	t.Helper()
	installing.Lock()
	defer installing.Unlock()
	data, err := os.ReadFile(lock)
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	cache = filepath.Join(cache, "diaspora")
	sum := sha256.Sum256(data)
	dir := filepath.Join(cache, name+"-"+hex.EncodeToString(sum[:6]))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return "", err
	}
	temp, err := os.MkdirTemp(cache, "new.")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(temp)
	if err := install(temp); err != nil {
		return "", err
	}
	if err := os.Rename(temp, dir); err != nil {
		if _, have := os.Stat(dir); have != nil {
			return "", err // else somebody was faster
		}
	}
	return dir, nil
}

// virtualEnv returns a Python environment with what a requirements file pins.
func virtualEnv(t *testing.T, requirements string) (string, error) {
	version, err := exec.Command("python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2], end='')").Output()
	if err != nil {
		return "", err
	}
	lock := filepath.Join("clients", requirements)
	return installed(t, "python"+string(version), lock, func(dir string) error {
		if err := quietly("python3", "-m", "venv", dir); err != nil {
			return err
		}
		return quietly(filepath.Join(dir, "bin", "python"), "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "-r", lock)
	})
}

// nodeModules returns the modules that the lock file next to package.json pins.
func nodeModules(t *testing.T, folder string) (string, error) {
	dir, err := installed(t, "node", filepath.Join(folder, "package-lock.json"), func(dir string) error {
		for _, name := range []string{"package.json", "package-lock.json"} {
			data, err := os.ReadFile(filepath.Join(folder, name))
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
				return err
			}
		}
		return quietly("npm", "ci", "--silent", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", dir)
	})
	return filepath.Join(dir, "node_modules"), err
}

// kafkaJars returns the folder of Apache Kafka's own clients and tools.
func kafkaJars() (string, error) {
	installing.Lock()
	defer installing.Unlock()
	out, err := exec.Command("../deploy/kafka/cluster", "jars").Output()
	if err != nil {
		return "", fmt.Errorf("jars: %w%s", err, stderrOf(err))
	}
	return strings.TrimSpace(string(out)), nil
}

func quietly(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", filepath.Base(name), args[0], err, out)
	}
	return nil
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
	if err := quietly("go", "build", "-o", file, "../cmd/diaspora"); err != nil {
		t.Fatal(err)
	}
	return file
}
