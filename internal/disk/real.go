package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
)

// tree is shared by a real directory and its subdirectories. All names are resolved below root, so
// a symbolic link cannot lead out of the directory.
type tree struct {
	dir string // absolute

	mu   sync.Mutex // guards the fields below
	root *os.Root   // opened when it is first needed
	over bool
}

// real is one directory of a tree.
type real struct {
	*tree
	path string // relative to the tree's directory, which is "."
}

// New returns the directory dir of the real file system. It does not touch the disk: Make creates
// the directory, and the first use opens it.
func New(dir string) (FS, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	return &real{&tree{dir: dir}, "."}, nil
}

// open returns the tree's root, opening it if necessary.
func (t *tree) open() (*os.Root, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return nil, &fs.PathError{Op: "open", Path: t.dir, Err: fs.ErrClosed}
	}
	if t.root == nil {
		root, err := os.OpenRoot(t.dir)
		if err != nil {
			return nil, err
		}
		t.root = root
	}
	return t.root, nil
}

func (d *real) name(name string) string { return filepath.Join(d.path, name) }

func (d *real) Sub(name string) FS { return &real{d.tree, d.name(name)} }

func (d *real) parent() *real { return &real{d.tree, filepath.Dir(d.path)} }

func (d *real) Make() error {
	if d.path == "." {
		if err := makeAll(d.dir, false); err != nil {
			return err
		}
		_, err := d.open()
		return err
	}
	err := d.mkdir()
	if errors.Is(err, fs.ErrNotExist) {
		if err := errors.Join(d.parent().Make(), d.parent().SyncParent()); err != nil {
			return err
		}
		err = d.mkdir()
	}
	return err
}

// mkdir creates a subdirectory whose parent exists.
func (d *real) mkdir() error {
	root, err := d.open()
	if err != nil {
		return err
	}
	if err = root.Mkdir(d.path, 0o700); !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := root.Stat(d.path)
	if err == nil && !info.IsDir() {
		err = &fs.PathError{Op: "mkdir", Path: d.path, Err: syscall.ENOTDIR}
	}
	return err
}

// makeAll is like [os.MkdirAll], but makes the parents that it creates durable, and with sync also
// dir itself.
func makeAll(dir string, sync bool) error {
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		return &fs.PathError{Op: "mkdir", Path: dir, Err: syscall.ENOTDIR}
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := filepath.Dir(dir)
	if err := makeAll(parent, true); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if !sync {
		return nil
	}
	return syncDir(os.Open(parent))
}

func (d *real) List() ([]fs.FileInfo, error) {
	root, err := d.open()
	if err != nil {
		return nil, err
	}
	dir, err := root.Open(d.path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	entries, err := dir.ReadDir(-1) // not Readdir, which fails if a file is removed in the meantime
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

// dotInfo describes the directory itself under the name ".".
type dotInfo struct{ fs.FileInfo }

func (dotInfo) Name() string { return "." }

func (d *real) SyncParent() error {
	if d.path != "." {
		return d.parent().Sync()
	}
	err := syncDir(os.Open(filepath.Dir(d.dir)))
	if errors.Is(err, fs.ErrPermission) {
		return nil // we may not read it, so we have not created dir in it either
	}
	return err
}

func (d *real) Sync() error {
	root, err := d.open()
	if err != nil {
		return err
	}
	return syncDir(root.Open(d.path))
}

func syncDir(dir *os.File, err error) error {
	if err != nil {
		return err
	}
	err = dir.Sync()
	if runtime.GOOS == "windows" || errors.Is(err, syscall.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
		err = nil // some file systems do not support it, because they keep entries safe without it
	}
	return errors.Join(err, dir.Close())
}

func (d *real) Open(name string, write bool) (File, error) {
	flag := os.O_RDONLY
	if write {
		flag = os.O_RDWR
	}
	return d.file(name, flag, 0)
}

func (d *real) Create(name string) (File, error) {
	return d.file(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
}

func (d *real) file(name string, flag int, mode fs.FileMode) (File, error) {
	root, err := d.open()
	if err != nil {
		return nil, err
	}
	f, err := root.OpenFile(d.name(name), flag, mode)
	if err != nil {
		return nil, err
	}
	return realFile{f}, nil
}

func (d *real) Rename(from, to string) error {
	root, err := d.open()
	if err != nil {
		return err
	}
	return root.Rename(d.name(from), d.name(to))
}

func (d *real) Remove(name string) error {
	root, err := d.open()
	if err != nil {
		return err
	}
	return root.Remove(d.name(name))
}

func (d *real) Lock(name string) (io.Closer, error) {
	root, err := d.open()
	if err != nil {
		return nil, err
	}
	return lockFile(root, d.name(name))
}

func (d *real) Shared() bool {
	kind, _ := FileSystem(filepath.Join(d.dir, d.path))
	return kind.Shared
}

func (d *real) Close() error {
	if d.path != "." {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.over = true
	root := d.root
	d.root = nil
	if root == nil {
		return nil
	}
	return root.Close()
}

type realFile struct{ *os.File }

func (f realFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("%s is not a regular file", info.Name())
	}
	return info.Size(), nil
}

func (f realFile) Sync() error { return syncFile(f.File) }
