package manual

import (
	"regexp"
	"strings"
)

// Markdown returns the page as Markdown. The heading of the page has this level, and those of its sections the next one.
func (p Page) Markdown(level int) string {
	var b strings.Builder
	b.WriteString(strings.Repeat("#", level) + " " + p.Name + "\n")
	if p.Short != "" {
		b.WriteString("\n" + markdownText(p.Short) + "\n")
	}
	for _, s := range p.Sections {
		if s.Heading != "" {
			b.WriteString("\n" + strings.Repeat("#", level+1) + " " + s.Heading + "\n")
		}
		for _, block := range s.Blocks {
			b.WriteString("\n" + block.markdown())
		}
	}
	return b.String()
}

func (b Block) markdown() string {
	var out strings.Builder
	switch {
	case b.Text != "":
		out.WriteString(markdownText(b.Text) + "\n")
	case b.Code != "":
		out.WriteString("```bash\n" + b.Code + "```\n")
	case b.Head[0] != "":
		out.WriteString("| " + b.Head[0] + " | " + b.Head[1] + " |\n| --- | --- |\n")
		for _, d := range b.Definitions {
			out.WriteString("| " + tableCell(codeSpan(d.Term)) + " | " + tableCell(markdownText(d.Text)) + " |\n")
		}
	}
	if b.Head[0] == "" {
		for _, d := range b.Definitions {
			out.WriteString("- " + codeSpan(d.Term) + ": " + markdownText(d.Text) + "\n")
		}
	}
	for _, item := range b.Items {
		out.WriteString("- " + markdownText(item) + "\n")
	}
	return out.String()
}

// asCode matches what becomes code: commands in quotes, and flags.
var asCode = regexp.MustCompile(`"(diaspora [^"]*)"|--[a-z][a-z.-]*[a-z]`)

// markdownText escapes what Markdown would take for markup.
func markdownText(text string) string {
	var b strings.Builder
	at := 0
	for _, m := range asCode.FindAllStringIndex(text, -1) {
		b.WriteString(markdownEscaper.Replace(text[at:m[0]]) + codeSpan(strings.Trim(text[m[0]:m[1]], `"`)))
		at = m[1]
	}
	return b.String() + markdownEscaper.Replace(text[at:])
}

var markdownEscaper = strings.NewReplacer(`\`, `\\`, "*", `\*`, "<", `\<`, "`", "\\`")

func codeSpan(text string) string { return "`" + text + "`" }

func tableCell(text string) string { return strings.ReplaceAll(text, "|", `\|`) }
