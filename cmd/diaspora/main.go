// Command diaspora logs events to a Diaspora Streams cluster and reads them back,
// manages topics, and runs a whole fabric on one machine.
//
// Each command has a file of its own: what its help says, then what it does.
package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	os.Exit(mainExitCode())
}

// mainExitCode is the program but for the exit, so that tests can be it.
func mainExitCode() int {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-interrupts
		// The first signal asks for an orderly end; the second one is not caught.
		signal.Reset(os.Interrupt, syscall.SIGTERM)
		cancel(errInterrupted)
	}()
	// A reader that went away is an error of the write, not a signal that ends
	// the program before it has signed off.
	signal.Ignore(syscall.SIGPIPE)
	return run(ctx, &env{
		stdin:    os.Stdin,
		stdout:   os.Stdout,
		stderr:   os.Stderr,
		getenv:   os.Getenv,
		environ:  os.Environ,
		now:      time.Now,
		terminal: isTerminal,
		columns:  terminalColumns,
	}, os.Args[1:])
}

var errInterrupted = errors.New("interrupted")

// version is set when a release is linked.
var version = ""
