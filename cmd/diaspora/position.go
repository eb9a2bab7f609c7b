package main

import (
	"strconv"
	"strings"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/consume"
)

// positionHelp describes the positions that parsePosition accepts, for help texts.
const positionHelp = `A POSITION is one of
  start                   the oldest record; earliest, beginning and begin also work
  end                     the position after the newest record; latest also works
  -10                     the last ten records of each partition
  4711                    this offset, in each partition
  TIME                    the first record that the cluster received at or after this time

` + timeHelp

// parsePosition parses a position in a topic, as described by positionHelp.
func parsePosition(text string, now time.Time) (diaspora.Position, error) {
	p, err := readPosition(text, now)
	switch p.Kind {
	case consume.Start:
		return diaspora.Start, err
	case consume.End:
		return diaspora.End, err
	case consume.At:
		return diaspora.At(p.Time), err
	case consume.Offset:
		return diaspora.Offset(p.Offset), err
	case consume.Last:
		return diaspora.Last(p.Offset), err
	}
	return diaspora.Position{}, err
}

// readPosition is parsePosition for commands that find the position in each partition themselves.
func readPosition(text string, now time.Time) (consume.Position, error) {
	text = strings.TrimSpace(text)
	switch strings.ToLower(text) {
	case "start", "earliest", "beginning", "begin":
		return consume.Position{Kind: consume.Start}, nil
	case "end", "latest":
		return consume.Position{Kind: consume.End}, nil
	}
	if n, err := strconv.ParseInt(text, 10, 64); err == nil && text[0] != '+' {
		if text[0] == '-' {
			return consume.Position{Kind: consume.Last, Offset: -max(n, -1<<62)}, nil
		}
		return consume.Position{Kind: consume.Offset, Offset: n}, nil
	}
	at, err := parseTime(text, now)
	if err != nil {
		return consume.Position{}, err
	}
	return consume.Position{Kind: consume.At, Time: at}, nil
}

// positionText describes a position, for use after "from" or "to".
func (e *env) positionText(p diaspora.Position) string {
	text := p.String()
	if at, ok := strings.CutPrefix(text, "at "); ok {
		if t, err := time.Parse(time.RFC3339Nano, at); err == nil {
			return e.clock(t)
		}
	}
	if strings.HasPrefix(text, "last ") {
		return "the " + text
	}
	return text
}
