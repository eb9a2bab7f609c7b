package testkit

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// ReadFile returns the content of a file.
func ReadFile(t TB, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	Must(t, err)
	return content
}

// Snapshot describes everything in a folder, and the folder itself: a line each, with the name, the mode, the
// time of the last change and a hash of the content.
func Snapshot(t testing.TB, dir string) (all []string) {
	t.Helper()
	Must(t, filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		var content []byte
		if info.Mode().IsRegular() {
			if content, err = os.ReadFile(path); err != nil {
				return err
			}
		}
		all = append(all, fmt.Sprintf("%s %v %v %x", path, info.Mode(), info.ModTime(), sha256.Sum256(content)))
		return nil
	}))
	return all
}

// CheckPrivate fails the test if others than the owner may use a folder or anything in it.
func CheckPrivate(t testing.TB, dir string) {
	t.Helper()
	Must(t, filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	}))
}
