package main

import (
	"cmp"
	"io"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/diaspora-streams/diaspora/internal/terminal"
)

// What people see who sit at a terminal, and programs never do: colours, tables that fit,
// and a line at the bottom that says how far a long command has come.

// screen is stderr with a line at the bottom that is written again and again, and goes before anything
// else is written.
type screen struct {
	mu    sync.Mutex // guards the fields below, and writing
	w     io.Writer
	shown bool // the line is there
}

const eraseLine = "\r\x1b[K"

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shown {
		s.shown = false
		if _, err := io.WriteString(s.w, eraseLine); err != nil {
			return 0, err
		}
	}
	return s.w.Write(p)
}

// show replaces the line; an empty one is none.
func (s *screen) show(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if line == "" && !s.shown {
		return
	}
	s.shown = line != ""
	_, _ = io.WriteString(s.w, eraseLine+line) // what else is written tells the error
}

// openScreen makes stderr a screen if it is a terminal that can be one.
func (e *env) openScreen() {
	if e.moves(e.stderr) {
		e.bottom = &screen{w: e.stderr}
	}
}

const (
	progressAfter = 500 * time.Millisecond // short commands show none
	progressEvery = 250 * time.Millisecond
	usualColumns  = 80 // of a terminal that does not say how many it has
)

// progress shows how far a command has come, on a terminal, until stop is called. line returns the text, in
// no more than so many columns; "" is none. If streams, the command writes to stdout meanwhile, so that there is
// no place for a line if a person looks at that.
func (e *env) progress(streams bool, line func(now time.Time, columns int) string) (stop func()) {
	s := e.bottom
	if s == nil || e.quiet || streams && e.terminal(e.stdout) {
		return func() {}
	}
	done, stopped := make(chan struct{}), make(chan struct{})
	go func() { // ends with stop, which waits for it
		defer close(stopped)
		timer := time.NewTimer(progressAfter)
		defer timer.Stop()
		for {
			select {
			case <-done:
				s.show("")
				return
			case now := <-timer.C:
				columns := cmp.Or(e.columns(e.stderr), usualColumns)
				columns-- // the last one stays free: some terminals begin a new line behind it
				s.show(terminal.Cut(line(now, columns), columns))
				timer.Reset(progressEvery)
			}
		}
	}()
	return sync.OnceFunc(func() {
		close(done)
		<-stopped
	})
}

// moves reports whether a stream is a terminal on which colours can be shown and lines be erased.
func (e *env) moves(stream any) bool {
	if !e.terminal(stream) || !understands(stream) {
		return false
	}
	kind := e.getenv("TERM")
	return kind != "dumb" && (kind != "" || runtime.GOOS == "windows")
}

// colour is what a terminal takes for one.
type colour string

const (
	red    colour = "31"
	green  colour = "32"
	yellow colour = "33"
	cyan   colour = "36"
	faint  colour = "2"
)

// paint colours a text for a stream, unless a person does not want that or a program reads it. The text is
// fit to be shown already.
func (e *env) paint(stream any, c colour, text string) string {
	if c == "" || e.getenv("NO_COLOR") != "" || !e.moves(stream) {
		return text
	}
	return "\x1b[" + string(c) + "m" + text + "\x1b[0m"
}

// printPainted is printf with a beginning in a colour.
func (e *env) printPainted(c colour, head, rest string) error {
	escape := func(s string) string { return string(terminal.Escape(nil, []byte(s))) }
	return e.write([]byte(e.paint(e.stdout, c, escape(head)) + escape(rest)))
}

const (
	columnGap = 2  // between the columns of a table
	minColumn = 10 // how far they are cut
)

// printTable writes a table to stdout, the first row above the others. On a terminal it fits the width:
// the widest columns are cut. Nothing in it commands the terminal.
func (e *env) printTable(rows [][]string) error {
	widths := make([]int, len(rows[0]))
	for i, row := range rows {
		for j, cell := range row {
			rows[i][j] = string(terminal.Escape(nil, []byte(oneLine(cell))))
			widths[j] = max(widths[j], terminal.Width(rows[i][j]))
		}
	}
	if columns := e.columns(e.stdout); columns > 0 {
		fit(widths, columns)
	}
	var text strings.Builder
	for _, row := range rows {
		var line strings.Builder
		for j, cell := range row {
			cell = terminal.Cut(cell, widths[j])
			line.WriteString(cell + strings.Repeat(" ", widths[j]-terminal.Width(cell)+columnGap))
		}
		text.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	return e.write([]byte(text.String()))
}

// fit narrows the widest columns until all of them have room.
func fit(widths []int, columns int) {
	total := -columnGap
	for _, w := range widths {
		total += w + columnGap
	}
	for total > columns {
		widest := 0
		for j, w := range widths {
			if w > widths[widest] {
				widest = j
			}
		}
		if widths[widest] <= minColumn {
			return // lines are longer than the terminal is wide
		}
		widths[widest]--
		total--
	}
}
