package disk

import (
	"errors"
	"math"
	"os"
	"syscall"
	"unsafe"
)

var getDiskFreeSpace = syscall.NewLazyDLL("kernel32.dll").NewProc("GetDiskFreeSpaceExW")

// Space returns how many bytes the user can still write to the volume of dir, and how many bytes of
// it the user may use in total.
func Space(dir string) (free, total int64, err error) {
	name, err := syscall.UTF16PtrFromString(dir)
	if err != nil {
		return 0, 0, err
	}
	var left, all uint64
	ok, _, err := getDiskFreeSpace.Call(uintptr(unsafe.Pointer(name)), uintptr(unsafe.Pointer(&left)), uintptr(unsafe.Pointer(&all)), 0)
	if ok == 0 {
		return 0, 0, os.NewSyscallError("GetDiskFreeSpaceEx", err)
	}
	return int64(min(left, math.MaxInt64)), int64(min(all, math.MaxInt64)), nil
}

const (
	errorHandleDiskFull = syscall.Errno(39)
	errorDiskFull       = syscall.Errno(112)
)

func systemFull(err error) bool {
	return errors.Is(err, errorHandleDiskFull) || errors.Is(err, errorDiskFull)
}
