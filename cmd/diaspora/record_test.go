package main

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/terminal"
)

func TestAppendRecord(t *testing.T) {
	at := time.Date(2026, 11, 23, 17, 4, 5, 250_000_000, time.FixedZone("CET", 3600))
	for _, test := range []struct {
		name string
		r    diaspora.Record
		want string
	}{
		{"everything", diaspora.Record{
			Event: diaspora.Event{Topic: "weather", Key: []byte("station-4"), Value: []byte("21.5 °C <&>"), Time: at, ID: "k3-1",
				Headers: []diaspora.Header{{Key: "unit", Value: []byte("C")}, {Key: "raw", Value: []byte{0xff}}}},
			Partition: 2, Offset: 7, Stored: at.Add(time.Second),
		}, `{"topic":"weather","partition":2,"offset":7,"time":"2026-11-23T16:04:05.25Z","stored":"2026-11-23T16:04:06.25Z",` +
			`"id":"k3-1","key":"station-4","value":"21.5 °C <&>","headers":[{"name":"unit","value":"C"},{"name":"raw","value_base64":"/w=="}]}`},
		{"next to nothing", diaspora.Record{Event: diaspora.Event{Topic: "t", Value: []byte{}}},
			`{"topic":"t","partition":0,"offset":0,"key":null,"value":"","headers":[]}`},
		{"a tombstone", diaspora.Record{Event: diaspora.Event{Topic: "t", Key: []byte{0xfe}}},
			`{"topic":"t","partition":0,"offset":0,"key_base64":"/g==","value":null,"headers":[]}`},
		{"commands to the terminal", diaspora.Record{Event: diaspora.Event{Topic: "t", Value: []byte("\x1b[2J\u009b1m\u202e\x00\"\\\n\x7f")}},
			`{"topic":"t","partition":0,"offset":0,"key":null,"value":"\u001b[2J\u009b1m\u202e\u0000\"\\\n\u007f","headers":[]}`},
	} {
		if got := string(appendRecord(nil, &test.r)); got != test.want+"\n" {
			t.Errorf("%s:\n got %s want %s", test.name, got, test.want)
		}
	}
}

func FuzzRecordRoundTrip(f *testing.F) {
	f.Add([]byte("key"), []byte("value"), "name", []byte("header"), "id-1")
	f.Add([]byte{0xff}, []byte("\x1b[31m\u2028\U000e0041"), "", []byte(nil), "")
	f.Fuzz(func(t *testing.T, key, value []byte, name string, header []byte, id string) {
		if !utf8.ValidString(name) || !utf8.ValidString(id) {
			return
		}
		want := diaspora.Event{Topic: "copy", Key: key, Value: value, ID: id,
			Headers: []diaspora.Header{{Key: name, Value: header}}, Time: time.Unix(1e9, 123).UTC()}
		line := appendRecord(nil, &diaspora.Record{Event: want, Partition: 3, Offset: 4, Stored: time.Unix(2e9, 0)})
		if bytes.Count(line, []byte("\n")) != 1 || !utf8.Valid(line) {
			t.Fatalf("not one line of UTF-8: %q", line)
		}
		for _, r := range string(line[:len(line)-1]) {
			if terminal.Commands(r) {
				t.Fatalf("%q would command the terminal, in %q", r, line)
			}
		}
		got, err := parseEvent("copy", line)
		if err != nil {
			t.Fatalf("parseEvent(%s): %v", line, err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	})
}

func TestParseEvent(t *testing.T) {
	event := func(value string) diaspora.Event { return diaspora.Event{Topic: "t", Value: []byte(value)} }
	for _, test := range []struct {
		line string
		want diaspora.Event
	}{
		{`{"value":"a"}`, event("a")},
		{`{"value":""}`, event("")},
		{`{"value":null}`, diaspora.Event{Topic: "t"}},
		{`{"value":{"celsius": 21.50, "a":[1, 2]}}`, event(`{"celsius":21.50,"a":[1,2]}`)},
		{`{"value":12345678901234567890.10}`, event("12345678901234567890.10")},
		{`{"value":true}`, event("true")},
		{`{"value_base64":"AP8="}`, event("\x00\xff")},
		{`{"value_base64":""}`, event("")},
		{"\ufeff" + `{"value":"a"}`, event("a")},
		{`{"value":"a","headers":{"unit":"C","n":7,"none":null}}`, diaspora.Event{Topic: "t", Value: []byte("a"),
			Headers: []diaspora.Header{{Key: "unit", Value: []byte("C")}, {Key: "n", Value: []byte("7")}, {Key: "none"}}}},
		{`{"value":"a","headers":{}}`, event("a")},
		{`{"value":"a","headers":null}`, event("a")},
		{` {"value":"a","topic":"other","partition":9,"offset":1,"stored":"whenever"} `, event("a")},
	} {
		if got, err := parseEvent("t", []byte(test.line)); err != nil || !reflect.DeepEqual(got, test.want) {
			t.Errorf("parseEvent(%s) = %+v, %v, want %+v", test.line, got, err, test.want)
		}
	}
	for line, want := range map[string]string{
		``:                                    "not a whole JSON object",
		`{`:                                   "not a whole JSON object",
		`{"value":`:                           "not a whole JSON object",
		`hello`:                               "not JSON: byte 1",
		`[1]`:                                 "not a JSON object",
		`"a"`:                                 "not a JSON object",
		`{}`:                                  "neither",
		`{"key":"k"}`:                         "neither",
		`{"value":"a","vlaue":"b"}`:           `unknown member "vlaue"`,
		`{"value":"a","value_base64":"YQ=="}`: "both value and value_base64",
		`{"value":"a","key":"k","key_base64":"YQ=="}`: "both key and key_base64",
		`{"value_base64":"!"}`:                        "malformed",
		`{"value":"a","time":"noon"}`:                 "malformed",
		`{"value":"a","id":7}`:                        `its "id" must not be a number`,
		`{"value":"a","headers":7}`:                   "a number",
		`{"value":"a","headers":[{"key":"h"}]}`:       `unknown member "key"`,
		`{"value":"a"}{"value":"b"}`:                  "more than one",
		`{"value":"a"} x`:                             "more than one",
		"{\"value\":\"\xff\"}":                        "not UTF-8",
	} {
		if got, err := parseEvent("t", []byte(line)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("parseEvent(%s) = %+v, %v, want %q", line, got, err, want)
		}
	}
}

func FuzzParseEvent(f *testing.F) {
	f.Add([]byte(`{"value":{"a":1},"key":"k","headers":[{"name":"h","value":null}],"time":"2026-11-23T17:04:05Z"}`))
	f.Add([]byte(`{"value_base64":"AP8=","id":"x"}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		event, err := parseEvent("t", line)
		if err != nil {
			return
		}
		if !json.Valid(bytes.TrimSpace(bytes.TrimPrefix(line, []byte(byteOrderMark)))) {
			t.Errorf("parseEvent(%q) took what is not JSON", line)
		}
		if event.Topic != "t" {
			t.Errorf("parseEvent(%q): topic %q", line, event.Topic)
		}
	})
}

func BenchmarkAppendRecord(b *testing.B) {
	r := diaspora.Record{Event: diaspora.Event{Topic: "weather", Value: []byte(strings.Repeat("some text with \t tabs ", 5)), Time: time.Now(), ID: "k3v9x0q2m7ta5h1c-2f"}, Stored: time.Now()}
	var buf []byte
	for b.Loop() {
		buf = appendRecord(buf[:0], &r)
	}
	b.SetBytes(int64(len(buf)))
}
