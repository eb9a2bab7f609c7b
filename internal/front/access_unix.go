//go:build unix

package front

import (
	"os"
	"syscall"
)

// mayWrite reports why this user may not make files in a folder, without making one.
func mayWrite(dir string) error {
	const write, search = 2, 1 // W_OK and X_OK
	if err := syscall.Access(dir, write|search); err != nil {
		return os.NewSyscallError("access", err)
	}
	return nil
}
