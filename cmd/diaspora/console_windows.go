package main

import (
	"os"

	"golang.org/x/sys/windows"
)

// enableANSI enables escape sequences on a terminal, for colours and for moving the cursor, and reports
// whether that worked.
func enableANSI(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return true
	}
	var mode uint32
	console := windows.Handle(f.Fd())
	return windows.GetConsoleMode(console, &mode) == nil &&
		windows.SetConsoleMode(console, mode|windows.ENABLE_VIRTUAL_TERMINAL_PROCESSING) == nil
}
