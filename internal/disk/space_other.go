//go:build !linux && !darwin && !freebsd && !windows

package disk

import "errors"

// Space is not supported on this system.
func Space(string) (free, total int64, err error) { return 0, 0, errors.ErrUnsupported }

func systemFull(error) bool { return false }
