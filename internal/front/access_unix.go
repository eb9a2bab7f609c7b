//go:build unix

package front

import (
	"os"
	"syscall"
)

// mayWrite returns an error if this user may not create files in a folder. It does not create one.
func mayWrite(dir string) error {
	const write, search = 2, 1 // W_OK and X_OK
	if err := syscall.Access(dir, write|search); err != nil {
		return os.NewSyscallError("access", err)
	}
	return nil
}
