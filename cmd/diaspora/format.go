package main

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/terminal"
)

// formatHelp describes the formats that parseFormat accepts, for help texts. They are those of kcat, plus %I.
const formatHelp = `A FORMAT is text with any of these tokens
  %s %k                   the value and the key
  %S %K                   their lengths in bytes; -1 if there is none
  %R                      the value's length as four bytes, big endian
  %t %p %o                topic, partition, offset
  %T                      when the cluster received the record, in milliseconds since 1970
  %h                      the headers, as name=value,name=value
  %I                      the ID of the event; kcat has no such token
  %%                      a percent sign
  \n \r \t \\             line feed, carriage return, tab, backslash
  \x1f                    the byte with these hexadecimal digits`

// recordFormat appends a formatted record to buf.
type recordFormat func(buf []byte, r *diaspora.Record) []byte

// parseFormat parses a format as described by formatHelp. If person is true, the output is a terminal, so the
// data of the record is escaped: it must not control the terminal.
func parseFormat(text string, person bool) (recordFormat, error) {
	show := func(buf, data []byte) []byte { return append(buf, data...) }
	if person {
		show = terminal.Escape
	}
	var parts []recordFormat
	for text != "" {
		literal, rest, found := strings.Cut(text, "%")
		plain, err := unescape(literal)
		if err != nil {
			return nil, err
		}
		parts = append(parts, func(buf []byte, _ *diaspora.Record) []byte { return append(buf, plain...) })
		if text = rest; !found {
			break
		}
		if rest == "" {
			return nil, fmt.Errorf(`it ends with %%; a percent sign is written %%%%`)
		}
		part := formatToken(rest[0], show)
		if part == nil {
			return nil, fmt.Errorf("%%%.1s is not a token; choose %s", rest, formatTokens)
		}
		parts, text = append(parts, part), rest[1:]
	}
	return func(buf []byte, r *diaspora.Record) []byte {
		for _, part := range parts {
			buf = part(buf, r)
		}
		return buf
	}, nil
}

// formatTokens lists the tokens that formatToken knows, for errors.
const formatTokens = "%s, %k, %S, %K, %R, %t, %p, %o, %T, %h, %I or %%"

// formatToken returns the format of the token with this letter, or nil if there is none.
func formatToken(letter byte, show func(buf, data []byte) []byte) recordFormat {
	switch letter {
	case '%':
		return func(buf []byte, _ *diaspora.Record) []byte { return append(buf, '%') }
	case 's':
		return func(buf []byte, r *diaspora.Record) []byte { return show(buf, r.Value) }
	case 'k':
		return func(buf []byte, r *diaspora.Record) []byte { return show(buf, r.Key) }
	case 'S':
		return func(buf []byte, r *diaspora.Record) []byte { return strconv.AppendInt(buf, length(r.Value), 10) }
	case 'K':
		return func(buf []byte, r *diaspora.Record) []byte { return strconv.AppendInt(buf, length(r.Key), 10) }
	case 'R':
		return func(buf []byte, r *diaspora.Record) []byte {
			return show(buf, binary.BigEndian.AppendUint32(nil, uint32(length(r.Value))))
		}
	case 't':
		return func(buf []byte, r *diaspora.Record) []byte { return append(buf, r.Topic...) }
	case 'p':
		return func(buf []byte, r *diaspora.Record) []byte { return strconv.AppendInt(buf, int64(r.Partition), 10) }
	case 'o':
		return func(buf []byte, r *diaspora.Record) []byte { return strconv.AppendInt(buf, r.Offset, 10) }
	case 'T':
		return func(buf []byte, r *diaspora.Record) []byte { return strconv.AppendInt(buf, r.Stored.UnixMilli(), 10) }
	case 'I':
		return func(buf []byte, r *diaspora.Record) []byte { return show(buf, []byte(r.ID)) }
	case 'h':
		return func(buf []byte, r *diaspora.Record) []byte {
			for i, h := range r.Headers {
				if i > 0 {
					buf = append(buf, ',')
				}
				buf = append(show(buf, []byte(h.Key)), '=')
				if h.Value == nil {
					buf = append(buf, "NULL"...)
				}
				buf = show(buf, h.Value)
			}
			return buf
		}
	}
	return nil
}

// length returns the length of a key or value, or -1 if there is none.
func length(data []byte) int64 {
	if data == nil {
		return -1
	}
	return int64(len(data))
}

// unescape replaces \n, \r, \t, \\ and \x1f, because shells pass them on unchanged.
func unescape(text string) (string, error) {
	var b strings.Builder
	for {
		plain, rest, found := strings.Cut(text, `\`)
		b.WriteString(plain)
		if !found {
			return b.String(), nil
		}
		if rest == "" {
			return "", fmt.Errorf(`it ends with \; a backslash is written \\`)
		}
		text = rest[1:]
		switch rest[0] {
		case 'n':
			b.WriteByte('\n')
		case 'r':
			b.WriteByte('\r')
		case 't':
			b.WriteByte('\t')
		case '\\':
			b.WriteByte('\\')
		case 'x':
			n, err := strconv.ParseUint(text[:min(2, len(text))], 16, 8)
			if err != nil || len(text) < 2 {
				return "", fmt.Errorf(`\x needs two hexadecimal digits, as in \x1f`)
			}
			b.WriteByte(byte(n))
			text = text[2:]
		default:
			return "", fmt.Errorf(`\%.1s is not an escape sequence; a backslash is written \\`, rest)
		}
	}
}
