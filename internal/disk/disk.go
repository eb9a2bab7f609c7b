// Package disk is the file system as the rest of the module sees it: directories of
// files that are read and written at offsets, and for which it is always clear what
// survives a power cut.
//
// Code that must not lose data takes an [FS] instead of a path. [New] returns the
// real file system and [Memory] one that keeps everything in memory. Tests take the
// model in package disktest, which loses whatever was not synced, in every way a disk
// may lose it.
//
// Three rules follow from how file systems treat a power cut. They hold for every
// user of this package:
//
//   - The content of a file is safe after its Sync. Its name is safe after the Sync of
//     its directory. The directory itself is safe after its SyncParent.
//   - What was changed since the last sync may survive in any part and in any order.
//     A file may have its new size and old bytes, or the bytes of a deleted file.
//   - After a failed sync the kernel may regard the data as written although it is
//     not. A second sync of the same file proves nothing, so that the file must not be
//     relied on any more.
package disk

import (
	"errors"
	"io"
	"io/fs"
)

// ErrInUse means that another process, or another user in this one, holds the lock.
var ErrInUse = errors.New("another process holds the lock")

// FS is one directory. Names are those of its entries, without slashes. What a method
// has changed may be lost in a power cut, in part and in any order, until the Sync that
// covers it has returned nil. Methods may be called concurrently.
type FS interface {
	// Make makes the directory, with mode 0700, if it is missing. Missing parents are
	// made as well, and are durable when Make returns; the directory itself is durable
	// after SyncParent.
	Make() error
	// List returns what is in the directory, and the directory itself as ".".
	List() ([]fs.FileInfo, error)
	// SyncParent makes the directory itself durable, as an entry of its parent.
	SyncParent() error
	// Sync makes the directory's entries durable: files and directories that were
	// made, renamed and removed.
	Sync() error
	// Open opens a file for reading, and with write for writing too.
	Open(name string, write bool) (File, error)
	// Create makes a file, with mode 0600. The file must not exist.
	Create(name string) (File, error)
	// Rename renames an entry. It replaces a file that has the new name.
	Rename(from, to string) error
	// Remove removes a file or an empty directory.
	Remove(name string) error
	// Lock locks a file for this process, and makes the file if it is missing. It fails with
	// [ErrInUse] if the file is locked already. The lock ends with Close or with the process.
	Lock(name string) (io.Closer, error)
	// Shared tells whether other machines may have the directory too.
	Shared() bool
	// Sub returns a directory in this one. It touches nothing: the directory is made by its
	// Make. Sub needs no descriptor and no Close of its own.
	Sub(name string) FS
	// Close releases the directory and all that Sub has returned. Closing a Sub
	// has no effect.
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

// Replace gives a file a new content, or makes it. A crash leaves either the old or
// the new content. With sync, the new content is durable when Replace returns nil.
// Without it, the content survives the process but perhaps not a power cut, which
// can leave the file empty or torn.
//
// An error may leave the old or the new content. Calls for the same file must not
// overlap. The content is first written to a file called name plus ".tmp".
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
		fsys.Remove(temp) // gives the space back; the first error counts
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

// RemoveAll removes the sub directory called name and everything in it. A missing
// directory is no error. The removal is durable after fsys.Sync.
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
