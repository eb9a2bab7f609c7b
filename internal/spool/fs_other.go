//go:build !linux

package spool

import "os"

func syncFile(f *os.File) error { return f.Sync() }

// sharedFileSystem is true where we cannot tell, which costs a heartbeat.
func sharedFileSystem(string) bool { return true }
