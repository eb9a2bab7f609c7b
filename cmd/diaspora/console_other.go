//go:build !windows

package main

// enableANSI reports whether a terminal supports escape sequences, for colours and for moving the cursor.
func enableANSI(any) bool { return true }
