// Package clients installs clients in other languages, as the lock files beside it pin
// them, into the user's cache: for the tests in package interop, and for bench/peers.
package clients

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
)

// installing keeps those who ask at the same time from fetching the same twice.
var installing sync.Mutex

// Installed returns the folder of the user's cache with what belongs to a lock
// file, which install fills the first time. Whoever changes the lock file gets
// another folder.
func Installed(name, lock string, install func(dir string) error) (string, error) {
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

// VirtualEnv returns a Python environment with what a requirements file pins.
func VirtualEnv(lock string) (string, error) { return VirtualEnvOf("python3", lock) }

// VirtualEnvOf is VirtualEnv for a Python of the caller's choice.
func VirtualEnvOf(python, lock string) (string, error) {
	version, err := exec.Command(python, "-c", "import sys; print('%d.%d' % sys.version_info[:2], end='')").Output()
	if err != nil {
		return "", err
	}
	return Installed("python"+string(version), lock, func(dir string) error {
		if err := Quietly(python, "-m", "venv", dir); err != nil {
			return err
		}
		return Quietly(filepath.Join(dir, "bin", "python"), "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "-r", lock)
	})
}

// Quietly runs a program, whose output is told only if it fails.
func Quietly(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", filepath.Base(name), args[0], err, out)
	}
	return nil
}
