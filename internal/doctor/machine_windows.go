package doctor

import (
	"errors"
	"io/fs"
	"syscall"
)

func fileOwner(fs.FileInfo) (uid int, known bool) { return 0, false }

// isRefused checks for WSAECONNREFUSED, which package syscall does not define.
func isRefused(err error) bool { return errors.Is(err, syscall.Errno(10061)) }

// tryLocks does nothing, because Windows locks need no test.
func tryLocks(string) error { return nil }
