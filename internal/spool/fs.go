package spool

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
)

// FS is all that a spool asks of a file system. Names are those of files in the
// spool's own directory. What a method has changed may be lost in a power cut, in
// part and in any order, until the Sync that covers it has returned nil.
type FS interface {
	// Make makes the directory, with mode 0700, if it is not there.
	Make() error
	// List returns what is in the directory, and the directory itself as ".".
	List() ([]fs.FileInfo, error)
	// SyncParent makes the directory itself durable, as an entry of its parent.
	SyncParent() error
	// Sync makes entries durable: files made, renamed and removed.
	Sync() error
	// Open opens a file for reading, and with write for writing too.
	Open(name string, write bool) (File, error)
	// Create makes a file, with mode 0600, that must not be there.
	Create(name string) (File, error)
	Rename(from, to string) error
	Remove(name string) error
	// Lock takes a file, which it makes if need be, for this process, or fails
	// with [ErrInUse]. The lock ends with Close or with the process.
	Lock(name string) (io.Closer, error)
	// Shared tells whether other machines may have the directory too.
	Shared() bool
	Close() error
}

// File is an open file of an [FS].
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Size() (int64, error)
	Truncate(size int64) error
	// Sync makes the file's content and size durable, but not its name.
	Sync() error
}

// FileSystemKind is what a spool has to know of a file system.
type FileSystemKind struct {
	Name     string // "" if it is none of those that are known by name
	Shared   bool   // other machines may have it mounted as well
	InMemory bool   // it is gone when the machine stops
}

// disk is the real one. All names are resolved below root, so that a symbolic link
// cannot lead out of the directory.
type disk struct {
	dir  string
	root *os.Root
}

func newDisk(dir string) (*disk, error) {
	dir, err := filepath.Abs(dir)
	return &disk{dir: dir}, err
}

func (d *disk) Make() error {
	if err := d.makeAll(d.dir); err != nil {
		return err
	}
	return d.open()
}

func (d *disk) open() (err error) {
	if d.root == nil {
		d.root, err = os.OpenRoot(d.dir)
	}
	return err
}

// makeAll is [os.MkdirAll] that makes durable what it makes, but for dir itself,
// which SyncParent sees to.
func (d *disk) makeAll(dir string) error {
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		return &fs.PathError{Op: "mkdir", Path: dir, Err: syscall.ENOTDIR}
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := filepath.Dir(dir)
	if err := d.makeAll(parent); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if dir == d.dir {
		return nil
	}
	return syncDir(os.Open(parent))
}

func (d *disk) List() ([]fs.FileInfo, error) {
	if err := d.open(); err != nil {
		return nil, err
	}
	dir, err := d.root.Open(".")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	entries, err := dir.ReadDir(-1) // Readdir fails if a file vanishes meanwhile
	if err != nil {
		return nil, err
	}
	self, err := dir.Stat()
	if err != nil {
		return nil, err
	}
	infos := []fs.FileInfo{dotInfo{self}}
	for _, entry := range entries {
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		infos = append(infos, info)
	}
	return infos, nil
}

// dotInfo calls the directory itself ".".
type dotInfo struct{ fs.FileInfo }

func (dotInfo) Name() string { return "." }

func (d *disk) SyncParent() error {
	err := syncDir(os.Open(filepath.Dir(d.dir)))
	if errors.Is(err, fs.ErrPermission) {
		return nil // not ours to read: it was not made by us either
	}
	return err
}

func (d *disk) Sync() error { return syncDir(d.root.Open(".")) }

func syncDir(dir *os.File, err error) error {
	if err != nil {
		return err
	}
	err = dir.Sync()
	if runtime.GOOS == "windows" || errors.Is(err, syscall.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
		err = nil // some file systems keep entries safe by themselves and refuse to be asked
	}
	return errors.Join(err, dir.Close())
}

func (d *disk) Open(name string, write bool) (File, error) {
	flag := os.O_RDONLY
	if write {
		flag = os.O_RDWR
	}
	return d.file(d.root.OpenFile(name, flag, 0))
}

func (d *disk) Create(name string) (File, error) {
	return d.file(d.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600))
}

func (d *disk) file(f *os.File, err error) (File, error) {
	if err != nil {
		return nil, err
	}
	return diskFile{f}, nil
}

func (d *disk) Rename(from, to string) error { return d.root.Rename(from, to) }
func (d *disk) Remove(name string) error     { return d.root.Remove(name) }

func (d *disk) Lock(name string) (io.Closer, error) { return lockFile(d.root, name) }

func (d *disk) Shared() bool {
	kind, _ := FileSystem(d.dir)
	return kind.Shared
}

func (d *disk) Close() error {
	if d.root == nil {
		return nil
	}
	return d.root.Close()
}

type diskFile struct{ *os.File }

func (f diskFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("%s is not a regular file", info.Name())
	}
	return info.Size(), nil
}

func (f diskFile) Sync() error { return syncFile(f.File) }

// full tells whether an error says that there is no space.
func full(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
