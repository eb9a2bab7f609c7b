//go:build !unix

package disk

import (
	"io"
	"os"
	"path/filepath"

	"github.com/gofrs/flock"
)

// lockFile locks a file until the result is closed.
func lockFile(root *os.Root, name string) (io.Closer, error) {
	lock := flock.New(filepath.Join(root.Name(), name), flock.SetFlag(os.O_CREATE|os.O_RDWR))
	locked, err := lock.TryLock()
	if err == nil && !locked {
		err = ErrInUse
	}
	if err != nil {
		return nil, err
	}
	return lock, nil
}
