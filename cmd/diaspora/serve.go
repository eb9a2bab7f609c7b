package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/front"
)

var serveHelp = help{
	use:   "serve [gateway|acl]",
	short: "run the gateway and the ACL endpoint for an Apache Kafka cluster",
	examples: `
# register with Globus, and write /etc/diaspora/serve.toml
sudo diaspora serve init

# the gateway and the ACL endpoint in one process
diaspora serve --config /etc/diaspora/serve.toml

# only the gateway, on each broker's host
diaspora serve gateway

# test the settings against the cluster, and print what to change
diaspora serve --check`,
	long: `
The gateway authenticates Kafka clients, and connects each client to the broker on its host. At the
ACL endpoint, people claim topics. Run one gateway on each broker's host, and any number of ACL
endpoints on any hosts.

You can set each setting as a flag, as an environment variable, or in the file. The file is TOML,
and uses the names of the flags. The name of a variable is like DIASPORA_SERVE_ACL_LISTEN for
"acl-listen". A flag overrides the variable, and the variable overrides the file. Put each secret
into a file of its own, which only its owner can read (mode 0600).

serve runs until Ctrl-C or SIGTERM. It finishes the requests that are in flight before it exits.`,
	args: arguments{max: 1},
}

// serveSettingsFile is read if it exists and --config names no other file. A test changes it.
var serveSettingsFile = "/etc/diaspora/serve.toml"

func (e *env) serveCommand() *cobra.Command {
	var cmd *cobra.Command
	var check bool
	cmd = e.command(serveHelp, func(ctx context.Context, args []string) error {
		part := optional(args)
		if part != "" && part != "gateway" && part != "acl" {
			return misuse("", "serve: %q is not a part; choose gateway or acl, or neither for both", part)
		}
		given, err := e.givenSettings(cmd.Flags())
		if err != nil {
			return err
		}
		var left []error
		if check {
			left = placeholders(part, given)
		}
		cfg, err := serveConfig(part, given, left...)
		if err != nil {
			return e.noFile(cmd.Flags(), err)
		}
		cfg.Version = programVersion()
		file := e.changeable(cmd.Flags())
		if check {
			return e.serveCheck(ctx, *cfg, file...)
		}
		for _, f := range file {
			e.warn("%s; %s", f.Found, f.Fix)
		}
		return e.serve(ctx, *cfg)
	})
	cmd.ValidArgs = []string{"gateway", "acl"}
	cmd.Flags().String("config", "", "read the settings from `FILE` (default: "+serveSettingsFile+", if it exists)")
	cmd.Flags().BoolVar(&check, "check", false, "test the settings against the cluster without starting anything")
	for _, s := range serveSettings {
		cmd.Flags().String(s.name, "", s.usage)
	}
	cmd.AddCommand(e.serveInitCommand())
	return cmd
}

// startTimeout limits the start, most of which is reading the ledger.
const startTimeout = time.Minute

func (e *env) serve(ctx context.Context, cfg front.Config) (err error) {
	cfg.Diagnostics = slog.New(slog.NewTextHandler(e.stderr, nil))
	starting, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	f, err := front.Open(starting, cfg)
	if ctx.Err() != nil {
		return nil // stopped while it started
	}
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("serve: %w", err)
	case errors.Is(err, diaspora.ErrUnavailable):
		return hinted(fmt.Errorf("serve: Kafka does not answer at %s: %w", strings.Join(cfg.Kafka.Brokers, ","), err), "start Kafka first, and then this command again")
	case err != nil:
		return hinted(fmt.Errorf("serve: %w", err), `"diaspora serve --check" says what to change`)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if e.json() {
		if err := e.printJSON(f.Addrs()); err != nil {
			return err
		}
	}
	for name, address := range f.Addrs() {
		e.say("%s serves at %s", name, address)
	}
	return f.Run(ctx)
}

var serveColours = map[front.Status]colour{front.OK: green, front.Warn: yellow, front.Fail: red}

// serveCheck prints what is known already and the results of the checks, and fails if a setting has to be changed.
func (e *env) serveCheck(ctx context.Context, cfg front.Config, known ...front.Finding) error {
	findings := append(known, front.Check(ctx, cfg)...)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	numbers := map[front.Status]int{}
	var err error
	for _, f := range findings {
		numbers[f.Status]++
		rest := fmt.Sprintf("  %s: %s\n", f.Check, oneLine(f.Found))
		if f.Fix != "" {
			rest += "      " + oneLine(f.Fix) + "\n"
		}
		if err == nil && !e.json() {
			err = e.printPainted(serveColours[f.Status], fmt.Sprintf("%-4s", f.Status), rest)
		}
	}
	if e.json() {
		err = e.printJSON(map[string]any{"findings": findings, "failed": numbers[front.Fail], "warnings": numbers[front.Warn], "skipped": numbers[front.Skip]})
	}
	if err == nil && numbers[front.Fail] > 0 {
		text := fmt.Sprintf("serve: %s of %d found something to change", count(numbers[front.Fail], "check"), len(findings))
		if warned := numbers[front.Warn]; warned > 0 {
			text += "; " + count(warned, "warning")
		}
		if skipped := numbers[front.Skip]; skipped > 0 {
			text += fmt.Sprintf("; %d could not be tried", skipped)
		}
		err = misuse("", "%s", text)
	}
	return err
}
