package main

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestSharePage runs all commands of docs/share.md, in their order. A block of commands is the owner's, unless it begins
// with the comment "# Grace".
func TestSharePage(t *testing.T) {
	t.Parallel()
	page, err := filepath.Abs("../../docs/share.md")
	testkit.Must(t, err)
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "page"),
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			e.Values["state"] = &scriptState{}
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("TZ", "UTC")
			e.Setenv("CONFIG", filepath.Join(e.WorkDir, ".config", "diaspora"))
			e.Setenv("PAGE", page)
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"fabric": scriptFabric, "as": scriptAs, "exits": scriptExits, "team": scriptTeam, "page": scriptPage,
		},
	})
}

var (
	bashBlock = regexp.MustCompile("(?ms)^```bash\n(.*?)^```$")
	// confirmed are commands that ask a person something.
	confirmed = regexp.MustCompile(`^diaspora topic (share|set|transfer) `)
	endless   = regexp.MustCompile(`^diaspora consume \S+ --from start( --group \S+)?$`)
	groupID   = regexp.MustCompile(`group:[0-9a-f-]{36}`)
)

// scriptPage runs the commands of a page: "page FILE GROUP", with the ID of a Globus group that exists.
func scriptPage(ts *testscript.TestScript, _ bool, args []string) {
	blocks, commands := bashBlock.FindAllStringSubmatch(ts.ReadFile(args[0]), -1), 0
	for _, block := range blocks {
		profile := "ada"
		if strings.HasPrefix(block[1], "# Grace\n") {
			profile = "grace"
		}
		ts.Setenv("DIASPORA_PROFILE", profile)
		for line := range strings.Lines(block[1]) {
			line = strings.TrimSpace(line)
			if strings.HasPrefix(line, "#") || line == "" {
				continue
			}
			commands++
			line = groupID.ReplaceAllString(line, "group:"+args[1])
			if confirmed.MatchString(line) && !strings.Contains(line, "--cancel") {
				line += " --yes"
			}
			if endless.MatchString(line) {
				line += " --exit"
			}
			if err := ts.Exec("sh", "-c", line); err != nil {
				ts.Fatalf("%s, as %s: %v:\n%s", line, profile, err, ts.ReadFile("stderr"))
			}
		}
	}
	if len(blocks) < 15 || commands < 30 {
		ts.Fatalf("the page has only %d blocks with %d commands", len(blocks), commands)
	}
}
