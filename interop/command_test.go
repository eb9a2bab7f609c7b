//go:build clients || kafka

package interop

import (
	"path/filepath"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/interop/clients"
)

// buildCommand builds the diaspora command and returns its path.
func buildCommand(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "diaspora")
	testkit.Must(t, clients.Quietly("go", "build", "-o", file, "../cmd/diaspora"))
	return file
}
