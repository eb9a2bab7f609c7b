// Command dist builds everything that users install, from the clone that it is in: archives with the
// static binary, Debian and RPM packages, container images, Python wheels, an SBOM, and a file with
// checksums. `make dist` runs it.
//
// Two runs on the same commit write the same bytes: nothing depends on the clock, on the folder of the clone,
// or on the order in which files are found. All times in the files are the time of the commit. The program runs in
// its folder of the clone.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "dist:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("dist", flag.ContinueOnError)
	out := flags.String("out", "dist", "write the files to this `FOLDER` of the clone; what is in it is deleted")
	only := flags.String("targets", "", "build only for these `TARGETS`, such as linux/amd64,linux/arm64")
	if err := flags.Parse(args); err != nil {
		return err
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		return err
	}
	chosen, err := choose(*only)
	if err != nil {
		return err
	}
	r, err := newRelease(ctx, root, filepath.Join(root, *out))
	if err != nil {
		return err
	}
	defer os.RemoveAll(r.work)
	fmt.Printf("diaspora %s, of %s\n", r.version, r.time.Format(time.RFC3339))

	if err := r.help(ctx); err != nil {
		return err
	}
	for _, t := range chosen {
		if err := r.build(ctx, t); err != nil {
			return fmt.Errorf("%s: %w", t, err)
		}
	}
	for _, step := range []func(context.Context, []target) error{r.archives, r.packages, r.images, r.wheels, r.sbom} {
		if err := step(ctx, chosen); err != nil {
			return err
		}
	}
	return r.checksums()
}

// A target is a system that a binary is built for.
type target struct {
	os, arch string
	arm      string // GOARM, for arch arm
}

// targets are all systems that a release is built for. The spool, and with it produce, is promised on Linux and macOS only.
var targets = []target{
	{os: "linux", arch: "amd64"},
	{os: "linux", arch: "arm64"},
	{os: "linux", arch: "arm", arm: "7"},
	{os: "darwin", arch: "amd64"},
	{os: "darwin", arch: "arm64"},
	{os: "windows", arch: "amd64"},
}

// String returns the name of the target: linux/amd64, or linux/armv7.
func (t target) String() string { return t.os + "/" + t.machine() }

// machine returns the name of the processor: amd64, arm64 or armv7.
func (t target) machine() string {
	if t.arm != "" {
		return t.arch + "v" + t.arm
	}
	return t.arch
}

// choose returns the targets with these names, or all of them.
func choose(names string) ([]target, error) {
	if names == "" {
		return targets, nil
	}
	var chosen []target
	for name := range strings.SplitSeq(names, ",") {
		i := slices.IndexFunc(targets, func(t target) bool { return t.String() == name })
		if i < 0 {
			return nil, fmt.Errorf("unknown target %q; choose from %v", name, targets)
		}
		chosen = append(chosen, targets[i])
	}
	return chosen, nil
}

// A release is one run of the program.
type release struct {
	root    string // the clone
	out     string // where the files go that users install
	work    string // for everything else; deleted at the end
	version string // as semver, without a v: 1.2.3, or 0.1.0-dev.20261129101500 between releases
	time    time.Time
}

// base is the version that is worked on. Builds between releases are pre-releases of it.
const base = "0.1.0"

func newRelease(ctx context.Context, root, out string) (*release, error) {
	r := &release{root: root, out: out, work: filepath.Join(out, ".work")}
	seconds := os.Getenv("SOURCE_DATE_EPOCH") // see reproducible-builds.org
	if seconds == "" {
		var err error
		if seconds, err = output(ctx, root, "git", "log", "-1", "--format=%ct"); err != nil {
			seconds = "315532800" // a tree without its history: 1980, the earliest time in zip files
		}
	}
	n, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("time of the commit: %w", err)
	}
	r.time = time.Unix(n, 0).UTC()
	r.version = base + "-dev." + r.time.Format("20060102150405")
	if tag, err := output(ctx, root, "git", "describe", "--tags", "--exact-match", "--match", "v[0-9]*"); err == nil {
		r.version = strings.TrimPrefix(tag, "v")
	}
	if filepath.Dir(out) != root { // or a mistyped folder would be emptied
		return nil, fmt.Errorf("%s is not a folder directly below %s", out, root)
	}
	if err := os.RemoveAll(out); err != nil {
		return nil, err
	}
	return r, os.MkdirAll(r.work, 0o755)
}

// binary returns the file that build writes for a target.
func (r *release) binary(t target) string {
	name := "diaspora"
	if t.os == "windows" {
		name += ".exe"
	}
	return filepath.Join(r.work, t.os+"-"+t.machine(), name)
}

// build compiles the program for a target.
func (r *release) build(ctx context.Context, t target) error {
	cmd := r.command(ctx, r.root, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -buildid= -X main.version="+r.version, "-o", r.binary(t), "./cmd/diaspora")
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOOS="+t.os, "GOARCH="+t.arch, "GOARM="+t.arm, "GOAMD64=v1", "GOARM64=v8.0")
	return cmd.Run()
}

// here is the system that the program runs on, in what programs of the release have to run during the build.
var here = target{os: runtime.GOOS, arch: runtime.GOARCH}

// shells are those that have a completion script, with the file in which packages install it.
var shells = []struct{ name, file string }{
	{"bash", "usr/share/bash-completion/completions/diaspora"},
	{"zsh", "usr/share/zsh/vendor-completions/_diaspora"},
	{"fish", "usr/share/fish/vendor_completions.d/diaspora.fish"},
}

// completion returns the file with the completion script for a shell.
func (r *release) completion(shell string) string {
	return filepath.Join(r.work, "completions", "diaspora."+shell)
}

// help has the program write its completion scripts and manual pages.
func (r *release) help(ctx context.Context) error {
	if err := r.build(ctx, here); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(r.work, "completions"), 0o755); err != nil {
		return err
	}
	for _, shell := range shells {
		cmd := r.command(ctx, r.root, r.binary(here), "completion", shell.name)
		cmd.Stdout = nil
		script, err := cmd.Output()
		if err != nil {
			return err
		}
		if err := os.WriteFile(r.completion(shell.name), script, 0o644); err != nil {
			return err
		}
	}
	cmd := r.command(ctx, r.root, r.binary(here), "reference", "man", filepath.Join(r.work, "man"))
	cmd.Stdout = nil
	return cmd.Run()
}

// pages returns the files of the manual, such as man1/diaspora.1, in the order of their names.
func (r *release) pages() ([]string, error) {
	found, err := filepath.Glob(filepath.Join(r.work, "man", "man[0-9]", "*"))
	if err == nil && len(found) == 0 {
		err = errors.New("there are no manual pages")
	}
	for i, name := range found {
		found[i] = filepath.Join(filepath.Base(filepath.Dir(name)), filepath.Base(name))
	}
	return found, err
}

// command returns a command that prints to the terminal.
func (r *release) command(ctx context.Context, dir, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), fmt.Sprintf("SOURCE_DATE_EPOCH=%d", r.time.Unix()), "TZ=UTC", "LC_ALL=C")
	return cmd
}

// output returns what a command prints, without the line feed at its end.
func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	out, err := cmd.Output()
	if failed := (*exec.ExitError)(nil); errors.As(err, &failed) {
		err = fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, failed.Stderr)
	}
	return strings.TrimSuffix(string(out), "\n"), err
}
