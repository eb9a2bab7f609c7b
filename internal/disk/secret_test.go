package disk_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

func TestReadSecret(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct {
		content string
		mode    os.FileMode
		want    string // in the error; "" for none
	}{
		"good":        {"secret\n", 0o600, ""},
		"read-only":   {"secret", 0o400, ""},
		"for a group": {"secret", 0o640, "chmod 600"},
		"for all":     {"secret", 0o604, "chmod 600"},
		"empty":       {"\n", 0o600, "is empty"},
		"too large":   {strings.Repeat("x", 16<<10+1), 0o600, "too many"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
			testkit.Must(t, os.WriteFile(file, []byte(c.content), 0o600))
			testkit.Must(t, os.Chmod(file, c.mode))
			got, err := disk.ReadSecret(file)
			switch {
			case c.want == "" && (err != nil || got != "secret"):
				t.Errorf("ReadSecret = %q, %v", got, err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("ReadSecret = %v, want an error that says %q", err, c.want)
			}
		})
	}
	if _, err := disk.ReadSecret(filepath.Join(dir, "none")); err == nil {
		t.Error("ReadSecret of no file = nil, want an error")
	}
}
