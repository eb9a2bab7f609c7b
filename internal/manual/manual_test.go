package manual

import (
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/diaspora-streams/diaspora/docs"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestParse checks how the structure of a help text is found.
func TestParse(t *testing.T) {
	t.Parallel()
	const text = `
Two lines
of a paragraph. One of these:
  NAME       what it means,
             and more
  A_LONG_NAME, ANOTHER_LONG_NAME
             below it
After it:
  - one
    item
  - two

  code --flag
    indented  twice
`
	want := []Block{
		{Text: "Two lines of a paragraph. One of these:"},
		{Definitions: []Definition{{"NAME", "what it means, and more"}, {"A_LONG_NAME, ANOTHER_LONG_NAME", "below it"}}},
		{Text: "After it:"},
		{Items: []string{"one item", "two"}},
		{Code: "code --flag\n  indented  twice\n"},
	}
	got := Parse(text)
	if len(got) != len(want) {
		t.Fatalf("Parse = %+v", got)
	}
	for i := range got {
		got[i].Head = want[i].Head
		if g, w := got[i], want[i]; g.Text != w.Text || g.Code != w.Code || !equal(g.Items, w.Items) && w.Items != nil || w.Definitions != nil && !equal(g.Definitions, w.Definitions) {
			t.Errorf("block %d is %+v, want %+v", i, g, w)
		}
	}
}

func equal[T any](a, b T) bool { return reflect.DeepEqual(a, b) }

// TestEscape checks that text is not taken for markup.
func TestEscape(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`a <b> * _c_ \t`: `a \<b> \* _c_ \\t`,
		`run "diaspora topic list -o json" with --from-start`: "run `diaspora topic list -o json` with `--from-start`",
		`"other" -- and -o`:                 `"other" -- and -o`,
		"use --producer.config. Or --exit.": "use `--producer.config`. Or `--exit`.",
	} {
		if got := markdownText(text); got != want {
			t.Errorf("markdownText(%q) = %q, want %q", text, got, want)
		}
	}
	for text, want := range map[string]string{
		`.TH is no request`: `\&.TH is no request`,
		`'x' -o \t "q"`:     `\(aqx\(aq \-o \et \(dqq\(dq`,
		"~/x ^ é `":         `\(ti/x \(ha \[u00E9] \(ga`,
	} {
		if got := roff(text); got != want {
			t.Errorf("roff(%q) = %q, want %q", text, got, want)
		}
	}
	table := Block{Head: [2]string{"a", "b"}, Definitions: []Definition{{"x|y", "one | two"}}}
	if got, want := table.markdown(), "| a | b |\n| --- | --- |\n| `x\\|y` | one \\| two |\n"; got != want {
		t.Errorf("the table is %q, want %q", got, want)
	}
}

// TestTerminal checks a page with everything that our documentation uses.
func TestTerminal(t *testing.T) {
	t.Parallel()
	const page = "# Title\n\nA **bold** and *leaning* paragraph with `code *x*`, which is long enough to be\nwrapped. See [share.md](share.md#a), [the page](share.md), [here](#below) and [Globus](https://globus.org).\n\n" +
		"- one item, which is long enough to be wrapped as well\n- two:\n\n  ```bash\n  cd /  # stays\n  ```\n\n## A `name`\n\n| a | b | c |\n| --- | --- | --- |\n| 1 \\| 2 | two | three |\n"
	const want = `Title

  A bold and leaning paragraph with code
  *x*, which is long enough to be
  wrapped. See diaspora help sharing, the
  page (diaspora help sharing), here and
  Globus (https://globus.org).

  - one item, which is long enough to be
    wrapped as well
  - two:

      cd /  # stays

A name

  1 | 2
      b: two
      c: three
`
	topic := func(file string) string { return map[string]string{"share.md": "sharing"}[file] }
	if got := Terminal(page, 41, topic); got != want {
		t.Errorf("Terminal =\n%q\nwant\n%q", got, want)
	}
}

// TestPages formats all pages that the program has, and looks for markup that is left and for lines that are too long.
func TestPages(t *testing.T) {
	t.Parallel()
	files, err := docs.Pages.ReadDir(".")
	if err != nil || len(files) < 5 {
		t.Fatalf("%d pages, %v", len(files), err)
	}
	for _, file := range files {
		page, err := docs.Pages.ReadFile(file.Name())
		testkit.Must(t, err)
		for _, width := range []int{60, 100} {
			for line := range strings.Lines(Terminal(string(page), width, func(string) string { return "" })) {
				line = strings.TrimSuffix(line, "\n")
				code := strings.HasPrefix(line, strings.Repeat(" ", codeIndent))
				if !code && (strings.Contains(line, "](") || strings.Contains(strings.ReplaceAll(line, "2**31", ""), "**") || strings.Contains(line, "```") || strings.HasPrefix(line, "#")) {
					t.Errorf("%s has markup: %s", file.Name(), line)
				}
				if utf8.RuneCountInString(line) > width && strings.Contains(strings.TrimSpace(line), " ") && !code {
					t.Errorf("%s has a line of more than %d columns: %s", file.Name(), width, line)
				}
			}
		}
	}
}

// FuzzTerminal checks that no page makes Terminal panic or hang.
func FuzzTerminal(f *testing.F) {
	for _, seed := range []string{"", "# a", "| a", "```", "- a\n\n  ```\n  x", "|a|b|\n|-|-|\n|1|2|3|", "[a](b", "`a\n\x00|\n||\n"} {
		f.Add(seed, 20)
	}
	f.Fuzz(func(_ *testing.T, page string, width int) {
		Terminal(page, width, func(string) string { return "topic" })
		for _, b := range Parse(page) {
			b.markdown()
			b.man()
		}
	})
}
