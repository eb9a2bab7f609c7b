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

// failure is an error of the command itself, with hints that name the next command to type.
type failure struct {
	condition error // sentinel that determines the exit code; nil means 1
	text      string
	hints     []string
}

func (f *failure) Error() string        { return f.text }
func (f *failure) Is(target error) bool { return target != nil && target == f.condition }

// misuse returns the error for an invalid command line.
func misuse(hint, format string, args ...any) error {
	f := &failure{condition: diaspora.ErrInvalid, text: fmt.Sprintf(format, args...)}
	if hint != "" {
		f.hints = []string{hint}
	}
	return f
}

// hinted adds hints to an error. It returns nil if err is nil.
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

// exitCode returns the exit code for err.
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

// errorDocument is an error as JSON.
type errorDocument struct {
	Error    string   `json:"error"`
	Hints    []string `json:"hints"`
	ExitCode int      `json:"exit_code"`
}

// complain writes an error and its hints to stderr, with -o json as one line of JSON.
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

// hint writes hints to stderr.
func (e *env) hint(hints []string) {
	for _, hint := range hints {
		e.talkAs(cyan, "hint: ", hint)
	}
}

// explanation splits an error into its text and its hints.
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
