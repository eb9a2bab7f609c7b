package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

var (
	fenced     = regexp.MustCompile("(?ms)^ *```[a-z]*\n(.*?)^ *```$")
	inlineCode = regexp.MustCompile("`([^`\n]+)`")
	// mentioned matches a command line, up to what a shell does not pass on.
	mentioned = regexp.MustCompile(`(?m)(?:^|[\s(/;|'"])diaspora +([a-z][^|)<>#"'&;\n]*)`)
	quoted    = regexp.MustCompile(`"[^"\n]*"|'[^'\n]*'`)
	// aside matches what is not a command in a block of code: comments, and accounts with the name of the program.
	aside = regexp.MustCompile(`(?m)(^|\s)#.*$|(-[ugo]|chown|useradd .*) +diaspora\b`)
)

// TestDocumentedCommands checks that the command lines in the documentation exist, with these flags, and that those in
// code blocks have the right number of arguments.
func TestDocumentedCommands(t *testing.T) {
	t.Parallel()
	n := 0
	err := filepath.WalkDir("../..", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (strings.HasPrefix(entry.Name(), ".") && entry.Name() != ".." || entry.Name() == "node_modules" || entry.Name() == "results"):
			return filepath.SkipDir
		case filepath.Ext(path) != ".md" || entry.Name() == "CHANGELOG.md": // the changelog has the commands of earlier versions
			return nil
		}
		text := string(testkit.ReadFile(t, path))
		for _, block := range fenced.FindAllStringSubmatch(text, -1) {
			code := strings.ReplaceAll(block[1], "\\\n", " ")
			for _, m := range mentioned.FindAllStringSubmatch(aside.ReplaceAllString(quoted.ReplaceAllString(code, "quoted"), ""), -1) {
				n++
				if err := checkCommand(t, m[1], true); err != nil {
					t.Errorf("%s: diaspora %s: %v", path, m[1], err)
				}
			}
		}
		for _, span := range inlineCode.FindAllStringSubmatch(fenced.ReplaceAllString(text, ""), -1) {
			for _, m := range mentioned.FindAllStringSubmatch(quoted.ReplaceAllString(span[1], "quoted"), -1) {
				n++
				if err := checkCommand(t, m[1], false); err != nil {
					t.Errorf("%s: `diaspora %s`: %v", path, m[1], err)
				}
			}
		}
		return nil
	})
	testkit.Must(t, err)
	if n < 400 {
		t.Errorf("only %d command lines were found", n)
	}
	for line, want := range map[string]string{"topic clam x": "unknown", "topic claim x --retain 3d": "unknown flag", "whoami --url --subject": "exclude each other", "topic claim": "missing"} {
		if err := checkCommand(t, line, true); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("checkCommand(%q) = %v, want %q", line, err, want)
		}
	}
}

// checkCommand returns an error unless a command line is valid. The arguments are checked only if it is complete.
func checkCommand(t *testing.T, line string, complete bool) error {
	t.Helper()
	root := emptyDesk(t).commands()
	root.InitDefaultHelpCmd()
	found, rest, err := root.Find(strings.Fields(line))
	switch {
	case err != nil:
		return err
	case found.HasSubCommands() && len(rest) > 0 && !strings.HasPrefix(rest[0], "-") && !strings.HasPrefix(rest[0], "[") && strings.ToUpper(rest[0]) != rest[0] && !slices.Contains(found.ValidArgs, rest[0]):
		return fmt.Errorf("unknown command %q", rest[0])
	}
	err = found.ParseFlags(rest)
	unfinished := (*pflag.ValueRequiredError)(nil) // as in "with `diaspora produce --watch`"
	placeholder := (*pflag.InvalidValueError)(nil) // as in `--partitions N`
	switch {
	case errors.Is(err, pflag.ErrHelp), !complete && (errors.As(err, &unfinished) || errors.As(err, &placeholder)):
		return nil
	case err != nil:
		return err
	}
	if complete && !found.HasSubCommands() && found.Name() != "help" && found.Args != nil {
		return found.Args(found, found.Flags().Args())
	}
	return nil
}
