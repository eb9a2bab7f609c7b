// Command diaspora logs events to a Diaspora Streams cluster and reads them back,
// manages topics, and runs a whole fabric on one machine.
//
// Each command has a file of its own, which begins with its help text.
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

// mainExitCode runs the program and returns its exit code, so that a test binary can act as the program.
func mainExitCode() int {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-interrupts
		cancel(errInterrupted)
		// The first signal requests an orderly shutdown. A later one kills the program. timeout(1) and some job schedulers
		// send the first one twice, to the process and to its group.
		time.Sleep(sameSignal)
		signal.Reset(os.Interrupt, syscall.SIGTERM)
	}()
	// If the reader of a pipe exits, writes should fail. Otherwise SIGPIPE would kill
	// the program before it has shut down in an orderly way.
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

// sameSignal is how long after a signal another one counts as the same.
const sameSignal = 500 * time.Millisecond

var errInterrupted = errors.New("interrupted")

// version is set by the linker in releases.
var version = ""
