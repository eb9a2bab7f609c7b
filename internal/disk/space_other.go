//go:build !linux && !darwin && !freebsd && !windows

package disk

import "errors"

// Free cannot tell here.
func Free(string) (bytes int64, err error) { return 0, errors.ErrUnsupported }

func systemFull(error) bool { return false }
