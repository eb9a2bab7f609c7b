//go:build !windows

package main

// understands reports whether a terminal supports escape sequences, for colours and for moving the cursor.
func understands(any) bool { return true }
