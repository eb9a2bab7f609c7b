package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/terminal"
)

// A record is one line of JSON. `produce --input ndjson` reads the lines that `consume
// -o ndjson` writes. Data that is not UTF-8 is in base64, in a member with another name.
//
//	{"topic":"weather","partition":0,"offset":7,"time":"2026-11-23T17:04:05.25Z",
//	 "stored":"2026-11-23T17:04:05.26Z","id":"k3v9-1","key":"station-4","value":"21.5",
//	 "headers":[{"name":"unit","value":"C"}]}

// appendRecord appends r as a line of JSON. A missing key and the value of a tombstone are null.
func appendRecord(buf []byte, r *diaspora.Record) []byte {
	buf = append(buf, `{"topic":`...)
	buf = appendString(buf, r.Topic)
	buf = fmt.Appendf(buf, `,"partition":%d,"offset":%d`, r.Partition, r.Offset)
	buf = appendTime(buf, "time", r.Time)
	buf = appendTime(buf, "stored", r.Stored)
	if r.ID != "" {
		buf = append(buf, `,"id":`...)
		buf = appendString(buf, r.ID)
	}
	buf = appendBytes(append(buf, ','), "key", r.Key)
	buf = appendBytes(append(buf, ','), "value", r.Value)
	buf = append(buf, `,"headers":[`...)
	for i, h := range r.Headers {
		if i > 0 {
			buf = append(buf, ',')
		}
		buf = append(buf, `{"name":`...)
		buf = appendString(buf, h.Key)
		buf = appendBytes(append(buf, ','), "value", h.Value)
		buf = append(buf, '}')
	}
	return append(buf, "]}\n"...)
}

func appendTime(buf []byte, name string, t time.Time) []byte {
	if t.IsZero() {
		return buf
	}
	buf = append(buf, `,"`...)
	buf = append(buf, name...)
	buf = append(buf, `":"`...)
	return append(t.UTC().AppendFormat(buf, time.RFC3339Nano), '"')
}

// appendBytes appends a member: "name":"text", "name_base64":"..." or "name":null.
func appendBytes(buf []byte, name string, data []byte) []byte {
	buf = append(append(buf, '"'), name...)
	switch {
	case data == nil:
		return append(buf, `":null`...)
	case utf8.Valid(data):
		return appendString(append(buf, `":`...), string(data))
	}
	buf = append(buf, `_base64":"`...)
	return append(base64.StdEncoding.AppendEncode(buf, data), '"')
}

// appendString appends s as a JSON string. It also escapes characters that control a terminal. Bytes that are
// not UTF-8 become U+FFFD.
func appendString(buf []byte, s string) []byte {
	buf = append(buf, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			buf = append(buf, '\\', byte(r))
		case ' ' <= r && r < 0x7f:
			buf = append(buf, byte(r))
		case r == '\n':
			buf = append(buf, `\n`...)
		case r == '\r':
			buf = append(buf, `\r`...)
		case r == '\t':
			buf = append(buf, `\t`...)
		case !terminal.Commands(r):
			buf = utf8.AppendRune(buf, r)
		default:
			buf = terminal.AppendJSONRune(buf, r)
		}
	}
	return append(buf, '"')
}

// parseEvent parses one line of NDJSON as an event for the topic. The line is a record
// as written by appendRecord, of which only the value is required. If the value is an
// object, array, number or boolean, its JSON text is the event's value. The record's
// topic, partition, offset and stored are accepted and ignored.
func parseEvent(topic string, line []byte) (diaspora.Event, error) {
	var doc struct {
		Topic, Partition, Offset, Stored json.RawMessage

		Time      *time.Time  `json:"time"`
		ID        string      `json:"id"`
		Key       jsonBytes   `json:"key"`
		Key64     []byte      `json:"key_base64"`
		Value     jsonBytes   `json:"value"`
		Value64   []byte      `json:"value_base64"`
		HeaderSet jsonHeaders `json:"headers"`
	}
	line = bytes.TrimPrefix(line, []byte(byteOrderMark))
	if !utf8.Valid(line) {
		return diaspora.Event{}, errors.New("it is not UTF-8, as JSON is; binary data goes into value_base64")
	}
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&doc); err != nil {
		return diaspora.Event{}, jsonComplaint(err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return diaspora.Event{}, errors.New("the line has more than one JSON object")
	}
	event := diaspora.Event{Topic: topic, ID: doc.ID}
	if doc.Time != nil {
		event.Time = *doc.Time
	}
	var err error
	if event.Key, _, err = either("key", doc.Key, doc.Key64); err != nil {
		return diaspora.Event{}, err
	}
	var given bool
	if event.Value, given, err = either("value", doc.Value, doc.Value64); err != nil {
		return diaspora.Event{}, err
	}
	if !given {
		return diaspora.Event{}, errors.New(`it has neither "value" nor "value_base64"`)
	}
	for _, h := range doc.HeaderSet {
		value, _, err := either("header", h.Value, h.Value64)
		if err != nil {
			return diaspora.Event{}, err
		}
		event.Headers = append(event.Headers, diaspora.Header{Key: h.Name, Value: value})
	}
	return event, nil
}

// byteOrderMark is at the beginning of UTF-8 files that some programs on Windows write. It is not part of the
// JSON.
const byteOrderMark = "\ufeff"

// jsonHeaders parses headers that are a list of names and values or, as people write them, an object.
type jsonHeaders []jsonHeader

type jsonHeader struct {
	Name    string    `json:"name"`
	Value   jsonBytes `json:"value"`
	Value64 []byte    `json:"value_base64"`
}

func (h *jsonHeaders) UnmarshalJSON(text []byte) error {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if text[0] != '{' {
		return dec.Decode((*[]jsonHeader)(h))
	}
	if _, err := dec.Token(); err != nil {
		return err
	}
	for dec.More() { // a map would lose the order
		name, err := dec.Token()
		if err != nil {
			return err
		}
		header := jsonHeader{Name: name.(string)}
		if err := dec.Decode(&header.Value); err != nil {
			return err
		}
		*h = append(*h, header)
	}
	return nil
}

// either returns the value of a member that is given as text or in base64.
func either(name string, text jsonBytes, binary []byte) (data []byte, given bool, err error) {
	if text.given && binary != nil {
		return nil, false, fmt.Errorf("it has both %s and %s_base64", name, name)
	}
	if binary != nil {
		return binary, true, nil
	}
	return text.data, text.given, nil
}

// jsonBytes is the bytes of a JSON string, or the text of any other JSON value.
type jsonBytes struct {
	data  []byte // nil for null
	given bool
}

func (b *jsonBytes) UnmarshalJSON(text []byte) error {
	b.given = true
	switch {
	case text[0] == '"':
		var s string
		if err := json.Unmarshal(text, &s); err != nil {
			return err
		}
		b.data = []byte(s)
		return nil
	case string(text) == "null":
		b.data = nil
		return nil
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, text); err != nil {
		return err
	}
	b.data = compact.Bytes()
	return nil
}

// jsonComplaint says what is wrong with a line. It does not quote the line, apart from the name of a member,
// because events must not appear in errors.
func jsonComplaint(err error) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &kind) && kind.Field != "":
		return fmt.Errorf("its %q must not be a %s", kind.Field, strings.Fields(kind.Value + " ?")[0])
	case errors.As(err, &kind):
		return errors.New("it is not a JSON object")
	case errors.As(err, &syntax):
		return fmt.Errorf("it is not JSON: byte %d is wrong", syntax.Offset)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("it is not a whole JSON object")
	case strings.HasPrefix(err.Error(), "json: unknown field "):
		return fmt.Errorf("it has the unknown member %s", strings.TrimPrefix(err.Error(), "json: unknown field "))
	}
	return errors.New("it does not read as an event: a time or base64 text in it is malformed")
}
