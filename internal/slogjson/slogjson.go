// Package slogjson writes log records of log/slog as JSON objects of a bounded size.
//
// It hides the format: the order of the members, how names stay unique, how values appear,
// and what is truncated or left out when a record is too large. The documentation of
// diaspora.Handler and docs/handler.md describe the result; the values are those of
// [slog.JSONHandler].
//
// Start with [Encoder.Record]. [Attrs] keeps what With and WithGroup have added in an
// encoded form, so that they are encoded once and not for each record.
package slogjson

import (
	"context"
	"log/slog"
	"slices"
	"strconv"
)

// Format says how records are written.
type Format struct {
	// MaxBytes bounds the length of the JSON. Required.
	MaxBytes int

	// AddSource adds the source position of the log call.
	AddSource bool

	// Trace returns the trace ID and the span ID of a context. If Trace is nil, neither is added.
	Trace func(context.Context) (traceID, spanID string)

	// Replace is called for each attribute that is not a group. If Replace is nil, attributes are
	// not changed.
	Replace func(groups []string, a slog.Attr) slog.Attr
}

// Space that is kept free for members other than the message and the attributes.
const (
	maxTailBytes  = 128  // for cut, lost and the closing braces of one attribute's groups
	maxTraceBytes = 256  // for a trace ID, and again for a span ID
	maxPlaceBytes = 4096 // for the function of a log call, and again for its file
)

// Attrs are the attributes and groups that precede those of each record. The zero value is not
// usable; [Format.Attrs] creates one. An Attrs is immutable and may be used concurrently.
type Attrs struct {
	format  *Format
	prefix  []byte
	groups  []string // groups that the prefix has opened and not closed
	pending []string // groups that are opened when they get their first attribute
	names   []string // names of the members of the innermost object of the prefix
	cut     int      // number of values that were truncated or left out
}

// Attrs returns an empty Attrs.
func (f *Format) Attrs() Attrs {
	names := []string{"time", "level", "msg", "cut", "lost"}
	if f.AddSource {
		names = append(names, "source")
	}
	if f.Trace != nil {
		names = append(names, "trace_id", "span_id")
	}
	return Attrs{format: f, names: names}
}

// WithGroup returns a copy of a with a further open group.
func (a Attrs) WithGroup(name string) Attrs {
	a.pending = append(slices.Clip(a.pending), name)
	return a
}

// With returns a copy of a with further attributes.
func (a Attrs) With(attrs []slog.Attr) Attrs {
	e := new(encoder)
	a.resume(e)
	e.limit /= 2 // the other half is for the message, and for the attributes of records
	before := a.begin(e)
	for _, attr := range attrs {
		e.attr(attr, 0)
	}
	if a.begun(e, before) {
		a.prefix = e.buf
		a.groups = append(slices.Clip(a.groups), a.pending...)
		a.pending = nil
		a.names = slices.Clone(e.names[e.first:])
	}
	a.cut = e.cut
	return a
}

// resume prepares e for attributes that follow those of the prefix.
func (a *Attrs) resume(e *encoder) {
	e.limit = a.format.MaxBytes - maxTailBytes - len(a.groups) - len(a.pending)
	e.cut = a.cut
	e.names = append(e.names[:0], a.names...)
	e.first = 0
	e.groups = append(e.groups[:0], a.groups...)
	e.replace = a.format.Replace
}

// begin writes the prefix, opens the pending groups, and returns the state before these.
func (a *Attrs) begin(e *encoder) mark {
	e.buf = append(e.buf, a.prefix...)
	m := e.mark()
	for _, g := range a.pending {
		e.begin(g)
	}
	return m
}

// begun reports whether the pending groups have got attributes. If not, it removes them.
func (a *Attrs) begun(e *encoder, before mark) bool {
	if len(a.pending) > 0 && e.buf[len(e.buf)-1] == '{' {
		e.back(before)
		return false
	}
	return true
}

// Encoder writes records, and keeps its working memory for the next one. The zero value is ready to
// use. An Encoder must not be used concurrently.
type Encoder struct{ e encoder }

// Record returns the JSON of a record. The attributes of a precede its own. lost is the number of
// records that were lost before this one; the JSON contains it if it is positive. Record writes to
// buf, overwriting its content, or to a new buffer if buf is too small. The caller owns the result.
func (enc *Encoder) Record(ctx context.Context, buf []byte, a *Attrs, r slog.Record, lost int64) []byte {
	e := &enc.e
	e.buf = buf[:0]
	a.resume(e)
	a.format.head(ctx, e, &r)
	before := a.begin(e)
	r.Attrs(func(attr slog.Attr) bool {
		e.attr(attr, 0)
		return true
	})
	open := len(a.groups)
	if a.begun(e, before) {
		open += len(a.pending)
	}
	for range open {
		e.buf = append(e.buf, '}')
	}
	if e.cut > 0 {
		e.member("cut")
		e.buf = strconv.AppendInt(e.buf, int64(e.cut), 10)
	}
	if lost > 0 {
		e.member("lost")
		e.buf = strconv.AppendInt(e.buf, lost, 10)
	}
	json := append(e.buf, '}')
	e.buf = nil // the buffer belongs to the caller now
	return json
}

// head writes the members that precede the attributes.
func (f *Format) head(ctx context.Context, e *encoder, r *slog.Record) {
	e.buf = append(e.buf, '{')
	if !r.Time.IsZero() {
		e.member("time")
		e.time(r.Time)
	}
	e.member("level")
	e.string(r.Level.String())
	e.member("msg")
	e.text(r.Message, e.limit/4)
	if f.AddSource {
		if s := r.Source(); s != nil {
			e.member("source")
			e.buf = append(e.buf, '{')
			e.member("function")
			e.text(s.Function, maxPlaceBytes)
			e.member("file")
			e.text(s.File, maxPlaceBytes)
			e.member("line")
			e.buf = strconv.AppendInt(e.buf, int64(s.Line), 10)
			e.buf = append(e.buf, '}')
		}
	}
	if f.Trace != nil {
		trace, span := f.Trace(ctx)
		e.id("trace_id", trace)
		e.id("span_id", span)
	}
}

func (e *encoder) id(name, id string) {
	if id != "" {
		e.member(name)
		e.text(id, maxTraceBytes)
	}
}
