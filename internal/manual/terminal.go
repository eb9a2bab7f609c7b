package manual

import (
	"path"
	"regexp"
	"strings"
	"unicode/utf8"
)

// Terminal formats a Markdown page for a terminal of a width in columns. It knows the Markdown that our documentation
// uses: headings, paragraphs, lists, code, tables and links. topic returns the name under which "diaspora help" shows
// another page, or "".
func Terminal(markdown string, width int, topic func(file string) string) string {
	t := &terminal{width: width, topic: topic}
	lines := strings.Split(markdown, "\n")
	for i := 0; i < len(lines); {
		i += t.block(lines[i:])
	}
	return strings.TrimLeft(t.out.String(), "\n")
}

type terminal struct {
	out    strings.Builder
	width  int
	topic  func(string) string
	inList bool // the last block was an item of a list
}

const (
	bodyIndent = 2
	codeIndent = 6
)

var (
	headingLine = regexp.MustCompile(`^#+ +(.*)$`)
	itemLine    = regexp.MustCompile(`^( *)([-*]|\d+\.) +(.*)$`)
	fenceLine   = regexp.MustCompile("^( *)```")
	ruleRow     = regexp.MustCompile(`^\|[ :|-]+\|$`)
)

// block formats the block at the beginning of lines, and returns its number of lines.
func (t *terminal) block(lines []string) int {
	first := lines[0]
	switch {
	case strings.TrimSpace(first) == "":
		return 1
	case headingLine.MatchString(first):
		t.inList = false
		t.out.WriteString("\n")
		t.wrap("", t.inline(headingLine.FindStringSubmatch(first)[1]))
		return 1
	case fenceLine.MatchString(first):
		return t.code(lines)
	case strings.HasPrefix(first, "|"):
		return t.table(lines)
	}
	lead, text, afterItem := "", strings.TrimSpace(first), t.inList
	t.inList = itemLine.MatchString(first)
	if m := itemLine.FindStringSubmatch(first); m != nil {
		lead, text = m[1]+m[2]+" ", m[3]
	} else if indent := indentOf(first); indent > 0 {
		lead = strings.Repeat(" ", indent)
	}
	n := 1
	for ; n < len(lines); n++ {
		line := lines[n]
		if strings.TrimSpace(line) == "" || headingLine.MatchString(line) || fenceLine.MatchString(line) || itemLine.MatchString(line) || strings.HasPrefix(line, "|") {
			break
		}
		text += " " + strings.TrimSpace(line)
	}
	if !t.inList || !afterItem { // there are no blank lines between the items of a list
		t.out.WriteString("\n")
	}
	t.wrap(strings.Repeat(" ", bodyIndent)+lead, t.inline(text))
	return n
}

func (t *terminal) code(lines []string) int {
	t.inList = false
	prefix := fenceLine.FindStringSubmatch(lines[0])[1]
	t.out.WriteString("\n")
	for n, line := range lines[1:] {
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			return n + 2
		}
		t.out.WriteString(strings.TrimRight(strings.Repeat(" ", codeIndent)+strings.TrimPrefix(line, prefix), " ") + "\n")
	}
	return len(lines)
}

// table formats each row as its first cell, and the others indented below it. With more than two columns, each of the
// others begins with the name of its column.
func (t *terminal) table(lines []string) int {
	var head []string
	t.inList = false
	n := 0
	for ; n < len(lines) && strings.HasPrefix(lines[n], "|"); n++ {
		cells := t.cells(lines[n])
		switch {
		case n == 0:
			head = cells
			continue
		case ruleRow.MatchString(lines[n]):
			continue
		}
		t.out.WriteString("\n")
		t.wrap(strings.Repeat(" ", bodyIndent), cells[0])
		for i, cell := range cells[1:] {
			if len(head) > 2 && i+1 < len(head) && head[i+1] != "" {
				cell = head[i+1] + ": " + cell
			}
			t.wrap(strings.Repeat(" ", codeIndent), cell)
		}
	}
	return n
}

func (t *terminal) cells(row string) (cells []string) {
	const escapedBar = "\x00"
	row = strings.ReplaceAll(strings.Trim(strings.TrimSpace(row), "|"), `\|`, escapedBar)
	for cell := range strings.SplitSeq(row, "|") {
		cells = append(cells, t.inline(strings.TrimSpace(strings.ReplaceAll(cell, escapedBar, "|"))))
	}
	return cells
}

func (t *terminal) wrap(lead, text string) { t.out.WriteString(Fill(lead, text, t.width)) }

// Fill returns lead and text in lines of a width in columns. The lines after the first are indented to where the text
// begins.
func Fill(lead, text string, width int) string {
	var out strings.Builder
	indent := strings.Repeat(" ", utf8.RuneCountInString(lead))
	line, empty := lead, true
	for word := range strings.FieldsSeq(text) {
		if !empty && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width {
			out.WriteString(line + "\n")
			line, empty = indent, true
		}
		if !empty {
			line += " "
		}
		line, empty = line+word, false
	}
	return out.String() + strings.TrimRight(line, " ") + "\n"
}

var (
	codeSpans = regexp.MustCompile("`[^`]+`")
	link      = regexp.MustCompile(`\[([^\]]*)\]\(([^)]*)\)`)
	bold      = regexp.MustCompile(`\*\*([^*]+)\*\*`)
	italic    = regexp.MustCompile(`(^|[^*\w])\*([^*\s][^*]*)\*`)
	escape    = regexp.MustCompile(`\\([\\*<` + "`" + `|_])`)
)

// inline removes the markup from a line of text. Code stays as it is.
func (t *terminal) inline(text string) string {
	text = link.ReplaceAllStringFunc(text, func(whole string) string {
		m := link.FindStringSubmatch(whole)
		return t.linkText(m[1], m[2])
	})
	var codes []string
	text = codeSpans.ReplaceAllStringFunc(strings.ReplaceAll(text, "\x00", ""), func(code string) string {
		codes = append(codes, strings.Trim(code, "`"))
		return "\x00"
	})
	text = bold.ReplaceAllString(text, "$1")
	text = italic.ReplaceAllString(text, "$1$2")
	text = escape.ReplaceAllString(text, "$1")
	for _, code := range codes {
		text = strings.Replace(text, "\x00", code, 1)
	}
	return text
}

// linkText says where a link leads: another page by the command that shows it, another site by its address.
func (t *terminal) linkText(text, target string) string {
	file, _, _ := strings.Cut(target, "#")
	if strings.Contains(target, "://") {
		if text == target {
			return text
		}
		return text + " (" + target + ")"
	}
	name := ""
	if file != "" {
		name = t.topic(file)
	}
	switch {
	case name == "":
		return text
	case text == file || text == path.Base(file):
		return "`diaspora help " + name + "`"
	}
	return text + " (`diaspora help " + name + "`)"
}
