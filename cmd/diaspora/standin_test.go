package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/globusdev"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestSecretOfAKilledFabric checks that "diaspora up" replaces the file of a killed one, and that a process removes only
// its own file.
func TestSecretOfAKilledFabric(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "globus", "local")
	first, second := globusdev.NewSecret(), globusdev.NewSecret()
	removeFirst, err := saveGlobusSecret(file, first)
	testkit.Must(t, err)
	removeSecond, err := saveGlobusSecret(file, second)
	if err != nil {
		t.Fatalf("beside the file of a killed process: %v", err)
	}
	testkit.Must(t, removeFirst())
	if got, err := loadGlobusSecret(file); err != nil || got != second {
		t.Errorf("the file has another secret than the last one, or none: %v", err)
	}
	testkit.Must(t, removeSecond())
	if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file is still there: %v", err)
	}
}
