package main

import (
	"fmt"
	"unicode"
	"unicode/utf8"
)

// appendVisible appends text with everything escaped that could command a terminal
// or make it show another order of letters. Line feeds and tabs stay.
func appendVisible(buf, text []byte) []byte {
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		switch {
		case r == utf8.RuneError && size == 1:
			buf = fmt.Appendf(buf, `\x%02x`, text[0])
		case r == '\n' || r == '\t' || !commands(r):
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

// commands reports whether a terminal may do something else with r than draw it.
func commands(r rune) bool {
	const zeroWidthNonJoiner, zeroWidthJoiner = 0x200c, 0x200d // parts of words and of emoji
	switch {
	case r == zeroWidthNonJoiner || r == zeroWidthJoiner:
		return false
	case r < 0x80: // most of all text
		return r < ' ' || r == 0x7f
	}
	return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp)
}
