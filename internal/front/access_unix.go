//go:build unix

package front

import (
	"os"
	"syscall"
)

// CheckWritable returns an error if the real user of this process may not create files in a folder. It
// asks the kernel instead of creating a file, because a check must not change anything.
func CheckWritable(dir string) error {
	const write, search = 2, 1 // W_OK and X_OK
	if err := syscall.Access(dir, write|search); err != nil {
		return os.NewSyscallError("access", err)
	}
	return nil
}
