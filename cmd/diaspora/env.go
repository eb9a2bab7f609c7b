package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/diaspora-streams/diaspora/internal/terminal"
)

// env holds what a command uses from outside the program, such as its streams and environment variables, so that
// a test can replace them and run the whole program.
type env struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
	environ        func() []string // the whole environment, like os.Environ
	now            func() time.Time
	browser        func(url string) error // opens a page; nil uses the system's browser
	terminal       func(stream any) bool  // reports whether the stream is a terminal
	columns        func(stream any) int   // width of the stream's terminal; 0 if it is unknown or the stream is not a terminal

	screen       *screen // stderr with a progress line at the bottom; nil if stderr is not a terminal that supports that
	stamped      bool    // messages begin with the time
	notedProfile bool    // the user was told that --profile does not choose the credential, because the environment sets one

	awaitRenewals []func() // each waits for a token renewal that is in progress; called at the end

	common
}

// common has the flags of every command.
type common struct {
	output  string // one of the command's formats
	profile string // "" means that --profile was not given
	quiet   bool
}

// json reports whether the output is JSON.
func (e *env) json() bool { return e.output == "json" || e.output == "ndjson" }

// say prints a note to stderr, unless --quiet is set.
func (e *env) say(format string, args ...any) {
	if !e.quiet {
		e.printErr("diaspora: " + fmt.Sprintf(format, args...))
	}
}

// warn prints a warning to stderr, even if --quiet is set.
func (e *env) warn(format string, args ...any) {
	e.printErrAs(yellow, "diaspora: ", fmt.Sprintf(format, args...))
}

// printErr writes a message to stderr. The message may quote text from other people. So control characters are
// escaped, and all its lines but the first are indented, so that they cannot imitate our own messages.
func (e *env) printErr(message string) { e.printErrAs("", "", message) }

// printErrAs is printErr with a coloured prefix.
func (e *env) printErrAs(c colour, prefix, message string) {
	text := terminal.Escape(nil, []byte(strings.ReplaceAll(message, "\n", "\n  ")+"\n"))
	if e.stamped {
		prefix = e.now().Format(time.RFC3339) + " " + prefix
	}
	_, _ = e.errWriter().Write(append([]byte(e.paint(e.stderr, c, prefix)), text...))
}

// stampInFile adds the time to each message, if stderr is a file. A program that runs for weeks is started by cron, for
// instance, which adds none; the journal of systemd does.
func (e *env) stampInFile() {
	if f, ok := e.stderr.(*os.File); ok {
		info, err := f.Stat()
		e.stamped = err == nil && info.Mode().IsRegular()
	}
}

// errWriter returns the writer for messages: stderr, or the screen that keeps a progress line at its bottom.
func (e *env) errWriter() io.Writer {
	if e.screen != nil {
		return e.screen
	}
	return e.stderr
}

// jsonLine returns v as one line of JSON, with control characters escaped.
func jsonLine(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return terminal.EscapeJSON(nil, buf.Bytes()), err
}

// printJSON writes v to stdout, as one line of JSON.
func (e *env) printJSON(v any) error {
	line, err := jsonLine(v)
	if err != nil {
		return err
	}
	return e.write(line)
}

// answer prints the result of a command: the document as JSON, or the text.
func (e *env) answer(document any, format string, args ...any) error {
	if e.json() {
		return e.printJSON(document)
	}
	return e.printf(format, args...)
}

// printf writes text to stdout, with control characters escaped.
func (e *env) printf(format string, args ...any) error {
	return e.write(terminal.Escape(nil, fmt.Appendf(nil, format, args...)))
}

func (e *env) write(data []byte) error {
	if _, err := e.stdout.Write(data); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// readerLeft reports whether a write failed because the reader closed the pipe, as head does.
func readerLeft(err error) bool {
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, io.ErrClosedPipe)
}

// helpOutput is the output of help texts. Cobra prints an error if the reader, such as head, closes the pipe
// early. All other commands exit silently in this case, so helpOutput hides the error.
type helpOutput struct{ io.Writer }

func (h helpOutput) Write(p []byte) (int, error) {
	n, err := h.Writer.Write(p)
	if readerLeft(err) {
		return len(p), nil
	}
	return n, err
}

// isTerminal is env.terminal in production.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// terminalColumns is env.columns in production.
func terminalColumns(stream any) int {
	f, ok := stream.(*os.File)
	if !ok {
		return 0
	}
	columns, _, _ := term.GetSize(int(f.Fd())) // negative on an error
	return max(0, columns)
}

// collectLess makes garbage collections less frequent, for the rest of the process. A collection begins when the heap
// has doubled, and the heap of a command that only passes events on is so small that this happens a hundred times a
// second. collectLess allocates memory that counts for the heap, but is never used, so that it takes no memory of the
// machine. It does so once: in a process that runs many commands, the allocations would fill 32 bits of addresses.
var collectLess = sync.OnceValue(func() []byte { return make([]byte, 32<<20) })
