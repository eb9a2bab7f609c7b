//go:build !unix

package front

import "os"

// CheckWritable returns an error if a folder does not exist. This system has no way to check the
// permission to write without creating a file, so the service reports a missing permission later.
func CheckWritable(dir string) error {
	_, err := os.Stat(dir)
	return err
}
