package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/doctor"
)

var doctorHelp = help{
	use:   "doctor",
	short: "find out why events do not arrive, and what to do about it",
	examples: `
diaspora doctor

# also log a test event to a topic, and read it back
diaspora doctor --topic weather

# also write the results to a file for a support ticket; it has no tokens, keys or events in it
diaspora doctor --bundle ticket.tar.gz`,
	long: `
doctor checks what events need on their way to the fabric, and prints one line per check:
environment, login, network, TLS, gateway, rights, a test event that is written and read back,
spool, disk. If a check fails, the checks that depend on it are skipped. Begin with the first
failure. "diaspora help checks" explains each check.

doctor writes one small test event to the topic in --topic or, without --topic, to your topic named
"doctor", if you have one. Otherwise it writes no event and changes nothing.

--quiet prints only warnings and failures. The exit code is 0 if nothing failed, and 1 otherwise.`,
	args: arguments{surplus: "to check a topic, use --topic TOPIC"},
}

type doctorOptions struct {
	topic   string
	timeout time.Duration
	bundle  string
}

func (e *env) doctorCommand() *cobra.Command {
	var o doctorOptions
	cmd := e.command(doctorHelp, func(ctx context.Context, _ []string) error { return e.doctor(ctx, o) })
	cmd.Flags().StringVar(&o.topic, "topic", "", "write the test event to the topic `NAME`")
	cmd.Flags().DurationVar(&o.timeout, "timeout", 10*time.Second, "time limit per check, as a `DURATION` such as 30s")
	cmd.Flags().StringVar(&o.bundle, "bundle", "", "write the results to a new `FILE`, a .tar.gz, for a support ticket")
	cmd.RegisterFlagCompletionFunc("topic", completion(anyArgument, e.topicNames))
	cmd.RegisterFlagCompletionFunc("timeout", fixed("3s", "10s", "30s"))
	return cmd
}

func (e *env) doctor(ctx context.Context, o doctorOptions) error {
	if o.timeout <= 0 {
		return misuse("", "doctor: --timeout %v: it must be positive", o.timeout)
	}
	if o.topic != "" {
		if err := diaspora.ValidTopic(o.topic); err != nil {
			return err
		}
	}
	bundle, err := createBundle(o.bundle)
	if err != nil {
		return err
	}
	printer := doctor.Printer{Quiet: e.quiet}
	run, stop := context.WithCancel(ctx)
	defer stop()
	print := func(lines []doctor.Line) {
		for _, line := range lines {
			if err == nil && !e.json() {
				err = e.printPainted(doctorColours[line.Status], line.Head, line.Rest+"\n")
			}
		}
		if err != nil {
			stop() // nobody reads the output any more
		}
	}
	report := doctor.Examine(run, doctor.Config{
		Getenv:   e.lookup,
		Environ:  e.environ(),
		Version:  programVersion(),
		Spools:   e.doctorSpools,
		Topic:    o.topic,
		Timeout:  o.timeout,
		Now:      e.now,
		Operator: e.doctorOperator(),
		Mistyped: e.discardHint,
	}, func(f doctor.Finding) { print(printer.Add(f)) })
	print(printer.End())
	if err == nil && e.json() {
		err = e.printJSON(report)
	}
	if err := errors.Join(err, e.fillBundle(bundle, report)); err != nil {
		return err
	}
	return e.verdict(ctx, report)
}

var doctorColours = map[doctor.Status]colour{doctor.OK: green, doctor.Warning: yellow, doctor.Failure: red, doctor.NotTried: faint}

// doctorOperator returns what the user can do who runs the fabric with "diaspora up", and "" for other users.
func (e *env) doctorOperator() string {
	cfg, _, err := e.client()
	if err != nil || !hasStandIn(cfg) {
		return ""
	}
	if secret, err := e.standInSecret(cfg.Discovery.Globus.Issuer); err != nil || secret == "" {
		return ""
	}
	return `look at what your "diaspora up" says`
}

// doctorSpools returns the folder for spools of the current profile, and all spools of this user.
func (e *env) doctorSpools() (home string, dirs []string, err error) {
	p, err := e.currentPool()
	if err != nil {
		return "", nil, err
	}
	dirs, err = e.spoolsAt(nil)
	return p.Dir, dirs, err
}

// verdict prints the summary and returns nil if no check failed. Otherwise it returns the error with
// which the command ends. If the user has interrupted the checks, that is ctx's error.
func (e *env) verdict(ctx context.Context, report *doctor.Report) error {
	if context.Cause(ctx) == errInterrupted {
		return ctx.Err()
	}
	if report.Count(doctor.Failure) == 0 {
		if e.quiet || e.json() {
			return nil
		}
		return e.printf("%s\n", report.Summary())
	}
	first := report.Findings[slices.IndexFunc(report.Findings, func(f doctor.Finding) bool { return f.Status == doctor.Failure })]
	return fail(nil, "begin with: "+first.Check, "%s", report.Summary())
}

// createBundle creates the file before the checks run, so that a file that cannot be written is an error
// at once. It returns nil if name is empty.
func createBundle(name string) (*os.File, error) {
	if name == "" {
		return nil, nil
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil, fail(diaspora.ErrConflict, "name a new file, or remove it", "doctor: %s exists already", name)
	}
	if err != nil {
		return nil, fmt.Errorf("doctor: make the bundle: %w", err)
	}
	return f, nil
}

// fillBundle writes the bundle, and tells the user what is in it.
func (e *env) fillBundle(f *os.File, report *doctor.Report) error {
	if f == nil {
		return nil
	}
	w := bufio.NewWriter(f)
	if err := errors.Join(report.WriteBundle(w), w.Flush(), f.Close()); err != nil {
		return errors.Join(fmt.Errorf("doctor: write the bundle: %w", err), os.Remove(f.Name()))
	}
	e.say("wrote %s, which only you can read. In it are:\n%s", f.Name(), strings.Join(doctor.BundleContents(), "\n"))
	e.say("it has your username, addresses and paths, but no tokens, keys or events; look at it before you send it")
	return nil
}
