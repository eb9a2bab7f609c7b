package disk

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// WriteFile gives the file at a path a new content, or makes it. A crash leaves either the
// old or the new content, and the new one is durable when WriteFile returns nil. An error
// may leave either.
//
// Calls for the same file may overlap; one of them wins. Because nothing orders them, each
// writes a temporary file of its own name, which a killed process leaves behind. Callers
// that hold a lock use [Replace], which leaves nothing behind.
func WriteFile(name string, content []byte, mode fs.FileMode) error {
	dir := filepath.Dir(name)
	f, err := os.CreateTemp(dir, "."+filepath.Base(name)+"-*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if mode != 0o600 {
		err = errors.Join(err, f.Chmod(mode))
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		os.Remove(f.Name()) // the first error counts
		return err
	}
	return SyncFolder(dir)
}

// ReplaceFile is [Replace], durably, for a path.
func ReplaceFile(name string, content []byte) error {
	folder, err := New(filepath.Dir(name))
	if err != nil {
		return err
	}
	return errors.Join(Replace(folder, filepath.Base(name), content, true), folder.Close())
}

// SyncFolder makes durable what was made, renamed and removed in a folder, where folders
// can be synced.
func SyncFolder(dir string) error { return syncDir(os.Open(dir)) }
