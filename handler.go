package diaspora

import (
	"context"
	"log/slog"
	"slices"
	"strconv"
	"time"
)

// HandlerOptions says what a [Handler] logs, and where to.
type HandlerOptions struct {
	// Topic says where to. Required.
	Topic string

	// Key is the key of every event: with one, all of the Handler's events
	// keep their order in a topic of several partitions. Default: none.
	Key []byte

	// Level is the least level that is logged. Default: [slog.LevelInfo].
	Level slog.Leveler

	// AddSource adds the place in the code, as `source`.
	AddSource bool

	// Trace finds the trace and the span that a context belongs to, for
	// `trace_id` and `span_id`. An empty one is left out. Default: neither.
	Trace func(context.Context) (traceID, spanID string)

	// ReplaceAttr may change an attribute before it is logged, or remove it
	// by returning the zero Attr: it is the place to redact. It is called as
	// that of [slog.HandlerOptions], for every attribute that is not a group,
	// with its value resolved and the names of the groups that it is in; not
	// for time, level, message and source.
	ReplaceAttr func(groups []string, a slog.Attr) slog.Attr

	// DropAfter allows the Handler to drop records. The Logger holds up to
	// 64 MiB of events that are not acknowledged yet. While it is full, a
	// record waits for room, and is dropped after DropAfter; if that is
	// negative, at once. Default: never; the record waits until there is room
	// or the Logger is closed.
	DropAfter time.Duration
}

// Handler is a [slog.Handler] that logs each record as an event. Make one with
// [NewHandler]. It hands events to its [Logger] as [Logger.Send] does and keeps
// nothing back: there is no Close but that of the Logger, which flushes.
//
// Handle does not wait for the network. It may wait for room in the Logger, see
// HandlerOptions.DropAfter, whatever becomes of its context. What the Logger itself
// waits for, such as a callback of Send or the HTTP client that gets its tokens, never
// waits for room: what it logs while the Logger is full is dropped in any case.
//
// An event's value is one JSON object. Its shape is stable:
//
//	{"time":"2026-11-24T18:02:11.123456789Z","level":"INFO","msg":"shot taken",
//	 "source":{"function":"main.run","file":"/src/main.go","line":42},
//	 "trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","span_id":"00f067aa0ba902b7",
//	 "detector":"L1","beam":{"energy_keV":12.4},"cut":1,"lost":3}
//
// The event's own time, in the header `diaspora-time`, is that of the record, to the
// millisecond.
//
// Members come in this order. `level` and `msg` are always there, `time` unless the
// record has none; attributes come in the order in which they were given, those of
// [slog.Logger.With] first; groups are objects, and those without attributes are
// left out. Then, if need be:
//
//   - `cut` says how many values were cut or left out because the event would
//     have been larger than the cluster takes. A message is cut at a quarter of
//     that, and ends in "…"; an attribute that does not fit is left out.
//   - `lost` says how many of the Handler's events were lost before this one:
//     dropped, or failed for good. [Handler.Lost] counts them all.
//
// Names are unique in their object. If a name is taken, by an attribute or by a
// member that the options ask for, the next one is "name#2", then "name#3".
//
// Values appear as they do with [slog.JSONHandler]: a duration as its nanoseconds,
// a time in RFC 3339, an error as its text, []byte in base64, everything else as
// encoding/json has it, without HTML escapes; a [slog.LogValuer] as the value that
// it gives, so that a globus.Secret is "[redacted]". Beyond that, NaN and the
// infinities are the strings "NaN", "+Inf" and "-Inf", bytes that are not UTF-8
// become U+FFFD, and a value that cannot be encoded is a string that says why and
// begins with "!ERROR: " or "!PANIC: ".
//
// The library's own diagnostics do not come through, even if the Handler is the
// default logger and that the Logger's [Config.Diagnostics]. Send them elsewhere to
// see them.
type Handler struct {
	options *HandlerOptions
	out     *outbox
	own     bool // of the library itself: nothing comes through

	// What With and WithGroup gave, encoded as far as possible.
	prefix  []byte
	groups  []string // that the prefix has begun, and not ended
	pending []string // groups that begin with their first attribute
	names   []string // in the innermost object of the prefix
	cut     int
}

// NewHandler returns a Handler on the logger. It panics if the options name no
// topic, as there is nobody to return an error to whom a program would listen.
func NewHandler(logger *Logger, options *HandlerOptions) *Handler {
	if logger == nil || options == nil || options.Topic == "" {
		panic("diaspora: NewHandler needs a Logger and a Topic")
	}
	o := *options
	if o.Level == nil {
		o.Level = slog.LevelInfo
	}
	names := []string{"time", "level", "msg", "cut", "lost"}
	if o.AddSource {
		names = append(names, "source")
	}
	if o.Trace != nil {
		names = append(names, "trace_id", "span_id")
	}
	return &Handler{options: &o, out: newOutbox(logger, o.Topic, slices.Clone(o.Key), o.DropAfter), names: names}
}

// Lost returns how many of the Handler's records were dropped or failed for good.
func (h *Handler) Lost() int64 { return h.out.lost.Load() }

// Enabled implements [slog.Handler].
func (h *Handler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= h.options.Level.Level() && !h.own
}

// WithGroup implements [slog.Handler].
func (h *Handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	with := *h
	with.pending = append(slices.Clip(h.pending), name)
	return &with
}

// WithAttrs implements [slog.Handler].
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	if len(attrs) == 0 {
		return h
	}
	with := *h
	if marked(attrs) {
		with.own = true
		return &with
	}
	e := new(encoder)
	h.resume(e)
	e.limit /= 2 // the rest is for the message, and for the attributes of records
	e.buf = append(e.buf, h.prefix...)
	before := h.beginGroups(e)
	for _, a := range attrs {
		e.attr(a, 0)
	}
	if h.groupsBegun(e, before) {
		with.prefix = e.buf
		with.groups = append(slices.Clip(h.groups), h.pending...)
		with.pending = nil
		with.names = slices.Clone(e.names[e.first:])
	}
	with.cut = e.cut
	return &with
}

// Handle implements [slog.Handler].
func (h *Handler) Handle(ctx context.Context, r slog.Record) error {
	if h.own || speaking() {
		return nil
	}
	p := h.out.parcel()
	e := &p.json
	h.resume(e)
	h.head(ctx, e, &r)
	e.buf = append(e.buf, h.prefix...)
	before := h.beginGroups(e)
	r.Attrs(func(a slog.Attr) bool {
		e.attr(a, 0)
		return true
	})
	open := len(h.groups)
	if h.groupsBegun(e, before) {
		open += len(h.pending)
	}
	for range open {
		e.buf = append(e.buf, '}')
	}
	if e.cut > 0 {
		e.member("cut")
		e.buf = strconv.AppendInt(e.buf, int64(e.cut), 10)
	}
	if lost := p.tell(); lost > 0 {
		e.member("lost")
		e.buf = strconv.AppendInt(e.buf, lost, 10)
	}
	e.buf = append(e.buf, '}')
	p.event.Value = e.buf
	if tellTime(r.Time) {
		p.event.Time = r.Time
	}
	return p.send()
}

// tellTime reports whether the Logger is to be told the time of a record: not if it
// is now to the millisecond, which is what the Logger finds by itself, and cheaper.
func tellTime(t time.Time) bool {
	if t.IsZero() || time.Since(t).Abs() < time.Millisecond {
		return false
	}
	y := t.UTC().Year()
	return 0 <= y && y <= 9999
}

// The bytes of an event besides message and attributes.
const (
	maxTailBytes  = 128 // of cut, lost and the braces of the groups of one value
	maxTraceBytes = 256 // of a trace's and a span's ID each
	maxPlaceBytes = 4096
)

// resume makes e ready for attributes behind those of the prefix.
func (h *Handler) resume(e *encoder) {
	e.buf = e.buf[:0]
	e.limit = h.out.maxBytes - maxTailBytes - len(h.groups) - len(h.pending)
	e.cut = h.cut
	e.names = append(e.names[:0], h.names...)
	e.first = 0
	e.groups = append(e.groups[:0], h.groups...)
	e.replace = h.options.ReplaceAttr
}

// head writes what comes before the attributes.
func (h *Handler) head(ctx context.Context, e *encoder, r *slog.Record) {
	e.buf = append(e.buf, '{')
	if !r.Time.IsZero() {
		e.member("time")
		e.time(r.Time)
	}
	e.member("level")
	e.string(r.Level.String())
	e.member("msg")
	e.text(r.Message, e.limit/4)
	if h.options.AddSource {
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
	if h.options.Trace != nil {
		trace, span := h.options.Trace(ctx)
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

// beginGroups begins what is pending, and returns the state before.
func (h *Handler) beginGroups(e *encoder) mark {
	m := e.mark()
	for _, g := range h.pending {
		e.begin(g)
	}
	return m
}

// groupsBegun reports whether the pending groups have got attributes, and forgets
// them if not.
func (h *Handler) groupsBegun(e *encoder, before mark) bool {
	if len(h.pending) > 0 && e.buf[len(e.buf)-1] == '{' {
		e.back(before)
		return false
	}
	return true
}
