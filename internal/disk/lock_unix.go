//go:build unix

package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"syscall"
)

// held are the lock files of this process. An fcntl lock keeps other processes out, but not other
// users in the same process. And the process loses the lock as soon as it closes any descriptor of
// the file. So a file that is held must not be opened a second time.
var held struct {
	sync.Mutex
	files []*os.File
}

// lockFile locks a file until the result is closed. It uses fcntl, because NFS, Lustre and GPFS
// apply fcntl locks across machines.
func lockFile(root *os.Root, name string) (io.Closer, error) {
	held.Lock()
	defer held.Unlock()
	if info, err := root.Stat(name); err == nil {
		for _, other := range held.files {
			if there, err := other.Stat(); err == nil && os.SameFile(info, there) {
				return nil, ErrInUse
			}
		}
	}
	f, err := root.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	whole := syscall.Flock_t{Type: syscall.F_WRLCK}
	err = syscall.FcntlFlock(f.Fd(), syscall.F_SETLK, &whole)
	switch {
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EAGAIN):
		err = ErrInUse
	case errors.Is(err, syscall.ENOLCK), errors.Is(err, errors.ErrUnsupported):
		err = nil // the file system has no locks; users must have another way to exclude each other, such as an owner file
	case err != nil:
		err = fmt.Errorf("lock: %w", err)
	}
	if err == nil {
		err = stillThere(f, root, name)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	held.files = append(held.files, f)
	return heldLock{f}, nil
}

// stillThere fails if the file was removed while it was being locked. Otherwise another process
// could create a new file of that name and lock that.
func stillThere(f *os.File, root *os.Root, name string) error {
	here, err := f.Stat()
	if err != nil {
		return err
	}
	there, err := root.Stat(name)
	if err == nil && !os.SameFile(here, there) {
		err = ErrInUse
	}
	return err
}

type heldLock struct{ f *os.File }

func (l heldLock) Close() error {
	held.Lock()
	defer held.Unlock()
	held.files = slices.DeleteFunc(held.files, func(f *os.File) bool { return f == l.f })
	return l.f.Close()
}
