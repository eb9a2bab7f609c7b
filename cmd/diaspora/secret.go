package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/term"
)

// echoOffLimit is how long askSecret waits until the terminal has turned echo off.
const echoOffLimit = time.Second

// askSecret reads a line from a terminal that does not echo it. If ctx ends, it returns ctx's error, and the terminal echoes again.
func (e *env) askSecret(ctx context.Context, terminal *os.File, question string) (string, error) {
	fd := int(terminal.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return "", err
	}
	type answer struct {
		text []byte
		err  error
	}
	answers := make(chan answer, 1) // a read cannot be interrupted
	go func() {
		text, err := term.ReadPassword(fd)
		answers <- answer{text, err}
	}()
	// Ask only when echo is off. Otherwise the terminal would show what a fast user pastes.
	for began := time.Now(); time.Since(began) < echoOffLimit; time.Sleep(time.Millisecond) {
		if now, err := term.GetState(fd); err != nil || *now != *before {
			break
		}
	}
	fmt.Fprint(e.stderr, question)
	select {
	case a := <-answers:
		fmt.Fprintln(e.stderr)
		return string(a.text), a.err
	case <-ctx.Done():
		term.Restore(fd, before) // with echo
		return "", ctx.Err()
	}
}
