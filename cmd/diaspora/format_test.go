package main

import (
	"strings"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora"
)

// TestParseFormat compares formatted records with the output of kcat.
func TestParseFormat(t *testing.T) {
	full := diaspora.Record{Partition: 2, Offset: 7, Stored: time.UnixMilli(1234), Event: diaspora.Event{
		Topic: "weather", ID: "id-7", Key: []byte("k"), Value: []byte("21.5"), Time: time.UnixMilli(99),
		Headers: []diaspora.Header{{Key: "unit", Value: []byte("C")}, {Key: "none"}, {Key: "empty", Value: []byte{}}},
	}}
	tombstone := diaspora.Record{Stored: time.UnixMilli(0)}
	for _, test := range []struct {
		format string
		record diaspora.Record
		want   string
	}{
		{`%t %p %o %k %s\n`, full, "weather 2 7 k 21.5\n"},
		{`%T %S %K`, full, "1234 4 1"},
		{`%h`, full, "unit=C,none=NULL,empty="},
		{`%I`, full, "id-7"},
		{`%R%s`, full, "\x00\x00\x00\x0421.5"},
		{`%s|%S|%k|%K|%R|%h`, tombstone, "|-1||-1|\xff\xff\xff\xff|"},
		{`100%%\t\r\\\x41\x1f`, full, "100%\t\r\\A\x1f"},
		{"ä%sö", full, "ä21.5ö"},
		{"plain", full, "plain"},
	} {
		format, err := parseFormat(test.format, false)
		if err != nil {
			t.Errorf("parseFormat(%q) = %v", test.format, err)
		} else if got := string(format(nil, &test.record)); got != test.want {
			t.Errorf("%q gives %q, want %q", test.format, got, test.want)
		}
	}
	for format, want := range map[string]string{
		"%": "ends with %", "%s%": "ends with %", "%z": "%z is not a token", "%i": "choose %s, %k, %S, %K, %R, %t, %p, %o, %T, %h, %I or %%", "%ä": "%ä is not a token", `\`: `ends with \`, `\q`: `\q is not an escape`, `\x`: "two hexadecimal digits", `\x1`: "two", `\xzz%s`: "two",
	} {
		if _, err := parseFormat(format, false); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("parseFormat(%q) = %v, want an error that says %q", format, err, want)
		}
	}
	full.Value, full.ID = []byte("\x1b[2J"), "\x1b[2J"
	if format, _ := parseFormat(`%s %R %I\n`, true); strings.ContainsAny(string(format(nil, &full)), "\x1b\x00") {
		t.Errorf("what commands the terminal is shown as it is: %q", format(nil, &full))
	}
}
