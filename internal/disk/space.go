package disk

import (
	"errors"
	"syscall"
)

// FileSystemKind is what users of a directory have to know of its file system.
type FileSystemKind struct {
	Name     string // "" if it is none of those that are known by name
	Shared   bool   // other machines may have it mounted as well
	InMemory bool   // it is gone when the machine stops
}

// Full tells whether an error says that the disk, or the user's share of it, is full.
func Full(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || systemFull(err)
}
