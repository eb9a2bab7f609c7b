package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestPages runs the commands of the pages in docs, in their order. The scripts in testdata/page say which sections.
func TestPages(t *testing.T) {
	t.Parallel()
	for _, tool := range []string{"bash", "curl", "jq"} {
		if _, err := exec.LookPath(tool); err != nil && os.Getenv("CI") != "" {
			t.Fatalf("%s is not installed; elsewhere, the pages that need it are left out", tool)
		}
	}
	docs, err := filepath.Abs("../../docs")
	testkit.Must(t, err)
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "page"),
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			e.Values["state"] = &scriptState{ups: map[string]*upProcess{}}
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("USER", "mel")
			e.Setenv("TZ", "UTC")
			e.Setenv("CONFIG", filepath.Join(e.WorkDir, ".config", "diaspora"))
			e.Setenv("DOCS", docs)
			e.Setenv("GORACE", "atexit_sleep_ms=50") // by default, each process with the race detector waits for a second when it exits
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"fabric": scriptFabric, "as": scriptAs, "exits": scriptExits, "team": scriptTeam, "up": scriptUp, "down": scriptDown,
			"page": scriptPage, "page-file": scriptPageFile, "page-rest": scriptPageRest,
		},
	})
}

// pageRules change commands of a page for a test, which has no terminal, and folders and ports of its own.
var pageRules = []struct {
	match *regexp.Regexp
	with  string // may name variables of the script, as $WORK
}{
	{regexp.MustCompile(`(?m)\s+# [^'"\n]*$`), ""},

	// The command would ask a person.
	{regexp.MustCompile(`(?m)^diaspora (?:topic (?:share|set|transfer)|group (?:reset|delete)) [^|\n]*?$`), "${0} --yes"},
	{regexp.MustCompile(`--cancel --yes`), "--cancel"},

	{regexp.MustCompile(`(?m)^diaspora admin block .*$`), "${0} --yes"},
	{regexp.MustCompile(`(?m)^# fails: exit code (\d+)\n(.*)$`), "code=0; ${2} || code=$$?; [ $$code = ${1} ]"},

	// The command would run until Ctrl-C.
	{regexp.MustCompile(`(?m)^diaspora consume \S+ --from start(?: --group \S+)?$`), "${0} --exit"},
	{regexp.MustCompile(`(?m)^diaspora consume \S+ --group \S+$`), "${0} --exit"},
	{regexp.MustCompile(`(?m)^ *diaspora produce (\S+) --watch .*$`), untilConsumed},

	// These need another machine, or more than is installed here. Tests of clients in other languages, of Apache Kafka
	// and of the settings of a service run some of them.
	{regexp.MustCompile(`(?m)^(?:scp |ssh instrument 'sudo ).*$`), ":"},
	{regexp.MustCompile(`(?m)^(?:pip install|kafka-console-producer|make kafka-up|diaspora up --kafka|diaspora serve) .*$`), ":"},

	{regexp.MustCompile(`(?m)^curl .* http://127\.0\.0\.1:9091/_dev/group$`), "GROUP=$$(${0} | jq -re .id)"},
	{regexp.MustCompile(`(?m)^diaspora spool discard wether .*$`), "! diaspora produce wether --value mistyped\n${0} --yes"},
	{regexp.MustCompile(`"group":"ID"`), `"group":"'$$GROUP'"`},
	{regexp.MustCompile(`\branks=50\b`), "ranks=5"},                // tasks of a Slurm array
	{regexp.MustCompile(`(?m)^# (count .*)$`), "echo twice; ${1}"}, // for tasks that ran twice
	{regexp.MustCompile(`--past \d+`), "--past 0"},
	{regexp.MustCompile(`group:[0-9a-f-]{36}`), "group:$$GROUP"},
	{regexp.MustCompile(`http://127\.0\.0\.1:9090|https://streams\.example\.org`), "$$UP_URL"},
	{regexp.MustCompile(`http://127\.0\.0\.1:9091`), "$$UP_GLOBUS"},
	{regexp.MustCompile(`/(scratch|data)/`), "$$WORK/${1}/"},
	{regexp.MustCompile(`/(etc/diaspora|etc/kafka|usr/local/sbin)/`), "$$WORK/${1}/"},
}

// untilConsumed runs "produce --watch" until it watches and the topic has an event, and then stops it as Ctrl-C does.
const untilConsumed = `${0} 2> watch.txt & pid=$$!
found=no
for try in $$(seq 300); do
	if grep -q watching watch.txt && env -u DIASPORA_KEY_FILE diaspora consume ${1} --from start --exit -q 2> /dev/null | grep -q .; then found=yes; break; fi
done
kill -INT $$pid
wait $$pid
[ $$found = yes ]`

// pageBlock is a block of commands, or of a file, in a page.
type pageBlock struct{ heading, code string }

// pageBlocks returns the blocks of a page that are in the language of bash.
func pageBlocks(text string) (blocks []pageBlock) {
	heading, fence, code := "", "", ""
	for line := range strings.Lines(text) {
		mark := strings.TrimSpace(line)
		switch {
		case fence == "" && strings.HasPrefix(line, "#"):
			heading = mark
		case fence == "" && strings.HasPrefix(mark, "```"):
			fence, code = mark, ""
		case mark == "```":
			if fence == "```bash" {
				blocks = append(blocks, pageBlock{heading, code})
			}
			fence = ""
		default:
			code += line
		}
	}
	return blocks
}

// isFile reports whether a block is a script to be saved, and not commands to be typed.
func (b pageBlock) isFile() bool { return strings.HasPrefix(b.code, "#!") }

// forTest returns the code of a block with the changes that a test needs.
func (b pageBlock) forTest() string {
	code := b.code
	for _, rule := range pageRules {
		code = rule.match.ReplaceAllString(code, rule.with)
	}
	return code
}

// scriptPage runs the commands of a page, or of its sections with these headings: "page FILE '## HEADING' …". Each block
// runs in a shell of its own, as Grace if it begins with the comment "# Grace". A script in the page is not run:
// page-file saves it.
func scriptPage(ts *testscript.TestScript, _ bool, args []string) {
	script, commands := "set -eo pipefail\n", 0
	for _, block := range pageBlocks(ts.ReadFile(args[0])) {
		if len(args) > 1 && !slices.Contains(args[1:], block.heading) || block.isFile() {
			continue
		}
		commands++
		stateOf(ts).pages = append(stateOf(ts).pages, block.heading)
		profile := ""
		if strings.HasPrefix(block.code, "# Grace\n") {
			profile = "export DIASPORA_PROFILE=grace\n"
		}
		script += "(\n" + profile + block.forTest() + ")\n"
	}
	if commands == 0 {
		ts.Fatalf("%s has no commands in %q", args[0], args[1:])
	}
	if err := ts.Exec("bash", "-c", script); err != nil {
		ts.Fatalf("%s: %v\n%s\nstdout:\n%s\nstderr:\n%s", args[0], err, script, ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	}
}

// scriptPageFile saves the script in a section of a page: "page-file FILE '## HEADING' NAME".
func scriptPageFile(ts *testscript.TestScript, _ bool, args []string) {
	for _, block := range pageBlocks(ts.ReadFile(args[0])) {
		if block.heading == args[1] && block.isFile() {
			ts.Check(os.WriteFile(ts.MkAbs(args[2]), []byte(block.forTest()), 0o700))
			return
		}
	}
	ts.Fatalf("%s has no script in %q", args[0], args[1])
}

// scriptPageRest checks that the commands of all sections of a page were run, except those of the sections with these
// headings: "page-rest FILE '## HEADING' …".
func scriptPageRest(ts *testscript.TestScript, _ bool, args []string) {
	var rest []string
	for _, block := range pageBlocks(ts.ReadFile(args[0])) {
		if !slices.Contains(stateOf(ts).pages, block.heading) && !slices.Contains(rest, block.heading) {
			rest = append(rest, block.heading)
		}
	}
	if !slices.Equal(rest, args[1:]) {
		ts.Fatalf("the commands of these sections were not run: %q, want %q", rest, args[1:])
	}
}
