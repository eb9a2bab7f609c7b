package main

import (
	"os"

	"golang.org/x/sys/windows"
)

// understands makes a terminal take what moves the cursor and colours text, and reports whether it does.
func understands(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return true
	}
	var mode uint32
	console := windows.Handle(f.Fd())
	return windows.GetConsoleMode(console, &mode) == nil &&
		windows.SetConsoleMode(console, mode|windows.ENABLE_VIRTUAL_TERMINAL_PROCESSING) == nil
}
