package slogjson

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"testing"
	"unicode/utf8"
)

type panicking struct{}

func (panicking) MarshalJSON() ([]byte, error) { panic("no") }

// unguarded has a method that does not handle a nil receiver.
type unguarded struct{ text string }

func (u *unguarded) Error() string { return u.text }

type unguardedText struct{ text string }

func (u *unguardedText) MarshalText() ([]byte, error) { return []byte(u.text), nil }

// TestPanicsAreWrittenAsBySlog checks that values whose methods panic are written as by
// slog.JSONHandler.
func TestPanicsAreWrittenAsBySlog(t *testing.T) {
	t.Parallel()
	for _, v := range []any{
		(*unguarded)(nil), &unguarded{"x"}, (*unguardedText)(nil), &unguardedText{"x"}, (*json.SyntaxError)(nil), panicking{}, (*panicking)(nil), &panicking{}, nil, error(nil),
	} {
		var out bytes.Buffer
		slog.New(slog.NewJSONHandler(&out, nil)).Info("m", "v", v)
		var want struct{ V json.RawMessage }
		if err := json.Unmarshal(out.Bytes(), &want); err != nil {
			t.Fatalf("%T: %v in %s", v, err, out.Bytes())
		}
		e := encoder{limit: 1 << 20}
		e.value(slog.AnyValue(v))
		if string(e.buf) != string(want.V) {
			t.Errorf("%#v is written as %s, and by slog.JSONHandler as %s", v, e.buf, want.V)
		}
	}
}

// FuzzString checks that a JSON decoder reads the string that was encoded.
func FuzzString(f *testing.F) {
	for _, s := range []string{"", "a\"\\\n\r\t\b\x00\x7f", "é\u2028\u2029😀", "\xff\xc3\x28\xed\xa0\x80", "\ufffd"} {
		f.Add(s, 5)
	}
	f.Fuzz(func(t *testing.T, s string, limit int) {
		var e encoder
		e.string(s)
		var got string
		if err := json.Unmarshal(e.buf, &got); err != nil {
			t.Fatalf("%q becomes %q: %v", s, e.buf, err)
		}
		if want := string([]rune(s)); got != want {
			t.Errorf("%q is read as %q, want %q", s, got, want)
		}
		limit = max(0, limit&0xffff)
		e.buf = nil
		e.text(s, limit)
		if len(e.buf) > limit+5 || !utf8.Valid(e.buf) || !json.Valid(e.buf) {
			t.Errorf("text of %d bytes is %q", limit, e.buf)
		}
	})
}
