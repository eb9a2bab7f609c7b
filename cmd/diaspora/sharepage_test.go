package main

import (
	"context"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/diaspora-streams/diaspora"
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
			"fabric": scriptFabric, "as": scriptAs, "exits": scriptExits, "setenv-from": scriptSetenvFrom, "page": scriptPage,
		},
	})
}

var (
	bashBlock = regexp.MustCompile("(?ms)^```bash\n(.*?)^```$")
	// confirmed are commands that ask a person something.
	confirmed = regexp.MustCompile(`^diaspora topic (share|transfer) `)
	endless   = regexp.MustCompile(`^diaspora consume \S+ --from start( --group \S+)?$`)
)

// scriptPage runs the commands of a page: "page FILE GRACE". GRACE is the subject of grace@example.org, for a fabric that
// cannot look up usernames.
func scriptPage(ts *testscript.TestScript, _ bool, args []string) {
	data := ts.ReadFile(args[0])
	blocks := bashBlock.FindAllStringSubmatch(data, -1)
	inBlocks := 0
	cfg, err := stateOf(ts).fabric.As(context.Background(), "ada@example.edu")
	ts.Check(err)
	client, err := diaspora.NewClient(cfg)
	ts.Check(err)
	_, notByName := client.LookUp(context.Background(), "grace@example.org")
	for _, block := range blocks {
		inBlocks += strings.Count(block[1], "diaspora ")
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
			if notByName != nil {
				line = strings.ReplaceAll(line, "grace@example.org", args[1])
			}
			if confirmed.MatchString(line) && !strings.Contains(line, "--cancel") {
				line += " --yes"
			}
			if endless.MatchString(line) {
				line += " --exit"
			}
			err := ts.Exec("sh", "-c", line)
			if err != nil && strings.Contains(line, "group:") && noGroups(ts) {
				continue // the fabrics of these tests may not be able to read the members of groups
			}
			if err != nil {
				ts.Fatalf("%s, as %s: %v:\n%s", line, profile, err, ts.ReadFile("stderr"))
			}
		}
	}
	if len(blocks) < 15 || inBlocks < 30 {
		ts.Fatalf("the page has only %d blocks with %d commands", len(blocks), inBlocks)
	}
}

// noGroups reports whether the last command failed because the fabric cannot read the members of Globus groups, or because a
// topic was therefore not shared with a group.
func noGroups(ts *testscript.TestScript) bool {
	said := ts.ReadFile("stderr")
	return strings.Contains(said, "this fabric cannot read the members of Globus groups") || strings.Contains(said, "it is not shared with group:")
}
