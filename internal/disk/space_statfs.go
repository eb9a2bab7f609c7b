//go:build linux || darwin || freebsd

package disk

import (
	"math"
	"os"
	"syscall"
)

// Space returns how many bytes an unprivileged user can still write to the file system of dir, and
// its total size in bytes.
func Space(dir string) (free, total int64, err error) {
	var stat syscall.Statfs_t
	if err := syscall.Statfs(dir, &stat); err != nil {
		return 0, 0, os.NewSyscallError("statfs", err)
	}
	size := int64(stat.Bsize)
	// Bavail is signed on some systems. A negative value means that only root may write.
	return inBytes(int64(stat.Bavail), size), inBytes(int64(stat.Blocks), size), nil
}

func inBytes(blocks, size int64) int64 {
	if blocks = max(blocks, 0); blocks > math.MaxInt64/max(size, 1) {
		return math.MaxInt64
	}
	return blocks * size
}

func systemFull(error) bool { return false }
