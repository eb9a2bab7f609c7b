package measure

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
	"runtime/debug"
	"runtime/pprof"
	"slices"
	"strings"
	"time"
)

// A Program is a benchmark program: the flags that all of them have, and the way to write a report.
type Program struct {
	Name   string  // of the program and of its reports; the package is ./bench or ./bench/NAME
	Rounds int     // turns of each contender; the value before [Program.Main] is the default
	Scale  float64 // factor on the amounts; trial runs use a small one
	Dir    string  // for the data of the part that is running

	check           bool
	only, data, out string
}

// A Part measures one thing, and returns its section of the report.
type Part struct {
	Name  string
	Run   func(context.Context) (string, error)
	Short bool // it takes a minute or so, and -check repeats it
}

// Main parses the flags, calls run, and exits.
func (p *Program) Main(run func(context.Context) error) {
	flag.StringVar(&p.only, "only", "", "measure only these `PARTS`, with commas between")
	flag.StringVar(&p.out, "out", "bench/results", "folder of the reports; empty: print only")
	flag.StringVar(&p.data, "data", "", "folder for the data (default: the system's for temporary files)")
	flag.BoolVar(&p.check, "check", false, "repeat the short parts, and print which ratios are below those of the newest report that has them")
	flag.IntVar(&p.Rounds, "rounds", p.Rounds, "turns of each contender")
	flag.Float64Var(&p.Scale, "scale", 1, "factor on the amounts")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	err := errors.New("-rounds and -scale must be positive")
	if p.Rounds > 0 && p.Scale > 0 {
		err = run(ctx)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", p.Name, err)
		os.Exit(1)
	}
}

// CPUProfile profiles this process into a file until stop is called. Without a name it does nothing.
func CPUProfile(name string) (stop func(), err error) {
	if name == "" {
		return func() {}, nil
	}
	file, err := os.Create(name)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(file); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return func() { pprof.StopCPUProfile(); file.Close() }, nil
}

// Scaled returns n times the scale, and at least 1.
func (p *Program) Scaled(n int) int { return max(1, int(float64(n)*p.Scale)) }

// Report runs the parts, each with an empty folder for its data, and prints and writes the report.
func (p *Program) Report(ctx context.Context, intro string, parts []Part) (err error) {
	report := p.head() + intro
	for _, part := range parts {
		if p.check && !part.Short && p.only == "" {
			continue
		}
		if p.only != "" && !slices.Contains(strings.Split(p.only, ","), part.Name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "%s: %s\n", p.Name, part.Name)
		if p.Dir, err = os.MkdirTemp(p.data, "diaspora-bench-"); err != nil {
			return err
		}
		section, err := part.Run(ctx)
		if err := errors.Join(err, os.RemoveAll(p.Dir)); err != nil {
			return fmt.Errorf("%s: %w", part.Name, err)
		}
		report += "\n" + section
	}
	fmt.Print(report)
	if !p.check {
		return p.Write(".md", report)
	}
	text, worse, err := compare(report, p.out)
	fmt.Print("\n", text)
	if err == nil && worse > 0 {
		err = errors.New("some ratios are worse than they were")
	}
	return err
}

// FileName returns the name of a file of the report, which begins with the date.
func (p *Program) FileName(extension string) string {
	name := time.Now().UTC().Format(time.DateOnly)
	if p.Name != "bench" {
		name += "-" + p.Name
	}
	if p.only != "" {
		name += "-" + strings.ReplaceAll(p.only, ",", "-")
	}
	return name + extension
}

// Write writes a file of the report, unless reports are only printed.
func (p *Program) Write(extension, content string) error {
	if p.out == "" {
		return nil
	}
	return errors.Join(os.MkdirAll(p.out, 0o755), os.WriteFile(filepath.Join(p.out, p.FileName(extension)), []byte(content), 0o644))
}

// head returns the head of the report, which names the machine, the versions and the command.
func (p *Program) head() string {
	path := "./bench"
	if p.Name != "bench" {
		path += "/" + p.Name
	}
	revision := "devel"
	if out, err := exec.Command("git", "describe", "--always", "--dirty").Output(); err == nil {
		revision = strings.TrimSpace(string(out))
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, dep := range info.Deps {
			if name, ok := strings.CutPrefix(dep.Path, "github.com/twmb/franz-go"); ok {
				revision += ", franz-go" + name + " " + dep.Version
			}
		}
	}
	return fmt.Sprintf(`# Measurements of %s

Command: `+"`%s`"+`; %d rounds.
Machine: %s, %d cores, %s/%s, %s; broker, gateway and clients share it.
Versions: diaspora %s.
`, time.Now().UTC().Format(time.DateOnly), strings.Join(append([]string{"go run", path}, os.Args[1:]...), " "), p.Rounds,
		cpu(), runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version(), revision)
}

func cpu() string {
	data, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(data)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown processor"
}
