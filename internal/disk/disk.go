// Package disk is the file system interface of this module. It offers directories of files that are
// read and written at offsets, and defines what survives a power cut.
//
// Code that must not lose data takes an [FS] instead of a path. [New] returns the real file system,
// and [Memory] one that keeps everything in memory. Tests use the model in package disktest, which
// loses whatever was not synced, in every way in which a disk may lose it.
//
// Three rules follow from how file systems behave in a power cut. They apply to every user of this
// package:
//
//   - The content of a file is safe after its Sync. Its name is safe after the Sync of its
//     directory. The directory itself is safe after its SyncParent.
//   - Changes since the last sync may survive in any part and in any order. A file may have its new
//     size and old bytes, or the bytes of a deleted file.
//   - After a failed sync the kernel may regard the data as written although it is not. A second
//     sync of the same file proves nothing, so the file must not be relied on any more. This also
//     holds for the names in a directory, and for later processes on the same machine: what they
//     find may exist in memory only. To make it durable they have to write it again.
//
// The package also has functions for single files at a path ([WriteFile], [ReplaceFile]).
package disk

import (
	"errors"
	"io"
	"io/fs"
)

// ErrInUse means that another process, or another part of this process, holds the lock.
var ErrInUse = errors.New("another process holds the lock")

// FS is one directory. Names are those of its entries, without slashes. A power cut may lose
// changes, in part and in any order, until the Sync that covers them has returned nil. Methods may
// be called concurrently.
type FS interface {
	// Make creates the directory, with mode 0700, if it does not exist. It also creates missing
	// parents, which are durable when Make returns. The directory itself is durable after
	// SyncParent.
	Make() error
	// List returns the entries of the directory, and the directory itself as ".".
	List() ([]fs.FileInfo, error)
	// SyncParent makes the directory itself durable, as an entry of its parent.
	SyncParent() error
	// Sync makes the directory's entries durable: files and directories that were created, renamed
	// or removed.
	Sync() error
	// Open opens a file for reading and, if write is true, also for writing.
	Open(name string, write bool) (File, error)
	// Create creates a file, with mode 0600. The file must not exist.
	Create(name string) (File, error)
	// Rename renames an entry. It replaces a file that has the new name.
	Rename(from, to string) error
	// Remove removes a file or an empty directory.
	Remove(name string) error
	// Lock locks a file for this process, and creates the file if it does not exist. It fails with
	// [ErrInUse] if the file is locked already. Closing the result, or the end of the process,
	// releases the lock.
	Lock(name string) (io.Closer, error)
	// Shared reports whether other machines may have the directory mounted too.
	Shared() bool
	// Sub returns a directory in this one. It does not touch the disk: Make creates the directory.
	// The result needs no file descriptor and no Close of its own.
	Sub(name string) FS
	// Close releases the directory and all that Sub has returned. Closing a result of Sub has no
	// effect.
	Close() error
}

// File is an open file of an [FS]. Methods may be called concurrently, except Close.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Size() (int64, error)
	Truncate(size int64) error
	// Sync makes the file's content and size durable, but not its name.
	Sync() error
}

// Replace replaces the content of a file, or creates it. A crash leaves either the old or the new
// content. With sync, the new content is durable when Replace returns nil. Without it, the content
// survives the end of the process, but a power cut can leave the file empty or torn.
//
// After an error, the file may have the old or the new content. Calls for the same file must not
// overlap. Replace writes the content to a temporary file first, called name plus ".tmp".
func Replace(fsys FS, name string, content []byte, sync bool) error {
	temp := name + ".tmp"
	if err := fsys.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := fsys.Create(temp)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(content, 0)
	if err == nil && sync {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = fsys.Rename(temp, name)
	}
	if err != nil {
		fsys.Remove(temp) // frees the space; if this fails too, the first error matters more
		return err
	}
	if sync {
		return fsys.Sync()
	}
	return nil
}

// ReadFile reads a file, but at most its first limit bytes.
func ReadFile(fsys FS, name string, limit int64) ([]byte, error) {
	f, err := fsys.Open(name, false)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	b := make([]byte, min(size, limit))
	n, err := f.ReadAt(b, 0)
	if err == io.EOF {
		err = nil
	}
	return b[:n], err
}

// RemoveAll removes the subdirectory called name and everything in it. It is not an error if
// the directory does not exist. The removal is durable after fsys.Sync.
func RemoveAll(fsys FS, name string) error {
	sub := fsys.Sub(name)
	infos, err := sub.List()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, info := range infos {
		switch {
		case info.Name() == ".":
			continue
		case info.IsDir():
			err = RemoveAll(sub, info.Name())
		default:
			err = sub.Remove(info.Name())
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := fsys.Remove(name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
