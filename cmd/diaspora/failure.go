package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/outcome"
)

// failure is an error with hints that name the next command to type.
type failure struct {
	error
	condition error // a sentinel that determines the exit code; nil leaves that to the error
	hints     []string
}

func (f *failure) Unwrap() error        { return f.error }
func (f *failure) Is(target error) bool { return target != nil && target == f.condition }

// fail returns an error of the command itself. A condition of nil means exit code 1, and an empty hint none.
func fail(condition error, hint, format string, args ...any) error {
	f := &failure{error: fmt.Errorf(format, args...), condition: condition}
	if hint != "" {
		f.hints = []string{hint}
	}
	return f
}

// misuse returns the error for an invalid command line.
func misuse(hint, format string, args ...any) error {
	return fail(diaspora.ErrInvalid, hint, format, args...)
}

// hinted adds hints to an error. It returns nil if err is nil.
func hinted(err error, hints ...string) error {
	if err == nil {
		return nil
	}
	return &failure{error: err, hints: hints}
}

// hintsOf returns the hints in a tree of errors, from the outermost to the innermost.
func hintsOf(err error) (hints []string) {
	if f, ok := err.(*failure); ok {
		hints = append(hints, f.hints...)
	}
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		hints = append(hints, hintsOf(e.Unwrap())...)
	case interface{ Unwrap() []error }:
		for _, err := range e.Unwrap() {
			hints = append(hints, hintsOf(err)...)
		}
	}
	return hints
}

// exitCode returns the exit code for err.
func exitCode(ctx context.Context, err error) int {
	// The normal end of a watch is an interrupt, and it has to say that a file was not logged.
	if err != nil && context.Cause(ctx) == errInterrupted && !errors.Is(err, outcome.ErrIncomplete) {
		return outcome.ExitCode(context.Canceled)
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
	if line, err := jsonLine(errorDocument{text, append([]string{}, hints...), code}); e.json() && err == nil {
		e.errWriter().Write(line)
		return
	}
	e.printErrAs(red, "diaspora: ", text)
	e.hint(hints...)
}

// hint writes hints to stderr.
func (e *env) hint(hints ...string) {
	for _, hint := range hints {
		e.printErrAs(cyan, "hint: ", hint)
	}
}

// explanation splits an error into its text and its hints.
func explanation(err error) (text string, hints []string) {
	text, hint := outcome.Split(err)
	if hint != "" {
		hints = append(hints, strings.ReplaceAll(hint, "`", `"`)) // the service quotes commands as in Markdown
	}
	return text, append(hints, hintsOf(err)...)
}
