// Package terminal makes text that others wrote fit to be shown: by a terminal, which
// takes some characters for commands, and by whatever else prints it later.
package terminal

import (
	"fmt"
	"io"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Escape appends text with everything escaped that could command a terminal
// or make it show another order of letters. Line feeds and tabs stay.
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

// EscapeJSON is [Escape] for JSON texts: what it escapes in their strings, a parser
// reads as what it was. The white space between values is left alone.
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

// AppendJSONRune appends r as JSON escapes it in a string.
func AppendJSONRune(buf []byte, r rune) []byte {
	if r < 0x10000 {
		return fmt.Appendf(buf, `\u%04x`, r)
	}
	high, low := utf16.EncodeRune(r)
	return fmt.Appendf(buf, `\u%04x\u%04x`, high, low)
}

// Commands reports whether a terminal may do something else with r than draw it.
func Commands(r rune) bool {
	const zeroWidthNonJoiner, zeroWidthJoiner = 0x200c, 0x200d // parts of words and of emoji
	switch {
	case r == zeroWidthNonJoiner || r == zeroWidthJoiner:
		return false
	case r < 0x80: // most of all text
		return r < ' ' || r == 0x7f
	}
	return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp)
}

// Writer writes to W what [Escape] makes of what it is given: whole characters at a
// time, as package fmt does.
type Writer struct{ W io.Writer }

func (w Writer) Write(p []byte) (int, error) {
	if _, err := w.W.Write(Escape(nil, p)); err != nil {
		return 0, err
	}
	return len(p), nil
}
