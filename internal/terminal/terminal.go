// Package terminal makes untrusted text safe to show. It escapes the characters that a terminal
// interprets as commands, or that change the order in which text is displayed ([Escape]). It also
// measures and cuts text by columns ([Width], [Cut]) or by bytes ([Clip]), and formats sizes ([Size]).
package terminal

import (
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Escape appends text to buf. It escapes every character that a terminal could interpret as a
// command, or that could change the order in which characters are displayed. Line feeds and tabs
// stay.
func Escape(buf, text []byte) []byte {
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		switch {
		case r == utf8.RuneError && size == 1:
			buf = fmt.Appendf(buf, `\x%02x`, text[0])
		case r == '\n' || r == '\t' || !Commands(r):
			buf = append(buf, text[:size]...)
		case r == '\r':
			buf = append(buf, `\r`...)
		case r < 0x100:
			buf = fmt.Appendf(buf, `\x%02x`, r)
		case r < 0x10000:
			buf = fmt.Appendf(buf, `\u%04x`, r)
		default:
			buf = fmt.Appendf(buf, `\U%08x`, r)
		}
		text = text[size:]
	}
	return buf
}

// OneLine returns text as one line, escaped as by [Escape].
func OneLine(text string) string {
	return string(Escape(nil, []byte(strings.Join(strings.Fields(text), " "))))
}

// EscapeJSON is [Escape] for JSON texts. A JSON parser reads the escaped characters in strings as
// the original ones. White space between values stays.
func EscapeJSON(buf, text []byte) []byte {
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		switch {
		case r == '\n' || r == '\t' || r == '\r' || !Commands(r):
			buf = append(buf, text[:size]...)
		default:
			buf = AppendJSONRune(buf, r)
		}
		text = text[size:]
	}
	return buf
}

// AppendJSONRune appends r in the form of an escape in a JSON string.
func AppendJSONRune(buf []byte, r rune) []byte {
	if r < 0x10000 {
		return fmt.Appendf(buf, `\u%04x`, r)
	}
	high, low := utf16.EncodeRune(r)
	return fmt.Appendf(buf, `\u%04x\u%04x`, high, low)
}

// Commands reports whether a terminal may do anything with r other than display it.
func Commands(r rune) bool {
	const zeroWidthNonJoiner, zeroWidthJoiner = 0x200c, 0x200d // they occur in words and in emoji
	switch {
	case r == zeroWidthNonJoiner || r == zeroWidthJoiner:
		return false
	case r < 0x80: // the fast path for most text
		return r < ' ' || r == 0x7f
	}
	return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp)
}

// Writer writes to W what [Escape] returns for its input. Each call of Write must contain whole
// characters, as those of package fmt do.
type Writer struct{ W io.Writer }

// Write implements [io.Writer]. It returns len(p) if everything was written, although the escaped
// text may be longer.
func (w Writer) Write(p []byte) (int, error) {
	if _, err := w.W.Write(Escape(nil, p)); err != nil {
		return 0, err
	}
	return len(p), nil
}
