package main

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// timeHelp describes the times that parseTime accepts, for help texts.
const timeHelp = `A TIME is one of
  2026-11-23T17:04:05Z    RFC 3339, with any UTC offset and fraction
  "2026-11-23 17:04"      local time, with or without seconds
  2026-11-23              the beginning of this day; today and yesterday also work
  2h, "2h ago", 1d12h     this long before now; the units are y, w, d, h, m and s`

var errNotTime = errors.New(`not a time; write it like 2026-11-23T17:04:05Z, 2026-11-23, 2h or "2h ago"`)

// parseTime parses a point in time, as described by timeHelp. Local times are in the time zone of now.
func parseTime(text string, now time.Time) (time.Time, error) {
	text = strings.TrimSpace(text)
	if len(text) > 100 {
		return time.Time{}, errNotTime
	}
	midnight := time.Date(now.Year(), now.Month(), now.Day(), 0, 0, 0, 0, now.Location())
	switch strings.ToLower(text) {
	case "now":
		return now, nil
	case "today":
		return midnight, nil
	case "yesterday":
		return midnight.AddDate(0, 0, -1), nil
	}
	if t, err := time.Parse(time.RFC3339Nano, strings.Replace(strings.ToUpper(text), " ", "T", 1)); err == nil {
		return t, nil
	}
	for _, layout := range []string{time.DateOnly, "2006-01-02T15:04", "2006-01-02T15:04:05", "2006-01-02 15:04", time.DateTime} {
		if t, err := time.ParseInLocation(layout, text, now.Location()); err == nil {
			return t, nil
		}
	}
	age, err := parseAge(text)
	if err != nil {
		return time.Time{}, err
	}
	return now.Add(-age), nil
}

var unitNames = map[string]time.Duration{
	"ms": time.Millisecond,
	"s":  time.Second, "sec": time.Second, "second": time.Second,
	"m": time.Minute, "min": time.Minute, "minute": time.Minute,
	"h": time.Hour, "hour": time.Hour,
	"d": 24 * time.Hour, "day": 24 * time.Hour,
	"w": 7 * 24 * time.Hour, "week": 7 * 24 * time.Hour,
	"y": 365 * 24 * time.Hour, "year": 365 * 24 * time.Hour,
}

// durationHelp describes the units of a duration, for help texts.
const durationHelp = `The units of a
TIME are s, m (minutes), h, d, w and y (365 days).`

// badDuration is the error for a duration of days or years. It names the units, because m could be taken for months.
func badDuration(examples string) error {
	return fmt.Errorf("want a duration such as %s; the units are s, m (minutes), h, d, w and y, so three months are 90d", examples)
}

const maxAge = 100 * 365 * 24 * time.Hour

// parseAge parses a duration, with or without "ago": "1d12h", "90 minutes ago".
func parseAge(text string) (time.Duration, error) {
	rest := strings.ToLower(text)
	if before, ok := strings.CutSuffix(rest, "ago"); ok {
		rest = before
	}
	rest = strings.TrimSpace(rest)
	if rest == "" {
		return 0, errNotTime
	}
	var total time.Duration
	for rest != "" {
		digits := strings.IndexFunc(rest, func(r rune) bool { return r != '.' && (r < '0' || r > '9') })
		if digits <= 0 {
			return 0, errNotTime
		}
		number, err := strconv.ParseFloat(rest[:digits], 64)
		if err != nil {
			return 0, errNotTime
		}
		rest = strings.TrimLeftFunc(rest[digits:], unicode.IsSpace)
		end := strings.IndexFunc(rest, func(r rune) bool { return !unicode.IsLetter(r) })
		if end < 0 {
			end = len(rest)
		}
		unit, ok := unitNames[rest[:end]]
		if !ok {
			unit, ok = unitNames[strings.TrimSuffix(rest[:end], "s")]
		}
		if !ok {
			return 0, errNotTime
		}
		if number*float64(unit) > float64(maxAge-total) {
			return 0, fmt.Errorf("%s is more than a hundred years", strings.TrimSpace(text))
		}
		total += time.Duration(math.Round(number * float64(unit)))
		rest = strings.TrimLeftFunc(rest[end:], unicode.IsSpace)
	}
	return total, nil
}

// parseRetention parses a retention time, and returns it in milliseconds; -1 means forever.
func parseRetention(text string) (int64, error) {
	if text == "forever" {
		return -1, nil
	}
	d, err := parseAge(text)
	switch {
	case err != nil || strings.HasSuffix(text, "ago"):
		return 0, badDuration(`12h, 7d or "forever"`)
	case d < time.Millisecond:
		return 0, errors.New("it must be at least 1 ms")
	}
	return d.Milliseconds(), nil
}

// retentionText formats a retention time. It is the inverse of parseRetention.
func retentionText(ms int64) string {
	switch d := time.Duration(ms) * time.Millisecond; {
	case ms < 0:
		return "forever"
	case ms == 0:
		return "default"
	case d%(24*time.Hour) == 0:
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	default:
		return d.String()
	}
}
