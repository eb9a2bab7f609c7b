package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/diaspora-streams/diaspora/internal/terminal"
)

// env is what a command has of the world, so that a test can run the whole program.
type env struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
	environ        func() []string // all of it, as os.Environ
	now            func() time.Time
	browser        func(url string) error // opens a page; nil for the system's way
	terminal       func(stream any) bool  // is a person at the other end
	columns        func(stream any) int   // of a terminal; 0 if it is none, or not known

	bottom           *screen // stderr, where that is a terminal; nil elsewhere
	toldOfCredential bool    // whether the warning about --profile beside a credential was printed

	settle []func() // wait for renewals of tokens that are under way; called at the end

	common // the flags that every command has
}

// common holds the flags of every command.
type common struct {
	output  string // one of the command's formats
	profile string // "" for the usual one
	quiet   bool
}

// json reports whether the output is for programs.
func (e *env) json() bool { return e.output == "json" || e.output == "ndjson" }

// say tells the person something that is not the result. --quiet silences it.
func (e *env) say(format string, args ...any) {
	if !e.quiet {
		e.talk("diaspora: " + fmt.Sprintf(format, args...))
	}
}

// warn tells what must be known, quiet or not.
func (e *env) warn(format string, args ...any) {
	e.talkAs(yellow, "diaspora: ", fmt.Sprintf(format, args...))
}

// talk writes a line to stderr. It may quote what strangers wrote, so nothing
// in it commands the terminal, and further lines are indented: none of them
// passes for one of ours.
func (e *env) talk(line string) { e.talkAs("", "", line) }

// talkAs is talk with a word of ours before it, in a colour.
func (e *env) talkAs(c colour, word, line string) {
	text := terminal.Escape(nil, []byte(strings.ReplaceAll(line, "\n", "\n  ")+"\n"))
	_, _ = e.talkTo().Write(append([]byte(e.paint(e.stderr, c, word)), text...))
}

// talkTo is where all goes that is said: stderr, past the line at its bottom.
func (e *env) talkTo() io.Writer {
	if e.bottom != nil {
		return e.bottom
	}
	return e.stderr
}

// printJSON writes v as one line of JSON. Nothing in it commands the terminal.
func (e *env) printJSON(v any) error {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	return e.write(terminal.EscapeJSON(nil, buf.Bytes()))
}

// printf writes text for people to stdout. Nothing in it commands the terminal.
func (e *env) printf(format string, args ...any) error {
	return e.write(terminal.Escape(nil, fmt.Appendf(nil, format, args...)))
}

func (e *env) write(data []byte) error {
	if _, err := e.stdout.Write(data); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// readerLeft reports whether an error says that nobody reads the output any more,
// as when it goes into head.
func readerLeft(err error) bool {
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, io.ErrClosedPipe)
}

// helpOutput is the output of help texts. Cobra prints an error if the reader, such as head, closes the pipe
// early; other commands end without a word then.
type helpOutput struct{ io.Writer }

func (h helpOutput) Write(p []byte) (int, error) {
	n, err := h.Writer.Write(p)
	if readerLeft(err) {
		return len(p), nil
	}
	return n, err
}

// isTerminal is env.terminal outside of tests.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// terminalColumns is env.columns outside of tests.
func terminalColumns(stream any) int {
	f, ok := stream.(*os.File)
	if !ok {
		return 0
	}
	columns, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return columns
}
