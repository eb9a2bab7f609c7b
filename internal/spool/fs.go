package spool

import "github.com/diaspora-streams/diaspora/internal/disk"

// FS is all that a spool asks of a file system.
type FS = disk.FS

// File is an open file of an [FS].
type File = disk.File
