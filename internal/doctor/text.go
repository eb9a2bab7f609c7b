package doctor

import (
	"fmt"
	"strings"
	"time"

	"github.com/diaspora-streams/diaspora/internal/terminal"
)

// symbols are shown before the status, so that it can be recognized quickly.
var symbols = map[Status]string{OK: "+", Warning: "!", Failure: "x", NotTried: "-"}

// Line is a finding as one line, with the advice on a second line.
type Line struct {
	Status Status
	Head   string // its status, as a symbol and a word
	Rest   string
}

// String returns the line as it is printed, without colours.
func (l Line) String() string { return l.Head + l.Rest }

// String returns the finding as a [Line].
func (f Finding) String() string { return f.line(f.Check).String() }

func (f Finding) line(what string) Line {
	seen := f.Seen
	if f.Status == NotTried {
		seen = "because " + seen
	}
	l := Line{f.Status, fmt.Sprintf("%s %-9s", symbols[f.Status], f.Status), fmt.Sprintf("  %s: %s", what, oneLine(seen))}
	if f.Next != "" {
		l.Rest += "\n             hint: " + oneLine(f.Next)
	}
	return l
}

// Printer formats findings as lines. Consecutive checks that were not run for the same reason share
// a line.
type Printer struct {
	// Quiet leaves out checks that are ok or were not run.
	Quiet bool

	idle []Finding // checks that were not run and are not printed yet
}

// Add adds a finding and returns the lines that can be printed now.
func (p *Printer) Add(f Finding) []Line {
	switch {
	case p.Quiet && (f.Status == OK || f.Status == NotTried):
		return nil
	case f.Status != NotTried:
		return append(p.End(), f.line(f.Check))
	case len(p.idle) > 0 && p.idle[0].Seen != f.Seen:
		lines := p.End()
		p.idle = append(p.idle, f)
		return lines
	}
	p.idle = append(p.idle, f)
	return nil
}

// End returns the remaining lines.
func (p *Printer) End() []Line {
	if len(p.idle) == 0 {
		return nil
	}
	const most = 4 // names in a line
	var names []string
	for _, f := range p.idle {
		names = append(names, f.Check)
	}
	what := strings.Join(names, ", ")
	if n := len(names); n > most {
		what = fmt.Sprintf("%d checks, from %s to %s", n, names[0], names[n-1])
	}
	lines := []Line{p.idle[0].line(what)}
	p.idle = nil
	return lines
}

// Summary returns the numbers of findings by status, as a line.
func (r *Report) Summary() string {
	parts := []string{}
	for _, s := range []struct {
		status   Status
		one, all string
	}{{Failure, "failure", "failures"}, {Warning, "warning", "warnings"}, {NotTried, "not tried", "not tried"}, {OK, "ok", "ok"}} {
		switch n := r.Count(s.status); {
		case n == 1:
			parts = append(parts, "1 "+s.one)
		case n > 1 || s.status == OK:
			parts = append(parts, fmt.Sprint(n, " ", s.all))
		}
	}
	return fmt.Sprintf("%d checks: %s", len(r.Findings), strings.Join(parts, ", "))
}

// Text returns the whole report as text.
func (r *Report) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "diaspora %s (%s, %s/%s), %s\n", r.Version, r.Go, r.OS, r.Arch, r.Time.Local().Format(time.RFC3339))
	var p Printer
	for _, f := range r.Findings {
		for _, line := range p.Add(f) {
			b.WriteString(line.String() + "\n")
		}
	}
	for _, line := range p.End() {
		b.WriteString(line.String() + "\n")
	}
	return b.String() + r.Summary() + "\n"
}

// maxLine bounds the text that other systems can put into a finding.
const maxLine = 500

// oneLine folds a text into one line of limited length, without control sequences for the terminal.
func oneLine(text string) string {
	return terminal.Clip(terminal.OneLine(strings.ToValidUTF8(text, "?")), maxLine)
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// span formats a duration in its largest unit.
func span(d time.Duration) string {
	switch d = d.Abs(); {
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 72*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

func ms(d time.Duration) float64 {
	return float64(d.Round(10*time.Microsecond)) / float64(time.Millisecond)
}

// way lists legs with their times.
func way(legs []Leg) string {
	var parts []string
	for _, l := range legs {
		parts = append(parts, fmt.Sprintf("%s %.1f", l.Name, l.MS))
	}
	return strings.Join(parts, ", ") + " ms"
}
