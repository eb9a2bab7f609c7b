// Package manual formats help texts. A [Page] is the help of a command or a topic, and can be written as Markdown or as a
// man page. [Terminal] formats a page of the documentation, which is Markdown, for reading in a terminal.
//
// Help texts are plain text. [Parse] finds their structure by these rules:
//
//   - Lines that are not indented are paragraphs.
//   - Indented lines that begin with "- " are a list.
//   - Indented lines of the form "TERM  text" are definitions. Further lines of a text are indented more.
//   - All other indented lines are code.
package manual

import (
	"regexp"
	"strings"
)

// Page is a page of the reference.
type Page struct {
	Name     string // "diaspora topic share"
	Section  string // of the man page: "1" for commands, "5" for files
	Short    string // one line
	Sections []Section
}

// Section is a part of a page, with a heading.
type Section struct {
	Heading string // "" for the text that follows the title
	Blocks  []Block
}

// Block is a paragraph, a list, a code example or a list of definitions.
type Block struct {
	Text        string   // of a paragraph, in one line
	Items       []string // of a list
	Code        string   // lines
	Definitions []Definition
	Head        [2]string // names of the two columns of Definitions, or ""
}

// Definition is a term and what it means.
type Definition struct{ Term, Text string }

// Parse returns the structure of a help text.
func Parse(text string) (blocks []Block) {
	var lines []string
	indented := false
	flush := func() {
		switch {
		case len(lines) == 0:
		case indented:
			blocks = append(blocks, parseIndented(lines))
		default:
			blocks = append(blocks, Block{Text: strings.Join(lines, " ")})
		}
		lines = nil
	}
	for line := range strings.SplitSeq(strings.Trim(text, "\n"), "\n") {
		line = strings.TrimRight(line, " ")
		if now := strings.HasPrefix(line, " "); line == "" || now != indented {
			flush()
			indented = now
		}
		if line != "" {
			lines = append(lines, line)
		}
	}
	flush()
	return blocks
}

// ParseCode returns a block of code.
func ParseCode(text string) Block {
	return Block{Code: dedent(strings.Split(strings.Trim(text, "\n"), "\n"))}
}

// ParseDefinitions returns the definitions in lines of the form "TERM  text", whatever their indentation.
func ParseDefinitions(text string, head [2]string) Block {
	b := Block{Head: head}
	for line := range strings.Lines(text) {
		if m := definition.FindStringSubmatch(strings.TrimRight(line, " \n")); m != nil {
			b.Definitions = append(b.Definitions, Definition{m[1], m[2]})
		}
	}
	return b
}

var definition = regexp.MustCompile(`^ +(\S+(?: \S+)*)  +(\S.*)$`)

// parseIndented returns the block that consists of indented lines.
func parseIndented(lines []string) Block {
	var list, defined Block
	least := indentOf(lines[0])
	isList, isDefined, oneLine := true, true, false // oneLine: a term and its text are in one line, so this is not code
	for i, line := range lines {
		text := strings.TrimSpace(line)
		if indentOf(line) > least { // continues the line before
			if n := len(list.Items); n > 0 {
				list.Items[n-1] += " " + text
			}
			if n := len(defined.Definitions); n > 0 {
				d := &defined.Definitions[n-1]
				d.Text = strings.TrimSpace(d.Text + " " + text)
			}
			continue
		}
		item, ok := strings.CutPrefix(text, "- ")
		isList = isList && ok
		list.Items = append(list.Items, item)
		m := definition.FindStringSubmatch(line)
		switch {
		case m != nil:
			oneLine = true
			defined.Definitions = append(defined.Definitions, Definition{m[1], m[2]})
		case i+1 < len(lines) && indentOf(lines[i+1]) > least:
			defined.Definitions = append(defined.Definitions, Definition{Term: text})
		default:
			isDefined = false
		}
	}
	switch {
	case isList:
		return list
	case isDefined && oneLine:
		return defined
	}
	return Block{Code: dedent(lines)}
}

func indentOf(line string) int { return len(line) - len(strings.TrimLeft(line, " ")) }

// dedent removes the indentation of the first line from all lines.
func dedent(lines []string) string {
	prefix := strings.Repeat(" ", indentOf(lines[0]))
	var b strings.Builder
	for _, line := range lines {
		b.WriteString(strings.TrimRight(strings.TrimPrefix(line, prefix), " ") + "\n")
	}
	return b.String()
}
