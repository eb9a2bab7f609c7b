//go:build !linux && !darwin && !freebsd

package doctor

import "errors"

func spaceOf(string) (diskSpace, error) { return diskSpace{}, errors.ErrUnsupported }
