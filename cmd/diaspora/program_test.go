package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora/internal/outcome"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/globus"
)

// desk is the environment of a user in these tests: a home directory, and the output on the screen.
type desk struct {
	*env
	vars   map[string]string
	out    testkit.Text
	err    testkit.Text
	fabric *fabric.Fabric
	data   string // the data folder of the fabric
}

// newDesk returns a desk with a running fabric, where ada is logged in with the profile "home".
func newDesk(t *testing.T) *desk {
	t.Helper()
	d := emptyDesk(t)
	d.data = filepath.Join(t.TempDir(), "data")
	f := fabrictest.Start(t, fabric.Config{Dir: d.data, Operators: []string{"ada@example.edu"}})
	d.fabric = f
	login := fabrictest.Login(t, f, "ada@example.edu")
	testkit.Must(t, storeLogin(diaspora.OpenProfiles(d.vars["DIASPORA_CONFIG_DIR"]), "home", f, login))
	return d
}

// emptyDesk returns a desk without a fabric, where nobody is logged in.
func emptyDesk(t *testing.T) *desk {
	d := &desk{vars: map[string]string{"DIASPORA_CONFIG_DIR": filepath.Join(t.TempDir(), "config")}}
	d.env = &env{
		stdin: strings.NewReader(""), stdout: &d.out, stderr: &d.err,
		getenv: func(name string) string { return d.vars[name] },
		environ: func() (all []string) {
			for name, value := range d.vars {
				all = append(all, name+"="+value)
			}
			return all
		},
		now:      time.Now,
		terminal: func(any) bool { return false },
		columns:  func(any) int { return 0 },
	}
	return d
}

// types runs a command to its end and returns its exit code.
func (d *desk) types(ctx context.Context, args ...string) int {
	e := *d.env // each command parses flags into its own copy
	return run(ctx, &e, args)
}

// must runs a command, and fails the test if the command fails.
func (d *desk) must(t *testing.T, args ...string) {
	t.Helper()
	if code := d.types(t.Context(), args...); code != 0 {
		t.Fatalf("diaspora %s exits with %d:\n%s", strings.Join(args, " "), code, d.err.String())
	}
}

// leaves returns all commands that do something: those that have no subcommands, and serve.
func leaves(cmd *cobra.Command) (all []*cobra.Command) {
	if cmd.Name() == "help" || cmd.IsAdditionalHelpTopicCommand() {
		return nil
	}
	if cmd.Flags().Lookup("output") != nil {
		all = append(all, cmd)
	}
	for _, c := range cmd.Commands() {
		all = append(all, leaves(c)...)
	}
	return all
}

// TestHelpHasNoEmptyDefaults checks that no help shows the default of an empty list.
func TestHelpHasNoEmptyDefaults(t *testing.T) {
	for _, cmd := range leaves(emptyDesk(t).commands()) {
		if usages := cmd.Flags().FlagUsages(); strings.Contains(usages, "(default [])") {
			t.Errorf("the flags of %s are\n%s", cmd.CommandPath(), usages)
		}
	}
}

// TestOnlyJSON checks that with -o json, the standard output of every command is JSON or lines of JSON: where nobody is
// logged in, where there is nothing to show, and on errors.
func TestOnlyJSON(t *testing.T) {
	t.Parallel()
	runsOn := []string{"up", "serve", "example", "login", "markdown", "man"} // until they are stopped, or they need a fabric or a folder of their own
	more := map[string][]string{"consume": {"--from", "start", "--exit"}, "release": {"--now", "--yes"}, "share": {"--public"}, "unshare": {"--public"}, "set": {"--retention", "1d"}, "transfer": {"--cancel"}, "discard": {"--yes"}, "doctor": {"--timeout", "3s"}}
	for name, d := range map[string]*desk{"nobody logged in": emptyDesk(t), "nothing to show": newDesk(t)} {
		for _, cmd := range leaves(d.commands()) {
			if slices.Contains(runsOn, cmd.Name()) || name == "nothing to show" && (cmd.Name() == "logout" || cmd.Name() == "remove") {
				continue
			}
			for _, args := range [][]string{nil, {"weather"}, {"no such thing"}} {
				line := slices.Concat(strings.Fields(cmd.CommandPath())[1:], args, more[cmd.Name()], []string{"-o", "json"})
				d.out.Reset()
				d.types(t.Context(), line...)
				out := d.out.String()
				for part := range strings.Lines(out) {
					if !json.Valid([]byte(part)) && !json.Valid([]byte(out)) {
						t.Errorf("%s: diaspora %s prints %q", name, strings.Join(line, " "), part)
					}
				}
			}
		}
	}
}

// TestEveryCommandSpeaksJSON checks that every command accepts -o json, and rejects an
// unknown format before it does anything.
func TestEveryCommandSpeaksJSON(t *testing.T) {
	commands := leaves(emptyDesk(t).commands())
	if len(commands) < 14 {
		t.Fatalf("the tree has %d commands", len(commands))
	}
	for _, cmd := range commands {
		flag := cmd.Flags().Lookup("output")
		if flag == nil || flag.Shorthand != "o" || !slices.Contains(regexp.MustCompile(`\w+`).FindAllString(flag.Usage, -1), "json") {
			t.Errorf("%s has no -o json", cmd.CommandPath())
			continue
		}
		for format, known := range map[string]bool{"json": true, "text": true, "xml": false, "": false} {
			d := emptyDesk(t)
			d.output = format
			root := d.commands()
			c, _, _ := root.Find(strings.Fields(cmd.CommandPath())[1:])
			d.output = format
			err := c.Args(c, []string{"one"}) // each command accepts one argument, or says that there are too many
			refused := err != nil && strings.Contains(err.Error(), "choose one of")
			if tooMany := err != nil && strings.Contains(err.Error(), "too many"); !tooMany && refused == known {
				t.Errorf("%s -o %s: %v", cmd.CommandPath(), format, err)
			}
		}
		for _, name := range []string{"profile", "quiet"} {
			if cmd.InheritedFlags().Lookup(name) == nil {
				t.Errorf("%s has no --%s", cmd.CommandPath(), name)
			}
		}
	}
}

// TestEnvironmentHelp checks that "diaspora help environment" lists every variable that the program reads.
func TestEnvironmentHelp(t *testing.T) {
	name := regexp.MustCompile(`"((?:DIASPORA|GLOBUS_SDK)_[A-Z_]+)"`)
	n := 0
	for _, pattern := range []string{"../../*.go", "*.go", "../../internal/accesskey/*.go"} {
		sources, err := filepath.Glob(pattern)
		if err != nil || len(sources) < 3 {
			t.Fatalf("%s: %d files, %v", pattern, len(sources), err)
		}
		for _, source := range sources {
			text := testkit.ReadFile(t, source)
			if strings.HasSuffix(source, "_test.go") {
				continue
			}
			for _, m := range name.FindAllStringSubmatch(string(text), -1) {
				if n++; !strings.Contains(environmentHelp, m[1]) && !strings.HasPrefix(m[1], "DIASPORA_SERVE_") {
					t.Errorf("%s reads %s, which the help leaves out", source, m[1])
				}
			}
		}
	}
	if n < 20 {
		t.Errorf("only %d variables are read", n)
	}
	d := emptyDesk(t)
	if code := d.types(t.Context(), "help", "environment"); code != 0 || !strings.Contains(d.out.String(), "DIASPORA_KEY_FILE") || strings.Contains(d.out.String(), "Usage:") {
		t.Errorf("help environment exits with %d:\n%s%s", code, d.out.String(), d.err.String())
	}
}

// TestExamplesParse checks that the examples in help texts are valid command lines.
func TestExamplesParse(t *testing.T) {
	for _, cmd := range leaves(emptyDesk(t).commands()) {
		if cmd.Example == "" {
			t.Errorf("%s has no examples", cmd.CommandPath())
		}
		example := strings.ReplaceAll(cmd.Example, "\\\n", " ")
		for _, m := range mentioned.FindAllStringSubmatch(quoted.ReplaceAllString(example, "quoted"), -1) {
			if err := checkCommand(t, m[1], true); err != nil {
				t.Errorf("%s: the example diaspora %s: %v", cmd.CommandPath(), m[1], err)
			}
		}
	}
}

// TestNoSecretIsSeen runs every command, also with errors, and then searches the screen
// and the disk for tokens. Only token files may contain them.
func TestNoSecretIsSeen(t *testing.T) {
	d := newDesk(t)
	ctx := t.Context()
	refresh := func() string {
		before := len(d.out.String())
		d.must(t, "token", "--refresh")
		return strings.TrimSpace(d.out.String()[before:])
	}
	secret := refresh()
	d.must(t, "token")
	if shown := secretShape.FindAllString(d.out.String(), -1); len(shown) != 2 {
		t.Fatalf("token shows %d secrets, want 2: the search would find nothing", len(shown))
	}
	d.out.Reset()

	for _, line := range []string{
		"whoami", "whoami -o json", "token --valid-for 72h", "token --valid-for 72h -o json", "topic claim weather", "topic claim weather -o json", "topic list", "topic show weather -o json",
		"produce weather --value a -o json", "consume weather --exit -o json", "consume weather --exit -g analysis",
		"topic share weather --public", "topic set weather --retention 1d", "topic unshare weather --public", "topic release weather", "topic restore weather", "topic release weather --now --yes", "topic show weather", "produce weather --value a", "consume weather", "login", "login --no-browser",
		"example mine", "example mine -o json", "version", "completion bash",
	} {
		d.types(ctx, strings.Fields(line)...)
	}
	// Use the token where it does not belong.
	d.stdin = strings.NewReader(secret + "\n")
	d.types(ctx, "login", d.fabric.URL(), "--profile", "second", "--with-token")
	d.vars["DIASPORA_REFRESH"], d.vars["DIASPORA_URL"] = secret, d.fabric.URL()
	for _, line := range []string{"whoami", "topic list", "consume mine --exit", "produce mine --value a", "login"} {
		d.types(ctx, strings.Fields(line)...)
	}
	testkit.Must(t, d.fabric.StopGlobus())
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	d.types(short, "logout")
	d.types(short, "token", "--refresh", "--profile", "nowhere")
	testkit.Must(t, d.fabric.StartGlobus())
	d.types(ctx, "logout")
	d.types(ctx, "whoami")
	d.types(ctx, "topic", "list")
	delete(d.vars, "DIASPORA_REFRESH")
	d.types(ctx, "logout", "--profile", "home", "--local")

	for name, text := range map[string]string{"stdout": d.out.String(), "stderr": d.err.String()} {
		if at := secretShape.FindStringIndex(text); at != nil {
			t.Errorf("%s shows a secret, after …%s", name, text[max(0, at[0]-200):at[0]])
		}
	}
	for _, dir := range []string{d.vars["DIASPORA_CONFIG_DIR"], d.data} {
		checkFiles(t, dir)
	}
}

// checkFiles fails the test if a secret is in a file that is not a token file, or if
// others can read a token file.
func checkFiles(t *testing.T, dir string) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		files++
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if filepath.Base(filepath.Dir(path)) == "tokens" {
			if info.Mode().Perm() != 0o600 {
				t.Errorf("%s has mode %v", path, info.Mode())
			}
			return nil
		}
		if secretShape.Match(data) {
			t.Errorf("there is a secret in %s", path)
		}
		return nil
	})
	if err != nil || files == 0 {
		t.Errorf("%s: %d files, %v", dir, files, err)
	}
}

// started runs a command concurrently with the test. stop interrupts it, like Ctrl-C, and returns its exit code. wait
// waits for the command to end, and returns its exit code.
func (d *desk) started(t *testing.T, args ...string) (stop, wait func() int) {
	t.Helper()
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(t.Context()))
	done := make(chan int, 1)
	go func() { done <- d.types(ctx, args...) }()
	wait = func() int {
		t.Helper()
		select {
		case code := <-done:
			return code
		case <-time.After(30 * time.Second):
			t.Fatalf("diaspora %s does not end", strings.Join(args, " "))
			return -1
		}
	}
	t.Cleanup(func() { cancel(errInterrupted) })
	return func() int { cancel(errInterrupted); return wait() }, wait
}

// TestProduceInterrupted checks that produce, after Ctrl-C, says how many events were
// acknowledged, and exits with the right code.
func TestProduceInterrupted(t *testing.T) {
	d := newDesk(t)
	d.must(t, "topic", "claim", "weather")
	reader, writer := io.Pipe()
	defer writer.Close()
	d.stdin = reader
	stop, _ := d.started(t, "produce", "weather", "-o", "json")
	io.WriteString(writer, "one\ntwo\nhalf a li")
	testkit.Eventually(t, "the receipt of the second event", func() bool { return strings.Contains(d.out.String(), `"line":2`) })
	if code := stop(); code != 130 {
		t.Errorf("produce exits with %d after Ctrl-C, want 130", code)
	}
	if got := d.err.String(); !strings.HasSuffix(got, "diaspora: 2 events acknowledged\ndiaspora: interrupted\n") {
		t.Errorf("produce says %q", got)
	}
	d.out.Reset()
	d.must(t, "consume", "weather", "--exit")
	if got := d.out.String(); got != "one\ntwo\n" {
		t.Errorf("the topic has %q, want the two lines and not the half one", got)
	}
}

// TestProduceDoesNotHoldLines checks that a line is logged although the program that prints it prints nothing more for now.
func TestProduceDoesNotHoldLines(t *testing.T) {
	for _, flags := range [][]string{nil, {"--no-spool"}} {
		d := newDesk(t)
		d.must(t, "topic", "claim", "weather")
		reader, writer := io.Pipe()
		defer writer.Close()
		d.stdin = reader
		stop, _ := d.started(t, append([]string{"produce", "weather"}, flags...)...)
		io.WriteString(writer, "one\ntwo\nhalf a li")
		other, out := *d.env, new(bytes.Buffer)
		other.stdin, other.stdout, other.stderr = nil, out, io.Discard
		testkit.Eventually(t, "both lines", func() bool {
			out.Reset()
			e := other
			return run(t.Context(), &e, []string{"consume", "weather", "--exit"}) == 0 && out.String() == "one\ntwo\n"
		})
		if code := stop(); code != 130 {
			t.Errorf("produce %v exits with %d after Ctrl-C, want 130", flags, code)
		}
		if got := d.err.String(); !strings.HasSuffix(got, "diaspora: 2 events acknowledged\ndiaspora: interrupted\n") {
			t.Errorf("produce %v says %q", flags, got)
		}
	}
}

// TestProduceNamesLines checks that lines that cannot be events are reported with their numbers, and that the lines
// between them are logged in order.
func TestProduceNamesLines(t *testing.T) {
	const lines, each = 3000, 1000
	d := newDesk(t)
	d.must(t, "topic", "claim", "weather")
	var input, want strings.Builder
	for n := 1; n <= lines; n++ {
		line := strings.Repeat("x", 2<<20) // more than the cluster takes
		if n%each != 7 {
			line = fmt.Sprintf("k%d\tline %d", n%2, n)
			fmt.Fprintf(&want, "%s\n", line)
		}
		input.WriteString("k\t" + line + "\n")
	}
	for _, flags := range [][]string{nil, {"--no-spool"}, {"-o", "json"}} {
		d.stdin = strings.NewReader(input.String())
		d.err.Reset()
		d.out.Reset()
		if code := d.types(t.Context(), append([]string{"produce", "weather", "-K", "\t"}, flags...)...); code != 8 {
			t.Errorf("produce %v exits with %d, want 8", flags, code)
		}
		said, named, mark := d.err.String(), "input line %d: not logged: ", "not logged: "
		if flags != nil && flags[0] == "-o" {
			named, mark = `"exit_code":2,"input":"input","line":%d}`, `"line":`
		}
		for n := 7; n < lines; n += each {
			if !strings.Contains(said, fmt.Sprintf(named, n)) {
				t.Errorf("produce %v does not name line %d: %s", flags, n, said)
			}
		}
		if strings.Count(said, mark) != lines/each || !strings.Contains(said, fmt.Sprintf("%d events acknowledged, %d failed", lines-lines/each, lines/each)) {
			t.Errorf("produce %v says %s", flags, said)
		}
		d.out.Reset()
		d.must(t, "consume", "weather", "--exit", "--from", fmt.Sprint(-(lines - lines/each)))
		if got := d.out.String(); got != want.String() {
			t.Errorf("produce %v: the topic has %d bytes, want %d", flags, len(got), want.Len())
		}
	}
}

// TestConsumeFollows checks that consume prints a new record at once, tells the user
// what it does, and ends after Ctrl-C.
func TestConsumeFollows(t *testing.T) {
	d := newDesk(t)
	d.must(t, "topic", "claim", "weather")
	d.must(t, "produce", "weather", "--value", "before")
	d.out.Reset()
	stop, _ := d.started(t, "consume", "weather")
	testkit.Eventually(t, "catching up", func() bool { return strings.Contains(d.err.String(), "caught up after 0 records; waiting") })
	other := *d.env
	other.stdout, other.stderr = io.Discard, io.Discard
	if code := run(t.Context(), &other, []string{"produce", "weather", "--value", "after"}); code != 0 {
		t.Fatalf("produce exits with %d", code)
	}
	testkit.Eventually(t, "the record", func() bool { return d.out.String() == "after\n" })
	if code := stop(); code != 130 {
		t.Errorf("consume exits with %d after Ctrl-C, want 130", code)
	}
	if !strings.Contains(d.err.String(), "diaspora: reading weather from end: 0 records in 1 partition\n") || !strings.HasSuffix(d.err.String(), "diaspora: 1 record\ndiaspora: interrupted\n") {
		t.Errorf("consume says %q", d.err.String())
	}
}

// TestConsumeWithoutPartitions checks that consume says so if the group assigns it no partitions.
func TestConsumeWithoutPartitions(t *testing.T) {
	d := newDesk(t)
	d.must(t, "topic", "claim", "weather")
	d.must(t, "produce", "weather", "--value", "21.5")
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	codes := make(chan int, 2)
	for range 2 { // two members for one partition
		go func() { codes <- d.types(ctx, "consume", "weather", "-g", "analysis") }()
	}
	testkit.Eventually(t, "the word of the one without a partition", func() bool {
		return strings.Contains(d.err.String(), "group analysis has assigned this process no partition yet")
	})
	if n := strings.Count(d.err.String(), "no partition yet"); n != 1 {
		t.Errorf("%d say so, want 1:\n%s", n, d.err.String())
	}
	stop()
	for range 2 {
		if code := <-codes; code != 0 && code != 130 {
			t.Errorf("consume exits with %d", code)
		}
	}
}

// TestReaderLeaves checks that `consume | head` ends silently, and that the group
// continues with the first record that was not written.
func TestReaderLeaves(t *testing.T) {
	d := newDesk(t)
	d.must(t, "topic", "claim", "weather")
	d.must(t, "produce", "weather", "--value", "one", "--value", "two")
	d.err.Reset()
	for _, gone := range []error{syscall.EPIPE, io.ErrClosedPipe} {
		e := *d.env
		e.stdout = brokenPipe{gone}
		for _, args := range [][]string{
			{"consume", "weather", "--from", "start", "-q"},
			{"consume", "weather", "-g", "analysis", "-q"},
			{"topic", "list"}, {"whoami"}, {"version", "-o", "json"}, {"spool", "discard", "--help"}, {"help", "produce"},
		} {
			each := e
			if code := run(t.Context(), &each, args); code != 0 || d.err.String() != "" {
				t.Errorf("%s into a pipe that nobody reads exits with %d and says %q", args, code, d.err.String())
			}
		}
	}
	d.out.Reset()
	d.must(t, "consume", "weather", "-g", "analysis", "--exit")
	if got := d.out.String(); got != "one\ntwo\n" {
		t.Errorf("the group goes on with %q, want both", got)
	}
	// A full disk is an error.
	e := *d.env
	e.stdout = brokenPipe{syscall.ENOSPC}
	if code := run(t.Context(), &e, []string{"consume", "weather", "--exit"}); code != 1 || !strings.Contains(d.err.String(), "diaspora: write output: no space left on device") {
		t.Errorf("consume onto a full disk exits with %d and says %q", code, d.err.String())
	}
}

type brokenPipe struct{ err error }

func (p brokenPipe) Write([]byte) (int, error) { return 0, p.err }

// TestTerminalIsSafe checks that control characters of a record are escaped on a
// terminal, and that a pipe gets every byte unchanged.
func TestTerminalIsSafe(t *testing.T) {
	d := newDesk(t)
	d.must(t, "topic", "claim", "weather")
	evil := "\x1b]0;owned\a\x9b2J\u202e"
	d.stdin = strings.NewReader(evil + "\n")
	d.must(t, "produce", "weather")
	for _, test := range []struct {
		format   string
		terminal bool
		want     string
	}{
		{"text", false, evil + "\n"},
		{"text", true, `\x1b]0;owned\x07\x9b2J\u202e` + "\n"},
		{"raw", true, evil},
	} {
		var out bytes.Buffer
		e := *d.env
		e.stdout = &out
		e.terminal = func(stream any) bool { return test.terminal && stream == any(e.stdout) }
		if code := run(t.Context(), &e, []string{"consume", "weather", "--exit", "-o", test.format}); code != 0 {
			t.Fatalf("consume exits with %d: %s", code, d.err.String())
		}
		if out.String() != test.want {
			t.Errorf("-o %s, terminal %v: %q, want %q", test.format, test.terminal, out.String(), test.want)
		}
	}
	// The name of a topic in an error is escaped too.
	d.types(t.Context(), "topic", "claim", "\x1b[2J")
	if strings.Contains(d.err.String(), "\x1b") {
		t.Errorf("an error commands the terminal: %q", d.err.String())
	}
}

// TestSetAsideBefore: events of earlier runs that the cluster will never accept are not counted as those of this run,
// and do not make it fail.
func TestSetAsideBefore(t *testing.T) {
	d := newDesk(t)
	d.must(t, "topic", "claim", "weather")
	small := "1000"
	limit := kadm.AlterConfig{Name: "max.message.bytes", Value: &small}
	if altered, err := fabrictest.Admin(t, d.fabric).AlterTopicConfigs(t.Context(), []kadm.AlterConfig{limit}, "weather"); err != nil || altered[0].Err != nil {
		t.Fatal(altered, err)
	}
	large := strings.Repeat("x", 5000)
	testkit.Must(t, d.fabric.StopGateway())
	d.must(t, "produce", "weather", "--value", large, "--value", large, "--wait", "0")
	testkit.Must(t, d.fabric.StartGateway())
	because := `, because the cluster does not accept them ("DIASPORA_CONFIG_DIR=` + d.vars["DIASPORA_CONFIG_DIR"] + ` diaspora spool cat --quarantine" says why)`
	for _, step := range []struct {
		code int
		want string
		args []string
	}{
		{0, "diaspora: 1 event acknowledged; 2 events of earlier runs were set aside" + because + "\n", []string{"--value", "small"}},
		{0, "diaspora: 1 event acknowledged\n", []string{"--value", "small"}},
		{8, "diaspora: 1 event acknowledged; 2 of the events were set aside" + because + "\ndiaspora: produce to topic \"weather\": 2 of 3 events were not logged\n", []string{"--value", large, "--value", "small", "--value", large}},
	} {
		d.err.Reset()
		if code := d.types(t.Context(), append([]string{"produce", "weather", "--wait", "30s"}, step.args...)...); code != step.code || d.err.String() != step.want {
			t.Errorf("produce exits with %d and says\n%s\nwant %d and\n%s", code, d.err.String(), step.code, step.want)
		}
	}
}

// TestProduceOutage checks that produce reports an outage and loses nothing. After Ctrl-C during the outage, it must
// say how many events are pending in the spool or, without a spool, how many were not acknowledged.
func TestProduceOutage(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		flags      []string
		told, left string
	}{
		"spool": {nil, " and is sent when it is back", "diaspora: 3 events logged; 1 event waits in "},
		"no spool": {[]string{"--no-spool"}, "1 event waits; nothing is lost unless you stop this program",
			"diaspora: 2 events acknowledged, 1 not known to have arrived\n"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			up := w.up(t, "--kafka-port", "0", "--http-port", "0", "--globus-port", "0")
			w.run(t, "topic", "claim", "weather")
			d := emptyDesk(t)
			d.vars["DIASPORA_CONFIG_DIR"] = filepath.Join(w.dir, "config")

			reader, writer := io.Pipe()
			defer writer.Close()
			d.stdin = reader
			defer func() {
				if t.Failed() {
					t.Logf("produce says:\n%s", d.err.String())
				}
			}()
			stop, _ := d.started(t, append([]string{"produce", "weather", "-o", "json"}, c.flags...)...)
			io.WriteString(writer, "one\n")
			testkit.Eventually(t, "the first receipt", func() bool { return strings.Contains(d.out.String(), `"line":1`) })
			testkit.Eventually(t, "the first event to arrive", func() bool { return w.waiting(t) == 0 })
			up.kill(t)
			io.WriteString(writer, "two\n")
			testkit.Eventually(t, "word of the outage", func() bool { return strings.Contains(d.err.String(), c.told) })
			up = w.up(t, up.ports()...)
			testkit.Eventually(t, "the second receipt", func() bool { return strings.Contains(d.out.String(), `"line":2`) })
			testkit.Eventually(t, "word of the end of the outage", func() bool { return strings.Contains(d.err.String(), "the cluster is back") })
			testkit.Eventually(t, "the second event to arrive", func() bool { return w.waiting(t) == 0 }) // or two wait

			up.kill(t)
			io.WriteString(writer, "three\n")
			testkit.Eventually(t, "word of the second outage", func() bool { return strings.Count(d.err.String(), c.told) == 2 })
			if code := stop(); code != 130 {
				t.Errorf("produce exits with %d after Ctrl-C, want 130", code)
			}
			if !strings.Contains(d.err.String(), c.left) {
				t.Errorf("produce says %q", d.err.String())
			}
		})
	}
}

// waiting returns the number of pending events in the world's spools.
func (w *world) waiting(t *testing.T) (n int) {
	t.Helper()
	var status struct{ Events int }
	testkit.Must(t, json.Unmarshal([]byte(w.run(t, "status", "-o", "json")), &status))
	return status.Events
}

// TestExitCodes checks the exit codes that the command itself determines.
func TestExitCodes(t *testing.T) {
	interrupted, cancel := context.WithCancelCause(t.Context())
	cancel(errInterrupted)
	for _, test := range []struct {
		ctx  context.Context
		err  error
		want int
	}{
		{t.Context(), nil, 0},
		{t.Context(), errors.New("anything"), 1},
		{t.Context(), fail(nil, "", "its own"), 1},
		{t.Context(), misuse("", "wrong"), 2},
		{t.Context(), hinted(fmt.Errorf("x: %w", diaspora.ErrConflict), "hint"), 6},
		{t.Context(), globus.ErrDenied, 3},
		{t.Context(), fail(outcome.ErrIncomplete, "", "some"), 8},
		{t.Context(), context.DeadlineExceeded, 10},
		{interrupted, errors.New("anything"), 130},
		{interrupted, fail(outcome.ErrIncomplete, "", "some"), 8}, // of a watch, which only an interrupt ends
		{interrupted, nil, 0},                                     // the command had already succeeded
	} {
		if got := exitCode(test.ctx, test.err); got != test.want {
			t.Errorf("exitCode(%v) = %d, want %d", test.err, got, test.want)
		}
	}
}

// TestEndIsNotSilent checks that a command prints its error before it waits for Globus, and says that it waits.
func TestEndIsNotSilent(t *testing.T) {
	d := emptyDesk(t)
	d.env.awaitRenewals = []func(){func() {
		testkit.Eventually(t, "the word that the program waits", func() bool {
			return strings.Contains(d.err.String(), "diaspora: waiting for Globus, for 45 s at most")
		})
		if first, _, _ := strings.Cut(d.err.String(), "diaspora: waiting"); !strings.Contains(first, "no fabric is configured") {
			t.Errorf("the error does not come first:\n%s", d.err.String())
		}
	}}
	if code := d.types(t.Context(), "produce", "weather", "--value", "x"); code != 3 {
		t.Errorf("exit code %d, want 3:\n%s", code, d.err.String())
	}
}

// TestOpeningIsNotSilent checks that the user is told if the cluster becomes unreachable between two requests of one
// command.
func TestOpeningIsNotSilent(t *testing.T) {
	t.Parallel()
	d := emptyDesk(t)
	d.env.withNotice(func() error {
		testkit.Eventually(t, "the word that the cluster does not answer", func() bool {
			return strings.Contains(d.err.String(), "diaspora: the cluster has not answered for 5s; waiting for it")
		})
		return nil
	})
}

// TestMovedFabric: a login stores the addresses of the brokers. If the fabric has others now, a client that cannot reach the
// old ones is told to log in again, and not to look for a fabric that is down.
func TestMovedFabric(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.must(t, "topic", "claim", "weather")
	profiles := diaspora.OpenProfiles(d.vars["DIASPORA_CONFIG_DIR"])
	profile, err := profiles.Load("home")
	testkit.Must(t, err)
	profile.Discovery.Brokers = []string{testkit.FreeAddress(t)}
	testkit.Must(t, profiles.Save(profile))
	const hint = `the fabric now has other brokers than at your login: log in again with "diaspora login --as ada@example.edu"`
	d.vars["DIASPORA_STATE_DIR"] = t.TempDir()
	d.err.Reset()
	if code := d.types(t.Context(), "produce", "weather", "--value", "1", "--wait", "1s"); code != 0 || strings.Count(d.err.String(), "hint: "+hint+"\n") != 1 {
		t.Errorf("produce exits with %d and says\n%s\nwant 0 and once %q", code, d.err.String(), hint)
	}
	_, hints := explanation(d.whenAway(t.Context(), &cobra.Command{Use: "consume"}, diaspora.ErrUnavailable))
	if !slices.Equal(hints, []string{hint}) {
		t.Errorf("the hints of another command are %q, want %q", hints, hint)
	}
}

// TestWithoutKafka: while the fabric runs without its Apache Kafka, a client is told so, and not to look for a fabric that is down.
func TestWithoutKafka(t *testing.T) {
	t.Parallel()
	ledger := "unavailable"
	endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthz" {
			t.Errorf("the request is for %s", r.URL)
		}
		if ledger != "ok" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		fmt.Fprintf(w, `{"status":%q,"checks":{"ledger":%[1]q}}`, ledger)
	}))
	defer endpoint.Close()
	d := emptyDesk(t)
	d.vars["DIASPORA_URL"] = endpoint.URL
	produce := &cobra.Command{Use: "produce"}
	hint := func() string {
		_, hints := explanation(d.whenAway(t.Context(), produce, diaspora.ErrUnavailable))
		return strings.Join(hints, "\n")
	}
	if got, want := hint(), `the fabric runs, but its Apache Kafka does not answer: whoever runs "diaspora up" finds in its output how to start it again`; got != want {
		t.Errorf("without Apache Kafka, the hint is %q, want %q", got, want)
	}
	if got, want := (&produceRun{env: d.env}).awayHint(t.Context(), diaspora.ErrUnavailable), hint(); got != want {
		t.Errorf("the hint of produce is %q, want %q", got, want)
	}
	ledger = "ok"
	if got, want := hint(), `the fabric is on this machine: check that "diaspora up" or "diaspora serve" runs, or see "diaspora doctor"`; got != want {
		t.Errorf("with a ledger, the hint is %q, want %q", got, want)
	}
}
