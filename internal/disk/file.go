package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// WriteFile replaces the content of the file at a path, or creates it. A crash leaves either the
// old or the new content. The new content is durable when WriteFile returns nil. After an error,
// the file may have either.
//
// Calls for the same file may overlap; one of them wins. Since nothing orders them, each writes a
// temporary file of its own, which a killed process leaves behind. Callers that hold a lock use
// [Replace], which leaves nothing behind.
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
		os.Remove(f.Name()) // if this fails too, the first error matters more
		return err
	}
	return SyncFolder(dir)
}

// WritePrivately is [WriteFile] for a file that only its owner can read. It creates the file's directory
// with the same protection, if there is none.
func WritePrivately(name string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	return WriteFile(name, content, 0o600)
}

// ReadBounded reads a file or a pipe of at most limit bytes.
func ReadBounded(name string, limit int64) ([]byte, error) {
	info, err := os.Stat(name) // before opening, because opening a device can have side effects
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() && info.Mode().Type() != os.ModeNamedPipe {
		return nil, fmt.Errorf("%s is not a file", name)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s has more than %d bytes", name, limit)
	}
	return data, nil
}

// ReplaceFile is [Replace] with sync, for a path.
func ReplaceFile(name string, content []byte) error {
	folder, err := New(filepath.Dir(name))
	if err != nil {
		return err
	}
	return errors.Join(Replace(folder, filepath.Base(name), content, true), folder.Close())
}

// SyncFolder makes the entries of a folder durable: files that were created, renamed or removed. On
// systems where folders cannot be synced it does nothing.
func SyncFolder(dir string) error { return syncDir(os.Open(dir)) }

// CreateFile creates a file, and fails with [fs.ErrExist] if there is one. A crash leaves either the
// whole file or none. It is durable when CreateFile returns nil. A uid and gid of -1 leave the file to
// the user of this process.
func CreateFile(name string, content []byte, mode fs.FileMode, uid, gid int) error {
	return writeFile(name, content, mode, uid, gid, os.Link) // unlike Rename, it replaces nothing
}

// OverwriteFile is [CreateFile] for a file that may exist. It is replaced as a whole, with its mode and owner.
func OverwriteFile(name string, content []byte, mode fs.FileMode, uid, gid int) error {
	return writeFile(name, content, mode, uid, gid, os.Rename)
}

// writeFile writes a temporary file, and gives it its name with put.
func writeFile(name string, content []byte, mode fs.FileMode, uid, gid int, put func(from, to string) error) error {
	dir := filepath.Dir(name)
	f, err := os.CreateTemp(dir, "."+filepath.Base(name)+"-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // if this fails, an earlier error matters more
	_, err = f.Write(content)
	if uid != -1 || gid != -1 {
		err = errors.Join(err, f.Chown(uid, gid)) // before Chmod, because it clears bits of the mode
	}
	if mode != 0o600 {
		err = errors.Join(err, f.Chmod(mode))
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := put(f.Name(), name); err != nil {
		return err
	}
	return SyncFolder(dir)
}
