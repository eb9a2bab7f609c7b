package slogjson

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"
)

// encoder appends the members of nested JSON objects to a buffer. The object that was opened last
// is the current one. It stays open until end, so that members can be added.
type encoder struct {
	buf     []byte
	limit   int      // limit of len(buf); attributes that do not fit are left out
	cut     int      // number of values that were truncated or left out
	names   []string // names of the members of all open objects, those of the outermost first
	first   int      // names[first:] belong to the current object
	groups  []string // the open groups; used by replace only
	replace func(groups []string, a slog.Attr) slog.Attr
}

// maxNesting limits the depth of groups within the value of one attribute.
const maxNesting = 32

// mark is a saved state of an encoder. back returns to it, to drop what was written since.
type mark struct{ bytes, names, first, groups int }

func (e *encoder) mark() mark { return mark{len(e.buf), len(e.names), e.first, len(e.groups)} }

func (e *encoder) back(m mark) {
	e.buf, e.names, e.first, e.groups = e.buf[:m.bytes], e.names[:m.names], m.first, e.groups[:m.groups]
}

// key begins a member of the current object. A second "name" becomes "name#2", because
// readers of JSON keep only one of two members with the same name.
func (e *encoder) key(name string) {
	taken := e.names[e.first:]
	unique := name
	for n := 2; slices.Contains(taken, unique); n++ {
		unique = name + "#" + strconv.Itoa(n)
	}
	e.names = append(e.names, unique)
	e.member(unique)
}

// member begins a member of the current object. No other member may have that name.
func (e *encoder) member(name string) {
	if n := len(e.buf); n == 0 || e.buf[n-1] != '{' {
		e.buf = append(e.buf, ',')
	}
	e.string(name)
	e.buf = append(e.buf, ':')
}

// begin opens an object as a member of the current one.
func (e *encoder) begin(name string) {
	e.key(name)
	e.buf = append(e.buf, '{')
	e.first = len(e.names)
	if e.replace != nil {
		e.groups = append(e.groups, name)
	}
}

// end closes the object that was begun at m. An empty one is removed, and end returns false.
func (e *encoder) end(m mark) bool {
	if e.buf[len(e.buf)-1] == '{' {
		e.back(m)
		return false
	}
	e.buf = append(e.buf, '}')
	e.names, e.first, e.groups = e.names[:m.names+1], m.first, e.groups[:m.groups]
	return true
}

// attr writes an attribute. It leaves out the zero Attr, empty groups, and what would exceed
// the limit.
func (e *encoder) attr(a slog.Attr, depth int) {
	a.Value = a.Value.Resolve()
	if e.replace != nil && a.Value.Kind() != slog.KindGroup {
		a = e.replace(e.groups, a)
		a.Value = a.Value.Resolve()
	}
	if a.Key == "" && a.Value.Kind() == slog.KindAny && a.Value.Any() == nil {
		return
	}
	m := e.mark()
	if a.Value.Kind() == slog.KindGroup {
		switch attrs := a.Value.Group(); {
		case len(attrs) == 0:
		case depth == maxNesting:
			e.cut++
		case a.Key == "":
			for _, inner := range attrs {
				e.attr(inner, depth+1)
			}
		default:
			e.begin(a.Key)
			for _, inner := range attrs {
				e.attr(inner, depth+1)
			}
			e.end(m)
		}
		return
	}
	e.key(a.Key)
	e.value(a.Value)
	if len(e.buf) > e.limit {
		e.back(m)
		e.cut++
	}
}

func (e *encoder) value(v slog.Value) {
	switch v.Kind() {
	case slog.KindString:
		e.string(v.String())
	case slog.KindInt64:
		e.buf = strconv.AppendInt(e.buf, v.Int64(), 10)
	case slog.KindUint64:
		e.buf = strconv.AppendUint(e.buf, v.Uint64(), 10)
	case slog.KindFloat64:
		e.float(v.Float64())
	case slog.KindBool:
		e.buf = strconv.AppendBool(e.buf, v.Bool())
	case slog.KindDuration:
		e.buf = strconv.AppendInt(e.buf, int64(v.Duration()), 10)
	case slog.KindTime:
		e.time(v.Time())
	default:
		e.any(v.Any())
	}
}

func (e *encoder) time(t time.Time) {
	e.buf = append(e.buf, '"')
	e.buf = t.AppendFormat(e.buf, time.RFC3339Nano)
	e.buf = append(e.buf, '"')
}

// float writes a number as encoding/json does, and NaN and the infinities, for which JSON
// has no number, as strings.
func (e *encoder) float(f float64) {
	switch abs := math.Abs(f); {
	case math.IsNaN(f) || math.IsInf(f, 0):
		e.buf = append(e.buf, '"')
		e.buf = strconv.AppendFloat(e.buf, f, 'g', -1, 64)
		e.buf = append(e.buf, '"')
	case abs != 0 && (abs < 1e-6 || abs >= 1e21):
		e.buf = strconv.AppendFloat(e.buf, f, 'e', -1, 64)
	default:
		e.buf = strconv.AppendFloat(e.buf, f, 'f', -1, 64)
	}
}

// any writes a value as encoding/json does, and an error as its text. A value that cannot
// be encoded becomes a string that says why: a log call must not panic or lose the record.
func (e *encoder) any(v any) {
	start := len(e.buf)
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		e.buf = e.buf[:start]
		// The most likely cause is a method that does not handle a nil receiver. In that case,
		// write the same text as slog.JSONHandler.
		if r := reflect.ValueOf(v); r.Kind() == reflect.Pointer && r.IsNil() {
			e.string("<nil>")
			return
		}
		e.string(fmt.Sprintf("!PANIC: %v", p))
	}()
	if err, ok := v.(error); ok {
		if _, ok := v.(json.Marshaler); !ok {
			e.string(err.Error())
			return
		}
	}
	m := marshalers.Get().(*marshaler)
	m.out.Reset()
	if err := m.enc.Encode(v); err != nil {
		e.string(fmt.Sprintf("!ERROR: %v", err))
	} else {
		e.buf = append(e.buf, bytes.TrimSuffix(m.out.Bytes(), []byte("\n"))...)
	}
	if m.out.Cap() <= maxKeptBytes {
		marshalers.Put(m)
	}
}

// marshaler encodes JSON without HTML escapes.
type marshaler struct {
	out bytes.Buffer
	enc *json.Encoder
}

// maxKeptBytes limits the size of the buffers that are kept for reuse.
const maxKeptBytes = 64 << 10

var marshalers = sync.Pool{New: func() any {
	m := new(marshaler)
	m.enc = json.NewEncoder(&m.out)
	m.enc.SetEscapeHTML(false)
	return m
}}

const hexDigits = "0123456789abcdef"

// string writes a JSON string. Bytes that are not UTF-8 become U+FFFD.
func (e *encoder) string(s string) {
	b := append(e.buf, '"')
	start := 0 // s[start:i] needs no escapes and is written as it is
	for i := 0; i < len(s); {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' && c < utf8.RuneSelf {
			i++
			continue
		}
		if c >= utf8.RuneSelf {
			r, size := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && size == 1 {
				b = append(b, s[start:i]...)
				b = append(b, "\ufffd"...)
				start = i + 1
			}
			i += size
			continue
		}
		b = append(b, s[start:i]...)
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		default:
			b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
		i++
		start = i
	}
	b = append(b, s[start:]...)
	e.buf = append(b, '"')
}

// text writes a JSON string of at most max bytes between its quotes. It truncates a longer one.
func (e *encoder) text(s string, max int) {
	const more = `""…`
	start := len(e.buf)
	for keep := min(len(s), max); ; keep /= 2 { // halve until it fits, because escapes may make it longer
		text := s
		if keep < len(s) {
			for keep > 0 && !utf8.RuneStart(s[keep]) {
				keep--
			}
			text = s[:keep] + "…"
		}
		e.string(text)
		if keep == 0 || len(e.buf)-start <= max+len(more) {
			if keep < len(s) {
				e.cut++
			}
			return
		}
		e.buf = e.buf[:start]
	}
}
