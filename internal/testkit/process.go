package testkit

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"testing"
)

// Rerun starts the test binary again, as another process, with more variables in its environment. They tell
// TestMain of that package what the process has to do. Rerun returns the lines that it prints, and its
// standard input. The process ends with the test at the latest.
func Rerun(t testing.TB, env ...string) (process *exec.Cmd, lines *bufio.Scanner, stdin io.WriteCloser) {
	t.Helper()
	exe, err := os.Executable()
	Must(t, err)
	process = exec.CommandContext(t.Context(), exe)
	process.Env = append(os.Environ(), env...)
	process.Stderr = os.Stderr
	stdout, err := process.StdoutPipe()
	Must(t, err)
	stdin, err = process.StdinPipe()
	Must(t, err)
	Must(t, process.Start())
	return process, bufio.NewScanner(stdout), stdin
}
