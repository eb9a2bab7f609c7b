package spool

import "github.com/diaspora-streams/diaspora/internal/disk"

// FS is the file system that a spool is stored on.
type FS = disk.FS

// File is an open file of an [FS].
type File = disk.File
