package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"github.com/diaspora-streams/diaspora/internal/outcome"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/terminal"
)

// failure is an error of the command itself, with the commands to type next.
type failure struct {
	condition error // the sentinel that decides the exit code; nil for 1
	text      string
	hints     []string
}

func (f *failure) Error() string        { return f.text }
func (f *failure) Is(target error) bool { return target != nil && target == f.condition }

// misuse is the error of a command line that cannot be meant.
func misuse(hint, format string, args ...any) error {
	f := &failure{condition: diaspora.ErrInvalid, text: fmt.Sprintf(format, args...)}
	if hint != "" {
		f.hints = []string{hint}
	}
	return f
}

// hinted adds what to do next to an error. Nil stays nil.
func hinted(err error, hints ...string) error {
	if err == nil {
		return nil
	}
	return &hintedError{err, hints}
}

type hintedError struct {
	error
	hints []string
}

func (h *hintedError) Unwrap() error { return h.error }

// exitCode says to the shell what err says.
func exitCode(ctx context.Context, err error) int {
	switch {
	case err == nil:
		return 0
	case context.Cause(ctx) == errInterrupted:
		return outcome.ExitCode(context.Canceled)
	case errors.Is(err, globus.ErrDenied):
		return outcome.ExitCode(diaspora.ErrUnauthenticated)
	}
	return outcome.ExitCode(err)
}

// errorDocument is an error for programs.
type errorDocument struct {
	Error    string   `json:"error"`
	Hints    []string `json:"hints"`
	ExitCode int      `json:"exit_code"`
}

// complain writes an error, and what to do about it, to stderr: to programs as a line of JSON.
func (e *env) complain(err error, code int) {
	text, hints := explanation(err)
	if e.json() {
		var line bytes.Buffer
		enc := json.NewEncoder(&line)
		enc.SetEscapeHTML(false)
		if enc.Encode(errorDocument{text, append([]string{}, hints...), code}) == nil {
			e.talkTo().Write(terminal.EscapeJSON(nil, line.Bytes()))
			return
		}
	}
	e.talkAs(red, "diaspora: ", text)
	e.hint(hints)
}

// hint writes what to do next to stderr.
func (e *env) hint(hints []string) {
	for _, hint := range hints {
		e.talkAs(cyan, "hint: ", hint)
	}
}

// explanation takes an error's advice out of its text.
func explanation(err error) (text string, hints []string) {
	text, hint := outcome.Split(err)
	if hint != "" {
		hints = append(hints, hint)
	}
	for h, rest := (*hintedError)(nil), err; errors.As(rest, &h); rest = h.error {
		hints = append(hints, h.hints...)
	}
	if f := (*failure)(nil); errors.As(err, &f) {
		hints = append(hints, f.hints...)
	}
	return text, hints
}
