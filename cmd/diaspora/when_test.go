package main

import (
	"strings"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora"
)

var testNow = time.Date(2026, 11, 23, 17, 4, 5, 0, time.FixedZone("CET", 3600))

func TestParseTime(t *testing.T) {
	for _, test := range []struct {
		text string
		want string // RFC 3339, or "" for an error
	}{
		{"2026-11-23T17:04:05Z", "2026-11-23T17:04:05Z"},
		{"2026-11-23t17:04:05z", "2026-11-23T17:04:05Z"},
		{"2026-11-23 17:04:05Z", "2026-11-23T17:04:05Z"},
		{"2026-11-23T17:04:05.123456789-08:00", "2026-11-23T17:04:05.123456789-08:00"},
		{"2026-11-23", "2026-11-23T00:00:00+01:00"},
		{"2026-11-23 08:30", "2026-11-23T08:30:00+01:00"},
		{"2026-11-23T08:30", "2026-11-23T08:30:00+01:00"},
		{"2026-11-23 08:30:15", "2026-11-23T08:30:15+01:00"},
		{"  2026-11-23  ", "2026-11-23T00:00:00+01:00"},
		{"now", "2026-11-23T17:04:05+01:00"},
		{"Today", "2026-11-23T00:00:00+01:00"},
		{"yesterday", "2026-11-22T00:00:00+01:00"},
		{"2h", "2026-11-23T15:04:05+01:00"},
		{"2h ago", "2026-11-23T15:04:05+01:00"},
		{"2 hours ago", "2026-11-23T15:04:05+01:00"},
		{"1 hour", "2026-11-23T16:04:05+01:00"},
		{"1d12h", "2026-11-22T05:04:05+01:00"},
		{"1d 12h ago", "2026-11-22T05:04:05+01:00"},
		{"1.5h", "2026-11-23T15:34:05+01:00"},
		{"90 minutes ago", "2026-11-23T15:34:05+01:00"},
		{"2w", "2026-11-09T17:04:05+01:00"},
		{"500ms", "2026-11-23T17:04:04.5+01:00"},
		{"0s", "2026-11-23T17:04:05+01:00"},

		{"", ""},
		{"ago", ""},
		{"h", ""},
		{"12", ""}, // an offset in a position, but not a time
		{"12 parsecs", ""},
		{"-2h", ""},
		{"1..5h", ""},
		{"2h ago ago", ""},
		{"tomorrow", ""},
		{"2026-13-01", ""},
		{"2026-02-30", ""},
		{"2026-11-23T25:00:00Z", ""},
		{"1000000w", ""},
		{"99999999999999999999999999h", ""},
		{strings.Repeat("1s", 60), ""},
	} {
		got, err := parseTime(test.text, testNow)
		if test.want == "" {
			if err == nil {
				t.Errorf("parseTime(%q) = %v, want an error", test.text, got)
			}
			continue
		}
		if err != nil || got.Format(time.RFC3339Nano) != test.want {
			t.Errorf("parseTime(%q) = %v, %v, want %s", test.text, got.Format(time.RFC3339Nano), err, test.want)
		}
	}
}

func FuzzParseTime(f *testing.F) {
	for _, seed := range []string{"2026-11-23T17:04:05Z", "2026-11-23", "2h ago", "1d12h", "1.5h", "today", "99999999w", "1e9h", "٣h", "2 Hours AGO"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseTime(text, testNow)
		if err != nil {
			if strings.ContainsAny(err.Error(), "\x1b\n") {
				t.Errorf("parseTime(%q): the error repeats what was typed: %q", text, err)
			}
			return
		}
		if y := got.UTC().Year(); y < -1 || y > 10000 {
			t.Fatalf("parseTime(%q) = %v", text, got)
		}
		again, err := parseTime(" "+strings.ToUpper(text)+" ", testNow)
		if err == nil && !again.Equal(got) {
			t.Errorf("parseTime(%q) = %v, but in capitals %v", text, got, again)
		}
		if text != "" && text[0] >= '0' && text[0] <= '9' && strings.HasSuffix(text, "ago") && got.After(testNow) {
			t.Errorf("parseTime(%q) = %v, which is in the future", text, got)
		}
		stamp := got.Format(time.RFC3339Nano)
		if back, err := parseTime(stamp, testNow); got.Year() >= 0 && got.Year() <= 9999 && (err != nil || !back.Equal(got)) {
			t.Errorf("parseTime(%q) = %v, %v, want %v", stamp, back, err, got)
		}
	})
}

func TestParsePosition(t *testing.T) {
	for _, test := range []struct {
		text string
		want diaspora.Position
	}{
		{"start", diaspora.Start},
		{" end ", diaspora.End},
		{"earliest", diaspora.Start},
		{"Beginning", diaspora.Start},
		{"latest", diaspora.End},
		{"0", diaspora.Offset(0)},
		{"4711", diaspora.Offset(4711)},
		{"-10", diaspora.Last(10)},
		{"-0", diaspora.Last(0)},
		{"-9223372036854775808", diaspora.Last(1 << 62)},
		{"2h ago", diaspora.At(testNow.Add(-2 * time.Hour))},
		{"today", diaspora.At(time.Date(2026, 11, 23, 0, 0, 0, 0, testNow.Location()))},
	} {
		got, err := parsePosition(test.text, testNow)
		if err != nil || got != test.want {
			t.Errorf("parsePosition(%q) = %v, %v, want %v", test.text, got, err, test.want)
		}
	}
	for _, text := range []string{"", "+5", "middle", "-", "1_000", "0x10", "99999999999999999999", "--5", "-2h"} {
		if got, err := parsePosition(text, testNow); err == nil {
			t.Errorf("parsePosition(%q) = %v, want an error", text, got)
		}
	}
}

func TestParseRetention(t *testing.T) {
	for text, want := range map[string]int64{
		"forever": -1, "7d": 7 * 86400_000, "12h": 12 * 3600_000, "1w": 7 * 86400_000, "1ms": 1, "3m": 180_000, "1y": 365 * 86400_000,
		"3 months": 0, "3mo": 0, "": 0, "2h ago": 0, "0s": 0, "-1": 0, "7": 0, "never": 0,
	} {
		got, err := parseRetention(text)
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("parseRetention(%q) = %d, %v, want %d", text, got, err, want)
		}
		if err != nil && !strings.Contains(err.Error(), "at least") && !strings.Contains(err.Error(), "the units are s, m (minutes), h, d, w and y, so three months are 90d") {
			t.Errorf("parseRetention(%q) fails with %q, which does not name the units", text, err)
		}
		if err == nil {
			if again, err := parseRetention(retentionText(got)); err != nil || again != got {
				t.Errorf("parseRetention(%q) = %d, %v, want %d", retentionText(got), again, err, got)
			}
		}
	}
}

// TestOneTimeZone checks that times are shown in the user's time zone, with the offset.
func TestOneTimeZone(t *testing.T) {
	zone := time.FixedZone("", -(3*60+30)*60)
	d := emptyDesk(t)
	d.now = func() time.Time { return testNow.In(zone) }
	at := time.Date(2026, 11, 23, 2, 0, 0, 0, time.UTC)
	if got, want := d.positionText(diaspora.At(at)), "2026-11-22T22:30:00-03:30"; got != want {
		t.Errorf("positionText = %q, want %q", got, want)
	}
	if got, want := d.day(at), "2026-11-22"; got != want {
		t.Errorf("day = %q, want %q", got, want)
	}
	day := testNow.UTC().Truncate(24 * time.Hour)
	for before, want := range map[int]string{0: "<1d ago", 1: "<2d ago", 30: "<31d ago"} {
		if got := d.lastUsedText(day.AddDate(0, 0, -before)); got != want {
			t.Errorf("a key used %d days before was used %q, want %q", before, got, want)
		}
	}
	if got := d.lastUsedText(time.Time{}); got != "never" {
		t.Errorf("a key that was not used was used %q", got)
	}
}
