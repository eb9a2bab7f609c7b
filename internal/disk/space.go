package disk

import (
	"errors"
	"syscall"
)

// FileSystemKind is what users of a directory need to know of its file system.
type FileSystemKind struct {
	Name     string // "" if it is not one of the known ones
	Shared   bool   // other machines may have it mounted too
	InMemory bool   // its content is lost when the machine stops
}

// Full reports whether an error means that the disk, or the user's quota, is full.
func Full(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || systemFull(err)
}
