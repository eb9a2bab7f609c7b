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

// This file has the output that only terminals get: colours, tables that fit the width, and a progress line
// for long commands.

// screen is stderr with a progress line at the bottom. The line is erased before anything else is written.
type screen struct {
	mu    sync.Mutex // guards the fields below, and writing
	w     io.Writer
	shown bool // the line is visible
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

// show replaces the line; "" erases it.
func (s *screen) show(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if line == "" && !s.shown {
		return
	}
	s.shown = line != ""
	_, _ = io.WriteString(s.w, eraseLine+line) // other writes return the error
}

// openScreen makes stderr a screen if it is a terminal that supports escape sequences.
func (e *env) openScreen() {
	if e.ansi(e.stderr) {
		e.screen = &screen{w: e.stderr}
	}
}

const (
	progressAfter = 500 * time.Millisecond // commands that are done sooner show no progress
	progressEvery = 250 * time.Millisecond
	usualColumns  = 80 // if the terminal does not report its width
)

// progress shows a progress line on a terminal until stop is called. line returns the text, in at most this many
// columns; "" hides the line. streams means that the command writes its result to stdout at the same time. If
// stdout is a terminal too, no progress is shown, because it would disturb the output.
func (e *env) progress(streams bool, line func(now time.Time, columns int) string) (stop func()) {
	s := e.screen
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
				columns-- // some terminals wrap after the last column, so leave it free
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

// ansi reports whether a stream is a terminal that supports colours and erasing a line.
func (e *env) ansi(stream any) bool {
	if !e.terminal(stream) || !enableANSI(stream) {
		return false
	}
	kind := e.getenv("TERM")
	return kind != "dumb" && (kind != "" || runtime.GOOS == "windows")
}

// colour is the parameter of an SGR escape sequence.
type colour string

const (
	red    colour = "31"
	green  colour = "32"
	yellow colour = "33"
	cyan   colour = "36"
	faint  colour = "2"
)

// paint colours a text for a stream, unless NO_COLOR is set or the stream is not a terminal. The text must
// already be escaped.
func (e *env) paint(stream any, c colour, text string) string {
	if c == "" || e.getenv("NO_COLOR") != "" || !e.ansi(stream) {
		return text
	}
	return "\x1b[" + string(c) + "m" + text + "\x1b[0m"
}

// printPainted prints to stdout, with head in a colour.
func (e *env) printPainted(c colour, head, rest string) error {
	escape := func(s string) string { return string(terminal.Escape(nil, []byte(s))) }
	return e.write([]byte(e.paint(e.stdout, c, escape(head)) + escape(rest)))
}

const (
	columnGap = 2  // between the columns of a table
	minColumn = 10 // columns are not cut to less than this width
)

// printList prints the items that a command lists, as a table with a row for each. With -o json, it prints an
// object that has the items under this name. If there are no items, it says so with none.
func printList[T any](e *env, name string, items []T, none string, header []string, row func(T) []string) error {
	switch {
	case e.json():
		return e.printJSON(map[string]any{name: append([]T{}, items...)})
	case len(items) == 0:
		e.say("%s", none)
		return nil
	}
	rows := [][]string{header}
	for _, item := range items {
		rows = append(rows, row(item))
	}
	return e.printTable(rows)
}

// printTable writes a table to stdout; the first row is the header. On a terminal, the widest columns are cut
// so that the table fits the width. Control characters are escaped.
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

// fit narrows the widest columns until the table fits.
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
			return // the terminal is too narrow; let it wrap the lines
		}
		widths[widest]--
		total--
	}
}
