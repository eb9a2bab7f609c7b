package disk_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestWriteFile: the file has the given content and mode, whatever was there before, and a failure
// leaves nothing behind.
func TestWriteFile(t *testing.T) {
	t.Parallel()
	for name, write := range map[string]func(string, []byte) error{
		"WriteFile":   func(name string, b []byte) error { return disk.WriteFile(name, b, 0o644) },
		"ReplaceFile": disk.ReplaceFile,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, "file")
			for _, content := range []string{"long before", "x", ""} {
				testkit.Must(t, write(file, []byte(content)))
				if got, err := os.ReadFile(file); err != nil || string(got) != content {
					t.Errorf("the file has %q, %v; want %q", got, err, content)
				}
			}
			info, err := os.Stat(file)
			testkit.Must(t, err)
			want := os.FileMode(0o600)
			if name == "WriteFile" {
				want = 0o644
			}
			if info.Mode() != want && runtime.GOOS != "windows" {
				t.Errorf("mode %v, want %v", info.Mode(), want)
			}
			folder := filepath.Join(dir, "folder")
			testkit.Must(t, os.MkdirAll(filepath.Join(folder, "inside"), 0o700))
			if err := write(folder, []byte("x")); err == nil {
				t.Error("a folder is replaced by a file")
			}
			if err := write(filepath.Join(dir, "missing", "file"), []byte("x")); err == nil {
				t.Error("a file is written in a folder that is not there")
			}
			if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
				t.Errorf("left behind: %v, %v", entries, err)
			}
		})
	}
}

// TestCreateFile checks that the new file has its content and mode, that an existing file stays as it is, and that no
// other file is left behind.
func TestCreateFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	testkit.Must(t, disk.CreateFile(file, []byte("first"), 0o640, -1, -1))
	if err := disk.CreateFile(file, []byte("second"), 0o640, -1, -1); !errors.Is(err, fs.ErrExist) {
		t.Errorf("create it again = %v", err)
	}
	if got := string(testkit.ReadFile(t, file)); got != "first" {
		t.Errorf("the file has %q", got)
	}
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o640 && runtime.GOOS != "windows" {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := disk.CreateFile(filepath.Join(dir, "missing", "file"), nil, 0o600, -1, -1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("in a folder that does not exist = %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}
