package manual

import (
	"fmt"
	"strings"
)

// Man returns the page in the format of man(1). version names the release. The result depends on nothing else, so that
// two builds of a release have the same pages.
func (p Page) Man(version string) string {
	var b strings.Builder
	name := p.ManName()
	fmt.Fprintf(&b, ".TH \"%s\" \"%s\" \"\" \"%s\" \"Diaspora Streams\"\n", roff(strings.ToUpper(name)), p.Section, roff(version))
	fmt.Fprintf(&b, ".SH NAME\n%s \\- %s\n", roff(name), roff(p.Short))
	for _, s := range p.Sections {
		heading := s.Heading
		if heading == "" {
			heading = "Synopsis"
		}
		fmt.Fprintf(&b, ".SH %s\n", roff(strings.ToUpper(heading)))
		for _, block := range s.Blocks {
			b.WriteString(block.man())
		}
	}
	return b.String()
}

// ManName returns the name of the man page: "diaspora-topic-share".
func (p Page) ManName() string { return strings.ReplaceAll(p.Name, " ", "-") }

func (b Block) man() string {
	var out strings.Builder
	if b.Text != "" {
		out.WriteString(".PP\n" + roff(b.Text) + "\n")
	}
	if b.Code != "" {
		out.WriteString(".PP\n.RS 4\n.nf\n")
		for line := range strings.Lines(b.Code) {
			out.WriteString(roff(strings.TrimSuffix(line, "\n")) + "\n")
		}
		out.WriteString(".fi\n.RE\n")
	}
	for _, d := range b.Definitions {
		out.WriteString(".TP\n\\fB" + roff(d.Term) + "\\fR\n" + roff(d.Text) + "\n")
	}
	for _, item := range b.Items {
		out.WriteString(".IP \\(bu 2\n" + roff(item) + "\n")
	}
	return out.String()
}

// roff escapes text that becomes one line. A minus sign stays one, so that options can be copied, and the line does not
// begin with a dot, which would make it a request.
func roff(text string) string {
	var b strings.Builder
	if strings.HasPrefix(text, ".") {
		b.WriteString(`\&`)
	}
	for _, r := range text {
		switch escaped, ok := roffEscapes[r]; {
		case ok:
			b.WriteString(escaped)
		case r > 126:
			fmt.Fprintf(&b, `\[u%04X]`, r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

var roffEscapes = map[rune]string{'\\': `\e`, '-': `\-`, '"': `\(dq`, '\'': `\(aq`, '`': "\\(ga", '~': `\(ti`, '^': `\(ha`}
