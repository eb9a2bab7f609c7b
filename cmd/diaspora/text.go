package main

import (
	"fmt"
	"strings"
	"time"
)

// This file has the forms in which commands print counts, sizes, times and names.

// count returns "1 event" or "2 events".
func count[N int | int64 | uint64](n N, noun string) string {
	return fmt.Sprintf("%d %s", n, agree(n, noun, noun+"s"))
}

// agree returns the form of a word that agrees with a number.
func agree[N int | int64 | uint64](n N, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

// waiting returns "1 event waits" or "2 events wait".
func waiting[N int | int64 | uint64](n N) string {
	return count(n, "event") + agree(n, " waits", " wait")
}

// age returns roughly how long ago something was, or "-" for the zero time.
func (e *env) age(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	d := max(0, e.now().Sub(t))
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dd", d/(24*time.Hour))
}

// clock formats a time in the local time zone, with its offset.
func (e *env) clock(t time.Time) string {
	return t.In(e.now().Location()).Format(time.RFC3339)
}

// day formats the day of a time in the local time zone.
func (e *env) day(t time.Time) string {
	return t.In(e.now().Location()).Format(time.DateOnly)
}

// oneLine removes line breaks from text of other people.
func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

// plainName replaces all characters of a name except ASCII letters, digits and those in others. A replacement of
// -1 removes them.
func plainName(name, others string, replacement rune) string {
	return strings.Map(func(r rune) rune {
		if 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune(others, r) {
			return r
		}
		return replacement
	}, name)
}

// shellWord quotes a word for a shell, unless it needs no quotes.
func shellWord(s string) string {
	if s != "" && plainName(s, "-_./:+=@%,", -1) == s {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
