//go:build unix

package doctor

import (
	"errors"
	"io/fs"
	"os"
	"syscall"

	"github.com/gofrs/flock"
)

// fileOwner returns the user ID of a file's owner.
func fileOwner(info fs.FileInfo) (uid int, known bool) {
	stat, known := info.Sys().(*syscall.Stat_t)
	if !known {
		return 0, false
	}
	return int(stat.Uid), true
}

func isRefused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// tryLocks tests the two kinds of locks that the program uses. Token files use flock, which must
// exclude a second lock. Spools use fcntl. That lock only excludes other processes, so it is only
// tested whether it is granted.
func tryLocks(dir string) (err error) {
	f, err := os.CreateTemp(dir, ".diaspora-doctor-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	first, second := flock.New(f.Name()), flock.New(f.Name())
	defer first.Close()
	defer second.Close()
	for _, try := range []struct {
		lock *flock.Flock
		want bool
	}{{first, true}, {second, false}} {
		got, err := try.lock.TryLock()
		if err != nil {
			return err
		}
		if got != try.want {
			return errors.New("two had the same lock, or nobody")
		}
	}
	whole := syscall.Flock_t{Type: syscall.F_WRLCK}
	if err := syscall.FcntlFlock(f.Fd(), syscall.F_SETLK, &whole); err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	return nil
}
