//go:build linux || darwin || freebsd

package doctor

import (
	"os"
	"syscall"
)

func spaceOf(dir string) (diskSpace, error) {
	var stat syscall.Statfs_t
	if err := syscall.Statfs(dir, &stat); err != nil {
		return diskSpace{}, os.NewSyscallError("statfs", err)
	}
	block := uint64(stat.Bsize)
	return diskSpace{free: uint64(stat.Bavail) * block, total: stat.Blocks * block, entries: uint64(stat.Ffree)}, nil
}
