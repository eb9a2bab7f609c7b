package structure

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

var (
	codeBlock = regexp.MustCompile("(?ms)^ *```.*?^ *```$")
	codeSpan  = regexp.MustCompile("`[^`\n]*`")
	linkTo    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading   = regexp.MustCompile(`(?m)^#+ +(.+)$`)
)

// TestLinks checks that every link of a Markdown file to another file exists, and that its anchor is a heading there.
func TestLinks(t *testing.T) {
	t.Parallel()
	pages := markdownFiles(t)
	links := 0
	for file, text := range pages {
		for _, m := range linkTo.FindAllStringSubmatch(codeSpan.ReplaceAllString(text, ""), -1) {
			if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
				continue
			}
			links++
			if err := followLink(pages, file, m[1]); err != nil {
				t.Errorf("%s: %v", file, err)
			}
		}
	}
	if len(pages) < 40 || links < 100 {
		t.Errorf("looked at %d links of %d pages only", links, len(pages))
	}
}

// followLink returns an error unless a link of a page leads somewhere.
func followLink(pages map[string]string, from, link string) error {
	path, anchor, _ := strings.Cut(link, "#")
	target := from
	if path != "" {
		target = filepath.Join(filepath.Dir(from), path)
	}
	if _, err := os.Stat(filepath.Join("../..", target)); err != nil {
		return fmt.Errorf("the link %s leads to no file", link)
	}
	if anchor != "" && !anchors(pages[target])[anchor] {
		return fmt.Errorf("the link %s names no heading of %s", link, target)
	}
	return nil
}

// anchors returns the anchors that GitHub gives the headings of a page.
func anchors(text string) map[string]bool {
	all, times := map[string]bool{}, map[string]int{}
	for _, m := range heading.FindAllStringSubmatch(text, -1) {
		title := linkTo.ReplaceAllString(m[1], "]")
		slug := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case unicode.IsLetter(r) || unicode.IsDigit(r) || r == '-' || r == '_':
				return unicode.ToLower(r)
			}
			return -1
		}, title)
		if n := times[slug]; n > 0 {
			all[fmt.Sprintf("%s-%d", slug, n)] = true
		}
		times[slug]++
		all[slug] = true
	}
	return all
}

// markdownFiles returns the Markdown files of the repository without their code blocks, by their paths from its top.
func markdownFiles(t *testing.T) map[string]string {
	t.Helper()
	pages := map[string]string{}
	err := filepath.WalkDir("../..", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (strings.HasPrefix(entry.Name(), ".") && entry.Name() != ".." || entry.Name() == "node_modules" || entry.Name() == "testdata"):
			return filepath.SkipDir
		case filepath.Ext(path) != ".md":
			return nil
		}
		name, err := filepath.Rel("../..", path)
		pages[name] = codeBlock.ReplaceAllString(string(testkit.ReadFile(t, path)), "")
		return err
	})
	testkit.Must(t, err)
	return pages
}

// TestLinkCheck checks the checks of TestLinks.
func TestLinkCheck(t *testing.T) {
	t.Parallel()
	pages := map[string]string{"README.md": "# A `b`, c_d\n# Twice\n# Twice\n"}
	for link, good := range map[string]bool{
		"docs/guide.md": true, "docs": true, "#a-b-c_d": true, "README.md#twice-1": true,
		"docs/no-such.md": false, "#a-b": false, "README.md#twice-2": false,
	} {
		if err := followLink(pages, "README.md", link); (err == nil) != good {
			t.Errorf("followLink(%s) = %v", link, err)
		}
	}
}
