package globus

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
	"testing"
)

func TestLockless(t *testing.T) {
	for err, want := range map[error]bool{
		syscall.ENOSYS: true, syscall.ENOTSUP: true, syscall.ENOLCK: true,
		syscall.EACCES: false, syscall.EINTR: false, fs.ErrNotExist: false, errors.New("x"): false,
	} {
		if got := lockless(&os.PathError{Op: "flock", Path: "x", Err: err}); got != want {
			t.Errorf("lockless(%v) = %t, want %t", err, got, want)
		}
	}
}
