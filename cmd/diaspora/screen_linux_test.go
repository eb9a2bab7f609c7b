package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// openTerminal returns the two ends of a pseudo-terminal with this many columns: the one that a person sees, and the
// one that a program writes to.
func openTerminal(t *testing.T, columns int) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	testkit.Must(t, err)
	t.Cleanup(func() { person.Close() })
	fd := int(person.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err == nil {
		t.Cleanup(func() { program.Close() })
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: uint16(columns)})
	}
	testkit.Must(t, err)
	return person, program
}

// TestTerminal tests the output on a real pseudo-terminal.
func TestTerminal(t *testing.T) {
	d := newDesk(t)
	d.must(t, "topic", "claim", "weather", "--description", strings.Repeat("long ", 50))
	person, program := openTerminal(t, 60)
	var sent testkit.Text
	go io.Copy(&sent, person) // ends with the terminal
	text := func() string { return strings.ReplaceAll(sent.String(), "\r\n", "\n") }
	d.vars["TERM"] = "xterm-256color"
	d.terminal, d.columns = isTerminal, terminalColumns
	d.stderr = program

	read, write := io.Pipe()
	d.stdin = read
	go io.WriteString(write, "one\ntwo\n")
	_, done := d.started(t, "produce", "weather")
	testkit.Eventually(t, "progress", func() bool { return strings.Contains(text(), eraseLine+"2 lines, 8 B, ") })
	write.Close()
	if code := done(); code != 0 {
		t.Fatalf("exits with %d:\n%s", code, text())
	}
	testkit.Eventually(t, "the end", func() bool { return strings.Contains(text(), "acknowledged\n") })
	if got := seen(t, text()); got != "diaspora: 2 events acknowledged\n" {
		t.Errorf("at the end the terminal shows %q", got)
	}
	for _, line := range drawn(text()) {
		if len(line) >= 60 {
			t.Errorf("%q is wider than the terminal", line)
		}
	}

	sent.Reset()
	d.stdout = program
	d.must(t, "topic", "list")
	testkit.Eventually(t, "a table that fits", func() bool { return strings.HasSuffix(text(), "…\n") })
	for line := range strings.Lines(text()) {
		if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > 60 {
			t.Errorf("%q has %d columns", line, n)
		}
	}
	sent.Reset()
	if code := d.types(t.Context(), "topic", "show", "wether"); code != 5 {
		t.Errorf("exits with %d", code)
	}
	testkit.Eventually(t, "an error in red", func() bool { return strings.Contains(text(), "\x1b[31mdiaspora: \x1b[0mshow topic") })
}
