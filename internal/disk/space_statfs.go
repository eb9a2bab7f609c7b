//go:build linux || darwin || freebsd

package disk

import (
	"math"
	"os"
	"syscall"
)

// Free returns how many bytes a user without privileges can still write to the file
// system of dir.
func Free(dir string) (bytes int64, err error) {
	var stat syscall.Statfs_t
	if err := syscall.Statfs(dir, &stat); err != nil {
		return 0, os.NewSyscallError("statfs", err)
	}
	blocks := max(int64(stat.Bavail), 0) // signed on some systems: below zero, only root may write
	if size := int64(stat.Bsize); blocks <= math.MaxInt64/max(size, 1) {
		return blocks * size, nil
	}
	return math.MaxInt64, nil
}

func systemFull(error) bool { return false }
