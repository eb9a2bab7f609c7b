package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/terminal"
)

// source is the input that a command is reading, and the position in it.
type source struct {
	mu sync.Mutex // guards the field below
	at sourceState
}

type sourceState struct {
	name  string // of the current stream; "" if there is none
	size  int64  // of the current stream; 0 if unknown
	read  int64  // bytes read from the current stream
	total int64  // bytes read from all streams
}

// begin makes r the current stream, and returns a reader that counts what is read from it. To close that
// reader ends the stream, and does not close r.
func (s *source) begin(name string, r io.Reader) io.ReadCloser {
	size := int64(0)
	if f, ok := r.(*os.File); ok {
		if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
			if offset, err := f.Seek(0, io.SeekCurrent); err == nil { // another program may have read the beginning of stdin
				size = max(0, info.Size()-offset)
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at = sourceState{name: name, size: size, total: s.at.total}
	return &countedReader{r, s}
}

// end ends the current stream.
func (s *source) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at.name = ""
}

func (s *source) state() sourceState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.at
}

type countedReader struct {
	io.Reader
	source *source
}

func (r *countedReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.source.mu.Lock()
	defer r.source.mu.Unlock()
	r.source.at.read += int64(n)
	r.source.at.total += int64(n)
	return n, err
}

func (r *countedReader) Close() error {
	r.source.end()
	return nil
}

// percent returns how much of the stream has been read as a percentage, followed by the stream's name if there
// is room for it in so many columns. It returns "" if the size is unknown.
func (s sourceState) percent(columns int) string {
	if s.name == "" || s.size == 0 {
		return ""
	}
	const least = 4 // columns for a name
	text := fmt.Sprintf("%d%%", min(100, s.read*100/s.size))
	if room := columns - len(text+" of "); room >= least {
		text += " of " + terminal.CutMiddle(string(terminal.Escape(nil, []byte(oneLine(s.name)))), room)
	}
	return text
}

// meter measures the rate at which a value grows, over the last few seconds.
type meter struct {
	times  []time.Time
	values []int64
}

const meterWindow = 3 * time.Second

// rate records a value, and returns its growth per second.
func (m *meter) rate(now time.Time, value int64) float64 {
	m.times, m.values = append(m.times, now), append(m.values, value)
	for len(m.times) > 2 && now.Sub(m.times[1]) >= meterWindow {
		m.times, m.values = m.times[1:], m.values[1:]
	}
	if passed := now.Sub(m.times[0]).Seconds(); passed > 0 {
		return float64(value-m.values[0]) / passed
	}
	return 0
}

// progressLine returns a function that describes the progress of produce, for [env.progress].
func (p *produceRun) progressLine() func(now time.Time, columns int) string {
	var bytes, events meter
	return func(now time.Time, columns int) string {
		at, stats := p.source.state(), p.logger.Stats()
		pending := stats.Pending
		if p.spool {
			pending = stats.Spool.Events
		}
		byteRate, eventRate := bytes.rate(now, at.total), events.rate(now, stats.Acknowledged)
		if at.name == "" && pending == 0 {
			return ""
		}
		p.mu.Lock()
		read := p.read
		p.mu.Unlock()
		parts := []string{count(read, p.noun), terminal.Size(at.total)}
		if at.name != "" {
			parts = append(parts, terminal.Size(int64(byteRate))+"/s")
		} else {
			parts = append(parts, fmt.Sprintf("%d/s acknowledged", int64(eventRate)))
		}
		parts = append(parts, fmt.Sprintf("%d pending", pending))
		text := strings.Join(parts, ", ")
		if percent := at.percent(columns - len(text) - len(", ")); percent != "" {
			text += ", " + percent
		}
		return text
	}
}

// progressLine returns a function that describes the progress of consume, for [env.progress].
func (c *consumeRun) progressLine() func(now time.Time, columns int) string {
	var bytes meter
	return func(now time.Time, _ int) string {
		read, written := c.read.Load(), c.written.Load()
		text := count(read, "record")
		if total := c.total.Load(); total > 0 {
			text = fmt.Sprintf("%d of %s, %d%%", read, count(total, "record"), min(100, read*100/total))
		}
		return fmt.Sprintf("%s, %s, %s/s", text, terminal.Size(written), terminal.Size(int64(bytes.rate(now, written))))
	}
}

// drainProgress is the progress of spool drain.
type drainProgress struct {
	mu     sync.Mutex // guards the fields below
	sent   int64      // events from completed spools
	all    int64      // events that were pending in all spools at the beginning
	spools int
	done   int              // number of completed spools
	logger *diaspora.Logger // of the spool that is being sent; nil if none is
}

// begin starts the next spool.
func (d *drainProgress) begin(l *diaspora.Logger) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.logger = l
}

// end completes the current spool.
func (d *drainProgress) end(sent int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sent += sent
	d.done++
	d.logger = nil
}

func (d *drainProgress) line() func(now time.Time, columns int) string {
	var events meter
	return func(now time.Time, _ int) string {
		d.mu.Lock()
		defer d.mu.Unlock()
		sent := d.sent
		if d.logger != nil {
			sent += d.logger.Stats().Acknowledged
		}
		text := fmt.Sprintf("%d of %s acknowledged, %d/s", sent, count(d.all, "event"), int64(events.rate(now, sent)))
		if d.spools > 1 {
			text += fmt.Sprintf(", spool %d of %d", min(d.done+1, d.spools), d.spools)
		}
		return text
	}
}
