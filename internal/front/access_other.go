//go:build !unix

package front

import "os"

// mayWrite reports why a folder is not there. Whether this user may write to it, the service finds out.
func mayWrite(dir string) error {
	_, err := os.Stat(dir)
	return err
}
